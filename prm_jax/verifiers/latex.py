r"""LaTeX answers without what only changes their layout.

The text is never evaluated. Every function here is linear in the length of its input, apart from the small
constant that the limits of ``prm_jax.verifiers.limits`` allow.
"""

import functools
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


GROUP = "\x1f"  # stands for a comma that can only separate thousands: {,} or ,\!

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
        "\u03c6": "\\phi ", "\u2236": ":", "\u221a": "\\sqrt ",
    }
)  # fmt: skip
_WRAPPERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("`", "`"),
)
_SPACES = re.compile(
    r"\\q?quad|\\(?:thinspace|enspace|medspace|thickspace|nobreakspace|hfill)(?![A-Za-z])"
    r"|(?<!\\)\\[,;: >]|(?<!\\)~|\\[hv]space\*?\s*\{[^{}]*\}"
)
_DROPPED = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|bf|it|rm|sf|tt"
    r"|bfseries|itshape|boldmath|normalfont|mathstrut|strut|tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![A-Za-z])"
    r"|\\(?:boldsymbol|mathbf|mathit|bm|underline|mathcal|mathnormal|mathop|ensuremath|mathsf|mathtt|mathfrak"
    r"|emph|mathbin|mathrel|mathord|pmb|mathbb(?=\s*\{?[0-9]))(?![A-Za-z])"
    r"|\\[hv]?phantom\s*\{[^{}]*\}"
    r"|\\(?:color|textcolor)\s*(?:\[[^\[\]]*\])?\{[^{}]*\}"
)
_MONEY = re.compile(
    r"(?:\\(?:math|text)dollar(?![A-Za-z])|\\text\s*\{\s*(?:\\textdollar|US\\?\$|USD|EUR|GBP|Rs\.?)\s*\}|(?<![A-Za-z])\{\\\$\}|US\\\$|USD|EUR|GBP"
    r"|Rs\.?)(?=\s*[0-9.])"
)
_UNIT_FRACTION = re.compile(
    r"\\[dt]?frac\s*\{\s*\\(?:text|mathrm)\{([^{}]*)\}\s*\}\s*\{\s*\\(?:text|mathrm)\{([^{}]*)\}\s*\}"
)
_PLAIN_UNIT = re.compile(r"(?<=[0-9}])\s+((?:k?m|cm|ft|mi)/(?:s|h|hr|min)|(?:square|cubic|sq\.?) [a-z]+)(?![A-Za-z])")
_ROW_SPACE = re.compile(r"(\\\\)\s*\[[0-9.]+\s*(?:pt|em|ex|mm|cm)\]")
_ORDINAL = re.compile(r"(?<=[0-9])\s*\^?\s*\{?\s*\\text(?:rm)?\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?")
_PARAMETER = re.compile(r"[,\s]*\(\s*([A-Za-z])\s*\\in\s*(\\mathbb\s*\{?[ZNRQ]\}?)\s*\)\s*$")
_DOLLAR = re.compile(r"(?<!\\)\$")
_THOUSANDS_COMMA = re.compile(r"(?<=[0-9])\s*(?:\{,\}|,\s*\\!)\s*(?=[0-9]{3})")
FUNCTIONS = (
    "arcsinh", "arccosh", "arctanh", "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "sinh", "cosh", "tanh",
    "coth", "sech", "csch", "asin", "acos", "atan", "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "ln",
    "sqrt", "cbrt",
)  # fmt: skip
"""Functions of one argument, also where they are written without a backslash."""

MULTIARY = ("gcd", "lcm", "max", "min", "deg", "det", "dim", "Re", "Im", "Var", "arg", "sgn", "mod", "tr", "rank")
"""Functions that are compared as symbols: the name and the arguments must agree."""

TEXT = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|texttt|textsc|textup|textnormal|text|mathrm|mbox|hbox|operatorname\*?)\s*"
    r"(?:\{([^{}]*)\}|([A-Za-z])(?![A-Za-z]))"
)


@functools.lru_cache(maxsize=8192)
def clean(latex: str) -> str:
    """LaTeX without delimiters around it, layout commands, fonts that carry no meaning, or a final full stop."""
    text = latex.translate(_TRANSLATED).strip()
    text = _unwrapped(text)
    if (dollars := _DOLLAR.findall(text)) and len(dollars) % 2 == 0:
        text = _DOLLAR.sub(" ", text)  # formulas within text: $21$ or $11$
    text = _THOUSANDS_COMMA.sub(GROUP, _ORDINAL.sub("", text))
    text = _DROPPED.sub(" ", text.replace(r"\!", ""))
    text = _ROW_SPACE.sub(r"\1", _UNIT_FRACTION.sub(r"\\text{\1/\2}", _MONEY.sub(r"\\$ ", text)))
    text = re.sub(r"(?<![A-Za-z])\{:\}|\\colon(?![A-Za-z])", ":", _SPACES.sub(" ", text))
    text = _PARAMETER.sub(r", \1 \\in \2", text)
    text = _PLAIN_UNIT.sub(r" \\text{\1}", text)
    text = re.sub(r"(?:\\\\|\\)\s*$", "", text)
    return _unwrapped(text.strip())


def plain(latex: str) -> str:
    r"""The words of an answer: ``\text{June }20`` gives ``June 20``; spaces are normalised."""
    text = TEXT.sub(lambda match: match.group(1) if match.group(1) is not None else match.group(2), clean(latex))
    text = re.sub(r"\\?[{}$]|\\\Z", "", text.replace(GROUP, ","))
    return " ".join(text.split()).strip(" .")


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
