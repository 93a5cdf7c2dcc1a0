"""Checks of the arguments: invalid ones are named before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


def check_arrays(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    mask: jax.Array | None,
    temperature: float | jax.Array,
    bias: jax.Array | None,
    head_layout: str,
    *,
    head_parts: int = 1,
) -> None:
    """Ranks, sizes and dtypes of flat rows; ``head_parts`` devices share D of the head.

    Raises:
      ValueError: naming the argument, what was expected and what was found.
    """
    form = "[V, D]" if head_layout == "vd" else "[D, V]"
    d_axis, v_axis = head_layout.index("d"), head_layout.index("v")
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[d_axis] * head_parts:
        raise ValueError(
            f"hidden must be [T, D] and head {form} with one D (hidden states, not logits); "
            f"found {hidden.shape} and {head.shape}"
        )
    count, vocab = hidden.shape[0], head.shape[v_axis]
    if not vocab or not hidden.shape[1]:
        raise ValueError(f"head must have at least one token and one feature, found {head.shape}")
    if tokens.shape != (count,) or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers [T={count}], found {tokens.dtype}{list(tokens.shape)}")
    if mask is not None and (mask.shape != (count,) or mask.dtype != jnp.bool_):
        raise ValueError(f"mask must be bool [T={count}], found {mask.dtype}{list(mask.shape)}")
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias must be [V={vocab}], found {list(bias.shape)}")
    for name, array in (("hidden", hidden), ("head", head), ("bias", bias)):
        if array is not None and array.dtype.name not in DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, found {array.dtype}")
    if jnp.shape(temperature) not in ((), (count,)):
        raise ValueError(f"temperature must be a scalar or [T={count}], found shape {jnp.shape(temperature)}")


def check_scalars(temperature: float | jax.Array, softcap: float | None) -> None:
    """Values that are known before anything runs.

    Raises:
      ValueError: naming the argument and what was found.
    """
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, found {softcap}")


def check_token_range(tokens: jax.Array, mask: jax.Array | None, vocab: int) -> None:
    """Token ids under the mask are in [0, vocab); outside jit only, where their values are known.

    Raises:
      ValueError: with the first one that is not, and its index.
    """
    for array in (tokens, mask):
        if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
            return
    ids = np.asarray(tokens)
    bad = (ids < 0) | (ids >= vocab)
    if mask is not None:
        bad &= np.asarray(mask)
    if bad.any():
        first = np.unravel_index(int(np.argmax(bad)), ids.shape)
        place = ", ".join(str(int(i)) for i in first)
        raise ValueError(f"tokens must be in [0, {vocab}), found {ids[first]} at [{place}] ({int(bad.sum())} in all)")
