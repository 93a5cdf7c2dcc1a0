"""Every command of the page about sizing and recipes parses, as the shell and the launcher would pass it on."""

import pathlib
import re
import shlex

import pytest

from prm_jax import cli, command_line
from prm_jax.commands import launch

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "scale.md"


def commands(text: str) -> list[list[str]]:
    """The words of each `prm-jax` line in code blocks, without prompts and quotes around it."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    joined = blocks.replace("\\\n", " ")
    lines = [line.partition("prm-jax ")[2] for line in joined.splitlines() if re.search(r"(^|[\s$])prm-jax \w", line)]
    return [shlex.split(line.rstrip('"')) for line in lines]


def parsed(name: str, words: list[str]):
    """(options of a command, words after ``--``)."""
    module = cli.importlib.import_module(f"prm_jax.commands.{name.replace('-', '_')}")
    end = words.index("--") if "--" in words else len(words)
    own = words[:end]
    default = module.defaults(own) if hasattr(module, "defaults") else None
    cls = module.options_class(own) if hasattr(module, "options_class") else module.Options
    return command_line.parse(cls, own, prog=f"prm-jax {name}", default=default), words[end + 1 :]


COMMANDS = commands(PAGE.read_text())


def test_commands_are_found_in_every_kind_of_block():
    assert len(COMMANDS) >= 12
    assert sum(words[0] == "launch" for words in COMMANDS) >= 8
    page = "```\nexport X=1\nnode0$ prm-jax a -- b \\\n  c\n```\n`prm-jax no`\n```yaml\n- exec prm-jax d\n```"
    assert commands(page) == [["a", "--", "b", "c"], ["d"]]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_the_command_parses(words):
    options, inner = parsed(words[0], words[1:])
    if words[0] != "launch":
        assert not inner
        return
    layout = launch._layout(options)
    job = launch._job(inner, several_hosts=layout.total > layout.count)
    assert "--run-dir" in inner, "a job that restarts itself needs a name"
    assert job.run_dir is not None
    parsed(inner[0], inner[1:])
