"""Words spelled backward: a data set of reasoning-gym whose steps can be checked, one letter each."""

import string
from typing import Any

from prm_jax.data.gym import GymTask
from prm_jax.data.problems import Problem
from prm_jax.data.steps import StepSplitter
from prm_jax.models.tokenizer import CharTokenizer


class Backward(GymTask):
    """`spell_backward` with words of one length, in characters; needs the extra `tasks`.

    Args:
      length: of the words.
      num_eval: see `GymTask`.
    """

    def __init__(self, length: int = 8, *, num_eval: int = 192) -> None:
        super().__init__(
            "spell_backward", options={"min_word_len": length, "max_word_len": length}, num_eval=num_eval
        )  # fmt: skip
        self.splitter = StepSplitter("function", function=lambda text: range(len(text)))

    def tokenizer(self) -> Any:
        """A character tokenizer over printable ASCII."""
        return CharTokenizer(string.ascii_letters + string.digits + string.punctuation + " ")

    def step_labels(self, problem: Problem, response: str) -> Any:
        """Whether each letter is the reference's at its place."""
        return [response[a:b] == problem.answer[a:b] for a, b in self.splitter(response)]
