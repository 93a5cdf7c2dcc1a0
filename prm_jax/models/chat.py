"""Chat templates: programs that come with a checkpoint, hence untrusted; rendered in a sandbox with caps.

The environment is the one that Hugging Face templates are written for: ``trim_blocks``, ``lstrip_blocks``,
loop controls, ``raise_exception``, ``strftime_now``, a ``tojson`` that keeps Unicode, ``generation`` blocks.
"""

import datetime
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FrameType, GeneratorType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

from prm_jax.errors import UserError

MAX_TEMPLATE = 1_000_000
MAX_OUTPUT = 4_000_000
MAX_SECONDS = 10.0
# No honest template pads to, raises to, or ranges over more than this.
_MAX_NUMBER = 100_000
_PADDING = frozenset(
    ["center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes", "range", "safe_range"]
    + ["do_center", "do_indent", "do_truncate", "do_wordwrap", "do_batch", "do_slice"]
)

Message = Mapping[str, Any]


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    special_tokens: Mapping[str, str] | None = None,
    variables: Mapping[str, Any] | None = None,
    now: datetime.datetime | None = None,
    max_output: int = MAX_OUTPUT,
    max_seconds: float = MAX_SECONDS,
) -> str:
    """Renders a conversation with a checkpoint's own chat template.

    Args:
      template: the Jinja source.
      messages: what was said, in order; each a mapping with at least ``role`` and ``content``, text both.
      add_generation_prompt: end with the header of the assistant's next turn.
      special_tokens: ``bos_token``, ``eos_token``, ... as the template sees them.
      variables: further variables for the template, such as ``enable_thinking`` or ``tools``.
      now: what ``strftime_now`` tells; the clock by default, so that a prompt may depend on the day.
      max_output: characters after which rendering is stopped.
      max_seconds: seconds after which rendering is stopped.

    Returns:
      The prompt's text, special tokens spelled out.

    Raises:
      UserError: for a malformed message, a template that does not compile, fails, refuses the conversation
        (``raise_exception``), reaches for what the sandbox forbids, or passes a cap.
    """
    _check_messages(messages)
    compiled = _compile(template)
    moment = now or datetime.datetime.now()
    context: dict[str, Any] = {"tools": None, "documents": None}
    context |= special_tokens or {}
    context |= variables or {}
    context |= {
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "strftime_now": moment.strftime,
    }
    pieces: list[str] = []
    length = 0
    try:
        with _Deadline(max_seconds):
            for piece in compiled.generate(context):
                length += len(piece)
                if length > max_output:
                    raise _Cap(f"it wrote more than {max_output} characters")
                pieces.append(piece)
    except _Refusal as error:
        raise UserError(f"the chat template refuses this conversation: {error}") from error
    except Exception as error:  # a template is a program: anything can go wrong in it
        kind = type(error).__name__.lstrip("_")
        raise UserError(f"the chat template failed ({kind}): {_short(error)}") from error
    return "".join(pieces)


class _Refusal(Exception):
    """The template called ``raise_exception``."""


class _Cap(Exception):
    """The template asked for more time or room than any conversation needs."""


class _Deadline:
    """Raises inside the block once the time is up.

    A trace function reaches loops that neither write nor call, and works in any thread, unlike a signal; it
    sees Python lines only, so single calls into C are kept small by the size checks.
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._previous: Any = None

    def __enter__(self) -> None:
        self._previous = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *unused: object) -> None:
        sys.settrace(self._previous)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        del frame, event, argument
        if time.monotonic() > self._end:
            raise _Cap(f"it ran for more than {self._seconds:g} seconds")
        return self._trace


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's own sandbox (no private attributes, no changing of arguments) with sizes checked beforehand."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        return _ConcatAsAdd().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _check_number(right)
            _check_number(left)
        elif operator == "*":
            count, repeated = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(repeated, Sequence) and isinstance(count, int):
                _check_size(len(repeated) * count)
            elif isinstance(count, int) and isinstance(repeated, int):
                _check_size(count.bit_length() + repeated.bit_length())
        elif operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
            _check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # The names are Jinja's: a template may pass a keyword called self.
        given = [list(a) if isinstance(a, GeneratorType) else a for a in args]
        _check_call(__obj, given, kwargs)
        return super().call(__context, __obj, *given, **kwargs)


class _ConcatAsAdd(jinja2.visitor.NodeTransformer):
    """Writes ``a ~ b`` as ``a|string + b|string``, so that its size is checked as that of every other sum."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Expr:
        self.generic_visit(node)
        parts: list[jinja2.nodes.Expr] = [
            jinja2.nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes
        ]
        return functools.reduce(lambda a, b: jinja2.nodes.Add(a, b, lineno=node.lineno), parts)


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant said, for training masks; the text goes through."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    if len(template) > MAX_TEMPLATE:
        raise UserError(f"the chat template has {len(template)} characters; expected at most {MAX_TEMPLATE}")
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationBlock])
    environment.filters["tojson"] = _tojson
    for name in ("center", "indent", "format", "replace", "join", "truncate", "wordwrap", "batch", "slice"):
        environment.filters[name] = _guarded(environment.filters[name])
    environment.globals["raise_exception"] = _raise_exception
    del environment.globals["lipsum"]
    try:
        return environment.from_string(template)
    except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        raise UserError(f"the chat template does not compile: {_short(error)}") from error


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML and sorts keys, which models were not trained on.
    if indent is not None:
        _check_number(indent)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # carries Jinja's marks over: some filters take the environment first
    def guarded(*args: Any, **kwargs: Any) -> Any:
        given = [list(a) if isinstance(a, GeneratorType) else a for a in args]
        plain = [a for a in given if not isinstance(a, jinja2.Environment | jinja2.nodes.EvalContext)]
        _check_call(function, plain, kwargs)
        return function(*given, **kwargs)

    return guarded


def _check_call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses calls of builtins whose result could be out of all proportion to their arguments."""
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format, and we wrap filters
    name = getattr(function, "__name__", "")
    owner = getattr(function, "__self__", None)
    given = [*args, *kwargs.values()]
    texts = [value for value in (owner, *given) if isinstance(value, str)]
    if name in _PADDING:
        for value in given:
            _check_number(value)
    elif name in ("replace", "do_replace") and len(texts) == 3:
        whole, old, new = texts
        _check_size(len(whole) + whole.count(old) * len(new))
    elif name in ("join", "sync_do_join", "do_join"):
        items = next((v for v in given if isinstance(v, Collection) and not isinstance(v, str)), ())
        glue = max((len(text) for text in texts), default=0)
        _check_size(sum(glue + (len(item) if isinstance(item, str) else 8) for item in items))
    elif name in ("format", "format_map", "do_format") and texts:
        _check_format(texts[0], given)
    elif name == "translate":
        raise _Cap("it calls translate")


def _check_format(text: str, values: Any) -> None:
    for digits in re.findall(r"[%:.][-+ #0<>^=]*(\d{6,})", text):
        raise _Cap(f"it formats to a width of {digits[:12]}")
    if "*" in text or re.search(r":[^}]*\{", text):  # widths taken from the values
        for value in values if isinstance(values, list | tuple) else (values,):
            _check_number(value)


def _check_number(value: Any) -> None:
    if isinstance(value, int | float) and abs(value) > _MAX_NUMBER:
        raise _Cap(f"it computes with a number beyond {_MAX_NUMBER}")


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT:
        raise _Cap(f"it builds a value of more than {MAX_OUTPUT} characters or items")


def _check_messages(messages: Any) -> None:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise UserError(f"messages must be a list of role and content, found {type(messages).__name__}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"messages[{index}]: expected a mapping with a role, found {_short(message)}")
        if not isinstance(message.get("content"), str):
            raise UserError(
                f"messages[{index}] ({message['role']}): content must be text, "
                f"found {type(message.get('content')).__name__}"
            )


def _short(value: Any, limit: int = 300) -> str:
    text = str(value)
    return text if len(text) <= limit else text[:limit] + "..."
