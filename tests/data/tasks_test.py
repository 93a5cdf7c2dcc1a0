"""Tasks by name, and the messages about names and options that do not exist."""

import subprocess
import sys

import pytest

from prm_jax.data import Task, load_task
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
        ("zzz", {}, r"unknown task 'zzz'; a task is arithmetic, carry, code, gsm8k, jsonl, lookup, programs, rooms, a"),
        ("carry", {"min_operand": 3}, r"the task 'carry' has no option 'min_operand'; did you mean 'min_operands'\?"),
        ("carry", {"min_operands": "three"}, r"'min_operands' of the task 'carry': expected a whole number"),
        ("carry", {"min_operands": 3.5}, r"expected a whole number, found 3.5"),
        ("carry", {"min_operands": True}, r"expected a whole number, found True"),
        ("arithmetic", {"operation": "div"}, r"expected one of add.*, found 'div'"),
        ("arithmetic", {"steps": "perhaps"}, r"expected true or false, found 'perhaps'"),
        ("jsonl", {}, r"the task 'jsonl' needs the option 'train'"),
        ("absent.jsonl", {}, r"cannot read absent.jsonl"),
        ({"min_operands": 3}, {}, r"a task needs a name"),
    ],
)
def test_unknown_names_and_bad_options(spec, options, message):
    with pytest.raises(UserError, match=message):
        load_task(spec, **options)


def test_importing_tasks_imports_neither_jax_nor_grain_nor_the_extras():
    code = "import sys, prm_jax.data, prm_jax.verifiers; print([m for m in %r if m in sys.modules])"
    heavy = ["jax", "grain", "sympy", "mpmath", "reasoning_gym", "flax"]
    found = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
