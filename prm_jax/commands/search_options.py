"""The options of ``prm-jax search``."""

import pathlib
from dataclasses import dataclass
from typing import Annotated, Literal

from prm_jax.commands.policy import PolicyOptions
from prm_jax.option_ranges import at_least, within
from prm_jax.prm.reward_model_options import LayoutName

Count = Annotated[int, at_least(1)]


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
    venn_abers: tuple[Literal["score", "agreement"], ...] = ()
    """Say how likely each answer is right, by its score, the share of candidates that agree with it, or the mean of
    both: the results get Venn-ABERS intervals and chances; needs --calibration."""
    trusted: pathlib.Path | None = None
    """JSON-lines file for the trusted answers."""
    resume: bool = False
    """Continue the file in --out; --problems and --chunk may differ."""
