"""Every `prm-jax` command in a code block of the documentation parses: options exist, and values are allowed."""

import pathlib
import re

import pytest

from prm_jax import cli
from tests.recipes_test import commands, parsed

REPO = pathlib.Path(__file__).resolve().parents[1]
TASK = "--task carry --task-options min_operands 3 max_operands 5"
"""What the pages call TASK."""
PAGES = [
    path
    for path in [
        REPO / "README.md",
        *sorted((REPO / "docs").glob("**/*.md")),
        *sorted((REPO / "experiments").glob("*/*.md")),
    ]
    if path.parent.name != "api" and path.name != "scale.md"  # recipes_test.py reads that one
]
COMMANDS = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)[:50]}")
    for page in PAGES
    for words in commands(
        re.sub(r" {2,}# .*| \.\.\.$", "", page.read_text(), flags=re.MULTILINE).replace(" TASK", f" {TASK}")
    )
    if words[0] in cli.COMMANDS
]


def test_commands_are_found():
    assert len(COMMANDS) >= 40


@pytest.mark.parametrize("words", COMMANDS)
def test_the_command_parses(words):
    _, inner = parsed(words[0], words[1:])
    if inner:
        parsed(inner[0], inner[1:])
