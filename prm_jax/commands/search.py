"""``prm-jax search``: a language model's answers by search over its steps, with accuracy, tokens and calls."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from prm_jax.commands import divided, json_lines, results
from prm_jax.commands.policy import load_policy, load_problems, settings_of
from prm_jax.commands.progress import Progress
from prm_jax.commands.search_options import Options
from prm_jax.commands.search_scorers import make_scorers, progress_problem, selection_problem
from prm_jax.errors import UserError
from prm_jax.search.searchers import Searcher, make_searcher

_NOT_SETTINGS = ("problems", "chunk", "solutions", "draw", "false_discovery", "calibration", "venn_abers", "trusted")
"""Options on which no line of results depends."""
COMMON_OPTIONS = (
    "task", "task-options", "problems", "sampling.temperature", "sampling.max-new-tokens", "sampling.rows", "seed",
    "chat", "server", "method", "scorer", "rollouts", "samples", "beams", "width", "simulations", "layout",
    "out", "draw", "resume",
)  # fmt: skip


def run(options: Options) -> None:
    """Searches chunk by chunk, writing the results as they come, and prints the table."""
    from prm_jax.prm.answer_chances import chances_row, check_known, with_chances
    from prm_jax.prm.page import model_name
    from prm_jax.prm.search_results import check_results, results_table, search_problems
    from prm_jax.prm.search_selection import check_other_problems, read_known
    from prm_jax.prm.tree_page import trees_page
    from prm_jax.runs import processes

    searcher = _check(options)
    known = read_known(options.calibration) if options.calibration else []
    if options.venn_abers:
        check_known(known)
    task, problems = load_problems(options, "eval")
    settings = {name: value for name, value in settings_of(options).items() if name not in _NOT_SETTINGS}
    first = results.header(settings, task.fingerprint)
    done = divided.known(lambda: results.begin_or_resume(options.out, first, resume=options.resume))
    ids = [problem.id for problem in problems]
    check_other_problems(ids, known)
    check_results(done, ids, str(options.out), solutions=options.solutions is not None, draw=options.draw is not None)
    progress = Progress(len(problems), len(done))
    policy = load_policy(options, task, progress.wrote, by_steps=searcher.by_steps)
    scorer, final = make_scorers(options, searcher, policy)
    policy.check_prompts(problems)
    if options.out is not None and not done:
        divided.begin(options.out, first)

    def searched(own: Sequence[Any], number: int) -> list[dict[str, Any]]:
        policy.begin(own, number)
        kept = {"solutions": options.solutions is not None, "draw": options.draw is not None}
        return list(search_problems(policy, searcher, scorer, final, **kept))

    with results.kept(options.out), progress:
        for start in range(0, len(problems), options.chunk):
            chunk = problems[start : start + options.chunk]
            if start + len(chunk) <= len(done):
                continue
            del done[start:]  # a chunk is computed again as a whole, so that lines stay in order
            lines = sum(divided.shares(chunk, options.first_problem + start, searched), [])
            done += lines
            if options.out is not None:
                divided.append(options.out, first, start, lines)
            progress.update(len(done), f"accuracy {sum(line['correct'] for line in done) / len(done):.3f}")
    if not processes.is_first():
        return
    if options.venn_abers:
        done = with_chances(done, known, options.venn_abers)
        if options.out is not None:
            json_lines.write(options.out, [json_lines.dump(line) for line in (first, *done)])
    if options.solutions is not None:
        json_lines.write(options.solutions, [json_lines.dump(record) for line in done for record in line["solutions"]])
    if options.draw is not None:
        json_lines.write(options.draw, [trees_page(f"{options.method}, scored by {model_name(options.scorer)}", done)])
    print(f"{options.method}, scored by {options.scorer}", results_table(done), sep="\n")
    if options.venn_abers:
        print(chances_row(done))
    if options.false_discovery is not None:
        _select(options, done, known, level=options.false_discovery)


def _select(options: Options, done: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]], *, level: float) -> None:
    """Selects the answers to trust, says how many there are, and writes them to --trusted."""
    from prm_jax.prm.search_selection import trusted_answers

    found = trusted_answers(done, known, level=level, seed=options.seed)
    print(
        f"trusted answers        {len(found['trusted'])} of {found['candidates']}, of which "
        f"{100 * found['false_share']:.1f} % are wrong (--false-discovery {level:g})"
    )
    if options.trusted is not None:
        json_lines.write(options.trusted, [json_lines.dump(line) for line in found["trusted"]])


def _check(options: Options) -> Searcher:
    """Checks the options and returns the search that they describe."""
    from prm_jax.prm.search_results import check_budget
    from prm_jax.runs import shared_files

    options.check()
    searcher = make_searcher(options.method, asdict(options))
    scorers = [options.scorer, *(name for name in (searcher.final_scorer, options.prover) if name)]
    too_large = check_budget(searcher, scorers)
    if too_large:
        raise UserError(too_large)
    if options.solutions is not None and not options.resume and shared_files.exists(options.solutions):
        raise UserError(f"{options.solutions} exists: give another --solutions")
    if options.scorer == "logp" and getattr(searcher, "gate", -1.0) >= 0:
        raise UserError(
            f"log-probabilities are never above 0, so that --gate {options.gate:g} drops every solution: use a "
            "negative --gate, or another --scorer"
        )
    problem = progress_problem(options) or selection_problem(options)
    if problem:
        raise UserError(problem)
    if options.server and not options.connection.logprobs and "logp" in scorers:
        raise UserError("the scorer logp needs log-probabilities: leave --connection.no-logprobs out")
    return searcher
