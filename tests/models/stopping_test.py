import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models.stopping import check_stop, cut_text, text_table, token_table


def _first_end(table: np.ndarray, tokens: list[int]) -> int | None:
    state = 0
    for i, token in enumerate(tokens):
        state = table[state, token]
        if state == len(table) - 1:
            return i
    return None


def test_token_sequences_end_at_their_last_token():
    table = token_table([(3,), (1, 1, 2), (2, 4)], 6)
    assert _first_end(table, [0, 5, 3]) == 2
    assert _first_end(table, [1, 1, 1, 2]) == 3
    assert _first_end(table, [1, 2, 4]) == 2
    assert _first_end(table, [1, 2, 1, 4, 0]) is None


def test_the_last_state_is_never_left():
    table = token_table([(3,)], 6)
    np.testing.assert_array_equal(table[-1], np.full(6, len(table) - 1))


@pytest.mark.parametrize("seed", range(5))
def test_random_sequences_against_a_search(seed):
    rng = np.random.default_rng(seed)
    patterns = [tuple(rng.integers(0, 3, rng.integers(1, 5)).tolist()) for _ in range(3)]
    table = token_table(patterns, 3)
    for _ in range(50):
        tokens = rng.integers(0, 3, 12).tolist()
        ends = [i for i in range(12) for p in patterns if tuple(tokens[max(0, i - len(p) + 1) : i + 1]) == p]
        assert _first_end(table, tokens) == (min(ends) if ends else None)


@pytest.mark.parametrize("seed", range(5))
def test_strings_are_found_across_and_inside_tokens(seed):
    rng = np.random.default_rng(seed)
    pieces = [b"", b"a", b"b", b"ab", b"ba", b"aab", "é".encode()[:1], "é".encode()[1:], b"b\n\na"]
    strings = ["ab", "é", "\n\n", "bbaa"][seed % 4 :] + ["aaaa"]
    table = text_table(strings, pieces, len(pieces) + 2)
    for _ in range(100):
        tokens = rng.integers(0, len(pieces), 8).tolist()
        text = b""
        expected = None
        for i, token in enumerate(tokens):
            text += pieces[token]
            if any(string.encode() in text for string in strings):
                expected = i
                break
        assert _first_end(table, tokens) == expected
    assert _first_end(table, [len(pieces), len(pieces) + 1]) is None  # rows of the embedding without a token


def test_text_is_cut_at_the_first_completed_string():
    assert cut_text("12\nQ: 3", ["Q:", "\n"], keep_stop=True) == "12\n"
    assert cut_text("12\nQ: 3", ["Q:", "\n"], keep_stop=False) == "12"
    assert cut_text("xaby", ["b", "ab"], keep_stop=False) == "x"
    assert cut_text("12", ["Q:"], keep_stop=False) == "12"


def test_stop_entries_are_classified_and_checked():
    assert check_stop("ab", (2,), 10) == (("ab",), ((2,),))
    assert check_stop(["x", (1, 2)], (), 10) == (("x",), ((1, 2),))
    for stop, eos_ids, message in [
        ([""], (), "empty"),
        ([()], (), "empty"),
        ((), (10,), "token 10"),
        ([(-1,)], (), "-1"),
    ]:
        with pytest.raises(UserError, match=message):
            check_stop(stop, eos_ids, 10)
