"""The kinds of process reward models: for each its head, its forward pass, its loss, and the scores of steps.

A forward pass gives whatever its kind needs (an array or a dict of arrays); loss and scores read that alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

from prm_jax import rl
from prm_jax.prm import kind_armo, kind_bcoder, kind_digiq, kind_implicit, kind_responses, kind_steps
from prm_jax.prm.forward import Spec, Weights
from prm_jax.prm.options import Aggregate, KindName
from prm_jax.prm.rows import Batch
from prm_jax.runs.learner import Params

Needs = Literal["labels", "outcome", "groups", "either", "objectives", "step_pairs"]
"""What a kind learns from: step labels; outcomes; right and wrong solutions of one problem; labels or else outcomes;
objectives beside such solutions; pairs of steps after a shared prefix."""


def no_head(spec: Spec, key: jax.Array) -> tuple[Params, Params]:
    """Nothing beside the language model."""
    del spec, key
    return {}, {}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
      needs: what it learns from.
      init: (spec, key) -> (head to train, fixed arrays).
      forward: (spec, weights, batch) -> what loss and scores read.
      loss: (spec, forward's result, batch, constant) -> Loss, a sum over solutions, steps or pairs with its weight.
      scores: (spec, forward's result, batch) -> [R, S] float32, higher is better.
      aggregate: how step scores become a response's score, unless the options say otherwise.
      output: what a step's score is, for whoever reads it.
      pairs: the loss compares solutions of one problem, so that whole groups must stay together.
      head_only: trains its head on frozen features unless the options say otherwise.
      reference: the forward pass compares with a reference.
      whole: learns from the end of a solution, so that one that had to be cut is left out.
    """

    needs: Needs
    init: Callable[[Spec, jax.Array], tuple[Params, Params]]
    forward: Callable[[Spec, Weights, Batch], Any]
    loss: Callable[[Spec, Any, Batch, jax.Array], rl.Loss]
    scores: Callable[[Spec, Any, Batch], jax.Array]
    aggregate: Aggregate
    output: Literal["log_ratio", "probability", "score", "value"]
    pairs: bool = False
    head_only: bool = False
    reference: bool = False
    whole: bool = True


KINDS: dict[KindName, Kind] = {
    "implicit": Kind(
        "outcome", no_head, kind_implicit.forward, kind_implicit.loss, kind_implicit.scores, "min", "log_ratio",
        reference=True,
    ),
    "step_q": Kind(
        "step_pairs", no_head, kind_implicit.forward, kind_implicit.pair_loss, kind_implicit.scores, "min",
        "log_ratio", pairs=True, reference=True,
    ),
    "token": Kind(
        "labels", kind_steps.init_token, kind_steps.forward_token, kind_steps.token_loss, kind_steps.token_scores,
        "min", "probability", whole=False,
    ),
    "value": Kind(
        "either", kind_steps.init_value, kind_steps.forward_value, kind_steps.value_loss, kind_steps.value_scores,
        "last", "value", whole=False,
    ),
    "outcome": Kind(
        "outcome", kind_responses.init_score, kind_responses.forward_score, kind_responses.outcome_loss,
        kind_responses.probabilities, "last", "probability",
    ),
    "bradley_terry": Kind(
        "groups", kind_responses.init_score, kind_responses.forward_score, kind_responses.bradley_terry_loss,
        kind_responses.plain_scores, "last", "score", pairs=True,
    ),
    "gpm": Kind(
        "groups", kind_responses.init_gpm, kind_responses.forward_gpm, kind_responses.gpm_loss,
        kind_responses.gpm_scores, "last", "score", pairs=True,
    ),
    "armo": Kind(
        "objectives", kind_armo.init, kind_armo.forward, kind_armo.loss, kind_armo.scores, "last", "score",
        pairs=True, head_only=True,
    ),
    "digi_q": Kind(
        "outcome", kind_digiq.init, kind_digiq.forward, kind_digiq.loss, kind_digiq.scores, "last", "value",
        head_only=True,
    ),
    "b_coder": Kind(
        "outcome", kind_bcoder.init, kind_bcoder.forward, kind_bcoder.loss, kind_bcoder.scores, "sum", "score",
        reference=True,
    ),
}  # fmt: skip
"""Name -> kind."""


def kind_of(spec: Spec) -> Kind:
    """The kind that a spec names."""
    return KINDS[spec.options.kind]


def needs_groups(spec: Spec) -> bool:
    """Whether the loss compares solutions of one problem."""
    pairwise = spec.options.kind == "implicit" and spec.options.loss in ("dpo", "nca")
    return kind_of(spec).pairs or pairwise
