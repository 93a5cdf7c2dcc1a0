"""Step labels for training reward models, from a policy's rollouts or search trees.

Names are imported on first use, so that the options can be read without jax.
"""

from typing import TYPE_CHECKING, Any

from prm_jax.lazy_names import lazy_attribute

if TYPE_CHECKING:
    from prm_jax.prm.labelling.method_options import (
        LABELLERS,
        AdaptiveOptions,
        EveryStepOptions,
        OmegaOptions,
        TreeLabelOptions,
        make_labeller,
    )
    from prm_jax.prm.labelling.rollouts import adaptive_records, every_step_records, omega_records
    from prm_jax.prm.labelling.tree_options import TreeOptions
    from prm_jax.prm.labelling.trees import edit_distance, tree_records

_HOME = {
    "AdaptiveOptions": "method_options",
    "adaptive_records": "rollouts",
    "EveryStepOptions": "method_options",
    "LABELLERS": "method_options",
    "OmegaOptions": "method_options",
    "TreeLabelOptions": "method_options",
    "TreeOptions": "tree_options",
    "edit_distance": "trees",
    "every_step_records": "rollouts",
    "make_labeller": "method_options",
    "omega_records": "rollouts",
    "tree_records": "trees",
}

__all__ = [
    "LABELLERS",
    "AdaptiveOptions",
    "EveryStepOptions",
    "OmegaOptions",
    "TreeLabelOptions",
    "TreeOptions",
    "adaptive_records",
    "edit_distance",
    "every_step_records",
    "make_labeller",
    "omega_records",
    "tree_records",
]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
