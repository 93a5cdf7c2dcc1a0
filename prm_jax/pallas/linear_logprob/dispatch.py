"""Which backend computes a call, and the custom VJP around it."""

import functools
import importlib
from typing import Any, cast

import jax
from jax.custom_derivatives import SymbolicZero

from prm_jax.pallas.linear_logprob.logprob_options import LogprobOptions
from prm_jax.pallas.linear_logprob.problem import Backend, Inputs, Outputs, Spec, Target
from prm_jax.target_device import nothing_to_partition, platform_and_kind

_PLATFORMS = {"xla_vocab": None, "xla_token": None, "mosaic_tpu": "tpu", "mosaic_gpu": "gpu"}
IMPLEMENTATIONS = tuple(_PLATFORMS)
"""Names that ``implementation`` may have; None chooses among them."""

_NAMES = {"tpu": "a TPU", "gpu": "a GPU"}


def this_machine() -> Target:
    """The device of the mesh that the call is traced for, or the default device."""
    return Target(*platform_and_kind())


def make_spec(options: LogprobOptions, softcap: float | None) -> Spec:
    """The static part of a call with these options."""
    return Spec(
        softcap=softcap,
        entropy=options.entropy,
        head_layout=options.head_layout,
        residual=options.residual,
        gather_axes=options.gather_axes,
        target=options.target or this_machine(),
        token_block=options.token_block,
        vocab_block=options.vocab_block,
    )


def backend(name: str) -> Backend:
    """The backend's module; a kernel is imported only where it is used."""
    return cast(Backend, importlib.import_module(f"prm_jax.pallas.linear_logprob.{name}"))


def choose(implementation: str | None, spec: Spec, inputs: Inputs) -> str:
    """The backend's name: the given one if it can do the call, the platform's best for None.

    None is "xla_vocab" on a CPU; "xla_token" on a GPU, where XLA's matrix products are as fast as a kernel's; on a TPU
    "mosaic_tpu" where it can run (the compiler cannot partition it: one device, or under ``shard_map``), else
    "xla_token".

    Raises:
      ValueError: for an unknown name, a backend that the target lacks, or one that cannot do this call.
    """
    target = spec.target
    if implementation is None:
        if target.platform == "tpu" and nothing_to_partition() and backend("mosaic_tpu").refusal(spec, inputs) is None:
            return "mosaic_tpu"
        return "xla_vocab" if target.platform == "cpu" else "xla_token"
    if implementation not in _PLATFORMS:
        raise ValueError(f"unknown implementation {implementation!r}; known: {', '.join(_PLATFORMS)}")
    needed = _PLATFORMS[implementation]
    if needed not in (None, target.platform):
        raise ValueError(
            f"implementation {implementation!r} needs {_NAMES[str(needed)]}, found {target.platform} "
            f"({target.device_kind or 'unknown kind'}); implementation=None chooses one that runs here"
        )
    reason = backend(implementation).refusal(spec, inputs)
    if reason is not None:
        raise ValueError(f"implementation {implementation!r} cannot do this: {reason}")
    return implementation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def statistics(
    static: tuple[str, Spec],
    hidden: jax.Array,
    head: jax.Array,
    bias: jax.Array | None,
    inverse_temperature: jax.Array | None,
    tokens: jax.Array,
    valid: jax.Array | None,
) -> Outputs:
    """A backend's statistics of ``Inputs``, differentiable; under ``shard_map`` all arrays vary over the same axes."""
    name, spec = static
    inputs = Inputs(hidden, head, bias, inverse_temperature, tokens, valid)
    return backend(name).forward(spec, inputs, keep=False)[0]


def _forward(static: tuple[str, Spec], *primals: Any) -> tuple[Outputs, Any]:
    name, spec = static
    inputs = Inputs(*(cast(Any, None if p is None else p.value) for p in primals))
    # None or () in the residuals is structure, which the backward pass knows while tracing.
    wanted = tuple(() if p is not None and p.perturbed else None for p in primals[:3])
    if spec.residual == "logits":
        outputs, kept = backend(name).forward(spec, inputs, keep=True)
    else:
        outputs, kept = statistics(static, *inputs), None
    return outputs, (inputs, outputs, kept, wanted)


def _backward(static: tuple[str, Spec], residuals: Any, cotangents: Outputs) -> tuple[Any, ...]:
    name, spec = static
    inputs, outputs, kept, wanted = residuals
    given = Outputs(*(cast(Any, None if isinstance(c, SymbolicZero) else c) for c in cotangents))
    if all(c is None for c in given):
        return (None,) * 6
    flags = tuple(w is not None for w in wanted)
    # Without the barrier XLA would merge the recomputation of a single tile with the forward pass, keep its logits,
    # and fuse the forward pass differently than where nothing is differentiated, which changes bits.
    inputs, outputs, given = jax.lax.optimization_barrier((inputs, outputs, given))
    gradients = backend(name).backward(spec, inputs, outputs, kept, given, cast(Any, flags))
    return *gradients, None, None, None


statistics.defvjp(_forward, _backward, symbolic_zeros=True)
