"""Mathematical answers: what can be decided exactly is decided here, everything else in a pool of processes.

Model text is never evaluated. What may be compared is limited before any parser sees it, because a short text can
keep a computation busy for ever.
"""

import functools
import re
from collections.abc import Sequence
from typing import TypeAlias

from prm_jax.verifiers.comparison import Comparison, ExactLeaves, Undecided
from prm_jax.verifiers.extraction import ANSWER_MARKERS, When, Where, check_place, find_candidates
from prm_jax.verifiers.latex import Unreadable, clean, plain
from prm_jax.verifiers.limits import excess
from prm_jax.verifiers.math_pool import MathPool
from prm_jax.verifiers.reading import read
from prm_jax.verifiers.verdict import NO_ANSWER, Mode, Verdict, broken, check_choice, failed, judge_all, passed
from prm_jax.verifiers.words import choice, chosen, is_words, same_words

_Pair: TypeAlias = tuple[str, str]
_AFTER_COMMA = re.compile(r",\s+")


class MathVerifier:
    r"""Judges answers by their mathematical value.

    Words (``\text{east}``) must be the same words, and a choice (``\text{(A)}``) the same letter. Everything else is
    read as a value, list, set, tuple, interval, union, relation, matrix, ratio, time or number in a base, with an
    optional unit, and compared part by part: rational numbers exactly, other expressions to many digits by
    ``MathPool``. See ``docs/verifiers.md`` for the table of what each mode accepts.

    Args:
      extract: where the answer is, as for ``find_candidates``; complete boxes by default.
      markers: for ``extract="marker"`` and ``"ladder"``.
      mode: ``"strict"`` accepts no decimal rounding, no missing or additional unit or base, no text after a choice, and
        no percentage for a ratio.
      several: what several candidates are: ``"refuse"`` passes them only when all are right, ``"last"`` judges the
        last one.
      pool: the pool to use; by default a new one, whose processes start on first use.
      timeout: seconds that a comparison may take.

    Raises:
      MissingExtraError: when mpmath is not installed.
    """

    def __init__(
        self,
        *,
        extract: Where = "boxed",
        markers: tuple[str, ...] = ANSWER_MARKERS,
        mode: Mode = "lenient",
        several: When = "refuse",
        pool: MathPool | None = None,
        timeout: float = 2.0,
    ) -> None:
        check_place(extract, several)
        check_choice("mode", mode, ("lenient", "strict"))
        self.extract = extract
        self.markers = markers
        self.mode = mode
        self.several = several
        self.pool = pool or MathPool(timeout=timeout)

    def verify(self, response: str, gold: str, timeout: float | None = None) -> Verdict:
        """The verdict on one response."""
        return self.verify_many([response], [gold], timeout)[0]

    def verify_many(
        self, responses: Sequence[str], golds: Sequence[str], timeout: float | None = None
    ) -> list[Verdict]:
        """One verdict per pair, in order.

        Args:
          responses: any texts.
          golds: reference answers in LaTeX or plain text, without a box.
          timeout: seconds per comparison, instead of the verifier's.

        Returns:
          Verdicts. ``"error"`` is the fault of the reference or the checker, never of the answer.
        """
        found = [
            find_candidates(response, self.extract, markers=self.markers, several=self.several)
            for response in responses
        ]
        outcomes = [
            [self._here(answer, gold) for answer in answers] for answers, gold in zip(found, golds, strict=True)
        ]
        pairs = [outcome for row in outcomes for outcome in row if not isinstance(outcome, Verdict)]
        compared = iter(self.pool.compare_many(pairs, timeout, strict=self.mode == "strict") if pairs else [])
        verdicts = [[o if isinstance(o, Verdict) else next(compared) for o in row] for row in outcomes]
        return [judge_all(row) if row else _unanswered(gold) for row, gold in zip(verdicts, golds, strict=True)]

    def check_references(self, golds: Sequence[str]) -> list[str]:
        """What is wrong with each reference, as ``check_reference`` says it, or that its value takes too long.

        References that may be slow are evaluated in the pool, which a task does once when it loads.
        """
        faults = [check_mathematics(gold) for gold in golds]
        slow = [index for index, fault in enumerate(faults) if not fault and may_be_slow(golds[index])]
        if slow:
            verdicts = self.pool.compare_many([(golds[index], golds[index]) for index in slow])
            for index, verdict in zip(slow, verdicts, strict=True):
                faults[index] = "" if verdict.usable else verdict.detail
        return faults

    def close(self) -> None:
        """Ends the pool's processes."""
        self.pool.close()

    def _here(self, answer: str, gold: str) -> Verdict | _Pair:
        """A verdict, or the pair (answer, gold) for the pool."""
        if reason := reference_fault(gold):
            return broken(f"the reference answer {reason}")
        answer = unboxed(answer)
        if not answer.strip():
            return failed(NO_ANSWER)
        if reason := excess(answer):
            return failed(f"the answer {reason}")
        strict = self.mode == "strict"
        if _compact(answer) == _compact(gold) or (plain(answer) == plain(gold) and plain(gold).isalpha()):
            return passed()
        if choice(gold):
            reason = chosen(answer, gold, strict=strict)
            return failed(reason) if reason else passed()
        if is_words(gold):
            return passed() if same_words(gold, answer) else failed("other words")
        try:
            wanted = read(gold, strict=strict)
        except Unreadable as error:
            return broken(f"the reference answer cannot be read: {error}")
        try:
            same = Comparison(ExactLeaves(), strict).same(wanted, read(answer, strict=strict))
        except Unreadable as error:
            return failed(f"the answer cannot be read: {error}")
        except Undecided:
            return answer, gold
        except (RecursionError, MemoryError) as error:
            return failed(f"the answer broke the comparison: {type(error).__name__}")
        return passed() if same else failed()


@functools.lru_cache(maxsize=65536)
def reference_fault(gold: str) -> str:
    """Why a reference cannot be used at all, to follow "the reference answer"; "" if it can."""
    return excess(gold) or ("" if gold.strip() else "is empty")


@functools.lru_cache(maxsize=65536)
def check_mathematics(gold: str) -> str:
    """Why no answer but the same text can pass against a reference; "" if others can."""
    if fault := reference_fault(gold):
        return f"it {fault}"
    if choice(gold) or is_words(gold):
        return ""
    try:
        read(gold)
    except Unreadable as error:
        return f"it cannot be read as mathematics: {error}"
    return ""


def may_be_slow(gold: str) -> bool:
    """Whether evaluating a reference that can be read may take long: powers of powers, factorials, exponentials."""
    if choice(gold) or is_words(gold):
        return False
    return gold.count("^") + gold.count("!") + gold.count("exp") + gold.count("binom") > 1 and bool(
        re.search(r"[0-9]{3}|[\^!].*[\^!]", gold)
    )


def unboxed(answer: str) -> str:
    """The content of the one box in an answer; the answer itself without one; "" with several different ones."""
    if "boxed" not in answer and "fbox" not in answer:
        return answer
    candidates = find_candidates(answer, "boxed")
    return candidates[0] if len(candidates) == 1 else ""


def _compact(latex: str) -> str:
    """The cleaned text with commas written in one way: ``1, 2`` as ``1,2``."""
    return _AFTER_COMMA.sub(",", clean(latex))


def _unanswered(gold: str) -> Verdict:
    reason = reference_fault(gold)
    return broken(f"the reference answer {reason}") if reason else failed(NO_ANSWER)
