"""The kinds of process reward models: one file and one class of options each.

To add a kind, write a subclass of ``spec.Kind`` in a file of its own and enter it in `KINDS`.
"""

from prm_jax.prm.kinds.armo import Armo
from prm_jax.prm.kinds.b_coder import BCoder
from prm_jax.prm.kinds.bradley_terry import BradleyTerry
from prm_jax.prm.kinds.digi_q import DigiQ
from prm_jax.prm.kinds.early_exit import EarlyExit
from prm_jax.prm.kinds.generative import Generative
from prm_jax.prm.kinds.gpm import GPM
from prm_jax.prm.kinds.imitation import Imitation
from prm_jax.prm.kinds.implicit import Implicit
from prm_jax.prm.kinds.outcome import Outcome
from prm_jax.prm.kinds.step_q import StepQ
from prm_jax.prm.kinds.themis import Themis
from prm_jax.prm.kinds.token import Token
from prm_jax.prm.kinds.value import Value
from prm_jax.prm.spec import Kind

KINDS: dict[str, type[Kind]] = {
    kind.kind: kind
    for kind in (Implicit, StepQ, Token, Value, Outcome, BradleyTerry, GPM, Armo, DigiQ, BCoder, Generative,
        Imitation, EarlyExit, Themis)
}
"""Name -> class; ``KINDS["token"](head_layers=2)`` is a kind with its options."""

__all__ = [
    "KINDS", "Armo", "BCoder", "BradleyTerry", "DigiQ", "EarlyExit", "GPM", "Generative", "Imitation", "Implicit",
    "Outcome", "StepQ", "Themis", "Token", "Value",
]  # fmt: skip
