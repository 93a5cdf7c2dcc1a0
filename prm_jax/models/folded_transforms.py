"""Equivalent transforms that neighbouring layers absorb, fitted so that rounding costs less.

OSTQuant (arXiv:2501.13987). A norm's scale takes the inverse of a scale on the inputs of the kernels after it, the
columns of ``up`` that of the rows of ``down``, and the columns of ``v`` the transpose of an orthogonal matrix, per
key-value head, on the rows of ``o``. The model computes the same function, and no work is added. The paper's rotation
of the residual stream is left out: with tied embeddings, a rotated model would be another architecture. Nor is there a
calibration set: the error is that of uniform rounding noise, with the variances of activations that unit-variance
normalised features would have.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.qtensor import hadamard, hadamard_block
from prm_jax.models.quantization_options import Scheme
from prm_jax.models.transformer import Params

Transforms = dict[str, jax.Array]
"""Of one layer: logarithms of scales "attn" [D], "mlp" [D], "up" [F], "value" [K, Hd], and "skew" [K, Hd, Hd]."""


def fold_transforms(
    config: ModelConfig,
    params: Params,
    *,
    bits: int,
    group: int | None,
    scheme: Scheme = "symmetric",
    steps: int = 40,
    learning_rate: float = 0.05,
) -> Params:
    """The same function with weights that lose less by rounding.

    Args:
      config: the model.
      params: plain stacked parameters.
      bits: of the rounding to come.
      group: inputs that share a scale; None for all.
      scheme: asymmetric and progressive scales span from the least to the largest weight, others to the largest
        absolute one.
      steps: of Adam on the expected squared error of the layer's outputs, each layer on its own.
      learning_rate: of these steps.

    Returns:
      Parameters with other norm scales, kernels and biases; float32 where they changed.

    Raises:
      UserError: a family whose layers do not absorb such transforms.
    """
    _check_absorbs(config)
    spans = scheme in ("asymmetric", "progressive")
    layers = _fold_layers(config, params["layers"], bits, group, spans, steps, learning_rate)
    return {**params, "layers": layers}


def _check_absorbs(config: ModelConfig) -> None:
    """Refuses models whose norms and feed-forward layers do not take scales."""
    family = config.family
    if config.num_experts or family.norm_offset or set(family.norms) != {"attn_norm", "mlp_norm"}:
        raise UserError(
            "transform folded is for dense models whose only norms are one before attention and one before the "
            f"feed-forward layer, with scales around 1, which absorb it; found {config.architecture}: use hadamard"
        )


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4, 5, 6))
def _fold_layers(
    config: ModelConfig, layers: Params, bits: int, group: int | None, spans: bool, steps: int, rate: float
) -> Params:
    fold = functools.partial(_fold_layer, config, bits=bits, group=group, spans=spans, steps=steps, rate=rate)
    return jax.lax.map(fold, layers)


def _fold_layer(
    config: ModelConfig, layer: Params, *, bits: int, group: int | None, spans: bool, steps: int, rate: float
) -> Params:
    layer = jax.tree.map(lambda x: x.astype(jnp.float32), layer)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    start = _identity(config)

    def loss(transforms: Transforms) -> jax.Array:
        return expected_error(config, layer, transforms, bits=bits, group=group, spans=spans)

    def step(carry: tuple[Transforms, Any], _: None) -> tuple[tuple[Transforms, Any], None]:
        transforms, state = carry
        updates, state = optimizer.update(jax.grad(loss)(transforms), state)
        return (optax.apply_updates(transforms, updates), state), None

    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return transformed(config, layer, found)


def _identity(config: ModelConfig) -> Transforms:
    """Scales of 1, and Hadamard rotations of the values."""
    heads, size = config.num_kv_heads, config.head_dim
    return {
        "attn": jnp.zeros(config.hidden_size),
        "mlp": jnp.zeros(config.hidden_size),
        "up": jnp.zeros(config.intermediate_size),
        "value": jnp.zeros((heads, size)),
        "skew": jnp.zeros((heads, size, size)),
    }


def transformed(config: ModelConfig, layer: Params, transforms: Transforms) -> Params:
    """One layer, which computes the same function.

    Args:
      config: the model.
      layer: parameters without the leading axis, float32.
      transforms: see `Transforms`.
    """
    attn, mlp = layer["attn"], layer["mlp"]
    inner, outer = (jnp.exp(sign * transforms["attn"])[:, None] for sign in (1, -1))
    value, undone = _value_transforms(config, transforms)
    new_attn = {**attn, **{name: {**attn[name], "kernel": inner * attn[name]["kernel"]} for name in ("q", "k")}}
    new_attn["v"] = {name: _by_head(config, x, value) for name, x in attn["v"].items()}
    new_attn["v"]["kernel"] = inner * new_attn["v"]["kernel"]
    new_attn["o"] = {**attn["o"], "kernel": _rows_by_head(config, attn["o"]["kernel"], undone)}
    into, back = (jnp.exp(sign * transforms["mlp"])[:, None] for sign in (1, -1))
    down = jnp.exp(transforms["up"])
    new_mlp = {**mlp, "gate": {**mlp["gate"], "kernel": into * mlp["gate"]["kernel"]}}
    new_mlp["up"] = {name: x / down for name, x in mlp["up"].items()}
    new_mlp["up"]["kernel"] = into * new_mlp["up"]["kernel"]
    new_mlp["down"] = {**mlp["down"], "kernel": down[:, None] * mlp["down"]["kernel"]}
    norms = {
        "attn_norm": {"scale": layer["attn_norm"]["scale"] * outer[:, 0]},
        "mlp_norm": {"scale": layer["mlp_norm"]["scale"] * back[:, 0]},
    }
    return {**layer, **norms, "attn": new_attn, "mlp": new_mlp}


def expected_error(
    config: ModelConfig, layer: Params, transforms: Transforms, *, bits: int, group: int | None, spans: bool
) -> jax.Array:
    """Expected squared error of the outputs of a transformed layer's kernels, relative to those outputs, summed.

    Rounding noise is uniform within a step of the kernel's group; inputs are independent.
    """
    new = transformed(config, layer, transforms)
    attn, mlp = jnp.square(new["attn_norm"]["scale"]), jnp.square(new["mlp_norm"]["scale"])
    value, gate, up = (_variance(before, new[home][name]) for before, home, name in
                       ((attn, "attn", "v"), (mlp, "mlp", "gate"), (mlp, "mlp", "up")))  # fmt: skip
    mixed = jnp.repeat(value.reshape(config.num_kv_heads, -1), config.num_heads // config.num_kv_heads, axis=0)
    inputs = {
        ("attn", "q"): attn, ("attn", "k"): attn, ("attn", "v"): attn, ("attn", "o"): mixed.reshape(-1),
        ("mlp", "gate"): mlp, ("mlp", "up"): mlp, ("mlp", "down"): gate * up,
    }  # fmt: skip
    total = jnp.zeros(())
    for (home, name), variance in inputs.items():
        kernel = new[home][name]["kernel"]
        noise = jnp.square(_steps(kernel, bits, group, spans=spans)) / 12  # [G, out]
        weight = variance.reshape(noise.shape[0], -1).sum(-1)
        total = total + (weight[:, None] * noise).sum() / (variance[:, None] * jnp.square(kernel)).sum()
    return total


def _variance(variance: jax.Array, linear: Params) -> jax.Array:
    """Variances of the outputs of a linear layer with independent inputs of mean 0."""
    return variance @ jnp.square(linear["kernel"])


def _steps(kernel: jax.Array, bits: int, group: int | None, *, spans: bool) -> jax.Array:
    """[G, out] distance between neighbouring levels."""
    grouped = kernel.reshape(-1, group or kernel.shape[0], kernel.shape[-1])
    if spans:
        return (jnp.maximum(grouped.max(1), 0) - jnp.minimum(grouped.min(1), 0)) / (2**bits - 1)
    return jnp.abs(grouped).max(1) / (2 ** (bits - 1) - 1)


def _value_transforms(config: ModelConfig, transforms: Transforms) -> tuple[jax.Array, jax.Array]:
    """([K, Hd, Hd] for the columns of v, its inverse for the rows of o)."""
    size = config.head_dim
    skew = transforms["skew"] - jnp.swapaxes(transforms["skew"], -1, -2)
    identity = jnp.eye(size)
    with jax.default_matmul_precision("highest"):
        turn = jnp.linalg.solve(identity + skew, identity - skew)  # Cayley: orthogonal for every skew matrix
        block = hadamard_block(size)
        turn = jnp.kron(jnp.eye(size // block), hadamard(block)) @ turn
    scale = jnp.exp(transforms["value"])
    return turn / scale[:, None, :], scale[:, :, None] * jnp.swapaxes(turn, -1, -2)


def _by_head(config: ModelConfig, x: jax.Array, transform: jax.Array) -> jax.Array:
    """Multiplies the columns of each key-value head: [..., K * Hd] by [K, Hd, Hd]."""
    parts = x.reshape(*x.shape[:-1], config.num_kv_heads, config.head_dim)
    return jnp.einsum("...kh,khj->...kj", parts, transform, precision=jax.lax.Precision.HIGHEST).reshape(x.shape)


def _rows_by_head(config: ModelConfig, kernel: jax.Array, transform: jax.Array) -> jax.Array:
    """Multiplies the rows of each query head [H * Hd, out] by its key-value head's matrix."""
    groups = config.num_kv_heads
    parts = kernel.reshape(groups, config.num_heads // groups, config.head_dim, -1)
    turned = jnp.einsum("kij,kgjo->kgio", transform, parts, precision=jax.lax.Precision.HIGHEST)
    return turned.reshape(kernel.shape)
