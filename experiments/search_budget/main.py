"""Does search beat voting when both may generate equally many tokens?  Seven methods on a policy of known faults.

The policy is a small model trained on the careless teacher of the carry task. Where he drops carries more often than
not, the policy's most frequent answer is wrong and votes must fail; where he drops them seldom, votes are strong. Its
prefixes are valued by a model that starts as a copy of it and learns from outcomes of its own rollouts, and, as an
upper line, by the task's exact step checker. Every token generated counts, those of discarded steps too.

    python -m experiments.search_budget.main --out experiments/search_budget
    python -m experiments.search_budget.figure experiments/search_budget
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments import report
from experiments.prm_kinds import main as prm_kinds
from experiments.search_budget.policy import Scorer, answer_of, as_record, carry_policy, exact_scorer, train_value
from prm_jax.data.carry import CarryTask
from prm_jax.rollouts import TaskPolicy
from prm_jax.search import language_model as lm
from prm_jax.search import vote

VOTES = {"majority vote": "majority", "weighted best-of-n": "weighted", "best-of-n": "best"}
SEARCHES = ("beam search", "DVTS", "step-level beam", "MCTS")


@dataclasses.dataclass(frozen=True)
class Config:
    """Task, model and budgets."""

    min_operands: int = 3
    max_operands: int = 5
    drop_carry: tuple[float, ...] = (0.6, 0.3)
    hidden: int = 64
    layers: int = 3
    sft_steps: int = 500
    problems: int = 64  # held out, a seed
    samples: int = 64  # of each of them, for votes
    budgets: tuple[int, ...] = (4, 8, 16, 32)  # of the searches, in solutions
    exact_budgets: tuple[int, ...] = (4, 16)  # the same with the exact checker
    width: int = 4  # proposals of each beam or leaf
    prm_problems: int = 384
    prm_solutions: int = 8
    updates: int = 120
    batch_size: int = 128
    learning_rate: float = 1e-3
    seeds: int = 5
    kept: str = "runs/search_budget"  # finished seeds, which are not run again


SMOKE = Config(
    min_operands=2, max_operands=3, drop_carry=(0.6,), hidden=16, layers=1, sft_steps=20, problems=6, samples=4,
    budgets=(4,), exact_budgets=(4,), prm_problems=8, prm_solutions=4, updates=4, batch_size=16, seeds=1,
    kept="",
)  # fmt: skip


@dataclasses.dataclass
class Outcome:
    """What a method did on each problem of a seed; each [P], a mean where it was done several times.

    Attributes:
      right: the answer is right.
      tokens: generated.
      scored: calls of the scorer.
      silent: no answer was given.
    """

    right: np.ndarray
    tokens: np.ndarray
    scored: np.ndarray
    silent: np.ndarray

    def packed(self) -> dict[str, list[float]]:
        """For JSON; `Outcome.unpacked` is the way back."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def unpacked(cls, found: Mapping[str, Sequence[float]]) -> "Outcome":
        """From what `packed` gave."""
        return cls(**{name: np.array(values) for name, values in found.items()})


Outcomes = dict[tuple[str, int], Outcome]
"""(method, budget in solutions) -> what it did."""


def votes(policy: TaskPolicy, sampled: lm.Found, scores: np.ndarray) -> Outcomes:
    """Votes of every size that divides the samples, each a mean over disjoint sets of them; scores [P, samples]."""
    count, samples = scores.shape
    right, tokens = np.zeros((2, count, samples))
    ids = np.full((count, samples), -1)
    for b, candidates in enumerate(sampled.candidates):
        answers = [answer_of(policy, c.partial) for c in candidates]
        known = sorted({a for a in answers if a is not None})
        for i, (one, answer) in enumerate(zip(candidates, answers, strict=True)):
            tokens[b, i] = len(one.partial.tokens)
            if answer is not None:
                ids[b, i] = known.index(answer)
                right[b, i] = policy.task.verify(policy.problems[b], policy.text(one.partial))
    outcomes: Outcomes = {}
    for size in (2**i for i in range(samples.bit_length()) if samples % 2**i == 0):
        sets = ids.reshape(-1, size)
        spent = tokens.mean(-1) * size
        for name, how in VOTES.items():
            weights = np.maximum(scores, 0.0) if how == "weighted" else scores
            winner = np.asarray(vote(weights.reshape(-1, size), sets, how))  # type: ignore[arg-type]
            hit = ((sets == winner[:, None]) & (right.reshape(-1, size) > 0)).any(-1)
            per_problem = [x.reshape(count, -1).mean(-1) for x in (hit, winner < 0)]
            scored = np.full(count, 0.0 if how == "majority" else size)
            outcomes[name, size] = Outcome(per_problem[0], spent, scored, per_problem[1])
    return outcomes


def searched(policy: TaskPolicy, found: lm.Found) -> Outcome:
    """The best candidate is the answer."""
    best = [candidates[0].partial if candidates else None for candidates in found.candidates]
    right = [
        0.0 if partial is None else policy.task.verify(problem, policy.text(partial))
        for problem, partial in zip(policy.problems, best, strict=True)
    ]
    silent = [partial is None or answer_of(policy, partial) is None for partial in best]
    return Outcome(np.array(right), found.tokens.astype(float), found.scored.astype(float), np.array(silent, float))


def search(
    policy: TaskPolicy,
    score: lm.ScorePartials,
    method: str,
    budget: int,
    *,
    width: int,
    max_steps: int,
    mean_steps: float,
) -> lm.Found:
    """One search of about `budget` solutions' worth of steps."""
    count, width = len(policy.problems), min(width, budget)
    if method == "MCTS":
        # As many steps as so many solutions of the mean length have; fewer would not reach an answer.
        simulations = round(budget * mean_steps / width)
        return lm.tree_search(
            policy.propose, score, count, simulations=simulations, width=width, max_steps=max_steps
        )[0]  # fmt: skip
    beams = budget // width
    if method == "step-level beam":
        return lm.step_beam_search(policy.propose, score, count, beams=beams, width=width, max_steps=max_steps)
    trees = beams if method == "DVTS" else 1
    return lm.beam_search(policy.propose, score, count, beams=beams, trees=trees, width=width, max_steps=max_steps)


def make_policy(config: Config, drop_carry: float, seed: int) -> TaskPolicy:
    """A model after supervised training on the teacher's solutions."""
    task = CarryTask(
        config.min_operands, config.max_operands, num_train=1 << 14, num_eval=config.problems, seed=seed,
        drop_carry=drop_carry,
    )  # fmt: skip
    start = prm_kinds.Config(hidden=config.hidden, layers=config.layers, sft_steps=config.sft_steps)
    return carry_policy(*prm_kinds.start_model(start, task, seed), task, seed=seed)


def make_scorer(config: Config, policy: TaskPolicy, seed: int) -> Scorer:
    """A value model from outcomes of the policy's own rollouts on training problems."""
    policy.begin([policy.task.train[i] for i in range(config.prm_problems)], 0)
    found = lm.sample_search(policy.propose, no_score, config.prm_problems, samples=config.prm_solutions)
    records = []
    for b, candidates in enumerate(found.candidates):
        for i, one in enumerate(candidates):
            outcome = policy.task.verify(policy.problems[b], policy.text(one.partial))
            records.append(as_record(policy, one.partial, outcome, f"{b}/{i}"))
    prm = train_value(
        policy, [record for record in records if record is not None], updates=config.updates,
        batch_size=config.batch_size, learning_rate=config.learning_rate, seed=seed,
    )  # fmt: skip
    return Scorer(prm, policy)


def one_seed(config: Config, drop_carry: float, seed: int) -> tuple[dict[str, Outcomes], dict[str, float]]:
    """(scorer -> outcomes, what policy and scorer are worth)."""
    policy = make_policy(config, drop_carry, seed)
    value, exact = make_scorer(config, policy, seed), exact_scorer(policy)
    scorers: dict[str, tuple[lm.ScorePartials, lm.ScorePartials, tuple[int, ...]]] = {
        "value model": (value, centred(value), config.budgets),
        "exact checker": (exact, exact, config.exact_budgets),
    }
    problems = policy.task.eval
    policy.begin(problems, config.prm_problems)  # a problem's number determines its randomness
    # Samples of equal worth keep their order.
    sampled = lm.sample_search(policy.propose, no_score, len(problems), samples=config.samples)
    flat = [candidate.partial for candidates in sampled.candidates for candidate in candidates]
    outcomes: dict[str, Outcomes] = {}
    facts: dict[str, float] = {}
    for name, (score, tree_score, budgets) in scorers.items():
        scores = np.array(score(flat)).reshape(len(problems), -1)
        outcomes[name] = votes(policy, sampled, scores)
        facts = facts or quality(policy, sampled, scores)
        for number, (method, budget) in enumerate((m, n) for m in SEARCHES for n in budgets):
            policy.begin(problems, config.prm_problems + (number + 1) * len(problems))
            found = search(
                policy, tree_score if method == "MCTS" else score, method, budget, width=config.width,
                max_steps=config.max_operands, mean_steps=(config.min_operands + config.max_operands - 2) / 2,
            )  # fmt: skip
            outcomes[name][method, budget] = searched(policy, found)
    return outcomes, facts


def kept_seed(config: Config, drop_carry: float, seed: int) -> tuple[dict[str, Outcomes], dict[str, float]]:
    """`one_seed`, or what it found before with the same settings."""
    settings = dataclasses.replace(config, drop_carry=(drop_carry,), seeds=1, kept="")

    def make() -> list[Any]:
        outcomes, facts = one_seed(settings, drop_carry, seed)
        rows = [[name, *key, one.packed()] for name, own in outcomes.items() for key, one in own.items()]
        return [rows, facts]

    rows, facts = report.kept(config.kept, settings, f"seed{seed}", make)
    found: dict[str, Outcomes] = {}
    for name, method, budget, one in rows:
        found.setdefault(name, {})[method, budget] = Outcome.unpacked(one)
    return found, facts


def quality(policy: TaskPolicy, sampled: lm.Found, scores: np.ndarray) -> dict[str, float]:
    """What single samples are worth, and how well the scorer tells right ones from wrong ones."""
    hit = np.array(
        [
            [policy.task.verify(problem, policy.text(c.partial)) > 0 for c in candidates]
            for problem, candidates in zip(policy.problems, sampled.candidates, strict=True)
        ]
    )
    auc = 0.5
    if 0 < hit.sum() < hit.size:
        auc = stats.mannwhitneyu(scores[hit], scores[~hit]).statistic / (hit.sum() * (~hit).sum())
    return {
        "right samples": float(hit.mean()),
        "problems with a right sample": float(hit.any(-1).mean()),
        "tokens a sample": float(sampled.tokens.sum() / hit.size),
        "AUC of the value of whole solutions": float(auc),
    }


def no_score(partials: Sequence[lm.Partial]) -> list[float]:
    """For samples that are scored later."""
    return [0.0] * len(partials)


def centred(chances: lm.ScorePartials) -> lm.ScorePartials:
    """Chances as values in [-1, 1], to which the constants of the tree belong."""
    return lambda partials: [2 * chance - 1 for chance in chances(partials)]


def less_vote(outcomes: Outcomes, key: tuple[str, int]) -> np.ndarray:
    """[problems]: what a method got right less what a majority vote of as many tokens did.

    Between two sizes of the vote its outcomes are interpolated over the logarithm of their mean tokens.
    """
    votes = [one for name, one in outcomes.items() if name[0] == "majority vote"]
    cost = [np.log(one.tokens.mean()) for one in votes]
    place = float(np.interp(np.log(outcomes[key].tokens.mean()), cost, np.arange(len(cost))))
    low, share = int(place), place % 1.0
    voted = (1 - share) * votes[low].right + share * votes[min(low + 1, len(votes) - 1)].right
    return outcomes[key].right - voted


def over_seeds(found: Sequence[np.ndarray]) -> report.Estimate:
    """Mean of [problems] of every seed; the interval is over seeds, or over the problems of a single seed."""
    return report.estimate(found[0] if len(found) == 1 else [one.mean() for one in found])


def summary(runs: Sequence[Outcomes]) -> report.Tables:
    """The tables of one policy and one scorer."""
    tables: dict[str, dict[str, dict[str, float]]] = {
        title: {}
        for title in ("accuracy", "accuracy less that of majority vote at equal tokens", "tokens a problem",
                      "scorer calls a problem", "problems without an answer")
    }  # fmt: skip
    accuracy, difference, tokens, scored, silent = tables.values()
    for key in sorted(runs[0], key=lambda k: ([*VOTES, *SEARCHES].index(k[0]), k[1])):
        method, column = key[0], f"n = {key[1]}"
        accuracy.setdefault(method, {})[column] = over_seeds([run[key].right for run in runs])
        if method != "majority vote":
            difference.setdefault(method, {})[column] = over_seeds([less_vote(run, key) for run in runs])
        tokens.setdefault(method, {})[column] = float(np.mean([run[key].tokens for run in runs]))
        scored.setdefault(method, {})[column] = float(np.mean([run[key].scored for run in runs]))
        silent.setdefault(method, {})[column] = float(np.mean([run[key].silent for run in runs]))
    return tables


def run(config: Config) -> report.Tables:
    """Every policy, every scorer."""
    tables: dict[str, report.Table] = {}
    worth: dict[str, dict[str, float]] = {}
    for drop_carry in config.drop_carry:
        found = [kept_seed(config, drop_carry, seed) for seed in range(config.seeds)]
        policy = f"carries dropped {drop_carry:.0%}"
        worth |= report.average([{policy: facts} for _, facts in found])
        for scorer in found[0][0]:
            for title, table in summary([outcomes[scorer] for outcomes, _ in found]).items():
                tables[f"{policy}, {scorer}: {title}"] = table
    return {"policies and value models": worth, **tables}


if __name__ == "__main__":
    report.main(run, Config(), SMOKE)
