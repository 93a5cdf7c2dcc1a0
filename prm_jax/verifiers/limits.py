"""What one answer may contain. Everything larger is refused before any parser sees it."""

import re

MAX_LENGTH = 300
"""Characters of one answer or reference."""
MAX_DIGITS = 60
"""Digits in a row."""
MAX_EXPONENT_DIGITS = 4
"""Digits of an exponent."""
MAX_DEPTH = 12
"""Brackets within brackets."""
MAX_RESPONSE = 200_000
"""Characters of a response that are searched for an answer, counted from its end."""

_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_EXPONENT = re.compile(rf"(?:\^|\*\*)\s*[{{(]?\s*[-+]?\s*[0-9]{{{MAX_EXPONENT_DIGITS + 1}}}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_TOWER = re.compile(r"\^\s*\{[^{}]*\^\s*\{[^{}]*\^")


def excess(text: str) -> str:
    """Which limit a text exceeds, as the end of a sentence ("has more than ..."); "" when it is within all of them."""
    if len(text) > MAX_LENGTH:
        return f"has more than {MAX_LENGTH} characters"
    if _DIGITS.search(text):
        return f"has more than {MAX_DIGITS} digits in a row"
    if _EXPONENT.search(text):
        return f"has an exponent of more than {MAX_EXPONENT_DIGITS} digits"
    if _TOWER.search(text) or text.count("^") > 60:
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


def unbalanced(text: str) -> bool:
    r"""Whether braces do not match; ``\{`` and ``\}`` do not count."""
    depth = 0
    for match in _BRACE.finditer(text):
        depth += (match.group() == "{") - (match.group() == "}")
        if depth < 0:
            return True
    return depth > 0
