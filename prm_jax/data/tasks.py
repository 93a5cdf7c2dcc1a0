"""Tasks by name: built in, from data files, from reasoning-gym, or made by a function of the user's."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from prm_jax.data.judging import check_verifier
from prm_jax.data.problems import Problem, Task
from prm_jax.data.rows import is_data_name
from prm_jax.errors import UserError
from prm_jax.option_values import call_with_options, convert_options, parameter_kinds
from prm_jax.resolve import nearest, resolve


def load_task(spec: str | Mapping[str, Any], **options: Any) -> Task:
    """Makes a task from its name and options, as a configuration file or command line gives them.

    Args:
      spec: ``"carry"``, ``"arithmetic"``, ``"gsm8k"``, ``"code"``, ``"programs"``, ``"rooms"``, ``"lookup"``,
        ``"jsonl"``; a data file or directory (see ``rows.read_rows``), the same as ``"jsonl"`` with ``train`` set to
        it; ``"gym:NAME"`` or NAME alone for a data set of reasoning-gym; ``"package.module:make"`` or
        ``"path/file.py:make"`` for a function or class that makes a task, or for a class of environments (see
        ``environment_task``); or a mapping with ``"name"`` and options.
      **options: of the task: the parameters of its maker; they override those of a mapping. Text is converted to the
        types that the maker declares. An option with a dot belongs to a part of the task: ``splitter.pattern`` sets
        ``pattern`` in ``splitter_options``.

    Returns:
      The task.

    Raises:
      UserError: an unknown name or option, with the nearest known one; a value of the wrong type; a maker that cannot
        be imported, fails, or does not return a task.

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
    if not spec:
        raise UserError("a task needs a name, found an empty text")
    options = _grouped(options)
    makers = _makers()
    if spec.startswith("gym:"):
        return _gym(spec.removeprefix("gym:"), options)
    if spec in makers:
        return _make(makers[spec], spec, options)
    if is_data_name(spec):
        return _make(makers["jsonl"], spec, {"train": spec, **options})
    if ":" in spec:
        return _from_outside(spec, options)
    names = _gym_names()
    if spec in names:
        return _gym(spec, options)
    gym = "a data set of reasoning-gym" + ("" if names else " once it is installed (pip install 'prm-jax[tasks]')")
    raise UserError(
        f"unknown task {spec!r}; {nearest(spec, [*makers, *names])}a task is {', '.join(sorted(makers))}, a data file "
        f"or directory, package.module:function or file.py:function, or {gym}"
    )


def check_task(task: Any, owner: str) -> Task:
    """Refuses what is not a usable task: missing attributes, no problems, a verifier that fails.

    Raises:
      UserError: names what is missing or fails.
    """
    missing = [name for name in _ATTRIBUTES if not hasattr(task, name)]
    if missing:
        raise UserError(
            f"{owner} is not a task: it returned {type(task).__name__}, which has no {', '.join(missing)}; return what "
            "prm_jax.data.make_task makes, or an object with the attributes of prm_jax.data.Task"
        )
    problem = next((problems[0] for problems in (task.train, task.eval) if len(problems)), None)
    if problem is None:
        raise UserError(f"{owner} has no problems")
    if not isinstance(problem, Problem):
        raise UserError(f"{owner} has problems of type {type(problem).__name__}; expected prm_jax.data.Problem")
    check_verifier(_Judge(task), problem, owner)
    return task


_ATTRIBUTES = (
    "name", "train", "eval", "splitter", "stop", "fingerprint", "verify", "verify_many", "step_labels", "tokenizer",
)  # fmt: skip


class _Judge:
    """A task's verdicts as a verifier, to be checked like one."""

    def __init__(self, task: Any) -> None:
        self.verify_problems = task.verify_many


def _makers() -> dict[str, Callable[..., Any]]:
    from prm_jax.data.arithmetic import ArithmeticTask
    from prm_jax.data.carry import CarryTask
    from prm_jax.data.code_task import CodeOptions
    from prm_jax.data.file_task import FileOptions, Gsm8kOptions
    from prm_jax.data.lookup import Lookup
    from prm_jax.data.programs import ProgramsTask
    from prm_jax.data.rooms import Rooms

    return {
        "arithmetic": ArithmeticTask,
        "carry": CarryTask,
        "code": CodeOptions,
        "gsm8k": Gsm8kOptions,
        "jsonl": FileOptions,
        "lookup": Lookup,
        "programs": ProgramsTask,
        "rooms": Rooms,
    }


def _make(maker: Callable[..., Any], name: str, options: Mapping[str, Any]) -> Task:
    from prm_jax.data.code_task import CodeOptions, code_task
    from prm_jax.data.environment_task import environment_task, is_environment
    from prm_jax.data.file_task import FileOptions, file_task

    if is_environment(maker):
        return environment_task(maker, options, name=name)
    made = call_with_options(maker, options, f"the task {name!r}")
    if isinstance(made, CodeOptions):
        return code_task(made)
    return file_task(made) if isinstance(made, FileOptions) else made


def _from_outside(spec: str, options: Mapping[str, Any]) -> Task:
    from prm_jax.data.environment_task import environment_task, is_environment

    maker: Callable[..., Any] = resolve(spec, {}, "task", option="task.name")
    owner = f"the task {spec!r}"
    try:
        if is_environment(maker):
            return check_task(environment_task(maker, options, name=spec), owner)
        made = call_with_options(maker, options, owner)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{owner} could not be made: {type(error).__name__}: {error}") from error
    return check_task(made, owner)


def _grouped(options: Mapping[str, Any]) -> dict[str, Any]:
    """``{"splitter.pattern": ";"}`` as ``{"splitter_options": {"pattern": ";"}}``."""
    grouped: dict[str, Any] = {}
    for name, value in options.items():
        part, _, option = name.partition(".")
        if part and option:
            key = f"{part}_options"
            grouped[key] = {**options.get(key, {}), **grouped.get(key, {}), option: value}
        else:
            grouped.setdefault(name, value)
    return grouped


def _gym_names() -> list[str]:
    if importlib.util.find_spec("reasoning_gym") is None:
        return []
    from prm_jax.data.gym import dataset_names

    return dataset_names()


def _gym(dataset: str, options: Mapping[str, Any]) -> Task:
    """Options of ``GymTask`` go to it, all others to the data set, which knows its own."""
    from prm_jax.data.gym import GymTask

    types = parameter_kinds(GymTask)
    own = {name: value for name, value in options.items() if name in types}
    rest = {name: value for name, value in options.items() if name not in types}
    checked = convert_options(own, types, f"the task 'gym:{dataset}'")
    return GymTask(dataset, **{**checked, "options": {**(checked.get("options") or {}), **rest}})
