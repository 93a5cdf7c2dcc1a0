"""Policies in environments: turns as steps, answers by the environment, prefixes in any order."""

import time

import numpy as np
import pytest

from prm_jax.data import load_task
from prm_jax.data.environment_task import EnvironmentTask
from prm_jax.prm.labelling import tree_records
from prm_jax.prm.labelling.tree_options import TreeOptions
from prm_jax.prm.prefix_scores import make_prefix_scorer
from prm_jax.prm.prefixes import as_record
from prm_jax.prm.search_results import search_problems
from prm_jax.rollouts import EpisodePolicy, Feedback, Response, make_policy, stop_sets
from prm_jax.rollouts.sampling_options import StepOptions
from prm_jax.search.language_model import Ask, Partial
from prm_jax.search.searchers import make_searcher


class Knowing:
    """An engine that takes the right action in some of its samples, and otherwise an action that wastes a turn."""

    context = None

    def __init__(self, task, every=1, wasted="A.p\n"):
        self.wasted = wasted
        self.task, self.every, self.stops, self.tokenizer = task, every, stop_sets(task), task.tokenizer()
        self.seen = []
        self.waiting = {}

    def submit(self, requests):
        tickets = list(range(len(self.seen), len(self.seen) + len(requests)))
        for ticket, request in zip(tickets, requests, strict=True):
            self.seen.append((request.prompt_id, request.sample))
            prompt, response = self.tokenizer.decode(list(request.prompt), skip_special=True).split("?\n", 1)
            problem = next(p for p in self.task.eval if p.prompt == prompt + "?\n")
            environment = self.task.environment(problem)
            for turn in self.task.turns(problem, response):
                environment.step(turn.action)
            good = (request.prompt_id + request.sample) % self.every == 0
            whole = self.tokenizer.encode(environment.solution()[0] if good else self.wasted)
            tokens = np.array(whole[: request.max_new_tokens])
            logp = np.full(len(tokens), -0.5, np.float32)
            end = "eos" if not good and self.wasted == " " else "stop" if len(tokens) == len(whole) else "length"
            self.waiting[ticket] = Response(tokens, logp, np.zeros(len(tokens), np.int32), end)
        return tickets

    def poll(self, *, timeout=None):
        found, self.waiting = list(self.waiting.items()), {}
        return found


@pytest.fixture
def task():
    return load_task("lookup", hops="2", num_eval=6)


def policy_on(task, every=1, problems=2):
    policy = make_policy(Knowing(task, every), task, StepOptions(step_tokens=8, max_new_tokens=60))
    policy.begin(list(task.eval[:problems]), 0)
    return policy


def test_a_step_is_an_action_with_its_answer(task):
    policy = policy_on(task)
    assert isinstance(policy, EpisodePolicy)
    partial = Partial(0)
    while not partial.finished:
        ((step,),) = policy.propose([Ask(partial, 0)], 1, False)
        assert step.logp == pytest.approx(-0.5 * len(policy.text(Partial(0, (step.tokens,))).split("\n")[0] + "\n"))
        partial = partial.then(step)
    texts = policy.texts(partial)
    assert len(texts) == 3 and texts[0].count("\n") == 2 and texts[2].startswith("!") and policy.complete(partial)
    assert [len(piece) for piece in policy.split(partial)] == [len(step) for step in partial.steps]
    text = policy.text(partial)
    assert task.verify(task.eval[0], text) == 1.0
    answers = [turn.feedback.text for turn in task.turns(task.eval[0], text)[:2]]
    assert [text[start:end] for start, end in policy.forced(partial)] == answers
    record = as_record(policy, partial)
    assert record.steps == texts and record.forced == policy.forced(partial)
    assert record.head(1).forced == record.forced[:1] and record.head(1).steps == texts[:1]


def test_whole_episodes_are_played_turn_by_turn(task):
    policy = policy_on(task)
    ((one, two),) = policy.propose([Ask(Partial(1), 5)], 2, True)
    assert one.finished and task.verify(task.eval[1], policy.text(Partial(1, (one.tokens,)))) == 1.0
    assert one.tokens == two.tokens
    assert len(set(policy.engine.seen)) == len(policy.engine.seen) == 6  # every turn has random numbers of its own
    wasting = policy_on(task, every=10**9)
    ((lost,),) = wasting.propose([Ask(Partial(0), 0)], 1, True)
    assert lost.finished and len(wasting.texts(Partial(0, (lost.tokens,)))) == task.max_turns
    short = make_policy(Knowing(task), task, StepOptions(step_tokens=8, max_new_tokens=9))
    short.begin(list(task.eval[:1]), 0)
    ((cut,),) = short.propose([Ask(Partial(0), 0)], 1, True)
    assert cut.finished and len(cut.tokens) <= 9
    assert task.verify(task.eval[0], short.text(Partial(0, (cut.tokens,)))) == 0


def test_trees_give_pairs_of_actions_and_search_chooses_among_actions(task):
    policy = policy_on(task, every=2)
    options = TreeOptions(simulations=12, width=4, max_steps=task.max_turns)
    records, _ = tree_records(policy, {}, labels="best_worst", rollouts=1, options=options)
    assert records and len(records) % 2 == 0
    for good, bad in zip(records[::2], records[1::2], strict=True):
        assert good.group == bad.group and good.steps[:-1] == bad.steps[:-1] and good.steps[-1] != bad.steps[-1]
        assert good.labels[-1] == 1.0 and bad.labels[-1] == 0.0
        joined = "".join(bad.steps)
        assert all(joined[start] == "=" for start, _ in bad.forced)
    search = make_searcher("step_beam", {"beams": 1, "width": 4, "max_steps": task.max_turns})
    truth = make_prefix_scorer("truth", policy, rollouts=0, first=1, load=None)
    assert [line["correct"] for line in search_problems(policy, search, truth)] == [1.0, 1.0]


def test_pairs_leave_out_blank_actions_which_no_file_may_hold(task):
    policy = make_policy(Knowing(task, 2, wasted=" "), task, StepOptions(step_tokens=8, max_new_tokens=60))
    policy.begin(list(task.eval[:2]), 0)
    options = TreeOptions(simulations=12, width=4, max_steps=task.max_turns)
    records, _ = tree_records(policy, {}, labels="best_worst", rollouts=1, options=options)
    assert not records  # every pair had rejected a blank action


class Broken:
    """Raises or hangs at its second action."""

    def __init__(self, hangs=False):
        self.hangs = hangs

    def reset(self, seed):
        self.actions = 0
        return f"go {seed}?\n"

    def step(self, action):
        self.actions += 1
        if self.actions > 1 and self.hangs:
            time.sleep(0.2)
        if self.actions > 1:
            raise RuntimeError("broke")
        return Feedback("on\n")


class Saying(Knowing):
    """An engine that always writes one action."""

    def submit(self, requests):
        self.waiting = {}
        for ticket, _ in enumerate(requests):
            self.waiting[ticket] = Response(np.array(self.tokenizer.encode("A\n")), None, np.zeros(2, int), "stop", 0)
        return list(self.waiting)


@pytest.mark.parametrize("hangs", [False, True])
def test_an_environment_that_fails_loses_its_own_episode(hangs):
    task = EnvironmentTask(lambda: Broken(hangs), num_eval=2, alphabet="Ago 0123456789?n\n")
    policy = EpisodePolicy(Saying(task), task, StepOptions(step_tokens=8, max_new_tokens=60), seconds=0.05)
    policy.begin(list(task.eval[:1]), 0)
    ((step,),) = policy.propose([Ask(Partial(0), 0)], 1, True)
    assert step.finished and policy.texts(Partial(0, (step.tokens,))) == ("A\non\nA\n",)
    assert task.verify_many(task.eval[:1], ["A\non\nA\n"])[0].status == "error"
