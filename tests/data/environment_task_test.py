"""Tasks that are episodes: demonstrations win, invented answers lose, steps are judged."""

import numpy as np
import pytest

from prm_jax.data import load_task
from prm_jax.data.answers import read_answer
from prm_jax.data.environment_task import EnvironmentTask
from prm_jax.data.lookup import Lookup
from prm_jax.data.rooms import Rooms
from prm_jax.errors import UserError
from prm_jax.rollouts.environments import Feedback


@pytest.fixture(params=["rooms", "lookup"])
def task(request):
    return load_task(request.param, num_eval=8)


def solved(task, problem):
    environment = task.environment(problem)
    text = ""
    for action in environment.solution():
        feedback = environment.step(action)
        text += action + feedback.text
    return text


def test_solutions_win_and_every_step_of_theirs_is_right(task):
    problems = [task.train[index] for index in range(40)] + list(task.eval)
    texts = [solved(task, problem) for problem in problems]
    assert {verdict.status for verdict in task.verify_many(problems, texts)} == {"pass"}
    for problem, text in zip(problems, texts, strict=True):
        labels = task.step_labels(problem, text)
        assert labels == [True] * len(task.splitter(text))
    answers = [read_answer(task, text) for text in texts]
    assert answers == [text.rstrip().split("\n")[-1] for text in texts] and read_answer(task, "") is None
    assert set("".join(texts) + "".join(problem.prompt for problem in problems)) <= set(task.alphabet)


def test_demonstrations_are_solutions(task):
    shown = task.demonstrations(np.random.default_rng(0), 20)
    drawn = [task.train[int(index)] for index in np.random.default_rng(0).integers(len(task.train), size=20)]
    assert [problem.prompt for problem in drawn] == [prompt for prompt, _, _ in shown]
    assert {verdict.score for verdict in task.verify_many(drawn, [text for _, text, _ in shown])} == {1.0}
    for problem, (_, text, answers) in zip(drawn, shown, strict=True):  # the model learns its actions alone
        given = [turn.feedback.text for turn in task.turns(problem, text) if not turn.feedback.done]
        assert [text[start:end] for start, end in answers] == given


def test_invented_answers_are_refused(task):
    problem = next(p for p in (task.train[i] for i in range(50)) if len(task.environment(p).solution()) > 2)
    text = solved(task, problem)
    first, rest = text.split("\n", 1)
    invented = f"{first}\nZZZ\n{rest.split(chr(10), 1)[1]}"
    assert task.verify(problem, invented) == 0.0
    assert "where the environment says" in task.verify_many([problem], [invented])[0].detail


def test_steps_that_lose_ground_are_wrong():
    task = load_task("lookup", num_eval=4)
    problem = task.train[0]
    good = task.environment(problem).solution()
    environment = task.environment(problem)
    wasted = environment.step("A.p\n" if good[0] != "A.p\n" else "B.p\n").text
    text = ("A.p\n" if good[0] != "A.p\n" else "B.p\n") + wasted + "!A\n"
    labels = task.step_labels(problem, text)
    assert labels[0] is False and labels[1] is True


def test_an_action_after_which_nothing_wins_is_wrong():
    """Whoever holds the wrong object can only drop it and lose, which ends the game soon."""
    task = load_task("rooms", num_eval=4, rooms=3, careless=1.0)
    tempted = next(p for p in (task.train[i] for i in range(200)) if task.environment(p).temptation() == "t\n")
    text = "t\n" + task.environment(tempted).step("t\n").text + "d\n"
    assert task.verify(tempted, text) == 0.0
    labels = task.step_labels(tempted, text)
    assert labels[0] is False and labels[-1] is False


def test_what_is_not_an_action_gets_an_answer():
    rooms = Rooms()
    told = rooms.reset(3)
    assert rooms.step("fly\n").text.startswith("no;\n") and told.endswith(rooms.step("x\n").text.split("\n", 1)[1])
    assert Lookup().reset(1).endswith("?\n")
    world = Lookup()
    world.reset(1)
    assert world.step("nonsense\n") == Feedback("?\n") and world.step("!\n").done


def test_training_and_evaluation_do_not_share_an_episode(task):
    train = {task.train[index].answer for index in range(len(task.train))}
    assert len(train) == len(task.train) and train.isdisjoint(problem.answer for problem in task.eval)
    again = load_task(task.name, num_eval=8)
    assert again.fingerprint == task.fingerprint and again.train[7] == task.train[7]


class _Broken:
    def reset(self, seed):
        return f"{seed}\n"

    def step(self, action):
        raise RuntimeError("broken")


def test_an_environment_that_fails_masks_the_sample():
    task = EnvironmentTask(_Broken, num_train=4, num_eval=2)
    (verdict,) = task.verify_many([task.train[0]], ["go\n"])
    assert not verdict.usable and "RuntimeError: broken" in verdict.detail


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rooms", {"rooms": 2}, "3 to 10 rooms"),
        ("lookup", {"hops": 0}, "at least one hop"),
        ("rooms", {"num_train": 0}, "num_train"),
        ("lookup", {"max_turn": 3}, "no option 'max_turn'"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UserError, match=message):
        load_task(name, **options)
