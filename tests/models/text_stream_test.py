"""Streamed text is final when it is returned, and ends where the complete text would end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer, SpecialTokens, TextStream
from prm_jax.models.codec import Codec
from prm_jax.models.tokenizer import Tokenizer


class DecodeOnly(Codec):
    """Tokens of given bytes."""

    def encode_with_spans(self, text, add_special):
        raise NotImplementedError

    def to_json(self):
        raise NotImplementedError


def pieces(*pieces: bytes) -> Tokenizer:
    return Tokenizer(DecodeOnly([piece.hex() for piece in pieces], pieces, ()), special=SpecialTokens())


def stream(tokenizer: Tokenizer, ids: list[int], **options) -> list[str]:
    texts = TextStream(tokenizer, **options)
    return [*(texts.push(token) for token in ids), texts.finish()]


def test_characters_are_never_split():
    robot = "🤖".encode()
    tokenizer = pieces(b"a", robot[:1], robot[1:3], robot[3:] + b"b")
    assert stream(tokenizer, [0, 1, 2, 3]) == ["a", "", "", "🤖b", ""]
    assert stream(tokenizer, [0, 1, 2]) == ["a", "", "", "\ufffd"]
    assert stream(tokenizer, [1, 0]) == ["", "\ufffda", ""]


def test_special_tokens_are_skipped():
    tokenizer = CharTokenizer("ab")
    assert stream(tokenizer, [1, 3, 2]) == ["", "a", "", ""]
    assert stream(tokenizer, [1, 3, 2], skip_special=False) == ["<bos>", "a", "<eos>", ""]


def test_stop_strings():
    tokenizer = CharTokenizer("abcd\n")
    ids = tokenizer.encode("ab\n\ncd")
    assert stream(tokenizer, ids, stop=["\n\n"]) == ["a", "b", "", "", "", "", ""]
    assert stream(tokenizer, tokenizer.encode("ab\nc\n"), stop=["\n\n"]) == ["a", "b", "", "\nc", "", "\n"]
    texts = TextStream(tokenizer, stop=["bc", "abcd"])
    assert [texts.push(token) for token in tokenizer.encode("abc")] == ["", "", "a"]
    assert texts.stopped and texts.push(3) == "" and texts.finish() == ""


@pytest.mark.parametrize("stop", ["\n", [""]])
def test_malformed_stop(stop):
    with pytest.raises(UserError, match="stop must be"):
        TextStream(CharTokenizer("a"), stop=stop)


@given(
    st.lists(st.integers(0, 9), max_size=40),
    st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
)
def test_adds_up_to_the_finished_text(ids, stop):
    tokenizer = pieces(
        b"a", b"b", b"ab", b"ba", b"bab", "é".encode(), "é".encode()[:1], "é".encode()[1:], b"\xff", b"\xe2\x82"
    )
    text = tokenizer.decode(ids)
    # Cut before the stop string whose last character comes first; of those that end there, the longest.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = text[: min(ends)[1]] if ends else text
    assert "".join(stream(tokenizer, ids, stop=stop)) == expected
