"""Tokenizers from all kinds of files agree with each other, with the tokenizers package, and with the text."""

import json
import os
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer, SpecialTokens, Tokenizer, check_fits, check_same_vocabulary, tokenizer_files
from prm_jax.models.fast_codec import FastCodec
from tests.models.checkpoints import CONFIGS, random_params, write_gguf

tokenizers = pytest.importorskip("tokenizers", reason="pip install 'prm-jax[hf]'")

CORPUS = ["the cat sat on the mat and the rat", "12 + 34 = 46, so 12 + 35 = 47", "häuser größer naïve 世界 🤖"] * 4
TEXTS = [
    "", " ", "the cat sat", "  two  blanks\n\n\tand\r\nmore ", "1234567 + 8", "it's THEY'LL", "größe 世界 🤖🏽 e\u0301",
    "<bos>a<end>b <end>", "x\x00y", "the<think>cat",
]  # fmt: skip
SPECIALS = ["<pad>", "<bos>", "<eos>", "<end>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}> {% endif %}"
)


def trained() -> "tokenizers.Tokenizer":
    """A byte-level BPE of 400 tokens that puts <bos> before a text."""
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    fast.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(CORPUS, trainer)
    fast.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    fast.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return fast


FAST = trained()
CONFIG = {
    "bos_token": "<bos>",
    "eos_token": {"content": "<eos>", "special": True},
    "pad_token": "<pad>",
    "chat_template": TEMPLATE,
    "auto_map": {"AutoTokenizer": "evil.py"},
    "model_max_length": 77,
}


@pytest.fixture
def directory(tmp_path) -> pathlib.Path:
    FAST.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
    return tmp_path


def gguf_metadata() -> dict:
    state = json.loads(FAST.to_str())
    vocabulary = sorted(FAST.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    merges = [" ".join(merge) for merge in state["model"]["merges"]]
    kinds = {**dict.fromkeys(SPECIALS, 3), "<think>": 4}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary] + ["[PAD301]", "[PAD302]"],
        "tokenizer.ggml.token_type": [kinds.get(token, 1) for token, _ in vocabulary] + [5, 5],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


def fast(text: "tokenizers.Tokenizer") -> Tokenizer:
    return Tokenizer(FastCodec(tokenizers.Tokenizer.from_str(text.to_str())), special=SpecialTokens())


class TestDirectory:
    def test_ids_and_names(self, directory):
        tokenizer = Tokenizer.load(directory)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
        assert tokenizer.eos_ids == (2, 3)
        assert tokenizer.special_ids == {0, 1, 2, 3}
        assert tokenizer.vocab_size == 301
        assert tokenizer.tokens[300] == "<think>"

    @pytest.mark.parametrize("text", TEXTS)
    def test_encodes_as_the_package_and_back(self, directory, text):
        tokenizer = Tokenizer.load(directory)
        expected = FAST.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == expected.ids
        assert tokenizer.encode_with_spans(text) == (expected.ids, expected.offsets)
        assert tokenizer.encode(text, add_special=True) == [1, *expected.ids]
        assert tokenizer.decode(expected.ids) == text

    def test_special_tokens_are_skipped_on_request(self, directory):
        tokenizer = Tokenizer.load(directory)
        ids = tokenizer.encode("<bos>a<think>b<end>")
        assert tokenizer.decode(ids, skip_special=True) == "a<think>b"
        text, spans = tokenizer.decode_with_spans(ids, skip_special=True)
        assert text == "a<think>b"
        assert [text[a:b] for a, b in spans] == ["", "a", "<think>", "b", ""]

    def test_truncation_and_padding_of_the_file_are_ignored(self, directory):
        cut = tokenizers.Tokenizer.from_str(FAST.to_str())
        cut.enable_truncation(3)
        cut.enable_padding(length=50)
        cut.save(str(directory / "tokenizer.json"))
        assert Tokenizer.load(directory).encode("the cat sat on") == FAST.encode("the cat sat on").ids[1:]

    def test_a_bare_file(self, tmp_path):
        FAST.save(str(tmp_path / "tokenizer.json"))
        tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.eos_ids) == (None, None, 0, ())
        with pytest.raises(UserError, match="no chat template"):
            tokenizer.chat([{"role": "user", "content": "x"}])

    def test_padding_falls_back_to_the_end(self, directory):
        (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
        assert Tokenizer.load(directory).pad_id == 2

    def test_chat(self, directory):
        tokenizer = Tokenizer.load(directory)
        messages = [{"role": "user", "content": "the cat"}]
        assert tokenizer.render_chat(messages) == "<bos>the cat<end>> "
        assert tokenizer.chat(messages) == tokenizer.encode("<bos>the cat<end>> ")
        assert tokenizer.chat(messages, add_generation_prompt=False)[-1] == 3

    def test_where_templates_are_kept(self, directory):
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
        (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
        assert Tokenizer.load(directory).chat_template == "yes"
        (directory / "chat_template.jinja").write_text("file")
        assert Tokenizer.load(directory).chat_template == "file"

    @pytest.mark.parametrize("kind", ["directory", "gguf", "char"])
    def test_saved_and_loaded(self, directory, tmp_path, kind):
        if kind == "gguf":
            write_gguf(tmp_path / "m.gguf", CONFIGS["qwen2"], random_params(CONFIGS["qwen2"]), metadata=gguf_metadata())
        tokenizer = {
            "directory": lambda: Tokenizer.load(directory),
            "gguf": lambda: Tokenizer.load(tmp_path / "m.gguf"),
            "char": lambda: CharTokenizer("abc", chat_template=TEMPLATE),
        }[kind]()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "chat_template.jinja").write_text("stale")
        tokenizer.save(tmp_path / "out")
        back = Tokenizer.load(tmp_path / "out")
        assert type(back) is type(tokenizer)
        assert back.fingerprint == tokenizer.fingerprint
        assert (back.special, back.special_ids) == (tokenizer.special, tokenizer.special_ids)
        assert back.chat_template == TEMPLATE
        assert back.encode("abc", add_special=True) == tokenizer.encode("abc", add_special=True)
        config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
        assert "auto_map" not in config
        assert config.get("model_max_length") == (77 if kind == "directory" else None)

    def test_fingerprint_sees_the_vocabulary_only(self, directory):
        tokenizer = Tokenizer.load(directory)
        (directory / "tokenizer_config.json").unlink()
        assert Tokenizer.load(directory).fingerprint == tokenizer.fingerprint
        assert CharTokenizer("ab").fingerprint != CharTokenizer("ba").fingerprint


class TestSpecialTokens:
    def test_an_end_token_of_the_special_tokens_map(self, directory):
        config = json.loads((directory / "tokenizer_config.json").read_text())
        del config["eos_token"]
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        (directory / "generation_config.json").unlink()
        (directory / "special_tokens_map.json").write_text('{"eos_token": {"content": "<end>", "lstrip": false}}')
        loaded = Tokenizer.load(directory)
        assert loaded.eos_ids == (loaded.tokens.index("<end>"),)
        (directory / "special_tokens_map.json").write_text('{"eos_token": "<fin>"}')
        with pytest.raises(UserError, match="special_tokens_map.json: eos_token='<fin>' is not a token"):
            Tokenizer.load(directory)
        loaded.save(directory)  # the old map would contradict
        assert Tokenizer.load(directory).special == loaded.special

    def test_an_end_token_of_the_model_s_config(self, directory):
        (directory / "tokenizer_config.json").write_text("{}")
        (directory / "generation_config.json").unlink()
        (directory / "config.json").write_text('{"eos_token_id": [2, 3]}')
        assert Tokenizer.load(directory).eos_ids == (2, 3)

    def test_a_tokenizer_without_end_token_is_reported(self, directory, caplog):
        Tokenizer.load(directory)
        assert not caplog.records
        (directory / "tokenizer_config.json").write_text("{}")
        (directory / "generation_config.json").unlink()
        assert Tokenizer.load(directory).eos_ids == ()
        assert "has no end-of-text token" in caplog.text and "special_tokens_map.json" in caplog.text


def rewritten(directory: pathlib.Path, **changes) -> pathlib.Path:
    described = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps({**described, **changes}))
    return directory


def split_at(pattern: str) -> dict:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def replace(pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


class TestHostileFiles:
    """What a tokenizer.json could do to the process that loads it happens in another one, and is refused by name."""

    @pytest.mark.parametrize("index", [300_000_000, 2**31 - 1, 10**30, -1, 1.5, None, True])
    def test_ids(self, directory, index):
        described = json.loads((directory / "tokenizer.json").read_text())
        rewritten(directory, model={**described["model"], "vocab": {**described["model"]["vocab"], "far": index}})
        start = time.monotonic()
        with pytest.raises(UserError, match="tokenizer.json is not loaded: the vocabulary has the id"):
            Tokenizer.load(directory)
        assert time.monotonic() - start < 20

    def test_ids_of_added_tokens(self, directory):
        described = json.loads((directory / "tokenizer.json").read_text())
        rewritten(directory, added_tokens=[*described["added_tokens"], {"id": 3 * 10**8, "content": "<far>"}])
        with pytest.raises(UserError, match="the id 300000000 but only 306 tokens"):
            Tokenizer.load(directory)

    @pytest.mark.parametrize("pattern", [r"(a+)+$", r"(?:\w+\s?)+$", r"(?:a|a?)+$", r"(a|aa)+b", r"( +)+\n$"])
    def test_patterns_that_backtrack(self, directory, pattern):
        rewritten(directory, pre_tokenizer=split_at(pattern))
        with pytest.raises(UserError, match="tokenizer.json is not loaded: .*(retry-limit|seconds)"):
            Tokenizer.load(directory)

    @pytest.mark.parametrize(
        ("normalizer", "message"),
        [
            (replace("a", "b" * 10**6), "Replace. may make a text 1e.06 times longer"),
            ({"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}, "times longer"),
            ({"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 9}, "times longer"),
            ({"type": "Prepend", "prepend": "x" * 10**6}, "prepends 1000000 characters"),
            ({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y" * 500}, "times longer"),
        ],
    )
    def test_normalizers_that_expand(self, directory, normalizer, message):
        rewritten(directory, normalizer=normalizer)
        with pytest.raises(UserError, match=f"tokenizer.json is not loaded: its normalizer.*{message}"):
            Tokenizer.load(directory)

    def test_what_sentencepiece_does_is_fine(self, directory):
        both = [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"), {"type": "NFKC"}, {"type": "Lowercase"}]
        Tokenizer.load(rewritten(directory, normalizer={"type": "Sequence", "normalizers": both}))

    def test_a_panic_at_use_is_an_error_with_a_name(self):
        hostile = tokenizers.Tokenizer.from_str(FAST.to_str())
        hostile.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(z+)+$"), "isolated")
        with pytest.raises(UserError, match="cannot tokenize 'zzzz.*retry-limit"):
            fast(hostile).encode("z" * 200 + "!")

    def test_pipes(self, directory):
        (directory / "tokenizer_config.json").unlink()
        os.mkfifo(directory / "tokenizer_config.json")
        with pytest.raises(UserError, match="tokenizer_config.json is a named pipe"):
            Tokenizer.load(directory)

    def test_a_file_is_tried_once(self, directory, monkeypatch):
        Tokenizer.load(directory)
        monkeypatch.setattr(tokenizer_files, "ChildProcess", None)
        Tokenizer.load(directory)


class TestErrors:
    def test_no_tokenizer(self, tmp_path):
        with pytest.raises(UserError, match="no such file"):
            Tokenizer.load(tmp_path / "absent")
        with pytest.raises(UserError, match="expected a tokenizer.json"):
            Tokenizer.load(tmp_path)
        (tmp_path / "tokenizer.model").write_bytes(b"")
        with pytest.raises(UserError, match="slow tokenizer.*save_pretrained"):
            Tokenizer.load(tmp_path)
        with pytest.raises(UserError, match="is not a tokenizer"):
            Tokenizer.load(tmp_path / "tokenizer.model")

    def test_broken_files(self, directory):
        (directory / "tokenizer_config.json").write_text('{"bos_token": "<none>"}')
        with pytest.raises(UserError, match="bos_token='<none>' is not a token"):
            Tokenizer.load(directory)
        (directory / "tokenizer_config.json").write_text('{"chat_template": 3}')
        with pytest.raises(UserError, match="chat_template must be text"):
            Tokenizer.load(directory)
        (directory / "tokenizer_config.json").write_text('{"a": 1,}')
        with pytest.raises(UserError, match=r"tokenizer_config.json:1:\d+: not valid JSON"):
            Tokenizer.load(directory)
        (directory / "tokenizer_config.json").unlink()
        (directory / "generation_config.json").write_text('{"eos_token_id": "x"}')
        with pytest.raises(UserError, match="eos_token_id must be an id"):
            Tokenizer.load(directory)
        (directory / "generation_config.json").write_text('{"eos_token_id": 301}')
        with pytest.raises(UserError, match="301 is outside"):
            Tokenizer.load(directory)
        (directory / "tokenizer.json").write_text("{}")
        with pytest.raises(UserError, match="the tokenizers package cannot use it: "):
            Tokenizer.load(directory)

    def test_unknown_decoders(self):
        other = tokenizers.Tokenizer.from_str(FAST.to_str())
        for decoder, name in [(tokenizers.decoders.WordPiece(), "WordPiece"), (None, "null")]:
            other.decoder = decoder
            with pytest.raises(UserError, match=f"decoder {name} is not supported"):
                fast(other)

    def test_half_a_surrogate_pair(self, directory):
        with pytest.raises(UserError, match="cannot tokenize"):
            Tokenizer.load(directory).encode("a\ud800b")


class TestBytes:
    tokenizer = fast(FAST)

    @given(st.text())
    def test_any_text_round_trips(self, text):
        if any("\ud800" <= c <= "\udfff" for c in text):
            return
        ids, spans = self.tokenizer.encode_with_spans(text)
        assert self.tokenizer.decode(ids) == text
        assert self.tokenizer.decode_with_spans(ids)[0] == text
        covered = {i for start, end in spans for i in range(start, end)}
        assert covered == set(range(len(text)))

    @given(st.lists(st.integers(0, 300), max_size=30))
    def test_any_ids_decode_as_in_the_package(self, ids):
        text = self.tokenizer.decode(ids)
        assert text == FAST.decode(ids, skip_special_tokens=False)
        again, spans = self.tokenizer.decode_with_spans(ids)
        assert again == text and len(spans) == len(ids)
        assert all(a <= b for a, b in spans)
        assert all(x[0] <= y[0] and x[1] <= y[1] for x, y in zip(spans, spans[1:], strict=False))
        assert {i for a, b in spans for i in range(a, b)} == set(range(len(text)))

    def test_a_character_cut_in_two(self):
        ids = self.tokenizer.encode("a🤖b")
        text, spans = self.tokenizer.decode_with_spans(ids)
        assert [text[a:b] for a, b in spans] == ["a", *["🤖"] * (len(ids) - 2), "b"]
        assert len(ids) > 3

    def test_ids_outside_the_vocabulary(self):
        assert self.tokenizer.decode([self.tokenizer.vocab_size, -1]) == "\ufffd\ufffd"


class TestSentencePieceKind:
    """As Llama 2 has it: blanks written as a letter, bytes as tokens, one blank put in front of every text."""

    def make(self) -> "tokenizers.Tokenizer":
        pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        model = tokenizers.models.BPE(
            vocab=vocabulary,
            merges=[("▁", "a"), ("a", "b"), ("▁a", "b")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
        made = tokenizers.Tokenizer(model)
        norm, dec = tokenizers.normalizers, tokenizers.decoders
        made.normalizer = norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])
        made.decoder = dec.Sequence([dec.Replace("▁", " "), dec.ByteFallback(), dec.Fuse(), dec.Strip(" ", 1, 0)])
        made.add_special_tokens(["<unk>", "<s>"])
        return made

    @pytest.mark.parametrize("text", ["ab", "a b  ab", " a", "abé世🤖", "aaab ba"])
    def test_as_the_package(self, text):
        theirs = self.make()
        mine = fast(theirs)
        ids = theirs.encode(text).ids
        assert mine.encode(text) == ids
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False) == text
        decoded, spans = mine.decode_with_spans(ids)
        assert decoded == text
        assert {i for a, b in spans for i in range(a, b)} == set(range(len(text)))


class TestGguf:
    @pytest.fixture
    def load(self, tmp_path):
        def load(**changes) -> Tokenizer:
            metadata = gguf_metadata() | {f"tokenizer.ggml.{k}": v for k, v in changes.items() if v is not None}
            metadata = {
                k: v for k, v in metadata.items() if changes.get(k.removeprefix("tokenizer.ggml."), 0) is not None
            }
            (tmp_path / "m.gguf").unlink(missing_ok=True)
            write_gguf(tmp_path / "m.gguf", CONFIGS["qwen2"], random_params(CONFIGS["qwen2"]), metadata=metadata)
            return Tokenizer.load(tmp_path / "m.gguf")

        return load

    def test_equals_the_directory(self, load, directory):
        ours, theirs = load(), Tokenizer.load(directory)
        assert ours.fingerprint == theirs.fingerprint
        assert (ours.special, ours.special_ids) == (theirs.special, theirs.special_ids)
        assert ours.chat_template == theirs.chat_template
        for text in TEXTS:
            assert ours.encode(text) == theirs.encode(text)
            assert ours.encode(text, add_special=True) == theirs.encode(text, add_special=True)

    def test_tokens_added_around_a_text(self, load):
        assert load(add_bos_token=False).encode("a", add_special=True) == load().encode("a")
        assert load(add_bos_token=False, add_eos_token=True).encode("a", add_special=True)[1:] == [2]
        assert load(add_bos_token=None).encode("a", add_special=True)[0] != 1
        assert load(add_bos_token=None, pre="llama-bpe").encode("a", add_special=True)[0] == 1

    @pytest.mark.parametrize(
        ("pre", "pieces"),
        [
            ("gpt-2", ["I", "'ll", "Ġpay", "Ġ12345", "Ġ", "Ġ$", "Ċ", "Ġx", ".", "Ċ"]),
            ("smollm", ["I", "'ll", "Ġpay", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġ$", "Ċ", "Ġx", ".", "Ċ"]),
            ("llama-bpe", ["I", "'ll", "Ġpay", "Ġ", "123", "45", "Ġ", "Ġ$Ċ", "Ġx", ".Ċ"]),
            ("qwen2", ["I", "'ll", "Ġpay", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġ$Ċ", "Ġx", ".Ċ"]),
        ],
    )
    def test_how_words_are_split(self, load, pre, pieces):
        pre_tokenizer = tokenizers.Tokenizer.from_str(load(pre=pre).to_json()).pre_tokenizer
        assert [piece for piece, _ in pre_tokenizer.pre_tokenize_str("I'll pay 12345  $\n x.\n")] == pieces

    def test_unicode_is_composed_for_qwen(self, load):
        assert load(pre="qwen2").encode("e\u0301") == load().encode("é") != load().encode("e\u0301")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pre": "mystery"}, "tokenizer.ggml.pre='mystery' is not known; known: gpt-2, smollm"),
            ({"model": "t5"}, "tokenizer.ggml.model='t5' is not supported.*tokenizer.json"),
            ({"model": "llama"}, "tokenizer.ggml.scores is missing"),
            ({"merges": None}, "tokenizer.ggml.merges is missing"),
            ({"merges": ["ab"]}, "expected two tokens"),
            ({"merges": ["qqq zzz"]}, "do not fit together"),
            ({"token_type": [1, 1]}, "2 token types for 303 tokens"),
            ({"tokens": ["a", "a"], "token_type": [1, 1]}, "duplicate token"),
            ({"eos_token_id": 301}, "eos_token_id=301 is outside its 301 tokens"),
        ],
    )
    def test_refusals(self, load, changes, message):
        with pytest.raises(UserError, match=message):
            load(**changes)


class TestChar:
    tokenizer = CharTokenizer("0123456789+=;#")

    def test_ids(self):
        assert self.tokenizer.vocab_size == 17
        assert (self.tokenizer.pad_id, self.tokenizer.bos_id, self.tokenizer.eos_id) == (0, 1, 2)
        assert self.tokenizer.encode("7+5=") == [10, 13, 8, 14]
        assert self.tokenizer.encode("7", add_special=True) == [1, 10]
        assert self.tokenizer.decode([1, 10, 13, 2, 0]) == "<bos>7+<eos><pad>"
        assert self.tokenizer.decode([1, 10, 13, 2, 0], skip_special=True) == "7+"
        assert self.tokenizer.encode_with_spans("7<eos>8") == ([10, 2, 11], [(0, 1), (1, 6), (6, 7)])

    def test_unknown_characters_are_named(self):
        with pytest.raises(UserError, match="'x' at position 2 is not in the alphabet"):
            self.tokenizer.encode("1+x")

    @pytest.mark.parametrize(
        ("alphabet", "message"), [("", "empty"), ("aba", "'a' more than once"), ("a\ud800", "surrogate")]
    )
    def test_alphabets(self, alphabet, message):
        with pytest.raises(UserError, match=message):
            CharTokenizer(alphabet)

    @pytest.mark.parametrize("text", ["1+2=3;", "", "<bos>7<eos>", "ü\n é.[x]🤖"])
    def test_other_libraries_read_its_file_as_the_same(self, text):
        mine = CharTokenizer('0123456789+=;#ü\n é.[x]🤖"\\')
        theirs = tokenizers.Tokenizer.from_str(mine.to_json())
        for add_special in (False, True):
            assert theirs.encode(text, add_special_tokens=add_special).ids == mine.encode(text, add_special=add_special)
        ids = mine.encode(text)
        assert theirs.decode(ids, skip_special_tokens=False) == mine.decode(ids) == text
        with pytest.raises(Exception, match="UNK"):
            theirs.encode("A")


class TestChecks:
    def test_same_vocabulary(self, directory):
        check_same_vocabulary(Tokenizer.load(directory), Tokenizer.load(directory / "tokenizer.json"))
        with pytest.raises(UserError, match="id 4 is 'b' for the policy and 'c' for the reward model"):
            check_same_vocabulary(CharTokenizer("ab"), CharTokenizer("ac"))
        with pytest.raises(UserError, match=r"id 5 \('c'\) exists for B only"):
            check_same_vocabulary(CharTokenizer("ab"), CharTokenizer("abc"), names=("A", "B"))

    def test_fits(self):
        check_fits(CharTokenizer("abc"), CONFIGS["llama"])
        alphabet = "".join(chr(0x4E00 + i) for i in range(95))
        with pytest.raises(UserError, match="ids up to 97.*embedding has 97 rows"):
            check_fits(CharTokenizer(alphabet), CONFIGS["llama"])
