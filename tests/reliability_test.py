"""The counts on the page about reliability are those of the tests."""

import pathlib
import re

from prm_jax import exit_codes
from tests.models import chat_test, tokenizer_test
from tests.prime import outside_test
from tests.rollouts import completions_test, remote_test
from tests.verifiers import math_pool_test, math_test

TESTS = pathlib.Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def cases(function) -> int:
    """Number of cases that a test is parametrized with."""
    count = 1
    for mark in function.pytestmark:
        if mark.name == "parametrize":
            count *= len(list(mark.args[1]))
    return count


def table(section: str) -> list[str]:
    """The rows of the first table of a section, without its head."""
    text = PAGE.read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_every_exit_code_is_documented():
    documented = {int(row.split("|")[1]) for row in table("Exit codes") if row.split("|")[1].strip().isdecimal()}
    assert documented == set(exit_codes.MEANINGS)
    final = {int(row.split("|")[1]) for row in table("Exit codes") if row.split("|")[3].strip().startswith("nothing")}
    assert final == exit_codes.FINAL


def test_every_fault_has_its_tests():
    rows = table("Faults of runs and checkpoints")
    names = [re.findall(r"`([\w/]+)::(\w+)`", row.split("|")[3]) for row in rows]
    text = PAGE.read_text()
    assert f"{len(rows)} faults; {sum(map(bool, names))} of them have tests" in text
    for row, tests in zip(rows, names, strict=True):
        assert tests or "not applicable: " in row, row
        for module, test in tests:
            source = (TESTS / f"{module}.py").read_text()
            inherited = "(Properties)" in source and test in (TESTS / "rl" / "methods.py").read_text()
            assert re.search(rf"def {test}\(", source) or inherited, f"{module}::{test}"


def test_the_counts_are_those_of_the_tests():
    hostile = tokenizer_test.TestHostileFiles
    expected = [
        len(chat_test.ATTACKS),
        cases(hostile.test_ids) + cases(hostile.test_normalizers_that_expand)
        + cases(hostile.test_patterns_that_backtrack),
        len(math_test.HOSTILE),
        len(math_pool_test.BEYOND_LIMITS),
        len(math_pool_test.SLOW),
        len(math_pool_test.PROGRAMS),
        cases(completions_test.test_answers_that_cannot_be_used),
        cases(remote_test.test_answers_that_cannot_be_used),
        cases(completions_test.test_broken_http),
        cases(completions_test.test_the_key_does_not_follow_redirects),
        cases(completions_test.test_the_deadline_is_for_the_whole_answer),
        cases(completions_test.test_answers_without_end_are_not_read_into_memory),
        cases(completions_test.test_odd_addresses_are_refused),
        cases(outside_test.test_functions_that_cannot_work_are_refused_before_anything_is_trained),
    ]  # fmt: skip
    rows = table("Hostile input")
    assert [int(re.match(r"\s*(\d+)", row.split("|")[3])[1]) for row in rows] == expected
