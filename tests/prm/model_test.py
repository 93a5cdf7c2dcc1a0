"""Saving and loading: the models of this package, and public checkpoints in the layouts of their families."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prm_jax import models
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer, ModelConfig, init_params, load_weights, save_weights
from prm_jax.prm.kinds import KINDS, Implicit, Value
from prm_jax.prm.model import KEY, finished, load, save
from prm_jax.prm.public import LAYOUTS
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.prm.spec import Spec, Weights
from tests.models.checkpoints import random_params

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|end|>", "<|im_start|>", "<|im_end|>", "<extra_0>", "\u043a\u0438")
STEPS = ("Step 1: 1+1=2", "Step 2: so 3")


def write_tokenizer(path) -> None:
    """A byte-level tokenizer without merges, with the special tokens of the layouts and a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    fast = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(letters)}, []))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    fast.add_special_tokens(list(SPECIALS))
    fast.save(str(path / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": CHATML}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def checkpoint(path, architecture="llama", *, tied=False, seed=0) -> ModelConfig:
    """A small random language model in the files of its family."""
    config = ModelConfig(
        architecture=architecture, vocab_size=264, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, tie_word_embeddings=tied, attention_bias=architecture == "qwen2",
        max_position_embeddings=512,
    )  # fmt: skip
    save_weights(path, config, random_params(config, seed=seed))
    write_tokenizer(path)
    (path / "SHA256SUMS").unlink()
    return config


def edit(path, *, tensors=None, drop=(), **config) -> None:
    """Changes tensors and config entries of a checkpoint."""
    found = load_file(path / "model.safetensors")
    kept = {name: value for name, value in found.items() if name not in drop}
    save_file({**kept, **(tensors or {})}, path / "model.safetensors")
    known = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**known, **config}))


def reads(text: str, tokenizer, ends: list[str]) -> tuple[list[int], list[int]]:
    """(ids, the last token of each prefix of the text that ends with one of `ends`, in order)."""
    ids = tokenizer.encode(text)
    found, at = [], 0
    for end in ends:
        at = text.index(end, at) + len(end)
        found.append(len(tokenizer.encode(text[:at])) - 1)
    return ids, found


def hidden_at(prm, ids, places):
    run = jax.jit(lambda p, t: models.hidden_states(prm.spec.config, p, t))
    return np.asarray(run(prm.weights.model, jnp.asarray([ids])))[0, places]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_qwens_two_layer_head_at_extra_0(tmp_path):
    checkpoint(tmp_path / "m", "qwen2")
    rng = np.random.default_rng(0)
    head = {"score.0.weight": rng.normal(size=(16, 16)), "score.0.bias": rng.normal(size=16),
            "score.2.weight": rng.normal(size=(2, 16)), "score.2.bias": rng.normal(size=2)}  # fmt: skip
    head = {name: value.astype(np.float32) for name, value in head.items()}
    edit(tmp_path / "m", tensors=head, drop=("lm_head.weight",), architectures=["Qwen2ForProcessRewardModel"],
         auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"})  # fmt: skip
    prm = load(tmp_path / "m")
    found = score_solutions(prm, [StepRecord("1+1+1?", STEPS, None, None, "g", "r")])[0]
    system = LAYOUTS["qwen_prm"].text.system
    text = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n1+1+1?<|im_end|>\n<|im_start|>assistant\n"
        + "".join(step + "<extra_0>" for step in STEPS)
    )
    ids, places = reads(text, prm.tokenizer, ["<extra_0>"] * 2)
    assert [prm.tokenizer.tokens[ids[i]] for i in places] == ["<extra_0>"] * 2
    h = hidden_at(prm, ids, places)
    z = np.maximum(h @ head["score.0.weight"].T + head["score.0.bias"], 0)
    z = z @ head["score.2.weight"].T + head["score.2.bias"]
    np.testing.assert_allclose(found.steps, sigmoid(z[:, 1] - z[:, 0]), rtol=2e-4)
    assert found.response == pytest.approx(np.prod(found.steps), rel=1e-5)


def test_math_shepherds_tags(tmp_path):
    checkpoint(tmp_path / "m", "llama")
    edit(tmp_path / "m", architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=300)
    with pytest.raises(UserError, match="does not say how this model scores.*math_shepherd"):
        load(tmp_path / "m")
    prm = load(tmp_path / "m", layout="math_shepherd")
    assert prm.spec.config.windows == (300,)
    found = score_solutions(prm, [StepRecord("1+1+1?", STEPS, None, None, "g", "r")])[0]
    text = f"1+1+1? {STEPS[0]} \u043a\u0438\n{STEPS[1]} \u043a\u0438"
    ids, places = reads(text, prm.tokenizer, ["\u043a\u0438"] * 2)
    check_labels(prm, found, ids, places)


def test_rlhflows_turns(tmp_path):
    checkpoint(tmp_path / "m", "llama")
    prm = load(tmp_path / "m", layout="rlhflow")
    found = score_solutions(prm, [StepRecord("1+1+1?", STEPS, None, None, "g", "r")])[0]
    answer = "<|im_end|>\n<|im_start|>assistant\n"
    text = f"<|im_start|>user\n1+1+1? {STEPS[0]}{answer}+<|im_end|>\n<|im_start|>user\n{STEPS[1]}{answer}"
    ids, places = reads(text, prm.tokenizer, [answer] * 2)
    check_labels(prm, found, ids, places)


def check_labels(prm, found, ids, places):
    """Scores are the softmax over the logits of + and - where the steps are read."""
    plus, minus = prm.tokenizer.encode("+")[0], prm.tokenizer.encode("-")[0]
    assert prm.spec.label_ids == (plus, minus)
    head = np.asarray(models.head_matrix(prm.spec.config, prm.weights.model))
    h = hidden_at(prm, ids, places)
    np.testing.assert_allclose(found.steps, sigmoid(h @ head[plus] - h @ head[minus]), rtol=2e-4)


def test_eurus_scores_by_its_log_ratio_to_the_reference(tmp_path):
    config = checkpoint(tmp_path / "m", "qwen2", seed=1)
    checkpoint(tmp_path / "ref", "qwen2", seed=2)
    prm = load(tmp_path / "m", layout="eurus_prm", reference=tmp_path / "ref")
    found = score_solutions(prm, [StepRecord("1+1+1?", STEPS, None, None, "g", "r")])[0]
    text = "<|im_start|>user\n1+1+1?<|im_end|>\n<|im_start|>assistant\n" + "\n\n".join(STEPS)
    ids, places = reads(text, prm.tokenizer, [STEPS[0] + "\n\n", STEPS[1]])
    start = len(prm.tokenizer.encode(text[: text.index("Step 1")])) - 1
    run = jax.jit(lambda p: models.token_logprobs(config, p, jnp.asarray([ids])))
    ratio = np.asarray(run(prm.weights.model) - run(prm.weights.reference))[0]
    expected = [ratio[start + 1 : places[0] + 1].sum(), ratio[places[0] + 1 : places[1] + 1].sum()]
    np.testing.assert_allclose(found.steps, 0.001 * np.asarray(expected), rtol=1e-3, atol=1e-8)


def test_token_classifiers_as_trl_saves_them(tmp_path):
    checkpoint(tmp_path / "m", "llama", tied=True)
    weight = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    edit(tmp_path / "m", tensors={"score.weight": weight}, architectures=["LlamaForTokenClassification"])
    prm = load(tmp_path / "m")
    np.testing.assert_array_equal(prm.weights.head["layer_0"]["kernel"], weight.T)
    edit(tmp_path / "m", tensors={"score.weight": weight[:, :8]})
    with pytest.raises(UserError, match="expected 16 inputs"):
        load(tmp_path / "m")
    edit(tmp_path / "m", drop=("score.weight",))
    with pytest.raises(UserError, match="no tensors named score"):
        load(tmp_path / "m")
    with pytest.raises(UserError, match="did you mean 'qwen_prm'"):
        load(tmp_path / "m", layout="qwen_pr")


@pytest.fixture
def prm(config, params, tokenizer):
    spec = Spec(Value(value="twin", head_layers=2), config)
    head, fixed = spec.kind.init(spec, jax.random.key(1))
    return PRM(spec, Weights(params, head, fixed), tokenizer, TextLayout(separator=" "))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_scores_when_its_training_is_over(kind, config, params, tokenizer, records, tmp_path):
    options = {"generative": {"critique": "brief", "max_new_tokens": 4}, "early_exit": {"exits": 2}}.get(kind, {})
    if kind == "early_exit":  # it can be left after a part of the layers
        config = dataclasses.replace(config, num_layers=2)
        params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    spec = Spec(KINDS[kind](**options), config, objectives=("right",) if kind == "armo" else ())
    head, fixed = spec.kind.init(spec, jax.random.key(1))
    weights = Weights(params, head, fixed, params if spec.kind.compares else None)
    save(tmp_path / "m", finished(spec, weights, tokenizer, TextLayout(separator=" ")))
    scored = score_solutions(load(tmp_path / "m"), records[:2])
    assert all(np.isfinite(one.response) and len(one.steps) == len(one.record.steps) for one in scored)


def test_a_saved_model_is_loaded_unchanged_and_says_how_to_score(prm, tmp_path):
    save(tmp_path / "m", prm)
    described = json.loads((tmp_path / "m" / "config.json").read_text())[KEY]
    assert described["kind"]["kind"] == "value" and described["step_score"] == "value"
    again = load(tmp_path / "m")
    assert again.spec == prm.spec and again.layout == prm.layout
    for a, b in zip(jax.tree.leaves(prm.weights), jax.tree.leaves(again.weights), strict=True):
        np.testing.assert_array_equal(a, b)
    assert load_weights(tmp_path / "m")[0].hidden_size == 16  # also a plain language model
    with pytest.raises(UserError, match="not empty"):
        save(tmp_path / "m", prm)
    save(tmp_path / "m", prm, overwrite=True)
    data = bytearray((tmp_path / "m" / "prm_head.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m" / "prm_head.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="was changed after it was written"):
        load(tmp_path / "m")
    edit_config(tmp_path / "m", lambda c: c[KEY]["kind"].update(valu="bce"))
    with pytest.raises(UserError, match="no option 'valu'; did you mean 'value'"):
        load(tmp_path / "m")
    edit_config(tmp_path / "m", lambda c: c[KEY]["kind"].update(beta=0.1))
    with pytest.raises(UserError, match="kind.beta is an option of kind implicit, step_q, but the kind is value"):
        load(tmp_path / "m")
    edit_config(tmp_path / "m", lambda c: c[KEY].update(format=1))
    with pytest.raises(UserError, match="has format 1; this version reads format 2"):
        load(tmp_path / "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="something other than a model"):
        save(tmp_path / "other", prm, overwrite=True)


def edit_config(path, change):
    known = json.loads((path / "config.json").read_text())
    change(known)
    (path / "config.json").write_text(json.dumps(known))


def test_a_reference_must_share_the_vocabulary(prm, config, params, tmp_path):
    spec = dataclasses.replace(prm.spec, kind=Implicit())
    implicit = PRM(spec, Weights(params, {}, {}, params), prm.tokenizer, prm.layout)
    save(tmp_path / "m", implicit)
    assert (tmp_path / "m" / "reference" / "model.safetensors").is_file()
    again = load(tmp_path / "m")
    np.testing.assert_array_equal(again.weights.reference["final_norm"]["scale"], params["final_norm"]["scale"])
    save_weights(tmp_path / "ref", config, params, tokenizer=CharTokenizer(prm.tokenizer.alphabet[::-1]))
    with pytest.raises(UserError, match="the tokenizers differ"):
        load(tmp_path / "m", reference=tmp_path / "ref")
    save(tmp_path / "v", prm)
    with pytest.raises(UserError, match="kind value does not use"):
        load(tmp_path / "v", reference=tmp_path / "ref")
