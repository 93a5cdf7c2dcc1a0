"""Chat templates: programs that come with a checkpoint, hence untrusted; rendered in a process with limits."""

import datetime
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.errors import UserError
from prm_jax.models.child_process import ChildFailure, ChildProcess
from prm_jax.models.files import short

MAX_TEMPLATE = 1_000_000
MAX_OUTPUT = 4_000_000
MAX_SECONDS = 5.0
_MEMORY = 256 << 20
# Renderings that are kept: those of conversations of ordinary length.
_KEPT, _KEPT_LENGTH = 4096, 16_384

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

    The template runs in a child process that is kept for the next call, may use a limited amount of memory, and is
    killed at the deadline; it sees the conversation and nothing else.  A call takes a fraction of a millisecond, and
    the renderings of recent conversations are cached.

    Args:
      template: the Jinja source.
      messages: the conversation, in order; each a mapping with at least ``role`` and ``content``, both text.
      add_generation_prompt: end with the header of the assistant's next turn.
      special_tokens: ``bos_token``, ``eos_token``, ... as the template sees them.
      variables: further JSON variables for the template, such as ``enable_thinking`` or ``tools``.
      now: the time that ``strftime_now`` formats; the clock by default, so that a prompt may depend on the date.
      max_output: limit on the characters of the result.
      max_seconds: limit on the processor time of rendering.

    Returns:
      The prompt's text, special tokens spelled out.

    Raises:
      UserError: for a malformed message, a template that does not compile, fails, refuses the conversation
        (``raise_exception``), violates the sandbox, or exceeds a limit.
    """
    _check_messages(messages)
    if len(template) > MAX_TEMPLATE:
        raise UserError(f"the chat template has {len(template)} characters; expected at most {MAX_TEMPLATE}")
    context: dict[str, Any] = {"tools": None, "documents": None}
    context |= special_tokens or {}
    context |= variables or {}
    context |= {"messages": [dict(message) for message in messages], "add_generation_prompt": add_generation_prompt}
    try:
        encoded = json.dumps(context)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"messages and variables of a chat must be JSON values: {error}") from error
    moment = now or datetime.datetime.now()
    # Only a template that asks for the time may depend on it.
    stamp = moment.isoformat() if "strftime_now" in template else datetime.datetime.min.isoformat()
    render = _render_cached if len(encoded) <= _KEPT_LENGTH else _render
    return render(template, encoded, stamp, max_output, max_seconds)


def _render(template: str, context: str, now: str, max_output: int, max_seconds: float) -> str:
    request = {"template": template, "context": json.loads(context), "now": now, "max_output": max_output}
    try:
        # The longest JSON of a character has twelve bytes.
        reply = _worker().ask(request, seconds=max_seconds, max_reply=12 * max_output + 10_000)
    except ChildFailure as error:
        raise UserError(f"the chat template failed: it {error}") from error
    if isinstance(reply.get("text"), str):
        return reply["text"]
    problem, detail = reply.get("problem"), short(reply.get("detail"), 400)
    if problem == "compile":
        raise UserError(f"the chat template does not compile: {detail}")
    if problem == "refused":
        raise UserError(f"the chat template refuses this conversation: {detail}")
    if problem == "output":
        raise UserError(f"the chat template failed: it wrote more than {max_output} characters")
    raise UserError(f"the chat template failed {detail}")


_render_cached = functools.lru_cache(maxsize=_KEPT)(_render)


@functools.cache
def _worker() -> ChildProcess:
    """The process of this program's templates; started by the first call."""
    return ChildProcess(pathlib.Path(__file__).with_name("chat_worker.py"), memory_bytes=_MEMORY)


def _check_messages(messages: Any) -> None:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise UserError(f"messages must be a list of role and content, found {type(messages).__name__}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"messages[{index}]: expected a mapping with a role, found {short(message)}")
        if not isinstance(message.get("content"), str):
            raise UserError(
                f"messages[{index}] ({message['role']}): content must be text, "
                f"found {type(message.get('content')).__name__}"
            )
