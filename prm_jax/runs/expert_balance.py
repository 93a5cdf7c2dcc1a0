"""The experts of a sparse model during training: how evenly they are used, and a loss that spreads tokens over them.

Switch Transformers (arXiv:2101.03961, equation 4), with shares of k experts per token as in Mixtral.
"""

import dataclasses

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.errors import UserError
from prm_jax.models import ExpertLoad, ModelConfig

_SHARES = "expert_shares"


def check_balanced(option: str, coef: float, config: ModelConfig) -> None:
    """Refuses a coefficient, given as `option`, for the experts of a model that has none.

    Raises:
      UserError: the coefficient is not 0 and the model is dense.
    """
    if coef and not config.num_experts:
        raise UserError(
            f"{option} {coef} spreads tokens over experts, and a model of architecture {config.architecture!r} has "
            "none: leave it out"
        )


def with_balance(loss: rl.Loss, load: ExpertLoad | None, coef: float) -> rl.Loss:
    """Loss + coef * the mean balance of the layers, with the load among the metrics.

    Args:
      loss: of some rows; its weight is kept.
      load: of the same rows, all of a piece together; gets gradients if `coef` is not 0. None for a dense model.
      coef: weight of the balance, which is 1 for an even spread.
    """
    if load is None:
        return loss
    balance = load.balance().mean()
    total = loss.total + coef * balance * loss.weight if coef else loss.total
    tokens = load.tokens[0]
    constant = jax.lax.stop_gradient(balance) * tokens
    found = {"expert_balance": rl.Mean(constant, tokens), _SHARES: rl.Mean(load.shares() * tokens, tokens)}
    return dataclasses.replace(loss, total=total, metrics={**loss.metrics, **found})


def expert_metrics(summary: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The metrics of `with_balance` as scalars; other metrics are returned as they are.

    Args:
      summary: `Loss.summary()`, with the experts' shares of every layer [L, E] for a sparse model.

    Returns:
      With `expert_load/NN` (the busiest expert's load over the mean load of layer NN: 1 for an even spread, at most
      E / k), `expert_load` (of the worst layer) and `expert_entropy` (of the shares, mean over layers: 1 for an even
      spread).
    """
    if _SHARES not in summary:
        return summary
    shares = summary[_SHARES]
    layers, experts = shares.shape
    load = experts * shares.max(-1)
    entropy = -jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), 0.0).sum(-1)
    digits = len(str(layers - 1))
    return {
        **{name: value for name, value in summary.items() if name != _SHARES},
        "expert_load": load.max(),
        "expert_entropy": (entropy / jnp.log(float(experts))).mean(),
        **{f"expert_load/{number:0{digits}d}": load[number] for number in range(layers)},
    }
