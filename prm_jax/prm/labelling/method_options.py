"""Options of the ways to label steps; each checks its own. Importing this module imports nothing heavy."""

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from prm_jax.errors import UserError
from prm_jax.option_ranges import at_least, check_ranges
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
    uses_policy: ClassVar[bool] = True
    """Whether it samples; else `__call__` gets a `Problems`."""

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
class AdaptiveOptions(_Labeller):
    """Rollouts after every step of sampled solutions, more of them where a value is uncertain."""

    solutions: Count = 4
    pilot: Count = 4

    def check(self) -> None:
        """See `_Labeller`."""
        super().check()
        if self.pilot >= self.rollouts:
            raise UserError(
                f"--pilot is {self.pilot}; it must be less than --rollouts, which is {self.rollouts}: the others are "
                "divided by what the first ones find"
            )

    def told(self) -> dict[str, Any]:
        """See `_Labeller`."""
        return {"rollouts": self.rollouts, "pilot": self.pilot}

    def __call__(self, policy: Any, told: Any, values: Any = None) -> "tuple[list[StepRecord], int]":
        """See `_Labeller`."""
        from prm_jax.prm.labelling.rollouts import adaptive_records

        return adaptive_records(
            policy, told, labels=self.labels, rollouts=self.rollouts, solutions=self.solutions, pilot=self.pilot
        )


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


@dataclass(frozen=True)
class Problems:
    """A chunk of problems for a labeller that samples nothing.

    Attributes:
      task: of the problems.
      problems: the current chunk.
      first: number of its first problem.
    """

    task: Any
    problems: Any = ()
    first: int = 0

    def check_prompts(self, problems: Any) -> None:
        """Nothing is sampled, so no prompt is too long."""

    def begin(self, problems: Any, first: int) -> None:
        """Takes up the next chunk."""
        object.__setattr__(self, "problems", problems)
        object.__setattr__(self, "first", first)


@dataclass(frozen=True, kw_only=True)
class MutateOptions(_Labeller):
    """Edits of right programs, labelled by their tests."""

    known = ("hard",)
    calls = "programs"
    uses_policy = False

    mutations: Count = 8
    refactors: Annotated[int, at_least(0)] = 2
    seed: int = 0

    def told(self) -> dict[str, Any]:
        """See `_Labeller`."""
        return {"mutations": self.mutations, "refactors": self.refactors}

    def __call__(self, policy: Any, told: Any, values: Any = None) -> "tuple[list[StepRecord], int]":
        """See `_Labeller`."""
        from prm_jax.prm.labelling.mutations import mutation_records

        return mutation_records(
            policy.task, policy.problems, told, mutations=self.mutations, refactors=self.refactors, seed=self.seed,
            first_problem=policy.first,
        )  # fmt: skip


LABELLERS: dict[str, Any] = {
    "omega": OmegaOptions, "every_step": EveryStepOptions, "adaptive": AdaptiveOptions, "tree": TreeLabelOptions,
    "mutate": MutateOptions,
}
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
