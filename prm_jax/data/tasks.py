"""Tasks by name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from prm_jax.data.problems import Task
from prm_jax.errors import UserError


def load_task(spec: str | Mapping[str, Any], **options: Any) -> Task:
    """Makes a task from its name and options, as a configuration file or command line gives them.

    Args:
      spec: ``"carry"``, ``"arithmetic"``, ``"gym:NAME"`` (a reasoning-gym data set), ``"gsm8k"``,
        ``"jsonl"``, or a path that ends in ``.jsonl``; or a mapping with ``"name"`` and options.
      **options: passed on to the task; they override those of a mapping.

    Returns:
      The task.

    Raises:
      UserError: for an unknown name or option; the message suggests the nearest one.

    Example:
      >>> load_task("carry", min_operands=8, max_operands=9).max_prompt_tokens
      18
    """
    if isinstance(spec, Mapping):
        given = {**spec, **options}
        name = given.pop("name", None)
        if not isinstance(name, str):
            raise UserError(f"a task needs a name, found {dict(spec)!r}")
        return load_task(name, **given)
    makers = _makers()
    name, _, rest = spec.partition(":")
    if name == "gym" and rest:
        return _call(makers["gym"], "gym", {"dataset": rest, **options})
    if spec.endswith((".jsonl", ".json")):
        return _call(makers["jsonl"], "jsonl", {"train": spec, **options})
    if spec not in makers:
        raise UserError(f"unknown task {spec!r}; {suggest(spec, makers, 'tasks')}, or a path that ends in .jsonl")
    return _call(makers[spec], spec, options)


def suggest(name: str, known: Any, what: str) -> str:
    """The nearest known name, as a question, and all of them: the end of a message about an unknown name."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}the {what} are {', '.join(names)}"


def _makers() -> dict[str, Callable[..., Task]]:
    from prm_jax.data.carry import CarryTask

    return {"carry": CarryTask}


def _call(maker: Callable[..., Task], name: str, options: Mapping[str, Any]) -> Task:
    """Calls a task's maker after checking the options' names."""
    known = [p.name for p in inspect.signature(maker).parameters.values()]
    for option in options:
        if option not in known:
            raise UserError(f"the task {name!r} has no option {option!r}; {suggest(option, known, 'options')}")
    return maker(**options)
