"""Splitters by name: built-in ways of cutting a response into steps, or a function of the user's."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from prm_jax.data.steps import How, StepSplitter
from prm_jax.errors import UserError
from prm_jax.option_values import call_with_options, convert_options, parameter_kinds
from prm_jax.resolve import check_signature, resolve

SPLITTERS = tuple(how for how in typing.get_args(How) if how != "function")
"""Names of the built-in splitters."""

_OPTIONS = {"tag": ("tags",), "regex": ("pattern",)}
_PROBE = "2 + 3 = 5.\n\nStep 2: 5 + 4 = 9.\n#### 9"


def make_splitter(
    splitter: str | StepSplitter | Callable[[str], Any],
    options: Mapping[str, Any] | None = None,
    *,
    answer_markers: tuple[str, ...] = (),
    option: str = "",
) -> StepSplitter:
    """Returns the splitter that is named.

    Args:
      splitter: ``"newline"``, ``"blank"``, ``"step_marker"``, ``"sentence"``, ``"statement"``, ``"tag"``, ``"regex"``
        or ``"whole"`` (see ``StepSplitter``); ``"package.module:function"`` or ``"path/file.py:function"``, a function
        from a text to its steps or to the offsets at which they start; or such a function, or a ``StepSplitter``.
      options: ``tags`` or ``pattern`` for the built-in splitters that need them, ``answer_markers``; for a function
        its further parameters, for a class those of its constructor. Text is converted to the declared types.
      answer_markers: strings that start the answer, each a step of its own; options override them.
      option: the command-line option that gave the name, for messages.

    Raises:
      UserError: an unknown name (the nearest is suggested), an unknown or missing option, a function with the wrong
        signature, or one that fails on a sample text.
    """
    given = dict(options or {})
    if isinstance(splitter, StepSplitter):
        if given:
            raise UserError(f"a splitter that is already made takes no options, found {', '.join(given)}")
        return splitter
    if isinstance(splitter, str):
        builtins: dict[str, Any] = {name: functools.partial(_built_in, name) for name in SPLITTERS}
        found = resolve(splitter, builtins, "splitter", option=option)
        if splitter in builtins:
            return found(given, answer_markers)
        if isinstance(found, StepSplitter):
            return make_splitter(found, given)
    else:
        found = splitter
    name = repr(splitter) if isinstance(splitter, str) else getattr(splitter, "__name__", repr(splitter))
    markers = convert_options({"answer_markers": given.pop("answer_markers", answer_markers)}, _MARKERS, "the splitter")
    return StepSplitter("function", function=_function(found, given, f"splitter {name}"), **markers)


_MARKERS = {"answer_markers": tuple[str, ...]}


def _built_in(name: str, options: Mapping[str, Any], answer_markers: tuple[str, ...]) -> StepSplitter:
    kinds = parameter_kinds(StepSplitter)
    allowed = {key: kinds[key] for key in (*_OPTIONS.get(name, ()), "answer_markers")}
    converted = convert_options(options, allowed, f"the splitter {name!r}")
    return StepSplitter(typing.cast(How, name), **{"answer_markers": answer_markers, **converted})


def _function(found: Callable[..., Any], options: Mapping[str, Any], what: str) -> Callable[[str], Any]:
    if inspect.isclass(found):
        made: Any = call_with_options(found, options, f"the {what}")
        found, options = made, {}
    if options:
        kinds = parameter_kinds(found)
        kinds.pop(next(iter(kinds), ""), None)  # the text
        found = functools.partial(found, **convert_options(options, kinds, f"the {what}"))
    check_signature(found, ("text",), what)
    try:
        StepSplitter("function", function=found)(_PROBE)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the {what} failed on the text {_PROBE!r}: {type(error).__name__}: {error}") from error
    return found
