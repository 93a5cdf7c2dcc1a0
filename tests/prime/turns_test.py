"""Responses in turns in a run: answers are read and not learned, failures are masked, resuming is exact."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prm_jax import prime
from prm_jax.data import load_task
from prm_jax.data.environment_task import EnvironmentTask
from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer, init_params
from prm_jax.prime.collect import to_batch
from prm_jax.prime.engines import sampling_parts
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.start import load_start
from prm_jax.prime.turns import make_turns
from prm_jax.rollouts import Feedback
from prm_jax.rollouts.forced_text import text_spans
from prm_jax.rollouts.turn_options import TurnOptions
from tests.prime.conftest import replaced


@pytest.fixture(scope="module")
def options(run_options) -> prime.Options:
    """Two steps on questions that need look-ups, after a short warm start."""
    made = replaced(
        run_options, sft={"steps": 30}, prm={"pretrain_rollouts": 0}, eval={"problems": 4, "prm_problems": 0},
        task={"name": "lookup", "options": {"entities": "4", "relations": "2", "hops": "1", "num_eval": "8"}},
        rollout={"filter": "none", "max_new_tokens": 24, "max_prompt_tokens": 12, "outcome_noise": 0.3},
        advantage={"credit": "step"},
    )  # fmt: skip
    return dataclasses.replace(made, steps=2)


def sampler_of(options, task=None):
    start = load_start(options) if task is None else load_start(options, task)
    rollout = options.rollout
    params = jax.jit(init_params, static_argnums=0)(start.config, jax.random.key(0))
    return Sampler(
        start.task, start.tokenizer, start.config, rollout.max_prompt_tokens, rollout.max_new_tokens,
        *sampling_parts(options, start, None),
    ), params  # fmt: skip


def test_answers_are_holes_in_the_mask(options):
    sampler, params = sampler_of(options)
    problems = [sampler.task.train[index] for index in range(3)]
    responses = sampler.sample(params, problems, jax.random.key(1), samples_per_prompt=4)
    forced = responses.mask & ~responses.sampled
    assert forced.any() and responses.usable.all()
    assert (responses.step_ids[forced] == -1).all() and (responses.behaviour_logp[forced] == 0).all()
    assert (responses.behaviour_logp[responses.sampled] < 0).all()
    batch = to_batch(responses, np.ones(3, bool))
    np.testing.assert_array_equal(batch.mask, responses.sampled)
    for row, text in enumerate(responses.texts):
        own = responses.mask[row]
        spans = text_spans(responses.tokens[row][own], responses.sampled[row][own], sampler.tokenizer)
        assert all(text[a:b].startswith(("?", "=")) for a, b in spans)
        problem = problems[row // 4]
        assert sampler.task.verify(problem, text) == responses.outcome[row]
    metrics = sampler.turns.metrics()
    assert metrics["rollout/actions"] > 0 and metrics["rollout/lost_episodes"] == 0.0


class _Moody:
    """Fails on the first action of odd seeds."""

    def reset(self, seed):
        self.seed, self.count = seed, 0
        return "A.p?\n"

    def step(self, action):
        self.count += 1
        if self.seed % 2 and self.count == 1:
            raise RuntimeError("lost its mind")
        return Feedback("=A\n", done=self.count == 3)


def test_a_failing_environment_loses_its_responses_only(options):
    alphabet = load_task("lookup").alphabet
    task = EnvironmentTask(_Moody, num_train=8, num_eval=2, alphabet=alphabet)
    sampler, params = sampler_of(options, task)
    problems = [task.train[index] for index in range(6)]
    responses = sampler.sample(params, problems, jax.random.key(1), samples_per_prompt=6)
    odd = np.repeat([int(problem.answer) % 2 for problem in problems], 6).astype(bool)
    assert responses.usable[~odd].all() and not responses.usable[odd].all()
    assert sampler.turns.metrics()["rollout/lost_episodes"] > 0


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits(options, tmp_path):
    whole = prime.train(options, tmp_path / "whole")
    prime.train(dataclasses.replace(options, steps=1), tmp_path / "parts")
    parts = prime.train(options, tmp_path / "parts", resume=True)
    for name in ("model.safetensors",):
        assert (whole.policy / name).read_bytes() == (parts.policy / name).read_bytes()
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "rollout/actions" in record]
    assert len(steps) == 2 and all(record["rollout/actions"] > 0 for record in steps)
    samples = [json.loads(line) for line in (tmp_path / "whole" / "samples.jsonl").read_text().splitlines()]
    assert any(sample["forced"] for sample in samples)
    assert "<mark>" in (tmp_path / "whole" / "samples.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"engine": "generate"}}, "expected slots and 0"),
        ({"rollout": {"max_lag": 1}}, "expected slots and 0"),
        ({"rollout": {"turns": TurnOptions(tool="python")}}, "leave --rollout.turns.tool out"),
        ({"rollout": {"turns": TurnOptions(max_turns=0)}}, "max-turns"),
    ],
)
def test_what_does_not_fit_is_refused(options, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prime.train(replaced(options, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_values_of_prefixes_are_refused(options):
    sampler, params = sampler_of(options)
    with pytest.raises(UserError, match="in turns"):
        sampler.complete(params, [sampler.task.train[0]], [(3,)], jax.random.key(0), samples_per_prefix=2)


def test_a_task_without_environments_has_no_turns():
    task, text = load_task("carry", num_eval=4), CharTokenizer("</>calresut")
    assert make_turns(TurnOptions(), task, text, 8) is None
    tool = make_turns(TurnOptions(tool="calculator"), task, text, 8)
    assert tool is not None and tool.stop[-1] == "</calc>"
    with pytest.raises(UserError, match=r"marker '<python>'; set --rollout.turns.markers: the character 'p'"):
        make_turns(TurnOptions(tool="python"), task, text, 8)
