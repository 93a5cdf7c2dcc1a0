"""A pretrained model against another engine: token ids, log-probs, and its chat template."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.errors import MissingExtraError
from prm_jax.models import (
    Tokenizer,
    check_fits,
    check_same_vocabulary,
    find_smollm2,
    load_weights,
    save_weights,
    token_logprobs,
)
from tests.models.checkpoints import same_bits

pytestmark = pytest.mark.optional

CASES = json.loads((pathlib.Path(__file__).parent / "smollm2_logprobs.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def path() -> pathlib.Path:
    try:
        return find_smollm2()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer(path) -> Tokenizer:
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def model(path):
    return load_weights(path)


def rows() -> tuple[np.ndarray, np.ndarray]:
    length = max(len(case["token_ids"]) for case in CASES)
    tokens = np.zeros((len(CASES), length), np.int32)
    mask = np.zeros((len(CASES), length), bool)
    for row, case in enumerate(CASES):
        tokens[row, : len(case["token_ids"])] = case["token_ids"]
        mask[row, : len(case["token_ids"])] = True
    return tokens, mask


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_token_ids(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["token_ids"]
    assert tokenizer.decode(case["token_ids"]) == case["text"]


def test_logprobs(model, tokenizer):
    config, params = model
    check_fits(tokenizer, config)
    tokens, mask = rows()
    logp = np.asarray(token_logprobs(config, params, jnp.asarray(tokens), jnp.asarray(mask)))
    for row, case in zip(logp, CASES, strict=True):
        np.testing.assert_allclose(row[1 : len(case["token_ids"])], case["logprobs"], rtol=0, atol=2e-4)


def test_chat(tokenizer):
    text = tokenizer.render_chat([{"role": "user", "content": "What is 12 * 3? Think step by step."}])
    assert CASES[0]["text"].startswith(text)
    assert tokenizer.chat([{"role": "user", "content": "hi"}])[-4:] == tokenizer.encode("<|im_start|>assistant\n")[-4:]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), 2)


def test_through_the_hugging_face_layout(model, tokenizer, tmp_path):
    config, params = model
    save_weights(tmp_path / "m", config, params, tokenizer=tokenizer, max_shard_bytes=200_000_000)
    read, back = load_weights(tmp_path / "m", host=True)
    assert read == config
    assert same_bits(back, params)
    again = Tokenizer.load(tmp_path / "m")
    check_same_vocabulary(again, tokenizer)
    assert [again.encode(case["text"]) for case in CASES] == [case["token_ids"] for case in CASES]
