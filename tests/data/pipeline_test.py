"""The prompt stream is a pure function of (seed, cursor); the buffer loses and repeats nothing."""

import json
import threading

import pytest

from prm_jax.data import BatchStream, Problem, PromptBuffer, PromptStream
from prm_jax.errors import UserError

PROBLEMS = [Problem(f"q{i}", str(i), str(i)) for i in range(7)]


def ids(problems):
    return [p.id for p in problems]


def test_each_epoch_is_a_permutation_of_its_own():
    stream = PromptStream(PROBLEMS, seed=1)
    epochs = [ids(stream.take(7 * e, 7)[0]) for e in range(5)]
    assert all(sorted(epoch) == sorted(ids(PROBLEMS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [stream.epoch(c) for c in (0, 6, 7)] == [0, 0, 1]


def test_order_depends_on_the_seed_alone():
    whole = ids(PromptStream(PROBLEMS, seed=3).take(0, 40)[0])
    pieces, cursor = [], 0
    for n in (3, 1, 20, 16):  # other batch sizes, a fresh stream each time
        problems, cursor = PromptStream(PROBLEMS, seed=3).take(cursor, n)
        pieces += ids(problems)
    assert pieces == whole and cursor == 40
    assert ids(PromptStream(PROBLEMS, seed=4).take(0, 40)[0]) != whole


def test_processes_share_one_global_order():
    stream = PromptStream(PROBLEMS, seed=0)
    whole, cursor = stream.take(5, 12)
    for count in (1, 2, 3, 4):
        slices = [stream.take(5, 12, process_index=i, process_count=count) for i in range(count)]
        assert [p for problems, _ in slices for p in problems] == whole
        assert {c for _, c in slices} == {cursor}
    with pytest.raises(UserError, match="12 prompts per step do not divide among 5 processes"):
        stream.take(0, 12, process_count=5)


def test_unshuffled():
    stream = PromptStream(PROBLEMS, shuffle=False)
    assert ids(stream.take(5, 4)[0]) == ["5", "6", "0", "1"]


def test_bad_input():
    with pytest.raises(UserError, match="no problems"):
        PromptStream([])
    with pytest.raises(UserError, match="seed"):
        PromptStream(PROBLEMS, seed=-1)
    with pytest.raises(ValueError, match="negative"):
        PromptStream(PROBLEMS).take(-1, 2)


def test_fingerprint_sees_problems_seed_and_order():
    base = PromptStream(PROBLEMS, seed=0).fingerprint
    assert base == PromptStream(list(PROBLEMS), seed=0).fingerprint
    changed = [*PROBLEMS[:-1], Problem("q6", "7", "6")]
    others = [PromptStream(PROBLEMS, 1), PromptStream(PROBLEMS[::-1], 0), PromptStream(changed, 0)]
    assert len({base, *(stream.fingerprint for stream in others)}) == 4


def test_buffer_draws_pending_prompts_first_and_loses_none():
    stream = PromptStream(PROBLEMS, seed=2)
    first, problems, buffer = PromptBuffer().draw(stream, 4)
    assert first == [0, 1, 2, 3] and problems == stream.take(0, 4)[0]
    buffer = buffer.put_back(first[2:])
    state = json.loads(json.dumps(buffer.state(stream)))
    assert PromptBuffer.from_state(state, stream) == buffer
    second, problems, buffer = buffer.draw(stream, 3)
    assert second == [2, 3, 4] and problems == stream.at(second)
    assert buffer == PromptBuffer(5, ())
    assert PromptBuffer(9, (1, 2, 3)).draw(stream, 2)[::2] == ([1, 2], PromptBuffer(9, (3,)))


def test_buffer_refuses_another_data_set():
    stream = PromptStream(PROBLEMS, seed=2)
    state = PromptBuffer(3, (1,)).state(stream)
    with pytest.raises(UserError, match="prompts have changed"):
        PromptBuffer.from_state(state, PromptStream(PROBLEMS, seed=3))


def test_batches_are_made_ahead_in_order_and_not_beyond_the_end():
    made: list[int] = []

    def make(step):
        made.append(step)
        return None if step == 3 else {"step": step}

    stream = BatchStream(make, 6, ahead=2)
    assert [stream.draw(None, step) for step in range(6)] == [make(step) for step in range(6)]
    assert made[:6] == list(range(6)) and max(made) == 5
    stream.close()
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(timeout=5)
            assert not thread.is_alive()


def test_batches_of_any_step():
    stream = BatchStream(lambda step: step * step, 100)
    assert [stream.draw(None, step) for step in (7, 8, 9, 3, 4, 99)] == [49, 64, 81, 9, 16, 9801]
    stream.close()
    assert stream.draw(None, 5) == 25 and stream.position() == {}
    stream.close()


def test_a_batch_that_cannot_be_made_raises_at_its_own_step():
    def make(step):
        if step == 2:
            raise UserError("no such row")
        return step

    stream = BatchStream(make, 10, ahead=4)
    assert [stream.draw(None, step) for step in (0, 1)] == [0, 1]
    with pytest.raises(UserError, match="no such row"):
        stream.draw(None, 2)
    assert stream.draw(None, 3) == 3
    stream.close()
