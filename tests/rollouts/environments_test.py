"""Responses in turns: forced answers, limits, environments that fail, and the same tokens as without an environment."""

import threading
import time

import jax
import numpy as np
import pytest

from prm_jax import models
from prm_jax.data import load_task
from prm_jax.data.rooms import Rooms
from prm_jax.errors import UserError
from prm_jax.rollouts import LocalEngine, Request, SlotEngine, SlotTuning, sample_all
from prm_jax.rollouts.environments import EpisodePlayer, EpisodeStart, Feedback, TurnLimits, play

TOKENIZER = models.CharTokenizer(Rooms.alphabet)
KEY = jax.random.key(5)
LIMITS = TurnLimits(max_new_tokens=40, max_turns=4, max_answer_tokens=12, seconds=20.0)
PROMPT = tuple(TOKENIZER.encode("bring q to C;\n"))


@pytest.fixture(scope="module")
def model():
    config = models.ModelConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2,
        num_kv_heads=2, head_dim=8, max_position_embeddings=96,
    )  # fmt: skip
    return config, jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(1))


@pytest.fixture
def engine(model):
    """Any of several letters ends a turn, so that a random model has some."""
    return SlotEngine(
        *model, slots=4, columns=72, key=KEY, tokenizer=TOKENIZER, stops=(("\n", "a", "b", "c", "d", "e"),),
        tuning=SlotTuning(steps_per_call=8, hold=(0,)),
    )  # fmt: skip


def starts(step, count=6):
    return [EpisodeStart(PROMPT, index, 0, step) for index in range(count)]


def text_of(tokens):
    return TOKENIZER.decode([int(token) for token in tokens], skip_special=True)


def test_answers_are_forced_and_turns_are_numbered(engine):
    episodes = play(engine, starts(lambda action: Feedback("=A\n", reward=0.25)), tokenizer=TOKENIZER, limits=LIMITS)
    assert len(episodes) == 6 and any(len(episode.turns) == 4 for episode in episodes)
    for episode in episodes:
        assert episode.end in ("turns", "length", "eos") and not episode.failure
        assert len(episode.tokens) == len(episode.sampled) == len(episode.logp) == len(episode.turn_ids) <= 40
        assert (episode.logp[~episode.sampled] == 0).all() and (episode.logp[episode.sampled] < 0).all()
        told = "".join(turn.action + (turn.feedback.text if i + 1 < len(episode.turns) else "")
                       for i, turn in enumerate(episode.turns))  # fmt: skip
        assert text_of(episode.tokens).startswith(told)
        for turn in range(len(episode.turns)):
            own = episode.turn_ids == turn
            assert text_of(episode.tokens[own & episode.sampled]) == episode.turns[turn].action
            if turn + 1 < len(episode.turns):
                assert text_of(episode.tokens[own & ~episode.sampled]) == "=A\n"
        assert episode.reward == 0.25 * len(episode.turns)


def test_an_episode_depends_on_nothing_but_its_own_environment(engine, model):
    def step(action):
        time.sleep(0.01 * (len(action) % 3))
        return Feedback(f"{len(action) % 10}\n")

    together = play(engine, starts(step), tokenizer=TOKENIZER, limits=LIMITS)
    alone = [play(engine, [start], tokenizer=TOKENIZER, limits=LIMITS)[0] for start in starts(step)[::-1]][::-1]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.turns == other.turns

    player = EpisodePlayer(engine, tokenizer=TOKENIZER, limits=LIMITS)
    tickets = player.submit(starts(step))
    ended = dict(player.poll())
    rest = dict(player.cancel(set(tickets) - set(ended)))
    assert ended and rest and sorted([*ended, *rest]) == sorted(tickets)
    for ticket, whole in zip(tickets, together, strict=True):
        found = (ended.get(ticket) or rest[ticket]).tokens
        np.testing.assert_array_equal(found, whole.tokens[: len(found)])
    assert player.poll() == []
    engine.release()  # every slot is free


def test_without_an_answer_it_is_the_plain_response(engine):
    episodes = play(engine, starts(lambda action: Feedback(done=True)), tokenizer=TOKENIZER, limits=LIMITS)
    plain = sample_all(engine, [Request(PROMPT, index, 0, 40) for index in range(6)])
    for episode, response in zip(episodes, plain, strict=True):
        np.testing.assert_array_equal(episode.tokens, response.tokens)
        assert episode.end == ("length" if response.end == "length" else "done")


def test_an_environment_that_raises_or_hangs_loses_its_own_episode_only(engine):
    released = threading.Event()

    def hang(action):
        released.wait(30)
        return Feedback("late")

    def fail(action):
        raise ValueError("no such room")

    steps = [lambda action: Feedback("ok\n"), fail, hang, lambda action: "text"]
    mixed = [EpisodeStart(PROMPT, index, 0, step) for index, step in enumerate(steps)]
    limits = TurnLimits(max_new_tokens=40, max_turns=2, seconds=0.5)
    begun = time.monotonic()
    found = play(engine, mixed, tokenizer=TOKENIZER, limits=limits)
    released.set()
    assert time.monotonic() - begun < 25
    assert [episode.end == "failed" for episode in found] == [False, True, True, True]
    for episode, words in zip(
        found[1:], ("ValueError: no such room", "no answer within 0.5 s", "returned str"), strict=True
    ):
        assert words in episode.failure
    again = play(engine, starts(lambda action: Feedback(done=True), 4), tokenizer=TOKENIZER, limits=LIMITS)
    assert all(episode.end in ("done", "length") for episode in again)  # every slot is free again


def test_long_answers_are_cut(engine):
    episodes = play(engine, starts(lambda action: Feedback("x" * 500)), tokenizer=TOKENIZER, limits=LIMITS)
    assert all((~episode.sampled).sum() <= 12 * len(episode.turns) for episode in episodes)


def test_games_are_scored_by_playing_them_again(engine):
    task = load_task("rooms", num_eval=8)
    problems = [task.train[index] for index in range(6)]
    made = [
        EpisodeStart(tuple(TOKENIZER.encode(problem.prompt)), index, 0, task.environment(problem).step)
        for index, problem in enumerate(problems)
    ]
    episodes = play(engine, made, tokenizer=TOKENIZER, limits=LIMITS)
    verdicts = task.verify_many(problems, [text_of(episode.tokens) for episode in episodes])
    assert [verdict.score for verdict in verdicts] == [episode.reward for episode in episodes]


def test_bad_engines_and_limits_are_refused(model):
    with pytest.raises(UserError, match="--rollout.engine slots"):
        play(LocalEngine(*model, key=KEY), starts(lambda action: Feedback()), tokenizer=TOKENIZER, limits=LIMITS)
    with pytest.raises(UserError, match="max_turns of an episode must be positive, found 0"):
        TurnLimits(10, max_turns=0)
