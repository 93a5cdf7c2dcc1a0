"""A tiny policy on the carry task and two scorers of its prefixes: what searches over steps call."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.data.answers import read_answer
from prm_jax.data.carry import CarryTask
from prm_jax.data.step_data import StepRecord
from prm_jax.models import ModelConfig
from prm_jax.prm.data import batch_of, make_plan
from prm_jax.prm.kinds import Value
from prm_jax.prm.model import finished
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.rows import Batch, Shape, build_rows, collate
from prm_jax.prm.score import PRM, rows_to_score
from prm_jax.prm.spec import Spec, Weights
from prm_jax.prm.step import PRMLearner, make_step
from prm_jax.rollouts import Batching, LocalEngine, StepOptions, TaskPolicy, stop_sets
from prm_jax.runs.learner import make_optimizer
from prm_jax.search.language_model import Partial, ScorePartials

LAYOUT = TextLayout(separator="")
"""Steps as they were written, without a separator after the last: a prefix is scored as it is."""


def carry_policy(config: ModelConfig, params: Any, task: CarryTask, *, seed: int, rows: int = 256) -> TaskPolicy:
    """A model on problems of the carry task."""
    # A step is at most "99+9=99;" and the last one continues with "#99" and the end; a wrong one may be longer.
    steps = StepOptions(step_tokens=16, max_new_tokens=task.max_response_tokens + 4, rows=rows)
    engine = LocalEngine(
        config, params, key=jax.random.key(seed), stops=stop_sets(task), tokenizer=task.tokenizer(),
        batching=Batching(rows),
    )  # fmt: skip
    return TaskPolicy(engine, task, steps)


def answer_of(policy: TaskPolicy, partial: Partial) -> str | None:
    """What a solution answers; None unless a solution of the carry task gives exactly one answer."""
    text = policy.text(partial)
    if isinstance(policy.task, CarryTask) and text.count("#") != 1:
        return None
    return read_answer(policy.task, text)


def as_record(
    policy: TaskPolicy, partial: Partial, outcome: float | None = None, name: str = ""
) -> StepRecord | None:
    """A prefix as step data; None while nothing is written."""
    steps, problem = policy.texts(partial), policy.problems[partial.question]
    return StepRecord(problem.prompt, steps, None, outcome, problem.id, name or problem.id) if steps else None


def train_value(
    policy: TaskPolicy, records: Sequence[StepRecord], *, updates: int, batch_size: int, learning_rate: float, seed: int
) -> PRM:
    """A value model, initialised from the policy: the chance of a correct answer after each step, from outcomes."""
    spec = Spec(Value(), policy.engine.config)
    rows, _ = build_rows(records, policy.tokenizer, LAYOUT, max_length=128)
    epochs = -(-updates * batch_size // len(rows))
    plan = make_plan(rows, batch_size=min(batch_size, len(rows)), epochs=epochs, seed=seed)
    learner = PRMLearner(spec, make_optimizer(learning_rate, schedule="cosine", warmup_steps=5, total_steps=updates))
    state, step = learner.init(policy.engine.params, jax.random.key(seed)), make_step(learner)
    for number in range(min(updates, plan.steps)):
        state, _ = step(state, None, batch_of(plan, rows, number), None)
    return finished(spec, learner.weights(state.trainable, state.fixed, None), policy.tokenizer, LAYOUT)


class Scorer:
    """Values of prefixes from a value model, cached.

    Args:
      prm: the model.
      policy: reads prefixes as text.
      rows: prefixes scored at once.
    """

    def __init__(self, prm: PRM, policy: TaskPolicy, *, rows: int = 256) -> None:
        self.prm, self.policy, self.rows = prm, policy, rows
        self._known: dict[tuple[int, str], float] = {}

    def __call__(self, partials: Sequence[Partial]) -> list[float]:
        """The chance of a correct answer; 0 where nothing is written."""
        keys = [(partial.question, self.policy.text(partial)) for partial in partials]
        new = {key: partial for key, partial in zip(keys, partials, strict=True) if key not in self._known}
        records = {key: as_record(self.policy, partial) for key, partial in new.items()}
        self._known |= {key: 0.0 for key, record in records.items() if record is None}
        self._known |= self._score({key: record for key, record in records.items() if record is not None})
        return [self._known[key] for key in keys]

    def _score(self, records: dict[tuple[int, str], StepRecord]) -> dict[tuple[int, str], float]:
        rows = rows_to_score(self.prm, list(records.values())) if records else []
        task = self.policy.task
        # One shape, so one compilation. A policy that rambles can write a step every other token.
        width = 1 + task.max_prompt_tokens + self.policy.steps.max_new_tokens
        shape = Shape(self.rows, width, self.rows, width)
        found: list[float] = []
        for start in range(0, len(rows), self.rows):
            part = rows[start : start + self.rows]
            values = np.asarray(_scores(self.prm.spec)(self.prm.weights, collate(part, shape, packed=False)))
            found += [float(values[place, len(row.reads) - 1]) for place, row in enumerate(part)]
        return dict(zip(records, found, strict=True))


def exact_scorer(policy: TaskPolicy) -> ScorePartials:
    """1 while every step is correct; after an error less than 0, and more if the error comes late."""

    def score(partials: Sequence[Partial]) -> list[float]:
        return [_exact(policy, partial) for partial in partials]

    return score


def _exact(policy: TaskPolicy, partial: Partial) -> float:
    text, problem = policy.text(partial), policy.problems[partial.question]
    labels = policy.task.step_labels(problem, text)
    if all(labels):
        return 1.0 if not partial.finished or policy.task.verify(problem, text) else -1.0
    return labels.index(False) / len(labels) - 1.0


@functools.lru_cache(maxsize=4)
def _scores(spec: Spec) -> Callable[[Weights, Batch], jax.Array]:
    kind = spec.kind
    return jax.jit(lambda weights, batch: kind.scores(spec, kind.forward(spec, weights, batch), batch))
