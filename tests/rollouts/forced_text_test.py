"""Spans of text that a model did not write."""

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer
from prm_jax.rollouts.forced_text import cut_at_spans, text_spans


def test_spans_and_pieces_are_inverse():
    tokenizer = CharTokenizer("abcdef")
    tokens = np.array([*tokenizer.encode("abcdef"), tokenizer.eos_id])
    sampled = np.array([1, 0, 0, 1, 0, 1, 0], bool)
    spans = text_spans(tokens, sampled, tokenizer)
    assert spans == [(1, 3), (4, 5)]  # the end of text has no characters
    pieces = list(cut_at_spans("abcdef", spans))
    assert pieces == [("a", True), ("bc", False), ("d", True), ("e", False), ("f", True)]


def test_characters_of_several_tokens():
    class Bytes:
        special_ids = ()

        def token_bytes(self, token):
            return bytes([token])

    data = np.frombuffer("aé!".encode(), np.uint8).astype(np.int64)
    assert text_spans(data, np.array([1, 0, 0, 1], bool), Bytes()) == [(1, 2)]


@pytest.mark.parametrize("spans", [[(2, 1)], [(0, 7)], [(0, 3), (2, 4)], [(1,)], [("a", 2)], [(-1, 2)]])
def test_bad_spans(spans):
    with pytest.raises(UserError, match="is not a pair of places"):
        list(cut_at_spans("abcdef", spans))


def test_no_spans():
    assert list(cut_at_spans("ab", [])) == [("ab", True)] and list(cut_at_spans("", [])) == []
    assert list(cut_at_spans("ab", [(0, 2)])) == [("ab", False)]
