"""Functions from outside that are traced into the training step, with named errors instead of tracebacks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.errors import UserError
from prm_jax.prime.batch import RewardInputs

HOST_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def checked_rewards(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """`function`, refused with a clear error when it touches the host or does not return [B, T] numbers.

    Args:
      function: takes (rewards, inputs) or (inputs); the last argument is a `RewardInputs`.
      what: names it in errors: "advantage function my_module.mine".
    """

    def call(*args: Any) -> Any:
        inputs: RewardInputs = args[-1]
        return per_token(call_named(function, args, what), inputs.mask.shape, what)

    return call


def per_token(result: Any, expected: tuple[int, ...], what: str) -> Any:
    """`result` as float32, refused unless it is an array [B, T] of floating-point numbers."""
    shape = getattr(result, "shape", None)
    if shape != expected:
        found = f"an array of shape {list(shape)}" if shape is not None else f"a {type(result).__name__}"
        raise UserError(f"{what} returned {found}; expected [B, T] = {list(expected)}, one per token")
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise UserError(f"{what} returned an array of {result.dtype}; expected floating-point numbers")
    return result.astype(jnp.float32)


def checked_loss(function: Callable[..., Any], what: str) -> Callable[..., rl.Loss]:
    """The same for a policy loss, which returns a `rl.Loss` of two scalars."""

    def call(*args: Any) -> rl.Loss:
        result = call_named(function, args, what)
        if not isinstance(result, rl.Loss):
            raise UserError(f"{what} returned a {type(result).__name__}; expected rl.Loss(total, weight, metrics)")
        for name in ("total", "weight"):
            shape = jnp.shape(getattr(result, name))
            if shape:
                raise UserError(f"{what}: Loss.{name} has shape {list(shape)}; expected a scalar, a sum over the batch")
        return result

    return call


def name_of(function: Any) -> str:
    """``module.name`` of a function, for messages."""
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"


def call_named(function: Callable[..., Any], args: tuple[Any, ...], what: str, when: str = "traced") -> Any:
    """``function(*args)`` of a function from outside, whose errors name it: those of tracing say little about it."""
    try:
        return function(*args)
    except UserError:
        raise
    except HOST_ERRORS as error:
        raise UserError(host_message(what, error)) from error
    except Exception as error:
        raise UserError(f"{what} failed while it was {when}: {type(error).__name__}: {_first(error)}") from error


def host_message(what: str, error: Exception) -> str:
    return (
        f"{what} uses the value of an array on the host (float(), if, NumPy, .item()): {_first(error)} It is traced "
        "into a compiled step, so use jax.numpy, jnp.where and jax.lax instead"
    )


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
