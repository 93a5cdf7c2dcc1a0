"""The token ids of a prompt, whatever form it has."""

from typing import Any


def encode_prompt(tokenizer: Any, prompt: Any) -> list[int]:
    """Token ids of text (with the tokenizer's special tokens), chat messages, or ids, which stay as they are."""
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt, add_special=True))
    if prompt and isinstance(prompt[0], int):
        return list(prompt)
    return list(tokenizer.chat([dict(message) for message in prompt]))
