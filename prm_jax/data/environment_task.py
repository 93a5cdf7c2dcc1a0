"""Tasks whose problems are episodes of an environment: the prompt is what it says first, the outcome its rewards."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from prm_jax.data.problems import Problem, Prompt, fingerprint
from prm_jax.data.steps import StepSplitter
from prm_jax.errors import UserError
from prm_jax.rollouts.environments import Environment
from prm_jax.verifiers.verdict import Verdict, broken, failed, passed


@runtime_checkable
class Solvable(Protocol):
    """An environment that knows actions that solve an episode, for demonstrations."""

    def solution(self) -> list[str]:
        """Actions from the current state to the end, each with the string that ends it."""
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
      seed: of the problems.

    Raises:
      UserError: sizes that are not positive, an environment that fails on its first episode.
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
        seed: int = 0,
    ) -> None:
        for option, value in {"num_train": num_train, "num_eval": num_eval, "max_turns": max_turns}.items():
            if value < 1:
                raise UserError(f"the option {option!r} of the task {name!r} must be at least 1, found {value}")
        if not turn_end:
            raise UserError(f"the option 'turn_end' of the task {name!r} must not be empty")
        self.make, self.turn_end, self.name, self.max_turns, self.seed = make, turn_end, name, max_turns, seed
        self.alphabet = alphabet
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
        rest = response
        left = len(environment.solution())
        while rest:
            action, rest = self._next_action(rest)
            feedback = environment.step(action)
            now = 0 if feedback.done else len(environment.solution())
            labels.append(feedback.reward > 0 or (not feedback.done and now < left))
            left = now
            if feedback.done or not rest.startswith(feedback.text):
                break
            rest = rest[len(feedback.text) :]
            labels += [True] * len(self.splitter(feedback.text))  # its text is not a step of the model
        steps = len(self.splitter(response))
        return (labels + [False] * steps)[:steps]

    def tokenizer(self) -> Any | None:
        """A character tokenizer if the task has an alphabet."""
        if not self.alphabet:
            return None
        from prm_jax.models.tokenizer import CharTokenizer

        return CharTokenizer(self.alphabet)

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[tuple[Prompt, str]]:
        """(prompt, actions and answers of a solved episode) pairs on training problems.

        Raises:
          UserError: the environment does not know solutions.
        """
        pairs = []
        for index in rng.integers(len(self.train), size=count):
            problem = self.train[int(index)]
            environment = self.environment(problem)
            if not isinstance(environment, Solvable):
                raise UserError(f"the environment of {self.name!r} has no solutions to learn from: set --sft.steps 0")
            text = ""
            for action in environment.solution():
                feedback = environment.step(action)
                text += action + ("" if feedback.done else feedback.text)
            pairs.append((problem.prompt, text))
        return pairs

    def _replay(self, problem: Problem, response: str) -> Verdict:
        try:
            environment = self.environment(problem)
            total, rest = 0.0, response
            for _ in range(self.max_turns):
                if not rest:
                    break
                action, rest = self._next_action(rest)
                feedback = environment.step(action)
                total += feedback.reward
                if feedback.done:
                    return _verdict(total, "done")
                if rest and not rest.startswith(feedback.text):
                    return failed(f"the response has {rest[:40]!r} where the environment says {feedback.text[:40]!r}")
                rest = rest[len(feedback.text) :]
            return _verdict(total, "not done")
        except Exception as error:  # of the user's environment
            return broken(f"the environment raised {type(error).__name__}: {error}")

    def _next_action(self, text: str) -> tuple[str, str]:
        head, end, rest = text.partition(self.turn_end)
        return head + end, rest


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
