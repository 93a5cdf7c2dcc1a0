"""LaTeX answers as tokens: digits are never joined across a space."""

import re
from fractions import Fraction

from prm_jax.verifiers.latex import FUNCTIONS, GROUP, MULTIARY, TEXT, Token, Unreadable, clean

_SYNONYMS = {
    "leq": "le", "leqslant": "le", "leqq": "le", "geq": "ge", "geqslant": "ge", "geqq": "ge", "neq": "ne", "lt": "<",
    "gt": ">", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "ast": "cdot",
    "varnothing": "emptyset", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "vee": "or",
    "lor": "or", "wedge": "and", "land": "and", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "textdollar": "$", "textdegree": "degree", "pounds": "\u00a3",
    "euro": "\u20ac", "texteuro": "\u20ac", "varphi": "phi", "varepsilon": "epsilon", "to": "rightarrow", "colon": ":",
    "smallsetminus": "setminus", "backslash": "setminus", "arsinh": "arcsinh", "arcosh": "arccosh", "lg": "log",
    "tg": "tan", "ctg": "cot", "arctg": "arctan", "arcctg": "arccot", "cr": "\\",
}  # fmt: skip

_PLAIN = ("pi", "infty", "infinity", "sqrt", *FUNCTIONS, "gcd", "lcm")
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|dot|overbar|widebar)\s*(?:\{([0-9]+)\}|([0-9]))|\(([0-9]+)\))"
)
_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]+|\.(?![0-9.]))?|\.[0-9]+)")
_COMMAS = re.compile(rf"(?!0)[0-9]{{1,3}}(?:[,{GROUP}][0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?")
_GROUPED = re.compile(rf"[0-9]{{1,3}}(?:{GROUP}[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?")
_SPACED = re.compile(r"(?!0)[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/]|\s*\\[dt]?frac)(?:\.[0-9]+)?")
_SCIENTIFIC = re.compile(r"[eE]([-+]?[0-9]{1,4})(?![A-Za-z0-9.])")
_DOTS = re.compile(r"\s*(?:\\ldots|\\dots|\\cdots|\.\.\.)")
_COMMAND = re.compile(r"\\([A-Za-z]+\*?|.)", re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z]+")
_NO_LETTERS = re.compile(r"[^A-Za-z]*")


def tokens(latex: str, *, spaced_thousands: bool = True, known_words: frozenset[str] = frozenset()) -> list[Token]:
    r"""The tokens of an answer.

    Args:
      latex: the answer.
      spaced_thousands: read ``70 000`` outside brackets as one number.
      known_words: words (units) that need no ``\text`` to count as words after a value.

    Raises:
      Unreadable: for a number followed by dots that do not repeat a block.
    """
    reader = _Reader(clean(latex), spaced_thousands, known_words)
    reader.read()
    return reader.found


class _Reader:
    """The state of ``tokens``: where it is, how deep, and what it found."""

    def __init__(
        self, text: str, spaced_thousands: bool, known_words: frozenset[str], *, in_text: bool = False
    ) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.found: list[Token] = []
        self.spaced_thousands = spaced_thousands
        self.known_words = known_words
        self.in_text = in_text

    def read(self) -> None:
        while self.at < len(self.text):
            character = self.text[self.at]
            if character.isspace():
                self.at += 1
            elif character.isascii() and (character.isdigit() or (character == "." and self._decimal_follows())):
                self._number()
            elif match := TEXT.match(self.text, self.at):
                self.at = match.end()
                self._words(match.group(1) if match.group(1) is not None else match.group(2))
            elif character == "\\":
                self._command()
            elif match := _LETTERS.match(self.text, self.at):
                self._letters(match.group())
            elif self.text.startswith("...", self.at):
                self.at += 3
                self._add("cmd", "ldots")
            else:
                self._operator(character)

    def _decimal_follows(self) -> bool:
        following = self.text[self.at + 1 : self.at + 2]
        return following.isdigit() or bool(_REPEATING.match(self.text, self.at))

    def _number(self) -> None:
        if match := _REPEATING.match(self.text, self.at):
            self.at = match.end()
            value = _repeating(match.group(1), match.group(2), match.group(3) or match.group(4) or match.group(5))
            self._add("num", match.group(), value)
            return
        patterns = [_GROUPED] if self.depth else [_COMMAS, *([_SPACED] if self.spaced_thousands else [])]
        match = next((found for pattern in patterns if (found := pattern.match(self.text, self.at))), None)
        match = match or _NUMBER.match(self.text, self.at)
        if match is None:
            raise Unreadable(f"{self.text[self.at : self.at + 10]!r} is not a number")
        self.at = match.end()
        digits = re.sub(rf"[, {GROUP}]", "", match.group())
        _, dot, decimals = digits.partition(".")
        if dot and (dots := _DOTS.match(self.text, self.at)):
            self.at = dots.end()
            self._add("num", digits + "...", _from_dots(digits))
            return
        value = Fraction(digits.removesuffix("."))
        if exponent := _SCIENTIFIC.match(self.text, self.at):
            self.at = exponent.end()
            power = int(exponent.group(1))
            self._add("num", f"{digits}e{power}", value * Fraction(10) ** power)
            return
        self._add("num", digits.removesuffix("."), value, len(decimals) if decimals else None)

    def _words(self, content: str) -> None:
        words = " ".join(content.replace("\\ ", " ").split())
        bare = words.strip(" ,.;").lower()
        if not bare:
            return
        if bare in ("and", "or"):
            self._add(bare, bare)
        elif words == "to" and self.found:
            self._add("op", ":")  # 3 to 4 is a ratio
        elif _SYNONYMS.get(words, words) in (*FUNCTIONS, *MULTIARY):
            self._add("cmd", _SYNONYMS.get(words, words))
        elif _NO_LETTERS.fullmatch(words) or words[:1].isdigit():
            inner = _Reader(words, self.spaced_thousands, self.known_words, in_text=not _NO_LETTERS.fullmatch(words))
            inner.depth = self.depth
            inner.read()
            self.found.extend(inner.found)
        else:
            self._add("text", words)

    def _command(self) -> None:
        match = _COMMAND.match(self.text, self.at)
        if match is None:
            raise Unreadable("a backslash without a command")
        self.at = match.end()
        written = match.group(1)
        name = _SYNONYMS.get(written, written)
        if name in ("mathbb", "Bbb"):
            letter = re.compile(r"\s*(?:\{\s*([A-Za-z])\s*\}|([A-Za-z]))").match(self.text, self.at)
            if letter is None:
                raise Unreadable(r"\mathbb without a letter")
            self.at = letter.end()
            self._add("cmd", "set" + (letter.group(1) or letter.group(2)))
        elif name in ("and", "or"):
            self._add(name, name)
        elif name == "\\":
            self._add("cmd", "newline")
        elif len(name) == 1 and not name.isalpha():
            braces = {"{": "\\{", "}": "\\}"}.get(name, name)
            self._operator("norm" if written == "|" else braces, width=0)
        else:
            self._add("cmd", name)

    def _letters(self, run: str) -> None:
        """A run of letters: a word that is known, a function, or single letters."""
        self.at += len(run)
        if run.lower() in ("and", "or"):
            self._add(run.lower(), run.lower())
            return
        if self.in_text:
            self._words(run)
            return
        if run.lower() in self.known_words and self.found and self.found[-1].text != "_":
            self._add("text", run)
            return
        start = 0
        while start < len(run):
            name = next((word for word in _PLAIN if run.startswith(word, start)), None)
            if name and not (self.found and self.found[-1].text in ("^", "_")):
                self._add("cmd", "infty" if name == "infinity" else name)
                start += len(name)
            else:
                self._add("name", run[start])
                start += 1

    def _operator(self, character: str, width: int = 1) -> None:
        self.at += width
        if width and character == "*" and self.text.startswith("*", self.at):
            self.at += 1
            character = "^"
        elif width and character in "<>!" and self.text.startswith("=", self.at):
            self.at += 1
            self._add("cmd", {"<": "le", ">": "ge", "!": "ne"}[character])
            return
        self.depth += (character in ("(", "[", "\\{")) - (character in (")", "]", "\\}") and self.depth > 0)
        self._add("op", character)

    def _add(self, kind: str, text: str, value: Fraction | None = None, places: int | None = None) -> None:
        self.found.append(Token(kind, text, value, places))


def _repeating(whole: str, fixed: str, block: str) -> Fraction:
    """``whole.fixed block block block ...``."""
    start = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return start + Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(fixed))


def _from_dots(digits: str) -> Fraction:
    """``0.333...``: a block that is shown at least twice (three times when it is one digit) repeats for ever."""
    whole, _, decimals = digits.partition(".")
    for size in range(1, len(decimals) // 2 + 1):
        block = decimals[-size:]
        times = 3 if size == 1 else 2
        if len(decimals) >= times * size and decimals.endswith(block * times):
            rest = decimals
            while rest.endswith(block):
                rest = rest[: -len(block)]
            return _repeating(whole, rest, block)
    raise Unreadable(f"{digits}... does not show which digits repeat")
