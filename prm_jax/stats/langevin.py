"""Samples from a posterior by stochastic gradient Langevin dynamics (SGLD), over any pytree of parameters.

Welling and Teh 2011; several chains and cold temperatures as in arXiv 2212.07959. An error that all chains share, such
as that of a model that is wrong everywhere, does not show in their spread.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Params = Any
LogDensity = Callable[[Params, jax.Array], jax.Array]
"""``(parameters, key) -> log density``, up to a constant; the key may draw a minibatch of data."""


def langevin_samples(
    log_density: LogDensity,
    params: Params,
    key: jax.Array,
    *,
    samples: int,
    chains: int = 4,
    thin: int = 10,
    burn_in: int = 1000,
    step_size: float = 1e-3,
    final_step_size: float | None = None,
    temperature: float = 1.0,
) -> Params:
    """Samples parameters in proportion to ``exp(log_density / temperature)``.

    `theta <- theta + step gradient log p(theta) + sqrt(2 temperature step) noise`, in several independent chains that
    start from the same parameters. The step size falls geometrically from `step_size` to `final_step_size` during
    the burn-in and is constant afterwards. A finite step inflates the variance slightly (for a Gaussian by
    1 / (1 - step / (2 variance))).

    Args:
      log_density: traced, to a scalar; of a minibatch scaled to the whole data it gives SGLD, of all data Langevin
        dynamics.
      params: pytree of float arrays, where all chains start.
      key: typed PRNG key, consumed.
      samples: per chain.
      chains: C.
      thin: steps between two samples.
      burn_in: steps before the first sample.
      step_size: at the start, > 0.
      final_step_size: after the burn-in, > 0; None for `step_size`.
      temperature: >= 0; below 1 the posterior is cold, at 0 this is gradient ascent.

    Returns:
      `params` with leading axes [C, samples] on every leaf, float32. No gradient.

    Source: arXiv 2212.07959.
    """
    last = step_size if final_step_size is None else final_step_size
    for name, value in (("step_size", step_size), ("final_step_size", last)):
        if not value > 0:
            raise ValueError(f"{name}={value}; expected a positive number")
    if temperature < 0 or min(samples, chains, thin) < 1 or burn_in < 0:
        raise ValueError("expected temperature >= 0, burn_in >= 0, and samples, chains and thin of at least 1")
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    gradient = jax.grad(lambda theta, step_key: log_density(theta, step_key))

    def move(theta: Params, step: jax.Array, step_key: jax.Array) -> Params:
        data_key, noise_key = jax.random.split(step_key)
        slope = gradient(theta, data_key)
        leaves, structure = jax.tree.flatten(theta)
        keys = jax.random.split(noise_key, len(leaves))
        noise = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        scale = jnp.sqrt(2.0 * temperature * step)
        drawn = jax.tree.unflatten(structure, noise)
        return jax.tree.map(lambda x, g, n: x + step * g + scale * n, theta, slope, drawn)

    def chain(chain_key: jax.Array) -> Params:
        early, late = jax.random.split(chain_key)
        steps = step_size * (last / step_size) ** (jnp.arange(burn_in) / max(burn_in, 1))
        begun, _ = jax.lax.scan(
            lambda theta, x: (move(theta, *x), None), start, (steps, jax.random.split(early, burn_in))
        )

        def sample(theta: Params, keys: jax.Array) -> tuple[Params, Params]:
            theta, _ = jax.lax.scan(lambda t, k: (move(t, jnp.float32(last), k), None), theta, keys)
            return theta, theta

        return jax.lax.scan(sample, begun, jax.random.split(late, (samples, thin)))[1]

    return jax.lax.stop_gradient(jax.vmap(chain)(jax.random.split(key, chains)))
