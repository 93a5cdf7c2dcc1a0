r"""LaTeX answers as tokens: what only changes the layout is dropped, and digits are never joined across a space.

The text is never evaluated. Every function here is linear in the length of its input, apart from the small
constant that the limits of ``prm_jax.verifiers.limits`` allow.
"""

import re
from fractions import Fraction
from typing import NamedTuple


class Unreadable(ValueError):
    """Text that is not an answer this package can read; the message says what was found."""


class Token(NamedTuple):
    """One token.

    Attributes:
      kind: ``"num"``, ``"name"`` (a letter or Greek letter), ``"cmd"`` (a command, without its backslash), ``"text"``
        (words), ``"op"`` (one character), or ``"and"``/``"or"``.
      text: the token as written, normalised.
      value: the exact value of a number.
      places: decimal places of a terminating decimal, None otherwise.
    """

    kind: str
    text: str
    value: Fraction | None = None
    places: int | None = None


_GROUP = "\x1f"  # stands for a comma that can only separate thousands: {,} or ,\!

_TRANSLATED = str.maketrans(
    {
        "\u2212": "-", "\ufe63": "-", "\u2013": "-", "\u2010": "-", "\u2011": "-", "\u00a0": " ", "\u2009": " ",
        "\u202f": " ", "\u2002": " ", "\u2003": " ", "\u200b": "", "\ufeff": "", "\u2062": "", "\u03c0": "\\pi ",
        "\u221e": "\\infty ", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u00f7": "\\div ",
        "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u2248": "\\approx ", "\u222a": "\\cup ",
        "\u2229": "\\cap ", "\u2205": "\\emptyset ", "\u2208": "\\in ", "\u211d": "\\mathbb{R}",
        "\u2124": "\\mathbb{Z}",
        "\u211a": "\\mathbb{Q}", "\u00b1": "\\pm ", "\u2213": "\\mp ", "\u00b2": "^2", "\u00b3": "^3",
        "\u00b0": "\\degree ", "\u2026": "\\ldots ", "\u22ef": "\\ldots ", "\u2032": "'", "\u2019": "'",
        "\u230a": "\\lfloor ", "\u230b": "\\rfloor ", "\u2308": "\\lceil ", "\u2309": "\\rceil ", "\u27e8": "\\langle ",
        "\u27e9": "\\rangle ", "\u03b8": "\\theta ", "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u03bb": "\\lambda ",
        "\u03c6": "\\phi ", "\u2236": ":",
    }
)  # fmt: skip
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_SPACES = re.compile(
    r"\\(?:quad|qquad|thinspace|enspace|medspace|thickspace|nobreakspace|hfill)(?![A-Za-z])"
    r"|(?<!\\)\\[,;: >]|(?<!\\)~|\\[hv]space\*?\s*\{[^{}]*\}"
)
_DROPPED = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|bf|it|rm|sf|tt"
    r"|bfseries|itshape|boldmath|normalfont|mathstrut|strut|unicode)(?![A-Za-z])"
    r"|\\(?:boldsymbol|mathbf|mathit|bm|underline|mathcal|mathnormal|mathop|ensuremath|mathsf|mathtt|mathfrak|emph)(?![A-Za-z])"
    r"|\\(?:color|textcolor)\s*(?:\[[^\[\]]*\])?\{[^{}]*\}"
)
_THOUSANDS_COMMA = re.compile(r"(?<=[0-9])\s*(?:\{,\}|,\s*\\!)\s*(?=[0-9]{3})")
_SYNONYMS = {
    "leq": "le", "leqslant": "le", "leqq": "le", "geq": "ge", "geqslant": "ge", "geqq": "ge", "neq": "ne", "lt": "<",
    "gt": ">", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "ast": "cdot",
    "varnothing": "emptyset", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "vee": "or",
    "lor": "or", "wedge": "and", "land": "and", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "textdollar": "$", "textdegree": "degree", "pounds": "\u00a3",
    "euro": "\u20ac", "texteuro": "\u20ac", "varphi": "phi", "varepsilon": "epsilon", "to": "rightarrow", "colon": ":",
    "smallsetminus": "setminus", "backslash": "setminus", "arsinh": "arcsinh", "arcosh": "arccosh", "lg": "log",
}  # fmt: skip

FUNCTIONS = (
    "arcsinh", "arccosh", "arctanh", "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "sinh", "cosh", "tanh",
    "coth", "sech", "csch", "asin", "acos", "atan", "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "ln",
    "sqrt", "cbrt",
)  # fmt: skip
"""Functions of one argument, also where they are written without a backslash."""

MULTIARY = ("gcd", "lcm", "max", "min", "deg", "det", "dim", "Re", "Im", "Var", "arg", "sgn", "mod", "tr", "rank")
"""Functions that are compared as symbols: the name and the arguments must agree."""

_PLAIN = ("pi", "infty", "infinity", "sqrt", *FUNCTIONS, "gcd", "lcm")
TEXT = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|texttt|textsc|textup|textnormal|text|mathrm|mbox|hbox|operatorname\*?)\s*"
    r"(?:\{([^{}]*)\}|([A-Za-z])(?![A-Za-z]))"
)
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|dot|overbar|widebar)\s*(?:\{([0-9]+)\}|([0-9]))|\(([0-9]+)\))"
)
_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]+|\.(?![0-9.]))?|\.[0-9]+)")
_COMMAS = re.compile(rf"(?!0)[0-9]{{1,3}}(?:[,{_GROUP}][0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?")
_GROUPED = re.compile(rf"[0-9]{{1,3}}(?:{_GROUP}[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?")
_SPACED = re.compile(r"(?!0)[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/]|\s*\\[dt]?frac)(?:\.[0-9]+)?")
_SCIENTIFIC = re.compile(r"[eE]([-+]?[0-9]{1,4})(?![A-Za-z0-9.])")
_DOTS = re.compile(r"\s*(?:\\ldots|\\dots|\\cdots|\.\.\.)")
_COMMAND = re.compile(r"\\([A-Za-z]+\*?|.)", re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z]+")
_NO_LETTERS = re.compile(r"[^A-Za-z]*")


def clean(latex: str) -> str:
    """LaTeX without delimiters around it, layout commands, fonts that carry no meaning, or a final full stop."""
    text = latex.translate(_TRANSLATED).strip()
    text = _unwrapped(text)
    text = _THOUSANDS_COMMA.sub(_GROUP, text)
    text = _DROPPED.sub(" ", text.replace(r"\!", ""))
    text = _SPACES.sub(" ", text).replace("{:}", ":")
    text = re.sub(r"(?:\\\\|\\)\s*$", "", text)
    return _unwrapped(text.strip())


def plain(latex: str) -> str:
    r"""The words of an answer: ``\text{June }20`` gives ``June 20``; spaces are normalised."""
    text = TEXT.sub(lambda match: match.group(1) if match.group(1) is not None else match.group(2), clean(latex))
    text = re.sub(r"\\?[{}$]|\\\Z", "", text.replace(_GROUP, ","))
    return " ".join(text.split()).strip(" .")


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

    def __init__(self, text: str, spaced_thousands: bool, known_words: frozenset[str]) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.found: list[Token] = []
        self.spaced_thousands = spaced_thousands
        self.known_words = known_words

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
        digits = re.sub(rf"[, {_GROUP}]", "", match.group())
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
        if bare in ("and", "or"):
            self._add(bare, bare)
        elif words.strip("()") in FUNCTIONS:
            self._add("cmd", words)
        elif _NO_LETTERS.fullmatch(words):
            inner = _Reader(words, self.spaced_thousands, self.known_words)
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
        name = match.group(1)
        name = _SYNONYMS.get(name, name)
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
            self._operator({"{": "\\{", "}": "\\}", "|": "norm"}.get(name, name), width=0)
        else:
            self._add("cmd", name)

    def _letters(self, run: str) -> None:
        """A run of letters: a word that is known, a function, or single letters."""
        self.at += len(run)
        if run.lower() in ("and", "or"):
            self._add(run.lower(), run.lower())
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


def _unwrapped(text: str) -> str:
    """Without math delimiters, emphasis and one full stop around the text."""
    for _ in range(6):
        before = text
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for left, right in _WRAPPERS:
            inner = text[len(left) : -len(right)]
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                if left not in inner.replace("\\$", "") and not inner.endswith("\\"):
                    text = inner.strip()
        if text == before:
            break
    return text


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
