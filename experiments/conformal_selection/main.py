"""How many of the selected rollouts are wrong?  False discovery rates when the scorer is chosen on the same data.

Several noisy scorers of the same rollouts, of unequal quality; a calibration set with verified outcomes and a test set
without. Compared: take the scorer that selects most and pretend it was fixed ("naive"), split the calibration data,
pick a scorer at random, and OptCS (arXiv 2411.17983). The wanted false discovery rate is `level`.

    python -m experiments.conformal_selection.main
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from prm_jax import stats


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the two sets and the scorers."""

    calibration: int = 100
    test: int = 60
    scorers: int = 8
    level: float = 0.2
    repeats: int = 400
    noise: tuple[float, float] = (1.0, 2.0)  # of the best and of the worst scorer
    prevalence: float = 0.3
    shift: float = 1.0  # how far scores of the shifted test set move up


SMOKE = Config(calibration=40, test=20, scorers=3, repeats=10)


def draw(config: Config, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    quality = rng.normal(size=size)
    good = quality > np.quantile(rng.normal(size=4096), 1 - config.prevalence)
    scales = np.linspace(*config.noise, config.scorers)
    return quality[:, None] + scales * rng.normal(size=(size, config.scorers)), good


def select_all(config: Config, cal: jax.Array, good: jax.Array, test: jax.Array) -> jax.Array:
    """[K, M]: plain conformal selection by every scorer."""
    p = jax.vmap(stats.conformal_pvalues, (1, None, 1))(cal, good, test)
    return stats.benjamini_hochberg(p, level=config.level)


def run(config: Config) -> report.Tables:
    """False discovery proportion and power, averaged over repeats."""
    half, quarter = config.calibration // 2, config.calibration // 4

    @jax.jit
    def methods(cal, good, test, key):
        random_key, *keys = jax.random.split(key, 4)
        every = select_all(config, cal, good, test)
        trial = select_all(config, cal[:quarter], good[:quarter], cal[quarter:half])
        split = select_all(config, cal[half:], good[half:], test)
        chosen = {
            "naive: the scorer that selects most": every[every.sum(-1).argmax()],
            "split calibration data": split[trial.sum(-1).argmax()],
            "random scorer": every[jax.random.randint(random_key, (), 0, config.scorers)],
        }
        for pruning, k in zip(("heterogeneous", "homogeneous", "deterministic"), keys, strict=True):
            found = stats.optimized_selection(cal, good, test, k, level=config.level, pruning=pruning)
            chosen[f"OptCS, {pruning}"] = found.selected
        return chosen

    def measure(shift: float) -> dict[str, dict[str, float]]:
        rows: dict[str, list[tuple[float, float]]] = {}
        for seed in range(config.repeats):
            rng = np.random.default_rng(seed)
            cal, good = draw(config, rng, config.calibration)
            test, truth = draw(config, rng, config.test)
            found = methods(jnp.array(cal), jnp.array(good), jnp.array(test + shift), jax.random.key(seed))
            for name, selected in found.items():
                s = np.array(selected)
                wrong = (s & ~truth).sum() / max(s.sum(), 1)
                rows.setdefault(name, []).append((wrong, (s & truth).sum() / max(truth.sum(), 1)))
        out = {}
        for name, values in rows.items():
            fdp, power = np.array(values).T
            out[name] = {"false discoveries": report.estimate(fdp), "power": report.estimate(power)}
        return out

    return {
        "exchangeable test set": measure(0.0),
        "test scores shifted up (guarantee void)": measure(config.shift),
    }


PANELS = (
    report.Panel("exchangeable test set"),
    report.Panel("test scores shifted up (guarantee void)"),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
