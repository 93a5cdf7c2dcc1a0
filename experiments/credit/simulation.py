"""A tabular model of the experiment: which factor moves the gain of step rewards, with many seeds per point.

A problem asks for some of K facts; each fact has one right action and several wrong ones, of which the start prefers
one. The policy is a table of logits [K, A], the PRM a table of rewards [K, A] learned from outcomes alone. Credit,
baseline and whitening are the library's. Of an action that it has not seen the PRM knows nothing; but it never forgets
one, and what it learns about a fact in an easier problem holds in every other, unlike a network.

    python -m experiments.credit.simulation [--smoke]
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.report import Estimate, estimate, machine, plain, render
from prm_jax import rl
from prm_jax.prime.advantage_options import AdvantageOptions
from prm_jax.prime.advantages import make_advantage
from prm_jax.prime.batch import RewardInputs
from prm_jax.prime.sources.readings import label_trust, step_label_rewards
from prm_jax.runs.claims import stamp

HERE = pathlib.Path(__file__).resolve().parent
MEMORY = 0.9
BUFFER = 32
"""Batches that the PRM's replay remembers."""


@dataclasses.dataclass(frozen=True)
class World:
    """One configuration.

    Attributes:
      steps: decisive steps of a problem.
      irrelevant: further steps, whose action does not matter.
      start: share of right responses before training.
      prompts, samples: per training step.
      noise: share of outcomes that are flipped in training.
      arm: outcome, checker, prm (labels in failed responses), prm_raw (its rewards as they are).
      credit: of the process rewards.
      flip: share of the checker's labels that are flipped.
      easier: problems have 2 to `steps` decisive steps, uniformly, instead of `steps`.
      filtered: groups without both outcomes do not count.
      estimator: rloo or grpo.
      rate: the policy's learning rate.
      warm: batches of problems of 2 or 3 steps from which the PRM learns before the policy does.
      frozen: the PRM learns in its warm-up alone.
      updates: replayed batches per training step.
      facts, actions: sizes of the tables.
      length: training steps.
    """

    steps: int = 8
    irrelevant: int = 0
    start: Any = 0.03
    prompts: int = 8
    samples: int = 4
    noise: Any = 0.0
    arm: str = "outcome"
    credit: str = "step"
    flip: Any = 0.0
    easier: bool = False
    filtered: bool = False
    estimator: str = "rloo"
    rate: Any = 0.1
    warm: int = 0
    frozen: bool = False
    updates: int = 2
    facts: int = 24
    actions: int = 4
    length: int = 80

    @property
    def slots(self) -> int:
        """Steps of the longest response."""
        return self.steps + self.irrelevant


@dataclasses.dataclass
class Sampled:
    """Responses of one training step, B = prompts * samples.

    Attributes:
      facts, actions: [B, S] int.
      mask, decisive: [B, S] bool.
      outcome: [B] float.
    """

    facts: Any
    actions: Any
    mask: Any
    decisive: Any
    outcome: Any


jax.tree_util.register_dataclass(Sampled, ["facts", "actions", "mask", "decisive", "outcome"], [])


TRACED = ("start", "noise", "flip", "rate")
"""Fields of a world that one compiled program takes as numbers."""


def simulate(world: World, seeds: int) -> np.ndarray:
    """[seeds, length + 1] shares of right responses to problems of `steps` steps, before and after every step."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    numbers = {name: jnp.float32(getattr(world, name)) for name in TRACED}
    program = dataclasses.replace(world, **{name: 0.0 for name in TRACED})
    return np.asarray(_simulate(program, numbers, keys))


@functools.partial(jax.jit, static_argnums=0)
def _simulate(program: World, numbers: dict[str, Any], keys: jax.Array) -> jax.Array:
    world = dataclasses.replace(program, **numbers)
    return jax.vmap(lambda key: _one(world, key))(keys)


def _one(world: World, key: jax.Array) -> jax.Array:
    key, own = jax.random.split(key)
    theta = _start(world, own)
    optimizer, learner = optax.adam(world.rate, b2=0.95), optax.adam(0.3)
    rewards = jnp.zeros_like(theta)
    prm = (rewards, learner.init(rewards))
    memory = (jnp.zeros(2), jnp.zeros((2, 2)))

    def learn(prm: Any, batch: Sampled, weights: jax.Array) -> Any:
        table, opt = prm
        grads = jax.grad(lambda t: _outcome_loss(t, batch, weights))(table)
        updates, new = learner.update(grads, opt, table)
        there = weights.any()
        return jax.tree.map(lambda x, y: jnp.where(there, x, y), (optax.apply_updates(table, updates), new), prm)

    if world.warm:

        def warm(prm: Any, key: jax.Array) -> tuple[Any, Sampled]:
            batch = _sample(world, theta, key, least=2, most=3)
            return learn(prm, batch, _mixed(world, batch)), batch

        prm, seen = jax.lax.scan(warm, prm, jax.random.split(jax.random.fold_in(key, 1), world.warm))
        again = jax.random.randint(jax.random.fold_in(key, 2), (4 * world.warm,), 0, world.warm)

        def repeat(prm: Any, place: jax.Array) -> tuple[Any, None]:
            batch = jax.tree.map(lambda x: x[place], seen)
            return learn(prm, batch, _mixed(world, batch)), None

        prm, _ = jax.lax.scan(repeat, prm, again)
        memory = _follow(world, prm[0], jax.tree.map(lambda x: x[-1], seen), memory)

    empty = jax.tree.map(
        lambda x: jnp.zeros((BUFFER, *x.shape), x.dtype), jax.eval_shape(lambda: _sample(world, theta, key))
    )

    def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        theta, opt, prm, memory, buffer = carry
        draw, own = jax.random.split(jax.random.fold_in(key, 10 + number))
        batch = _sample(world, theta, draw)
        process = _process(world, theta, prm[0], batch, memory, own)
        advantages = _advantages(world, batch, process)
        grads = jax.grad(lambda t: -(advantages * _logp(t, batch)).sum() / jnp.maximum(batch.mask.sum(), 1))(theta)
        updates, opt = optimizer.update(grads, opt, theta)
        if world.arm in ("prm", "prm_raw") and not world.frozen:
            memory = _follow(world, prm[0], batch, memory)
            buffer = jax.tree.map(lambda x, y: x.at[number % BUFFER].set(y), buffer, batch)
            prm = learn(prm, batch, _mixed(world, batch))
            for turn in range(world.updates):
                place = jax.random.randint(jax.random.fold_in(own, turn), (), 0, jnp.minimum(number + 1, BUFFER))
                old = jax.tree.map(lambda x, place=place: x[place], buffer)
                prm = learn(prm, old, _mixed(world, old))
        theta = optax.apply_updates(theta, updates)
        return (theta, opt, prm, memory, buffer), _solved(world, theta)

    carry = (theta, optimizer.init(theta), prm, memory, empty)
    _, curve = jax.lax.scan(step, carry, jnp.arange(world.length))
    return jnp.concatenate([_solved(world, theta)[None], curve])


def _start(world: World, key: jax.Array) -> jax.Array:
    """[2 K, A] logits, the second half for irrelevant steps: right with one probability, mostly wrong in one way."""
    right = world.start ** (1 / world.steps)
    others = 0.1 * (1 - right) / (world.actions - 2)
    share = jnp.array([right, 0.9 * (1 - right), *[others] * (world.actions - 2)])
    noise = 0.3 * jax.random.normal(key, (2 * world.facts, world.actions))
    return jnp.log(share) + noise


def _sample(world: World, theta: jax.Array, key: jax.Array, least: int = 0, most: int = 0) -> Sampled:
    facts_key, count_key, order_key, action_key, noise_key = jax.random.split(key, 5)
    prompts, slots = world.prompts, world.slots
    least = least or (2 if world.easier else world.steps)
    count = jax.random.randint(count_key, (prompts, 1), least, (most or world.steps) + 1)
    decisive = jnp.arange(slots) < count
    mask = decisive | (jnp.arange(slots) >= world.steps)
    facts = jax.random.randint(facts_key, (prompts, slots), 0, world.facts)
    facts = jnp.where(jnp.arange(slots) >= world.steps, facts + world.facts, facts)
    if world.irrelevant:
        order = jnp.argsort(jax.random.uniform(order_key, (prompts, slots)), -1)
        facts, decisive, mask = (jnp.take_along_axis(x, order, -1) for x in (facts, decisive, mask))
    facts, decisive, mask = (jnp.repeat(x, world.samples, 0) for x in (facts, decisive, mask))
    actions = jax.random.categorical(action_key, theta[facts])
    outcome = ((actions == 0) | ~decisive).all(-1).astype(jnp.float32)
    wrong = jax.random.uniform(noise_key, outcome.shape) < world.noise
    return Sampled(facts, actions, mask, decisive, jnp.where(wrong, 1 - outcome, outcome))


def _process(world: World, theta: Any, table: Any, batch: Sampled, memory: Any, key: jax.Array) -> jax.Array:
    """[B, S] process rewards."""
    ids = _ids(batch)
    if world.arm == "checker":
        right = (batch.actions == 0) | ~batch.decisive
        flipped = right ^ (jax.random.uniform(key, right.shape) < world.flip)
        return step_label_rewards(jnp.where(flipped, 0.0, -1.0), ids, batch.mask, jnp.float32(-0.5))[0]
    if world.arm == "outcome":
        return jnp.zeros(batch.mask.shape)
    raw = jnp.where(batch.mask, table[batch.facts, batch.actions], 0.0)
    if world.arm == "prm_raw":
        return raw
    (total, weight), counts = memory
    threshold = jnp.where(weight > 0, total / jnp.maximum(weight, 1e-6), -jnp.inf)
    labels, _ = step_label_rewards(raw, ids, batch.mask, threshold)
    trust = label_trust(counts)
    return jnp.where(trust >= 0.2, trust, 0.0) * jnp.where(batch.outcome[:, None] < 0.5, labels, 0.0)


def _advantages(world: World, batch: Sampled, process: jax.Array) -> jax.Array:
    ids, groups = _ids(batch), jnp.repeat(jnp.arange(world.prompts), world.samples)
    mean = (batch.outcome.reshape(-1, world.samples).mean(-1))[groups]
    keep = (mean > 0) & (mean < 1) if world.filtered else jnp.ones(mean.shape, bool)
    credit = world.credit
    options = AdvantageOptions(
        estimator=world.estimator, credit=credit, normalizer="return" if credit == "return" else "none",  # type: ignore[arg-type]
        process_coef=0.0 if world.arm == "outcome" else 1.0,
    )  # fmt: skip
    inputs = RewardInputs(
        tokens=batch.actions, mask=batch.mask, keep=keep, step_ids=ids, outcome=batch.outcome, group_ids=groups,
        logp=None, ref_logp=None, process=process, gate=jnp.ones(()), initial_value=mean, groups=world.prompts,
    )  # fmt: skip
    return jax.lax.stop_gradient(jnp.where(inputs.counted, make_advantage(options)(process, inputs), 0.0))


def _outcome_loss(table: jax.Array, batch: Sampled, weights: jax.Array) -> jax.Array:
    mask = batch.mask & weights[:, None]
    rewards = jnp.where(mask, table[batch.facts, batch.actions], 0.0)
    return rl.outcome_ce_loss(rewards, batch.outcome, mask).mean()


def _mixed(world: World, batch: Sampled) -> jax.Array:
    """[B] bool, rows of groups with both outcomes."""
    mean = batch.outcome.reshape(-1, world.samples).mean(-1)
    return jnp.repeat((mean > 0) & (mean < 1), world.samples)


def _follow(world: World, table: jax.Array, batch: Sampled, memory: Any) -> Any:
    """The running threshold of labels, from mixed groups, and the counts of their trust."""
    (average, counts), rows = memory, _mixed(world, batch)
    raw = table[batch.facts, batch.actions]
    found, known = rl.outcome_threshold(raw, batch.mask & rows[:, None], batch.outcome)
    moved = MEMORY * average + (1 - MEMORY) * jnp.stack([found, jnp.ones(())])
    average = jnp.where(known, moved, average)
    threshold = jnp.where(average[1] > 0, average[0] / jnp.maximum(average[1], 1e-6), -jnp.inf)
    _, flagged = step_label_rewards(jnp.where(batch.mask, raw, 0.0), _ids(batch), batch.mask, threshold)
    failed = batch.outcome < 0.5
    members = jnp.stack([failed, ~failed])
    fresh = jnp.stack([(members & flagged).sum(-1), members.sum(-1)]).astype(jnp.float32)
    return average, MEMORY * counts + fresh


def _ids(batch: Sampled) -> jax.Array:
    return jnp.where(batch.mask, jnp.arange(batch.mask.shape[1]), -1)


def _logp(theta: jax.Array, batch: Sampled) -> jax.Array:
    logp = jnp.take_along_axis(jax.nn.log_softmax(theta)[batch.facts], batch.actions[..., None], -1)[..., 0]
    return jnp.where(batch.mask, logp, 0.0)


def _solved(world: World, theta: jax.Array) -> jax.Array:
    return jax.nn.softmax(theta)[: world.facts, 0].mean() ** world.steps


# ------------------------------------------------------------------------------------------- what is simulated

LEVEL = 0.5
"""Share of right responses that "rollouts to" waits for."""
ARMS: dict[str, dict[str, Any]] = {
    "checker": {"arm": "checker"},
    "online PRM": {"arm": "prm"},
    "PRM of earlier runs": {"arm": "prm", "warm": 16},
    "easier too, outcome": {"easier": True},
    "easier too, online PRM": {"easier": True, "arm": "prm"},
}
"""What is compared with outcome-only training. The PRM of earlier runs has seen 512 rollouts of problems with 2 or 3
steps; "easier too": problems have 2 to all steps. These last two only where they share a compiled program."""
POINTS: dict[str, dict[str, Any]] = {
    "base: 8 steps, 3 % right, 8 x 4": {},
    "10 % right at the start": {"start": 0.1},
    "30 % right at the start": {"start": 0.3},
    "10 % of outcomes flipped": {"noise": 0.1},
    "learning rate .2": {"rate": 0.2},
    "16 x 2": {"prompts": 16, "samples": 2},
    "20 steps": {"steps": 20},
    "3 steps": {"steps": 3},
}
FLIPS = (0.0, 0.1, 0.2, 0.3, 0.4)


def steps_to(curves: np.ndarray) -> np.ndarray:
    """[seeds] training steps until the level, interpolated; the last one where it is never reached."""
    found = []
    for curve in curves:
        above = np.flatnonzero(curve >= LEVEL)
        at = int(above[0]) if len(above) else len(curve) - 1
        found.append(float(np.interp(LEVEL, curve[at - 1 : at + 1], [at - 1, at])) if len(above) and at else float(at))
    return np.maximum(np.asarray(found), 0.1)


def fewer(arm: np.ndarray, base: np.ndarray) -> Estimate:
    """How many times fewer steps an arm needs: the geometric mean of paired ratios with Student's interval."""
    logs = estimate(np.log(base) - np.log(arm))
    return Estimate(float(np.exp(logs)), float(np.exp(logs.low)), float(np.exp(logs.high)))


def tables(seeds: int, known: pathlib.Path, *, smoke: bool = False) -> dict[str, Any]:
    """All tables; finished configurations are kept in the file `known`, so that the command can be stopped."""
    spent: dict[str, list[float]] = json.loads(known.read_text()) if known.is_file() else {}

    def run(**changes: Any) -> np.ndarray:
        world = dataclasses.replace(World(), **changes, **({"length": 4} if smoke else {}))
        if (name := f"{seeds} {world}") not in spent:
            spent[name] = steps_to(simulate(world, seeds)).tolist()
            known.write_text(json.dumps(spent))
        return np.asarray(spent[name])

    points = dict(list(POINTS.items())[:2]) if smoke else POINTS
    base, rollouts = run(), World.prompts * World.samples
    mapped: dict[str, dict[str, float]] = {}
    for name, point in points.items():
        given = {key: value for key, value in point.items() if not (smoke and key == "length")}
        own = run(**given)
        mapped[name] = {"outcome, rollouts": estimate(rollouts * own)}
        for arm, changes in ARMS.items():
            if changes.get("easier") and set(given) - set(TRACED):
                continue
            found = run(**given, **changes)
            mapped[name][arm] = fewer(found, own)
            if changes.get("warm"):
                mapped[name][f"{arm}, charged"] = fewer(found + changes["warm"], own)
    credit: dict[str, dict[str, float]] = {f"{round(100 * flip)} % flipped": {} for flip in FLIPS}
    for form in ("step", "return", "cumulative", "min"):
        for flip in FLIPS if form == "step" else FLIPS[::2]:
            found = run(arm="checker", credit=form, flip=flip)
            credit[f"{round(100 * flip)} % flipped"][form] = fewer(found, base)
    reuse: dict[str, dict[str, float]] = {}
    for batches in (16, 64):
        for frozen in (False, True) if batches == 16 else (False,):
            found = run(arm="prm", warm=batches, frozen=frozen)
            saved = estimate(rollouts * (base - found))
            row = {"fewer, its own free": fewer(found, base), "rollouts saved per run": saved}
            if saved > 0:
                row["runs that pay for it"] = rollouts * batches / saved
            reuse[f"{rollouts * batches} rollouts, {'frozen' if frozen else 'online'}"] = row
    title = f"times fewer rollouts to {round(100 * LEVEL)} % than outcome-only training"
    return {
        f"step checker by credit: {title}": credit, f"map: {title}": mapped,
        f"a PRM of earlier runs: {title}": reuse,
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/credit_map"))
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "simulation.json")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    found = tables(2 if args.smoke else args.seeds, args.runs / "simulated.json", smoke=args.smoke)
    print(render(found))
    if not args.smoke:
        record = {**stamp(), "seeds": list(range(args.seeds)), "machine": machine(), "tables": plain(found)}
        args.results.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
