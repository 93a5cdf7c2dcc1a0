"""Tasks whose problems are episodes of an environment: the prompt is what it says first, the outcome its rewards."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from prm_jax.data.problems import Problem, Prompt, fingerprint
from prm_jax.data.steps import StepSplitter
from prm_jax.errors import UserError
from prm_jax.option_values import convert_options, parameter_kinds
from prm_jax.rollouts.environments import Environment, Turn
from prm_jax.verifiers.verdict import Verdict, broken, failed, passed


@runtime_checkable
class Solvable(Protocol):
    """An environment that knows actions that solve an episode, for demonstrations."""

    def solution(self) -> list[str]:
        """Actions from the current state to the end, each with the string that ends it."""
        ...


@runtime_checkable
class Tempting(Protocol):
    """An environment that knows what a careless player does, for demonstrations of a bad habit."""

    def temptation(self) -> str | None:
        """The action that a careless player takes in the current state; None where nothing tempts."""
        ...


class EnvironmentTask:
    """Problems that are episodes of a seeded environment.

    A response consists of actions and the environment's answers in turn. It is judged by playing its actions again from
    the same seed: answers that the environment did not give are a failure, so that a model cannot invent them.

    Args:
      make: makes an environment; called once per episode.
      turn_end: string that ends an action.
      name: of the task.
      num_train: training problems in an epoch; made when they are read.
      num_eval: evaluation problems.
      max_turns: actions in an episode.
      alphabet: characters of a tokenizer for models trained from scratch; empty: the model brings its own.
      careless: probability that a demonstration gives in to a temptation, where the environment has them.
      seed: of the problems.

    Raises:
      UserError: sizes that are not positive, a probability out of range, an environment that fails on its first
        episode.
    """

    def __init__(
        self,
        make: Callable[[], Environment],
        *,
        turn_end: str = "\n",
        name: str = "environment",
        num_train: int = 4096,
        num_eval: int = 256,
        max_turns: int = 8,
        alphabet: str = "",
        careless: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= careless <= 1:
            raise UserError(f"the option 'careless' of the task {name!r} must be in [0, 1], found {careless}")
        for option, value in {"num_train": num_train, "num_eval": num_eval, "max_turns": max_turns}.items():
            if value < 1:
                raise UserError(f"the option {option!r} of the task {name!r} must be at least 1, found {value}")
        if not turn_end:
            raise UserError(f"the option 'turn_end' of the task {name!r} must not be empty")
        self.make, self.turn_end, self.name, self.max_turns, self.seed = make, turn_end, name, max_turns, seed
        self.alphabet, self.careless = alphabet, careless
        self.splitter = StepSplitter("tag", tags=(turn_end,))
        self.stop: tuple[str, ...] = (turn_end,)
        self.train: Sequence[Problem] = _Episodes(self, num_train, False)
        self.eval: Sequence[Problem] = [_Episodes(self, num_eval, True)[index] for index in range(num_eval)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the first problems and the options."""
        return fingerprint(self.name, self.seed, self.max_turns, [self.train[i] for i in range(4)], self.eval)

    def environment(self, problem: Problem) -> Environment:
        """The environment of a problem at the beginning of its episode."""
        environment = self.make()
        environment.reset(int(problem.answer))
        return environment

    def verify(self, problem: Problem, response: str) -> float:
        """The sum of the episode's rewards, in [0, 1]."""
        return self.verify_many([problem], [response])[0].score

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response, by playing its actions again."""
        return [self._replay(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def step_labels(self, problem: Problem, response: str) -> list[bool] | None:
        """Whether each action keeps the episode solvable in the fewest further actions; None where that is unknown."""
        environment = self.environment(problem)
        if not isinstance(environment, Solvable):
            return None
        labels: list[bool] = []
        left = len(environment.solution())
        for turn, given in self._played(environment, response):
            now = 0 if turn.feedback.done else len(environment.solution())
            labels.append(turn.feedback.reward > 0 or (not turn.feedback.done and now == left - 1))
            left = now
            if turn.feedback.done or not given.startswith(turn.feedback.text):
                break
            labels += [True] * len(self.splitter(turn.feedback.text))  # its text is not a step of the model
        steps = len(self.splitter(response))
        return (labels + [False] * steps)[:steps]

    def turns(self, problem: Problem, response: str) -> list[Turn]:
        """The actions of a response with what the environment answers to each, by playing them from the beginning.

        The last turn is the last action, one that ends the episode, or one whose answer is not what the response says
        next. Whatever the environment raises comes through.
        """
        return [turn for turn, _ in self._played(self.environment(problem), response)]

    def read_answer(self, response: str) -> str | None:
        """The last action of an episode, by which episodes are compared in votes."""
        return response.removesuffix(self.turn_end).rpartition(self.turn_end)[2].strip() or None

    def tokenizer(self) -> Any | None:
        """A character tokenizer if the task has an alphabet."""
        if not self.alphabet:
            return None
        from prm_jax.models.tokenizer import CharTokenizer

        return CharTokenizer(self.alphabet)

    def demonstrations(
        self, rng: np.random.Generator, count: int
    ) -> list[tuple[Prompt, str, list[tuple[int, int]]]]:
        """(prompt, actions and answers of an episode, spans of the answers) on training problems.

        Episodes are solved, unless `careless` has spoiled them.

        Raises:
          UserError: the environment does not know solutions.
        """
        episodes = []
        for index in rng.integers(len(self.train), size=count):
            problem = self.train[int(index)]
            environment = self.environment(problem)
            if not isinstance(environment, Solvable):
                raise UserError(f"the environment of {self.name!r} has no solutions to learn from: set --sft.steps 0")
            text, answers, done = "", [], False
            while not done:
                action = self._demonstrated(environment, rng)
                feedback = environment.step(action)
                text, done = text + action, feedback.done
                if feedback.text and not done:
                    answers.append((len(text), len(text) + len(feedback.text)))
                    text += feedback.text
            episodes.append((problem.prompt, text, answers))
        return episodes

    def _demonstrated(self, environment: Any, rng: np.random.Generator) -> str:
        """The next action of a solution, or a careless one."""
        careless = self.careless > 0 and isinstance(environment, Tempting) and rng.random() < self.careless
        tempted = environment.temptation() if careless else None
        return tempted or environment.solution()[0]

    def _replay(self, problem: Problem, response: str) -> Verdict:
        try:
            total = 0.0
            for turn, given in itertools.islice(self._played(self.environment(problem), response), self.max_turns):
                total += turn.feedback.reward
                if turn.feedback.done:
                    return _verdict(total, "done")
                said = turn.feedback.text
                if given and not given.startswith(said):
                    return failed(f"the response has {given[:40]!r} where the environment says {said[:40]!r}")
            return _verdict(total, "not done")
        except Exception as error:  # of the user's environment
            return broken(f"the environment raised {type(error).__name__}: {error}")

    def _played(self, environment: Environment, text: str) -> Iterator[tuple[Turn, str]]:
        """(turn, what the response has after its action) of every action, while the answers are the environment's."""
        while text:
            head, end, text = text.partition(self.turn_end)
            feedback = environment.step(head + end)
            yield Turn(head + end, feedback), text
            if feedback.done or not text.startswith(feedback.text):
                return
            text = text[len(feedback.text) :]


def is_environment(maker: Any) -> bool:
    """Whether it is a class of environments."""
    return inspect.isclass(maker) and issubclass(maker, Environment)


def environment_task(world: Callable[..., Any], options: Mapping[str, Any], *, name: str) -> EnvironmentTask:
    """A task whose problems are episodes of a class of environments.

    Args:
      world: the class. Attributes ``alphabet``, ``max_turns`` and ``turn_end`` of it, where it has them, are the
        defaults of the task's options.
      options: parameters of the class, and options of `EnvironmentTask`; text is converted to the declared types.
      name: of the task.

    Raises:
      UserError: an unknown option (the nearest is suggested), or a value of another type.
    """
    own, given = parameter_kinds(world), parameter_kinds(EnvironmentTask)
    for taken in ("make", "name"):
        del given[taken]
    checked = convert_options(options, {**given, **own}, f"the task {name!r}")
    defaults = {key: getattr(world, key) for key in ("alphabet", "max_turns", "turn_end") if hasattr(world, key)}
    rest = {key: value for key, value in checked.items() if key not in own}
    make = functools.partial(world, **{key: value for key, value in checked.items() if key in own})
    return EnvironmentTask(make, name=name, **{**defaults, **rest})


class _Episodes(Sequence[Problem]):
    """Problems of one side of the split, which is by seed: worlds that begin alike may differ in what is unseen."""

    def __init__(self, task: EnvironmentTask, size: int, held_out: bool) -> None:
        self.task, self.size, self.held_out = task, size, held_out

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"problem {index} of {self.size}")
        number = (self.task.seed << 33) ^ (int(self.held_out) << 32) ^ (index % self.size)
        return Problem(self.task.make().reset(number), str(number), f"{self.task.name}/{number}")


def _verdict(total: float, detail: str) -> Verdict:
    if total >= 1.0:
        return passed()
    return Verdict(total, "fail", detail) if total > 0 else failed(detail)
