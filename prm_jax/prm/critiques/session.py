"""Judging a file of solutions with one model in several roles, and what comes of it: labels, scores, critiques."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prm_jax.data.consensus import first_error
from prm_jax.data.step_data import StepRecord
from prm_jax.prm.critiques.formats import CritiqueFormat
from prm_jax.prm.critiques.sampling import Critique, sample_critiques
from prm_jax.prm.critiques.voting import How, Judges, critique_records, judge, outcome_weights, votes_of
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.score import Scored
from prm_jax.rollouts.engine import Engine, OnProgress


class Role(NamedTuple):
    """One way in which the model judges.

    Attributes:
      name: of the role.
      format: name of its format.
      form: the format.
      told: the judge is told the correct answer.
      stop: the engine's stop set for it.
    """

    name: str
    format: str
    form: CritiqueFormat
    told: bool
    stop: int


def roles(forms: Mapping[str, CritiqueFormat], *, reverse: bool) -> list[Role]:
    """A role per format, and with `reverse` one more that is told the answer ("NAME+answer")."""
    return [
        Role(f"{name}+answer" if told else name, name, form, told, stop)
        for stop, (name, form) in enumerate(forms.items())
        for told in ([False, True] if reverse else [False])
    ]


def criticise(
    engine: Engine, records: Sequence[StepRecord], judges: Sequence[Role], *, layout: TextLayout, votes: int,
    max_new_tokens: int, on_progress: OnProgress = lambda responses, tokens: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The critiques of solutions by every role, as JSON values.

    Args:
      engine: with the stop set of each role.
      records: the solutions.
      judges: the roles.
      layout, votes, max_new_tokens, on_progress: see `sample_critiques`.

    Returns:
      For each solution its "id" and "critiques": name of the role -> a list of critiques.
    """
    lines: list[dict[str, Any]] = [{"id": record.id, "critiques": {}} for record in records]
    for role in judges:
        found = sample_critiques(
            engine, records, role.form, layout=layout, votes=votes, max_new_tokens=max_new_tokens, told=role.told,
            stop=role.stop, on_progress=on_progress,
        )  # fmt: skip
        for line, own in zip(lines, found, strict=True):
            line["critiques"][role.name] = [dataclasses.asdict(one) for one in own]
    return lines


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What the critiques of a file say.

    Attributes:
      labelled: the solutions with the judges' labels, and the votes of each judge in ``provenance.judges``.
      scored: the solutions, with their own labels, and the judges' scores.
      to_learn: critiques as data for ``--prm.kind generative``; not those of judges that were told the answer.
      summary: of each judge: its weight, the number of critiques, the share of them with a verdict, and where the
        solutions have labels or outcomes how often they agree.
    """

    labelled: list[StepRecord]
    scored: list[Scored]
    to_learn: list[StepRecord]
    summary: dict[str, dict[str, float]]


def conclude(
    records: Sequence[StepRecord], lines: Sequence[Mapping[str, Any]], judges: Sequence[Role], *, how: How,
    by_outcome: bool, agreeing: bool, told: Mapping[str, Any],
) -> Verdicts:  # fmt: skip
    """Labels, scores and training data from the critiques of all solutions.

    Args:
      records: the solutions.
      lines: of each, from `criticise`.
      judges: the roles.
      how: see ``votes_of``.
      by_outcome: weigh judges by their agreement with outcomes.
      agreeing: see ``critique_records``.
      told: provenance that all labels share.
    """
    critiques = {role.name: [_read(line["critiques"][role.name]) for line in lines] for role in judges}
    votes = [
        [votes_of(own, len(record.steps), how=how) for record, own in zip(records, critiques[role.name], strict=True)]
        for role in judges
    ]
    weights = outcome_weights(votes, records) if by_outcome else None
    found = judge(votes, weights=weights)
    labelled, scored = [], []
    for place, record in enumerate(records):
        said = {role.name: _plain(votes[number][place]) for number, role in enumerate(judges)}
        provenance = {**record.provenance, **told, "judges": said}
        labelled.append(dataclasses.replace(record, labels=found.labels[place], provenance=provenance))
        steps = tuple(float(x) for x in found.scores[place])
        scored.append(Scored(record, steps, min(steps)))
    learn = [
        one
        for role in judges
        if not role.told
        for one in critique_records(records, critiques[role.name], name=role.format, agreeing=agreeing)
    ]
    summary = {
        role.name: _summary(records, critiques[role.name], votes[number]) | {"weight": float(found.weights[number])}
        for number, role in enumerate(judges)
    }
    return Verdicts(labelled, scored, learn, summary | {"together": _agreement(records, found)})


def summary_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """The summary of `conclude` for people: a line per judge, and one for all together."""
    columns = ("critiques", "with_verdict", "weight", "first_error_agreement", "outcome_agreement")
    names = ("critiques", "with verdict", "weight", "same first error", "same outcome")
    lines = [f"{'judge':24s}" + "".join(f"{name:>18s}" for name in names)]
    for name, found in summary.items():
        cells = ["" if one not in found else f"{found[one]:.3f}".removesuffix(".000") for one in columns]
        lines.append(f"{name:24s}" + "".join(f"{cell:>18s}" for cell in cells))
    return "\n".join(lines)


def _read(own: Sequence[Mapping[str, Any]]) -> list[Critique]:
    return [Critique(**{**one, "verdicts": tuple(one["verdicts"])}) for one in own]


def _plain(votes: np.ndarray) -> list[float | None]:
    return [None if np.isnan(x) else float(x) for x in votes]


def _summary(
    records: Sequence[StepRecord], critiques: Sequence[Sequence[Critique]], votes: Sequence[np.ndarray]
) -> dict[str, float]:
    every = [one for own in critiques for one in own]
    said = sum(any(verdict is not None for verdict in one.verdicts) for one in every)
    return {
        "critiques": len(every),
        "with_verdict": said / max(len(every), 1),
        "tokens": sum(one.tokens for one in every),
        **_agreement(records, judge([votes])),
    }


def _agreement(records: Sequence[StepRecord], found: Judges) -> dict[str, float]:
    """Shares of solutions with the same first wrong step, and with "all steps right" as the outcome says."""
    truths = [first_error(record.labels) for record in records]
    same = [truth == first_error(own) for truth, own in zip(truths, found.labels, strict=True) if truth is not None]
    right = [
        (min(score) > 0.5) == (record.outcome > 0.5)
        for record, score in zip(records, found.scores, strict=True)
        if record.outcome is not None
    ]
    shares = {"first_error_agreement": same, "outcome_agreement": right}
    return {name: sum(hits) / len(hits) for name, hits in shares.items() if hits}
