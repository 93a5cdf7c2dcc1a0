"""Values of prefixes from the answers that they lead to: rollouts of the policy, judged by the task."""

from collections.abc import Iterator, Sequence
from typing import Any

from prm_jax.rollouts.policy import TaskPolicy
from prm_jax.search.language_model import Ask, Partial
from prm_jax.search.omega_prm import JudgedRollout, PrefixRequest


class Roller:
    """Rollouts from prefixes of token ids, judged by the task; a ``search.RolloutFn``.

    Args:
      policy: with a current chunk of problems.
      first: number of each problem's first request; smaller numbers belong to other requests.

    Attributes:
      calls: rollouts made.
      tokens: number of the problem in the whole run -> tokens of its rollouts.
      requests: number of the problem in the whole run -> requests made for it.
    """

    def __init__(self, policy: TaskPolicy, first: int = 0) -> None:
        self.policy, self.first, self.calls = policy, first, 0
        self.tokens: dict[int, int] = {}
        self.requests: dict[int, int] = {}

    def __call__(self, requests: Sequence[PrefixRequest], count: int) -> list[list[JudgedRollout]]:
        """`count` rollouts of each request."""
        asks = [self._ask(request) for request in requests]
        self.calls += len(requests) * count
        answers = self.policy.propose(asks, count, True)
        # A prefix of maximum length has no rollouts: it is its own.
        whole = [
            ask.partial.tokens + (steps[i].tokens if steps else ())
            for ask, steps in zip(asks, answers, strict=True)
            for i in range(count)
        ]
        problems = [self.policy.problems[request.question] for request in requests for _ in range(count)]
        texts = [self.policy.tokenizer.decode(list(tokens), skip_special=True) for tokens in whole]
        judged = iter(zip(whole, self.policy.task.verify_many(problems, texts), strict=True))
        found = [[self._rollout(ask, *next(judged)) for _ in range(count)] for ask in asks]
        for request, own in zip(requests, found, strict=True):
            number = self.policy.first + request.question
            self.tokens[number] = self.tokens.get(number, 0) + int(sum(rollout.length for rollout in own))
        return found

    def _ask(self, request: PrefixRequest) -> Ask:
        number = self.policy.first + request.question
        asked = self.requests.get(number, 0)
        self.requests[number] = asked + 1
        prefix: Any = request.prefix
        return Ask(Partial(request.question, prefix), self.first + asked)

    def _rollout(self, ask: Ask, whole: tuple[int, ...], verdict: Any) -> JudgedRollout:
        steps = self.policy.split(Partial(ask.partial.question, (whole,)))[len(ask.partial.steps) :]
        length = float(len(whole) - len(ask.partial.tokens))
        # When the reference or the verifier is at fault, nothing follows about the answer.
        return JudgedRollout(tuple(steps), length, verdict.score > 0.5 if verdict.usable else None)


def count_correct(rollouts: Sequence[JudgedRollout]) -> tuple[int, int]:
    """(correct rollouts, rollouts that could be judged)."""
    judged = [rollout.correct for rollout in rollouts if rollout.correct is not None]
    return sum(judged), len(judged)


class AnswerValues:
    """The chance of a correct answer after a prefix: the verdict for a finished one, rollouts for the others.

    Args:
      policy: with a current chunk of problems.
      rollouts: of each unfinished prefix; with 0 its value is 1/2.
      first: see `Roller`.

    Attributes:
      verdicts: (question, steps) -> whether the answer is correct, where it could be checked.
      roller: makes the rollouts.
    """

    def __init__(self, policy: TaskPolicy, rollouts: int, first: int) -> None:
        self.policy, self.rollouts = policy, rollouts
        self.verdicts: dict[tuple[int, Any], bool] = {}
        self.roller = Roller(policy, first)

    def __call__(self, partials: Sequence[Partial]) -> list[float]:
        """Values in [0, 1]; 1/2 for an answer that cannot be checked, 0 for a solution without an answer."""
        ends = iter(list(self._finished([p for p in partials if p.finished])))
        going = iter(self.unfinished([p for p in partials if not p.finished]))
        return [next(ends if p.finished else going) for p in partials]

    def unfinished(self, partials: Sequence[Partial]) -> list[float]:
        """Values of unfinished prefixes."""
        if not self.rollouts or not partials:
            return [0.5] * len(partials)
        found = self.roller([PrefixRequest(p.question, p.steps) for p in partials], self.rollouts)
        counts = [count_correct(own) for own in found]
        return [correct / judged if judged else 0.5 for correct, judged in counts]

    def _finished(self, partials: Sequence[Partial]) -> Iterator[float]:
        """A solution that was cut off for its length has no answer and is worth 0."""
        problems = [self.policy.problems[p.question] for p in partials]
        texts = [self.policy.text(p) for p in partials]
        found = self.policy.task.verify_many(problems, texts) if partials else []
        for partial, verdict in zip(partials, found, strict=True):
            complete = self.policy.complete(partial)
            correct = complete and verdict.score > 0.5
            if complete and verdict.usable:
                self.verdicts[partial.question, partial.steps] = correct
            yield float(correct) if verdict.usable else 0.5
