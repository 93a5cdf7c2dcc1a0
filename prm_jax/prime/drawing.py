"""The prompts of a step: drawn from the stream, with their randomness."""

import functools

import jax
import numpy as np

from prm_jax.data.pipeline import PromptBuffer, PromptStream
from prm_jax.data.problems import Problem
from prm_jax.errors import UserError
from prm_jax.prime.group_pool import Flips, KeyOf
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import NOISE_STREAM
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.selection import Acceptance


class Drawing:
    """Draws prompts from the stream, leaving out those that are too long.

    Args:
      sampler: knows what fits.
      stream: prompts in order.
      buffer: where to start.
      too_long: prompts left out before.

    Attributes:
      after: for each prompt, the buffer and the number of prompts left out so far once it is drawn.
    """

    def __init__(self, sampler: Sampler, stream: PromptStream, buffer: PromptBuffer, too_long: int) -> None:
        self.sampler, self.stream, self.buffer, self.too_long = sampler, stream, buffer, too_long
        self.after: list[tuple[PromptBuffer, int]] = []

    def next(self) -> Problem:
        """The next prompt that is short enough.

        Raises:
          UserError: there is none.
        """
        for _ in range(len(self.stream.problems) + 1):
            _, (problem,), self.buffer = self.buffer.draw(self.stream, 1)
            if self.sampler.fits(problem):
                self.after.append((self.buffer, self.too_long))
                return problem
            self.too_long += 1
        raise UserError(
            f"every prompt of the task {self.sampler.task.name!r} is longer than {self.sampler.max_prompt_tokens} "
            "tokens; raise --rollout.max-prompt-tokens"
        )


def keys_of_step(options: RolloutOptions, key: jax.Array) -> KeyOf:
    """The randomness of the prompts of one step, by their number in it; `key` is the step's."""
    if options.filter != "resample":
        return lambda number: (key, number)
    return keys_of_rounds(options.prompts_per_step, key)


def keys_of_rounds(size: int, key: jax.Array) -> KeyOf:
    """The randomness of any number of prompts: a key for each `size` of them."""
    own = functools.cache(functools.partial(jax.random.fold_in, key))
    return lambda number: (own(number // size), number % size)


def flips_of(options: RolloutOptions, key_of: KeyOf) -> Flips | None:
    """Outcomes that are flipped, by the number of the prompt; None: none."""
    if not options.outcome_noise:
        return None
    per_round, size = Acceptance(options).per_round, options.samples_per_prompt

    @functools.cache
    def turn(first: int) -> np.ndarray:
        own = jax.random.fold_in(jax.random.fold_in(key_of(first)[0], 0), NOISE_STREAM)
        numbers = np.random.default_rng(np.asarray(jax.random.key_data(own)).tolist())
        return numbers.random((per_round, size)) < options.outcome_noise

    def flips(number: int) -> np.ndarray:
        place = number % per_round
        return turn(number - place)[place]

    return flips
