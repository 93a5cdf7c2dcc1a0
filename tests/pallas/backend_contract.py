"""What every backend of ``linear_lse_and_target`` must do; a backend's test class names it and inherits the rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.pallas import LogprobOptions, Target, linear_logprob, linear_lse_and_target

# T, D, V, token block, vocab block: one tile, several, sizes that divide nothing, blocks of one.
SHAPES = {
    "one tile": (37, 16, 53, None, None),
    "token blocks": (36, 16, 53, 9, None),
    "vocab blocks": (37, 16, 52, None, 13),
    "primes": (37, 16, 53, 10, 9),
    "one token": (1, 8, 11, None, 4),
    "vocabulary below a block": (5, 8, 3, 4, 4096),
    "blocks of one": (6, 8, 5, 1, 1),
}


@functools.partial(jax.jit, static_argnames=("count", "width", "vocab", "seed", "dtype"))
def problem(count, width, vocab, *, seed=0, dtype=jnp.float32):
    """Random hidden [T, D], head [V, D], tokens [T] with both ends of the vocabulary among them, bias [V]."""
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (count, width)).astype(dtype)
    head = (jax.random.normal(keys[1], (vocab, width)) * 0.5).astype(dtype)
    tokens = jax.random.randint(keys[2], (count,), 0, vocab).at[0].set(vocab - 1).at[-1].set(0)
    return hidden, head, tokens, jax.random.normal(keys[3], (vocab,))


def oracle(hidden, head, tokens, *, cotangents=None, mask=None, temperature=1.0, softcap=None, bias=None):
    """Outputs (lse, target, entropy), and for three cotangents [T] the gradients of hidden, head, bias; float64."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    keep = np.ones(len(hidden), bool) if mask is None else np.asarray(mask)
    raw = hidden @ head.T + (0.0 if bias is None else np.asarray(bias, np.float64))
    capped = raw if softcap is None else softcap * np.tanh(raw / softcap)
    temperature = np.broadcast_to(np.asarray(temperature, np.float64), keep.shape)[:, None]
    logits = capped / temperature
    top = logits.max(axis=1, keepdims=True)
    lse = (top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))[:, 0]
    log_p = logits - lse[:, None]
    p = np.exp(log_p)
    entropy = -(p * log_p).sum(axis=1)
    rows = np.arange(len(hidden))
    outputs = [np.where(keep, x, 0.0) for x in (lse, logits[rows, tokens], entropy)]
    if cotangents is None:
        return outputs, None
    g_lse, g_target, g_entropy = (np.where(keep, np.asarray(g, np.float64), 0.0)[:, None] for g in cotangents)
    one_hot = np.zeros_like(p)
    one_hot[rows, tokens] = 1.0
    d = p * g_lse + one_hot * g_target - p * (log_p + entropy[:, None]) * g_entropy
    d = d / temperature
    if softcap is not None:
        d = d * (1.0 - (capped / softcap) ** 2)
    return outputs, (d @ head, d.T @ hidden, d.sum(axis=0))


def call(**given):
    """The keyword arguments of a call, those that are fields of ``LogprobOptions`` gathered into one."""
    fields = {f.name: given.pop(f.name) for f in dataclasses.fields(LogprobOptions) if f.name in given}
    return {**given, "options": LogprobOptions(**fields)}


def error(ours, exact) -> float:
    """Largest difference, relative to the largest number."""
    exact = np.asarray(exact, np.float64)
    return float(np.max(np.abs(np.asarray(ours, np.float64) - exact)) / max(np.max(np.abs(exact)), 1e-30))


class BackendContract:
    """Subclass with ``implementation`` set, and what the backend needs to run on a CPU.

    Bounds are relative to the largest number: float32 1e-5; bfloat16 1e-5 for outputs and 1e-2 for gradients.
    """

    implementation: str
    target: Target | None = None
    shapes = SHAPES

    def run(self, hidden, head, tokens, **options):
        return linear_lse_and_target(
            hidden, head, tokens, **call(implementation=self.implementation, target=self.target, **options)
        )

    def logprob(self, hidden, head, tokens, **options):
        return linear_logprob(
            hidden, head, tokens, **call(implementation=self.implementation, target=self.target, **options)
        )

    def results(self, hidden, head, tokens, cotangents, *, bias=None, **options):
        """Outputs and gradients, jitted; the bias is differentiated when there is one."""

        def run(hidden, head, bias):
            return self.run(hidden, head, tokens, bias=bias, entropy=True, **options)

        def both(hidden, head, bias):
            outputs, vjp = jax.vjp(run, hidden, head, bias)
            return outputs, vjp(tuple(cotangents))

        return jax.jit(both)(hidden, head, bias)

    @pytest.mark.parametrize("name", list(SHAPES))
    def test_equals_float64(self, name):
        count, width, vocab, token_block, vocab_block = self.shapes[name]
        hidden, head, tokens, _ = problem(count, width, vocab)
        cotangents = jax.random.normal(jax.random.key(9), (3, count))
        outputs, gradients = self.results(
            hidden, head, tokens, cotangents, token_block=token_block, vocab_block=vocab_block
        )
        exact, exact_gradients = oracle(hidden, head, tokens, cotangents=cotangents)
        assert all(error(a, b) < 1e-5 for a, b in zip(outputs, exact, strict=True))
        assert all(error(a, b) < 1e-5 for a, b in zip(gradients[:2], exact_gradients[:2], strict=True))
        assert all(x.dtype == jnp.float32 for x in outputs)

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_each_cotangent_alone(self, which):
        hidden, head, tokens, _ = problem(13, 8, 29)
        cotangents = jnp.zeros((3, 13)).at[which].set(jnp.linspace(-1, 2, 13))

        def loss(hidden, head):  # the other cotangents are symbolically zero here
            out = self.run(hidden, head, tokens, token_block=5, vocab_block=7, entropy=True)[which]
            return jnp.sum(out * cotangents[which])

        gradients = jax.jit(jax.grad(loss, (0, 1)))(hidden, head)
        _, exact = oracle(hidden, head, tokens, cotangents=cotangents)
        assert error(gradients[0], exact[0]) < 1e-5
        assert error(gradients[1], exact[1]) < 1e-5

    @pytest.mark.parametrize("blocks", [(None, None), (4, 9)])
    def test_soft_cap_temperature_bias_and_mask_together(self, blocks):
        hidden, head, tokens, bias = problem(21, 8, 31)
        mask = jax.random.bernoulli(jax.random.key(3), 0.6, (21,))
        options = {"mask": mask, "temperature": jnp.linspace(0.5, 2.0, 21), "softcap": 3.0}
        cotangents = jax.random.normal(jax.random.key(9), (3, 21))
        outputs, gradients = self.results(
            hidden,
            head,
            tokens,
            cotangents,
            bias=bias,
            token_block=blocks[0],
            vocab_block=blocks[1],
            **options,
        )
        exact, exact_gradients = oracle(hidden, head, tokens, cotangents=cotangents, bias=bias, **options)
        assert all(error(a, b) < 1e-5 for a, b in zip(outputs, exact, strict=True))
        assert all(error(a, b) < 1e-5 for a, b in zip(gradients, exact_gradients, strict=True))

    @pytest.mark.parametrize("blocks", [(None, None), (4, 9)])
    def test_masked_rows_are_ignored(self, blocks):
        hidden, head, tokens, _ = problem(11, 8, 31)
        mask = jnp.arange(11) % 3 != 1
        cotangents = jax.random.normal(jax.random.key(9), (3, 11))
        options = {"mask": mask, "token_block": blocks[0], "vocab_block": blocks[1]}
        clean = self.results(hidden, head, tokens, cotangents, **options)
        poisoned_hidden = jnp.where(mask[:, None], hidden, jnp.nan)
        poisoned_tokens = jnp.where(mask, tokens, -7)
        poisoned = self.results(poisoned_hidden, head, poisoned_tokens, cotangents, **options)
        jax.tree.map(np.testing.assert_array_equal, poisoned, clean)
        assert not np.any(np.asarray(poisoned[1][0])[~np.asarray(mask)])

    def test_all_masked_is_zero(self):
        hidden, head, tokens, _ = problem(5, 8, 31)
        outputs, gradients = self.results(hidden * jnp.nan, head, tokens, jnp.ones((3, 5)), mask=jnp.zeros(5, bool))
        for x in jax.tree.leaves((outputs, gradients)):
            assert not np.any(np.asarray(x))

    def test_no_tokens(self):
        hidden, head, tokens, _ = problem(3, 8, 31)
        logp, lse = self.logprob(hidden[:0], head, tokens[:0])
        assert logp.shape == lse.shape == (0,)

    @pytest.mark.parametrize("offset", [1e4, -1e4])
    def test_large_offsets_do_not_overflow(self, offset):
        hidden, head, tokens, _ = problem(7, 8, 31)
        plain, _ = self.logprob(hidden, head, tokens, vocab_block=9)
        moved, lse = self.logprob(hidden, head, tokens, bias=jnp.full((31,), offset), vocab_block=9)
        assert np.all(np.isfinite(lse))
        np.testing.assert_allclose(moved, plain, atol=4e-3)  # float32 spacing at 1e4 is 1e-3

    def test_logp_is_a_distribution(self):
        hidden, head, _, _ = problem(4, 8, 31)
        rows, every = jnp.repeat(hidden, 31, axis=0), jnp.tile(jnp.arange(31, dtype=jnp.int32), 4)
        logp = np.asarray(self.logprob(rows, head, every, vocab_block=10)[0]).reshape(4, 31)
        assert np.all(logp <= 1e-6)
        np.testing.assert_allclose(np.exp(logp).sum(1), 1.0, rtol=1e-5)

    def test_the_order_of_the_vocabulary_does_not_matter(self):
        hidden, head, tokens, _ = problem(9, 8, 31)
        order = np.random.default_rng(0).permutation(31)
        logp, _ = self.logprob(hidden, head, tokens, vocab_block=6)
        permuted, _ = self.logprob(hidden, head[order], jnp.asarray(np.argsort(order))[tokens], vocab_block=6)
        np.testing.assert_allclose(permuted, logp, atol=1e-5)

    def test_targets_at_block_borders(self):
        hidden, head, _, _ = problem(12, 8, 32)
        tokens = jnp.array([0, 7, 8, 15, 16, 23, 24, 31, 1, 9, 30, 14], jnp.int32)
        logp, _ = self.logprob(hidden, head, tokens, vocab_block=8)
        exact, _ = oracle(hidden, head, tokens)
        assert error(logp, exact[1] - exact[0]) < 1e-5

    def test_a_token_outside_the_vocabulary_gives_nan_only_for_itself(self):
        hidden, head, _, _ = problem(4, 8, 31)
        tokens = jnp.array([3, 31, -1, 30], jnp.int32)
        logp, lse = jax.jit(lambda y: self.logprob(hidden, head, y, vocab_block=10))(tokens)
        np.testing.assert_array_equal(np.isnan(logp), [False, True, True, False])
        assert np.all(np.isfinite(lse))

    @pytest.mark.parametrize("head_dtype", [jnp.bfloat16, jnp.float32])
    def test_bfloat16(self, head_dtype):
        hidden, head, tokens, _ = problem(24, 16, 131, dtype=jnp.bfloat16)
        head = head.astype(head_dtype)
        cotangents = jax.random.normal(jax.random.key(9), (3, 24))
        outputs, gradients = self.results(hidden, head, tokens, cotangents, token_block=8, vocab_block=50)
        exact, exact_gradients = oracle(hidden, head, tokens, cotangents=cotangents)
        assert all(error(a, b) < 1e-5 for a, b in zip(outputs, exact, strict=True))
        assert error(gradients[0], exact_gradients[0]) < 1e-2 and gradients[0].dtype == jnp.bfloat16
        assert error(gradients[1], exact_gradients[1]) < 1e-2 and gradients[1].dtype == head_dtype

    def test_a_real_vocabulary(self):
        hidden, head, tokens, _ = problem(3, 8, 151936)
        logp, _ = self.logprob(hidden, head, tokens)
        exact, _ = oracle(hidden, head, tokens)
        assert error(logp, exact[1] - exact[0]) < 1e-5

    def test_error_does_not_grow_with_the_number_of_blocks(self):
        hidden, head, tokens, _ = problem(64, 16, 512)
        cotangents = jax.random.normal(jax.random.key(9), (3, 64))
        exact, exact_gradients = oracle(hidden, head, tokens, cotangents=cotangents)
        for block in (512, 64, 8):
            outputs, gradients = self.results(hidden, head, tokens, cotangents, token_block=block, vocab_block=block)
            assert max(error(a, b) for a, b in zip(outputs, exact, strict=True)) < 2e-6
            assert max(error(a, b) for a, b in zip(gradients[:2], exact_gradients[:2], strict=True)) < 2e-6

    def test_under_vmap(self):
        hidden, head, tokens, _ = problem(12, 8, 31)
        stacked, tokens2 = hidden.reshape(2, 6, 8), tokens.reshape(2, 6)

        def value_and_gradient(hidden, tokens):
            return jax.value_and_grad(lambda h: self.logprob(h, head, tokens, token_block=2, vocab_block=9)[0].sum())(
                hidden
            )

        values, gradients = jax.vmap(value_and_gradient)(stacked, tokens2)
        value, gradient = value_and_gradient(hidden, tokens)
        np.testing.assert_allclose(values.sum(), value, rtol=1e-5)
        np.testing.assert_allclose(gradients.reshape(12, 8), gradient, atol=1e-5)

    def test_head_with_the_vocabulary_last(self):
        hidden, head, tokens, bias = problem(21, 8, 31)
        cotangents = jax.random.normal(jax.random.key(9), (3, 21))
        options = {"bias": bias, "token_block": 8, "vocab_block": 10, "softcap": 5.0}
        outputs, gradients = self.results(hidden, head, tokens, cotangents, **options)
        outputs2, gradients2 = self.results(hidden, head.T, tokens, cotangents, head_layout="dv", **options)
        assert all(error(a, b) < 1e-5 for a, b in zip(outputs2, outputs, strict=True))
        assert gradients2[1].shape == (8, 31)
        assert error(gradients2[0], gradients[0]) < 1e-5
        assert error(gradients2[1].T, gradients[1]) < 1e-5

    @pytest.mark.parametrize("valid", [0, 1, 7, 16, 41])
    def test_compacted_rows_give_the_same_numbers(self, valid):
        hidden, head, tokens, _ = problem(41, 8, 31)
        mask = jnp.zeros(41, bool).at[np.random.default_rng(valid).permutation(41)[:valid]].set(True)
        cotangents = jax.random.normal(jax.random.key(9), (3, 41))
        options = {"mask": mask, "temperature": jnp.linspace(0.5, 2.0, 41)}
        poisoned = jnp.where(mask[:, None], hidden, jnp.nan)
        outputs, gradients = self.results(
            poisoned, head, tokens, cotangents, compact=True, token_block=8, vocab_block=9, **options
        )
        exact, exact_gradients = oracle(hidden, head, tokens, cotangents=cotangents, **options)
        assert all(error(a, b) < 1e-5 for a, b in zip(outputs, exact, strict=True))
        if valid:
            assert all(error(a, b) < 1e-5 for a, b in zip(gradients[:2], exact_gradients[:2], strict=True))
        else:
            assert not any(np.any(np.asarray(g)) for g in gradients[:2])

    @pytest.mark.parametrize("frozen", ["hidden", "head"])
    def test_one_gradient_alone(self, frozen):
        hidden, head, tokens, _ = problem(13, 8, 29)
        cotangents = jax.random.normal(jax.random.key(9), (3, 13))
        which = 1 if frozen == "hidden" else 0

        def loss(hidden, head):
            out = self.run(hidden, head, tokens, entropy=True, token_block=5, vocab_block=7)
            return sum(jnp.vdot(a, b) for a, b in zip(out, cotangents, strict=True))

        gradient = jax.jit(jax.grad(loss, which))(hidden, head)
        _, exact = oracle(hidden, head, tokens, cotangents=cotangents)
        assert error(gradient, exact[which]) < 1e-5
