"""Scores of whole responses: the outcome, Bradley-Terry, and general preferences (GPM, arXiv 2410.02197)."""

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prm.forward import Spec, Weights, apply_head, at_last, init_head, judged, read_hidden
from prm_jax.prm.kind_implicit import better_pairs
from prm_jax.prm.rows import Batch
from prm_jax.runs.learner import Params


def init_score(spec: Spec, key: jax.Array) -> tuple[Params, Params]:
    """A head with one output."""
    return init_head(spec, key, num_outputs=1), {}


def forward_score(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """[R, S] float32: the head after every step; only the last one is trained."""
    return apply_head(spec, weights.head, read_hidden(spec, weights, batch)[0])[..., 0]


def outcome_loss(spec: Spec, scores: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
    """Cross-entropy of the last step's score with the outcome."""
    del spec, constant
    known = judged(batch)
    loss = rl.outcome_ce_loss(at_last(scores, batch)[:, None], batch.outcome, known[:, None])
    return loss


def probabilities(spec: Spec, scores: jax.Array, batch: Batch) -> jax.Array:
    """[R, S] in [0, 1]."""
    del spec
    return jnp.where(batch.step_mask, jax.nn.sigmoid(scores), 0.0)


def bradley_terry_loss(spec: Spec, scores: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
    """-log sigmoid(better - worse) over all pairs of a group with different outcomes."""
    del constant
    return rl.all_pairs_loss(
        at_last(scores, batch), batch.outcome, batch.group_ids, num_groups=batch.outcome.shape[0],
        label_smoothing=spec.options.label_smoothing,
    )  # fmt: skip


def plain_scores(spec: Spec, scores: jax.Array, batch: Batch) -> jax.Array:
    """[R, S], unbounded; the difference of two is the logit of a preference."""
    del spec
    return jnp.where(batch.step_mask, scores, 0.0)


def init_gpm(spec: Spec, key: jax.Array) -> tuple[Params, Params]:
    """A head for the embedding, and one that weighs its planes by the prompt."""
    first, second = jax.random.split(key)
    width = spec.options.embedding
    return {
        "embedding": init_head(spec, first, num_outputs=width, random=True),
        "gate": init_head(spec, second, num_outputs=width // 2, layers=1),
    }, {}


def forward_gpm(spec: Spec, weights: Weights, batch: Batch) -> dict[str, jax.Array]:
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


def gpm_loss(spec: Spec, found: dict[str, jax.Array], batch: Batch, constant: jax.Array) -> rl.Loss:
    """-log sigmoid(s(better, worse) / temperature) over all pairs of a group with different outcomes."""
    del constant
    last, better = at_last(found["steps"], batch), better_pairs(batch)
    score = rl.preference_score(last[:, None], last[None], scales=found["scales"][:, None])
    return rl.pairwise_loss(
        score / spec.options.temperature, jnp.zeros_like(score), label_smoothing=spec.options.label_smoothing,
        mask=better,
    )  # fmt: skip


def gpm_scores(spec: Spec, found: dict[str, jax.Array], batch: Batch) -> jax.Array:
    """[R, S]: how far the state after a step is preferred to the bare prompt.

    Preferences among responses, which may be circular, are between their embeddings: see ``score.prefer``.
    """
    score = rl.preference_score(found["steps"], found["prompt"][:, None], scales=found["scales"][:, None])
    return jnp.where(batch.step_mask, score / spec.options.temperature, 0.0)
