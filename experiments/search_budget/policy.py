"""A tiny policy on the carry task and what values its prefixes: the two functions that searches over steps ask for."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.data.carry import CarryTask
from prm_jax.data.problems import Problem
from prm_jax.data.step_data import StepRecord
from prm_jax.models import DecodeOptions, ModelConfig, generate
from prm_jax.prm.data import batch_of, make_plan
from prm_jax.prm.kinds import Value
from prm_jax.prm.model import finished
from prm_jax.prm.options import TextLayout
from prm_jax.prm.rows import Batch, Shape, build_rows, collate
from prm_jax.prm.score import PRM, rows_to_score
from prm_jax.prm.spec import Spec, Weights
from prm_jax.prm.step import PRMLearner, make_step
from prm_jax.runs.learner import make_optimizer
from prm_jax.search.language_model import Ask, Partial, ScorePartials, Step

LAYOUT = TextLayout(separator="")
"""Steps as they were written, nothing behind the last: a prefix is scored as it stands."""
UNIT = 4
"""Samples of a prompt in one call; other numbers are made of several prompts."""
WIDTH = 32
"""A prompt of this length joins every call, so that shorter ones share a shape and little is compiled."""
STREAMS = 1 << 20
"""More than a problem's prompts in any search."""


class Policy:
    """A model that answers problems of the carry task.

    Args:
      config: of the model.
      params: its parameters.
      task: gives problems and verdicts.
      rows: sequences generated at once, a multiple of `UNIT`; one prompt of them is filling.
    """

    def __init__(self, config: ModelConfig, params: Any, task: CarryTask, *, rows: int = 260) -> None:
        self.config, self.params, self.task, self.rows = config, params, task, rows
        self.tokenizer = task.tokenizer()
        # A step is at most "99+9=99;" and the last one goes on with "#99" and the end; a wrong one may be longer.
        self.step_tokens, self.max_tokens = 16, task.max_response_tokens + 4
        self.problems: Sequence[Problem] = ()
        self.key = jax.random.key(0)

    def begin(self, problems: Sequence[Problem], key: jax.Array) -> None:
        """Turns to these problems; the key chooses all that is sampled from here on."""
        self.problems, self.key = problems, key

    def propose(self, asks: Sequence[Ask], count: int, whole: bool) -> list[list[Step]]:
        """Steps, or the rest of the solution; see `language_model.ProposeFn`."""
        parts = -(-count // UNIT)
        prompts = [self._prompt(ask.partial) for ask in asks]
        # Prompts of similar length stand together; their numbers, not their places, choose what is sampled.
        jobs = sorted((i * parts + part for i in range(len(asks)) for part in range(parts)),
                      key=lambda job: -len(prompts[job // parts]))  # fmt: skip
        found: list[list[Step]] = [[] for _ in range(len(asks) * parts)]
        size, dummy = self.rows // UNIT - 1, [self.tokenizer.bos_id] * WIDTH
        for start in range(0, len(jobs), size):
            batch = jobs[start : start + size]
            filled = batch + [batch[-1]] * (size - len(batch))
            samples = generate(
                self.config, self.params, [*(prompts[job // parts] for job in filled), dummy], self.key,
                samples_per_prompt=UNIT, max_new_tokens=self.max_tokens if whole else self.step_tokens,
                stop=() if whole else self.task.splitter.separators,
                options=DecodeOptions(
                    tokenizer=self.tokenizer,
                    prompt_ids=[*(self._number(asks[job // parts], parts, job % parts) for job in filled), 0],
                ),
            )  # fmt: skip
            tokens, mask, logp = (np.asarray(x) for x in (samples.tokens, samples.mask, samples.logp))
            for row in range(len(batch) * UNIT):
                room = self.max_tokens - len(asks[batch[row // UNIT] // parts].partial.tokens)
                ids = tuple(tokens[row][mask[row]][:room].tolist())
                ends = whole or not self._goes_on(ids) or len(ids) == room
                found[batch[row // UNIT]].append(Step(ids, float(logp[row, : len(ids)].sum()), ends))
        return [sum(found[i * parts : (i + 1) * parts], [])[:count] for i in range(len(asks))]

    def text(self, partial: Partial) -> str:
        """What was written, without special tokens."""
        return self.tokenizer.decode(list(partial.tokens), skip_special=True)

    def answer(self, partial: Partial) -> str | None:
        """What a solution answers; None unless it gives one answer."""
        _, *answers = self.text(partial).split("#")
        return answers[0] if len(answers) == 1 else None

    def record(self, partial: Partial, outcome: float | None = None, name: str = "") -> StepRecord | None:
        """A prefix as step data; None where nothing is written."""
        text, problem = self.text(partial), self.problems[partial.question]
        steps = tuple(text[start:end] for start, end in self.task.splitter(text))
        return StepRecord(problem.prompt, steps, None, outcome, problem.id, name or problem.id) if steps else None

    def _prompt(self, partial: Partial) -> list[int]:
        problem = self.problems[partial.question]
        return [*self.tokenizer.encode(problem.prompt, add_special=True), *partial.tokens]

    def _number(self, ask: Ask, parts: int, part: int) -> int:
        number = ask.stream * parts + part
        assert number < STREAMS, "too many requests of one problem"
        return ask.partial.question * STREAMS + number

    def _goes_on(self, step: tuple[int, ...]) -> bool:
        return bool(step) and self.text(Partial(0, (step,))).endswith(self.task.splitter.separators)


def train_value(
    policy: Policy, records: Sequence[StepRecord], *, updates: int, batch_size: int, learning_rate: float, seed: int
) -> PRM:
    """A value model that starts from the policy: the chance of a right answer after each step, from outcomes alone."""
    spec = Spec(Value(), policy.config)
    rows, _ = build_rows(records, policy.tokenizer, LAYOUT, max_length=128)
    epochs = -(-updates * batch_size // len(rows))
    plan = make_plan(rows, batch_size=min(batch_size, len(rows)), epochs=epochs, seed=seed)
    learner = PRMLearner(spec, make_optimizer(learning_rate, schedule="cosine", warmup_steps=5, total_steps=updates))
    state, step = learner.init(policy.params, jax.random.key(seed)), make_step(learner)
    for number in range(min(updates, plan.steps)):
        state, _ = step(state, None, batch_of(plan, rows, number), None)
    return finished(spec, learner.weights(state.trainable, state.fixed, None), policy.tokenizer, LAYOUT)


class Scorer:
    """Values prefixes by a value model; what it has seen it remembers.

    Args:
      prm: the model.
      policy: reads prefixes as text.
      rows: prefixes scored at once.
    """

    def __init__(self, prm: PRM, policy: Policy, *, rows: int = 256) -> None:
        self.prm, self.policy, self.rows = prm, policy, rows
        self._known: dict[tuple[int, str], float] = {}

    def __call__(self, partials: Sequence[Partial]) -> list[float]:
        """The chance of a right answer; 0 where nothing is written."""
        keys = [(partial.question, self.policy.text(partial)) for partial in partials]
        new = {key: partial for key, partial in zip(keys, partials, strict=True) if key not in self._known}
        records = {key: self.policy.record(partial) for key, partial in new.items()}
        self._known |= {key: 0.0 for key, record in records.items() if record is None}
        self._known |= self._score({key: record for key, record in records.items() if record is not None})
        return [self._known[key] for key in keys]

    def _score(self, records: dict[tuple[int, str], StepRecord]) -> dict[tuple[int, str], float]:
        rows = rows_to_score(self.prm, list(records.values())) if records else []
        task = self.policy.task
        # One shape for all: one compilation. A policy that rambles can write a step every other token.
        width = 1 + task.max_prompt_tokens + self.policy.max_tokens
        shape = Shape(self.rows, width, self.rows, width)
        found: list[float] = []
        for start in range(0, len(rows), self.rows):
            part = rows[start : start + self.rows]
            values = np.asarray(_scores(self.prm.spec)(self.prm.weights, collate(part, shape, packed=False)))
            found += [float(values[place, len(row.reads) - 1]) for place, row in enumerate(part)]
        return dict(zip(records, found, strict=True))


def exact_scorer(policy: Policy) -> ScorePartials:
    """1 while every step is right; what is wrong is worth less than 0, more if the first error comes late."""

    def score(partials: Sequence[Partial]) -> list[float]:
        return [_exact(policy, partial) for partial in partials]

    return score


def _exact(policy: Policy, partial: Partial) -> float:
    text, problem = policy.text(partial), policy.problems[partial.question]
    labels = policy.task.step_labels(problem, text)
    if all(labels):
        return 1.0 if not partial.finished or policy.task.verify(problem, text) else -1.0
    return labels.index(False) / len(labels) - 1.0


@functools.lru_cache(maxsize=4)
def _scores(spec: Spec) -> Callable[[Weights, Batch], jax.Array]:
    kind = spec.kind
    return jax.jit(lambda weights, batch: kind.scores(spec, kind.forward(spec, weights, batch), batch))
