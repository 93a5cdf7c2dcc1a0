"""Token classifiers of ``transformers`` score alike here, and it reads the language model of what is saved here."""

import jax
import numpy as np
import pytest

from prm_jax.data.step_data import StepRecord
from prm_jax.models import CharTokenizer
from prm_jax.prm.forward import init_head
from prm_jax.prm.kinds import Token
from prm_jax.prm.model import load, save
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.prm.spec import Spec, Weights

pytestmark = pytest.mark.optional

torch = pytest.importorskip("torch", reason="pip install torch transformers")
transformers = pytest.importorskip("transformers", reason="pip install torch transformers")


def test_a_token_classifier_scores_alike(tmp_path):
    tokenizer = CharTokenizer("ab01+=?\n")
    theirs = transformers.Qwen2ForTokenClassification(
        transformers.Qwen2Config(
            vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, num_labels=2,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.4)
    theirs.save_pretrained(tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    steps = ("a+b=1", "b")
    found = score_solutions(load(tmp_path / "m"), [StepRecord("0?", steps, None, None, "g", "r")])[0]
    ids = tokenizer.encode("0?a+b=1\nb\n", add_special=True)
    with torch.no_grad():
        chance = torch.softmax(theirs(torch.tensor([ids])).logits, -1)[0, :, 1].numpy()
    np.testing.assert_allclose(found.steps, chance[[8, 10]], rtol=1e-4)
    assert found.steps[0] != pytest.approx(found.steps[1])


def test_a_saved_model_is_a_language_model_to_others(config, params, tokenizer, tmp_path):
    spec = Spec(Token(), config)
    head = init_head(spec, jax.random.key(0), num_outputs=2)
    save(tmp_path / "m", PRM(spec, Weights(params, head, {}), tokenizer, TextLayout()))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    np.testing.assert_array_equal(model.model.norm.weight.detach().numpy(), params["final_norm"]["scale"])
    assert model.config.prm_jax["kind"]["kind"] == "token"
