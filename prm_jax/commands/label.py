"""``prm-jax label``: step labels from a policy's rollouts or search trees, for ``prm-jax train-prm``."""

import json
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from prm_jax.commands import results
from prm_jax.commands.policy import PolicyOptions, check_at_least_one, load_policy, load_problems, settings_of
from prm_jax.commands.progress import Progress
from prm_jax.errors import UserError
from prm_jax.prm.options import LayoutName

if TYPE_CHECKING:
    from prm_jax.rollouts import Roller, TaskPolicy

Tokens = tuple[int, ...]
_ROLLOUT_LABELS, _TREE_LABELS = ("soft", "hard", "vstar"), ("soft", "hard", "q", "quality")
_PAIRS = ("best_worst", "first_error", "top_bottom")


@dataclass(frozen=True)
class TreeOptions:
    """The search behind --method tree."""

    rule: Literal["alphamath", "rest_mcts"] = "alphamath"
    """alphamath: PUCT, mean of returns, answers worth 1 or -1; rest_mcts: UCB1, values of the children weighted by
    visits, answers worth 1 or 0."""
    scorer: str = "none"
    """What values a step before an answer was found below it: none (the middle of the range, as in AlphaMath's first
    round), rollouts (the share of right ones), or the path of a process reward model that gives chances or values."""
    layout: LayoutName = "auto"
    """Family of a public reward model whose config does not tell."""
    simulations: int = 16
    """Simulations a problem."""
    width: int = 4
    """Steps proposed at each leaf."""
    max_steps: int = 16
    """Depth of the tree."""
    margin: float | None = None
    """Least difference of the values of a pair, on the scale of the answers' worth; none: as published, 0.5 for
    top_bottom and 0 otherwise."""
    min_edits: int = 0
    """Leave out pairs whose steps differ in fewer letters (edit distance); 20 in rStar-Math."""


@dataclass(frozen=True, kw_only=True)
class Options(PolicyOptions):
    """Label the steps of solutions by where the policy gets from there.

    Writes a JSON line a solution: prompt, steps, labels (null where nothing is known), outcome, and where they come
    from: policy, sampling, and the counts behind every label. A preference pair is two lines in a group of their own,
    whose last steps are labelled 1 and 0.
    """

    out: Annotated[pathlib.Path, tyro.conf.Positional]
    """JSON-lines file to write."""
    method: Literal["omega", "every_step", "tree"] = "omega"
    """omega: binary search for the first errors of wrong rollouts (OmegaPRM); every_step: rollouts after every step of
    sampled solutions; tree: Monte-Carlo tree search over steps."""
    labels: Literal["soft", "hard", "vstar", "q", "quality", "best_worst", "first_error", "top_bottom"] = "hard"
    """soft: the share of right rollouts, or of right answers below the step; hard: whether any was right; vstar: hard,
    and right before a right step (not of trees). Of trees: q, the search's own values (AlphaMath), as chances; quality
    (ReST-MCTS*); and preference pairs: best_worst (step-level Q), first_error (Step-DPO), top_bottom (rStar-Math)."""
    rollouts: int = 8
    """Rollouts from each prefix."""
    searches: int = 16
    """Most searches a problem (omega)."""
    solutions: int = 4
    """Solutions a problem (every_step)."""
    tree: TreeOptions = field(default_factory=TreeOptions)
    """The search (tree)."""
    resume: bool = False
    """Go on after an interruption, with what lies beside the file as .partial; the labels are those of one go."""


def run(options: Options) -> None:
    """Labels chunk by chunk, keeping what is done beside the file, and writes the file at the end."""
    from prm_jax.data.step_data import to_json

    _check(options)
    task, problems = load_problems(options, "train")
    first = results.header(settings_of(options), task.fingerprint)
    if options.resume and options.out.exists():
        _check_finished(options, first)
        print(f"{options.out} is finished")
        return
    partial = options.out.with_name(options.out.name + ".partial")
    if not options.resume and not results.unstarted(partial):
        raise UserError(f"{partial} is there from an interrupted run: go on with it by --resume, or remove it")
    chunks = range(0, len(problems), options.chunk)
    done = results.read(partial, first)
    _check_chunks(partial, done, len(chunks))
    if len(done) < len(chunks):
        progress = Progress(len(problems), len(done) * options.chunk)
        labeller = _Labeller(options, task, problems, progress)
        if not done:
            results.begin(partial, first)
        with results.kept(partial), progress:
            for number in range(len(done), len(chunks)):
                own = problems[chunks[number] : chunks[number] + options.chunk]
                records, calls = labeller(own, options.first_problem + chunks[number])
                done.append({"calls": calls, "records": [to_json(record) for record in records]})
                results.append(partial, first, number, done[-1:])
                count = sum(len(chunk["records"]) for chunk in done)
                progress.update(chunks[number] + len(own), f"{count} records")
    _finish(options, partial, done, len(problems))


def _check_chunks(partial: pathlib.Path, done: Sequence[dict[str, Any]], most: int) -> None:
    """What an earlier run kept has to be the records of the first chunks."""
    for number, chunk in enumerate(done):
        calls, records = chunk.get("calls"), chunk.get("records")
        known = isinstance(calls, int) and isinstance(records, list) and all(isinstance(r, dict) for r in records)
        if number >= most or not known:
            raise UserError(
                f"cannot go on with {partial}: line {number + 2} is not what one of {most} chunks gave, found "
                f"{str(chunk)[:80]}"
            )


class _Labeller:
    """The policy, and what values the steps of trees, ready for chunk after chunk."""

    def __init__(self, options: Options, task: Any, problems: Sequence[Any], progress: Progress) -> None:
        self.options = options
        self.engine = load_policy(options, task, progress.wrote)
        self.prm = None
        if options.method == "tree" and options.tree.scorer not in ("none", "rollouts"):
            from prm_jax.commands.tree_labels import load_value_model

            self.prm = load_value_model(options)
        self.engine.check_prompts(problems)

    def __call__(self, problems: Sequence[Any], first: int) -> tuple[list[Any], int]:
        """(records, rollouts or proposals) of a chunk whose first problem has this number."""
        self.engine.begin(problems, first)
        if self.options.method == "tree":
            from prm_jax.commands.tree_labels import tree_records

            return tree_records(self.options, self.engine, self.prm)
        from prm_jax.rollouts import Roller

        roller = Roller(self.engine)
        by_method = _omega if self.options.method == "omega" else _every_step
        return by_method(self.options, roller), roller.calls


def _check(options: Options) -> None:
    from prm_jax.rollouts.policy import STREAMS

    tree = options.tree
    options.check()
    check_at_least_one(options, "rollouts", "searches", "solutions")
    check_at_least_one(tree, "simulations", "width", "max_steps", prefix="--tree.")
    known = (*_TREE_LABELS, *_PAIRS) if options.method == "tree" else _ROLLOUT_LABELS
    if options.labels not in known:
        raise UserError(f"--method {options.method} has no labels {options.labels!r}; it has {', '.join(known)}")
    if 2 * (1 + tree.simulations * tree.width) >= STREAMS:
        raise UserError(f"--tree.simulations times --tree.width must stay below {STREAMS // 2 - 1}")
    if tree.min_edits < 0 or (tree.margin is not None and not tree.margin >= 0):
        raise UserError("--tree.margin and --tree.min-edits must not be negative")
    if tree.scorer not in ("none", "rollouts") and not pathlib.Path(tree.scorer).exists():
        raise UserError(f"no scorer {tree.scorer!r}: it is none, rollouts, or the path of a process reward model")
    if options.out.is_dir():
        raise UserError(f"{options.out} is a directory: give the name of a file")
    if options.out.exists() and not options.resume:
        raise UserError(f"{options.out} exists: give another name, or remove it")


def _settings_file(options: Options) -> pathlib.Path:
    return options.out.with_name(options.out.name + ".settings")


def _check_finished(options: Options, first: dict[str, Any]) -> None:
    """Refuses to take a finished file for that of other settings: those beside it, else those that its lines tell."""
    from prm_jax.data.step_data import read_step_data

    if _settings_file(options).exists():
        head = results.whole_lines(_settings_file(options))[:1]
        results.check_settings(_settings_file(options), json.loads(head[0]) if head else {}, first)
        return
    told = dict(read_step_data(options.out)[0].provenance)
    differ = results.differences({name: told.get(name) for name in provenance(options)}, provenance(options))
    if differ:
        raise UserError(f"{options.out} was made with other {', '.join(differ)}: give another name")


def _finish(options: Options, partial: pathlib.Path, done: Sequence[dict[str, Any]], problems: int) -> None:
    """Writes the file that train-prm reads, and says what is in it."""
    records = [record for chunk in done for record in chunk["records"]]
    if not records:
        partial.unlink()
        hint = "--tree.simulations" if options.method == "tree" else "--rollouts"
        raise UserError(
            f"no solution could be labelled: the rollouts of all {problems} problems were all right or all wrong, or "
            f"gave no answer; take other problems, more {hint} or another --sampling.temperature"
        )
    # First, so that there is no finished file without its settings.
    results.write(_settings_file(options), results.whole_lines(partial)[:1])
    results.write(options.out, [results.dump(record) for record in records])
    partial.unlink()
    known = [label for record in records for label in record.get("labels", ()) if label is not None]
    errors, calls = sum(label == 0 for label in known), sum(chunk["calls"] for chunk in done)
    found = f"{len(records)} solutions, {len(known)} labels, {errors} of them 0"
    print(f"{options.out}: {found}, {calls} {_calls(options)}")


def _calls(options: Options) -> str:
    return "proposals" if options.method == "tree" else "rollouts"


def provenance(options: Options) -> dict[str, Any]:
    """What every record says of its origin, beside its own counts."""
    own: dict[str, Any] = {"method": options.method, "labels": options.labels, "model": options.model}
    if options.method == "tree":
        tree = options.tree
        own |= {"rule": tree.rule, "scorer": tree.scorer, "simulations": tree.simulations, "width": tree.width}
    if options.method != "tree" or options.tree.scorer == "rollouts":
        own["rollouts"] = options.rollouts
    return own | {
        "temperature": options.sampling.temperature,
        "top_p": options.sampling.top_p,
        "max_new_tokens": options.sampling.max_new_tokens,
        "seed": options.seed,
    }


def _omega(options: Options, roller: "Roller") -> list[Any]:
    """A record for every located error: what is known of each prefix, and the first wrong step."""
    from prm_jax.search import omega_label

    engine = roller.policy
    found = omega_label(
        roller, len(engine.problems), rollouts=options.rollouts, searches=options.searches,
        L=float(options.sampling.max_new_tokens),
    )  # fmt: skip
    states = {(s.question, s.prefix): (s.correct, s.total) for s in found.states}
    records = []
    for error in found.errors:
        counts = [states.get((error.question, error.steps[: i + 1])) for i in range(len(error.steps))]
        # The whole solution is wrong, which no rollout needs to say.
        counts[-1] = counts[-1] or (0, 1)
        record = _record(options, engine, error.question, error.steps, counts, f"omega/{error.number}", 0.0)
        records += [record] if record is not None else []
    return records


def _every_step(options: Options, roller: "Roller") -> list[Any]:
    """A record for every sampled solution, with rollouts after each of its steps but the last."""
    from prm_jax.rollouts import count_correct
    from prm_jax.search import PrefixRequest

    engine = roller.policy
    roots = roller([PrefixRequest(b, ()) for b in range(len(engine.problems))], options.solutions)
    solutions = [(b, r) for b, found in enumerate(roots) for r in found if r.steps and r.correct is not None]
    requests = [PrefixRequest(b, r.steps[:i]) for b, r in solutions for i in range(1, len(r.steps))]
    counts = iter([count_correct(found) for found in roller(requests, options.rollouts)])
    records = []
    for number, (b, rollout) in enumerate(solutions):
        own = [next(counts) for _ in rollout.steps[:-1]] + [(int(bool(rollout.correct)), 1)]
        record = _record(options, engine, b, rollout.steps, own, f"sample/{number}", float(bool(rollout.correct)))
        records += [record] if record is not None else []
    return records


def _record(
    options: Options, engine: "TaskPolicy", question: int, steps: Sequence[Any],
    counts: Sequence[tuple[int, int] | None], name: str, outcome: float,
) -> Any:  # fmt: skip
    """Step data of one solution; None where its text does not have the steps that its tokens have."""
    import numpy as np

    from prm_jax import rl
    from prm_jax.data.step_data import StepRecord

    text = engine.tokenizer.decode([token for step in steps for token in step], skip_special=True)
    texts = tuple(text[start:end] for start, end in engine.task.splitter(text))
    if len(texts) != len(steps):
        return None
    correct = np.array([[0 if c is None else c[0] for c in counts]])
    total = np.array([[0 if c is None else c[1] for c in counts]])
    # A step before one from which the answer was reached is right for "vstar", whether it was probed or not.
    how: Any = options.labels
    labels = np.asarray(rl.mc_targets(correct, total, np.ones_like(total, bool), how=how))[0].tolist()
    inferred = [options.labels == "vstar" and label > 0 for label in labels]
    known = [(c is not None and c[1] > 0) or sure for c, sure in zip(counts, inferred, strict=True)]
    problem = engine.problems[question]
    told = provenance(options) | {
        "correct": [None if c is None else c[0] for c in counts],
        "total": [None if c is None else c[1] for c in counts],
    }
    own = tuple(label if know else None for label, know in zip(labels, known, strict=True))
    return StepRecord(problem.prompt, texts, own, outcome, problem.id, f"{problem.id}/{name}", told)
