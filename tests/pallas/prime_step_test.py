"""The compiled PRIME step at the vocabulary of Qwen2.5 holds no array over tokens and vocabulary."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.models import ModelConfig, init_params
from prm_jax.prime.batch import Frozen
from prm_jax.prime.options import Options
from prm_jax.prime.step import init_state, make_step
from tests.prime.conftest import make_batch, setup_of

VOCAB, WIDTH = 151_936, 8
ROWS, LENGTH = 128, 64


def largest_arrays(text: str) -> dict[str, int]:
    """Elements of the largest array of each number of dimensions and shape in a compiled program."""
    shapes = set(re.findall(r"\b(?:f64|f32|bf16|f16|s32|u32|pred|s8|u8)\[([\d,]+)\]", text))
    return {shape: math.prod(int(d) for d in shape.split(",")) for shape in shapes}


def test_no_array_over_tokens_and_vocabulary():
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
        tie_word_embeddings=True,
    )  # fmt: skip
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    setup = setup_of(Options(), config, params)
    state = jax.eval_shape(
        lambda p: init_state(setup_of(Options(), config, p), Frozen(p, p), jax.random.key(0)), params
    )
    batch = make_batch(prompts=ROWS // 4, width=LENGTH)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.asarray(x).dtype), batch)
    compiled = make_step(setup).lower(state, Frozen(params, params), shapes).compile()

    logits = ROWS * LENGTH * VOCAB
    arrays = largest_arrays(compiled.as_text())
    assert max(arrays.values()) < logits / 50, max(arrays, key=lambda shape: arrays[shape])
    # Copies of the parameters (two learners, their gradients, sums and optimisers), and a few tiles of 4,096 x 4,096.
    assert compiled.memory_analysis().temp_size_in_bytes < 12 * 4 * VOCAB * WIDTH + 5 * 4 * (1 << 24) < 4 * logits / 10


def test_the_check_sees_an_array_of_logits():
    """What is refused above is found in a program that has it."""
    hidden, head = jnp.zeros((64, 8)), jnp.zeros((1000, 8))
    program = jax.jit(lambda h, w: jax.nn.log_softmax(h @ w.T).sum()).lower(hidden, head).compile()
    assert max(largest_arrays(program.as_text()).values()) == 64 * 1000
