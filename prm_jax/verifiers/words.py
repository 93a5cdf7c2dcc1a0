r"""Answers in words: references that are not mathematics, letters of choices, and texts with a meaning of their own."""

import re

from prm_jax.verifiers.expressions import number
from prm_jax.verifiers.forms import EMPTY, REALS, Based, Colon, Form
from prm_jax.verifiers.latex import FUNCTIONS, TEXT, Unreadable, clean, plain

_BASES = dict(
    zip(
        "two three four five six seven eight nine ten twelve sixteen".split(),
        (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16),
        strict=True,
    )
)
_BASED = re.compile(
    r"\(?([0-9A-Fa-f]+(?:\.[0-9A-F]+)?)\)?\s*(?:_\s*\{?\s*\(?|\s+base\s+|_?\{?base\s*)([0-9]{1,2}|[a-z]+)\)?\s*\}?",
    re.ASCII,
)
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s*m\.?)?(?: ?o'?clock)?", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*(?:\.?,? [A-Za-z]+(?:['-][A-Za-z]+)*)*")
_ASSIGNED = re.compile(r"[A-Za-z](?:_\{?\w{1,3}\}?)?\s*=\s*")
_SHORT = ("yes", "no", "odd")
_GENERIC_UNIT = re.compile(r"\s(?:square |cubic )?units?$")
_SPECIAL: dict[str, Form] = {
    **dict.fromkeys(
        ("all real numbers", "all reals", "real numbers", "all real", "any real number", "reals",
         "set of all real numbers"),
        REALS,
    ),
    **dict.fromkeys(
        ("empty set", "no solution", "no solutions", "there is no solution", "there are no solutions",
         "no real solutions", "no real solution"),
        EMPTY,
    ),
}  # fmt: skip
_CHOICE = re.compile(r"\(?\s*([A-J])\s*\)?")
_CHOSEN = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?:\(\s*([A-Za-z])\s*\)|([A-Za-z])(?:[).:]|$))\s*(.*)", re.IGNORECASE
)
_SECOND = re.compile(r"(?<![A-Za-z])(?:[A-J]|or|and|not|either|nor)(?![A-Za-z])")


def special_form(words: str) -> Form | None:
    """The form of a text that has one as a whole: a number in a base, a time of day, "no solution"; None for others."""
    if special := _SPECIAL.get(words.lower().replace("the ", "")):
        return special
    if found := _BASED.fullmatch(words.replace("{", "").replace("}", "")):
        base = str(_BASES.get(found.group(2), found.group(2)))
        if base.isdigit() and all(int(digit, 36) < int(base) for digit in found.group(1).replace(".", "")):
            return based(found.group(1), base)
    if clock := _CLOCK.fullmatch(words):
        parts = tuple(number(int(part)) for part in clock.groups()[:3] if part)
        return Colon(parts, (clock.group(4) or "").lower())
    return None


def choice(gold: str) -> str | None:
    r"""The letter of a reference that is a choice: ``E``, ``(E)``, ``\text{(E)}``; None for any other."""
    match = _CHOICE.fullmatch(plain(gold))
    return match.group(1) if match else None


def chosen(answer: str, gold: str, *, strict: bool) -> str:
    """What is wrong with an answer where the reference is a choice; "" for the same letter.

    Text may follow the letter (``E: five``) unless ``strict``, as long as it names no other.
    """
    letter, match = choice(gold), _CHOSEN.fullmatch(unassigned(plain(answer)))
    if match is None:
        return "not a choice"
    found, rest = match.group(1) or match.group(2), match.group(3)
    marked = plain(gold) != letter or "\\" in gold  # a bare letter may be a variable, whose case matters
    if not (found == letter or marked and found.upper() == letter):
        return "another choice"
    if rest and (strict or _SECOND.search(rest) or rest[0] in "+-=*/^_<>,;"):
        return "more than a choice"
    return ""


def is_words(latex: str) -> bool:
    r"""Whether a reference is words rather than mathematics: ``\text{east}``, ``east``, ``\text{June 20}``.

    Up to three letters without ``\text`` may be a product; a longer run is a word, which its anagram does not equal.
    """
    words = plain(latex)
    if not re.search("[A-Za-z]", words) or words.lower() in _SPECIAL:
        return False
    cleaned = clean(latex)
    marked = [match.group(1) or match.group(2) or "" for match in TEXT.finditer(cleaned)]
    if marked:
        rest = TEXT.sub("", cleaned)
        if re.search(r"[^\s0-9.,()']", rest) or any(content.strip() in FUNCTIONS for content in marked):
            return False
        return not (_CLOCK.fullmatch(words) or _BASED.fullmatch(words)) and words.lstrip("(")[:1].isalpha()
    if not _WORDS.fullmatch(words) or "\\" in cleaned or "_" in cleaned:
        return False
    split = words.split()
    return (any(len(word) > 3 for word in split) or words.lower() in _SHORT) and not any(
        word in (*FUNCTIONS, "pi") for word in split
    )


def unassigned(words: str) -> str:
    """Words without a name before them: ``n = east`` is ``east``."""
    return _ASSIGNED.sub("", words, count=1) if _ASSIGNED.match(words) else words


def same_words(wanted: str, found: str) -> bool:
    """Whether two texts consist of the same words, in any case, without articles, brackets and punctuation."""
    return _bare_words(wanted) == _bare_words(found)


def _bare_words(latex: str) -> str:
    words = re.sub(r"[(){}\\$,.;:!\"'*]", " ", unassigned(plain(latex)).lower()).split()
    text = " ".join(word for word in words if word not in ("the", "a", "an", "option", "choice"))
    return _GENERIC_UNIT.sub("", text)


def based(digits: str, base: str) -> Form:
    """Digits in a base that is written as a number or a word."""
    known = str(_BASES.get(base.lower(), base))
    if not known.isdigit() or not 2 <= int(known) <= 36:
        raise Unreadable(f"{base!r} is not a base")
    return Based(digits.lstrip("0").upper() or "0", known)
