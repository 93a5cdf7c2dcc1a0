"""Log-probs of given tokens straight from hidden states: checks, choice of a backend, one custom VJP."""

import functools
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from prm_jax.pallas.linear_logprob import xla_token, xla_vocab
from prm_jax.pallas.linear_logprob.problem import Inputs, Outputs, Spec

_BACKENDS: dict[str, ModuleType] = {"xla_vocab": xla_vocab, "xla_token": xla_token}
IMPLEMENTATIONS = tuple(_BACKENDS)
"""Names that ``implementation`` may have; None chooses among them."""

_DTYPES = ("float32", "bfloat16", "float16")


def linear_lse_and_target(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    implementation: str | None = None,
    entropy: bool = False,
    token_block: int | None = None,
    vocab_block: int | None = None,
) -> tuple[jax.Array, ...]:
    """Log-sum-exp of each row of logits, and the logit of each row's token, without the array of logits.

    ``l = cap(hidden head^T + bias) / temperature`` with ``cap(z) = softcap tanh(z / softcap)``;
    ``lse[t] = logsumexp_v l[t, v]``, ``target[t] = l[t, tokens[t]]``, ``entropy[t] = H(softmax(l[t]))``.
    One custom VJP with a cotangent for every output; the backward pass makes the logits again piece by piece.
    Gradients reach ``hidden``, ``head`` and ``bias``; those that nobody differentiates are not computed.

    Args:
      hidden: [T, D] float32, bfloat16 or float16; products run in this dtype, sums in float32.
      head: [V, D], one of the same dtypes.
      tokens: [T] int; outside [0, V) the target is NaN.
      mask: [T] bool; a row where it is False is 0 in all outputs, and whatever stands in it (NaN included)
        reaches no output and no gradient.  All False gives zeros.
      temperature: a positive scalar or [T]; no gradient.
      softcap: positive, or None.
      bias: [V], or None.
      implementation: "xla_vocab" or "xla_token"; None chooses by platform.
      entropy: also returns the entropy.
      token_block: rows of logits at a time, where the backend's own choice does not fit.
      vocab_block: columns of logits at a time.

    Returns:
      ``(lse [T], target [T])``, or ``(lse, target, entropy [T])``, all float32.

    Raises:
      ValueError: for shapes, dtypes, or an implementation that do not fit, by name.
    """
    _check(hidden, head, tokens, mask, temperature, softcap, bias)
    for label, block in (("token_block", token_block), ("vocab_block", vocab_block)):
        if block is not None and block < 1:
            raise ValueError(f"{label} must be positive, found {block}")
    spec = Spec(softcap=softcap, entropy=entropy, token_block=token_block, vocab_block=vocab_block)
    tokens = tokens.astype(jnp.int32)
    if mask is not None:
        hidden = jnp.where(mask[:, None], hidden, 0)
        tokens = jnp.where(mask, tokens, 0)
    name = choose(implementation)
    if not tokens.size:
        return (jnp.zeros((0,), jnp.float32),) * (3 if entropy else 2)
    inputs = Inputs(hidden, head, bias, _inverse(temperature, mask, hidden.shape[0]), tokens)
    outputs = _statistics((name, spec), *inputs)
    kept = [x for x in outputs if x is not None]
    return tuple(kept if mask is None else [jnp.where(mask, x, 0.0) for x in kept])


def linear_logprob(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    implementation: str | None = None,
    token_block: int | None = None,
    vocab_block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``log softmax(l)[t, tokens[t]]`` and the log-sum-exp; arguments as in ``linear_lse_and_target``.

    Returns:
      ``(logp [T], lse [T])`` float32, 0 where ``mask`` is False; gradients flow through both.
    """
    lse, target = linear_lse_and_target(
        hidden, head, tokens, mask=mask, temperature=temperature, softcap=softcap, bias=bias,
        implementation=implementation, token_block=token_block, vocab_block=vocab_block,
    )  # fmt: skip
    return target - lse, lse


def choose(implementation: str | None) -> str:
    """The backend's name: the given one if there is such a one, the platform's best for None.

    Raises:
      ValueError: for an unknown name.
    """
    if implementation is None:
        return "xla_vocab" if jax.default_backend() == "cpu" else "xla_token"
    if implementation not in _BACKENDS:
        raise ValueError(f"unknown implementation {implementation!r}; known: {', '.join(_BACKENDS)}")
    return implementation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(
    static: tuple[str, Spec],
    hidden: jax.Array,
    head: jax.Array,
    bias: jax.Array | None,
    inverse_temperature: jax.Array | None,
    tokens: jax.Array,
) -> Outputs:
    name, spec = static
    return _BACKENDS[name].forward(spec, Inputs(hidden, head, bias, inverse_temperature, tokens))


def _statistics_fwd(static: tuple[str, Spec], *primals: Any) -> tuple[Outputs, Any]:
    inputs = Inputs(*(cast(Any, None if p is None else p.value) for p in primals))
    # None or () in the residuals: structure, so that the backward pass knows it while tracing.
    wanted = tuple(() if p is not None and p.perturbed else None for p in primals[:3])
    outputs = _statistics(static, *inputs)
    return outputs, (inputs, outputs, wanted)


def _statistics_bwd(static: tuple[str, Spec], residuals: Any, cotangents: Outputs) -> tuple[Any, ...]:
    name, spec = static
    inputs, outputs, wanted = residuals
    given = Outputs(*(cast(Any, None if isinstance(c, SymbolicZero) else c) for c in cotangents))
    if all(c is None for c in given):
        return None, None, None, None, None
    flags = tuple(w is not None for w in wanted)
    # Without the barrier XLA would merge what a single tile recomputes here with the forward pass, keep its logits,
    # and fuse the forward pass in another way than where nothing is differentiated: other bits, same numbers.
    inputs, outputs, given = jax.lax.optimization_barrier((inputs, outputs, given))
    gradients = _BACKENDS[name].backward(spec, inputs, outputs, given, flags)
    return *gradients, None, None


_statistics.defvjp(_statistics_fwd, _statistics_bwd, symbolic_zeros=True)


def _inverse(temperature: float | jax.Array, mask: jax.Array | None, count: int) -> jax.Array | None:
    if isinstance(temperature, int | float) and temperature == 1:
        return None
    value = jax.lax.stop_gradient(jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (count,)))
    return 1.0 / (value if mask is None else jnp.where(mask, value, 1.0))


def _check(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    mask: jax.Array | None,
    temperature: float | jax.Array,
    softcap: float | None,
    bias: jax.Array | None,
) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(
            "hidden must be [T, D] and head [V, D] with one D (hidden states, not logits); "
            f"found {hidden.shape} and {head.shape}"
        )
    count, vocab = hidden.shape[0], head.shape[0]
    if tokens.shape != (count,) or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers [T={count}], found {tokens.dtype}{list(tokens.shape)}")
    if mask is not None and (mask.shape != (count,) or mask.dtype != jnp.bool_):
        raise ValueError(f"mask must be bool [T={count}], found {mask.dtype}{list(mask.shape)}")
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias must be [V={vocab}], found {list(bias.shape)}")
    for name, array in (("hidden", hidden), ("head", head), ("bias", bias)):
        if array is not None and array.dtype.name not in _DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(_DTYPES)}, found {array.dtype}")
    if jnp.shape(temperature) not in ((), (count,)):
        raise ValueError(f"temperature must be a scalar or [T={count}], found shape {jnp.shape(temperature)}")
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, found {softcap}")
