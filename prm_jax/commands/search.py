"""``prm-jax search``: a language model's answers by search over its steps, with accuracy, tokens and calls."""

import dataclasses
import functools
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prm_jax.commands import results
from prm_jax.commands.policy import PolicyOptions, check_at_least_one, load_policy, load_problems, settings_of
from prm_jax.commands.progress import Progress
from prm_jax.commands.scoring import load
from prm_jax.errors import UserError
from prm_jax.prm.options import LayoutName

if TYPE_CHECKING:
    import numpy as np

    from prm_jax.rollouts import Roller, TaskPolicy

Method = Literal[
    "majority", "best_of_n", "weighted_vote", "beam", "dvts", "step_beam", "lookahead", "parm", "mcts"
]
_NOT_IN_A_LINE = ("problems", "chunk", "solutions")
"""Options that no line of results depends on."""
_SAMPLED = ("majority", "best_of_n", "weighted_vote")
_COUNTED = ("correct", "any_correct", "tokens", "proposals", "scored")


@dataclass(frozen=True, kw_only=True)
class Options(PolicyOptions):
    """Search a language model's steps for the answers to a task's evaluation problems.

    Every method answers with one solution or vote a problem. Standard output: a table. With --out, a JSON line a
    problem (answer, right or not, tokens, candidates), which --resume goes on with.
    """

    method: Method = "best_of_n"
    """majority, best_of_n and weighted_vote sample whole solutions; the others go step by step: beam search, diverse
    verifier trees, AlphaMath's beam, ReARTeR's look-ahead, PARM's gates, and Monte-Carlo tree search."""
    scorer: str = "logp"
    """What values prefixes: logp (the policy's own mean log-probability), or the path of a process reward model; and,
    for bounds, since they know the reference answers: verifier (answers alone), rollouts (the share of right ones among
    --rollouts solutions written from there), truth (the task's exact step checker)."""
    rollouts: int = 8
    """Rollouts of each prefix (scorer rollouts); their tokens count."""
    samples: int = 16
    """Solutions a problem (majority, best_of_n, weighted_vote, parm)."""
    beams: int = 4
    """Beams a problem (beam, dvts, step_beam, lookahead)."""
    width: int = 4
    """Proposals of each beam or leaf."""
    simulations: int = 16
    """Simulations a problem (mcts)."""
    horizon: int = 3
    """Steps to look ahead (lookahead)."""
    alpha: float = 0.5
    """How much the score of a later step counts, from 0 to 1 (lookahead)."""
    min_gain: float | None = None
    """Look no further than the first step that scores less than this more than the one before it (lookahead)."""
    gate: float = 0.5
    """Give a solution up at the first score not above this (parm)."""
    gate_from: int = 1
    """The first step that is judged (parm)."""
    final_scorer: str = ""
    """What scores the solutions that remain, as in --scorer; empty: their last score (parm)."""
    max_steps: int = 16
    """Most steps of a solution."""
    layout: LayoutName = "auto"
    """Family of a public reward model whose config does not tell."""
    reference: str = ""
    """Reference of an implicit reward model, where its directory does not hold one."""
    out: pathlib.Path | None = None
    """JSON-lines file for the results."""
    solutions: pathlib.Path | None = None
    """Write every candidate there, too, as step data with outcome, answer and score: for score, eval and train-prm."""
    resume: bool = False
    """Go on with the file in --out; more --problems and another --chunk are no other settings."""


@dataclass(frozen=True)
class Scorer:
    """What values prefixes.

    Attributes:
      values: prefixes -> their scores.
      output: what a score is: a mean log-probability, a chance, or a log-ratio or other score around 0.
      roller: what makes rollouts for it, if anything does.
    """

    values: Callable[[Sequence[Any]], list[float]]
    output: Literal["logp", "chance", "score"]
    roller: "Roller | None" = None

    def __call__(self, partials: Sequence[Any]) -> list[float]:
        """The scores."""
        return self.values(partials)

    def weights(self, scores: "np.ndarray") -> "np.ndarray":
        """What votes weigh, at least 0: probabilities, chances, or the sigmoid of a score."""
        import numpy as np

        if self.output == "logp":
            return np.exp(scores)
        return np.maximum(scores, 0.0) if self.output == "chance" else 1.0 / (1.0 + np.exp(-np.maximum(scores, -60.0)))


def make_scorer(name: str, engine: "TaskPolicy", options: Options, *, first: int = 0) -> Scorer:
    """The function that values prefixes.

    Args:
      name: of the scorer, as in the options.
      engine: reads prefixes, and makes rollouts.
      options: how many rollouts, and where and how a reward model is.
      first: number of each problem's first request for rollouts; those below it are the search's.

    Returns:
      `Scorer`.

    Raises:
      UserError: a task without a step checker (truth), or a path without a process reward model.
    """
    if name == "logp":
        return Scorer(lambda partials: [p.logp / max(len(p.tokens), 1) for p in partials], "logp")
    if name == "truth":
        return Scorer(lambda partials: [_truth(engine, p) for p in partials], "chance")
    if name in ("verifier", "rollouts"):
        from prm_jax.rollouts import AnswerValues

        values = AnswerValues(engine, options.rollouts if name == "rollouts" else 0, first)
        return Scorer(values, "chance", values.roller)
    if not pathlib.Path(name).exists():
        raise UserError(
            f"no scorer {name!r}: it is logp, verifier, rollouts, truth, or the path of a process reward model"
        )

    prm = load(name, options.layout, options.reference, options.dtype, options.mesh)
    # A prefix without a step has nothing to be scored by: it goes last.
    from prm_jax.prm.prefixes import score_prefixes

    by_model = functools.partial(score_prefixes, prm, engine, blank=-1e9)
    return Scorer(by_model, "chance" if prm.output in ("probability", "value") else "score")


def run(options: Options) -> None:
    """Searches chunk by chunk, writing as it goes, and prints the table."""
    _check(options)
    task, problems = load_problems(options, "eval")
    settings = {name: value for name, value in settings_of(options).items() if name not in _NOT_IN_A_LINE}
    first = results.header(settings, task.fingerprint)
    done = begin_results(options, first)
    _check_lines(options, done, problems)
    progress = Progress(len(problems), len(done))
    engine = load_policy(options, task, progress.wrote)
    requests, prefixes = _requests(options)
    scorer = make_scorer(options.scorer, engine, options, first=requests)
    final = None
    if options.method == "parm" and options.final_scorer:
        final = make_scorer(options.final_scorer, engine, options, first=requests + prefixes)
    engine.check_prompts(problems)
    if options.out is not None and not done:
        results.begin(options.out, first)
    with results.kept(options.out), progress:
        for start in range(0, len(problems), options.chunk):
            chunk = problems[start : start + options.chunk]
            if start + len(chunk) <= len(done):
                continue
            del done[start:]  # a chunk is done anew as a whole, so that lines stay in order
            engine.begin(chunk, options.first_problem + start)
            lines = list(_results(options, engine, scorer, final))
            done += lines
            if options.out is not None:
                results.append(options.out, first, start, lines)
            progress.update(len(done), f"accuracy {sum(line['correct'] for line in done) / len(done):.3f}")
    if options.solutions is not None:
        results.write(options.solutions, [results.dump(record) for line in done for record in line["solutions"]])
    print(_table(options, done))


def search(options: Options, engine: "TaskPolicy", scorer: Scorer, final: Scorer | None = None) -> Any:
    """One chunk's search, by the method of the options; gives ``language_model.Found``."""
    from prm_jax.search import language_model as lm

    count = len(engine.problems)
    steps: dict[str, Any] = {"width": options.width, "max_steps": options.max_steps}
    if options.method in _SAMPLED:
        return lm.sample_search(engine.propose, scorer, count, samples=options.samples)
    if options.method in ("beam", "dvts"):
        trees = options.beams if options.method == "dvts" else 1
        return lm.beam_search(engine.propose, scorer, count, beams=options.beams, trees=trees, **steps)
    if options.method == "step_beam":
        return lm.step_beam_search(engine.propose, scorer, count, beams=options.beams, **steps)
    if options.method == "lookahead":
        return lm.look_ahead_search(
            engine.propose, scorer, count, beams=options.beams, horizon=options.horizon, alpha=options.alpha,
            min_gain=options.min_gain, **steps,
        )  # fmt: skip
    if options.method == "parm":
        return lm.gated_search(
            engine.propose, scorer, count, samples=options.samples, max_steps=options.max_steps,
            threshold=options.gate, ready=lambda partial: len(partial.steps) >= options.gate_from,
            final=final,
        )  # fmt: skip
    return lm.tree_search(engine.propose, scorer, count, simulations=options.simulations, **steps)[0]


def choose(options: Options, engine: "TaskPolicy", scorer: Scorer, candidates: Sequence[Any]) -> Any:
    """The candidate to answer with; None where there is none.

    A vote gives the best candidate with the winning answer.
    """
    import numpy as np

    from prm_jax.data.answers import read_answer
    from prm_jax.search import vote

    if not candidates or options.method not in ("majority", "weighted_vote"):
        return candidates[0] if candidates else None
    answers = [read_answer(engine.task, engine.text(c.partial)) for c in candidates]
    known = sorted({a for a in answers if a is not None}, key=answers.index)
    ids = np.array([[known.index(a) if a is not None else -1 for a in answers]])
    weights = scorer.weights(np.array([[c.score for c in candidates]]))
    winner = int(vote(weights, ids, "majority" if options.method == "majority" else "weighted")[0])
    return candidates[answers.index(known[winner])] if winner >= 0 else candidates[0]


def begin_results(options: Options, first: dict[str, Any]) -> list[dict[str, Any]]:
    """The results that are already in the file, with ``resume``; nothing is written yet.

    Raises:
      UserError: a file with results is there without ``resume``, or was made with other settings.
    """
    if options.out is None:
        if options.resume:
            raise UserError("--resume needs --out: which file should go on?")
        return []
    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a directory: give the name of a file")
    if options.out.exists() and not options.resume and not _unstarted(options.out):
        raise UserError(f"{options.out} exists: go on with it by --resume, or give another --out")
    return results.read(options.out, first)


def _unstarted(out: pathlib.Path) -> bool:
    try:
        return results.unstarted(out)
    except UserError:
        return False


def _check_lines(options: Options, done: Sequence[dict[str, Any]], problems: Sequence[Any]) -> None:
    """Results of an earlier run have to be those of the first problems."""
    for number, line in enumerate(done):
        expected = problems[number].id if number < len(problems) else None
        counted = all(isinstance(line.get(name), int | float) and math.isfinite(line[name]) for name in _COUNTED)
        if line.get("id") != expected or not counted or "answer" not in line:
            raise UserError(
                f"cannot go on with {options.out}: line {number + 2} is not the result of "
                f"{'any problem' if expected is None else repr(expected)}, found {str(line)[:80]}"
            )
        if options.solutions is not None and not isinstance(line.get("solutions"), list):
            raise UserError(
                f"cannot write --solutions: line {number + 2} of {options.out} was made without them; leave the option "
                "out, or search anew"
            )


def _results(options: Options, engine: "TaskPolicy", scorer: Scorer, final: Scorer | None) -> Iterator[dict[str, Any]]:
    from prm_jax.data.answers import read_answer

    found = search(options, engine, scorer, final)
    rollers = [one.roller for one in (scorer, final) if one is not None and one.roller is not None]
    for b, problem in enumerate(engine.problems):
        rolled = sum(roller.tokens.get(engine.first + b, 0) for roller in rollers)
        own = found.candidates[b]
        texts = [engine.text(c.partial) for c in own]
        verdicts = engine.task.verify_many([problem] * len(own), texts) if own else []
        right = {c.partial.steps: v.score for c, v in zip(own, verdicts, strict=True)}
        chosen = choose(options, engine, scorer, own)
        kept = {} if options.solutions is None else {"solutions": list(_records(engine, own, right))}
        yield {
            "id": problem.id,
            "answer": None if chosen is None else read_answer(engine.task, engine.text(chosen.partial)),
            "response": None if chosen is None else engine.text(chosen.partial),
            "correct": 0.0 if chosen is None else right[chosen.partial.steps],
            "any_correct": max(right.values(), default=0.0),
            "candidates": len(own),
            "tokens": int(found.tokens[b]) + rolled,
            "proposals": int(found.proposals[b]),
            "scored": int(found.scored[b]),
            **kept,
        }


def _records(engine: "TaskPolicy", candidates: Sequence[Any], right: Mapping[Any, float]) -> Iterator[dict[str, Any]]:
    """The candidates of a problem as step data, best first; not those without a step."""
    from prm_jax.data.answers import read_answer
    from prm_jax.data.step_data import to_json

    for number, candidate in enumerate(candidates):
        partial = candidate.partial
        from prm_jax.prm.prefixes import as_record

        record = as_record(engine, partial, f"{engine.problems[partial.question].id}/{number}")
        if record is not None:
            told = {"answer": read_answer(engine.task, engine.text(partial)), "score": candidate.score}
            yield to_json(dataclasses.replace(record, outcome=right[partial.steps], provenance=told))


def _check(options: Options) -> None:
    options.check()
    check_at_least_one(options, "samples", "beams", "width", "simulations", "max_steps", "gate_from", "rollouts")
    if options.solutions is not None and options.solutions.exists() and not options.resume:
        raise UserError(f"{options.solutions} exists: give another --solutions")
    if math.isnan(options.gate) or (options.min_gain is not None and math.isnan(options.min_gain)):
        raise UserError("--gate and --min-gain must be numbers, found nan")
    if options.horizon < 0 or not 0.0 <= options.alpha <= 1.0:
        raise UserError("--horizon must not be negative, and --alpha must be from 0 to 1")
    from prm_jax.rollouts.policy import STREAMS

    requests, prefixes = _requests(options)
    rolled = [options.scorer, options.final_scorer].count("rollouts") * prefixes
    if requests + rolled >= STREAMS:
        raise UserError(
            f"this search may make {requests + rolled} requests a problem, which must stay below {STREAMS}"
        )
    if options.method == "parm" and options.scorer == "logp" and options.gate >= 0:
        raise UserError(
            f"log-probabilities are never above 0, so that --gate {options.gate:g} gives every solution up: take a "
            "negative --gate, or another --scorer"
        )
    scored_by = [options.scorer, *([options.final_scorer] if options.method == "parm" else [])]
    if options.server and not options.connection.logprobs and "logp" in scored_by:
        raise UserError("the scorer logp needs log-probabilities: leave --connection.no-logprobs out")


def _requests(options: Options) -> tuple[int, int]:
    """(requests that a search may make for a problem, prefixes that it may have scored), at most."""
    tree, beams = 1 + options.simulations * options.width, options.max_steps * options.beams
    return {
        "mcts": (tree, tree),
        "lookahead": (beams * (1 + options.horizon * options.width), beams * (1 + options.horizon) * options.width),
        "parm": (1 + options.max_steps * options.samples, 1 + options.max_steps * options.samples),
    }.get(options.method, (beams, beams * options.width))


def _truth(engine: "TaskPolicy", partial: Any) -> float:
    """1 while every step is right; the share of right steps before the first error otherwise, less than 1."""
    text = engine.text(partial)
    labels = engine.task.step_labels(engine.problems[partial.question], text)
    if labels is None:
        raise UserError(f"the task {engine.task.name!r} has no exact step checker: give another --scorer")
    if not labels:
        return 0.0
    return 1.0 if all(labels) else labels.index(False) / len(labels) - 1.0


def _table(options: Options, lines: Sequence[dict[str, Any]]) -> str:
    count = len(lines)
    mean = {name: sum(line[name] for line in lines) / count for name in _COUNTED}
    none = Counter(line["answer"] is None for line in lines)[True]
    rows = [
        ("problems", f"{count}"),
        ("accuracy", f"{mean['correct']:.4f}"),
        ("a right candidate", f"{mean['any_correct']:.4f}"),
        ("without an answer", f"{none}"),
        ("tokens a problem", f"{mean['tokens']:.1f}"),
        ("proposals a problem", f"{mean['proposals']:.1f}"),
        ("prefixes scored", f"{mean['scored']:.1f}"),
    ]
    return "\n".join([f"{options.method}, scored by {options.scorer}", *(f"{name:22s}{value}" for name, value in rows)])
