"""General preferences, which may be cyclic, from embeddings of responses: GPM, arXiv 2410.02197."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import rl
from prm_jax.option_ranges import above, at_least, within
from prm_jax.prm.forward import apply_head, at_last, better_pairs, init_head, read_hidden
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import HeadedKind, Needs, Output, Spec, Weights
from prm_jax.runs.learner import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPM(HeadedKind):
    """Preferences between embeddings."""

    kind: Literal["gpm"] = "gpm"
    embedding: Annotated[int, at_least(2)] = 4
    """Width of the preference embedding, even."""
    temperature: Annotated[float, above(0)] = 0.1
    """Divides preference scores."""
    label_smoothing: Annotated[float, within(0, 0.5, high_open=True)] = 0.0
    """Label smoothing of the loss, in [0, 1/2)."""

    learns_from: ClassVar[Needs] = "groups"
    output: ClassVar[Output] = "score"
    default_aggregate: ClassVar = "last"
    step_scores: ClassVar[bool] = False

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """The embedding consists of planes."""
        del model, train
        return [f"--prm.embedding is {self.embedding}; it must be even"] if self.embedding % 2 else []

    def init(self, spec: Spec, key: jax.Array) -> tuple[Params, Params]:
        """A head for the embedding, and one that weighs its planes by the prompt."""
        first, second = jax.random.split(key)
        return {
            "embedding": init_head(spec, first, num_outputs=self.embedding, random=True),
            "gate": init_head(spec, second, num_outputs=self.embedding // 2, layers=1),
        }, {}

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> dict[str, jax.Array]:
        """Steps [R, S, E] unit embeddings after every step; prompt [R, E] that of the prompt; scales [R, E / 2]."""
        steps, starts = read_hidden(spec, weights, batch)

        def unit(x: jax.Array) -> jax.Array:
            return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)

        embedding = weights.head["embedding"]
        return {
            "steps": unit(apply_head(spec, embedding, steps)),
            "prompt": unit(apply_head(spec, embedding, starts)),
            "scales": rl.preference_gates(apply_head(spec, weights.head["gate"], starts)),
        }

    def training_loss(
        self, spec: Spec, found: dict[str, jax.Array], batch: Batch, constant: jax.Array
    ) -> rl.Loss:
        """-log sigmoid(s(better, worse) / temperature) over all pairs of a group with different outcomes."""
        del spec, constant
        last = at_last(found["steps"], batch)
        score = rl.preference_score(last[:, None], last[None], scales=found["scales"][:, None])
        return rl.pairwise_loss(
            score / self.temperature, jnp.zeros_like(score), label_smoothing=self.label_smoothing,
            mask=better_pairs(batch),
        )  # fmt: skip

    def scores(self, spec: Spec, found: dict[str, jax.Array], batch: Batch) -> jax.Array:
        """[R, S]: how much the state after a step is preferred to the bare prompt."""
        del spec
        score = rl.preference_score(found["steps"], found["prompt"][:, None], scales=found["scales"][:, None])
        return jnp.where(batch.step_mask, score / self.temperature, 0.0)

    def response_facts(self, spec: Spec, found: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """What preferences between responses, which may be cyclic, are computed from."""
        del spec
        return {"embedding": at_last(found["steps"], batch), "scales": found["scales"]}

    def response_scores(
        self, scores: np.ndarray, facts: Sequence[dict[str, np.ndarray]], groups: Sequence[str]
    ) -> np.ndarray:
        """Mean preference of each solution over the others of its problem; its own score where it is alone."""
        numbers: dict[str, int] = {}
        ids = np.asarray([numbers.setdefault(group, len(numbers)) for group in groups], np.int32)
        result = np.array(scores, np.float32)
        for group in range(len(numbers)):
            members = np.flatnonzero(ids == group).tolist()
            if len(members) < 2:
                continue
            embeddings, scales = (np.stack([facts[i][name] for i in members]) for name in ("embedding", "scales"))
            result[members] = np.asarray(
                rl.group_preferences(
                    embeddings, np.zeros(len(members), np.int32), num_groups=1, scales=scales,
                    temperature=self.temperature,
                )
            )  # fmt: skip
        return result
