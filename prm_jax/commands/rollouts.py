"""What prefixes are worth by the answers that they lead to: the policy's rollouts, judged by the task."""

from collections.abc import Iterator, Sequence
from typing import Any

from prm_jax.commands.policy import Engine


class Roller:
    """Rollouts from prefixes of token ids, judged by the task.

    Args:
      engine: turned to a chunk of problems.
      first: number of each problem's first request; those below it are others'.

    Attributes:
      calls: rollouts made.
      tokens: number of the problem in the whole run -> tokens of its rollouts.
      requests: number of the problem in the whole run -> requests made for it.
    """

    def __init__(self, engine: Engine, first: int = 0) -> None:
        self.engine, self.first, self.calls = engine, first, 0
        self.tokens: dict[int, int] = {}
        self.requests: dict[int, int] = {}

    def __call__(self, requests: Sequence[Any], count: int) -> list[list[Any]]:
        """``count`` rollouts of each request; see ``omega_label.RolloutFn``."""
        from prm_jax.search import Rollout
        from prm_jax.search.language_model import Ask, Partial

        asks = []
        for request in requests:
            number = self.engine.first + request.question
            asked = self.requests.get(number, 0)
            self.requests[number] = asked + 1
            asks.append(Ask(Partial(request.question, request.prefix), self.first + asked))
        self.calls += len(requests) * count
        answers = self.engine.propose(asks, count, True)
        problems = [self.engine.problems[r.question] for r in requests for _ in range(count)]
        prefixes = [ask.partial.tokens for ask in asks]
        # A prefix that fills the whole length has no rollouts: it is what it is.
        whole = [
            prefix + (steps[i].tokens if steps else ())
            for prefix, steps in zip(prefixes, answers, strict=True)
            for i in range(count)
        ]
        texts = [self.engine.tokenizer.decode(list(tokens), skip_special=True) for tokens in whole]
        verdicts = iter(self.engine.task.verify_many(problems, texts))
        out = []
        for r, (request, prefix) in enumerate(zip(requests, prefixes, strict=True)):
            found = []
            for i in range(count):
                rest = whole[r * count + i][len(prefix) :]
                steps = self.engine.split(whole[r * count + i])[len(request.prefix) :]
                found.append(Rollout(tuple(steps), float(len(rest)), _right(next(verdicts))))
            number = self.engine.first + request.question
            self.tokens[number] = self.tokens.get(number, 0) + int(sum(rollout.length for rollout in found))
            out.append(found)
        return out


def _right(verdict: Any) -> bool | None:
    """None where the reference or the verifier is at fault: that says nothing about the answer."""
    return verdict.score > 0.5 if verdict.usable else None


def counted(rollouts: Sequence[Any]) -> tuple[int, int]:
    """(right ones, judged ones)."""
    judged = [rollout.correct for rollout in rollouts if rollout.correct is not None]
    return sum(judged), len(judged)


class AnswerValues:
    """The chance of a right answer after a prefix: the verdict where it has come to its end, rollouts elsewhere.

    Args:
      engine: turned to a chunk of problems.
      rollouts: of each prefix that goes on; 0 says 1/2 of it.
      first: see `Roller`.

    Attributes:
      verdicts: (question, steps) -> the answer is right, where it could be checked.
      roller: what makes the rollouts.
    """

    def __init__(self, engine: Engine, rollouts: int, first: int) -> None:
        self.engine, self.rollouts = engine, rollouts
        self.verdicts: dict[tuple[int, Any], bool] = {}
        self.roller = Roller(engine, first)

    def __call__(self, partials: Sequence[Any]) -> list[float]:
        """In [0, 1]; an answer that cannot be checked is worth 1/2, no answer 0."""
        ends = iter(list(self._ends([p for p in partials if p.finished])))
        going = iter(self.going([p for p in partials if not p.finished]))
        return [next(ends if p.finished else going) for p in partials]

    def going(self, partials: Sequence[Any]) -> list[float]:
        """Values of prefixes that go on."""
        from prm_jax.search import Request

        if not self.rollouts or not partials:
            return [0.5] * len(partials)
        found = self.roller([Request(p.question, p.steps) for p in partials], self.rollouts)
        counts = [counted(own) for own in found]
        return [right / judged if judged else 0.5 for right, judged in counts]

    def _ends(self, partials: Sequence[Any]) -> Iterator[float]:
        """An end without an answer (cut off for its length) is worth 0."""
        problems = [self.engine.problems[p.question] for p in partials]
        found = self.engine.task.verify_many(problems, [self.engine.text(p) for p in partials]) if partials else []
        for partial, verdict in zip(partials, found, strict=True):
            complete = self.engine.complete(partial)
            right = complete and verdict.score > 0.5
            if complete and verdict.usable:
                self.verdicts[partial.question, partial.steps] = right
            yield float(right) if verdict.usable else 0.5
