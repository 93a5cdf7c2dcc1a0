"""OmegaPRM: published selections and searches, the used mask, and whole runs on problems whose truth is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import search as s
from tests.search.golden import load

select = jax.jit(s.omega_select)
use = jax.jit(s.omega_use)
S, R = 3, 5


def padded(case, used=()):
    """One pool in arrays of a common size; free places hold garbage that must not count."""
    states, rollouts = len(case["mc_state"]), len(case["rollout_state"])
    row = lambda x, n, fill: np.array([[*x, *[fill] * (n - len(x))]])  # noqa: E731
    return {
        "mc": row(case["mc_state"], S, 0.5),
        "visits": row(case.get("visits_state", [0] * states), S, 0),
        "state": row(case["rollout_state"], R, -1),
        "length": row(case["rollout_len"], R, 1e9),
        "used": row([i in used for i in range(rollouts)], R, False),
    }


def test_published_selections():
    for case in load()["omega_selection"]["cases"]:
        pick, score = select(**padded(case))
        n = len(case["score"])
        assert int(pick[0]) == case["argmax"]
        np.testing.assert_allclose(score[0, :n], np.array(case["score"], float), rtol=1e-5)
        assert np.all(np.isneginf(score[0, n:]))


def test_published_trace_of_selections():
    """Each rollout is picked once and never again."""
    case = load()["omega_selection"]["trace"]
    pool = padded(case)
    for step in case["steps"]:
        pick, score = select(**pool)
        np.testing.assert_allclose(score[0], np.array(step["score"], float), rtol=1e-5)
        assert int(pick[0]) == step["pick"]
        pool["visits"], pool["used"] = use(pool["visits"], pool["state"], pool["used"], pick)
    np.testing.assert_array_equal(pool["visits"][0], case["final_visits"])
    assert np.all(pool["used"][0])


LONGEST = 21


def searched(rows, **options):
    """One compiled search of many rows."""
    mc = np.ones((len(rows), LONGEST), np.float32)
    for row, entries in zip(mc, rows, strict=True):
        row[: len(entries)] = entries
    lengths = np.array([len(row) for row in rows])

    @jax.jit
    def run(mc, lengths):
        probe = lambda mid: jnp.take_along_axis(mc, jnp.maximum(mid, 0)[:, None], 1)[:, 0]  # noqa: E731
        return s.first_error_search(probe, lengths, LONGEST, **options)

    on_host = s.first_error_search(lambda mid: mc[np.arange(len(rows)), mid], lengths, LONGEST, host=True, **options)
    return run(mc, lengths), on_host


@pytest.mark.parametrize("closed", [False, True])
def test_published_searches(closed):
    cases = load()["omega_binary_search"]["cases"]
    for out in searched([case["mc_prefix"] for case in cases], probe_last=closed):
        for case, first, probes in zip(cases, out.first_error, np.asarray(out.trace.probes), strict=True):
            assert int(first) == case["openr_left_end" if closed else "first_error"]
            assert probes[probes >= 0].tolist() == case["openr_probes" if closed else "probes"]
        # Each probe lies between what is known, and moves one of the two ends to itself.
        lo, hi, mid, mc = (np.asarray(x) for x in out.trace)
        asked = mid >= 0
        assert ((lo < mid) & (mid < hi))[asked].all() and (mid[asked] == ((lo + hi) // 2)[asked]).all()
        after = asked[:, 1:]
        assert (np.where(mc > 0, mid, lo)[:, :-1] == lo[:, 1:])[after].all()
        assert (np.where(mc > 0, hi, mid)[:, :-1] == hi[:, 1:])[after].all()


def test_searches_without_steps_and_without_error():
    out, _ = searched([[], [1.0, 0.5], [0.5, 0.0]], probe_last=True)
    assert out.first_error.tolist() == [-1, -1, 1]
    out, on_host = searched([[], [0.0]])
    assert out.first_error.tolist() == on_host.first_error.tolist() == [-1, 0]
    assert not np.any(np.asarray(out.trace.probes) >= 0)


def test_bad_probes():
    run = functools.partial(s.first_error_search, n_steps=np.array([4, 5]), max_steps=5, host=True)
    with pytest.raises(ValueError, match="nan for question 1"):
        run(lambda mid: np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(2,\)"):
        run(lambda mid: np.zeros(3))
    for host in (True, False):  # too few halvings would name a step that nobody looked at
        with pytest.raises(ValueError, match="n_steps goes up to 5"):
            s.first_error_search(lambda mid: mid, np.array([5]), 4, host=host)


def test_pools_of_the_wrong_size():
    one, two = np.full((1, 3), 0.5), np.full((2, 3), 0.5)
    state, length, used = np.zeros((2, 4), int), np.ones((2, 4)), np.zeros((2, 4), bool)
    with pytest.raises(AssertionError, match="shape"):
        s.omega_select(one, one, state, length, used)  # the first question's states are not the second's
    state[0], state[1, 1:] = 3, -1  # there is no state 3
    pick, score = s.omega_select(two, 0 * two, state, length, used)
    assert pick.tolist() == [-1, 0] and np.isfinite(score).sum() == 1
    for shape in ((2, 0), (2, 4)):
        pick, score = s.omega_select(two[:, :0], two[:, :0], *(np.zeros(shape, int),) * 3)
        assert pick.tolist() == [-1, -1] and np.all(np.asarray(score) == -np.inf)


class World:
    """Solutions are tuples of letters; "x" spoils what follows, unless luck is left. Rollouts are seeded."""

    def __init__(self, luck):
        self.rng, self.luck, self.calls, self.asked = np.random.default_rng(1), luck, 0, []

    def __call__(self, requests, count):
        self.calls += len(requests) * count
        self.asked += [(r.question, r.prefix) for r in requests]
        return [[self.rollout(r.prefix) for _ in range(count)] for r in requests]

    def rollout(self, prefix):
        steps = tuple("x" if self.rng.random() > self.luck else "a" for _ in range(6 - len(prefix)))
        return s.JudgedRollout(steps, float(len(steps)), "x" not in prefix + steps)


def test_a_whole_run():
    world = World(luck=0.8)
    out = s.omega_label(world, 4, rollouts=8, searches=10, L=6.0)
    assert len(set(world.asked)) == len(world.asked)  # no prefix is estimated twice
    assert out.calls.sum() == world.calls
    for b in range(4):
        states = [state for state in out.states if state.question == b]
        assert states[0].prefix == () and states[0].total == 8
        for state in states:
            assert 0 <= state.correct <= state.total == 8
            if "x" in state.prefix:
                assert state.correct == 0
        errors = [e for e in out.errors if e.question == b]
        assert len(errors) == out.searches[b] <= 10 and len(errors) > 0
        assert len({(e.steps[: e.start], e.steps, e.number) for e in errors}) == len(errors)
        mc = {state.prefix: state.correct for state in states}
        for e in errors:
            # Right before the error the answer could still be reached; what was probed became a state.
            first = e.first_error
            assert first >= e.start
            assert first == e.start or mc[e.steps[:first]] > 0
            assert first == len(e.steps) - 1 or mc[e.steps[: first + 1]] == 0


def test_questions_without_a_mix_end_at_once():
    always, never = World(luck=1.0), World(luck=0.0)
    for world in (always, never):
        out = s.omega_label(world, 2, rollouts=4, searches=5)
        assert world.calls == 8 and len(out.errors) == 0 and len(out.states) == 2
        np.testing.assert_array_equal(out.searches, 0)


def test_rollouts_that_cannot_be_judged():
    """They are neither right nor wrong: counted nowhere, picked never; a probe of nothing else locates nothing."""

    class Doubtful(World):
        def __call__(self, requests, count):
            found = super().__call__(requests, count)
            for request, own in zip(requests, found, strict=True):
                blind = request.question == 1 or (request.question == 2 and request.prefix)
                own[:] = [r._replace(correct=None) if blind or i % 2 else r for i, r in enumerate(own)]
            return found

    world = Doubtful(luck=0.8)
    out = s.omega_label(world, 3, rollouts=16, searches=4, L=6.0)
    for state in out.states:
        blind = state.question == 1 or (state.question == 2 and state.prefix)
        assert state.total == (0 if blind else 8) and state.correct <= state.total
    assert {e.question for e in out.errors} == {0} and len(out.errors) == out.searches[0] == 4
    assert out.searches[1] == 0 and out.searches[2] == 4
    assert out.calls[1] == 16


def test_rollouts_of_the_wrong_number():
    with pytest.raises(ValueError, match="3 rollouts for question 0"):
        three = [s.JudgedRollout(("a",), 1.0, True)] * 3
        s.omega_label(lambda requests, count: [three for _ in requests], 1, rollouts=4, searches=1)
