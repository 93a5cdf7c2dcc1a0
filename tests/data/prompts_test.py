"""Prompts from files: every form of a prompt, and file and line for what is not one."""

import json
import os

import pytest

from prm_jax.data.prompts import read_prompts
from prm_jax.errors import UserError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "1"}\n{"prompt": 1}\n', ":2:prompt: expected text, a list of messages"),
        ('{"prompt": "1"}\n{oops\n', ":2: not JSON"),
        ("5\n", ":1: expected an object"),
        ('{"question": "1"}\n', ":1:prompt: the field is missing; the fields of this line are question"),
        ('{"messages": [{"role": "user"}]}\n', r":1:messages\[0\]: the message has no 'content'"),
        ("\n\n", "is empty"),
    ],
)
def test_prompt_files_are_checked(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_prompts(path)


def test_prompt_files(tmp_path):
    path = tmp_path / "p.jsonl"
    messages = [{"role": "user", "content": "hi"}]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": messages}).encode() + b'\r\n{"prompt": "x"}\r\n')
    assert read_prompts(path) == [tuple(messages), "x"]
    (tmp_path / "p.csv").write_text("prompt\na\nb\n")
    assert read_prompts(tmp_path / "p.csv") == ["a", "b"]
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompts(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="found a pipe"):
        read_prompts(tmp_path / "pipe")
