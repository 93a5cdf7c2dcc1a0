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
from prm_jax.prime.responses import Responses, Sampler
from prm_jax.prime.sources.base import Observed, Source
from prm_jax.runs import processes
from prm_jax.runs.learner import Params


class SavedPRM(Source):
    """Each step's score on the step's last token, from one or several saved PRMs.

    A PRM reads the text of problem and steps in the layout that it was trained on, with its own tokenizer, so that it
    need not share the policy's. Several PRMs give mean - pessimism * (standard deviation over them).

    Args:
      paths: directories that ``train-prm`` or ``train`` wrote, or published checkpoints.
      pessimism: coefficient of the standard deviation of an ensemble.
      reference: directory of the reference of an implicit PRM that was saved without one.
      max_tokens: tokens in one batch of scoring.
      mesh: devices to load the models onto, shard by shard; None: the default device.
    """

    on_host = True

    def __init__(
        self, paths: Sequence[str | pathlib.Path], *, pessimism: float = 1.0, reference: str | None = None,
        max_tokens: int = 8192, mesh: Mesh | None = None,
    ) -> None:  # fmt: skip
        if not paths:
            raise UserError("--reward.source model needs --reward.path: the directory of a saved PRM")
        self.models = [prms.load(path, reference=reference, mesh=mesh) for path in paths]
        self.pessimism, self.max_tokens = pessimism, max_tokens

    def observe(self, responses: Responses, sampler: Sampler, params: Params, key: jax.Array) -> Observed:
        """Scores the steps of all responses; of several processes, each scores its share."""
        del params, key
        process = np.zeros(responses.mask.shape, np.float32)
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
            for number, score in enumerate(scores):
                columns = np.flatnonzero(responses.step_ids[row] == number)
                process[row, columns[-1:]] = score
        return Observed(process)


def _record(responses: Responses, row: int, sampler: Sampler) -> StepRecord:
    text = responses.texts[row]
    steps = tuple(text[a:b] for a, b in sampler.task.splitter(text))
    problem = responses.problems[row // responses.samples_per_prompt]
    prompt = problem.prompt if isinstance(problem.prompt, str) else sampler.prompt_text(problem)
    # A response that was cut off has no end token, even where the PRM's layout ends whole solutions with one.
    ended = {"finished": bool(responses.finished[row])}
    return StepRecord(prompt, steps, None, None, group=problem.id, id=f"row {row}", provenance=ended)
