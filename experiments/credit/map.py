"""The later stages: a map of where step rewards pay, seeds side by side (`replicas.py`).

    python -m experiments.credit.map STAGE [--runs runs/credit_map]

PLAN.md says what each stage runs and what it measures; it was committed before the runs. Finished runs are added to
map.json beside this file and not repeated. `report` in place of a stage prints the tables and draws map.png.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from experiments.arms import warm_start
from experiments.credit.arms import start_options
from experiments.credit.map_report import RATE, report
from experiments.credit.report import write
from experiments.credit.settings import (
    ALL,
    PROVERS,
    ROOTS,
    SETTINGS,
    STARTS,
    SWEEP,
    Setting,
    arm_options,
    earlier_of,
    earlier_options,
    own_start,
)

HERE = pathlib.Path(__file__).resolve().parent
Plan = Sequence[tuple[str, str, Sequence[int], float]]
"""(setting, arm, seeds, learning rate of the policy) in the order of running."""
SEEDS = (401, 403, 405, 407, 409, 411)
TUNING = (901, 903)
MORE = (413, 415, 417, 419, 421, 423)
FRESH = (*MORE, 425, 427, 429, 431)
CAREFUL = 0.1
"""Share of carries that the teacher of the strong prover drops; the start policy's drops three in five."""
ONLOOKERS = ("implicit", "rollouts", "earlier")
"""PRMs that look on in the arm "watched", which is outcome-only training."""
STAGES: dict[str, Plan] = {
    "first": [("base", arm, SEEDS, RATE) for arm in ("outcome", "checker_step_0")],
    "mixture": [("base", arm, SEEDS, RATE) for arm in ("mix_outcome", "mix_failed")],
    "confirm": [("base", arm, MORE, RATE) for arm in ("mix_outcome", "mix_failed")],
    "reuse": [("base", arm, SEEDS, RATE) for arm in ("reuse", "reuse_frozen")],
    "tuning": [("base", "mix_reuse", TUNING, RATE)],
    "short": [("3 steps", arm, SEEDS, RATE) for arm in ("outcome", "checker_step_0", "mix_outcome", "mix_failed")],
    "labels": [
        ("base", arm, SEEDS, RATE)
        for arm in ("checker_step_40", "checker_return_0", "checker_cumulative_0", "checker_step_20", "checker_min_0")
    ],
    "map": [
        (setting, arm, SEEDS, RATE)
        for setting in ("2 samples", "noise", "zeros", "8 samples")
        for arm in ("outcome", "checker_step_0")
    ],
    "rates": [("base", arm, SEEDS, rate) for rate in (1e-4, 1e-3) for arm in ("outcome", "checker_step_0")],
    "flips": [
        ("base", f"checker_{form}", SEEDS, RATE) for form in ("step_30", "cumulative_20", "step_10", "cumulative_40")
    ],
    "success": [("5 steps", arm, SEEDS, RATE) for arm in ("outcome", "checker_step_0", "mix_outcome", "mix_failed")],
    "online": [(setting, "mix_failed", SEEDS, RATE) for setting in ("2 samples", "noise")],
    "baselines": [
        *(("base", arm, SEEDS, RATE) for arm in ("outcome_filtered", "outcome_grpo", "outcome_grpo_filtered")),
        *(("base", arm, SEEDS, 1e-3) for arm in ("outcome_filtered", "outcome_grpo")),
    ],
    "grpo": [
        ("base", "checker_grpo", SEEDS, RATE),
        ("base", "outcome_grpo", FRESH, RATE),
        ("base", "checker_grpo", FRESH, RATE),
        ("base", "outcome_grpo", SEEDS, 1e-4),
    ],
    "forms": [
        *(("base", f"checker_{form}", SEEDS, RATE) for form in ("return_20", "min_20", "return_40", "min_40")),
        ("base", "monte_carlo", SEEDS[:3], RATE),
    ],
    "provers": [("base", arm, SEEDS[:3], RATE) for arm in ("mc_value", "pav_equal", "pav_strong", "pav_weak")],
    "history": [
        ("base", arm, SEEDS, RATE)
        for arm in ("value_rollouts", "history", "value_exact", "history_frozen", "value_outcomes")
    ],
    "variants": [
        ("base", arm, SEEDS, RATE)
        for arm in (
            "online",
            "online_gated",
            "online_gated_groups",
            "prime_gated",
            "policy_prm",
            "reuse_probabilities",
            "reuse_ranks",
        )
    ],
    "watched": [("base", "watched", SEEDS[:3], RATE)],
    "fresh": [("base", arm, FRESH, RATE) for arm in ("outcome", "checker_step_0", "reuse")],
    "starts": [("base", arm, STARTS, RATE) for arm in ("outcome", "checker_step_0", "reuse")],
    "long": [("20 steps", arm, SEEDS, RATE) for arm in ("outcome", "checker_step_0")],
    "sweep": [("base", arm, TUNING, RATE) for arm in SWEEP],
    "frozen": [("base", arm, FRESH, RATE) for arm in ("history_frozen", "history_frozen_2")],
    "gym": [("backward", arm, SEEDS, rate) for rate in (RATE, 1e-3) for arm in ("outcome", "checker_step_0")],
}
"""Stage -> its runs."""


def start_of(seed: int, runs: pathlib.Path, setting: Setting = SETTINGS["base"]) -> pathlib.Path:
    """The start policy of a seed, trained unless it is there."""
    from prm_jax.prime.training import train

    number = seed if seed in STARTS else ROOTS[seed % len(ROOTS)]
    root = runs / "roots" / (setting.start or str(number))
    if not (root / "result.json").is_file():
        train(own_start(setting) if setting.start else start_options("long", number), root, resume=root.is_dir())
    return root / "start"


def earlier_prm(name: str, runs: pathlib.Path) -> pathlib.Path:
    """The PRM that an arm begins with, or its prover, by `settings.earlier_of`; trained unless it is there."""
    from experiments.credit.history import SEEDS as EARLIER_RUNS
    from experiments.credit.history import history_prm
    from experiments.credit.replicas import train_replicas

    start, path = start_of(SEEDS[0], runs), runs / "earlier_prm"
    if name in PROVERS:
        return start if name == "weak" else warm_start(own_start(SETTINGS["base"], CAREFUL), runs / "strong_prover")
    if name != "earlier":
        kind, _, other = name.partition("_")
        folder = f"history_{other}" if other else "history"
        made = [arm_options(SETTINGS["base"], ALL["outcome"], seed, start, rate=RATE) for seed in EARLIER_RUNS[folder]]
        return history_prm(kind, made, runs / folder)
    if not path.is_dir():
        (found,) = train_replicas([earlier_options(start)], [path])
        (runs / "earlier_prm.json").write_text(json.dumps(found))
    return path


def read(results: pathlib.Path) -> dict[str, Any]:
    """The finished runs; read again before each is added, since another stage may have ended meanwhile."""
    found: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {"seeds": [], "runs": []}
    return found


def place(run: dict[str, Any]) -> tuple[Any, ...]:
    """What no two runs of a record have in common: (setting, arm, seed, rate)."""
    return run["setting"], run["arm"], run["seed"], run["rate"]


def run(plan: Plan, runs: pathlib.Path, results: pathlib.Path) -> None:
    """All entries of a plan that are not finished, each with its seeds side by side."""
    from experiments.credit.replicas import train_replicas

    for setting, arm, seeds, rate in plan:
        done = set(map(place, read(results)["runs"]))
        left = [seed for seed in seeds if (setting, arm, seed, rate) not in done]
        if not left:
            continue
        name = earlier_of(ALL[arm])
        earlier = earlier_prm(name, runs) if name else None
        options = [
            arm_options(
                SETTINGS[setting], ALL[arm], seed, start_of(seed, runs, SETTINGS[setting]), rate=rate, earlier=earlier
            )
            for seed in left
        ]
        keep = [runs / "prms" / setting / arm / str(seed) for seed in left]
        looking = {name: earlier_prm(name, runs) for name in ONLOOKERS} if arm == "watched" else {}
        found = train_replicas(options, keep, onlookers=looking)
        labels = [{"setting": setting, "arm": arm, "seed": seed, "rate": rate} for seed in left]
        record = read(results)
        there = set(map(place, record["runs"]))  # another process may have written meanwhile
        made = [label | one for label, one in zip(labels, found, strict=True)]
        record["runs"] += [one for one in made if place(one) not in there]
        record["seeds"] = sorted({one["seed"] for one in record["runs"]})
        write(record, results)
        print(setting, arm, rate, [one["sampled"] for one in found], found[0]["processor_seconds"], flush=True)


MEASURED = ("outcome", "checker_step_0", "mix_failed", "reuse", "value_rollouts", "monte_carlo")


def measure(runs: pathlib.Path, results: pathlib.Path, *, rounds: int = 5, steps: int = 2) -> None:
    """Processor time of a training step of each form, rounds of a few steps in turn, after two that compile."""
    from experiments.credit.replicas import Team

    teams = {}
    for arm in MEASURED:
        name = earlier_of(ALL[arm])
        earlier = earlier_prm(name, runs) if name else None
        start = start_of(SEEDS[0], runs)
        made = [arm_options(SETTINGS["base"], ALL[arm], s, start, rate=RATE, earlier=earlier) for s in SEEDS[:2]]
        teams[arm] = Team(made)
        for step in range(2):
            teams[arm].learn(step)
    seconds: dict[str, list[float]] = {arm: [] for arm in MEASURED}
    for number in range(rounds):
        for arm, team in teams.items():
            begun = time.process_time()
            for step in range(steps):
                team.learn(2 + number * steps + step)
            seconds[arm].append(round((time.process_time() - begun) / (2 * steps), 4))
    write({**read(results), "cost": {"unit": "processor s per step and run", "arms": seconds}}, results)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", choices=(*STAGES, "cost", "report"), nargs="+")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/credit_map"))
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "map.json")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parsed()
    for stage in arguments.stages:
        if stage == "report":
            report(arguments.results, arguments.results.parent / "simulation.json", SEEDS, FRESH)
        elif stage == "cost":
            measure(arguments.runs, arguments.results)
        else:
            run(STAGES[stage], arguments.runs, arguments.results)
