"""Signs of reward hacking, from made-up histories of metrics and in a loop."""

import dataclasses
import json

import numpy as np
import pytest

from prm_jax.data.problems import Problem
from prm_jax.prime.hacking_watch import SUSPICIOUS, HackingWatch, expected_success, find_signs, repetition
from prm_jax.prime.responses import Responses
from prm_jax.prime.watch_options import WatchOptions
from prm_jax.runs.callbacks import Event

OPTIONS = WatchOptions(window=3)


def history(steps=12, **metrics):
    """Steps whose metrics are functions of the share of the run that is over; NaN and None are left out."""
    records = []
    for step in range(steps):
        values = {name: make(step / (steps - 1)) for name, make in metrics.items()}
        records.append({"step": float(step + 1)} | {k: v for k, v in values.items() if v is not None})
    return records


HEALTHY = {
    "rollout/length": lambda t: 100 + 50 * t,
    "rollout/solve_rate": lambda t: 0.2 + 0.5 * t,
    "watch/repetition": lambda t: 0.05,
    "watch/reward": lambda t: t,
    "watch/errors": lambda t: 0.0,
    "prm/pairwise_accuracy": lambda t: 0.7 - 0.1 * t,
    "eval/sampled_accuracy": lambda t: 0.2 + 0.5 * t,
}


def test_a_healthy_run_has_no_signs():
    assert find_signs(history(**HEALTHY), OPTIONS) == {}


@pytest.mark.parametrize(
    ("sign", "metrics"),
    [
        ("accuracy", {"eval/sampled_accuracy": lambda t: 0.6 - 0.4 * t}),
        ("accuracy", {"eval/sampled_accuracy": lambda t: 0.6 - 0.4 * t, "watch/reward": lambda t: None}),
        ("length", {"rollout/length": lambda t: 100 + 400 * t, "rollout/solve_rate": lambda t: 0.3}),
        ("repetition", {"watch/repetition": lambda t: 0.05 + 0.9 * t}),
        ("errors", {"watch/errors": lambda t: 0.3 * t}),
        ("reward model", {"prm/pairwise_accuracy": lambda t: 0.8 - 0.5 * t}),
        ("calibration", {"watch/expected": lambda t: 0.4 + 0.5 * t, "watch/solved": lambda t: 0.4}),
    ],
)
def test_each_sign_is_found_alone_with_its_figures(sign, metrics):
    found = find_signs(history(**{**HEALTHY, **metrics}), OPTIONS)
    assert list(found) == [sign]
    assert any(char.isdigit() for char in found[sign])


@pytest.mark.parametrize(
    "metrics",
    [
        {
            "eval/sampled_accuracy": lambda t: 0.6 - 0.4 * t,
            "watch/reward": lambda t: -t,
            "rollout/solve_rate": lambda t: -t,
        },
        {"rollout/length": lambda t: 100 + 400 * t},  # longer and better
        {"watch/repetition": lambda t: 0.6},  # from the start
        {"prm/pairwise_accuracy": lambda t: float("nan")},
        {"watch/expected": lambda t: 0.4 + 0.5 * t, "watch/solved": lambda t: 0.3 + 0.5 * t},
    ],
)
def test_what_is_not_hacking(metrics):
    assert find_signs(history(**{**HEALTHY, **metrics}), OPTIONS) == {}


def test_nothing_is_said_before_two_windows():
    assert find_signs(history(5, **{**HEALTHY, "watch/repetition": lambda t: t}), OPTIONS) == {}
    assert find_signs([], OPTIONS) == {}


def test_expected_success_is_what_rewards_meant_in_the_first_window():
    """Means 1 and -1 with spread 1: a reward r is right with probability sigmoid(2 r) if half are right."""
    step = {"watch/reward_right": 1.0, "watch/reward_wrong": -1.0, "watch/reward_spread": 1.0, "watch/solved": 0.5}
    later = {name: 9.0 for name in step}
    rewards = np.array([0.0, 1.0])
    expected = (0.5 + 1 / (1 + np.exp(-2.0))) / 2
    assert expected_success(rewards, [step] * 3 + [later], 3) == pytest.approx(expected)
    assert expected_success(rewards, [step, {}] * 2, 3) is None  # the window is not complete
    assert expected_success(rewards, [{**step, "watch/reward_right": -2.0}] * 3, 3) is None
    assert expected_success(np.zeros(0), [step] * 3, 3) is None


def test_a_policy_that_earns_the_rewards_of_right_responses_with_wrong_ones_is_noticed(tmp_path):
    said = []
    watch = HackingWatch(OPTIONS, said.append)
    rng = np.random.default_rng(0)
    for step in range(1, 10):
        right = np.arange(64) % 2 == 0
        rewards = np.where(right, 1.0, -1.0) if step < 6 else np.ones(64)
        batch = _Batch(responses(["text"] * 64, right), rewards[:, None] + rng.normal(size=(64, 1)) * 0.5)
        event = Event("step", step, {}, None, batch, _Run(tmp_path))
        watch(event)
    assert event.metrics["watch/solved"] == 0.5 and event.metrics["watch/expected"] > 0.9
    assert len(said) == 1 and "step 7, calibration" in said[0], said


def test_repetition():
    assert repetition("a b c d e f g h") == 0.0
    assert repetition("one two") == 0.0
    assert repetition("a b c d " * 25) == pytest.approx(1 - 4 / 97)


class _Run:
    def __init__(self, path, writer=True):
        self.path, self.writer = path, writer


def responses(texts, outcome):
    count = len(texts)
    return Responses(
        problems=[Problem("p", "1", f"id{i}") for i in range(count)], tokens=np.zeros((count, 4), np.int32),
        mask=np.ones((count, 4), bool), step_ids=np.zeros((count, 4), np.int32), texts=texts,
        outcome=np.asarray(outcome, np.float32), usable=np.ones(count, bool), finished=np.ones(count, bool),
        unanswered=np.zeros(count, bool),
    )  # fmt: skip


@dataclasses.dataclass
class _Batch:
    responses: Responses
    rewards: np.ndarray


def play(watch, run, steps, text="right"):
    events = []
    for step in range(1, steps + 1):
        rewards = np.random.default_rng(step).normal(size=(64, 4)) * 0.1
        rewards[7] += 20.0 if step == 2 else 0.0
        batch = _Batch(responses([text(step) if callable(text) else text] * 64, [0.0] * 64), rewards)
        event = Event("step", step, {"rollout/solve_rate": 0.5, "rollout/length": 4.0}, None, batch, run)
        watch(event)
        run.path.joinpath("metrics.jsonl").open("a").write(json.dumps({"step": step, **event.metrics}) + "\n")
        events.append(event)
    return events


def test_callback_warns_once_keeps_outliers_and_stops_on_request(tmp_path):
    said = []
    watch = HackingWatch(dataclasses.replace(OPTIONS, stop=True), said.append)
    loops = "again and again it " * 30
    events = play(watch, _Run(tmp_path), 9, lambda step: "a plain short answer of words" if step < 5 else loops)
    assert [event.step for event in events if event.stop_reason] == [6]
    assert len(said) == 1 and "repetition" in said[0] and "step 6" in said[0]
    assert events[-1].metrics["watch/signs"] == 1.0 and events[0].metrics["watch/signs"] == 0.0
    (kept,) = [json.loads(line) for line in (tmp_path / SUSPICIOUS).read_text().splitlines()]
    assert (kept["step"], kept["id"], kept["outcome"]) == (2, "id7", 0.0) and kept["reward"] > 60

    again = HackingWatch(OPTIONS, said.append)
    again(Event("start", 9, {}, None, None, _Run(tmp_path)))
    assert again.known == watch.known and again.kept == 1 and len(said) == 1


def test_a_process_that_does_not_write_keeps_nothing(tmp_path):
    watch = HackingWatch(OPTIONS, lambda text: None)
    play(watch, _Run(tmp_path, writer=False), 3)
    assert not (tmp_path / SUSPICIOUS).exists()
