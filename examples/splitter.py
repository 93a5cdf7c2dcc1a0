"""A splitter of your own: a step is a paragraph, and a long paragraph is cut into sentences.

prm-jax score MODEL solutions.jsonl --split examples/splitter.py:paragraphs --split-options longest 200
"""

import re


def paragraphs(text: str, longest: int = 200) -> list[str]:
    """The steps of a response; joined they give the text again, separators included."""
    steps: list[str] = []
    for paragraph in re.split(r"(?<=\n\n)", text):
        steps += sentences(paragraph) if len(paragraph) > longest else [paragraph]
    return [step for step in steps if step]


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, each with the space after it."""
    return re.split(r"(?<=[.!?] )", paragraph)
