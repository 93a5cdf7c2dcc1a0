"""Samples for reading: what the verifier said stands beside the outcome."""

import numpy as np

from prm_jax.data import CarryTask
from prm_jax.prime.responses import Responses, concatenate
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.samples import SampleWriter

TASK = CarryTask(2, 3, num_train=8, num_eval=4)
SAID = "1 of 3 tests (.F); fail: assertion failed"


def responses(details):
    rows = 4
    return Responses(
        problems=TASK.eval[:2], tokens=np.zeros((rows, 3), np.int32), mask=np.ones((rows, 3), bool),
        step_ids=np.zeros((rows, 3), np.int32), texts=["a", "b", "c", "d"], outcome=np.array([0.0, 1.0, 0.0, 1.0]),
        usable=np.ones(rows, bool), finished=np.ones(rows, bool), unanswered=np.zeros(rows, bool), details=details,
    )  # fmt: skip


def test_verdicts_are_shown_and_stay_with_their_responses():
    writer = SampleWriter(Sampler(TASK, TASK.tokenizer(), None, 8, 8), 1)
    found = responses(["", "", SAID, "3 of 3 tests"])
    assert "verdict" not in writer._sample(found, 0, None).info
    assert writer._sample(found, 2, None).info == {"reference": TASK.eval[1].answer, "verdict": SAID}
    second = found.take([1])
    assert list(second.details) == [SAID, "3 of 3 tests"]
    assert list(concatenate([second, found]).details) == [SAID, "3 of 3 tests", "", "", SAID, "3 of 3 tests"]
    assert not concatenate([responses(()), found]).details and not responses(()).take([0]).details
