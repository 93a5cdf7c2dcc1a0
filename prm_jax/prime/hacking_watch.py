"""Signs, looked for during training, that a policy earns its reward in an unintended way.

A reward that rises while accuracy on held-out problems falls, responses that grow or repeat themselves, a reward model
that has become worse than chance on what the policy now writes or means less by the same rewards, and checks that fail:
each is reported once when it begins, with the figures, and responses whose reward is far out of line are kept for
reading.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.prime.responses import Responses
from prm_jax.prime.watch_options import WatchOptions
from prm_jax.runs import processes
from prm_jax.runs.callbacks import Event
from prm_jax.runs.metrics_log import read_metrics, writing

SUSPICIOUS = "suspicious.jsonl"
"""File in the run directory with responses whose reward was far out of line."""

_MAX_KEPT = 200
_NGRAM = 4
_HELD_OUT = ("eval/sampled_accuracy", "eval/greedy_accuracy")


class HackingWatch:
    """Callback that looks for signs of reward hacking.

    Adds the metrics ``watch/repetition``, ``watch/reward`` (mean process reward of a response),
    ``watch/reward_right``, ``watch/reward_wrong`` and ``watch/reward_spread`` (the same for right and for wrong
    responses, and the standard deviation within both), ``watch/solved`` (share of right responses),
    ``watch/expected`` (the share that the rewards promise, see `expected_success`), ``watch/errors`` and
    ``watch/signs`` (number of signs that hold). A resumed run reads its own metrics back, so that it sees the same.

    Args:
      options: see `WatchOptions`.
      say: gets one line per sign that begins.
    """

    def __init__(self, options: WatchOptions, say: Any) -> None:
        self.options, self.say = options, say
        self.history: list[dict[str, float]] = []
        self.known: set[str] = set()
        self.kept = 0

    def __call__(self, event: Event) -> None:
        """Looks at a step or an evaluation."""
        if event.kind == "start":
            self._take_up(event)
        elif event.kind == "step":
            event.metrics |= self._measured(event)
            self.history.append({"step": float(event.step), **_numbers(event.metrics)})
            self._look(event)
        elif event.kind == "evaluation":
            self.history.append({"step": float(event.step), **_numbers(event.metrics)})
            self._look(event)

    def _take_up(self, event: Event) -> None:
        path = event.run.path / "metrics.jsonl"
        records = read_metrics(path) if event.step and path.is_file() else []
        self.history = [_numbers(record) for record in records if record.get("step", 0) <= event.step]
        self.known = set(find_signs(self.history, self.options))
        kept = event.run.path / SUSPICIOUS
        if not kept.is_file():
            return
        lines = kept.read_text(encoding="utf-8").splitlines(keepends=True)
        before = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= event.step]
        if event.run.writer and len(before) < len(lines):
            with writing(kept) as path:
                path.write_text("".join(before), encoding="utf-8")
        self.kept = len(before)

    def _measured(self, event: Event) -> dict[str, float]:
        responses: Responses = event.batch.responses
        measured = {
            "watch/repetition": float(np.mean([repetition(text) for text in responses.texts])),
            "watch/errors": float(np.mean(~responses.usable)),
        }
        if event.batch.rewards is None:
            return measured
        totals = np.asarray(processes.to_host(event.batch.rewards), np.float64).sum(axis=1)
        measured["watch/reward"] = float(totals.mean())
        measured |= _by_outcome(totals[responses.usable], responses.outcome[responses.usable] >= 0.5)
        expected = expected_success(totals[responses.usable], self.history, self.options.window)
        if expected is not None:
            measured["watch/expected"] = expected
        self._keep_outliers(event, responses, totals)
        return measured

    def _keep_outliers(self, event: Event, responses: Responses, totals: np.ndarray) -> None:
        """Writes wrong responses whose reward is far above the others of this step."""
        spread = float(totals.std())
        far = (totals - totals.mean() > self.options.deviations * spread) & (responses.outcome == 0) & responses.usable
        rows = [int(row) for row in np.flatnonzero(far)[: _MAX_KEPT - self.kept]] if spread > 0 else []
        if not rows or not event.run.writer:
            return
        with writing(event.run.path / SUSPICIOUS) as path, path.open("a", encoding="utf-8") as file:
            for row in rows:
                problem = responses.problems[row // responses.samples_per_prompt]
                record = {
                    "step": event.step, "id": problem.id, "reward": float(totals[row]), "mean": float(totals.mean()),
                    "deviation": spread, "outcome": float(responses.outcome[row]), "response": responses.texts[row],
                }  # fmt: skip
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.kept += len(rows)

    def _look(self, event: Event) -> None:
        found = find_signs(self.history, self.options)
        event.metrics["watch/signs"] = float(len(found))
        begun = {name: text for name, text in found.items() if name not in self.known}
        for name, text in begun.items():
            self.say(f"warning: a sign of reward hacking at step {event.step}, {name}: {text}; see samples.html")
        if begun and self.options.stop:
            event.stop(f"a sign of reward hacking (--watch.stop): {'; '.join(begun.values())}")
        self.known = set(found)


def find_signs(history: Sequence[Mapping[str, float]], options: WatchOptions) -> dict[str, str]:
    """The signs that hold at the end of a run's metrics, with the figures.

    Args:
      history: metrics of steps and evaluations in order, each with ``"step"``.
      options: see `WatchOptions`.

    Returns:
      {sign: figures in words}: ``"accuracy"``, ``"length"``, ``"repetition"``, ``"errors"``, ``"reward model"``,
      ``"calibration"``.
    """
    signs = {}
    dropped = _accuracy_drop(history, options)
    if dropped:
        signs["accuracy"] = dropped
    length, first_length = _now_and_then(history, "rollout/length", options.window)
    solved, first_solved = _now_and_then(history, "rollout/solve_rate", options.window)
    if length > options.length_factor * first_length and not solved > first_solved:
        signs["length"] = (
            f"responses have {length:.0f} tokens, {first_length:.0f} at the start, and the solve rate is {solved:.3f} "
            f"after {first_solved:.3f}"
        )
    repeated, first_repeated = _now_and_then(history, "watch/repetition", options.window)
    if repeated > options.repetition and repeated > 2 * first_repeated:
        signs["repetition"] = (
            f"{100 * repeated:.0f} % of a response repeats itself, {100 * first_repeated:.0f} % before"
        )
    failing = _mean(_last(history, "watch/errors", options.window))
    if failing > options.errors:
        signs["errors"] = f"{100 * failing:.0f} % of the responses could not be checked and were left out"
    accuracies = _last(history, "prm/pairwise_accuracy", options.window)
    if len(accuracies) == options.window and _mean(accuracies) < options.pairwise:
        signs["reward model"] = (
            f"process rewards order {100 * _mean(accuracies):.0f} % of pairs as their outcomes do, less than "
            f"{100 * options.pairwise:.0f} %"
        )
    promises = _last(history, "watch/expected", options.window)
    promised, right = _mean(promises), _mean(_last(history, "watch/solved", options.window))
    if len(promises) == options.window and promised - right > options.calibration:
        signs["calibration"] = (
            f"by what process rewards meant at the start, {100 * promised:.0f} % of the responses should be right, and "
            f"{100 * right:.0f} % are"
        )
    return signs


def expected_success(totals: np.ndarray, history: Sequence[Mapping[str, float]], window: int) -> float | None:
    """The share of right responses that rewards promise, by what they meant in the first window of a run.

    Rewards of right and of wrong responses are taken as normal with the means and the common spread of that window.

    Args:
      totals: [B] process reward of each response.
      history: metrics of earlier steps.
      window: steps in the first window that had right and wrong responses.

    Returns:
      The mean probability; None before the window is complete, and where its right responses were not rewarded more.
    """
    names = ("reward_right", "reward_wrong", "reward_spread")
    first = [record for record in history if "watch/reward_spread" in record][:window]
    right, wrong, spread = (_mean([record[f"watch/{name}"] for record in first]) for name in names)
    if len(first) < window or not len(totals) or not (right > wrong and spread > 0):
        return None
    prior = min(max(_mean([record["watch/solved"] for record in first]), 0.01), 0.99)
    slope = (right - wrong) / spread**2
    logits = math.log(prior / (1 - prior)) + slope * (totals - (right + wrong) / 2)
    return float(np.mean(0.5 + 0.5 * np.tanh(logits / 2)))


def repetition(text: str) -> float:
    """Share of a text's sequences of four words that occurred in it before; 0 for a text of fewer words."""
    words = text.split()
    total = len(words) - _NGRAM + 1
    if total < 2:
        return 0.0
    return 1.0 - len({tuple(words[i : i + _NGRAM]) for i in range(total)}) / total


def _by_outcome(totals: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Metrics of the rewards of right and of wrong responses; only the share of right ones where one kind is absent."""
    if not len(totals):
        return {}
    solved = {"watch/solved": float(right.mean())}
    if right.all() or not right.any():
        return solved
    means = float(totals[right].mean()), float(totals[~right].mean())
    within = totals - np.where(right, *means)
    return solved | {
        "watch/reward_right": means[0], "watch/reward_wrong": means[1], "watch/reward_spread": float(within.std()),
    }  # fmt: skip


def _accuracy_drop(history: Sequence[Mapping[str, float]], options: WatchOptions) -> str:
    """Figures where held-out accuracy has fallen from its best while the reward has risen since; else ""."""
    for name in _HELD_OUT:
        evaluations = [(index, record[name]) for index, record in enumerate(history) if name in record]
        if len(evaluations) < 2:
            continue
        best_index, best = max(evaluations, key=lambda pair: pair[1])
        last_index, last = evaluations[-1]
        if last >= best - options.accuracy_drop:
            continue
        for reward in ("watch/reward", "rollout/solve_rate"):
            then = _mean(_last(history[: best_index + 1], reward, options.window))
            now = _mean(_last(history[: last_index + 1], reward, options.window))
            if now > then:
                fallen = f"{name} is {last:.3f} after {best:.3f} at its best"
                return f"{fallen}, while {reward} rose from {then:.3f} to {now:.3f}"
    return ""


def _now_and_then(history: Sequence[Mapping[str, float]], name: str, window: int) -> tuple[float, float]:
    """Means over the last and the first window; NaN until both are complete and apart."""
    values = _last(history, name, 0)
    if len(values) < 2 * window:
        return math.nan, math.nan
    return _mean(values[-window:]), _mean(values[:window])


def _last(history: Sequence[Mapping[str, float]], name: str, window: int) -> list[float]:
    """The last finite values of a metric; all of them for a window of 0."""
    return [record[name] for record in history if math.isfinite(record.get(name, math.nan))][-window:]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
