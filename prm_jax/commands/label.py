"""``prm-jax label``: step labels from a policy's rollouts or search trees, for ``prm-jax train-prm``."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from prm_jax.commands import divided, label_files, results
from prm_jax.commands.label_options import Options
from prm_jax.commands.policy import load_policy, load_problems, settings_of
from prm_jax.commands.progress import Progress
from prm_jax.errors import UserError
from prm_jax.prm.labelling.method_options import Problems, make_labeller
from prm_jax.runs import processes, shared_files

COMMON_OPTIONS = (
    "task", "task-options", "problems", "first-problem", "sampling.temperature", "sampling.max-new-tokens",
    "sampling.rows", "seed", "chat", "dtype", "server", "method", "labels", "rollouts", "searches", "solutions",
    "tree.rule", "tree.scorer", "tree.simulations", "resume",
)  # fmt: skip


def run(options: Options) -> None:
    """Labels chunk by chunk, keeping the results next to the file, and writes the file at the end."""
    labeller = _check(options)
    task, problems = load_problems(options, "train")
    first = results.header(settings_of(options), task.fingerprint)
    partial, starts = options.out.with_name(options.out.name + ".partial"), range(0, len(problems), options.chunk)
    if options.resume and shared_files.is_file(options.out):
        check = functools.partial(label_files.check_finished, options.out, first, _provenance(options, labeller))
        shared_files.by_first(check, what=f"read {options.out}")
        print(f"{options.out} is finished")
        return

    def begun() -> list[dict[str, Any]]:
        if not options.resume and not results.unstarted(partial):
            raise UserError(f"{partial} exists from an interrupted run: continue with --resume, or remove it")
        done = results.read(partial, first)
        label_files.check_chunks(partial, done, len(starts))
        return done

    done = divided.known(begun)
    if len(done) < len(starts):
        _label(options, labeller, task, problems, partial, first, done)
    if processes.is_first():
        label_files.finish(options.out, partial, done, len(problems), labeller.calls)


def _label(
    options: Options, labeller: Any, task: Any, problems: Sequence[Any], partial: pathlib.Path, first: dict[str, Any],
    done: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Labels the chunks that are not done yet."""
    from prm_jax.data.step_data import to_json

    progress = Progress(len(problems), len(done) * options.chunk)
    policy: Any = Problems(task)
    if labeller.uses_policy:
        policy = load_policy(options, task, progress.wrote, by_steps=options.method == "tree")
    values = _step_values(options) if getattr(labeller, "tree", None) and labeller.tree.uses_model else None
    policy.check_prompts(problems)
    if not done:
        divided.begin(partial, first)

    def labelled(own: Sequence[Any], number: int) -> dict[str, Any]:
        policy.begin(own, number)
        records, calls = labeller(policy, _provenance(options, labeller), values)
        return {"calls": calls, "records": [to_json(record) for record in records]}

    with results.kept(partial), progress:
        for number in range(len(done), -(-len(problems) // options.chunk)):
            start = number * options.chunk
            chunk = problems[start : start + options.chunk]
            parts = divided.shares(chunk, options.first_problem + start, labelled)
            records = [record for part in parts for record in part["records"]]
            done.append({"calls": sum(part["calls"] for part in parts), "records": records})
            divided.append(partial, first, number, done[-1:])
            progress.update(start + len(chunk), f"{sum(len(one['records']) for one in done)} records")


def _check(options: Options) -> Any:
    options.check()
    labeller = make_labeller(options.method, options)
    if (options.model == "none") == labeller.uses_policy:
        need = "needs a policy" if labeller.uses_policy else "samples nothing: give none as the policy"
        raise UserError(f"--method {options.method} {need}; found {options.model!r}")
    shared_files.by_first(functools.partial(_check_out, options), what=f"write {options.out}")
    return labeller


def _check_out(options: Options) -> None:
    if options.out.is_dir():
        raise UserError(f"{options.out} is a directory: give the name of a file")
    if options.out.exists() and not options.resume:
        raise UserError(f"{options.out} exists: give another name, or remove it")


def _step_values(options: Options) -> Any:
    """The probabilities that a process reward model gives to prefixes."""
    from prm_jax.commands.scoring import load
    from prm_jax.prm.prefix_scores import gives_probabilities
    from prm_jax.prm.prefixes import score_prefixes

    prm = load(options.tree.scorer, options.tree.layout, "", options.dtype, options.mesh)
    if not gives_probabilities(prm):
        raise UserError(
            f"{options.tree.scorer} is a reward model whose scores ({prm.output}) are not probabilities: the values of "
            "a tree need one that gives probabilities, such as the kinds token, value and outcome"
        )
    return lambda policy, partials: score_prefixes(prm, policy, partials, blank=0.5)


def _provenance(options: Options, labeller: Any) -> dict[str, Any]:
    """What every record says about its origin, in addition to its own counts."""
    sampling = options.sampling
    return {
        "method": options.method, "labels": options.labels, "model": options.model, **labeller.told(),
        "temperature": sampling.temperature, "top_p": sampling.top_p, "max_new_tokens": sampling.max_new_tokens,
        "seed": options.seed,
    }  # fmt: skip
