"""The forms of quantised weights that the tables compare, and what a form costs."""

from typing import Any

import jax

from prm_jax.models import QTensor
from prm_jax.models.transformer import Params


def methods(rank: int) -> dict[str, dict[str, Any]]:
    """Name -> arguments of ``models.quantize``; `rank` of low-rank corrections."""
    return {
        "int8": {"bits": 8},
        "int4": {"bits": 4},
        "int4, folded": {"bits": 4, "transform": "folded"},
        "int4, hadamard": {"bits": 4, "transform": "hadamard"},
        "int4, low rank": {"bits": 4, "rank": rank},
        "int4, mse": {"bits": 4, "fit": "mse"},
        "int4, QuEST": {"bits": 4, "transform": "hadamard", "scheme": "centred", "fit": "normal"},
        "int4, groups": {"bits": 4, "group": 32},
        "int4, groups, asymmetric": {"bits": 4, "group": 32, "scheme": "asymmetric"},
        "int4, groups, progressive": {"bits": 4, "group": 32, "scheme": "progressive"},
        "int4, groups, hadamard, low rank": {"bits": 4, "group": 32, "transform": "hadamard", "rank": rank},
        "int4, groups, folded, low rank": {"bits": 4, "group": 32, "transform": "folded", "rank": rank},
        "int2, groups, three levels": {"bits": 2, "group": 32},
        "int2, groups, asymmetric": {"bits": 2, "group": 32, "scheme": "asymmetric"},
        "int2, groups, centred": {"bits": 2, "group": 32, "scheme": "centred", "fit": "mse"},
        "int2, groups, five levels": {"bits": 2, "group": 32, "scheme": "balanced"},
        "int2, groups, five levels, hadamard, low rank": {
            "bits": 2, "group": 32, "scheme": "balanced", "transform": "hadamard", "rank": rank,
        },
    }  # fmt: skip


def bits_per_weight(params: Params) -> float:
    """Stored bits per weight of the quantised matrices, scales and corrections included."""
    found = [x for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, QTensor)) if isinstance(x, QTensor)]
    weights = sum(int(jax.numpy.prod(jax.numpy.array(q.shape))) for q in found)
    return 8 * sum(q.nbytes for q in found) / max(weights, 1)


