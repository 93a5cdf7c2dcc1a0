import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import rope
from prm_jax.models.config import ModelConfig
from prm_jax.models.rope_scaling import RopeScaling

CONFIG = ModelConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
    rope_theta=100.0, max_position_embeddings=64,
)  # fmt: skip


def _scaled(**kwargs) -> ModelConfig:
    return dataclasses.replace(CONFIG, rope_scaling=RopeScaling(**kwargs))


def test_frequencies_by_hand():
    inverse, factor = rope.frequencies(CONFIG)
    np.testing.assert_allclose(inverse, [1.0, 100**-0.25, 0.1, 100**-0.75])
    assert factor == 1.0


def test_linear_divides_and_dynamic_changes_nothing():
    plain, _ = rope.frequencies(CONFIG)
    np.testing.assert_allclose(rope.frequencies(_scaled(kind="linear", factor=4.0))[0], plain / 4)
    np.testing.assert_allclose(rope.frequencies(_scaled(kind="dynamic", factor=4.0))[0], plain)


def test_llama3_keeps_short_waves_divides_long_ones_and_blends_between():
    config = _scaled(kind="llama3", factor=8.0, original_max_position_embeddings=64)
    plain, _ = rope.frequencies(CONFIG)
    scaled, factor = rope.frequencies(config)
    turns = 64 * plain / (2 * math.pi)  # 10.2, 3.2, 1.02, 0.32 against the limits 1 and 4
    blend = (turns[1:3] - 1) / 3
    expected = [plain[0], *(blend * plain[1:3] + (1 - blend) * plain[1:3] / 8), plain[3] / 8]
    np.testing.assert_allclose(scaled, expected)
    assert factor == 1.0


def test_yarn_by_hand():
    config = _scaled(kind="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=8.0, beta_slow=0.5)
    plain, _ = rope.frequencies(CONFIG)
    scaled, factor = rope.frequencies(config)
    # Pairs that turn 8 times and half a time within 64 positions: 0.21 and 2.62, rounded outwards to 0 and 3.
    ramp = np.arange(4) / 3
    np.testing.assert_allclose(scaled, plain * (1 - ramp) + plain / 4 * ramp)
    assert factor == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_attention_factors():
    def factor(**kwargs):
        return rope.frequencies(_scaled(kind="yarn", factor=4.0, **kwargs))[1]

    assert factor(attention_factor=1.5) == 1.5
    assert factor(mscale=1.0, mscale_all_dim=1.0) == 1.0
    assert factor(mscale=2.0, mscale_all_dim=1.0) == pytest.approx((0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1))


def test_rotation_is_by_halves_and_preserves_norms():
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    cos, sin = rope.table(CONFIG, jnp.array([[3]]))
    out = np.asarray(rope.rotate(x, cos, sin))[0, 0, 0]
    for i, frequency in enumerate(rope.frequencies(CONFIG)[0]):
        angle = 3 * frequency
        assert out[i] == pytest.approx(i * math.cos(angle) - (i + 4) * math.sin(angle), abs=1e-5)
        assert out[i + 4] == pytest.approx((i + 4) * math.cos(angle) + i * math.sin(angle), abs=1e-5)
    np.testing.assert_allclose(np.sum(out**2), np.sum(np.arange(8.0) ** 2), rtol=1e-5)


def test_products_depend_on_distances_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(at_q, at_k):
        return jnp.sum(
            rope.rotate(q, *rope.table(CONFIG, jnp.array([[at_q]])))
            * rope.rotate(k, *rope.table(CONFIG, jnp.array([[at_k]])))
        )

    np.testing.assert_allclose(product(5, 2), product(45, 42), rtol=1e-4)


def test_bfloat16_in_and_out_rotates_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8)).astype(jnp.bfloat16)
    cos, sin = rope.table(CONFIG, jnp.array([[0, 1000, 60000]]))
    assert cos.dtype == jnp.float32
    out = rope.rotate(x, cos, sin)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, rope.rotate(x.astype(jnp.float32), cos, sin).astype(jnp.bfloat16))
