"""SentencePiece vocabularies of GGUF files against a plain loop that merges the best pair of the whole text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_jax.errors import UserError
from prm_jax.models import Tokenizer, gguf_tokenizer
from prm_jax.models.gguf_pieces import recover_merges
from tests.models.checkpoints import CONFIGS, random_params, write_gguf

pytest.importorskip("tokenizers")
CONTROL, UNKNOWN, USER_DEFINED, BYTE, UNUSED = 3, 2, 4, 6, 5
BYTES = [f"<0x{i:02X}>" for i in range(256)]
# From the best score on.
MERGED = [
    "▁a", "ab", "▁▁", "aa", "bc", "▁ab", "abc", "▁▁▁▁", "▁abc",
    "aaaa", "ca", "cab", "é世", "b▁", "世b", "▁.", ".▁", "▁.▁.",
]  # fmt: skip
LETTERS = ["▁", "a", "b", "c", ".", "é", "世"]
SPECIAL = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|end|>": CONTROL}
ADDED = ["\n", "\n\n", "\n\n\n", "<think>", "    "]
TOKENS = [*SPECIAL, *BYTES, *ADDED, *MERGED, *LETTERS, "[PAD]"]
TYPES = [*SPECIAL.values(), *[BYTE] * 256, *[USER_DEFINED] * len(ADDED), *[1] * (len(MERGED) + len(LETTERS)), UNUSED]
NO_SCORE = -1000.0
SCORES = [
    *[NO_SCORE] * (len(SPECIAL) + 256 + len(ADDED)), *(-float(i) for i in range(len(MERGED) + len(LETTERS))), NO_SCORE
]  # fmt: skip
IDS = {token: index for index, token in enumerate(TOKENS)}
TEXTS = st.one_of(
    st.text(alphabet="aabbc. \n\té世🤖", max_size=40),
    st.lists(st.sampled_from([*SPECIAL, *ADDED, "abc", " a", "  ", "<0x41>", "aaa", "q"]), max_size=12).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


def metadata(**changes) -> dict:
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": TOKENS,
        "scores": SCORES,
        "token_type": TYPES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def load(**changes) -> Tokenizer:
    codec, special = gguf_tokenizer.load(metadata(**changes), source="m.gguf")
    return Tokenizer(codec, special=special)


def slow_ids(text: str, prefix: bool) -> list[int]:
    """Finds added tokens; in the text between them, merges the pair with the best score, the left of equals."""
    added = sorted([*SPECIAL, *ADDED], key=len, reverse=True)
    ids = []
    for part in re.split(f"({'|'.join(map(re.escape, added))})", text):
        if part in added:
            ids.append(IDS[part])
        elif part:
            ids += merged((" " if prefix else "") + part)
    return ids


def merged(text: str) -> list[int]:
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [
            (SCORES[IDS[a + b]], -i) for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False)) if a + b in IDS
        ]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [i for s in symbols for i in ([IDS[s]] if s in IDS else [IDS[BYTES[byte]] for byte in s.encode()])]


class TestIds:
    with_prefix, plain = load(), load(add_space_prefix=False)

    @given(TEXTS)
    def test_as_the_loop(self, text):
        assert self.with_prefix.encode(text) == slow_ids(text, True)
        assert self.plain.encode(text) == slow_ids(text, False)

    @given(TEXTS)
    def test_round_trip(self, text):
        ids, spans = self.plain.encode_with_spans(text)
        assert self.plain.decode(ids) == text.replace("▁", " ")
        assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))

    @given(st.text(alphabet="aabbc. \té世🤖", max_size=40))
    def test_the_space_in_front_is_taken_away_again(self, text):
        assert self.with_prefix.decode(self.with_prefix.encode(text)) == text

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("abc", ["▁abc"]),
            ("aaaaa", ["▁a", "aaaa"]),
            ("🤖", ["▁", "<0xF0>", "<0x9F>", "<0xA4>", "<0x96>"]),
            ("a\n\n\n\nb", ["▁a", "\n\n\n", "\n", "▁", "b"]),
            ("a     b", ["▁a", "    ", "▁▁", "b"]),  # the user's four spaces first; a space more goes before the rest
            ("<s>a", ["<s>", "▁a"]),
        ],
    )
    def test_tokens(self, text, tokens):
        assert [TOKENS[i] for i in self.with_prefix.encode(text)] == tokens

    def test_a_saved_tokenizer_is_the_same(self, tmp_path):
        self.with_prefix.save(tmp_path)
        again = Tokenizer.load(tmp_path)
        assert again.fingerprint == self.with_prefix.fingerprint
        text = " a 世🤖\n<s>aab"
        assert again.encode(text, add_special=True) == self.with_prefix.encode(text, add_special=True)

    def test_a_file(self, tmp_path):
        config = CONFIGS["qwen2"]
        write_gguf(tmp_path / "m.gguf", config, random_params(config), metadata=metadata())
        assert Tokenizer.load(tmp_path / "m.gguf").fingerprint == self.with_prefix.fingerprint


class TestSpecial:
    def test_tokens_added_around_a_text(self):
        assert load().encode("a", add_special=True) == [1, IDS["▁a"]]
        assert load(add_bos_token=False, add_eos_token=True).encode("a", add_special=True) == [IDS["▁a"], 2]

    def test_ends(self):
        assert load().special.eos_ids == (2, IDS["<|end|>"])

    def test_what_is_hidden_on_request(self):
        tokenizer = load()
        ids = [1, 0, IDS["<think>"], IDS["▁a"], 2]
        assert tokenizer.decode(ids, skip_special=True) == "<think> a"

    def test_tokens_of_phi_3_swallow_blanks_after_them(self):
        codec, special = gguf_tokenizer.load(metadata() | {"general.name": "Phi-3 mini"}, source="m.gguf")
        phi, text = Tokenizer(codec, special=special), "<|end|> \ta<s> a"
        assert phi.encode(text) == load().encode("<|end|>a<s> a") != load().encode(text)

    def test_unused_tokens_at_the_end_are_left_out(self):
        assert load().vocab_size == len(TOKENS) - 1


class TestMerges:
    def test_all_pairs_best_first(self):
        tokens, scores = ["a", "b", "ab", "aba", "ba", "x", "<0x41>", "<0x41>x"], [0, 0, -2, -1, -3, 0, 0, 0]
        assert recover_merges(tokens, scores) == [("ab", "a"), ("a", "ba"), ("a", "b"), ("b", "a")]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scores": None}, "m.gguf: tokenizer.ggml.scores is missing"),
            ({"scores": SCORES[:-2]}, f"scores has {len(TOKENS) - 2} entries for {len(TOKENS)} tokens"),
            ({"scores": [*SCORES[:-1], float("nan")]}, "not a finite number"),
            ({"token_type": TYPES[1:]}, f"{len(TOKENS) - 1} token types for {len(TOKENS)} tokens"),
            ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
            ({"unknown_token_id": len(TOKENS)}, "unknown_token_id=.* is outside"),
            ({"tokens": TOKENS[5:], "scores": SCORES[5:], "token_type": TYPES[5:], "unknown_token_id": None},
             "no tokenizer.ggml.unknown_token_id, and 255 of the 256 byte tokens"),
            ({"model": "t5"}, "tokenizer.ggml.model='t5' is not supported, expected 'gpt2'.*or 'llama'"),
            ({"model": None}, "tokenizer.ggml.model=None is not supported"),
        ],
    )  # fmt: skip
    def test_messages(self, changes, message):
        with pytest.raises(UserError, match=message):
            load(**changes)
