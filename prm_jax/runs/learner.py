"""A trainable model (full parameters, or LoRA on a frozen base) with its optimiser, and exact gradient accumulation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from prm_jax import rl
from prm_jax.models import LoRAConfig, ModelConfig, init_lora, join
from prm_jax.models.qtensor import dequantized
from prm_jax.models.rows import split_over_rows
from prm_jax.runs.eight_bit_adam import scale_by_adam_8bit
from prm_jax.runs.host_memory import in_host_memory, on_device, places_of
from prm_jax.runs.update_in_turn import update_in_turn

Params = Any
"""A nested dict of arrays, as ``models`` describes it."""

_NOT_DECAYED = ("scale", "bias")

ABSURD = 100.0
"""An update is rejected when its root mean square exceeds that of its array (plus 0.02) by this factor."""


@dataclasses.dataclass(frozen=True)
class Learner:
    """The static part of a trainable model; its arrays are in the training state.

    Attributes:
      config: the model's architecture.
      optimizer: the transformation that turns gradients of the trainable arrays into updates.
      lora: adapters' rank, scale and targets; None when every parameter trains.
      offload: the optimiser's state is in pinned host memory between updates.
    """

    config: ModelConfig
    optimizer: optax.GradientTransformation
    lora: LoRAConfig | None = None
    offload: bool = False

    def init(self, base: Params, key: jax.Array) -> tuple[Params, Any]:
        """Returns (trainable, optimiser state): adapters initialised to have no effect, or a float32 copy of `base`.

        Where `base` is on a mesh, every device makes its own shards. `key` is consumed only by the initialisation of
        adapters.
        """
        trainable = self.init_trainable(base, key)
        return trainable, self.init_optimizer(trainable)

    def init_trainable(self, base: Params, key: jax.Array) -> Params:
        """The trainable arrays alone."""

        def make(base: Params, key: jax.Array) -> Params:
            base = on_device(base)
            if self.lora is not None:
                return init_lora(self.config, base, key, self.lora)
            # A copy, because the training step donates its state and `base` remains in use as the reference.
            return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), dequantized(base))

        return places_of(base).make(make, base, key)

    def init_optimizer(self, trainable: Params) -> Any:
        """The optimiser's state for trainable arrays, sharded like them."""
        return places_of(trainable, offload=self.offload).make(self.optimizer.init, trainable)

    def params(self, trainable: Params, base: Params) -> Params:
        """The parameters of the whole model; no array is copied."""
        return trainable if self.lora is None else join(base, trainable)


Schedule = Literal["constant", "linear", "cosine"]
Moments = Literal["float32", "bfloat16", "int8"]


def make_schedule(learning_rate: float, *, schedule: Schedule, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the optimiser step.

    Args:
      learning_rate: the peak.
      schedule: shape after the warm-up. constant: stays at the peak; linear: decays to 0 at `total_steps`; cosine:
        decays to a tenth of the peak at `total_steps`.
      warmup_steps: number of optimiser steps of the linear rise from zero.
      total_steps: number of optimiser steps of the whole run; ignored by a constant schedule.
    """
    if schedule == "cosine":
        total = max(total_steps, warmup_steps + 1)
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, total, learning_rate / 10)
    # Starts above zero, so that the first step is not wasted.
    rise = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, warmup_steps - 1 or 1)
    if schedule == "linear":
        fall = optax.linear_schedule(learning_rate, 0.0, max(total_steps - warmup_steps, 1))
        return optax.join_schedules([rise, fall], [warmup_steps]) if warmup_steps else fall
    return rise if warmup_steps else optax.constant_schedule(learning_rate)


def make_optimizer(
    learning_rate: float,
    *,
    schedule: Schedule = "constant",
    warmup_steps: int = 0,
    total_steps: int = 0,
    weight_decay: float = 0.0,
    beta2: float = 0.999,
    grad_clip: float = 1.0,
    moments: Moments = "float32",
) -> optax.GradientTransformation:
    """AdamW with clipping of the gradient's global norm.

    Args:
      learning_rate, schedule, warmup_steps, total_steps: see `make_schedule`.
      weight_decay: decoupled weight decay; norm scales and biases are excluded.
      beta2: decay of the second moment.
      grad_clip: maximum global norm.
      moments: how Adam's moments are stored. bfloat16: the first one in bfloat16; int8: both in 8 bits, see
        `scale_by_adam_8bit`.
    """
    rate = make_schedule(learning_rate, schedule=schedule, warmup_steps=warmup_steps, total_steps=total_steps)

    def decayed(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not path or getattr(path[-1], "key", None) not in _NOT_DECAYED, params
        )

    if moments == "int8":
        adamw = optax.chain(
            scale_by_adam_8bit(0.9, beta2), optax.add_decayed_weights(weight_decay, decayed),
            optax.scale_by_learning_rate(rate),
        )  # fmt: skip
    else:
        mu_dtype = jnp.bfloat16 if moments == "bfloat16" else None
        adamw = optax.adamw(rate, b1=0.9, b2=beta2, mu_dtype=mu_dtype, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(grad_clip), adamw)


def split_rows(batch: Any, pieces: int, ways: int = 1) -> Any:
    """Divides the rows of every leaf: [B, ...] -> [pieces, B / pieces, ...], each piece split over a mesh's devices.

    Args:
      batch: pytree whose leaves have the leading axis B, a multiple of `pieces`.
      pieces: number of pieces.
      ways: number of devices that hold the rows, in consecutive blocks. Each piece takes an equal share of every block,
        so that no row changes its device; with 1, pieces are consecutive rows. Must divide B / pieces.
    """

    def split(x: jax.Array) -> jax.Array:
        shape = (ways, pieces, x.shape[0] // (ways * pieces), *x.shape[1:])
        x = jnp.reshape(x, shape).swapaxes(0, 1).reshape(pieces, x.shape[0] // pieces, *x.shape[1:])
        return split_over_rows(x, axis=1)

    return jax.tree.map(split, batch)


def merge_rows(split: Any, ways: int = 1) -> Any:
    """The inverse of `split_rows`: [pieces, B / pieces, ...] -> [B, ...]."""

    def merge(x: jax.Array) -> jax.Array:
        shape = (x.shape[0], ways, x.shape[1] // ways, *x.shape[2:])
        return split_over_rows(x.reshape(shape).swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:]))

    return jax.tree.map(merge, split)


def accumulate_gradients(
    loss_fn: Callable[[Params, Any], tuple[rl.Loss, Any]], params: Params, batch: Any, *, pieces: int = 1, ways: int = 1
) -> tuple[Params, rl.Loss, Any]:
    """Gradient of the mean loss over a batch, computed in pieces.

    Sums and weights are added over the pieces and divided once, so the result equals that of the undivided batch to
    rounding, whatever the weights of the pieces (averaging the means of the pieces would not).

    Args:
      loss_fn: ``(params, piece) -> (Loss, aux)``; `Loss.weight` must not depend on `params`; every leaf of aux has the
        piece's leading axis.
      params: differentiated.
      batch: pytree whose leaves have the leading axis B.
      pieces: number of pieces; must divide B.
      ways: see `split_rows`.

    Returns:
      (gradient of ``total / max(weight, 1)``, Loss over the batch, aux with leading axis B).
    """

    def total(p: Params, piece: Any) -> tuple[jax.Array, tuple[rl.Loss, Any]]:
        loss, aux = loss_fn(p, piece)
        return loss.total, (loss, aux)

    gradient = jax.value_and_grad(total, has_aux=True)
    if pieces == 1:
        (_, (loss, aux)), grads = gradient(params, batch)
    else:
        split = split_rows(batch, pieces, ways)

        def body(carry: tuple[Params, rl.Loss], piece: Any) -> tuple[tuple[Params, rl.Loss], Any]:
            (_, (loss, aux)), grads = gradient(params, piece)
            return jax.tree.map(jnp.add, carry, (grads, loss)), aux

        shapes = jax.eval_shape(lambda b: gradient(params, b), jax.tree.map(lambda x: x[0], split))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0][1][0]))
        (grads, loss), aux = jax.lax.scan(body, zero, split)
        aux = merge_rows(aux, ways)
    weight = jnp.maximum(loss.weight, 1.0)
    return jax.tree.map(lambda g: g / weight, grads), loss, aux


def guarded_update(
    optimizer: optax.GradientTransformation, grads: Params, opt_state: Any, params: Params
) -> tuple[Params, Any, Mapping[str, jax.Array]]:
    """One optimiser step, skipped when the gradient is unusable or exactly zero; unusable updates are not applied.

    The gradient is checked before clipping, which would turn one infinity into NaN everywhere. A zero gradient means
    that nothing in the batch counted; momentum and weight decay would still move the weights. The update of each
    array is checked too, because a learning rate that is far too large turns a finite gradient into non-finite
    parameters: it is unusable when it is not finite or its root mean square exceeds `ABSURD` times that of the array
    (plus 0.02), and the array then stays as it is. The check is per array, so that no second copy of all parameters
    and moments has to wait for a norm over all of them. An optimiser's state in host memory is transferred to the
    device for the update and back, array by array.

    Returns:
      (params, optimiser state, {"grad_norm": before clipping, 0 if not finite; "skipped": 1 if the gradient or the
      update of any array was unusable}).
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    applied = finite & (norm > 0)
    safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)

    def finish(
        param: jax.Array, update: jax.Array, new: list[jax.Array], old: list[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array], jax.Array]:
        good = _usable(update, param)
        moved = jnp.where(applied & good, optax.apply_updates(param, update), param)
        return moved, [jnp.where(applied, one, other) for one, other in zip(new, old, strict=True)], good

    if any(map(in_host_memory, jax.tree.leaves(opt_state))):
        params, opt_state, usable = update_in_turn(optimizer, safe, opt_state, params, finish)
    else:
        updates, new_state = optimizer.update(safe, opt_state, params)
        found = jax.tree.map(lambda param, update: finish(param, update, [], []), params, updates)
        opt_state = jax.tree.map(lambda new, old: jnp.where(applied, new, old), new_state, opt_state)
        params, _, good = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, [], 0)), found)
        usable = jax.tree.leaves(good)
    sound = functools.reduce(jnp.logical_and, usable, finite)
    health = {"grad_norm": jnp.where(finite, norm, 0.0), "skipped": 1.0 - sound.astype(jnp.float32)}
    return params, opt_state, health


def _usable(update: jax.Array, param: jax.Array) -> jax.Array:
    """Whether the update of one array is finite and of a sensible size."""
    size, own = (jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean()) for x in (update, param))
    return jnp.isfinite(size) & (size <= ABSURD * (own + 0.02))
