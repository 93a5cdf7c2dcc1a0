"""Sampling in a thread: what may be old, what is kept in a checkpoint, and other devices."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from prm_jax.data.carry import CarryTask
from prm_jax.data.pipeline import PromptStream
from prm_jax.models import init_params
from prm_jax.models.loading import fresh_config
from prm_jax.models.sharding import make_mesh
from prm_jax.prime import train
from prm_jax.prime.background import BackgroundCollector
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.sampler import Sampler
from prm_jax.rollouts import SlotTuning
from prm_jax.rollouts.slot_source import SlotSource
from prm_jax.runs.metrics_log import read_metrics
from prm_jax.runs.stopping import InterruptedRun
from tests.compiled import token_logprobs

pytestmark = pytest.mark.heavy

OPTIONS = RolloutOptions(
    prompts_per_step=2, samples_per_prompt=4, max_new_tokens=12, max_prompt_tokens=8, filter="none", max_lag=1
)


@pytest.fixture(scope="module")
def task() -> CarryTask:
    return CarryTask(2, 3, num_train=64, num_eval=16)


@pytest.fixture(scope="module")
def sampler(task, run_options) -> Sampler:
    tokenizer = task.tokenizer()
    return Sampler(task, tokenizer, fresh_config(run_options.model, tokenizer.vocab_size), 8, 12)


@pytest.fixture(scope="module")
def weights(sampler):
    """Weights of successive versions."""
    first = jax.jit(init_params, static_argnums=0)(sampler.config, jax.random.key(0))
    return [jax.tree.map(lambda x, scale=1 + 0.3 * i: x * scale, first) for i in range(6)]


def collector_of(sampler, options=OPTIONS, mesh=None):
    source = SlotSource(
        sampler.config, sampler.tokenizer, sampler.task.stop, slots=8, columns=20, mesh=mesh,
        tuning=SlotTuning(steps_per_call=2, refill_share=1.0),
    )  # fmt: skip
    stream = PromptStream(sampler.task.train, 0)
    return BackgroundCollector(sampler, stream, options, jax.random.key(0), lambda params: params, engines=source)


def check_versions(sampler, weights, arrays):
    """Every token's log-probability is that of the weights of its version."""
    logp = [np.asarray(token_logprobs(sampler.config, w, arrays.tokens, arrays.mask)) for w in weights]
    for version in np.unique(arrays.version[arrays.mask]):
        own = arrays.mask & (arrays.version == version)
        np.testing.assert_allclose(arrays.behaviour_logp[own], logp[version][own], atol=1e-4)


def test_responses_are_at_most_max_lag_updates_old(sampler, weights):
    collector, lags = collector_of(sampler), []
    try:
        for step in range(5):
            found = collector.collect(weights[step], step)
            check_versions(sampler, weights, found.arrays)
            assert found.arrays.keep.all() and found.arrays.tokens.shape[0] == 8
            lags.append(found.metrics["rollout/max_lag"])
            prompts = sampler.task.train
            assert all(problem in prompts for problem in found.responses.problems)
    finally:
        collector.close()
    assert max(lags) <= 1 and collector.first == 10 and collector.sampled == 40
    stream = PromptStream(sampler.task.train, 0)
    assert collector.position()["prompts"]["cursor"] == 10 and len(stream.problems) == 64


def test_what_is_running_is_saved_and_continued(sampler, weights):
    first = collector_of(sampler, dataclasses.replace(OPTIONS, max_lag=2))
    try:
        first.collect(weights[0], 0)
        position = first.position()
    finally:
        first.close()
    saved = {int(number): responses for number, responses in position["responses"].items()}
    second = collector_of(sampler, dataclasses.replace(OPTIONS, max_lag=2))
    second.restore(position)
    assert second.position() == position
    try:
        found = second.collect(weights[1], 1)
    finally:
        second.close()
    check_versions(sampler, weights, found.arrays)
    tokens = second.saved
    for group, number in enumerate((2, 3)):
        for sample in range(4):
            if number in saved:
                row, one = group * 4 + sample, tokens[number][sample]
                drawn = found.arrays.tokens[row][found.arrays.mask[row]]
                np.testing.assert_array_equal(drawn[: len(one.tokens)], one.tokens)
    expected = [collector_of(sampler).stream.at([2])[0], collector_of(sampler).stream.at([3])[0]]
    assert found.responses.problems == expected


def test_other_devices_sample(sampler, weights):
    mesh = make_mesh(2, 1, 1)
    spare = jax.sharding.Mesh(
        np.array(jax.devices()[-2:]).reshape(2, 1, 1), mesh.axis_names, axis_types=mesh.axis_types
    )
    collector = collector_of(sampler, mesh=spare)
    try:
        for step in range(2):
            found = collector.collect(weights[step], step)
            check_versions(sampler, weights, found.arrays)
        placed = jax.tree.leaves(collector.engines.prepare(weights[1], collector._thread.engine.sampling)._packed)
        assert placed[0].devices() == set(jax.devices()[-2:])
    finally:
        collector.close()


def test_a_run_with_a_lag_stops_and_continues(run_options, tmp_path):
    options = dataclasses.replace(
        run_options, steps=3, rollout=dataclasses.replace(run_options.rollout, max_lag=1),
        prm=dataclasses.replace(run_options.prm, pretrain_rollouts=0),
    )  # fmt: skip

    def stop(event):
        if event.kind == "step" and event.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRun):
        train(options, tmp_path / "run", callbacks=[stop])
    train(options, tmp_path / "run", resume=True)
    steps = [record for record in read_metrics(tmp_path / "run") if "rollout/max_lag" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert all(record["rollout/max_lag"] <= 1 for record in steps)
    assert all(record["policy/mismatch_kl"] >= 0 for record in steps if "policy/loss" in record)


def test_a_failing_verifier_ends_the_run(sampler, weights):
    class Failing(CarryTask):
        def verify_many(self, problems, responses):
            raise RuntimeError("the judge is ill")

    collector = collector_of(dataclasses.replace(sampler, task=Failing(2, 3, num_train=64, num_eval=16)))
    try:
        with pytest.raises(RuntimeError, match="ill"):
            collector.collect(weights[0], 0)
    finally:
        collector.close()
