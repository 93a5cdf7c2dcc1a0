"""A process reward model as data: its kind, its architecture, its arrays. `Kind` is what every kind of model provides.

A kind is a frozen dataclass of its own options whose methods define how it learns and how it scores. Everything
specific to a kind is in these methods; no other code depends on which kind it is.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import rl
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.models import ExpertLoad, ModelConfig
from prm_jax.option_ranges import at_least
from prm_jax.prm.reward_model_options import Aggregate, BaseOptions, OptimizerOptions, TextLayout
from prm_jax.prm.rows import Batch, Row, Shape
from prm_jax.prm.text_layout import Reader
from prm_jax.runs.learner import Params

Needs = Literal["labels", "outcome", "groups", "either", "objectives", "step_pairs"]
"""What a kind learns from: step labels; outcomes; right and wrong solutions of one problem; labels or else outcomes;
objectives in addition to such solutions; pairs of steps after a shared prefix."""
Output = Literal["log_ratio", "probability", "score", "value"]
"""What a step's score is."""


def without_head(kind: str, train: OptimizerOptions, *, reason: str = "has no head") -> list[str]:
    """What speaks against ``--train.trains head`` for a kind that trains the language model."""
    if train.trains != "head":
        return []
    return [f"--train.trains head leaves nothing to train: kind {kind} {reason}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """Base of all kinds: the defaults of what most kinds share. A subclass is one kind; its fields are its options.

    A forward pass returns whatever the kind needs (an array or a dict of arrays); `training_loss` and `scores` read
    only that and the batch.

    Class attributes:
      learns_from: see `Needs`.
      output: what a step's score is.
      default_aggregate: how step scores become a response's score, unless the options say otherwise.
      step_scores: the scores of unfinished solutions are trained, too, not only that of the last step.
      head_only: trains its head on frozen features unless the options say otherwise.
      compares: the forward pass compares the model with a reference.
      whole: learns from the end of a solution, so that a solution that does not fit is left out instead of cut.
      only_last: only the last step of a record has tokens of its own.
      generates: scores solutions by sampling text (`sampled_scores`), which is not done while it trains.
    """

    kind: str = ""
    """Kind of reward model, which decides the other --prm.* options. implicit: log-ratio to a reference, from
    outcomes; token: a class at the end of every step, from step labels; value: step values, from step labels or
    outcomes; step_q: step-wise DPO, from steps that share a prefix; outcome: the outcome at the end of the response;
    bradley_terry: a score from preferences within a group; gpm: embeddings whose preferences may be cyclic; armo:
    several objectives on frozen features with a gate; digi_q: twin Q and V on frozen features by temporal differences;
    b_coder: a duelling Q from the model's own logits; generative: critiques with verdicts, from critiques or labels;
    imitation: the likelihood of chosen solutions, which also makes a policy; early_exit: classes after as few layers as
    suffice, from step labels; themis: a score after calls of a tool, from preferences and traces of calls."""
    aggregate: Aggregate | None = None
    """How step scores become the response's score; none: what suits the kind."""

    learns_from: ClassVar[Needs]
    output: ClassVar[Output]
    default_aggregate: ClassVar[Aggregate]
    step_scores: ClassVar[bool] = True
    head_only: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    only_last: ClassVar[bool] = False
    generates: ClassVar[bool] = False

    @property
    def needs(self) -> Needs:
        """What this kind learns from under its options."""
        return self.learns_from

    @property
    def whole_groups(self) -> bool:
        """Whether the loss compares solutions of one problem, so that a group must not be split over batches."""
        return self.needs in ("groups", "objectives", "step_pairs")

    @property
    def keeps_reference(self) -> bool:
        """Whether the finished model scores against its reference."""
        return False

    @property
    def stages(self) -> int:
        """In how many stages a solution is scored at most; see `stage`."""
        return 1

    @property
    def how(self) -> Aggregate:
        """The aggregation of step scores."""
        return self.aggregate or self.default_aggregate

    def __post_init__(self) -> None:
        if self.kind != type(self).kind:
            raise UserError(f"a {type(self).__name__} has kind {type(self).kind!r}, found kind {self.kind!r}")

    # ------------------------------------------------------------------------------------- before training

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """What is wrong with these options, alone or in combination with the rest of a run's; [] for nothing."""
        del model, train
        return []

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises UserError where the model's tokenizer cannot write what this kind needs."""

    def layout(self, text: TextLayout) -> TextLayout:
        """How prompts and steps become text, where the kind decides part of it."""
        return text

    def select_records(self, records: Sequence[StepRecord]) -> list[StepRecord]:
        """The records that rows are made of."""
        return list(records)

    def select_labels(self, rows: Sequence[Row]) -> list[Row]:
        """Rows with only those labels that this kind learns from."""
        return list(rows)

    def objectives(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """Names of the objectives in the training rows."""
        del rows
        return ()

    def init(self, spec: "Spec", key: jax.Array) -> tuple[Params, Params]:
        """(head to train, fixed arrays) at the start; `key` is consumed."""
        del spec, key
        return {}, {}

    def fit_fixed(self, spec: "Spec", weights: "Weights", batches: Iterable[tuple[Batch, int]]) -> Params:
        """The fixed arrays after one pass over the training data, before gradients are taken.

        Args:
          spec: of the model.
          weights: at the start.
          batches: pairs of a batch and the number of its solutions, which come first in it.
        """
        del spec, batches
        return weights.fixed

    # ------------------------------------------------------------------------------------- training

    def forward(self, spec: "Spec", weights: "Weights", batch: Batch) -> Any:
        """What `training_loss` and `scores` read."""
        raise NotImplementedError

    def training_loss(self, spec: "Spec", found: Any, batch: Batch, constant: jax.Array) -> rl.Loss:
        """Sum over solutions, steps or pairs, with its weight; `constant` is what `batch_constant` returned, or 0."""
        raise NotImplementedError

    def extra_batch(self, rows: Sequence[Row], shape: Shape) -> Batch | None:
        """A second batch that `batch_constant` reads, made from the rows of the first; None where none is needed."""
        del rows, shape
        return None

    def batch_constant(self, spec: "Spec", weights: "Weights", extra: Batch) -> jax.Array:
        """A scalar constant of the loss from `extra_batch`es, stacked along a leading axis."""
        raise NotImplementedError

    def after_update(self, head: Params, fixed: Params) -> Params:
        """The fixed arrays after an update that gave `head`."""
        del head
        return fixed

    # ------------------------------------------------------------------------------------- scoring

    def saved(self, fixed: Params) -> Params:
        """The fixed arrays that scoring needs."""
        return fixed

    def scores(self, spec: "Spec", found: Any, batch: Batch) -> jax.Array:
        """[R, S] float32, higher is better; 0 where there is no step."""
        raise NotImplementedError

    def reader(self, layout: TextLayout) -> Reader | None:
        """Makes the tokens of a solution to score, whose length is checked; None: they are those of the layout."""
        del layout
        return None

    def sampled_scores(self, prm: Any, records: Sequence[StepRecord], *, ways: int = 1) -> Iterator[np.ndarray]:
        """[S] float32 for each solution in order, of a kind that `generates`.

        Args:
          prm: the whole model, a ``score.PRM``.
          records: the solutions.
          ways: devices that divide the samples.
        """
        raise NotImplementedError

    def stage(
        self, spec: "Spec", weights: "Weights", batch: Batch, number: int, carry: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One of several `stages`: (scores [R, S], [R] bool: they are final, what the next stage gets as `carry`).

        Args:
          spec, weights, batch: as in `forward`.
          number: of the stage, static.
          carry: [R, S] float32, of the stage before; 0 in the first one.
        """
        raise NotImplementedError

    def layers(self, spec: "Spec", number: int) -> int:
        """Layers of the model that a stage has read."""
        del number
        return spec.config.num_layers

    def response_facts(self, spec: "Spec", found: Any, batch: Batch) -> dict[str, jax.Array]:
        """Further arrays of each solution, [R, ...]: "objectives" and "quantiles" [R, S, K] are shown, the rest is
        for `response_scores`.
        """
        del spec, found, batch
        return {}

    def response_scores(
        self, scores: np.ndarray, facts: Sequence[dict[str, np.ndarray]], groups: Sequence[str]
    ) -> np.ndarray:
        """[R] scores of whole solutions.

        Args:
          scores: [R] aggregated from the steps.
          facts: of each solution, see `response_facts`.
          groups: the problem of each solution.
        """
        del facts, groups
        return scores

    def token_rewards(self, spec: "Spec", weights: "Weights", batch: Batch) -> jax.Array:
        """[N, T] float32 rewards of tokens, 0 outside the steps; their sum over a step is the step's score.

        By default the whole score is the reward of the step's last token.
        """
        scores = jnp.where(batch.step_mask, self.scores(spec, self.forward(spec, weights, batch), batch), 0.0)
        if batch.segment_ids is None:  # one solution per row
            places = batch.reads % batch.tokens.shape[1]
            return jax.vmap(lambda at, values: jnp.zeros(batch.tokens.shape[1], jnp.float32).at[at].add(values))(
                places, scores
            )
        flat = jnp.zeros(batch.tokens.size, jnp.float32).at[batch.reads].add(scores)
        return flat.reshape(batch.tokens.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadedKind(Kind):
    """Base of kinds that read the hidden states with a head."""

    head_layers: Annotated[int, at_least(1)] = 1
    """Linear layers of the head."""
    head_activation: Literal["silu", "relu"] = "silu"
    """Activation between the head's layers."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static part of a process reward model; hashable, static under jit.

    Attributes:
      kind: with its options.
      config: the model's architecture.
      reference_config: the reference's, where it differs.
      label_ids: (right, wrong): vocabulary entries whose logits are the two classes; None: a head.
      objectives: names of the objectives, of a kind that has several.
    """

    kind: Kind
    config: ModelConfig
    reference_config: ModelConfig | None = None
    label_ids: tuple[int, int] | None = None
    objectives: tuple[str, ...] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """The arrays of a process reward model.

    Attributes:
      model: parameters of the language model, adapters joined.
      head: of the head that is trained, {} without one.
      fixed: arrays that are not trained by gradients: regressions, target heads; {} without.
      reference: parameters of the reference, None without one.
      loads: a list, to which every pass of a sparse model adds its experts' load while it is traced; or None.
    """

    model: Params
    head: Params
    fixed: Params
    reference: Params | None = None
    loads: list[ExpertLoad] | None = dataclasses.field(default=None, metadata={"static": True})
