"""Decisions after an attempt: every way to end, what comes first of several, back-off, and when to give up."""

import signal

import pytest

from prm_jax import exit_codes
from prm_jax.runs.restarts import Ended, RestartLimits, Restarts, cause_of, grace_after

KILLED, ABORTED = -signal.SIGKILL, -signal.SIGABRT


def ended(first, codes=None, *, stop=0, progress=None):
    return Ended(first, first if codes is None else codes, stop, progress or {})


def decide(*args, **kwargs):
    return Restarts(RestartLimits(), {}).decide(ended(*args, **kwargs))


def test_a_job_whose_processes_all_finish_is_done():
    decision = decide({}, {0: 0, 1: 0})
    assert not decision.restart and decision.code == 0


@pytest.mark.parametrize("code", [2, 3, 77, 78])
def test_final_codes_are_passed_on(code):
    decision = decide({1: code}, {0: KILLED, 1: code})
    assert not decision.restart and decision.code == code


@pytest.mark.parametrize("code", [1, 69, 74, 76, 134, 137, KILLED, ABORTED, -signal.SIGSEGV])
def test_other_codes_are_restarted(code):
    decision = decide({1: code}, {0: KILLED, 1: code})
    assert decision.restart and decision.delay == 1.0


def test_a_process_that_a_scheduler_has_interrupted_ends_the_job_with_its_code():
    decision = decide({1: 75}, {0: 75, 1: 75})
    assert not decision.restart and decision.code == 75


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 75, 1: 75}, 75),
        ({0: 0, 1: 0}, 0),
        ({0: 0, 1: 75}, 75),
        ({0: KILLED, 1: KILLED}, 143),
        ({0: 75, 1: KILLED}, 143),
        ({0: 1, 1: 1}, 143),
        ({0: 77, 1: 77}, 77),
    ],
)
def test_a_job_that_was_told_to_stop_is_not_restarted(codes, expected):
    decision = decide({}, codes, stop=signal.SIGTERM)
    assert not decision.restart and decision.code == expected


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        ({0: 2, 1: KILLED}, KILLED),  # the error of the survivor is a consequence
        ({0: ABORTED, 1: 2}, 2),
        ({0: 134, 1: 77}, 77),
        ({0: 1, 1: 2}, 2),
        ({0: ABORTED, 1: 76}, 76),
        ({0: ABORTED}, ABORTED),
    ],
)
def test_the_cause_among_codes_seen_together(first, cause):
    assert cause_of(first) == cause


def test_restarts_without_a_new_checkpoint_wait_longer_and_end():
    restarts = Restarts(RestartLimits(max_stalled=3, delay=2.0, longest_delay=7.0), {"a": 10})
    failed = ended({0: KILLED}, progress={"a": 10})
    assert [restarts.decide(failed).delay for _ in range(3)] == [2.0, 4.0, 7.0]
    last = restarts.decide(failed)
    assert not last.restart and last.code == exit_codes.GAVE_UP
    assert "3 restarts in a row (--max-stalled) ended without a new checkpoint" in last.reason


def test_a_new_checkpoint_starts_the_count_again():
    restarts = Restarts(RestartLimits(max_stalled=1), {})
    for step in range(20):
        decision = restarts.decide(ended({0: KILLED}, progress={"a": step}))
        assert decision.restart and decision.delay == 1.0
    assert restarts.restarts == 20
    # Steps that are set aside as damaged are not progress, and nor is reaching them again.
    assert not restarts.decide(ended({0: KILLED}, progress={"a": 12})).restart
    assert not restarts.decide(ended({0: KILLED}, progress={"a": 19})).restart
    assert restarts.decide(ended({0: KILLED}, progress={"a": 19, "b": 0})).restart


def test_the_number_of_restarts_is_limited():
    restarts = Restarts(RestartLimits(max_restarts=2), {})
    decisions = [restarts.decide(ended({0: 1}, progress={"a": step})) for step in range(3)]
    assert [decision.restart for decision in decisions] == [True, True, False]
    assert decisions[-1].code == 78 and "all 2 restarts (--max-restarts) are used up" in decisions[-1].reason
    assert not Restarts(RestartLimits(max_restarts=0), {}).decide(ended({0: 1})).restart


def test_survivors_get_longer_when_they_are_saving():
    assert grace_after(75) > grace_after(77) > grace_after(KILLED)
    assert grace_after(76) == grace_after(134) == 1.0


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (76, "exited with 76 (stuck, ended by the watchdog)"),
        (-9, "was killed by SIGKILL"),
        (137, "exited with 137 (as after SIGKILL)"),
        (9, "exited with 9"),
        (-64, "was killed by"),
        (255, "exited with 255 (as after signal 127)"),
    ],
)
def test_codes_are_described(code, text):
    assert exit_codes.describe(code).startswith(text)


def test_codes_as_a_shell_shows_them():
    assert [exit_codes.of_shell(code) for code in (0, 77, -9)] == [0, 77, 137]
