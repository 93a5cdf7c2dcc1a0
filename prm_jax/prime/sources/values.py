"""Monte-Carlo values of prefixes: how often the policy, or a prover, still finds the right answer after each step.

VinePPO (arXiv 2410.01679), SPO (arXiv 2505.23564), Math-Shepherd (arXiv 2312.08935); with a prover other than the
policy, process advantage verifiers (arXiv 2410.08146).
"""

from typing import NamedTuple

import jax
import numpy as np

from prm_jax import rl
from prm_jax.data.problems import Problem
from prm_jax.prime.responses import Responses
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.sources.base import Observed, Source
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.runs.learner import Params


class PrefixValues(Source):
    """The value of the prefix after each step, on the step's last token.

    The value of a prompt is the mean outcome of its group; a prover that is not the policy completes prompts, too.
    After its last step the value of a response is its outcome, which needs no rollouts: it has ended, or reached the
    maximum length.

    Args:
      rollouts: completions sampled after each step.
      temperature, top_k, top_p: of the sampling of these completions.
      batch_size: prefixes that ``models.generate`` completes at once; slots complete all together.
      prover: parameters (of the policy's architecture) that complete; None: the current policy.
      best_of: the value of the best of this many completions, 1 - (1 - v)^k; 1: of a single one.
    """

    on_host = True

    def __init__(
        self, *, rollouts: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, batch_size: int = 64,
        prover: Params | None = None, best_of: int = 1,
    ) -> None:  # fmt: skip
        self.rollouts, self.batch_size = rollouts, batch_size
        self.sampling = SamplingOptions(temperature, top_k, top_p)
        self.prover, self.best_of = prover, best_of

    def observe(self, responses: Responses, sampler: Sampler, params: Params, key: jax.Array) -> Observed:
        """Completes every prefix and verifies the answers."""
        prefixes = _prefixes(responses)
        prover, prompts = self.prover, []
        if prover is None:
            prover = params
        else:
            prompts = [_Prefix(row, -1, problem, []) for row, problem in enumerate(responses.problems)]
        values = self._values([*prefixes, *prompts], sampler, prover, key)
        process = np.zeros(responses.mask.shape, np.float32)
        for prefix, value in zip(prefixes, values, strict=False):  # those of the prompts follow
            process[prefix.row, prefix.column] = value
        for row in range(len(responses.texts)):
            if responses.mask[row].any():
                process[row, np.flatnonzero(responses.mask[row])[-1]] = responses.outcome[row]
        initial = np.asarray(values[len(prefixes) :])
        if self.prover is None:
            initial = np.asarray(rl.best_of_k_value(responses.solve_rates(), self.best_of))
        initial = np.repeat(initial, responses.samples_per_prompt).astype(np.float32)
        return Observed(process, initial, len(prefixes + prompts) * self.rollouts)

    def _values(
        self, prefixes: list["_Prefix"], sampler: Sampler, params: Params, key: jax.Array
    ) -> list[float]:  # fmt: skip
        if not prefixes:
            return []
        found = sampler.complete(
            params, [prefix.problem for prefix in prefixes], [prefix.tokens for prefix in prefixes], key,
            samples_per_prefix=self.rollouts, sampling=self.sampling, chunk=self.batch_size,
        )  # fmt: skip
        right = np.where(found.usable, found.outcome, 0.0).reshape(len(prefixes), -1).sum(1)
        known = found.usable.reshape(len(prefixes), -1).sum(1)
        mean = np.where(known > 0, right / np.maximum(known, 1), 0.5)
        return np.asarray(rl.best_of_k_value(mean, self.best_of)).tolist()


class _Prefix(NamedTuple):
    """A response up to the end of a step.

    Attributes:
      row: of the response in its batch.
      column: of the step's last token.
      problem: which the response answers.
      tokens: of the response up to there.
    """

    row: int
    column: int
    problem: Problem
    tokens: list[int]


def _prefixes(responses: Responses) -> list[_Prefix]:
    """The prefixes that end with each step but the last."""
    found: list[_Prefix] = []
    size = responses.samples_per_prompt
    for row in range(len(responses.texts)):
        ids, first = responses.step_ids[row], int(np.argmax(responses.mask[row]))
        for number in range(int(ids.max())):
            columns = np.flatnonzero(ids == number)
            if len(columns):
                end = int(columns[-1])
                tokens = [int(token) for token in responses.tokens[row, first : end + 1]]
                found.append(_Prefix(row, end, responses.problems[row // size], tokens))
    return found
