"""The experiment on credit: its statistics on numbers worked out by hand, its arms, and a smoke run."""

import dataclasses
import json
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

from experiments.credit import arms, history, main, map_report, report, settings, simulation, smollm2
from experiments.credit.gym_task import Backward
from experiments.credit.replicas import label_accuracy, train_replicas
from experiments.report import insert
from prm_jax.data.carry import CarryTask
from prm_jax.data.problems import is_eval
from prm_jax.data.step_data import write_step_data
from prm_jax.prime.checks import check_options
from prm_jax.prime.evaluate import PRMProbe
from prm_jax.prime.training import train

RUN = {"rollouts": [0, 100, 200], "sampled": [0.1, 0.3, 0.5], "warm_up_rollouts": 100}


def test_the_area_charges_the_warm_up_at_the_starts_accuracy():
    assert report.area(RUN, 200, charge=False) == pytest.approx((0.2 + 0.4) / 2)
    assert report.area(RUN, 200, charge=True) == pytest.approx((0.1 + 0.2) / 2)
    assert report.area(RUN, 150, charge=False) == pytest.approx((0.2 * 100 + 0.35 * 50) / 150)


def test_rollouts_to_a_level_are_interpolated_and_at_most_the_budget():
    assert report.rollouts_to(RUN, 0.4, 200, charge=False) == pytest.approx(150)
    assert report.rollouts_to(RUN, 0.2, 300, charge=True) == pytest.approx(150)
    assert report.rollouts_to(RUN, 0.4, 200, charge=True) == 200
    assert report.rollouts_to(RUN, 0.9, 200, charge=False) == 200
    assert report.rollouts_to(RUN, 0.1, 200, charge=False) == 0


def test_ratios_are_geometric_means_with_students_interval():
    found = report.ratio([2.0, 8.0], [1.0, 2.0])
    assert found == pytest.approx(np.sqrt(8))
    half = 12.7062 * np.std(np.log([2, 4]), ddof=1) / np.sqrt(2)
    assert (found.low, found.high) == pytest.approx((np.sqrt(8) * np.exp(-half), np.sqrt(8) * np.exp(half)), rel=1e-4)


@pytest.mark.parametrize("task", arms.TASKS)
def test_arms_differ_in_the_rewards_alone_and_their_options_work(task):
    base = arms.arm_options(task, "outcome", 3, "start", rate=1e-4)
    for name in arms.ARMS:
        options = arms.arm_options(task, name, 3, "start", rate=1e-4)
        check_options(options)
        for group in ("task", "model", "sft", "policy", "eval", "steps", "seed"):
            assert getattr(options, group) == getattr(base, group), (name, group)
        assert (options.rollout == base.rollout) == (name != "outcome_filtered")


def test_tables_pair_runs_by_seed():
    runs = []
    for arm, gain, warm in (("outcome", 0.0, 0), ("easier", 0.1, 100)):
        for seed in (1, 2):
            accuracy = [0.1, 0.3 + gain + 0.01 * seed, 0.5]
            runs.append({**RUN, "arm": arm, "seed": seed, "sampled": accuracy, "warm_up_rollouts": warm,
                         "processor_seconds": 5.0, "auc": [0.9, 0.8, 0.7]})  # fmt: skip
    found = report.summary({(run["arm"], run["seed"]): run for run in runs}, "long")
    paired = found["long: paired by seed"]["easier"]
    assert paired["seeds"] == 2 and paired["area minus outcome (warm-up free)"] == pytest.approx(0.05)
    assert paired["seeds ahead"] == 0 and paired["area minus outcome"] < 0
    assert found["long: all arms"]["easier"]["step AUC, end"] == pytest.approx(0.7)


def test_options_of_the_later_stages_work():
    start, earlier = pathlib.Path("start"), pathlib.Path("prm")
    check_options(settings.earlier_options(start))
    for setting in settings.SETTINGS.values():
        for arm in settings.ALL.values():
            options = settings.arm_options(setting, arm, 3, start, rate=1e-4, earlier=earlier)
            check_options(options)
            assert options.rollout.prompts_per_step * options.rollout.samples_per_prompt == 32


@pytest.mark.parametrize("zeros", [False, True])
def test_mixed_sums_are_evaluated_at_their_longest_and_on_problems_that_training_never_draws(zeros):
    task = settings.Sums(3, 5, num_eval=20, zeros=zeros)
    rows = [problem.metadata["operands"] for problem in task.eval]
    assert {len(row) for row in rows} == {5} and all(is_eval(problem.prompt) for problem in task.eval)
    drawn = task.train[:40]
    assert {len(problem.metadata["operands"]) for problem in drawn} == {3, 4, 5}
    assert not any(is_eval(problem.prompt) for problem in drawn)
    assert all(int(problem.answer) == sum(problem.metadata["operands"]) for problem in [*drawn, *task.eval])
    assert all(sum(row[1::2]) == 0 for row in rows) == zeros


def test_a_word_spelled_backward_has_a_step_per_letter():
    pytest.importorskip("reasoning_gym", reason="needs the extra 'tasks'")
    task = Backward(8, num_eval=4)
    problem = task.eval[0]
    assert task.splitter("abc") == [(0, 1), (1, 2), (2, 3)] and len(problem.answer) == 8
    wrong = "#" + problem.answer[1:] + "x"
    assert task.step_labels(problem, wrong) == [False, *[True] * 7, False]
    assert (task.verify(problem, problem.answer), task.verify(problem, wrong)) == (1.0, 0.0)
    rollout = settings.base_options(settings.SETTINGS["backward"], 0).rollout
    assert len(task.tokenizer().encode(problem.prompt)) <= rollout.max_prompt_tokens


def test_label_accuracy_of_a_checker_with_flips_is_one_minus_their_share():
    labels = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    probe = PRMProbe(None, labels, np.ones((3, 4), bool), np.array([2, 1, -1]))
    assert label_accuracy(probe, np.where(labels, 0.0, -1.0), -0.5) == 1
    scores = np.array([[0, -1, 0, 9], [0, -1, 9, 9], [0, 0, 0, -1]])  # 1 of 2 errors found, 5 of 7 right steps passed
    assert label_accuracy(probe, scores, -0.5) == pytest.approx((1 / 2 + 5 / 7) / 2)


def test_gains_of_the_later_stages_are_paired_by_seed_and_charge_a_shared_prm(tmp_path):
    runs = {}
    for arm, gain in (("outcome", 0.0), ("reuse", 0.2)):
        for seed in (1, 2):
            accuracy = [0.1, 0.3 + gain + 0.01 * seed, 0.5 + gain]
            known = {"auc": [0.9] * 3, "label_accuracy": [0.8] * 3} if gain else {}
            runs["base", arm, seed] = {
                "rollouts": [0, 1024, 2048], "sampled": accuracy, "warm_up_rollouts": 0, "processor_seconds": 5.0,
            } | known  # fmt: skip
    found = map_report.summary(runs)
    row = found["base: paired by seed"]["reuse"]
    assert row["area minus outcome"] == pytest.approx((0.1 + 0.2) / 2)
    assert row["area minus outcome, 2048 rollouts shared by 2"] < row["area minus outcome"]
    assert found["base: what the PRM knows"]["reuse"]["label accuracy, 1024"] == pytest.approx(0.8)
    page = tmp_path / "README.md"
    page.write_text("before <!-- gains --> old <!-- /gains --> after")
    insert(page, "gains", map_report.digest(found))
    assert "old" not in page.read_text() and page.read_text().startswith("before") and "after" in page.read_text()
    (line,) = (line for line in page.read_text().splitlines() if "reuse" in line)
    assert line.startswith("| base | reuse | 2 | 0.150 ") and line.endswith("| ahead |")


def test_each_arm_is_compared_at_its_best_rate_with_the_best_baseline_and_costs_scale_its_gain():
    runs = {}
    for place, level in {
        ("base", "outcome"): 0.3, ("base, learning rate 0.001", "outcome"): 0.2, ("base", "outcome_grpo"): 0.4,
        ("base", "checker_step_0"): 0.5, ("base, learning rate 0.001", "checker_step_0"): 0.7,
    }.items():  # fmt: skip
        for seed in (1, 2):
            runs[*place, seed] = {
                "rollouts": [0, 100], "sampled": [0.0, level + 0.01 * seed], "warm_up_rollouts": 0,
                "processor_seconds": 5.0,
            }  # fmt: skip
    found = map_report.best_rates(runs, (1, 2))
    (best,) = (table for name, table in found.items() if "best" in name)
    assert list(best) == ["checker_step_0"]
    assert best["checker_step_0"]["area minus outcome_grpo"] == pytest.approx((0.7 - 0.4) / 2)
    tables = {"base: paired by seed": map_report.summary(runs)["base: paired by seed"]}
    record = {"cost": {"arms": {"outcome": [1.0, 1.0], "checker_step_0": [2.0, 2.0]}}}
    row = map_report.costs(record, tables)["cost"]["checker_step_0"]
    gains = {name: value for name, value in row.items() if name.endswith("outcome / arm")}
    rollouts, seconds = gains.values()
    assert row["arm / outcome"] == 2 and seconds == pytest.approx(rollouts / 2)


def test_an_implicit_prm_learns_from_groups_with_both_outcomes_and_labels_are_those_of_prefixes(tmp_path):
    task = CarryTask(3, 3, num_eval=2)
    problems = task.train[:2]
    right = [task.solve(problem) for problem in problems]
    texts = [right[0], right[0].replace("=", "=9", 1), right[1], right[1]]
    spans = [task.splitter(text) for text in texts]
    ids = np.full((4, 3), -1)  # two additions and the answer
    for row, own in enumerate(spans):
        ids[row, : len(own)] = range(len(own))
    batch = types.SimpleNamespace(
        texts=texts, problems=problems, samples_per_prompt=2, step_ids=ids, finished=np.ones(4, bool),
        outcome=np.array([1.0, 0.0, 1.0, 1.0]),
    )  # fmt: skip
    records = list(history._records(task, batch, "0", None))
    assert [record.labels for record in records][:2] == [(1.0,) * 3, (0.0,) * 3]
    values = np.where(ids >= 0, ids + 0.25, 0.0)
    assert [r.labels for r in history._records(task, batch, "0", values)][0] == (0.25, 1.25, 2.25)
    write_step_data(tmp_path / "history.jsonl", records)
    chosen = {name: history._chosen(name, tmp_path, []) for name in ("implicit", "outcomes", "exact")}
    assert [len(rows) for rows in chosen.values()] == [2, 4, 4]
    assert chosen["outcomes"][0].labels is None and chosen["exact"][0].labels == (1.0,) * 3


def test_runs_of_smollm2_are_read_from_their_metrics_and_compared_as_far_as_all_went(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "BLOCK", 2)
    for arm, gain, count in (("outcome", 0.0, 3), ("checker", 0.2, 2)):
        folder = tmp_path / arm / "0"
        folder.mkdir(parents=True)
        rows = [
            {"rollouts": 80 * i, "seconds": 5.0 * i, "eval/sampled_accuracy": 0.1 * i + gain,
             "eval/sampled_step_accuracy": 0.5, "rollout/solve_rate": 0.1 * i + gain}
            for i in range(count)
        ]  # fmt: skip
        del rows[0]["rollouts"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    smollm2.report(tmp_path, tmp_path / "smollm2.json")
    found = json.loads((tmp_path / "smollm2.json").read_text())
    assert list(found["tables"]["sampled accuracy"]) == ["0", "80"]
    areas = found["tables"]["area under the curve"]["checker"]
    assert areas["area minus outcome"] == areas["solve rate minus outcome"] == pytest.approx(0.2)
    blocks = {"steps 1 to 2": {"rollouts": 16.0, "outcome": 0.05, "checker": pytest.approx(0.25)}}
    assert found["tables"]["solve rate of training"] == blocks
    assert found["seeds"] == [0] and (tmp_path / "smollm2.png").stat().st_size > 5_000


def test_the_simulated_start_solves_the_share_that_it_should_and_right_labels_blame_the_first_error():
    world = simulation.World(steps=4, start=0.2, facts=2000)
    theta = simulation._start(world, jax.random.key(0))
    assert float(simulation._solved(world, theta)) == pytest.approx(0.2, abs=0.02)
    batch = simulation._sample(world, theta, jax.random.key(1))
    labelled = simulation._process(
        dataclasses.replace(world, arm="checker"), theta, None, batch, None, jax.random.key(2)
    )  # fmt: skip
    wrong = np.asarray(batch.actions) != 0
    first = np.where(wrong.any(1), wrong.argmax(1), -1)
    np.testing.assert_array_equal(labelled, -1.0 * (np.arange(4) == first[:, None]))
    np.testing.assert_array_equal(batch.outcome, ~wrong.any(1))


@pytest.mark.slow
def test_seeds_side_by_side_are_those_alone(tmp_path):
    setting = settings.Setting(size=3, prompts=2, samples=2, steps=2)
    root = arms.start_options("short", 1)
    root = dataclasses.replace(root, sft=dataclasses.replace(root.sft, steps=10))
    train(root, tmp_path / "root")
    arm = settings.ALL["mix_failed"]
    online = settings.arm_options(setting, arm, 5, tmp_path / "root" / "start", rate=1e-3)
    online = dataclasses.replace(online, eval=dataclasses.replace(online.eval, every=1, problems=8))
    both = [online, dataclasses.replace(online, seed=6)]
    together = train_replicas(both)
    for options, record in zip(both, together, strict=True):
        (alone,) = train_replicas([options])
        assert {**alone, "processor_seconds": 0} == {**record, "processor_seconds": 0}


@pytest.mark.slow
def test_the_simulation_runs(tmp_path):
    found = simulation.tables(2, tmp_path / "known.json", smoke=True)
    assert all(np.isfinite(v) for table in found.values() for row in table.values() for v in row.values())
    assert simulation.tables(2, tmp_path / "known.json", smoke=True) == found


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch):
    words = ["--smoke", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", ["main", *words, "--arms", "outcome", "checker", "easier"])
    arguments = main.parsed()
    main.run(arguments)
    report.report(arguments.results)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["arm"] for run in runs] == ["outcome", "checker", "easier"]
    assert (tmp_path / "figure.png").stat().st_size > 5_000
