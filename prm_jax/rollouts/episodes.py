"""A language model in an environment, for searches and labels: a step is a turn, an action with its answer."""

import zlib
from collections.abc import Sequence
from typing import Any

from prm_jax.rollouts.engine import sample_all
from prm_jax.rollouts.environments import Feedback, Turn, answer_to
from prm_jax.rollouts.policy import STEP, TaskPolicy, read_step
from prm_jax.search.language_model import Ask, Partial, Step


class EpisodePolicy(TaskPolicy):
    """A `TaskPolicy` on a task of environments, such as ``prm_jax.data.environment_task.EnvironmentTask``.

    A step is what the model writes up to the end of its action, followed by what the environment answers; the answer's
    tokens count as tokens and have no log-probability. Answers come from an environment that plays the actions again
    from the beginning, so that prefixes can be continued in any order. An environment that raises, or gives no answer
    within `seconds`, ends the episode.

    Args:
      seconds: that an environment may take to play an episode again.
    """

    def __init__(self, *args: Any, seconds: float = 10.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seconds = seconds

    def propose(self, asks: Sequence[Ask], count: int, whole: bool) -> list[list[Step]]:
        """Turns after prefixes, or the rest of the episodes."""
        starts = [ask for ask in asks for _ in range(count)]
        steps = [Step((), 0.0, self.room(ask.partial) <= 0) for ask in starts]
        for number in range(self.task.max_turns if whole else 1):
            live = [i for i, step in enumerate(steps) if not step.finished]
            if not live:
                break
            so_far = [starts[i].partial.then(steps[i]) if number else starts[i].partial for i in live]
            # The first turns are samples of one request; later ones follow different prefixes.
            ids = [
                (_later(self.number(starts[i]), i % count, number), 0) if number
                else (self.number(starts[i]), i % count)
                for i in live
            ]  # fmt: skip
            for i, turn in zip(live, self._turns(so_far, ids), strict=True):
                steps[i] = Step(steps[i].tokens + turn.tokens, steps[i].logp + turn.logp, turn.finished)
        if whole:
            steps = [step._replace(finished=True) for step in steps]
        return [[step for step in steps[i * count : (i + 1) * count] if step.tokens] for i in range(len(asks))]

    def complete(self, partial: Partial) -> bool:
        """Every episode that is over counts, since the environment says what it was worth."""
        return partial.finished

    def spans(self, partial: Partial) -> list[tuple[int, int]]:
        """Where the turns are in the text."""
        return [(start, end) for start, _, end in self._places(partial)]

    def forced(self, partial: Partial) -> tuple[tuple[int, int], ...]:
        """Where the answers are in the text."""
        return tuple((middle, end) for _, middle, end in self._places(partial) if middle < end)

    def _places(self, partial: Partial) -> list[tuple[int, int, int]]:
        """(begin, end of the action, end of the answer) of each turn."""
        text, places, end = self.text(partial), [], 0
        try:
            turns: Sequence[Turn] = self.task.turns(self.problems[partial.question], text)
        except Exception:  # of the user's environment: the episode is one turn, which the task's verdict explains
            return [(0, len(text), len(text))] if text else []
        for turn in turns:
            begin, middle = end, end + len(turn.action)
            answered = text.startswith(turn.feedback.text, middle)
            end = middle + (len(turn.feedback.text) if answered else 0)
            places.append((begin, middle, end))
        if places and end < len(text):  # not what the environment says: the model's own words
            places[-1] = (places[-1][0], len(text), len(text))
        return places

    def _turns(self, partials: Sequence[Partial], ids: Sequence[tuple[int, int]]) -> list[Step]:
        """One turn after each prefix, which is not finished and has room."""
        requests = [
            self.request(partial, number, sample, self.steps.step_tokens, STEP)
            for partial, (number, sample) in zip(partials, ids, strict=True)
        ]
        responses = sample_all(self.engine, requests, self.on_progress)
        return [
            self._answered(partial, *read_step(response))
            for partial, response in zip(partials, responses, strict=True)
        ]

    def _answered(self, partial: Partial, step: Step, end: str) -> Step:
        """An action with the environment's answer."""
        after = partial.then(step)
        text, problem = self.text(after), self.problems[partial.question]
        turns: list[Turn] = []

        def play(text: str) -> Feedback:
            turns.extend(self.task.turns(problem, text))
            return turns[-1].feedback

        feedback, _ = answer_to(play, text, seconds=self.seconds)
        if feedback is None or feedback.done or end != "stop" or len(turns) >= self.task.max_turns:
            return step._replace(finished=True)
        answer = tuple(self.tokenizer.encode(feedback.text)) if feedback.text else ()
        if len(answer) >= self.room(after):
            return step._replace(finished=True)
        return step._replace(tokens=step.tokens + answer)


def _later(number: int, sample: int, turn: int) -> int:
    """A number for the request of a later turn, below 2**31."""
    return zlib.crc32(f"{number}/{sample}/{turn}".encode()) >> 1
