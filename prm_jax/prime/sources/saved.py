"""Saved process reward models of any kind as the source of rewards, alone or as a cautious ensemble."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from prm_jax import prm as prms
from prm_jax import rl
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.prime.responses import Responses
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.sources.base import Observed, Source
from prm_jax.prm.prefix_scores import gives_probabilities
from prm_jax.prm.progress_scores import best_of_k
from prm_jax.runs import processes
from prm_jax.runs.learner import Params


class SavedPRM(Source):
    """Each step's score on the step's last token, from one or several saved PRMs.

    A PRM reads the text of problem and steps in the layout that it was trained on, with its own tokenizer, so that it
    need not share the policy's. Several PRMs give mean - pessimism * (standard deviation over them). The value of a
    prompt, where one is asked for, is the mean score of its group's first steps.

    Args:
      paths: directories that ``train-prm`` or ``train`` wrote, or published checkpoints.
      pessimism: coefficient of the standard deviation of an ensemble.
      reference: directory of the reference of an implicit PRM that was saved without one.
      best_of: values become those of the best of this many completions, 1 - (1 - v)^k, except where a response ends.
      max_tokens: tokens in one batch of scoring.
      mesh: devices to load the models onto, shard by shard; None: the default device.
    """

    on_host = True

    def __init__(
        self, paths: Sequence[str | pathlib.Path], *, pessimism: float = 1.0, reference: str | None = None,
        best_of: int = 1, max_tokens: int = 8192, mesh: Mesh | None = None,
    ) -> None:  # fmt: skip
        if not paths:
            raise UserError("--reward.source model needs --reward.path: the directory of a saved PRM")
        self.models = [prms.load(path, reference=reference, mesh=mesh) for path in paths]
        self.pessimism, self.best_of, self.max_tokens = pessimism, best_of, max_tokens
        wrong = [path for path, model in zip(paths, self.models, strict=True) if not gives_probabilities(model)]
        if best_of > 1 and wrong:
            raise UserError(
                f"--reward.best-of {best_of} needs chances of success, and the scores of {wrong[0]} are not: use a "
                "reward model that gives some, such as the kinds value, token and outcome"
            )

    def observe(self, responses: Responses, sampler: Sampler, params: Params, key: jax.Array) -> Observed:
        """Scores the steps of all responses; of several processes, each scores its share."""
        del params, key
        process, first = np.zeros(responses.mask.shape, np.float32), np.full(len(responses.texts), np.nan, np.float32)
        written = [row for row, text in enumerate(responses.texts) if len(sampler.task.splitter(text))]
        if not written:
            return Observed(process)
        records = [_record(responses, row, sampler) for row in written]
        per_model = []
        for model in self.models:
            own = records[processes.share(len(records))]
            scored = prms.score_solutions(model, own, max_tokens=self.max_tokens) if own else []
            parts = processes.gather([list(solution.steps) for solution in scored], name="scores")
            per_model.append([steps for part in parts for steps in part])
        for place, row in enumerate(written):
            members = np.asarray([steps[place] for steps in per_model], np.float32)  # [E, S]
            scores = members[0]
            if len(members) > 1:
                scores = np.asarray(rl.pessimistic_rewards(members, coefficient=self.pessimism)[0])
            ends = np.arange(len(scores)) == len(scores) - 1
            scores = np.where(ends, scores, best_of_k(scores, self.best_of))
            first[row] = scores[0]
            for number, score in enumerate(scores):
                columns = np.flatnonzero(responses.step_ids[row] == number)
                process[row, columns[-1:]] = score
        groups = first.reshape(-1, responses.samples_per_prompt)
        known = np.isfinite(groups)
        value = np.where(known, groups, 0.0).sum(1) / np.maximum(known.sum(1), 1)
        return Observed(process, np.repeat(value, responses.samples_per_prompt).astype(np.float32))


def _record(responses: Responses, row: int, sampler: Sampler) -> StepRecord:
    text = responses.texts[row]
    steps = tuple(text[a:b] for a, b in sampler.task.splitter(text))
    problem = responses.problems[row // responses.samples_per_prompt]
    prompt = problem.prompt if isinstance(problem.prompt, str) else sampler.prompt_text(problem)
    # A response that was cut off has no end token, even where the PRM's layout ends whole solutions with one.
    ended = {"finished": bool(responses.finished[row])}
    return StepRecord(prompt, steps, None, None, group=problem.id, id=f"row {row}", provenance=ended)
