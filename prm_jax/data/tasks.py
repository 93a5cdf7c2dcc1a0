"""Tasks by name."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from prm_jax.data.problems import Task
from prm_jax.errors import UserError
from prm_jax.option_values import call_with_options, convert_options, parameter_kinds
from prm_jax.resolve import nearest


def load_task(spec: str | Mapping[str, Any], **options: Any) -> Task:
    """Makes a task from its name and options, as a configuration file or command line gives them.

    Args:
      spec: ``"carry"``, ``"arithmetic"``, ``"gsm8k"``, ``"jsonl"``, a path that ends in ``.jsonl``, ``"gym:NAME"`` or
        NAME alone for a data set of reasoning-gym; or a mapping with ``"name"`` and options.
      **options: of the task; they override those of a mapping.  Numbers and truth values may be written as text.

    Returns:
      The task.

    Raises:
      UserError: for an unknown name or option, with the nearest known one, or a value of the wrong type.

    Example:
      >>> load_task("carry", min_operands=8, max_operands="9").max_prompt_tokens
      18
    """
    if isinstance(spec, Mapping):
        given = {**spec, **options}
        name = given.pop("name", None)
        if not isinstance(name, str):
            raise UserError(f"a task needs a name, found {dict(spec)!r}")
        return load_task(name, **given)
    makers = _makers()
    if spec.startswith("gym:"):
        return _gym(spec.removeprefix("gym:"), options)
    if spec.endswith(".jsonl"):
        return _make(makers["jsonl"], "jsonl", {"train": spec, **options})
    if spec in makers:
        return _make(makers[spec], spec, options)
    names: list[str] = []
    if importlib.util.find_spec("reasoning_gym") is not None:
        from prm_jax.data.gym import dataset_names

        names = dataset_names()
    if spec in names:
        return _gym(spec, options)
    gym = "a data set of reasoning-gym" + ("" if names else " once it is installed (pip install 'prm-jax[tasks]')")
    raise UserError(
        f"unknown task {spec!r}; {nearest(spec, [*makers, *names])}a task is {', '.join(sorted(makers))}, "
        f"a path that ends in .jsonl, or {gym}"
    )


def _makers() -> dict[str, Callable[..., Task]]:
    from prm_jax.data.arithmetic import ArithmeticTask
    from prm_jax.data.carry import CarryTask
    from prm_jax.data.jsonl import gsm8k_task, jsonl_task

    return {"arithmetic": ArithmeticTask, "carry": CarryTask, "gsm8k": gsm8k_task, "jsonl": jsonl_task}


def _make(maker: Callable[..., Task], name: str, options: Mapping[str, Any]) -> Task:
    return call_with_options(maker, options, f"the task {name!r}")


def _gym(dataset: str, options: Mapping[str, Any]) -> Task:
    """Options of ``GymTask`` go to it, all others to the data set, which knows its own."""
    from prm_jax.data.gym import GymTask

    types = parameter_kinds(GymTask)
    own = {name: value for name, value in options.items() if name in types}
    rest = {name: value for name, value in options.items() if name not in types}
    checked = convert_options(own, types, f"the task 'gym:{dataset}'")
    return GymTask(dataset, **{**checked, "options": {**(checked.get("options") or {}), **rest}})
