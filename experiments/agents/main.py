"""Do step-level Q values choose an agent's actions better than the agent itself?  (arXiv 2409.09345)

    python -m experiments.agents.main --out experiments/agents

Two worlds: questions over three hops in the task `lookup`, and the text game `rooms`. For every seed a small policy
learns from careless demonstrations. Search trees over its actions on training episodes give pairs of sibling actions;
step-level DPO on these pairs gives a model whose log-ratio to the policy is the Q value of an action. On new episodes
the policy proposes five actions per turn, and the one with the highest Q value is taken. These are the functions behind
`prm-jax train-prm --prm.kind imitation`, `label --method tree`, `train-prm --prm.kind step_q` and `search --method
step_beam`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import report
from experiments.arms import run_folder
from prm_jax import prm
from prm_jax.data import Problem, load_task
from prm_jax.data.environment_task import EnvironmentTask
from prm_jax.data.step_data import StepRecord, read_step_data, write_step_data
from prm_jax.models import ModelConfig, init_params, save_weights
from prm_jax.prm import PRM, Kind
from prm_jax.prm.kinds import Imitation, StepQ
from prm_jax.prm.labelling import tree_records
from prm_jax.prm.labelling.tree_options import TreeOptions
from prm_jax.prm.prefix_scores import make_prefix_scorer
from prm_jax.prm.reward_model_options import BaseOptions, DataOptions, OptimizerOptions, TextLayout
from prm_jax.prm.search_results import search_problems
from prm_jax.prm.train_options import TrainPRMOptions
from prm_jax.rollouts import TaskPolicy, load_local_policy
from prm_jax.rollouts.sampling_options import StepOptions
from prm_jax.search.searchers import make_searcher

ROWS = TextLayout(separator="", pieces="prompt")


class World(NamedTuple):
    """A task, and the bounds of its episodes."""

    options: Mapping[str, str]
    max_turns: int
    max_new_tokens: int

    @property
    def steps(self) -> StepOptions:
        """Of the policy."""
        return StepOptions(step_tokens=6, max_new_tokens=self.max_new_tokens, rows=64, engine="slots")


WORLDS = {
    "lookup": World({"hops": "3", "careless": "0.6"}, 6, 44),
    "rooms": World({"rooms": "3", "extra": "0", "careless": "0.3"}, 8, 80),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Demonstrations, trees, training of Q, and tests."""

    demonstrations: int = 4096
    searched: int = 256
    simulations: int = 16
    width: int = 4
    beta: float = 0.1
    learning_rate: float = 3e-4
    epochs: int = 6
    tested: int = 128
    worlds: tuple[str, ...] = tuple(WORLDS)
    runs: str = "runs/agents"
    first_seed: int = 1
    seeds: int = 5


SMOKE = Config(demonstrations=64, searched=8, epochs=1, tested=4, worlds=("lookup",), runs="", seeds=1)

GREEDY = "greedy policy"
MOST_PROBABLE = "most probable of 5 actions"
BY_Q = "highest Q of 5 actions"


class Arm(NamedTuple):
    """How actions of an episode are chosen."""

    candidates: int
    method: str
    scorer: str
    temperature: float


ARMS = {
    GREEDY: Arm(1, "best_of_n", "logp", 0.0),
    "most probable of 5 episodes": Arm(5, "best_of_n", "logp", 1.0),
    MOST_PROBABLE: Arm(5, "step_beam", "logp", 1.0),
    BY_Q: Arm(5, "step_beam", "Q", 1.0),
    "oracle choice of 5 actions": Arm(5, "step_beam", "truth", 1.0),
}
SUCCESS = "success"


def trained(
    kind: Kind, model: pathlib.Path, data: Sequence[StepRecord], run: pathlib.Path, *, rate: float, epochs: int,
    seed: int,
) -> pathlib.Path:  # fmt: skip
    """A model of a kind, trained unless it is there."""
    options = TrainPRMOptions(
        data=DataOptions(eval_fraction=0.0), text=ROWS, model=BaseOptions(path=str(model)), prm=kind,
        train=OptimizerOptions(learning_rate=rate, epochs=epochs, batch_size=64),
        seed=seed, plots=False, eval_every=0, save_every=1000,
    )  # fmt: skip
    if not (run / "result.json").is_file():
        prm.train(options, run, data=data, resume=run.is_dir())
    return run / "model"


def policy_model(task: Any, count: int, folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A small model that has learned from demonstrations."""
    if not (folder / "new").is_dir():
        tokenizer = task.tokenizer()
        config = ModelConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=192, num_layers=3, num_heads=2,
            num_kv_heads=2, head_dim=32, tie_word_embeddings=True, max_position_embeddings=256,
        )  # fmt: skip
        save_weights(folder / "new", config, init_params(config, jax.random.key(seed)), tokenizer=tokenizer)
    shown = task.demonstrations(np.random.default_rng(seed), count)
    records = [
        StepRecord(prompt, (text,), None, 1.0, prompt, str(number), forced=tuple(answers))
        for number, (prompt, text, answers) in enumerate(shown)
    ]
    return trained(Imitation(), folder / "new", records, folder / "policy", rate=5e-3, epochs=1, seed=seed)


def pairs(config: Config, world: World, policy: TaskPolicy, path: pathlib.Path) -> None:
    """Trees on training episodes: the best path's actions against their worst siblings."""
    policy.begin(policy.task.train[: config.searched], 0)
    options = TreeOptions(simulations=config.simulations, width=config.width, max_steps=world.max_turns)
    records, calls = tree_records(policy, {}, labels="best_worst", rollouts=1, options=options)
    print(f"   {len(records) // 2} pairs from {calls} proposals", flush=True)
    write_step_data(path, records)


class Choice(NamedTuple):
    """An action, and what the world says about it."""

    right: bool  # it belongs to a shortest solution
    ends: bool  # the episode


def last_choice(task: EnvironmentTask, record: StepRecord) -> Choice:
    """The last action of a record, played after the others."""
    number = record.id.split("/")[1]
    environment: Any = task.environment(Problem(record.prompt, number, record.id))
    *before, action = (step.partition("\n")[0] for step in record.steps)
    for earlier in before:
        environment.step(earlier)
    left = len(environment.solution())
    found = environment.step(action)
    right = found.reward > 0 and left == 1 if found.done else len(environment.solution()) == left - 1
    return Choice(right, found.done)


def pair_quality(task: EnvironmentTask, records: Sequence[StepRecord]) -> dict[str, dict[str, float]]:
    """What the pairs prefer and reject, as shares."""
    choices = [last_choice(task, record) for record in records]
    kinds = {
        "the right action": [choice.right for choice in choices],
        "the right end": [choice.right and choice.ends for choice in choices],
        "a premature or wrong end": [choice.ends and not choice.right for choice in choices],
    }
    return {
        name: {"preferred": float(np.mean(found[::2])), "rejected": float(np.mean(found[1::2]))}
        for name, found in kinds.items()
    } | {"pairs": {"preferred": len(records) / 2, "rejected": len(records) / 2}}


def success(config: Config, world: World, policy: TaskPolicy, arm: Arm, q: PRM) -> dict[str, float]:
    """Shares of new episodes, and proposals per episode."""
    policy.begin(policy.task.eval[: config.tested], 0)
    own = {"samples": arm.candidates, "beams": 1, "width": arm.candidates, "max_steps": world.max_turns}
    score = make_prefix_scorer(
        "." if arm.scorer == "Q" else arm.scorer, policy, rollouts=0, first=1, load=lambda _: q
    )  # fmt: skip
    lines = list(search_problems(policy, make_searcher(arm.method, own), score))
    played = zip(policy.problems, lines, strict=True)
    return {
        SUCCESS: float(np.mean([line["correct"] for line in lines])),
        "not ended": float(np.mean([not ended(policy.task, *pair) for pair in played])),
        "proposals per episode": float(np.mean([line["proposals"] for line in lines])),
    }


def ended(task: EnvironmentTask, problem: Problem, line: Mapping[str, Any]) -> bool:
    """Whether the episode of a search result came to its end in the turns that it had."""
    turns = task.turns(problem, line["response"] or "")
    return bool(turns) and turns[-1].feedback.done


def one(config: Config, name: str, seed: int, folder: pathlib.Path) -> dict[str, dict[str, float]]:
    """The arms of a seed; kept in a file when done."""
    done = folder / "arms.json"
    if done.is_file():
        return json.loads(done.read_text())
    print(f"== {name}, seed {seed}", flush=True)
    world, task = WORLDS[name], world_task(config, name, seed)
    start = policy_model(task, config.demonstrations, folder, seed)
    policies = {
        temperature: load_local_policy(
            start, task, dataclasses.replace(world.steps, temperature=temperature), seed=seed
        )
        for temperature in (0.0, 1.0)
    }  # fmt: skip
    if not (folder / "pairs.jsonl").is_file():
        pairs(config, world, policies[1.0], folder / "pairs.jsonl")
    kind = StepQ(beta=config.beta, pairs="siblings", aggregate="last")
    path = trained(
        kind, start, read_step_data(folder / "pairs.jsonl"), folder / "q", rate=config.learning_rate,
        epochs=config.epochs, seed=seed,
    )  # fmt: skip
    q = prm.load(path)
    found = {arm: success(config, world, policies[how.temperature], how, q) for arm, how in ARMS.items()}
    for row in found.values():
        for other in (GREEDY, MOST_PROBABLE):
            row[f"minus {other}"] = row[SUCCESS] - found[other][SUCCESS]
    print(report.render({f"{name}, seed {seed}": found}), flush=True)
    done.write_text(json.dumps(found))
    return found


def world_task(config: Config, name: str, seed: int) -> EnvironmentTask:
    """Episodes of a world."""
    task = load_task(name, seed=seed, num_eval=config.tested, **WORLDS[name].options)
    assert isinstance(task, EnvironmentTask)
    return task


def run(config: Config) -> report.Tables:
    """Means over seeds, world by world."""
    tables: dict[str, report.Table] = {}
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    with run_folder(config.runs) as root:
        for name in config.worlds:
            folders = {seed: root / name / f"seed{seed}" for seed in seeds}
            arms = [one(config, name, seed, folder) for seed, folder in folders.items()]
            learned = [
                pair_quality(world_task(config, name, seed), read_step_data(folder / "pairs.jsonl"))
                for seed, folder in folders.items()
            ]
            tables |= {
                f"{name}: new episodes": report.average(arms),
                f"{name}: success by seed": {
                    f"seed {seed}": {arm: row[SUCCESS] for arm, row in found.items()}
                    for seed, found in zip(seeds, arms, strict=True)
                },
                f"{name}: pairs that Q learns from": report.average(learned),
            }
    return tables


PANELS = tuple(report.Panel(f"{name}: new episodes", (SUCCESS,)) for name in WORLDS)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
