"""Functions of models that tests compare with, compiled whole: op by op, a new shape takes some eighty compilations."""

import jax

from prm_jax import models

hidden_states = jax.jit(models.hidden_states, static_argnums=0)
logits = jax.jit(models.logits, static_argnums=0)
token_logprobs = jax.jit(models.token_logprobs, static_argnums=0, static_argnames="start")
