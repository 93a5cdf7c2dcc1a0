"""Options of the ways to label steps; each checks its own. Importing this module imports nothing heavy."""

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from prm_jax.errors import UserError
from prm_jax.option_ranges import check_ranges
from prm_jax.prm.labelling.tree_options import PAIRS, TREE_LABELS, Count, StepValues, TreeOptions

if TYPE_CHECKING:
    from prm_jax.data.step_data import StepRecord
    from prm_jax.rollouts.policy import TaskPolicy

ROLLOUT_LABELS = ("soft", "hard", "vstar")


@dataclass(frozen=True, kw_only=True)
class _Labeller:
    """One way to label steps."""

    known: ClassVar[tuple[str, ...]] = ROLLOUT_LABELS
    """Its kinds of labels."""
    calls: ClassVar[str] = "rollouts"
    """What `__call__` counts."""

    labels: str = "hard"
    rollouts: Count = 8

    def check(self) -> None:
        """Checks the options.

        Raises:
          UserError: naming the options of the command line.
        """
        problems = check_ranges(self)
        if self.labels not in self.known:
            problems.append(f"this --method has no labels {self.labels!r}; it has {', '.join(self.known)}")
        if problems:
            raise UserError("\n".join(problems))

    def told(self) -> dict[str, Any]:
        """What every record says about these options."""
        return {"rollouts": self.rollouts}

    def __call__(
        self, policy: "TaskPolicy", told: Mapping[str, Any], values: StepValues | None = None
    ) -> "tuple[list[StepRecord], int]":
        """Labels the policy's current problems.

        Args:
          policy: with a current chunk of problems.
          told: provenance that all records share.
          values: probabilities from a reward model, where the options name one.

        Returns:
          (records, number of `calls` made).
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OmegaOptions(_Labeller):
    """OmegaPRM: binary search for the first errors of wrong rollouts."""

    searches: Count = 16

    def __call__(self, policy: Any, told: Any, values: Any = None) -> "tuple[list[StepRecord], int]":
        """See `_Labeller`."""
        from prm_jax.prm.labelling.rollouts import omega_records

        return omega_records(policy, told, labels=self.labels, rollouts=self.rollouts, searches=self.searches)


@dataclass(frozen=True, kw_only=True)
class EveryStepOptions(_Labeller):
    """Rollouts after every step of sampled solutions."""

    solutions: Count = 4

    def __call__(self, policy: Any, told: Any, values: Any = None) -> "tuple[list[StepRecord], int]":
        """See `_Labeller`."""
        from prm_jax.prm.labelling.rollouts import every_step_records

        return every_step_records(policy, told, labels=self.labels, rollouts=self.rollouts, solutions=self.solutions)


@dataclass(frozen=True, kw_only=True)
class TreeLabelOptions(_Labeller):
    """Monte-Carlo tree search over steps."""

    known = (*TREE_LABELS, *PAIRS)
    calls = "proposals"

    tree: TreeOptions = field(default_factory=TreeOptions)

    def check(self) -> None:
        """See `_Labeller`."""
        from prm_jax.rollouts.policy import STREAMS

        super().check()
        if 2 * (1 + self.tree.simulations * self.tree.width) >= STREAMS:
            raise UserError(f"--tree.simulations times --tree.width must stay below {STREAMS // 2 - 1}")
        if self.tree.uses_model and not pathlib.Path(self.tree.scorer).exists():
            raise UserError(
                f"no scorer {self.tree.scorer!r}, and no such directory: use none, rollouts, or the path of a process "
                "reward model"
            )

    def told(self) -> dict[str, Any]:
        """See `_Labeller`."""
        own = {name: getattr(self.tree, name) for name in ("rule", "scorer", "simulations", "width")}
        return own | ({"rollouts": self.rollouts} if self.tree.scorer == "rollouts" else {})

    def __call__(self, policy: Any, told: Any, values: Any = None) -> "tuple[list[StepRecord], int]":
        """See `_Labeller`."""
        from prm_jax.prm.labelling.trees import tree_records

        return tree_records(
            policy, told, labels=self.labels, rollouts=self.rollouts, options=self.tree, values=values
        )


LABELLERS: dict[str, Any] = {"omega": OmegaOptions, "every_step": EveryStepOptions, "tree": TreeLabelOptions}
"""The ways to label by the names of ``prm-jax label --method``."""


def make_labeller(name: str, options: Any) -> _Labeller:
    """The labeller of a name with its own options, checked.

    Args:
      name: one of `LABELLERS`.
      options: an object whose attributes hold the values of all options.

    Raises:
      UserError: an option is out of range.
    """
    kind = LABELLERS[name]
    made = kind(**{f.name: getattr(options, f.name) for f in dataclasses.fields(kind)})
    made.check()
    return made
