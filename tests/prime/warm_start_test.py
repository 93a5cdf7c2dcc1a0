"""The warm start: what is learned of a demonstration, and models that are loaded."""

import dataclasses
import types

import numpy as np
import pytest

from prm_jax import prime
from prm_jax.data import make_task
from prm_jax.errors import UserError
from prm_jax.models import load_weights
from prm_jax.prime.warm_start import demonstration_batches
from tests.prime.conftest import replaced

CALL = {"prompt": "2*3=", "answer": "6", "solution": "[2*3]{6}#6", "forced": [[5, 8]]}


def batch_of(row, **options):
    task = make_task([row], "exact", eval_fraction=0.0, alphabet="0123456789*=#[]{}")
    start = types.SimpleNamespace(task=task, tokenizer=task.tokenizer())
    made = prime.Options(sft=dataclasses.replace(prime.Options().sft, batch_size=1, steps=1))
    made = replaced(made, rollout={"max_prompt_tokens": 8, "max_new_tokens": 14, **options})
    tokens, mask = demonstration_batches(made, start)(0)
    return task.tokenizer(), tokens[0], mask[0]


def test_forced_text_is_read_and_not_learned():
    tokenizer, tokens, mask = batch_of(CALL)
    assert tokenizer.decode(tokens[mask].tolist(), skip_special=True) == "[2*3]#6"
    assert tokens[mask][-1] == tokenizer.eos_id
    whole = tokenizer.decode(tokens.tolist(), skip_special=True)
    assert whole == "2*3=[2*3]{6}#6"
    _, plain_tokens, plain = batch_of({name: value for name, value in CALL.items() if name != "forced"})
    np.testing.assert_array_equal(plain_tokens, tokens)
    assert plain.sum() == mask.sum() + 3


def test_bad_demonstrations():
    with pytest.raises(UserError, match=r"the forced span \[5, 80\] of a response of 10 characters"):
        batch_of({**CALL, "forced": [[5, 80]]})
    with pytest.raises(UserError, match=r"a demonstration has 5 \+ 11 tokens"):
        batch_of(CALL, max_new_tokens=6)


def test_a_loaded_model_is_fine_tuned_when_asked(run_options, tmp_path):
    fresh = dataclasses.replace(
        replaced(run_options, sft={"steps": 2}, advantage={"process_coef": 0.0, "gate": False}, eval={"problems": 2}),
        steps=0, baseline=False, plots=False,
    )  # fmt: skip
    prime.train(fresh, tmp_path / "fresh")
    loaded = replaced(fresh, model={"path": str(tmp_path / "fresh" / "start")})
    with pytest.raises(UserError, match=r"--sft.loaded"):
        prime.train(loaded, tmp_path / "refused")
    with pytest.raises(UserError, match=r"--model.lora-rank"):
        prime.train(replaced(loaded, sft={"loaded": True}, model={"lora_rank": 2}), tmp_path / "refused")
    prime.train(replaced(loaded, sft={"loaded": True, "steps": 3}), tmp_path / "tuned")
    before, after = (load_weights(tmp_path / name / "policy")[1] for name in ("fresh", "tuned"))
    moved = [
        float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*map(_leaves, (before, after)), strict=True)
    ]
    assert max(moved) > 1e-4


def _leaves(params):
    import jax

    return jax.tree.leaves(params)
