"""What does a correct first-error label cost?  OmegaPRM against rollouts after every step.

A small model trained on the careless teacher of the carry task answers problems; the task's exact checker knows the
first wrong step of each wrong solution. A prefix from which none of k completions is right holds an error. Four ways to
find the first one, all from the same completions, none of which estimates a prefix of a problem twice: completions
after every step (arXiv 2312.08935), from the front until the first such prefix, binary search, and OmegaPRM, whose
searches go on with the wrong completions that earlier ones have left (arXiv 2406.06592). Short and long solutions;
carries are dropped as often as makes about a third of the answers right. A length has one policy; seeds choose problems
and completions.

    python -m experiments.omega_labels.main --out experiments/omega_labels
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments import report
from experiments.prm_kinds import main as prm_kinds
from experiments.search_budget.policy import carry_policy
from prm_jax.data.carry import CarryTask
from prm_jax.rollouts import TaskPolicy
from prm_jax.search import JudgedRollout, PrefixRequest, first_error_search, omega_label
from prm_jax.search.language_model import Ask, Partial

ARMS = ("every step, nothing shared", "every step", "front to back", "binary search", "OmegaPRM")
COLUMNS = ("calls", "tokens", "labels", "correct")


@dataclasses.dataclass(frozen=True)
class Config:
    """Tasks, model and rollouts."""

    operands: tuple[int, ...] = (5, 11)
    drop_carry: tuple[float, ...] = (0.6, 0.25)
    hidden: int = 64
    layers: int = 3
    sft_steps: int = 500
    problems: int = 24  # held out, a seed
    rollouts: tuple[int, ...] = (4, 8, 16)  # from each prefix
    searches: int = 8  # most of OmegaPRM, a problem
    seeds: int = 5


SMOKE = Config(
    operands=(3,), drop_carry=(0.5,), hidden=16, layers=1, sft_steps=60, problems=6, rollouts=(4,), searches=2,
    seeds=2,
)  # fmt: skip


class Made(NamedTuple):
    """One completion: what `omega_label` reads, and its tokens."""

    rollout: JudgedRollout
    tokens: int


class Bank:
    """Completions of prefixes, which are the same for every method that asks.

    Args:
      policy: already turned to the problems.
    """

    def __init__(self, policy: TaskPolicy) -> None:
        self.policy = policy
        self._made: dict[PrefixRequest, list[Made]] = {}

    def __call__(self, requests: Sequence[PrefixRequest], count: int) -> list[list[JudgedRollout]]:
        """The first `count` completions of each prefix; see `omega_label.RolloutFn`."""
        return [[one.rollout for one in made] for made in self.take(requests, count)]

    def take(self, requests: Sequence[PrefixRequest], count: int) -> list[list[Made]]:
        """The same, with tokens. No later call may ask for more of a prefix than the first one did."""
        new = [request for request in dict.fromkeys(requests) if request not in self._made]
        # Each prefix has its own random numbers.
        asks = [self._ask(request, len(self._made) + i) for i, request in enumerate(new)]
        proposed = self.policy.propose(asks, count, True) if asks else []
        for request, ask, steps in zip(new, asks, proposed, strict=True):
            self._made[request] = [self._judge(request, ask.partial, step.tokens) for step in steps]
        assert all(len(self._made[request]) >= count for request in requests)
        return [self._made[request][:count] for request in requests]

    def mc(self, question: int, prefix: tuple[str, ...], count: int) -> float:
        """Share of right ones among `count` completions."""
        return float(np.mean([one.correct for one in self([PrefixRequest(question, prefix)], count)[0]]))

    def _ask(self, request: PrefixRequest, stream: int) -> Ask:
        prefix = tuple(self.policy.tokenizer.encode("".join(map(str, request.prefix))))
        return Ask(Partial(request.question, (prefix,) if prefix else ()), stream)

    def _judge(self, request: PrefixRequest, partial: Partial, tokens: tuple[int, ...]) -> Made:
        policy = self.policy
        before, after = policy.text(partial), policy.text(Partial(request.question, (tokens,)))
        right = policy.task.verify(policy.problems[request.question], before + after) > 0
        return Made(JudgedRollout(split(policy, after), float(len(tokens)), right), len(tokens))


def split(policy: TaskPolicy, text: str) -> tuple[str, ...]:
    """The steps of a solution."""
    return tuple(text[start:end] for start, end in policy.task.splitter(text))


Solution = tuple[int, tuple[str, ...]]
"""(number of the problem, steps)."""


def wrong_solutions(bank: Bank, problems: int, count: int) -> list[Solution]:
    """The wrong ones among the first `count` solutions of each problem, equal ones as often as they came."""
    made = bank([PrefixRequest(b, ()) for b in range(problems)], count)
    return [(b, tuple(map(str, r.steps))) for b, found in enumerate(made) for r in found if not r.correct and r.steps]


def every_step(bank: Bank, solutions: Sequence[Solution], count: int) -> tuple[list[int], list[list[int]]]:
    """(first errors, lengths of the prefixes that were completed) of each solution."""
    found = []
    bank([PrefixRequest(b, steps[:i]) for b, steps in solutions for i in range(1, len(steps))], count)
    for b, steps in solutions:
        dead = [i for i in range(1, len(steps)) if bank.mc(b, steps[:i], count) == 0]
        found.append(min([*dead, len(steps)]) - 1)
    return found, [list(range(1, len(steps))) for _, steps in solutions]


def front_to_back(firsts: Sequence[int], solutions: Sequence[Solution]) -> list[list[int]]:
    """What `every_step` needs to complete for the same first errors."""
    return [list(range(1, min(first + 2, len(steps)))) for first, (_, steps) in zip(firsts, solutions, strict=True)]


def binary_search(bank: Bank, solutions: Sequence[Solution], count: int) -> tuple[list[int], list[list[int]]]:
    """As `every_step`."""
    asked: list[list[int]] = [[] for _ in solutions]

    def probe(mid: np.ndarray) -> np.ndarray:
        answers = np.zeros(len(solutions))
        for i, last in enumerate(mid.tolist()):
            if last >= 0:
                asked[i].append(last + 1)
                answers[i] = bank.mc(solutions[i][0], solutions[i][1][: last + 1], count)
        return answers

    lengths = np.array([len(steps) for _, steps in solutions], np.int32)
    found = first_error_search(probe, lengths, int(lengths.max(initial=1)), host=True)  # type: ignore[arg-type]
    return np.asarray(found.first_error).tolist(), asked


def counts(
    bank: Bank, labels: Iterable[tuple[Solution, int]], prefixes: Iterable[Solution], problems: int, count: int
) -> np.ndarray:
    """[problems, 4]: calls and tokens for the prefixes (with repeats), labels and correct ones (without)."""
    table = np.zeros((problems, len(COLUMNS)))
    for b, prefix in prefixes:
        table[b, :2] += count, sum(one.tokens for one in bank.take([PrefixRequest(b, prefix)], count)[0])
    task, all_problems = bank.policy.task, bank.policy.problems
    for (b, steps), first in set(labels):
        table[b, 2:] += 1, task.first_error(all_problems[b], "".join(steps)) == first
    return table


def label(config: Config, bank: Bank, problems: int, count: int) -> dict[str, np.ndarray]:
    """Arm -> [problems, 4]."""
    solutions = wrong_solutions(bank, problems, count)
    roots: list[Solution] = [(b, ()) for b in range(problems)]
    distinct = sorted(set(solutions))
    firsts, all_prefixes = every_step(bank, distinct, count)
    halved, probed = binary_search(bank, distinct, count)
    labelled = list(zip(distinct, firsts, strict=True))

    def shared(asked: Sequence[Sequence[int]]) -> list[Solution]:
        seen = {(b, s[:i]) for (b, s), lengths in zip(distinct, asked, strict=True) for i in lengths}
        return [*roots, *sorted(seen)]

    def table(labels: Iterable[tuple[Solution, int]], prefixes: Iterable[Solution]) -> np.ndarray:
        return counts(bank, labels, prefixes, problems, count)

    unshared = [*roots, *((b, s[:i]) for b, s in solutions for i in range(1, len(s)))]
    longest = float(bank.policy.steps.max_new_tokens)
    found = omega_label(bank, problems, rollouts=count, searches=config.searches, L=longest)
    errors = [((e.question, tuple(map(str, e.steps))), e.first_error) for e in found.errors]
    states = [(s.question, tuple(map(str, s.prefix))) for s in found.states]
    return dict(
        zip(
            ARMS,
            (
                table(labelled, unshared),
                table(labelled, shared(all_prefixes)),
                table(labelled, shared(front_to_back(firsts, distinct))),
                table(zip(distinct, halved, strict=True), shared(probed)),
                table(errors, states),
            ),
            strict=True,
        )
    )


def make_policy(config: Config, operands: int, drop_carry: float) -> TaskPolicy:
    """A model after supervised training on the teacher's solutions."""
    task = CarryTask(operands, operands, num_train=1 << 14, num_eval=config.problems, drop_carry=drop_carry)
    start = prm_kinds.Config(hidden=config.hidden, layers=config.layers, sft_steps=config.sft_steps)
    return carry_policy(*prm_kinds.start_model(start, task, 0), task, seed=0)


def one_seed(config: Config, policy: TaskPolicy, operands: int, seed: int) -> dict[int, dict[str, np.ndarray]]:
    """Problems and completions of their own: rollouts of each prefix -> arm -> [problems, 4]."""
    policy.begin(CarryTask(operands, operands, num_eval=config.problems, seed=seed).eval, seed * config.problems)
    bank = Bank(policy)
    # The largest first: the others take the first of its completions.
    return {count: label(config, bank, config.problems, count) for count in sorted(config.rollouts, reverse=True)}


def summary(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Title -> arm -> number; each seed's problems are counted together, and intervals are over seeds.

    "Times fewer" compares with the arm that completes every step: geometric means of the seeds' ratios.
    """
    totals = {arm: np.maximum([run[arm].sum(0) for run in runs], 1e-9).T for arm in ARMS}  # [4, seeds]
    cost = {arm: calls / correct for arm, (calls, _, _, correct) in totals.items()}
    spent = {arm: tokens / correct for arm, (_, tokens, _, correct) in totals.items()}
    plain, shared = ARMS[:2]
    return {
        "calls a problem": {arm: float(np.mean([run[arm][:, 0].mean() for run in runs])) for arm in ARMS},
        "labels a problem": {arm: float(np.mean([run[arm][:, 2].mean() for run in runs])) for arm in ARMS},
        "calls for a correct label": {arm: report.estimate(cost[arm]) for arm in ARMS},
        "tokens for a correct label": {arm: report.estimate(spent[arm]) for arm in ARMS},
        "share of labels that are correct": {arm: report.estimate(totals[arm][3] / totals[arm][2]) for arm in ARMS},
        "times fewer calls for a correct label": {arm: report.ratio(cost[shared], cost[arm]) for arm in ARMS},
        "times fewer tokens for a correct label": {arm: report.ratio(spent[shared], spent[arm]) for arm in ARMS},
        "times fewer calls than with nothing shared": {arm: report.ratio(cost[plain], cost[arm]) for arm in ARMS},
    }


def run(config: Config) -> report.Tables:
    """A row for every length and number of completions."""
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for operands, drop_carry in zip(config.operands, config.drop_carry, strict=True):
        policy = make_policy(config, operands, drop_carry)
        found = [one_seed(config, policy, operands, seed) for seed in range(config.seeds)]
        for count in config.rollouts:
            for title, row in summary([one[count] for one in found]).items():
                tables.setdefault(title, {})[f"{operands - 1} additions, k = {count}"] = row
    return tables


PANELS = (
    report.Panel("times fewer calls for a correct label", ARMS[2:], log=True),
    report.Panel("share of labels that are correct", ARMS[2:]),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
