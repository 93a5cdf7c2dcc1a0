"""How evenly tokens are spread over experts: sums that add up over devices and parts of a batch, and their balance."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prm_jax.models.config import ModelConfig


class Routing(NamedTuple):
    """Which experts process N tokens.

    Attributes:
      experts: [N, k] i32.
      weights: [N, k] f32, of each expert's output.
      probabilities: [N, E] f32, the router's softmax.
    """

    experts: jax.Array
    weights: jax.Array
    probabilities: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpertLoad:
    """The router's choices for some tokens, summed over them; of one layer, or with a leading axis of all layers.

    Attributes:
      chosen: [L, E] f32, how many tokens each expert processes.
      probability: [L, E] f32, sums of the router's probabilities, which carry gradients.
      tokens: [L] f32, how many tokens were counted.
    """

    chosen: jax.Array
    probability: jax.Array
    tokens: jax.Array

    @classmethod
    def of(cls, routing: Routing, mask: jax.Array) -> "ExpertLoad":
        """The load of one layer, without the leading axis; ``mask`` [N] bool says which tokens count."""
        experts = routing.probabilities.shape[-1]
        chosen = jax.nn.one_hot(routing.experts, experts, dtype=jnp.float32).sum(1)
        chosen, probability = (jnp.where(mask[:, None], x, 0.0).sum(0) for x in (chosen, routing.probabilities))
        return cls(chosen, probability, mask.sum(dtype=jnp.float32))

    def shares(self) -> jax.Array:
        """Each expert's share of a layer's assignments, [L, E]: they sum to 1, or are 0 where no token counts."""
        return self.chosen / jnp.maximum(self.chosen.sum(-1, keepdims=True), 1.0)

    def balance(self) -> jax.Array:
        """``E sum_e share_e mean_n p_e(n)`` of each layer, [L] f32 (arXiv:2101.03961, equation 4 without its factor).

        1 for an even spread, up to E / k where the same experts process all tokens, 0 where no token counts. Gradients
        flow through the probabilities.
        """
        mean = self.probability / jnp.maximum(self.tokens, 1.0)[..., None]
        return self.chosen.shape[-1] * (self.shares() * mean).sum(-1)


def require_experts(config: ModelConfig) -> None:
    """Refuses a dense model.

    Raises:
      ValueError: the model has no experts.
    """
    if not config.num_experts:
        raise ValueError(f"architecture {config.architecture!r} has no experts")
