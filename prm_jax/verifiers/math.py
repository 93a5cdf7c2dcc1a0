"""Mathematical answers: strict rules and cheap comparisons here, everything else in a pool of processes.

Model text is never evaluated.  What may be compared is limited before any parser sees it, because a parser
can be made to work for ever by a short text.
"""

import re
from collections.abc import Sequence

from prm_jax.verifiers.extraction import ANSWER_MARKERS, Where, find_answer
from prm_jax.verifiers.math_pool import MathPool
from prm_jax.verifiers.number import Percent, parse_number
from prm_jax.verifiers.verdict import Verdict, broken, failed, passed

MAX_LENGTH = 300
MAX_DIGITS = 60
MAX_EXPONENT_DIGITS = 4
MAX_DEPTH = 12
"""Limits on one answer: characters, digits in a row, digits in an exponent, and brackets within brackets."""

_REPLACED = (
    (re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|(?<!\\)\\[,!;: ]|\u00a0|\u2009"), ""),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"[\u2212\ufe63]"), "-"),
    (re.compile("\u03c0|(?<![\\\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile("\u221e|(?<![\\\\A-Za-z])(?:infty|infinity)(?![A-Za-z])"), r"\\infty "),
    (re.compile("\u00b0|\\^\\s*\\{?\\s*\\\\circ\\s*\\}?"), ""),
    (re.compile("\u221a\\s*\\(?([0-9]+)\\)?"), r"\\sqrt{\1}"),
    (re.compile("\u00d7|(?<!\\*)\\*(?!\\*)"), r"\\cdot "),
)
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?'?")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_HEDGE = re.compile(r"(?<![A-Za-z\\])(?:or|and|either|maybe|not)(?![A-Za-z])", re.IGNORECASE)
_SEVERAL = re.compile(r"[,;]|\\pm|\\mp|\\cup|\\lor|\\land")
_WORDS = re.compile(r"\(?[A-Za-z]+(?:[ -][A-Za-z]+)*\)?")
_LETTER = re.compile(r"\(([A-Za-z])\)")


class MathVerifier:
    r"""Judges answers by their mathematical value.

    In this order: no answer or one beyond the limits fails; equal text passes; two numbers are compared
    here; words (``\text{east}``, choices such as ``(A)``) must be the same words; an answer that hedges
    (``3 or 5``) or gives an equation between values (``5=5``) where the reference gives a value fails,
    while ``x=5`` counts as 5; the rest goes to ``MathPool``.

    Args:
      extract: where the answer stands, as for ``find_answer``; the last complete box by default.
      markers: for ``extract="marker"``.
      percent: what a percent sign means where both sides are numbers.
      pool: the pool to use; by default one of its own, whose processes start when they are first needed.
      timeout: seconds that a comparison may take.

    Raises:
      MissingExtraError: when math-verify is not installed.
    """

    def __init__(
        self,
        *,
        extract: Where = "boxed",
        markers: tuple[str, ...] = ANSWER_MARKERS,
        percent: Percent = "strip",
        pool: MathPool | None = None,
        timeout: float = 2.0,
    ) -> None:
        self.extract = extract
        self.markers = markers
        self.percent = percent
        self.pool = pool or MathPool(timeout=timeout)

    def verify(self, response: str, gold: str, timeout: float | None = None) -> Verdict:
        """The verdict on one response."""
        return self.verify_many([response], [gold], timeout)[0]

    def verify_many(
        self, responses: Sequence[str], golds: Sequence[str], timeout: float | None = None
    ) -> list[Verdict]:
        """One verdict a pair, in order.

        Args:
          responses: any texts.
          golds: reference answers in LaTeX or plain text, without a box.
          timeout: seconds a comparison, instead of the verifier's.

        Returns:
          Verdicts.  ``"error"`` is the reference's fault or the checker's, never the answer's.
        """
        verdicts: list[Verdict | None] = []
        pairs: list[tuple[str, str]] = []
        for response, gold in zip(responses, golds, strict=True):
            outcome = self._here(response, gold)
            if isinstance(outcome, tuple):
                pairs.append(outcome)
                verdicts.append(None)
            else:
                verdicts.append(outcome)
        compared = iter(self.pool.compare_many(pairs, timeout) if pairs else [])
        return [next(compared) if verdict is None else verdict for verdict in verdicts]

    def close(self) -> None:
        """Ends the pool's processes."""
        self.pool.close()

    def _here(self, response: str, gold: str) -> Verdict | tuple[str, str]:
        """A verdict, or the pair (answer, gold) for the pool."""
        if reason := _beyond_limits(gold) or ("" if gold.strip() else "is empty"):
            return broken(f"the reference answer {reason}")
        answer = find_answer(response, self.extract, markers=self.markers)
        if answer is None:
            return failed("no answer")
        if reason := _beyond_limits(answer):
            return failed(f"the answer {reason}")
        worded = r"\text" in gold or r"\mathrm" in gold
        answer, gold = normalise(answer), normalise(gold)
        if _bare(answer) == _bare(gold):
            return passed()
        # Three letters may be a product; a longer run of them is a word, which its anagram does not equal.
        if _WORDS.fullmatch(gold) and (worded or len(gold.strip("()")) > 3) or _LETTER.fullmatch(gold):
            same = _LETTER.sub(r"\1", answer).casefold() == _LETTER.sub(r"\1", gold).casefold()
            return passed() if same else failed()
        numbers = self._numbers(answer, gold)
        return numbers if numbers is not None else _by_rule(answer, gold)

    def _numbers(self, answer: str, gold: str) -> Verdict | None:
        """The verdict on two numbers; decimals count as rounded to six places."""
        value = parse_number(_value(answer), percent=self.percent)
        wanted = parse_number(_value(gold), percent=self.percent)
        if value is None or wanted is None:
            return None
        if "." in answer or "." in gold:
            value, wanted = round(value, 6), round(wanted, 6)
        return passed() if value == wanted else failed()


def normalise(latex: str) -> str:
    """LaTeX without what changes nothing: delimiters, spacing, fonts, degree signs, other spellings of a symbol."""
    latex = _no_full_stop(latex.strip())
    for left, right in ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$")):
        if len(latex) > len(left) + len(right) and latex.startswith(left) and latex.endswith(right):
            latex = latex[len(left) : -len(right)]
    for pattern, replacement in _REPLACED:
        latex = pattern.sub(replacement, latex)
    return _no_full_stop(latex.strip())


def _by_rule(answer: str, gold: str) -> Verdict | tuple[str, str]:
    """What the rules on form decide; else the pair."""
    several = _HEDGE.search(gold) or _SEVERAL.search(gold)
    if "$" in answer or (_HEDGE.search(answer) and not several):
        return failed("more than one answer")
    if _EQUALS.search(answer) and not re.search(r"[=<>]|\\[lg]eq?|\\neq?|\\in(?![a-z])", gold):
        name, value = _EQUALS.split(answer, maxsplit=1)
        if not _NAME.fullmatch(name.strip()) or _EQUALS.search(value):
            return failed("an equation where a value was asked for")
        answer = value.strip()
        if _bare(answer) == _bare(gold):
            return passed()
    return answer, gold


def _no_full_stop(text: str) -> str:
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def _value(latex: str) -> str:
    """The right side of ``x=5``; anything else as it is."""
    sides = _EQUALS.split(latex)
    return sides[1] if len(sides) == 2 and _NAME.fullmatch(sides[0].strip()) else latex


def _bare(latex: str) -> str:
    return "".join(latex.split())


def _beyond_limits(text: str) -> str:
    """What is too much about a text, to be read behind "the answer"; "" if nothing is."""
    if len(text) > MAX_LENGTH:
        return f"has more than {MAX_LENGTH} characters"
    if re.search(rf"[0-9]{{{MAX_DIGITS + 1}}}", text):
        return f"has more than {MAX_DIGITS} digits in a row"
    if re.search(rf"(?:\^|\*\*)\s*[{{(]?\s*[-+]?\s*[0-9]{{{MAX_EXPONENT_DIGITS + 1}}}", text):
        return f"has an exponent of more than {MAX_EXPONENT_DIGITS} digits"
    if re.search(r"\^\s*\{[^{}]*\^\s*\{[^{}]*\^", text):
        return "stacks powers more than three high"
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"has brackets nested more than {MAX_DEPTH} deep"
    if any(ord(c) < 32 and c not in "\t\n\r" or 0xD800 <= ord(c) < 0xE000 for c in text):
        return "has control characters"
    return ""
