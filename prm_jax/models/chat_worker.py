"""The process in which chat templates are rendered: a script of its own, started by ``chat``.

The environment is the one that Hugging Face templates are written for: ``trim_blocks``, ``lstrip_blocks``, loop
controls, ``raise_exception``, ``strftime_now``, a ``tojson`` that keeps Unicode, ``generation`` blocks.  Jinja's
sandbox keeps a template from reaching Python objects; time and memory are limited for the whole process.
"""

import datetime
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any


class _Refusal(Exception):
    """The template called ``raise_exception``."""


def make_renderer() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that answers a request: ``template``, ``context``, ``now`` (ISO), ``max_output``.

    Its answers hold ``text``, or ``problem`` ("compile", "refused", "failed", "output") and ``detail``.
    """
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class GenerationBlock(jinja2.ext.Extension):
        """``{% generation %}`` marks what the assistant said, for training masks; the text is kept."""

        tags = {"generation"}

        def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    @functools.lru_cache(maxsize=32)
    def compiled(template: str) -> jinja2.Template:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        del environment.globals["lipsum"]
        return environment.from_string(template)

    def render(request: dict[str, Any]) -> dict[str, Any]:
        try:
            template = compiled(request["template"])
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            return {"problem": "compile", "detail": _short(error)}
        moment = datetime.datetime.fromisoformat(request["now"])
        pieces: list[str] = []
        length = 0
        try:
            for piece in template.generate(request["context"] | {"strftime_now": moment.strftime}):
                length += len(piece)
                if length > request["max_output"]:
                    return {"problem": "output", "detail": ""}
                pieces.append(piece)
            return {"text": "".join(pieces)}
        except _Refusal as error:
            return {"problem": "refused", "detail": _short(error)}
        except Exception as error:  # a template is a program: anything can go wrong in it
            return {"problem": "failed", "detail": f"({type(error).__name__}): {_short(error)}"}

    return render


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
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _short(error: BaseException, limit: int = 300) -> str:
    try:
        text = str(error)
    except Exception:
        text = type(error).__name__
    return text if len(text) <= limit else text[:limit] + "..."


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import child_process

    sys.path.pop(0)
    child_process.serve(make_renderer)
