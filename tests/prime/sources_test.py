"""Sources of one's own, what their parts may return, warm-ups, schedules, and comparisons at equal cost."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import config_io, prime
from prm_jax.errors import UserError
from prm_jax.prime import start as start_module
from prm_jax.prime.checks import check_options
from prm_jax.prime.critic import Critic
from prm_jax.prime.sizes import optimizer_steps, warm_up_steps
from prm_jax.prime.sources import CriticSource, SourceBatch
from prm_jax.prime.start import load_start
from prm_jax.prime.training import BASELINE
from prm_jax.runs.learner import Learner, make_optimizer
from tests.prime.conftest import make_batch, replaced

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def short(run_options) -> prime.Options:
    """Two steps without a warm start."""
    options = replaced(
        run_options, sft={"steps": 0}, prm={"pretrain_rollouts": 0}, eval={"problems": 4, "prm_problems": 0}
    )
    return dataclasses.replace(options, steps=2)


def records(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A learned reward per token of the vocabulary, moved towards the outcomes of the responses that contain it."""

    vocab: int = 18
    rate: float = 0.5
    learns: bool = True

    def init(self, key: jax.Array) -> Any:
        return {"table": jnp.zeros(self.vocab), "batches": 0}

    def score(self, state: Any, batch: SourceBatch) -> jax.Array:
        return state["table"][batch.tokens]

    def update(self, state: Any, batch: SourceBatch) -> tuple[Any, dict]:
        hit = jnp.where(batch.mask & batch.judged[:, None], batch.outcome[:, None] - 0.5, 0.0)
        table = state["table"].at[batch.tokens].add(self.rate * hit)
        return {"table": table, "batches": state["batches"] + 1}, {"prm/table": jnp.abs(table).max()}


def test_a_learning_source_of_ones_own_needs_no_base_class_and_resumes(short, tmp_path):
    whole = prime.train(short, tmp_path / "whole", source=Tokens())
    assert whole.prm is None and records(tmp_path / "whole")[-1]["prm/table"] > 0
    assert config_io.load_yaml(tmp_path / "whole" / "config.yaml", short).reward.source.endswith(":Tokens")
    prime.train(dataclasses.replace(short, steps=1), tmp_path / "run", source=Tokens())
    prime.train(short, tmp_path / "run", source=Tokens(), resume=True)
    first, second = (records(tmp_path / name)[-1] for name in ("whole", "run"))
    for name in ("prm/table", "prm/reward_abs", "policy/grad_norm", "advantage/abs"):
        assert first[name] == second[name], name


class Wrong(Tokens):
    """A source whose parts are replaced by tests."""

    def __init__(self, **parts: Any) -> None:
        for name, part in parts.items():
            object.__setattr__(self, name, part)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Tokens, "is the class Tokens; pass an object"),
        (Wrong(score=lambda state, batch: batch.outcome), r"score returned an array of shape \[16\]; expected"),
        (Wrong(score=lambda state, batch: batch.tokens), "score returned an array of int32"),
        (Wrong(score=lambda state, batch: 1.0), "score returned a float"),
        (Wrong(score=lambda state, batch: float(batch.outcome[0]) * batch.mask), "uses the value of an array on the"),
        (Wrong(score=lambda state, batch: batch.nothing), "failed while it was traced: AttributeError"),
        (Wrong(update=lambda state, batch: state), r"update returned a dict; expected \(new state, metrics"),
        (Wrong(update=lambda state, batch: ({"table": state["table"]}, {})), "found nothing in place of .*batches"),
        (Wrong(update=lambda state, batch: (state, {"prm/x": batch.outcome})), r"'prm/x' has shape \[16\]"),
        (Wrong(init=lambda key: {"table": "zeros"}), "init returned a state of str"),
        (Wrong(init=lambda key: 1 / 0), "init failed while it was traced: ZeroDivisionError"),
        (Wrong(on_host=True), "sets on_host without a method observe"),
    ],
)
def test_parts_of_a_source_that_cannot_work_are_named_before_anything_is_written(short, tmp_path, source, message):
    with pytest.raises(UserError, match=message):
        prime.train(short, tmp_path / "run", source=source)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (lambda responses: prime.Observed(np.zeros(3, np.float32)), r"observe returned an array of shape \[3\]"),
        (lambda responses: np.zeros(responses.mask.shape), "observe returned a ndarray; expected prime.Observed"),
        (
            lambda responses: prime.Observed(np.zeros(responses.mask.shape), np.zeros(2)),
            r"initial_value has shape \[2\]; expected \[B\] = \[16\]",
        ),
    ],
)
def test_rewards_from_the_host_of_another_shape_are_refused_by_name(short, tmp_path, observed, message):
    class Host(prime.Source):
        on_host = True

        def observe(self, responses, sampler, params, key):
            return observed(responses)

    with pytest.raises(UserError, match=f"Host: .*{message}|Host: {message}"):
        prime.train(short, tmp_path / "run", source=Host())
    assert not (tmp_path / "run").exists()


def test_values_as_an_object_may_be_credited_as_values_and_the_baseline_gets_as_many_rollouts(short, tmp_path):
    """The completions of prefixes are charged to the run, so that its baseline samples as many responses."""
    options = replaced(short, advantage={"credit": "value"}, sft={"steps": 20})
    options = dataclasses.replace(options, baseline=True, steps=1)
    result = prime.train(options, tmp_path / "run", source=prime.PrefixValues(rollouts=2, batch_size=8))
    main, alone = (result.summary["arms"][name]["rollouts"] for name in ("prime", BASELINE))
    assert main >= 32 and main - 16 < alone <= main
    assert "value prefixes" in (tmp_path / "run" / "report.md").read_text()


def test_outcome_only_training_refuses_a_source(short, tmp_path):
    with pytest.raises(UserError, match="process-coef 0"):
        prime.train(replaced(short, advantage={"process_coef": 0.0}), tmp_path / "run", source=Tokens())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rates_decay_over_warm_up_and_run(run_options, schedule, monkeypatch):
    options = replaced(
        run_options, prm={"schedule": schedule, "pretrain_rollouts": 64, "epochs": 2}, critic={"schedule": schedule}
    )
    totals = []
    monkeypatch.setattr(start_module, "make_optimizer", lambda *_, total_steps, **__: totals.append(total_steps))
    start = load_start(options)
    start.prm_learner(options)
    start.critic_learner(options)
    start.critic_learner(options, warm_up=True)
    start.policy_learner(options)
    assert warm_up_steps(options) == 4
    assert totals == [4 + 4 * 2, 4, 4 + 4, 4]
    assert optimizer_steps(replaced(options, prm={"pretrain_rollouts": 0}), 2, 1, warm_up=True) == 8


def test_a_critic_warms_up_in_one_step_per_batch_whatever_the_policys_minibatches(short, tmp_path):
    options = replaced(
        short, reward={"source": "critic"}, advantage={"credit": "value"}, policy={"minibatches": 4, "epochs": 2},
        prm={"pretrain_rollouts": 16, "pretrain_batch": 4, "pretrain_epochs": 1},
    )  # fmt: skip
    options = dataclasses.replace(options, baseline=True, steps=1)
    result = prime.train(options, tmp_path / "run")
    phase = [r for r in records(tmp_path / "run" / "phases" / "prm_warm_up") if "prm/loss" in r]
    assert len(phase) == 4 and all(np.isfinite(r["prm/loss"]) for r in phase)
    main, alone = (result.summary["arms"][name]["rollouts"] for name in ("prime", BASELINE))
    assert main == alone == 32
    with pytest.raises(UserError, match="policy.microbatches 3"):
        check_options(replaced(options, policy={"microbatches": 3, "minibatches": 1}))


def test_a_critic_learns_the_value_of_the_whole_response_too(options, tiny_config, tiny_params):
    """The value after the last token is the one that the last step is credited with."""
    batch = make_batch(seed=3)
    tokens = batch.tokens.copy()
    last = batch.mask.shape[1] - 1 - batch.mask[:, ::-1].argmax(axis=1)
    tokens[np.arange(16), last] = np.where(batch.outcome > 0.5, 5, 6)  # only the last token tells
    batch = jax.tree.map(jnp.asarray, dataclasses.replace(batch, tokens=tokens))
    critic = Critic(Learner(tiny_config, make_optimizer(1e-2)), options.critic, options.policy, 1)
    source = CriticSource(critic, tiny_params)
    update = jax.jit(lambda state: source.update(state, SourceBatch(batch, None, tiny_params)))
    state = source.init(jax.random.key(0))
    for _ in range(80):
        state, _ = update(state)
    values = np.asarray(source.score(state, SourceBatch(batch, None, tiny_params)))[np.arange(16), last]
    assert values[batch.outcome > 0.5].min() > values[batch.outcome < 0.5].max() + 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval": {"keep_best": "eval/greedy_acuracy"}}, "did you mean 'eval/greedy_accuracy'"),
        ({"eval": {"keep_best": "eval/greedy_accuracy", "greedy": False}}, "eval/sampled_accuracy"),
        ({"reward": {"shaping": ("confidence",), "confidence_pattern": "(["}}, "is not a regular expression"),
        ({"reward": {"shaping": ("confidence",), "confidence_pattern": "x"}}, "has 0 groups; expected 1"),
    ],
)
def test_options_that_would_fail_late_are_refused_early(run_options, changes, message):
    with pytest.raises(UserError, match=message):
        check_options(replaced(run_options, **changes))

