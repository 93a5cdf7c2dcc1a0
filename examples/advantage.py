"""An advantage function of your own: the outcome against the rest of its group, plus each step's own reward.

prm-jax train --preset smoke --advantage.estimator examples/advantage.py:local
"""

import jax

from prm_jax import rl
from prm_jax.prime import RewardInputs


def local(rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    """Advantages [B, T] from process rewards [B, T] after shaping."""
    outcome = rl.leave_one_out(inputs.outcome, inputs.group_ids, num_groups=inputs.num_groups, mask=inputs.keep)
    own = rl.step_credit(rewards, inputs.step_ids, num_steps=inputs.num_steps)
    return rl.whiten(outcome[:, None] + inputs.gate * own, inputs.counted)
