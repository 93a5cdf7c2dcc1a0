"""``prm-jax search``: a language model's answers by search over its steps, with accuracy, tokens and calls."""

import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from prm_jax.commands import divided, json_lines, results
from prm_jax.commands.policy import PolicyOptions, load_policy, load_problems, settings_of
from prm_jax.commands.progress import Progress
from prm_jax.commands.search_scorers import make_scorers, progress_problem, selection_problem
from prm_jax.errors import UserError
from prm_jax.option_ranges import at_least, within
from prm_jax.prm.reward_model_options import LayoutName
from prm_jax.search.searchers import Searcher, make_searcher

Count = Annotated[int, at_least(1)]
_NOT_SETTINGS = ("problems", "chunk", "solutions", "draw", "false_discovery", "calibration", "trusted")
"""Options on which no line of results depends."""
COMMON_OPTIONS = (
    "task", "task-options", "problems", "sampling.temperature", "sampling.max-new-tokens", "sampling.rows", "seed",
    "chat", "server", "method", "scorer", "rollouts", "samples", "beams", "width", "simulations", "layout",
    "out", "draw", "resume",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(PolicyOptions):
    """Search a language model's steps for the answers to a task's evaluation problems.

    Every method gives one answer per problem. Prints a table; with --out, also writes a JSON line per problem (answer,
    verdict, tokens, candidates), which --resume continues.
    """

    method: str = "best_of_n"
    """majority, best_of_n, weighted_vote, mean_vote and confident_vote (more samples where the first ones disagree)
    sample whole solutions; the others go step by step: beam (beam search), dvts (diverse verifier trees), step_beam
    (AlphaMath), lookahead (ReARTeR), refine (GLoRe: wrong drafts are refined from the first wrong step, and from the
    beginning), refine_step (steps below --gate are written again), parm (PARM), mcts (Monte-Carlo tree search); or your
    own as package.module:function or file.py:function."""
    scorer: str = "logp"
    """What scores prefixes: logp (the policy's mean log-probability), or the path of a process reward model; and, as
    upper bounds, since they know the reference answers: verifier (answers only), rollouts (the share of correct ones
    among --rollouts solutions sampled from there), truth (the task's exact step checker)."""
    rollouts: Count = 8
    """Rollouts per prefix (scorer rollouts); their tokens count."""
    samples: Count = 16
    """Solutions per problem (majority, best_of_n, the other votes, parm, refine, refine_step)."""
    pilot: Count = 4
    """Solutions per problem before its confidence decides how many more of --samples it gets (confident_vote)."""
    beams: Count = 4
    """Beams per problem (beam, dvts, step_beam, lookahead)."""
    width: Count = 4
    """Proposals per beam or leaf; refinements of each kind (refine); further attempts at a step (refine_step)."""
    simulations: Count = 16
    """Simulations per problem (mcts)."""
    horizon: Annotated[int, at_least(0)] = 3
    """Steps to look ahead (lookahead)."""
    alpha: Annotated[float, within(0.0, 1.0)] = 0.5
    """Weight of the score of a later step (lookahead)."""
    min_gain: float | None = None
    """Stop looking ahead at the first step that gains less than this over the one before it (lookahead)."""
    gate: float = 0.5
    """Drop a solution at the first score not above this (parm); a score below this is wrong (refine, refine_step)."""
    gate_from: Count = 1
    """The first step that is judged (parm)."""
    final_scorer: str = ""
    """What scores the remaining solutions, as in --scorer; empty: their last score (parm)."""
    progress_alpha: Annotated[float | None, at_least(0)] = None
    """Rank steps by their value plus this times their progress, the change of the prover's value (beam, dvts,
    step_beam; process advantage verifiers, 0.2 to 0.5 in the paper); none: by the score alone."""
    progress_best_of: Count = 1
    """The prover is the best of this many completions: its value is 1 - (1 - v)^k."""
    prover: str = ""
    """What values prefixes under the prover, as in --scorer; empty: --scorer itself."""
    max_steps: Count = 16
    """Maximum number of steps of a solution."""
    layout: LayoutName = "auto"
    """Family of a public reward model whose config does not name it."""
    reference: str = ""
    """Reference of an implicit reward model, if its directory does not hold one."""
    out: pathlib.Path | None = None
    """JSON-lines file for the results."""
    solutions: pathlib.Path | None = None
    """Also write every candidate to this file, as step data with outcome, answer and score, for score, eval and
    train-prm."""
    draw: pathlib.Path | None = None
    """Also draw the trees, with visits and values, as an interactive HTML page."""
    false_discovery: Annotated[float | None, within(0, 1, low_open=True, high_open=True)] = None
    """Say which answers to trust, so that in expectation at most this share of them is wrong (OptCS); needs
    --calibration."""
    calibration: pathlib.Path | None = None
    """Results (--out) of the same search on other problems (--first-problem), whose answers were checked."""
    trusted: pathlib.Path | None = None
    """JSON-lines file for the trusted answers."""
    resume: bool = False
    """Continue the file in --out; --problems and --chunk may differ."""


def run(options: Options) -> None:
    """Searches chunk by chunk, writing the results as they come, and prints the table."""
    from prm_jax.prm.page import model_name
    from prm_jax.prm.search_results import check_results, results_table, search_problems
    from prm_jax.prm.search_selection import check_other_problems, read_known, trusted_answers
    from prm_jax.prm.tree_page import trees_page
    from prm_jax.runs import processes

    searcher = _check(options)
    known = read_known(options.calibration) if options.calibration else []
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
    if options.solutions is not None:
        json_lines.write(options.solutions, [json_lines.dump(record) for line in done for record in line["solutions"]])
    if options.draw is not None:
        json_lines.write(options.draw, [trees_page(f"{options.method}, scored by {model_name(options.scorer)}", done)])
    print(f"{options.method}, scored by {options.scorer}", results_table(done), sep="\n")
    if options.false_discovery is not None:
        found = trusted_answers(done, known, level=options.false_discovery, seed=options.seed)
        print(
            f"trusted answers        {len(found['trusted'])} of {found['candidates']}, of which "
            f"{100 * found['false_share']:.1f} % are wrong (--false-discovery {options.false_discovery:g})"
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
