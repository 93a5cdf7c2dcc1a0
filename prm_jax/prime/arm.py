"""The PRIME loop of one run; killed and resumed, it ends in the same bits as if it had never stopped."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prm_jax.data.pipeline import PromptStream
from prm_jax.errors import UserError
from prm_jax.models import init_value_head
from prm_jax.models.sharding import rows_over, shard_batch, shard_params, shardings_for
from prm_jax.prime.collect import (
    ADAPTER_STREAM,
    EVAL_STREAM,
    PRETRAIN_STREAM,
    Collector,
    Responses,
    Sampler,
)
from prm_jax.prime.evaluate import PRMProbe, make_step_scorer, policy_metrics, sample_in_batches
from prm_jax.prime.options import TrainOptions
from prm_jax.prime.start import Start, make_setup
from prm_jax.prime.step import (
    Frozen,
    PrimeBatch,
    PrimeSetup,
    PrimeState,
    even_ways,
    init_state,
    make_prime_step,
    make_prm_step,
)
from prm_jax.runs.checkpoint import Checkpointer
from prm_jax.runs.integrity import fingerprint
from prm_jax.runs.interrupts import Interrupts
from prm_jax.runs.learner import Params
from prm_jax.runs.run_dir import RunDir, Sample
from prm_jax.runs.stopping import DivergedRun, InterruptedRun

PrimeStep = Callable[[PrimeState, Frozen, PrimeBatch], tuple[PrimeState, dict[str, jax.Array], jax.Array]]
Report = Callable[[int, dict[str, float]], None]
"""Called with (policy steps done, metrics) after every step and evaluation."""


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """How a run ended.

    Attributes:
      before, after: evaluation metrics (``eval/...``, ``prm_eval/...``) at step 0 and at the end.
      pretrained: the PRM's metrics after its warm-up, {} without one.
      rollouts: responses sampled for training.
      policy: the policy's whole parameters.
      prm: the PRM's whole parameters, or None.
    """

    before: dict[str, float]
    after: dict[str, float]
    pretrained: dict[str, float]
    rollouts: int
    policy: Params
    prm: Params | None


def _stop_if_asked(interrupts: Interrupts) -> None:
    """Leaves what is computed anew on resume, where there is nothing to save yet."""
    if interrupts.should_stop():
        raise InterruptedRun(
            f"stopped by {interrupts.signal_name} before the first step; --resume starts over from here"
        )


def _abstract(shape: PrimeState, shardings: PrimeState | None) -> PrimeState:
    """The shape of a state with its places, so that what a checkpoint holds is the only state in memory."""
    if shardings is None:
        return shape
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, shardings)


class Arm:
    """One run of the PRIME loop from given weights; outcome-only training is the same with no PRM.

    Args:
      options: of the run.
      start: task, tokenizer, architectures.
      base: the policy's start; also the reference.
      sampler: samples and judges.
      probe: fixed responses with exact step labels that test the PRM, or None.
      run: the run directory, already open.
      mesh: devices over which parameters and rows lie; None for one device.
      on_start: called with the steps that lie behind before the first is done.
      report: gets metrics as they come.
      say: gets one-line messages.
    """

    def __init__(
        self,
        options: TrainOptions,
        start: Start,
        base: Params,
        sampler: Sampler,
        probe: PRMProbe | None,
        run: RunDir,
        *,
        mesh: Mesh | None = None,
        on_start: Callable[[int], None] = lambda done: None,
        report: Report = lambda step, metrics: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.options, self.start, self.sampler, self.run = options, start, sampler, run
        self.mesh = mesh
        ways = 1 if mesh is None else rows_over(mesh)
        self.setup: PrimeSetup = dataclasses.replace(make_setup(options, start), ways=even_ways(options, ways))
        base = self._place(base)
        self.frozen = Frozen(base, base if start.prm_params is None else self._place(start.prm_params))
        self.probe = probe if self.setup.prm is not None else None
        self.key = jax.random.key(options.seed)
        stream = PromptStream(start.task.train, options.seed)
        checker = options.advantage.process == "checker" and options.advantage.process_coef != 0
        self.collector = Collector(sampler, stream, options.rollout, self.key, checker)
        self._on_start, self._report, self._say = on_start, report, say
        self.eval_problems = sampler.fitting(start.task.eval[: options.eval.problems])
        if not self.eval_problems:
            raise UserError(
                f"every evaluation prompt is longer than --rollout.max-prompt-tokens {sampler.max_prompt_tokens}"
            )
        self._score_steps = None
        if self.probe is not None:
            of_policy = options.prm.reference == "policy"
            self._score_steps = make_step_scorer(
                start.prm_config, start.config if of_policy else start.prm_config,
                beta=options.prm.beta, include_last=options.advantage.include_last,
            )  # fmt: skip
        digests = json.dumps(fingerprint(self.frozen), sort_keys=True).encode()
        self._frozen_digest = hashlib.blake2b(digests, digest_size=16).hexdigest()
        self._bad_steps = self._empty_steps = 0
        self._before: dict[str, float] = {}
        self._pretrained: dict[str, float] = {}
        self._after: dict[str, float] = {}

    def _place(self, tree: Any) -> Any:
        """Parameters, or a state that holds them, on the mesh."""
        return tree if self.mesh is None else shard_params(tree, self.mesh)

    # ---------------------------------------------------------------------------------------- run

    def train(self, interrupts: Interrupts, *, resume: bool) -> ArmResult:
        """Runs to the last step.

        Raises:
          InterruptedRun: a signal came; the state is saved.
          DivergedRun: see there; the last good state is saved.
        """
        keep = self.options.keep_checkpoints
        with Checkpointer(self.run.path / "checkpoints", max_to_keep=keep) as checkpoints:
            shape, done = jax.eval_shape(self._initial_state), 0
            shardings = None if self.mesh is None else shardings_for(shape, self.mesh)
            step_fn = make_prime_step(self.setup, shardings=shardings)
            restored = checkpoints.restore(_abstract(shape, shardings)) if resume else None
            if resume and restored is None:
                self.run.rewind(-1)
            if restored is not None:
                state, done = restored.state, restored.step
                self.run.rewind(done)
                self._take_up(restored.metadata)
                self._on_start(done)
                self._say(f"resumed at step {done}")
            else:
                self._on_start(0)
                state = self._pretrain(self._place(self._initial_state()), shardings, interrupts)
                self._before = self._after = self._evaluate(state)
                self._report(0, self._before)
                self._save(checkpoints, state, 0)
            while done < self.options.steps:
                state, metrics = self._step(step_fn, state, done)
                done += 1
                last = done == self.options.steps
                every = self.options.eval.every
                if last or (every and done % every == 0):
                    self._after = self._evaluate(state)
                    metrics |= self._after
                self._report(done, metrics)
                stop = interrupts.should_stop()
                failed = self._stop_reason()
                if stop or failed or last or done % self.options.save_every == 0:
                    self._save(checkpoints, state, done)
                if failed:
                    checkpoints.wait()
                    raise DivergedRun(failed)
                if stop and not last:
                    checkpoints.wait()
                    raise InterruptedRun(f"stopped by {interrupts.signal_name} after step {done}")
        return ArmResult(
            before=self._before,
            after=self._after,
            pretrained=self._pretrained,
            rollouts=self.collector.sampled,
            policy=self._policy_params(state),
            prm=self._prm_params(state),
        )

    def _initial_state(self) -> PrimeState:
        key = jax.random.fold_in(self.key, ADAPTER_STREAM)
        head = None
        if self.setup.critic is not None:
            head = init_value_head(self.setup.critic.config, jax.random.fold_in(key, 1))
        return init_state(self.setup, self.frozen, head, key)

    def _save(self, checkpoints: Checkpointer, state: PrimeState, done: int) -> None:
        metadata = {
            "collector": self.collector.state(),
            "frozen": self._frozen_digest,
            "bad_steps": self._bad_steps,
            "empty_steps": self._empty_steps,
            "before": self._before,
            "after": self._after,
            "pretrained": self._pretrained,
        }
        self.run.sync()
        checkpoints.save(done, state, metadata)

    def _take_up(self, metadata: dict[str, Any]) -> None:
        if metadata["frozen"] != self._frozen_digest:
            raise UserError(
                "the weights that this run starts from have changed since its checkpoint was written (--model.path or "
                "--prm.path): put the old ones back, or start a new run"
            )
        self.collector.restore(metadata["collector"])
        self._bad_steps, self._empty_steps = metadata["bad_steps"], metadata["empty_steps"]
        self._before, self._after = metadata["before"], metadata["after"]
        self._pretrained = metadata["pretrained"]

    def _policy_params(self, state: PrimeState) -> Params:
        return self.setup.policy.params(state.policy, self.frozen.reference)

    def _prm_params(self, state: PrimeState) -> Params | None:
        if self.setup.prm is None:
            return None
        return self.setup.prm.params(state.prm, self.frozen.prm_reference)

    # --------------------------------------------------------------------------------------- steps

    def _step(self, step_fn: PrimeStep, state: PrimeState, done: int) -> tuple[PrimeState, dict[str, float]]:
        """Collects and learns; `done` steps lie behind.  Returns (state, metrics)."""
        begun = time.monotonic()
        batch, responses, metrics = self.collector.collect(self._policy_params(state), done, on_wait=self._say)
        generated = time.monotonic()
        rewards: Any = None
        if not np.asarray(batch.keep).any():
            # An optimiser step without a gradient would still move the weights by their momentum.
            self._empty_steps += 1
            self._say(f"step {done + 1}: no prompt passes the solve-rate filter; nothing is learned")
        else:
            self._empty_steps = 0
            state, device_metrics, rewards = step_fn(state, self.frozen, self._split(batch))
            found = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
            metrics |= found
            self._check_finite(found, batch, done + 1)
        ended = time.monotonic()
        metrics |= {
            "rollouts": float(self.collector.sampled),
            "time/rollout_seconds": generated - begun,
            "time/update_seconds": ended - generated,
            "time/step_seconds": ended - begun,
        }
        if done % self.options.sample_every == 0:
            self._write_samples(done + 1, responses, rewards)
        return state, metrics

    def _split(self, batch: PrimeBatch) -> PrimeBatch:
        return batch if self.mesh is None else shard_batch(batch, self.mesh)

    def _check_finite(self, metrics: dict[str, float], batch: PrimeBatch, step: int) -> None:
        """Counts skipped updates in a row and keeps the batch that caused one for inspection."""
        skipped = sorted(name for name, value in metrics.items() if name.endswith("/skipped") and value)
        if not skipped:
            self._bad_steps = 0
            return
        self._bad_steps += 1
        folder = self.run.path / "bad_steps"
        folder.mkdir(exist_ok=True)
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in fields.items() if value is not None}
        np.savez_compressed(folder / f"step_{step}.npz", **arrays)
        names = ", ".join(name.removesuffix("/skipped") for name in skipped)
        self._say(f"step {step}: non-finite gradient in {names}; not applied, batch kept in {folder.name}/")

    def _stop_reason(self) -> str:
        if self._bad_steps >= self.options.max_bad_steps:
            return (
                f"{self._bad_steps} steps in a row had a non-finite gradient and were skipped; their batches are in "
                f"{self.run.path / 'bad_steps'}. Lower the learning rates or raise --max-bad-steps"
            )
        if self._empty_steps >= self.options.max_empty_steps:
            low, high = self.options.rollout.solve_rate_low, self.options.rollout.solve_rate_high
            return (
                f"{self._empty_steps} steps in a row had no prompt with a solve rate in [{low:g}, {high:g}]: the task "
                "is too hard or too easy for the policy; change the task or the bounds"
            )
        return ""

    def _write_samples(self, step: int, responses: Responses, rewards: jax.Array | None) -> None:
        """Two prompts' worth of samples as text, each step with its process reward (summed over its tokens)."""
        size = responses.samples_per_prompt
        dense = None if rewards is None or self.setup.prm is None else np.asarray(jax.device_get(rewards))
        samples = []
        for row in range(min(2 * size, len(responses.texts))):
            text, ids = responses.texts[row], responses.step_ids[row]
            steps = []
            if dense is not None:
                spans = self.start.task.splitter(text)
                steps = [(text[a:b], float(dense[row][ids == index].sum())) for index, (a, b) in enumerate(spans)]
            answer = responses.problems[row // size].answer
            outcome = float(responses.outcome[row])
            samples.append(Sample(self._prompt_text(responses, row), text, outcome, steps, {"answer": answer}))
        self.run.log_samples(step, samples)

    def _prompt_text(self, responses: Responses, row: int) -> str:
        prompt = responses.problems[row // responses.samples_per_prompt].prompt
        return (
            prompt
            if isinstance(prompt, str)
            else self.sampler.tokenizer.decode(
                self.sampler.encode(responses.problems[row // responses.samples_per_prompt])
            )
        )

    # ---------------------------------------------------------------------------------- PRM warm-up

    def _pretrain(self, state: PrimeState, shardings: PrimeState | None, interrupts: Interrupts) -> PrimeState:
        """Trains the PRM on rollouts of the initial policy by their outcomes; no step label is ever used."""
        options, size = self.options.prm, self.options.rollout.samples_per_prompt
        if self.setup.prm is None or not options.pretrain_rollouts:
            return state
        data, prompts = self._pretrain_rollouts(-(-options.pretrain_rollouts // size), interrupts)
        plain = dataclasses.replace(options, update="after", minibatches=1, epochs=1)
        batch_prompts = max(1, options.pretrain_batch // size)
        ways = self.setup.ways if batch_prompts % (self.setup.ways * options.microbatches) == 0 else 1
        setup = dataclasses.replace(self.setup, options=dataclasses.replace(self.options, prm=plain), ways=ways)
        step_fn = make_prm_step(setup, shardings=shardings)
        for epoch in range(options.pretrain_epochs):
            order = np.random.default_rng((self.options.seed, PRETRAIN_STREAM, epoch)).permutation(prompts)
            losses = []
            for index in range(max(1, prompts // batch_prompts)):
                chosen = order[index * batch_prompts : (index + 1) * batch_prompts]
                rows = (chosen[:, None] * size + np.arange(size)).reshape(-1)
                batch = jax.tree.map(lambda x, rows=rows: x[rows], data)
                batch = dataclasses.replace(batch, group_ids=np.repeat(np.arange(len(chosen), dtype=np.int32), size))
                state, metrics = step_fn(state, self.frozen, self._split(batch))
                losses.append(metrics["prm/loss"])
                _stop_if_asked(interrupts)
            loss = float(np.mean(jax.device_get(losses)))
            self._say(f"PRM warm-up: epoch {epoch + 1} of {options.pretrain_epochs}, loss {loss:.3f}")
            if not np.isfinite(loss):
                raise DivergedRun("the PRM's warm-up has a loss that is not finite; lower --prm.learning-rate")
        self._pretrained = self._probe_prm(state)
        return state

    def _pretrain_rollouts(self, prompts: int, interrupts: Interrupts) -> tuple[PrimeBatch, int]:
        """(rows of the initial policy's responses to `prompts` prompts, their number).

        The prompts come in an order of their own, so that runs with and without a warm-up see the same ones later.
        """
        size = self.options.rollout.samples_per_prompt
        stream = PromptStream(self.start.task.train, (self.options.seed + PRETRAIN_STREAM) % 2**32)
        key = jax.random.fold_in(self.key, PRETRAIN_STREAM)
        options = dataclasses.replace(
            self.options.rollout,
            filter="none",
            prompts_per_step=min(prompts, max(1, self.options.eval.batch_size // size)),
        )
        collector = Collector(self.sampler, stream, options, key)
        groups: list[PrimeBatch] = []
        for index in range(-(-prompts // options.prompts_per_step)):
            groups.append(collector.collect(self.frozen.reference, index)[0])
            self._say(f"PRM warm-up: {min(collector.sampled, prompts * size)} of {prompts * size} rollouts")
            _stop_if_asked(interrupts)
        self.collector.sampled += collector.sampled
        start = min(group.start for group in groups)
        groups = [dataclasses.replace(group, start=start) for group in groups]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: prompts * size], *groups), prompts

    # ----------------------------------------------------------------------------------- evaluation

    def _evaluate(self, state: PrimeState) -> dict[str, float]:
        options, params = self.options.eval, self._policy_params(state)
        key = jax.random.fold_in(self.key, EVAL_STREAM)  # the same draws at every evaluation
        metrics: dict[str, float] = {"rollouts": float(self.collector.sampled)}
        modes = [("greedy", 0.0)] * options.greedy + [("sampled", self.options.rollout.temperature)] * options.sampled
        for name, temperature in modes:
            responses = sample_in_batches(
                self.sampler, params, self.eval_problems, key, batch_size=options.batch_size, temperature=temperature
            )
            found = policy_metrics(self.start.task, responses)
            metrics |= {f"eval/{name}_{metric}": value for metric, value in found.items()}
        return metrics | self._probe_prm(state)

    def _probe_prm(self, state: PrimeState) -> dict[str, float]:
        if self.probe is None or self._score_steps is None:
            return {}
        responses, size = self.probe.responses, self.options.eval.batch_size
        width = self.probe.labels.shape[1]
        prm, parts = self._prm_params(state), []
        of_policy = self.options.prm.reference == "policy"
        reference = self._policy_params(state) if of_policy else self.frozen.prm_reference
        for start in range(0, len(responses.texts), size):
            rows = slice(start, start + size)
            arrays = (responses.tokens[rows], responses.mask[rows], responses.step_ids[rows])
            scores = self._score_steps(prm, reference, *map(jnp.asarray, arrays), width)
            parts.append(np.asarray(scores))
        found = self.probe.evaluate(np.concatenate(parts))
        return {f"prm_eval/{name}": value for name, value in found.items()}
