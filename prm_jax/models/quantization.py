"""Quantised copies of frozen parameters: which leaves, in which form, with what correction of the error.

Low-rank compensation is that of ZeroQuant-V2 (arXiv:2303.08302), Hadamard blocks are those of QuEST (arXiv:2502.05003);
for transforms that neighbouring layers absorb see ``folded_transforms``, for schemes ``rounding``.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.folded_transforms import fold_transforms
from prm_jax.models.qtensor import QTensor, dequantize, hadamard_block, is_quantized, rotate
from prm_jax.models.quantization_options import (
    PREFIX,
    Bits,
    BitsOrKeep,
    Fit,
    QuantizationOptions,
    Scheme,
    Transform,
    bits_of,
)
from prm_jax.models.rounding import round_matrix, round_table
from prm_jax.models.sharding import shard_params
from prm_jax.models.transformer import Params, init_params

KERNELS = (("attn", "q"), ("attn", "k"), ("attn", "v"), ("attn", "o"), ("mlp", "gate"), ("mlp", "up"), ("mlp", "down"))
"""Places of the kernels in the layers, which are quantised."""


def quantize(
    config: ModelConfig,
    params: Params,
    *,
    bits: int = 8,
    group: int | None = None,
    rank: int = 0,
    transform: Transform | None = None,
    scheme: Scheme = "symmetric",
    fit: Fit = "largest",
    embeddings: bool = False,
) -> Params:
    """A tree with `QTensor` kernels, accepted wherever frozen parameters are.

    Args:
      config: the model.
      params: its parameters, plain and stacked; NumPy or JAX arrays. Unchanged.
      bits: 8, 4 or 2, of the layers' kernels.
      group: neighbouring inputs that share a scale; None: all inputs of an output.
      rank: of the low-rank correction of the rounding error, in bfloat16; 0 for none.
      transform: hadamard: kernels are stored rotated, and activations are rotated before the product; folded: scales
        and rotations that neighbouring layers absorb (see ``fold_transforms``); None: neither.
      scheme: see ``rounding.round_matrix``.
      fit: see ``rounding.round_matrix``.
      embeddings: the embedding and the head too, in 8 bits with a scale per row.

    Returns:
      Parameters whose norms, biases and (without `embeddings`) embedding and head are shared with `params`, except
      where "folded" changes them; on the same mesh, if they are on one.

    Raises:
      UserError: options that do not fit each other or the model's sizes, a tree with adapters, or a quantised one.
    """
    options = QuantizationOptions(
        group=0 if group is None else group, rank=rank, transform=transform or "none", scheme=scheme, fit=fit,
        embeddings=embeddings,
    )  # fmt: skip
    check_quantizable(params, bits, options)
    if transform == "folded":
        params = fold_transforms(config, params, bits=bits, group=group, scheme=scheme)
    layers = params["layers"]
    blocks = {name: dict(block) for name, block in layers.items()}
    for home, name in KERNELS:
        kernel = _quantize_kernel(
            layers[home][name]["kernel"], bits=bits, group=group or layers[home][name]["kernel"].shape[-2], rank=rank,
            hadamard=transform == "hadamard", scheme=scheme, fit=fit,
        )  # fmt: skip
        blocks[home][name] = {**layers[home][name], "kernel": kernel}
    quantized = {**params, "layers": blocks}
    if embeddings:
        quantized["embed"] = {"embedding": _quantize_table(params["embed"]["embedding"])}
        if not config.tie_word_embeddings:
            quantized["head"] = {"kernel": _quantize_table(params["head"]["kernel"])}
    mesh = _mesh_under(params)
    if mesh is None:
        return quantized
    if mesh.shape.get("tensor", 1) > 1 and any(blocks[home][name]["kernel"].padding for home, name in KERNELS):
        raise UserError(
            "scheme balanced has three integers per byte, which do not fill up the last byte of these kernels, so that "
            "a tensor axis cannot divide them: use scheme centred, or --mesh.tensor 1"
        )
    return shard_params(quantized, mesh)


def quantize_as(
    config: ModelConfig, params: Params, name: BitsOrKeep, options: QuantizationOptions, *, prefix: str = PREFIX
) -> Params:
    """``quantize`` as the options of a command say; parameters that are quantised already must have that form.

    Args:
      config: the model.
      params: see ``quantize``; with "none" and "keep" returned as they are.
      name: "int8", "int4", "int2", "none", or "keep" for parameters that are quantised.
      options: how.
      prefix: of the options' names, in errors.

    Raises:
      UserError: see ``quantize``; parameters that were quantised with other options; "keep" of plain ones.
    """
    if name == "keep" and not is_quantized(params):
        raise UserError(f"{prefix}quantize keep: these weights are not quantised; choose int8 or int4")
    if name == "none" or name == "keep":
        return params
    bits = bits_of(name)
    assert bits is not None

    def make(params: Params) -> Params:
        return quantize(
            config, params, bits=bits, group=options.group_of(bits), rank=options.rank,
            transform=None if options.transform == "none" else options.transform, scheme=options.scheme,
            fit=options.fit, embeddings=options.embeddings,
        )  # fmt: skip

    if is_quantized(params):
        _check_same_form(params, jax.eval_shape(lambda: make(init_params(config, jax.random.key(0)))), name, prefix)
        return params
    check_quantizable(params, bits, options, prefix=prefix)
    return make(params)


def _check_same_form(params: Params, wanted: Params, name: Bits, prefix: str) -> None:
    """Compares quantised parameters with abstract ones."""
    for home, kernel in KERNELS:
        found, asked = (tree["layers"][home][kernel]["kernel"] for tree in (params, wanted))
        shapes = [jax.tree.map(lambda x: (tuple(x.shape), str(x.dtype)), one) for one in (found, asked)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{prefix}quantize {name}: these weights are quantised already, with other options: {home}.{kernel} is "
                f"{_form(found)}, and the options ask for {_form(asked)}. Leave {prefix}quantize out to use them as "
                "they are, or quantise the model that they were made from"
            )


def _form(q: QTensor) -> str:
    """The form of a quantised matrix in words."""
    group = q.shape[-2] // q.scales.shape[-2]
    parts = [f"int{q.bits}", "one scale per output" if q.scales.shape[-2] == 1 else f"groups of {group}"]
    parts += ["progressive"] if q.coarse is not None else ["asymmetric"] if q.zeros is not None else []
    parts += [{"five": "balanced"}.get(q.grid, q.grid)] if q.grid != "integer" else []
    parts += [f"rank {q.left.shape[-1]}"] if q.left is not None else []
    return ", ".join(parts + ["hadamard"] * bool(q.block))


def check_quantizable(params: Params, bits: int, options: QuantizationOptions, *, prefix: str = PREFIX) -> None:
    """Refuses what cannot be quantised, before anything is computed; `prefix` of the options' names.

    Raises:
      UserError: see ``quantize``.
    """
    problems = options.problems(bits, prefix)
    if problems:
        raise UserError("\n".join(problems))
    absent = [f"{h}.{name}" for h, name in KERNELS if not isinstance(params["layers"].get(h, {}).get(name), Mapping)]
    if absent:
        raise UserError(f"this model has no {', '.join(absent)}: models with experts cannot be quantised")
    if is_quantized(params):
        raise UserError("these parameters are quantised already: quantise the ones that they were made from")
    found = [f"{home}.{name}" for home, name in KERNELS if "lora_a" in params["layers"][home][name]]
    if found:
        raise UserError(
            f"adapters of {', '.join(found)} train, and a tree that trains cannot be quantised: quantise the frozen "
            "base (models.split) and join the adapters to it (models.join)"
        )
    directions = max(min(params["layers"][home][name]["kernel"].shape[-2:]) for home, name in KERNELS)
    if options.rank > directions:
        raise UserError(
            f"{prefix}quantization.rank {options.rank}: the largest kernel has {directions} directions, which would "
            "correct everything and be larger than the kernel; choose a fraction of that, such as 16"
        )
    for home, name in KERNELS:
        width = params["layers"][home][name]["kernel"].shape[-2]
        group = options.group_of(bits) or width
        if width % group:
            raise UserError(
                f"groups of {group} inputs do not divide the {width} inputs of {home}.{name}: choose "
                f"{prefix}quantization.group among {_divisors(width)}"
            )
        if group % (8 // bits) and options.scheme != "balanced":
            raise UserError(
                f"{prefix}quantization.group {group}: in {bits} bits, {8 // bits} integers share a byte, so that it "
                f"must be a multiple of {8 // bits}"
            )


def quantized_bytes(params: Params) -> int:
    """Bytes of all arrays of a parameter tree, packed ones as they are stored."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnames=("bits", "group", "rank", "hadamard", "scheme", "fit"))
def _quantize_kernel(
    kernel: jax.Array, *, bits: int, group: int, rank: int, hadamard: bool, scheme: Scheme, fit: Fit
) -> QTensor:
    """One kernel [L, in, out] or [L, E, in, out], matrix by matrix, so that little exists in float32 at once."""
    lead = kernel.shape[:-2]
    block = hadamard_block(kernel.shape[-2]) if hadamard else 0

    def one(w: jax.Array) -> QTensor:
        w = w.astype(jnp.float32)
        w = rotate(w.T, block).T if block else w
        q = round_matrix(w, bits=bits, group=group, scheme=scheme, fit=fit)
        left, right = _low_rank(w - dequantize(q), rank) if rank else (None, None)
        return QTensor(
            q.values, q.scales, q.zeros, q.coarse, left, right,
            bits=bits, grid=q.grid, block=block, padding=q.padding,
        )  # fmt: skip

    quantized = jax.lax.map(one, kernel.reshape(-1, *kernel.shape[-2:]))
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), quantized)


@jax.jit
def _quantize_table(table: jax.Array) -> QTensor:
    return round_table(table)


def _low_rank(error: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """The best approximation of an error [in, out] by ``left [in, r] @ right [r, out]``, in bfloat16."""
    rows, columns = error.shape
    with jax.default_matmul_precision("highest"):
        if rows <= columns:  # eigenvectors of the smaller of the two products, largest last
            left = jnp.linalg.eigh(error @ error.T)[1][:, -rank:].astype(jnp.bfloat16)
            return left, (left.astype(jnp.float32).T @ error).astype(jnp.bfloat16)
        right = jnp.linalg.eigh(error.T @ error)[1][:, -rank:].T.astype(jnp.bfloat16)
        return (error @ right.astype(jnp.float32).T).astype(jnp.bfloat16), right


def _mesh_under(params: Params) -> Mesh | None:
    """The mesh of concrete parameters on several devices."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            mesh = getattr(leaf.sharding, "mesh", None)
            return mesh if isinstance(mesh, Mesh) else None
    return None


def _divisors(width: int) -> list[int]:
    return [n for n in (8, 16, 32, 64, 128, 256) if width % n == 0]
