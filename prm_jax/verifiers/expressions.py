"""Mathematical expressions: a small tree, and the parser that builds it from tokens. Nothing is evaluated here."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from prm_jax.verifiers.latex import FUNCTIONS, MULTIARY, Token, Unreadable

MAX_NODES = 400
MAX_NESTING = 40


class Expr(NamedTuple):
    """A node.

    Attributes:
      op: ``"num"``, ``"sym"``, ``"const"`` (pi, e, i, inf, deg), ``"call"``, or one of add, mul, div, neg, pow, root,
        fact, binom, log, abs, floor, ceil.
      args: the operands.
      name: of a symbol, constant or function.
      value: of a number.
      places: decimal places, of a number written as a terminating decimal.
    """

    op: str
    args: "tuple[Expr, ...]" = ()
    name: str = ""
    value: Fraction = Fraction(0)
    places: int | None = None


GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar".split()
)
_CONSTANTS = {"pi": "pi", "infty": "inf", "imath": "i"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "lfloor": "rfloor", "lceil": "rceil", "|": "|"}
_TIMES = ("cdot", "times", "*")
_STARTERS = ("frac", "sqrt", "binom", "lfloor", "lceil", *MULTIARY, *FUNCTIONS, *_CONSTANTS, *GREEK)


def symbol(name: str) -> Expr:
    """A symbol, or the constant that the letter stands for."""
    return Expr("const", name=name) if name in ("e", "i") else Expr("sym", name=name)


def number(value: Fraction | int, places: int | None = None) -> Expr:
    """A number."""
    return Expr("num", value=Fraction(value), places=places)


def parse(tokens: Sequence[Token], signs: Sequence[int] = ()) -> Expr:
    r"""The tree of an expression.

    Products may be written without a sign, but two numbers side by side are only a mixed number (``2 3/4``).

    Args:
      tokens: of the whole expression.
      signs: what each ``\pm`` means in turn, 1 or -1 (``\mp`` the opposite); without it they are not readable.

    Raises:
      Unreadable: for anything else than one complete expression.
    """
    parser = _Parser(tokens, signs)
    tree = parser.sum()
    if parser.next_is("choose"):
        parser.take()
        tree = parser.node("binom", tree, parser.sum())
    if parser.at < len(parser.tokens):
        raise Unreadable(f"{parser.tokens[parser.at].text!r} was not expected there")
    return tree


def symbols(tree: Expr) -> frozenset[str]:
    """The names of the symbols in a tree."""
    if tree.op == "sym":
        return frozenset([tree.name])
    return frozenset().union(*map(symbols, tree.args))


class _Parser:
    """Recursive descent; ``at`` is the next token."""

    def __init__(self, tokens: Sequence[Token], signs: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.signs = signs
        self.at = 0
        self.nesting = 0
        self.count = 0
        self.bars = 0

    def peek(self, ahead: int = 0) -> Token | None:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else None

    def next_is(self, *texts: str) -> bool:
        token = self.peek()
        return token is not None and token.kind in ("op", "cmd") and token.text in texts

    def take(self, *texts: str) -> Token:
        token = self.peek()
        if token is None or (texts and token.text not in texts):
            expected = f", expected {' or '.join(map(repr, texts))}" if texts else ""
            raise Unreadable(f"found {'the end' if token is None else repr(token.text)}{expected}")
        self.at += 1
        return token

    def node(self, op: str, *args: Expr, name: str = "") -> Expr:
        self.count += 1
        if self.count > MAX_NODES:
            raise Unreadable("too many terms")
        return Expr(op, args, name)

    def sum(self) -> Expr:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise Unreadable("nested too deep")
        tree = self.signed()
        while self.next_is("+", "-", "pm", "mp"):
            sign = self.sign(self.take())
            term = self.term()
            tree = self.node("add", tree, term if sign > 0 else self.node("neg", term))
        self.nesting -= 1
        return tree

    def signed(self) -> Expr:
        """A term, with or without a sign."""
        if self.next_is("+", "-", "pm", "mp"):
            sign = self.sign(self.take())
            term = self.term()
            return term if sign > 0 else self.node("neg", term)
        return self.term()

    def sign(self, token: Token) -> int:
        if token.text in ("+", "-"):
            return 1 if token.text == "+" else -1
        if not self.signs:
            raise Unreadable(r"\pm was not expected there")
        return self.signs[0] if token.text == "pm" else -self.signs[0]

    def term(self) -> Expr:
        tree = self.mixed() or self.power()
        while True:
            if self.next_is(*_TIMES):
                self.take()
                tree = self.node("mul", tree, self.factor())
            elif self.next_is("/", "div"):
                self.take()
                tree = self.node("div", tree, self.factor())
            elif self.operand_follows():
                tree = self.node("mul", tree, self.power())
            else:
                return tree

    def factor(self) -> Expr:
        """What follows a sign of multiplication or division: it may have a sign of its own."""
        if self.next_is("-"):
            self.take()
            return self.node("neg", self.power())
        return self.power()

    def operand_follows(self) -> bool:
        """Whether the next token can begin a factor without a sign before it; a number cannot."""
        token = self.peek()
        if token is None or token.kind in ("num", "and", "or"):
            return False
        if token.kind == "text":
            return len(token.text) == 1
        if token.text == "|":
            return self.bars == 0
        return token.kind == "name" or token.text in ("(", "[", "{") or token.text in _STARTERS

    def mixed(self) -> Expr | None:
        r"""A mixed number, ``2 3/4`` or ``2\frac34``; None if there is none here."""
        whole = self.peek()
        following = self.peek(1)
        if whole is None or following is None or whole.kind != "num" or whole.places is not None:
            return None
        start = self.at
        if following.kind == "num":
            slash, bottom = self.peek(2), self.peek(3)
            if slash is None or slash.text != "/" or bottom is None or bottom.kind != "num":
                raise Unreadable(f"two numbers side by side: {whole.text!r} and {following.text!r}")
            parts = (following.value, bottom.value)
            self.at += 4
        elif following.text == "frac":
            self.at += 2
            top, below = self.argument(), self.argument()
            if top.op != "num" or below.op != "num":
                self.at = start
                return None
            parts = (top.value, below.value)
        else:
            return None
        above, under = parts
        assert above is not None and under is not None and whole.value is not None
        if not 0 < above < under or any(part.denominator != 1 for part in (above, under, whole.value)):
            raise Unreadable(f"{whole.text} {above}/{under} is neither a mixed number nor a clear product")
        return number(whole.value + above / under)

    def power(self) -> Expr:
        """A base with what is written after it: powers, factorials, degrees."""
        return self.postfix(self.base())

    def postfix(self, tree: Expr) -> Expr:
        while True:
            if self.next_is("^"):
                self.take()
                if self.degrees():
                    tree = self.node("mul", tree, Expr("const", name="deg"))
                else:
                    tree = self.node("pow", tree, self.exponent())
            elif self.next_is("degree"):
                self.take()
                tree = self.node("mul", tree, Expr("const", name="deg"))
            elif self.next_is("!"):
                self.take()
                if self.next_is("!"):
                    raise Unreadable("a double factorial")
                tree = self.node("fact", tree)
            else:
                return tree

    def degrees(self) -> bool:
        r"""Takes ``\circ`` or ``{\circ}``, if that follows."""
        for texts in (("circ",), ("{", "circ", "}"), ("degree",)):
            following = [token.text for token in self.tokens[self.at : self.at + len(texts)]]
            if following == list(texts):
                self.at += len(texts)
                return True
        return False

    def exponent(self) -> Expr:
        if self.next_is("-", "+"):
            sign = self.take().text
            tree = self.exponent()
            return self.node("neg", tree) if sign == "-" else tree
        token = self.peek()
        if token is not None and token.kind == "num":
            self.at += 1
            return number(token.value or 0)
        return self.base()

    def argument(self) -> Expr:
        r"""What ``\frac`` takes: a group, or one digit or letter."""
        token = self.peek()
        if token is not None and token.kind == "num" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at] = Token("num", token.text[1:], Fraction(int(token.text[1:])))
            return number(int(token.text[0]))
        if token is not None and token.kind == "num":
            self.at += 1
            return number(token.value or 0, token.places)
        return self.base()

    def base(self) -> Expr:
        token = self.take()
        if token.kind == "num":
            return number(token.value or 0, token.places)
        if token.kind == "name" or (token.kind == "text" and len(token.text) == 1 and token.text.isalpha()):
            return self.named(token.text)
        if token.kind in ("op", "cmd"):
            if token.text in _CLOSING:
                return self.bracketed(token.text)
            if token.text in _CONSTANTS:
                return Expr("const", name=_CONSTANTS[token.text])
            if token.text in GREEK:
                return self.named(token.text)
            if token.text in ("frac", "binom"):
                op = "div" if token.text == "frac" else "binom"
                return self.node(op, self.argument(), self.argument())
            if token.text in FUNCTIONS:
                return self.function(token.text)
            if token.text in MULTIARY:
                return self.call(token.text)
        raise Unreadable(f"{token.text!r} was not expected there")

    def named(self, name: str) -> Expr:
        """A symbol with its subscript and primes; f, g and h before a bracket are functions."""
        if self.next_is("_"):
            self.take()
            name += "_" + self.subscript()
        while self.next_is("'"):
            self.take()
            name += "'"
        if name.rstrip("'") in ("f", "g", "h") and self.next_is("("):
            return self.call(name)
        return symbol(name)

    def subscript(self) -> str:
        token = self.take()
        if token.text != "{":
            return token.text
        inside = []
        while not self.next_is("}"):
            inside.append(self.take().text)
        self.take("}")
        return "".join(inside)

    def bracketed(self, opening: str) -> Expr:
        if opening == "|":
            self.bars += 1
            tree = self.sum()
            self.bars -= 1
            self.take("|")
            return self.node("abs", tree)
        bars, self.bars = self.bars, 0
        tree = self.sum()
        if opening == "{" and self.next_is("choose"):
            self.take()
            tree = self.node("binom", tree, self.sum())
        self.take(_CLOSING[opening])
        self.bars = bars
        return self.node({"lfloor": "floor", "lceil": "ceil"}[opening], tree) if opening[0] == "l" else tree

    def call(self, name: str) -> Expr:
        """A function that is compared as a symbol, with its arguments in brackets."""
        opening = self.take("(", "\\{", "[").text
        closing = {"(": ")", "[": "]", "\\{": "\\}"}[opening]
        args = [self.sum()]
        while self.next_is(","):
            self.take()
            args.append(self.sum())
        self.take(closing)
        return self.node("call", *args, name=name)

    def function(self, name: str) -> Expr:
        if name == "sqrt":
            return self.root()
        if name == "cbrt":
            return self.node("root", self.argument_of_root(), number(3))
        base = None
        power = None
        if name == "log" and self.next_is("_"):
            self.take()
            base = self.exponent()
        if self.next_is("^"):
            self.take()
            power = self.exponent()
        if self.next_is("("):
            self.take()
            arg = self.bracketed("(")
        else:
            arg = self.open_argument()
        if name == "log":
            tree = self.node("log", arg, base if base is not None else number(10))
        elif power is not None and power == Expr("neg", (number(1),)):
            return self.node("call", arg, name="arc" + name)
        else:
            tree = self.node("call", arg, name="arc" + name[1:] if name in ("asin", "acos", "atan") else name)
        return tree if power is None else self.node("pow", tree, power)

    def root(self) -> Expr:
        degree = number(2)
        if self.next_is("["):
            self.take()
            degree = self.sum()
            self.take("]")
        return self.node("root", self.argument_of_root(), degree)

    def argument_of_root(self) -> Expr:
        token = self.peek()
        if token is not None and token.kind == "num":
            self.at += 1
            return number(token.value or 0, token.places)
        return self.base()

    def open_argument(self) -> Expr:
        r"""The argument of a function without brackets: ``2x`` in ``\sin 2x + 1``."""
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise Unreadable("nested too deep")
        if self.next_is("-"):
            self.take()
            tree = self.node("neg", self.power())
        else:
            tree = self.mixed() or self.power()
        while self.operand_follows() and not self.next_is(*FUNCTIONS, "("):
            tree = self.node("mul", tree, self.power())
        self.nesting -= 1
        return tree
