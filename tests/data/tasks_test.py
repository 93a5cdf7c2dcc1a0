"""Tasks by name, and the messages about names and options that do not exist."""

import subprocess
import sys

import pytest

from prm_jax.data import Task, load_task
from prm_jax.data.options import check_options, convert
from prm_jax.errors import UserError


def test_by_name_and_by_mapping():
    task = load_task("carry", min_operands="8", max_operands=9, drop_carry="0.5", num_eval=8)
    assert isinstance(task, Task) and task.max_prompt_tokens == 18 and task.drop_carry == 0.5
    other = load_task(
        {"name": "carry", "min_operands": 8, "max_operands": 3, "num_eval": 8}, max_operands=9, drop_carry=0.5
    )
    assert other.fingerprint == task.fingerprint
    assert isinstance(load_task("arithmetic", digits="1", steps="yes"), Task)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("cary", {}, r"unknown task 'cary'; did you mean 'carry'\?"),
        ("zzz", {}, r"unknown task 'zzz'; a task is arithmetic, carry, gsm8k, jsonl, a path"),
        ("carry", {"min_operand": 3}, r"the task 'carry' has no option 'min_operand'; did you mean 'min_operands'\?"),
        ("carry", {"min_operands": "three"}, r"'min_operands' of the task 'carry' must be int, found 'three'"),
        ("carry", {"min_operands": 3.5}, r"must be int, found 3.5"),
        ("carry", {"min_operands": True}, r"must be int, found True"),
        ("arithmetic", {"operation": "div"}, r"must be .*add.*, found 'div'"),
        ("arithmetic", {"steps": "perhaps"}, r"must be bool, found 'perhaps'"),
        ("jsonl", {}, r"the task 'jsonl' needs the option 'train'"),
        ("absent.jsonl", {}, r"cannot read absent.jsonl"),
        ({"min_operands": 3}, {}, r"a task needs a name"),
    ],
)
def test_unknown_names_and_bad_options(spec, options, message):
    with pytest.raises(UserError, match=message):
        load_task(spec, **options)


@pytest.mark.parametrize(
    ("value", "wanted", "result"),
    [
        ("3", int, 3),
        (3.0, int, 3),
        ("1e-3", float, 0.001),
        (2, float, 2.0),
        ("on", bool, True),
        (5, str, "5"),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("\n\n, b", tuple[str, ...], ("\n\n", "b")),
        ([1, "2"], tuple[int, ...], (1, 2)),
        ("", list[str], []),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("x", str | None, "x"),
    ],
)
def test_values_are_converted(value, wanted, result):
    converted = convert(value, wanted)
    assert converted == result and type(converted) is type(result)


def test_values_of_other_types_are_refused():
    for value, wanted in [("x", int | None), (True, float), ([1], int), (None, str), (5, tuple[str, ...])]:
        with pytest.raises(UserError, match="must be"):
            check_options({"o": value}, {"o": wanted}, "it")


def test_importing_tasks_imports_neither_jax_nor_grain_nor_the_extras():
    code = "import sys, prm_jax.data, prm_jax.verifiers; print([m for m in %r if m in sys.modules])"
    heavy = ["jax", "grain", "sympy", "math_verify", "reasoning_gym", "flax"]
    found = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
