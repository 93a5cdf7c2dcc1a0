"""Prompts from data files, for sampling."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from prm_jax.data import records
from prm_jax.data.problems import Prompt
from prm_jax.data.rows import read_rows
from prm_jax.errors import UserError


def read_prompts(path: str | pathlib.Path) -> list[Prompt]:
    """The prompts of a data file: a field ``prompt`` (text, messages or token ids) or ``messages`` in each row.

    Raises:
      UserError: a file that cannot be read or is empty, or a row without a prompt; the message names file and line.
    """
    found = records.read_all(read_rows(path), _prompts)
    if not found:
        raise UserError(f"{path} is empty; expected rows with a prompt or messages")
    return found


def _prompts(row: Mapping[str, Any], where: str) -> Iterator[Prompt]:
    name = "messages" if "messages" in row and "prompt" not in row else "prompt"
    yield records.read_prompt(records.field(row, name, where), f"{where}:{name}")
