"""Searches of a chunk of problems, judged: the answer, its verdict and the cost of each."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prm_jax.data.answers import read_answer
from prm_jax.data.step_data import to_json
from prm_jax.errors import UserError
from prm_jax.prm.prefix_scores import PrefixScorer
from prm_jax.prm.prefixes import as_record
from prm_jax.prm.tree_page import tree_record
from prm_jax.rollouts.policy import STREAMS, TaskPolicy
from prm_jax.search.choosing import choose_candidate
from prm_jax.search.drawn import ScoredPrefixes
from prm_jax.search.partials import Candidate, Found
from prm_jax.search.searchers import Searcher

COUNTED = ("correct", "any_correct", "tokens", "proposals", "scored")
"""Numbers of each result."""


def search_problems(
    policy: TaskPolicy,
    searcher: Searcher,
    scorer: PrefixScorer,
    final: PrefixScorer | None = None,
    *,
    solutions: bool = False,
    draw: bool = False,
) -> Iterator[dict[str, Any]]:
    """Searches the policy's current problems.

    Args:
      policy: with a current chunk of problems.
      searcher: the search.
      scorer: scores prefixes.
      final: the second scorer, for searches that have one.
      solutions: also return every candidate as step data.
      draw: also return "prompt" and "tree" (see `tree_page.tree_record`): the tree of a tree search, or that of the
        prefixes that were scored.

    Yields:
      For each problem its id, "answer", "response", "score" of that candidate and the share of candidates with its
      answer ("agreement"), whether it is "correct", whether any candidate is
      ("any_correct"), the number of "candidates", and the "tokens", "proposals" and "scored" prefixes that it took;
      plain JSON values.
    """
    kept = ScoredPrefixes(scorer, len(policy.problems))
    answers: dict[str, Any] = {}
    if searcher.reads_answers:
        answers["answers"] = lambda partials: [read_answer(policy.task, policy.text(partial)) for partial in partials]
    found = searcher(policy.propose, kept if draw else scorer, len(policy.problems), final, **answers)
    trees = (found.trees or kept.trees()) if draw else ()
    rollers = [roller for one in (scorer, final) if one is not None for roller in one.rollers]
    for b in range(len(policy.problems)):
        line = _result(policy, searcher, scorer, found, b, solutions)
        if draw:
            line |= {"prompt": policy.problems[b].prompt, "tree": tree_record(trees[b], policy.text)}
        line["tokens"] += sum(roller.tokens.get(policy.first + b, 0) for roller in rollers)
        yield line


def check_budget(searcher: Searcher, scorers: Sequence[str]) -> str | None:
    """What is wrong with the size of a search, if anything.

    Args:
      searcher: the search.
      scorers: names of the scorers; each "rollouts" makes a request per prefix.
    """
    requests, prefixes = searcher.budget()
    needed = requests + list(scorers).count("rollouts") * prefixes
    if needed < STREAMS:
        return None
    return f"this search may make {needed} requests per problem, which must stay below {STREAMS}"


def check_results(
    lines: Sequence[Mapping[str, Any]], ids: Sequence[str], path: str, *, solutions: bool = False, draw: bool = False
) -> None:
    """Checks that results of an earlier run are those of the first problems.

    Args:
      lines: results read from a file whose first line holds the settings.
      ids: of the problems, in order.
      path: of the file, for messages.
      solutions: the candidates are needed, too.
      draw: the trees are needed, too.

    Raises:
      UserError: naming the line.
    """
    for number, line in enumerate(lines):
        expected = ids[number] if number < len(ids) else None
        counted = all(isinstance(line.get(name), int | float) and math.isfinite(line[name]) for name in COUNTED)
        if line.get("id") != expected or not counted or "answer" not in line:
            raise UserError(
                f"cannot continue {path}: line {number + 2} is not the result of "
                f"{'any problem' if expected is None else repr(expected)}, found {str(line)[:80]}"
            )
        if solutions and not isinstance(line.get("solutions"), list):
            raise UserError(
                f"cannot write --solutions: line {number + 2} of {path} was made without them; leave the option out, "
                "or search again"
            )
        if draw and not isinstance(line.get("tree"), list):
            raise UserError(
                f"cannot draw: line {number + 2} of {path} was made without --draw; leave the option out, or search "
                "again"
            )


def results_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Means over the results, one per line."""
    mean = {name: sum(line[name] for line in lines) / len(lines) for name in COUNTED}
    rows = [
        ("problems", f"{len(lines)}"),
        ("accuracy", f"{mean['correct']:.4f}"),
        ("any candidate correct", f"{mean['any_correct']:.4f}"),
        ("without an answer", f"{sum(line['answer'] is None for line in lines)}"),
        ("tokens per problem", f"{mean['tokens']:.1f}"),
        ("proposals per problem", f"{mean['proposals']:.1f}"),
        ("prefixes scored", f"{mean['scored']:.1f}"),
    ]
    return "\n".join(f"{name:23s}{value}" for name, value in rows)


def _result(
    policy: TaskPolicy, searcher: Searcher, scorer: PrefixScorer, found: Found, b: int, solutions: bool
) -> dict[str, Any]:
    problem, own = policy.problems[b], found.candidates[b]
    texts = [policy.text(candidate.partial) for candidate in own]
    verdicts = policy.task.verify_many([problem] * len(own), texts) if own else []
    correct = {c.partial.steps: v.score for c, v in zip(own, verdicts, strict=True)}
    answers = [read_answer(policy.task, text) for text in texts]
    weights = scorer.weights([candidate.score for candidate in own]).tolist() if own else []
    chosen = choose_candidate(own, answers, weights, searcher.choice)
    place = None if chosen is None else own.index(chosen)
    kept = {"solutions": list(_records(policy, own, correct, answers))} if solutions else {}
    return {
        "id": problem.id,
        "answer": None if place is None else answers[place],
        "response": None if place is None else texts[place],
        "score": None if chosen is None else chosen.score,
        "agreement": 0.0 if place is None else answers.count(answers[place]) / len(own),
        "correct": 0.0 if chosen is None else correct[chosen.partial.steps],
        "any_correct": max(correct.values(), default=0.0),
        "candidates": len(own),
        "tokens": int(found.tokens[b]),
        "proposals": int(found.proposals[b]),
        "scored": int(found.scored[b]),
        **kept,
    }


def _records(
    policy: TaskPolicy, candidates: Sequence[Candidate], correct: Mapping[Any, float], answers: Sequence[str | None]
) -> Iterator[dict[str, Any]]:
    """The candidates of a problem as step data, best first; those without a step are left out."""
    for number, (candidate, answer) in enumerate(zip(candidates, answers, strict=True)):
        partial = candidate.partial
        record = as_record(policy, partial, f"{policy.problems[partial.question].id}/{number}")
        if record is not None:
            told = {"answer": answer, "score": candidate.score}
            yield to_json(dataclasses.replace(record, outcome=correct[partial.steps], provenance=told))
