"""Layouts token by token against the code that the models were trained or published with, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import cli, models
from prm_jax.data.step_data import StepRecord, read_step_data
from prm_jax.errors import UserError
from prm_jax.models import Tokenizer, save_weights
from prm_jax.prm.model import load
from prm_jax.prm.public import LAYOUTS
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.rows import build_rows
from prm_jax.prm.score import score_solutions
from tests.models.checkpoints import random_params
from tests.prm.model_test import CHATML, checkpoint

tokenizers = pytest.importorskip("tokenizers")

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer: punctuation takes the line ends after it."""
MERGES = (
    ". Ċ", ".Ċ Ċ", "Ċ Ċ", "$ Ċ", ") Ċ", "Ġ Ċ", "t h", "th e", "i s", "Ġ the", "Ġ is", ": Ċ",
)  # fmt: skip
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TRIMMING = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}")


def write_tokenizer(path, *, bos=None, template=CHATML):
    """A byte-level tokenizer with Qwen's pre-tokenizer and a few merges."""
    pre = tokenizers.pre_tokenizers
    merges = [tuple(pair.split(" ")) for pair in MERGES]
    vocab = {letter: index for index, letter in enumerate(sorted(pre.ByteLevel.alphabet()))}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    split = pre.Split(tokenizers.Regex(QWEN), "isolated")
    fast.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = tokenizers.decoders.ByteLevel()
    fast.add_special_tokens(list(SPECIALS))
    path.mkdir(parents=True, exist_ok=True)
    fast.save(str(path / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
    if bos:
        settings["bos_token"] = bos
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture
def qwen(tmp_path):
    write_tokenizer(tmp_path / "tok", bos="<|im_start|>")
    return Tokenizer.load(tmp_path / "tok")


def rows_of(tokenizer, records, layout):
    return build_rows(records, tokenizer, layout, max_length=1 << 20)[0]


# What TRL 0.19.1's PRMTrainer.tokenize_row gives for this solution with this tokenizer, and where it puts labels.
TRL_RECORD = StepRecord("Two and 3?", ("This is the sum.", "So $2+3$", "5."), (1.0, 0.0, 1.0), None, "g", "r")
TRL_IDS = [
    269, 51, 86, 78, 220, 64, 77, 67, 220, 18, 30, 51, 71, 264, 266, 265, 220, 82, 84, 76, 13, 198, 50, 78, 220, 3, 17,
    10, 18, 3, 198, 20, 13, 198,
]  # fmt: skip
TRL_LABELS = {21: 1, 30: 0, 33: 1}


def test_trls_rows_are_tokenised_in_its_pieces(qwen):
    (row,) = rows_of(qwen, [TRL_RECORD], LAYOUTS["token_classification"].text)
    assert row.tokens.tolist() == TRL_IDS
    assert dict(zip(row.reads.tolist(), row.labels.tolist(), strict=True)) == TRL_LABELS
    (cut,) = rows_of(
        qwen, [dataclasses.replace(TRL_RECORD, steps=("This is the sum.\n", "So $2+3$\n", "5."))],
        LAYOUTS["token_classification"].text,
    )  # fmt: skip
    assert cut.tokens.tolist() == TRL_IDS  # steps that were cut out of a response have their separators already
    (whole,) = rows_of(qwen, [TRL_RECORD], TextLayout(begin="bos"))
    assert len(whole.tokens) == len(TRL_IDS) - 3  # ".\n", "$\n" and ".\n" are single tokens


def test_trls_rows_on_public_solutions(data_dir, qwen):
    records = read_step_data(data_dir / "processbench" / "gsm8k.json")
    newline, merged = qwen.encode("\n"), 0
    rows = rows_of(qwen, records, LAYOUTS["token_classification"].text)
    one = rows_of(qwen, records, TextLayout(begin="bos"))
    for record, row, other in zip(records, rows, one, strict=True):
        ids, reads = [qwen.bos_id, *qwen.encode(record.prompt)], []
        for step in record.steps:
            ids += [*qwen.encode(step), *newline]
            reads.append(len(ids) - 1)
        assert row.tokens.tolist() == ids and row.reads.tolist() == reads
        merged += sum(a != b for a, b in zip(row.reads, other.reads, strict=True))
    assert merged > 1000  # in one piece most steps would be read elsewhere


def test_a_policys_rows_are_prompt_and_response(qwen):
    layout = TextLayout(separator="", pieces="prompt", end=True)
    record = StepRecord("Sum:", ("\nIt is.\n", "5"), None, None, "g", "r")
    (row,) = rows_of(qwen, [record], layout)
    ids = [*qwen.encode("Sum:", add_special=True), *qwen.encode("\nIt is.\n5"), qwen.eos_id]
    assert row.tokens.tolist() == ids and row.reads[-1] == len(ids) - 1
    (one,) = rows_of(qwen, [record], dataclasses.replace(layout, pieces="one"))
    assert len(one.tokens) == len(ids) - 1  # ":\n" is one token there


# ------------------------------------------------------------------------------- implicit checkpoints


STEPS = ("First: 1+1=2.", "So it is\n3", "The sum is 3.")


@pytest.fixture
def eurus(tmp_path):
    """A random policy and its reference with Qwen's pre-tokenizer."""
    for name, seed in (("m", 1), ("ref", 2)):
        config = models.ModelConfig(
            architecture="qwen2", vocab_size=272, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
            num_kv_heads=1, head_dim=8, attention_bias=True, max_position_embeddings=512,
        )  # fmt: skip
        save_weights(tmp_path / name, config, random_params(config, seed=seed))
        (tmp_path / name / "SHA256SUMS").unlink()
        write_tokenizer(tmp_path / name)
    return tmp_path


def card_scores(prm, question, steps):
    """The model card's read-out, in its own shifted coordinates."""
    tokenizer = prm.tokenizer

    def conversation(count):
        messages = [
            {"role": "user", "content": question}, {"role": "assistant", "content": "\n\n".join(steps[:count])},
        ]  # fmt: skip
        return tokenizer.render_chat(messages, add_generation_prompt=False)

    ids = tokenizer.encode(conversation(len(steps)))
    last = []
    for count in range(len(steps) + 1):
        text = conversation(count).strip()
        if count not in (0, len(steps)):
            text += "\n\n"
        last.append(len(tokenizer.encode(text)) - 2)
    run = jax.jit(lambda params: models.token_logprobs(prm.spec.config, params, jnp.asarray([ids])))
    ratio = np.asarray(run(prm.weights.model) - run(prm.weights.reference))[0, 1:]  # shifted: entry i is token i + 1
    mask = (np.arange(len(ids)) >= last[0])[1:]
    return np.cumsum(0.001 * ratio * mask)[last[1:]]


def test_the_card_of_eurus_reads_cumulative_shifted_scores(eurus):
    prm = load(eurus / "m", layout="eurus_prm", reference=eurus / "ref", convention="card")
    record = StepRecord("What is 1+1+1?", STEPS, None, None, "g", "r")
    (found,) = score_solutions(prm, [record])
    np.testing.assert_allclose(found.steps, card_scores(prm, record.prompt, STEPS), rtol=1e-3, atol=1e-7)
    own = load(eurus / "m", layout="eurus_prm", reference=eurus / "ref")
    plain = np.cumsum(score_solutions(own, [record])[0].steps)
    assert np.abs(plain - found.steps).max() > 1e-5  # the shift is visible


def test_a_log_ratio_without_its_reference_is_refused(eurus, capsys):
    with pytest.raises(UserError, match="log-ratio to a reference, which the directory does not hold.*--reference"):
        load(eurus / "m", layout="eurus_prm")
    file = eurus / "data.jsonl"
    file.write_text(json.dumps({"prompt": "1?", "response": "a\nb"}) + "\n")
    words = ["score", str(eurus / "m"), str(file), "--layout", "eurus_prm", "--out", str(eurus / "out")]
    assert cli.main(words) == 2
    assert "--reference" in capsys.readouterr().err and not (eurus / "out" / "scores.jsonl").exists()


# ------------------------------------------------------------------------------- chat templates


@pytest.fixture
def rlhflow(tmp_path):
    """A model whose chat template trims what it is given, as Llama 3's does."""
    checkpoint(tmp_path / "m", "llama")
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    settings["chat_template"] = TRIMMING
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path / "m"


def test_templates_that_trim_score_steps_with_white_space(rlhflow):
    prm = load(rlhflow, layout="rlhflow")
    clean = StepRecord("1+1?", ("Step 1: 2.", "Step 2: so 2"), None, None, "g", "clean")
    spaced = dataclasses.replace(clean, steps=("Step 1: 2. ", "\n Step 2: so 2  "), id="spaced")
    a, b = score_solutions(prm, [clean, spaced])
    np.testing.assert_allclose(a.steps, b.steps, rtol=1e-6)


def test_a_record_that_a_template_cannot_write_is_named(rlhflow):
    settings = json.loads((rlhflow / "tokenizer_config.json").read_text())
    settings["chat_template"] = CHATML.replace("{{ m.content }}", "{{ m.content | replace('bad', '') }}")
    (rlhflow / "tokenizer_config.json").write_text(json.dumps(settings))
    prm = load(rlhflow, layout="rlhflow")
    good = StepRecord("1+1?", ("one", "two"), None, None, "g", "first")
    bad = dataclasses.replace(good, steps=("bad step", "two"), id="data.jsonl:2")
    with pytest.raises(UserError, match="data.jsonl:2: this chat template does not show the steps.*--layout"):
        score_solutions(prm, [good, bad])
