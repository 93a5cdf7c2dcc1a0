"""Several seeds of one arm trained at once: the library's compiled step, sampling and scoring under `jax.vmap`.

A run of these small models spends most of its processor time outside the arithmetic. Here the seeds of an arm share one
program and one Python loop; options, sources, credit, judging and evaluation are those of `prm_jax.prime.train`. A seed
gets the numbers that it would get alone, up to rounding.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import rl
from prm_jax.data.pipeline import PromptStream
from prm_jax.data.problems import Problem
from prm_jax.models import compiler_options
from prm_jax.models.decode_loop import ResponseSpec
from prm_jax.models.generation import PromptArrays, generate_arrays
from prm_jax.models.responses import Samples
from prm_jax.models.sampling import make_sampling
from prm_jax.models.stopping import check_stop, stop_tables
from prm_jax.prime.batch import Batch, Frozen
from prm_jax.prime.collect import to_batch
from prm_jax.prime.compose import Composed, compose
from prm_jax.prime.evaluate import PRMProbe, policy_metrics
from prm_jax.prime.options import Options
from prm_jax.prime.responses import PRETRAIN_STREAM, Drawn, Responses
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.selection import passing_groups
from prm_jax.prime.sources import ImplicitPRM, Observed, SavedPRM, SourceBatch
from prm_jax.prime.sources.base import observe, on_host
from prm_jax.prime.start import Overrides, load_start
from prm_jax.prime.step import make_keep_step, make_source_step, make_step
from prm_jax.prime.warm_up import is_warmed_up, warm_up_task
from prm_jax.prm.prefix_scores import gives_probabilities

Curves = list[dict[str, Any]]
"""One record per seed: lists with an entry per evaluation."""


def train_replicas(
    options: Sequence[Options], keep: Sequence[pathlib.Path] | None = None, *,
    watch: Callable[["Team", Sequence[Responses]], None] | None = None,
    onlookers: Mapping[str, pathlib.Path] | None = None,
) -> Curves:  # fmt: skip
    """Trains seeds side by side.

    Args:
      options: of R runs, which may differ in `seed`, `model.path`, `prm.path` and `prm.trained` alone.
      keep: directories for the trained PRMs; None: they are dropped.
      watch: called after every training step with the rollouts of every run.
      onlookers: saved PRMs by name, whose step AUC every evaluation measures and which reward nothing.

    Returns:
      For each run: rollouts, sampled, steps_right, and for a PRM auc and label_accuracy; the mean solve rate of each
      training step; rollouts of the PRM's warm-up, and completions that a source of values has sampled.
    """
    team = Team(options, onlookers)
    begun = time.process_time()
    team.warm_up()
    for step in range(options[0].steps):
        if step % options[0].eval.every == 0:
            team.evaluate(step)
        responses = team.learn(step)
        if watch is not None:
            watch(team, responses)
    team.evaluate(options[0].steps)
    if keep is not None and isinstance(team.source, ImplicitPRM):
        team.save(keep)
    seconds = (time.process_time() - begun) / len(options)
    return [{**record, "processor_seconds": round(seconds, 2)} for record in team.records]


class Team:
    """R runs of one arm."""

    def __init__(self, options: Sequence[Options], onlookers: Mapping[str, pathlib.Path] | None = None) -> None:
        self.onlookers = {name: SavedPRM([path]) for name, path in (onlookers or {}).items()}
        self.options, self.one = list(options), options[0]
        self.runs = [_composed(each) for each in options]
        first = self.runs[0]
        self.source = first.setup.source
        self.frozen = _stacked([run.frozen for run in self.runs])
        self.state = _stacked([run.initial_state() for run in self.runs])
        self.step = self._together(make_step(first.setup))
        self.policy = jax.jit(jax.vmap(first.setup.policy.learner.params))
        tasks = [run.start.task for run in self.runs]
        self.streams = [PromptStream(task.train, each.seed) for task, each in zip(tasks, options, strict=True)]
        self.asked = 0
        self._score: Any = None
        self.records: Curves = [
            {"warm_up_rollouts": 0, "rollouts": [], "sampled": [], "solve_rate": []} for _ in options
        ]

    def sample(self, params: Any, problems: Sequence[Sequence[Problem]], size: int, stream: int) -> list[Responses]:
        """Judged responses of every run to its own problems, `size` each."""
        samplers = [run.sampler for run in self.runs]
        return sample(samplers, params, problems, self.keys(stream), size)

    def keys(self, stream: int) -> jax.Array:
        """[R] keys, one per run."""
        return jnp.stack([jax.random.fold_in(jax.random.key(each.seed), stream) for each in self.options])

    def _together(self, step: Any, in_axes: Any = 0) -> Any:
        """A compiled step for all runs at once, with the compiler's options of a single step."""
        start = self.runs[0].start
        options = compiler_options(start.config, start.prm_config)
        return jax.jit(jax.vmap(step, in_axes=in_axes), compiler_options=options)

    def learn(self, step: int) -> list[Responses]:
        """One training step; the rollouts of every run."""
        rollout = self.one.rollout
        params = self.policy(self.state.policy, self.frozen.reference)
        places = range(self.asked, self.asked + rollout.prompts_per_step)
        self.asked += rollout.prompts_per_step
        problems = [stream.at(list(places)) for stream in self.streams]
        found = self.sample(params, problems, rollout.samples_per_prompt, 2 * step)
        batches = []
        for index, responses in enumerate(found):
            record = self.records[index]
            record["solve_rate"].append(round(float(responses.outcome.mean()), 4))
            rng = np.random.default_rng((self.options[index].seed, step, 7))
            observed = None
            if on_host(self.source):
                observed = self._observe(index, responses, params, int(rng.integers(1 << 30)))
                if observed.sampled:
                    record["completions"] = record.get("completions", 0) + observed.sampled
            if rollout.outcome_noise:
                wrong = rng.random(len(responses.texts)) < rollout.outcome_noise
                outcome = np.where(wrong, 1 - responses.outcome, responses.outcome).astype(np.float32)
                responses = dataclasses.replace(responses, outcome=outcome)
            keep = None if rollout.filter == "none" else passing_groups(responses, rollout)
            batches.append(_batch(responses, observed, keep))
        state, self.metrics, self.rewards = self.step(self.state, self.frozen, _stacked(batches))
        learned = np.array([batch.keep.any() for batch in batches])  # the loop makes no step without a row
        if not learned.all():
            state = jax.tree.map(lambda new, old: _chosen(learned, new, old), state, self.state)
        self.state = state
        return found

    def _observe(self, index: int, responses: Responses, params: Any, seed: int) -> Observed:
        """What a source on the host says of the responses of one run."""
        own = jax.tree.map(lambda x: x[index], params)
        run = self.runs[index]
        return observe(run.setup.source, responses, run.sampler, own, jax.random.key(seed))

    def evaluate(self, step: int) -> None:
        """Adds an evaluation to the records."""
        params = self.policy(self.state.policy, self.frozen.reference)
        problems = [run.start.task.eval[: self.one.eval.problems] for run in self.runs]
        found = self.sample(params, problems, 1, 1)
        scores = self._scores(params, found)
        for index, responses in enumerate(found):
            task, record = self.runs[index].start.task, self.records[index]
            measured = policy_metrics(task, responses)
            record["rollouts"].append(step * self.one.rollout.prompts_per_step * self.one.rollout.samples_per_prompt)
            record["sampled"].append(round(measured["accuracy"], 4))
            if "step_accuracy" in measured:
                record.setdefault("steps_right", []).append(round(measured["step_accuracy"], 4))
            self._look_on(index, responses)
            probe = None if scores is None else PRMProbe.build(task, responses)
            if probe is not None and scores is not None:
                own = scores[index][:, : probe.labels.shape[1]]
                record.setdefault("auc", []).append(round(probe.areas(own)["step_auc"], 4))
                threshold = self._threshold(index, probe, own)
                if threshold is not None:
                    record.setdefault("label_accuracy", []).append(round(label_accuracy(probe, own, threshold), 4))

    def _look_on(self, index: int, responses: Responses) -> None:
        """Adds the step AUC of the onlookers, of their scores or for a value model of its changes."""
        for name, prm in self.onlookers.items():
            probe = PRMProbe.build(self.runs[index].start.task, responses)
            assert probe is not None
            process = prm.observe(responses, self.runs[index].sampler, None, jax.random.key(0)).process
            changes = gives_probabilities(prm.models[0])
            own = _value_changes(process, responses) if changes else _step_values(process, responses)
            known = probe.areas(own[:, : probe.labels.shape[1]])["step_auc"]
            self.records[index].setdefault("onlookers", {}).setdefault(name, []).append(round(known, 4))

    def _threshold(self, index: int, probe: PRMProbe, scores: np.ndarray) -> float | None:
        """The threshold of an implicit PRM's labels (-inf before it has one), or that which outcomes give scores."""
        if isinstance(self.source, SavedPRM):
            return float(rl.outcome_threshold(scores, probe.step_mask, probe.responses.outcome)[0])
        if self.state.source.threshold is None:
            return None
        total, weight = np.asarray(self.state.source.threshold[index]).tolist()
        return total / weight if weight else -np.inf

    def _scores(self, params: Any, found: Sequence[Responses]) -> np.ndarray | None:
        """[R, B, S] step scores of a PRM on responses, changes of value for a saved one; None for other sources."""
        if isinstance(self.source, SavedPRM):
            return np.stack(
                [_value_changes(self._observe(index, one, params, 0).process, one) for index, one in enumerate(found)]
            )
        if not isinstance(self.source, ImplicitPRM):
            return None
        if self._score is None:
            self._score = jax.jit(jax.vmap(functools.partial(_step_scores, self.source.for_warm_up(1))))
        return np.asarray(self._score(self.state.source, params, self.frozen, _stacked([_batch(x) for x in found])))

    def warm_up(self) -> None:
        """The PRM learns from rollouts of the initial policy; see `prm_jax.prime.warm_up`."""
        options, setup = self.one, self.runs[0].setup
        if not is_warmed_up(options, setup.source):
            return
        size, batch = options.rollout.samples_per_prompt, options.prm.pretrain_batch
        count = options.prm.pretrain_rollouts // size
        tasks = [warm_up_task(each, run.start) for each, run in zip(self.options, self.runs, strict=True)]
        samplers = [dataclasses.replace(r.sampler, task=t) for r, t in zip(self.runs, tasks, strict=True)]
        seeds = [each.seed + 1_000_000 for each in self.options]
        streams = [PromptStream(task.train, seed) for task, seed in zip(tasks, seeds, strict=True)]
        params = self.policy(self.state.policy, self.frozen.reference)
        parts = []
        for part in range(0, count, 128):
            problems = [stream.at(list(range(part, part + 128))) for stream in streams]
            drawn = sample(samplers, params, problems, self.keys((1 << 20) + part), size)
            parts.append(_stacked([_batch(responses) for responses in drawn]))
        data = jax.tree.map(lambda *x: np.concatenate(x, 1)[:, : count * size], *parts)
        learn = dataclasses.replace(setup, source=setup.source.for_warm_up(1))
        step = self._together(make_source_step(learn))
        groups = batch // size
        for epoch in range(options.prm.pretrain_epochs):
            order = np.random.default_rng((options.seed, PRETRAIN_STREAM, epoch)).permutation(count)
            for first in range(0, count - groups + 1, groups):
                rows = (order[first : first + groups, None] * size + np.arange(size)).reshape(-1)
                self.state, _ = step(self.state, self.frozen, _regrouped(data, rows, size))
        if options.prm.replay_warm_up:
            store = self._together(make_keep_step(setup), in_axes=(0, 0, 0, None))
            for first in range(0, count * size, batch):
                rows = np.arange(first, first + batch)
                placed = _regrouped(data, rows, size)
                self.state = store(self.state, self.frozen, placed, jnp.asarray(first, jnp.int32))
        for record in self.records:
            record["warm_up_rollouts"] = count * size

    def save(self, folders: Sequence[pathlib.Path]) -> None:
        """Writes the PRM of every run as `prm_jax.prm.load` and `--prm.trained` read it."""
        from prm_jax import prm as prms

        for index, (run, folder) in enumerate(zip(self.runs, folders, strict=True)):
            own = jax.tree.map(lambda x, index=index: x[index], self.state.source)
            config = run.start.prm_config
            prms.save_implicit(
                folder, config, self.source.params(own, run.start.prm_base), config, run.start.prm_base,
                run.start.tokenizer, beta=self.one.prm.beta, overwrite=True,
            )  # fmt: skip


def label_accuracy(probe: PRMProbe, scores: np.ndarray, threshold: float) -> float:
    """Balanced accuracy of "wrong where the score is below the threshold"; 1 - f for a checker that flips a share f.

    The mean of the share of wrong steps below the threshold and the share of right steps that are not, over the steps
    up to and including the first wrong one; 1/2 where either kind is missing.
    """
    steps = np.arange(probe.labels.shape[1])
    seen = probe.step_mask & ((probe.first_error[:, None] < 0) | (steps <= probe.first_error[:, None]))
    wrong, right = seen & ~probe.labels, seen & probe.labels
    if not wrong.any() or not right.any():
        return 0.5
    return float((scores[wrong] < threshold).mean() + (scores[right] >= threshold).mean()) / 2


def sample(
    samplers: Sequence[Sampler], params: Any, problems: Sequence[Sequence[Problem]], keys: jax.Array, size: int
) -> list[Responses]:
    """Judged responses of R policies, each to its own P problems, `size` each."""
    one = samplers[0]
    prompts = [sampler.prompts(list(own)) for sampler, own in zip(samplers, problems, strict=True)]
    tokens = np.full((len(samplers), len(prompts[0]), one.max_prompt_tokens), one.tokenizer.pad_id or 0, np.int32)
    lengths = np.zeros(tokens.shape[:2], np.int32)
    for r, p in np.ndindex(*lengths.shape):
        tokens[r, p, : len(prompts[r][p])] = prompts[r][p]
        lengths[r, p] = len(prompts[r][p])
    ids = np.broadcast_to(np.arange(lengths.shape[1], dtype=np.int32), lengths.shape)
    stops = check_stop(one.task.stop, one.tokenizer.eos_ids, one.config.vocab_size)
    tables = stop_tables(*stops, one.config.vocab_size, one.tokenizer)
    spec = ResponseSpec(make_sampling(temperature=1.0), tables, size, one.max_new_tokens)
    drawn = _generate(one.config, params, PromptArrays(tokens, lengths, ids), keys, spec)
    written, mask, logp, finished = (np.asarray(x) for x in (drawn.tokens, drawn.mask, drawn.logp, drawn.finished))
    found = []
    for r, (sampler, own) in enumerate(zip(samplers, problems, strict=True)):
        parts = zip(written[r], logp[r], mask[r], finished[r], strict=True)
        responses = [Drawn(tokens[there], values[there], bool(end)) for tokens, values, there, end in parts]
        found.append(sampler.judge(list(own), prompts[r], responses))
    return found


@functools.partial(jax.jit, static_argnames="config")
def _generate(config: Any, params: Any, prompts: PromptArrays, keys: jax.Array, spec: ResponseSpec) -> Samples:
    return jax.vmap(lambda p, x, k: generate_arrays(config, p, x, k, spec))(params, prompts, keys)


def _step_scores(source: ImplicitPRM, state: Any, policy: Any, frozen: Frozen, rows: Batch) -> jax.Array:
    rewards = source.score(state, SourceBatch(rows, policy, frozen.reference, frozen.constants))
    return rl.step_rewards(rewards, rows.step_ids, num_steps=rows.mask.shape[1])[0]


def _composed(options: Options) -> Composed:
    start = load_start(options)
    rollout = options.rollout
    sampler = Sampler(start.task, start.tokenizer, start.config, rollout.max_prompt_tokens, rollout.max_new_tokens)
    return compose(options, start, start.params, sampler, None, Overrides())


def _step_values(process: np.ndarray, responses: Responses) -> np.ndarray:
    """[B, S] what stands on the tokens of each step; 0 where there is none."""
    here = responses.step_ids[:, :, None] == np.arange(responses.mask.shape[1])
    return np.asarray(np.where(here, process[:, :, None], 0.0).sum(1))


def _value_changes(process: np.ndarray, responses: Responses) -> np.ndarray:
    """[B, S] change of the value that each step makes; the first changes the mean value after a first step."""
    values = _step_values(process, responses)
    present = (responses.step_ids[:, :, None] == np.arange(values.shape[1])).any(1)
    first = values[present[:, 0], 0].mean() if present[:, 0].any() else 0.0
    before = np.concatenate([np.full((len(values), 1), first), values[:, :-1]], 1)
    return np.asarray(np.where(present, values - before, 0.0))


def _chosen(which: np.ndarray, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _batch(responses: Responses, observed: Any = None, keep: np.ndarray | None = None) -> Batch:
    whole = to_batch(
        responses, np.ones(len(responses.problems), bool) if keep is None else keep,
        process=None if observed is None else observed.process,
        initial_value=None if observed is None else observed.initial_value,
    )  # fmt: skip
    return dataclasses.replace(whole, start=0, behaviour_logp=None, version=None)


def _regrouped(data: Batch, rows: np.ndarray, size: int) -> Batch:
    """Some rows, whole groups of them, numbered from 0."""
    batch: Batch = jax.tree.map(lambda x: x[:, rows], data)
    ids: Any = np.broadcast_to(np.arange(len(rows), dtype=np.int32) // size, batch.group_ids.shape)
    return dataclasses.replace(batch, group_ids=ids)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.asarray(np.stack([np.asarray(each) for each in x])), *trees)
