"""The published algorithm in one file gives the numbers of the composed step."""

import jax
import numpy as np

from prm_jax.prime import published
from prm_jax.prime.advantage_options import AdvantageOptions
from prm_jax.prime.step import init_state, make_step
from tests.prime.conftest import replaced, setup_of


def test_the_composed_step_with_published_options_is_the_published_algorithm(options, tiny_config, tiny_frozen, batch):
    settings = published.Published(policy_lr=1e-2, policy_decay=0.0, prm_lr=1e-2, beta=0.5)
    options = replaced(options, prm={"beta": 0.5})
    assert options.advantage == AdvantageOptions()
    setup = setup_of(options, tiny_config, tiny_frozen.constants)
    state, compiled = init_state(setup, tiny_frozen, jax.random.key(0)), make_step(setup)
    models = published.init(settings, tiny_frozen.reference)
    rollouts = published.Rollouts(batch.tokens, batch.mask, batch.outcome, batch.group_ids)
    step = jax.jit(published.step, static_argnums=(0, 1), donate_argnums=2)
    for _ in range(3):
        state, metrics, _ = compiled(state, tiny_frozen, batch)
        models, found = step(settings, tiny_config, models, tiny_frozen.reference, rollouts)
    for ours, theirs in ((state.policy, models.policy), (state.source.trainable, models.prm)):
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=2e-5)
    for name, value in found.items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_it_fits_on_a_few_screens():
    import inspect

    assert len(inspect.getsource(published).splitlines()) <= 150
