"""Sums whose solutions may repeat a step: room for text that solves nothing and breaks nothing."""

from typing import Any, Literal

import numpy as np

from prm_jax.data.carry import CarryTask
from prm_jax.data.problems import Problem


class RepeatingTask(CarryTask):
    """The task `carry` with a teacher that now and then writes a step twice, or more often.

    Args:
      repeat: in [0, 1), the probability that the teacher writes a step once more; the copy may be repeated too.
      options: of `CarryTask`.
    """

    def __init__(self, *, repeat: float = 0.15, **options: Any) -> None:
        super().__init__(**options)
        self.name, self.repeat = "repeating", repeat

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str:
        """What the careless teacher writes, with repeated steps."""
        return self._repeated(super().demonstration(problem, rng), rng)

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """(prompt, response) pairs for supervised training."""
        return [(prompt, self._repeated(text, rng)) for prompt, text in super().demonstrations(rng, count)]

    def step_labels(
        self, problem: Problem, response: str, *, truth: Literal["absolute", "local"] = "absolute"
    ) -> list[bool]:
        """As `CarryTask.step_labels`; a repeated step has the label of the step that it repeats."""
        steps = [response[start:end] for start, end in self.splitter(response)]
        owners, distinct = [], []
        for step in steps:
            if not distinct or step != distinct[-1]:
                distinct.append(step)
            owners.append(len(distinct) - 1)
        labels = super().step_labels(problem, "".join(distinct), truth=truth)
        return [labels[owner] for owner in owners]

    def _repeated(self, text: str, rng: np.random.Generator) -> str:
        steps, answer = text.split("#")
        found = []
        for step in steps.split(";"):
            found += [step] * rng.geometric(1.0 - self.repeat)
        return ";".join(found) + "#" + answer


def make(
    operands: int = 3, repeat: float = 0.15, drop_carry: float = 0.4, num_eval: int = 200
) -> RepeatingTask:
    """The task, for ``--task.name experiments.clip_delta.task:make``."""
    return RepeatingTask(
        repeat=repeat, min_operands=operands, max_operands=operands, num_eval=num_eval, drop_carry=drop_carry
    )
