"""Curves and plots: aggregation against hand-computed values, grouping by configuration, and pixels of the PNGs."""

import dataclasses
import pathlib

import numpy as np
import pytest

from prm_jax import cli, errors
from prm_jax.config_io import to_yaml
from prm_jax.errors import MissingExtraError, UserError
from prm_jax.prime import Options
from prm_jax.runs import curves, plots
from prm_jax.runs.curves import Series, aggregate, group_runs, interquartile_mean, load_run, smooth
from prm_jax.runs.metrics_log import MetricsLog

Image = pytest.importorskip("matplotlib.image")


def _run(path: pathlib.Path, options: Options | None, *, steps: int = 80, prm: bool = True) -> pathlib.Path:
    path.mkdir(parents=True, exist_ok=True)
    if options is not None:
        (path / "config.yaml").write_text(to_yaml(options))
    rng = np.random.default_rng(options.seed if options else 9)
    log = MetricsLog(path / "metrics.jsonl", fsync_seconds=1e9)
    for step in range(steps + 1):
        log.log(
            step,
            {
                "rollouts": step * 64,
                "rollout/solve_rate": rng.uniform(),
                "policy/grad_norm": np.exp(3 * rng.normal()),
                "policy/loss": np.nan if step == 5 else rng.normal(),
                **({"prm/pairwise_accuracy": rng.uniform(0.5, 1)} if prm else {}),
            },
        )
        if step % 20 == 0:
            log.log(step, {"rollouts": step * 64, "eval/greedy_accuracy": step / 100 + 0.01 * rng.uniform()})
    log.close()
    return path


def _ink(path: pathlib.Path, color: str) -> int:
    pixels = Image.imread(path)[..., :3]
    wanted = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=-1) < 0.02).sum())


def test_interquartile_mean_by_hand():
    values = np.array([[10.0], [1.0], [2.0], [3.0], [-50.0]])
    assert interquartile_mean(values) == pytest.approx([2.0])  # without -50 and 10
    assert interquartile_mean(values[:3]) == pytest.approx([13 / 3])  # too few to drop any
    eight = np.arange(8.0)[:, None]
    assert interquartile_mean(eight) == pytest.approx([3.5])


def test_curves_are_aggregated_over_their_common_range():
    a = (np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0, 4.0]))
    b = (np.array([1.0, 3.0]), np.array([11.0, 13.0]))
    series = aggregate([a, b, (np.zeros(0), np.zeros(0))], label="x", center="mean")
    np.testing.assert_array_equal(series.x, [1, 2, 3])
    np.testing.assert_array_equal(series.y, [6, 7, 8])
    np.testing.assert_array_equal(series.low, [1, 2, 3])
    np.testing.assert_array_equal(series.high, [11, 12, 13])
    assert series.count == 2 and series.label == "x"
    many = [(np.array([0.0]), np.array([float(v)])) for v in (0, 1, 2, 3, 100)]
    quartiles = aggregate(many, center="median")
    assert (quartiles.y[0], quartiles.low[0], quartiles.high[0]) == (2, 1, 3)
    whole = aggregate(many, band="range")
    assert (whole.y[0], whole.low[0], whole.high[0]) == (2, 0, 100)
    single = aggregate(many[:1])
    assert single.low is None and single.count == 1
    assert aggregate([]).count == 0


def test_smoothing_ignores_gaps():
    y = np.array([0.0, 3.0, np.nan, 3.0, 6.0])
    np.testing.assert_allclose(smooth(y, 3), [1.5, 1.5, 3.0, 4.5, 4.5])
    np.testing.assert_array_equal(smooth(y, 1), y)


def test_the_last_record_of_a_step_is_used(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step, value in ((2, 5.0), (1, 1.0), (2, 7.0)):
        log.log(step, {"a": value})
    log.log(3, {"b": 1.0})
    log.close()
    x, y = load_run(tmp_path).curve("a")
    np.testing.assert_array_equal(x, [1, 2])
    np.testing.assert_array_equal(y, [1, 7])
    assert len(load_run(tmp_path / "metrics.jsonl").curve("none")[0]) == 0


def test_runs_are_grouped_by_configuration_without_the_seed(tmp_path):
    base = Options()
    wide = dataclasses.replace(base, prm=dataclasses.replace(base.prm, beta=0.5))
    paths = [
        _run(tmp_path / f"{name}{seed}", dataclasses.replace(options, seed=seed, plots=bool(seed)), steps=2)
        for name, options in (("base", base), ("wide", wide))
        for seed in (0, 1)
    ]
    groups = group_runs(map(load_run, paths))
    assert {label: len(members) for label, members in groups.items()} == {"beta 0.05": 2, "beta 0.5": 2}
    assert list(group_runs(map(load_run, paths[:2]))) == [""]
    other = dataclasses.replace(wide, steps=1, prm=dataclasses.replace(wide.prm, minibatches=2, epochs=3))
    groups = group_runs(map(load_run, [*paths, _run(tmp_path / "other", other, steps=2)]))
    assert set(groups) == {"base0", "wide0", "other"}  # four options differ: too much for a label
    bare = [_run(tmp_path / d / "same", None, steps=2) for d in ("a", "b")]
    assert set(group_runs(map(load_run, bare))) == {"same", "same (2)"}


def test_the_report_draws_two_policies(tmp_path):
    options = Options()
    runs = {"PRIME": _run(tmp_path / "run", options), "outcome only": _run(tmp_path / "plain", options, prm=False)}
    pictures = plots.plot_report(runs, tmp_path / "plots")
    assert [p.name for p in pictures] == ["accuracy.png", "prm.png", "training.png"]
    for picture in pictures:
        assert _ink(picture, plots.COLORS[0]) > 200
    assert _ink(pictures[0], plots.COLORS[1]) > 200 and _ink(pictures[1], plots.COLORS[1]) == 0


def _titles(monkeypatch):
    """Collects the panels and notes that are passed to `draw`, instead of drawing them."""
    found = {}

    def keep(panels, path, *, notes=(), **more):
        found[path.stem] = ([panel.title for panel, _ in panels], " ".join(notes))
        return path

    monkeypatch.setattr(plots, "draw", keep)
    return found


def test_panels_that_show_rounding_noise_are_omitted_and_named(tmp_path, monkeypatch):
    found = _titles(monkeypatch)
    options = Options()
    run = _run(tmp_path / "run", options)
    plots.plot_report({"PRIME": run}, tmp_path / "plots")
    titles, note = found["training"]
    assert "Policy loss" not in titles and "Policy gradient norm" in titles
    assert note == "Not drawn, because constant or rounding noise: Policy loss"
    several = dataclasses.replace(options, policy=dataclasses.replace(options.policy, epochs=2))
    plots.plot_report({"PRIME": _run(tmp_path / "several", several)}, tmp_path / "plots")
    assert "Policy loss" in found["training"][0]
    plots.plot_runs([run], tmp_path / "plots", metrics=["policy/loss"])
    assert found["policy_loss"] == (["Policy loss"], "")


@pytest.mark.parametrize(
    ("values", "tells_nothing"),
    [([0.0, 3e-7, np.nan], True), ([0.5, 0.5, 0.5], True), ([0.5, 0.6], False), ([0.5], False)],
)
def test_which_curves_tell_nothing(values, tells_nothing):
    assert plots.Panel("a", "A", vanishes=True).tells_nothing([np.array(values)], False) == tells_nothing
    assert not plots.Panel("a", "A").tells_nothing([np.array(values)], True)


def test_a_policy_with_more_steps_at_equal_rollouts_is_explained(tmp_path, monkeypatch):
    found = _titles(monkeypatch)
    runs = {}
    for name, first, steps in (("PRIME", 640, 10), ("outcome only", 0, 20)):
        (tmp_path / name).mkdir()
        log = MetricsLog(tmp_path / name / "metrics.jsonl")
        for step in range(1, steps + 1):
            log.log(step, {"rollouts": first + 64 * step, "rollout/solve_rate": step / 20})
        log.close()
        runs[name] = tmp_path / name
    plots.plot_report(runs, tmp_path / "plots")
    assert "More steps for outcome only (20) than for PRIME (10): both sample 1,280 responses" in found["training"][1]


def test_long_titles_are_wrapped_and_not_cut(tmp_path):
    x = np.arange(3.0)
    panel = plots.Panel("m", "The mean number of tokens per response that were sampled in this step", "tokens")
    series = [Series("", x, x)]
    path = plots.draw([(panel, series)] * 3, tmp_path / "a.png", notes=["word " * 80])
    pixels = Image.imread(path)[..., :3]
    assert pixels[:, -4:].min() == 1.0 and pixels[-4:].min() == 1.0  # nothing reaches the right or lower edge


def test_comparison_with_seeds_from_the_command_line(tmp_path, capsys):
    base = Options()
    for seed in range(4):
        path = _run(tmp_path / f"s{seed}", dataclasses.replace(base, seed=seed), steps=20)
        plain = dataclasses.replace(base, seed=seed, advantage=dataclasses.replace(base.advantage, process_coef=0.0))
        _run(path / "outcome_only", plain, steps=20, prm=False)
    words = [str(tmp_path / f"s{seed}") for seed in range(4)]
    assert cli.main(["plot", *words, "--out", str(tmp_path / "p"), "--x", "rollouts", "--center", "median"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    one = ["plot", *words, "--out", str(tmp_path / "q"), "--metrics", "policy/loss", "rollouts"]
    assert cli.main(one) == 0
    assert {p.name for p in (tmp_path / "q").iterdir()} == {"policy_loss.png", "rollouts.png"}
    assert cli.main(["plot", str(tmp_path / "s0")]) == 0
    assert (tmp_path / "s0" / "plots" / "accuracy.png").is_file()
    capsys.readouterr()
    assert cli.main(["plot", words[0], "--metrics", "policy/los"]) == 2
    assert "did you mean policy/loss" in capsys.readouterr().err


def test_missing_and_damaged_runs_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no metrics yet"):
        plots.plot_runs([tmp_path / "empty"], tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        plots.plot_runs([tmp_path / "absent"], tmp_path)
    run = _run(tmp_path / "run", None, steps=2)
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        load_run(run)
    (run / "config.yaml").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the picture"):
        plots.plot_runs([run], tmp_path / "file" / "sub")
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "metrics.jsonl").write_text('{"step": 1, "seconds": 0.1, "x": 1}\n')
    with pytest.raises(UserError, match="no metrics to draw"):
        plots.plot_runs([tmp_path / "blank"], tmp_path)

    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"prm-jax\[plots\]"):
        plots.plot_runs([run], tmp_path / "out")


def test_series_can_be_drawn_directly(tmp_path):
    x = np.arange(3.0)
    band = Series("b", x, x, x - 1, x + 1, count=5)
    panel = plots.Panel("m", "A title", chance=1.0)
    path = plots.draw([(panel, [Series("a", x, x * 2), band])], tmp_path / "a.png", style=plots.Style(dpi=60))
    assert _ink(path, plots.COLORS[0]) > 50 and _ink(path, plots.COLORS[1]) > 50
    assert curves.HOUSEKEEPING[0] == "seed"
