"""``prm-jax eval``: how good a process reward model's step scores are, by the field's own protocols."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prm_jax.commands.eval_options import Options
from prm_jax.commands.scoring import Meter, load_for, make_directory, read, write_scores
from prm_jax.errors import UserError
from prm_jax.option_ranges import check_ranges
from prm_jax.option_values import suggest

if TYPE_CHECKING:
    from prm_jax.data.step_data import StepRecord
    from prm_jax.prm.cases import Case


def run(options: Options) -> None:
    """Judges; prints the main numbers and where the rest is."""
    from prm_jax.prm.judge import judge_scores
    from prm_jax.prm.judge_page import results_page
    from prm_jax.prm.page import model_name
    from prm_jax.runs import processes
    from prm_jax.runs.metrics_log import atomic_write

    if not options.data:
        raise UserError("which data? Give one file or several: prm-jax eval data.jsonl --model runs/mine/model")
    files = _subsets(options.data)
    _check(options, files)
    make_directory(options.out)
    more: dict[str, Any] = {}
    subsets, output = _read(options, files) if options.scored else _score(options, files, more)
    if not processes.is_first():
        return
    results = judge_scores(
        subsets, output=output, threshold_on=options.threshold_on, false_discovery=options.false_discovery,
        also=_also(options), venn_abers=options.venn_abers, resamples=options.resamples, seed=options.seed,
    )  # fmt: skip
    results = {"model": options.model, "step_score": output, **results, **more}
    names = ", ".join(files)
    title = f"{model_name(options.model)} judged on {names}" if options.model else f"{names} judged"
    try:
        with atomic_write(options.out / "results.json") as file:
            json.dump(results, file, indent=1, allow_nan=False)
            file.write("\n")
        with atomic_write(options.out / "results.html") as file:
            file.write(results_page(results, title=title))
    except OSError as error:
        raise UserError(f"cannot write to {options.out}: {error.strerror or error}") from error
    for name, found in results["process_bench"].get("subsets", {}).items():
        print(f"{name}: first-error F1 {found['f1']:.3f} (random {found['random_f1']:.3f})")
    for mask, by_subset in more.get("ablation", {}).items():
        for name, found in by_subset.items():
            print(f"{name} without {mask}: {_ablated(found)}")
    print(f"results: {options.out / 'results.json'}, {options.out / 'results.html'}")


def _ablated(found: Mapping[str, Any]) -> str:
    shown = [f"correlation with whole scores {found['correlation']:.3f}"]
    for key, name in (("first_error_f1", "first-error F1"), ("auc", "step AUC")):
        if key in found:
            shown.append(f"{name} {found[key][1]:.3f} (whole {found[key][0]:.3f})")
    return ", ".join(shown)


def _also(options: Options) -> "dict[str, dict[str, Case]]":
    """Scores of other models by name and solution."""
    from prm_jax.prm.cases import read_cases

    return {name: {case.id: case for case in read_cases(path)} for name, path in _subsets(options.also).items()}


def _subsets(data: Sequence[str]) -> dict[str, pathlib.Path]:
    found: dict[str, pathlib.Path] = {}
    for word in data:
        name, separator, path = word.partition("=")
        file = pathlib.Path(path if separator else word)
        name = name if separator else file.stem
        if name in found:
            raise UserError(f"two subsets are called {name!r}; give names: {name}=FILE")
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"{name!r} cannot be the name of a subset: give another, without slashes: NAME=FILE")
        found[name] = file
    return found


def _check(options: Options, files: Mapping[str, pathlib.Path]) -> None:
    """Refuses options that cannot work, before anything is read or scored."""
    from prm_jax.prm.ablation import check_masks

    problems = check_ranges(options)
    if options.scored == bool(options.model):
        problems.append("give --model to score the data, or --scored when the files hold scores already, not both")
    if options.output is not None and not options.scored:
        problems.append("--output is for --scored files: a model says itself what its scores are")
    if options.also and options.false_discovery is None:
        problems.append("--also is for the selection: give --false-discovery, the share of wrong solutions to accept")
    if options.mask and options.scored:
        problems.append("--mask scores the solutions again: give --model and step data instead of --scored")
    problems += check_masks(options.mask)
    if options.threshold_on and options.threshold_on not in files:
        known = suggest(options.threshold_on, files, "subsets")
        problems.append(f"--threshold-on {options.threshold_on!r} is not a subset; {known}")
    if problems:
        raise UserError("\n".join(problems))


def _read(options: Options, files: Mapping[str, pathlib.Path]) -> "tuple[dict[str, list[Case]], str]":
    from prm_jax.prm.cases import read_cases

    subsets = {name: read_cases(path) for name, path in files.items()}
    values = [x for cases in subsets.values() for case in cases for x in (*case.scores, case.response)]
    guess = "probability" if all(0 <= x <= 1 for x in values) else "score"
    return subsets, options.output or guess


def _score(
    options: Options, files: Mapping[str, pathlib.Path], more: dict[str, Any]
) -> "tuple[dict[str, list[Case]], str]":
    """Scores all subsets; the scores of each are kept in a file of their own. `more` gets the ablation."""
    from prm_jax.prm.ablation import ablation
    from prm_jax.prm.cases import case_of
    from prm_jax.prm.score_log import ScoreLog, identity_of, score_logged
    from prm_jax.runs import processes

    records: dict[str, list[StepRecord]] = {name: read(path, options.scoring) for name, path in files.items()}
    chooser = options.threshold_on
    if chooser and all(record.first_error() is None for record in records[chooser]):
        raise UserError(f"--threshold-on {chooser}: no solution of this subset is labelled up to its first wrong step")
    prm, folder = load_for(options.model, options.scoring), options.out / "scores"
    make_directory(folder)
    subsets: dict[str, Any] = {}
    for name, found in records.items():
        identity = identity_of(options.model, options.scoring, found)
        with ScoreLog(folder / f"{name}.partial.jsonl", identity, resume=options.scoring.resume) as log:
            scored = score_logged(prm, found, log, options.scoring, on_batch=Meter(name))
            if processes.is_first():
                write_scores(folder / f"{name}.jsonl", scored)
            # The log stays until all subsets are scored, so that an interrupted call continues with the next one.
            subsets[name] = scored
    if options.mask:
        more["ablation"] = ablation(prm, subsets, options.mask, options.scoring)
    for name in files if processes.is_first() else ():
        (folder / f"{name}.partial.jsonl").unlink(missing_ok=True)
    return {name: [case_of(one) for one in scored] for name, scored in subsets.items()}, prm.output
