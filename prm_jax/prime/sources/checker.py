"""The task's own step checker as the source of rewards: what a PRM without error would say."""

import jax
import numpy as np

from prm_jax.data.problems import Task
from prm_jax.errors import UserError
from prm_jax.prime.responses import Responses
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.sources.base import Observed, Source
from prm_jax.runs.learner import Params


class StepChecker(Source):
    """-1 on the last token of the first wrong step, 0 elsewhere, by the exact step labels of the task.

    Args:
      task: knows which steps of a response are right.
      flip: share of steps whose label is flipped at random, to study imperfect checkers.

    Raises:
      UserError: the task cannot check steps.
    """

    on_host = True

    def __init__(self, task: Task, *, flip: float = 0.0) -> None:
        if task.step_labels(task.eval[0], "") is None:
            raise UserError(
                f"the task {task.name!r} cannot check steps, which --reward.source checker needs; use another source"
            )
        self.task, self.flip = task, flip

    def observe(self, responses: Responses, sampler: Sampler, params: Params, key: jax.Array) -> Observed:
        """Labels every step on the host."""
        del sampler, params
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        return Observed(checker_rewards(self.task, responses, flip=self.flip, rng=rng))


def checker_rewards(
    task: Task, responses: Responses, *, flip: float = 0.0, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Process rewards [B, T] float32: -1 on the last token of the first step that is labelled wrong.

    Args:
      task: knows the step labels.
      responses: B responses.
      flip: share of labels that are flipped.
      rng: decides which; needed when `flip` is not 0.
    """
    rewards = np.zeros(responses.mask.shape, np.float32)
    size = responses.samples_per_prompt
    for row, text in enumerate(responses.texts):
        labels = task.step_labels(responses.problems[row // size], text)
        if labels is None:
            raise UserError(f"the task {task.name!r} cannot check the steps of a response")
        if flip and rng is not None:
            labels = [bool(label) != bool(rng.random() < flip) for label in labels]
        if False in labels:
            columns = np.flatnonzero(responses.step_ids[row] == labels.index(False))
            rewards[row, columns[-1:]] = -1.0
    return rewards
