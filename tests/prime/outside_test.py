"""Parts of a run from outside: the examples, through the command line and the API, and functions that cannot work."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import cli, prime, rl
from prm_jax.errors import UserError
from prm_jax.prime.policy import make_policy_loss
from prm_jax.prime.shaping import make_reward
from prm_jax.resolve import resolve
from tests.prime.conftest import inputs_of, replaced

pytestmark = pytest.mark.heavy

REPO = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ("shaping", "advantage", "policy_loss", "source", "callback")
TINY = (
    "--steps 2 --sft.steps 2 --no-baseline --no-plots --eval.every 1 --eval.problems 2 --eval.prm-problems 0 "
    "--rollout.prompts-per-step 2 --rollout.samples-per-prompt 2 --rollout.filter none --sample-every 1"
).split()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short(name):
    assert len((REPO / "examples" / f"{name}.py").read_text().splitlines()) <= 25


def test_all_examples_train_through_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    words = [
        "--reward.source", "examples/source.py:Repetition", "--reward.shaping", "clip", "examples/shaping.py:fade",
        "--advantage.estimator", "examples/advantage.py:local", "--policy.loss", "examples/policy_loss.py:truncated",
        "--callbacks", "examples/callback.py:watch",
    ]  # fmt: skip
    code = cli.main(["train", "--preset", "smoke", "--run-dir", str(tmp_path / "run"), *TINY, *words])
    assert code == 0, capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["policy/loss"]) for record in records[1:])
    assert any("own/length_per_norm" in record for record in records) or records[1]["policy/grad_norm"] == 0
    assert "task       carry" in capsys.readouterr().out, "the task is introduced with an example"
    page = (tmp_path / "run" / "samples.html").read_text()
    assert page.count("<article>") >= 2 and "Step 2" in page


def test_the_shaping_fades(batch):
    fade = resolve(f"{REPO / 'examples' / 'shaping.py'}:fade", {}, "shaping")
    rewards = np.where(batch.mask, 1.0, 0.0).astype(np.float32)
    expected = rewards * 0.9 ** np.maximum(batch.step_ids, 0)
    np.testing.assert_allclose(fade(jnp.asarray(rewards), inputs_of(batch, rewards)), expected, rtol=1e-6)


def test_objects_from_outside_take_the_place_of_options(run_options, tmp_path):
    seen: list[str] = []

    def reward(inputs):
        seen.append("reward")
        return inputs.process + 0.01 * (inputs.logp - inputs.ref_logp)

    def advantage(rewards, inputs):
        seen.append("advantage")
        return rl.reinforce_advantages(rewards, inputs.outcome, inputs.counted)

    def policy_loss(logp, old_logp, advantages, inputs):
        seen.append("policy_loss")
        return rl.clipped_surrogate(logp, old_logp, advantages, inputs.counted)

    options = replaced(run_options, prm={"pretrain_rollouts": 0}, sft={"steps": 0}, eval={"prm_problems": 0})
    result = prime.train(
        dataclasses.replace(options, steps=1), tmp_path / "run", reward=reward, advantage=advantage,
        policy_loss=policy_loss, callbacks=[lambda event: seen.append(event.kind)],
    )  # fmt: skip
    assert {"reward", "advantage", "policy_loss", "start", "step", "evaluation", "end"} <= set(seen)
    assert result.policy.is_dir() and result.prm is not None and (result.prm / "config.json").is_file()
    assert result.summary["arms"]["prime"]["rollouts"] == 16


def wrong_shape(rewards, inputs):
    return rewards.sum(-1)


def on_the_host(rewards, inputs):
    return rewards * float(rewards.max())


def with_numpy(rewards, inputs):
    return np.asarray(rewards) * 2


def whole_numbers(rewards, inputs):
    return jnp.zeros(rewards.shape, jnp.int32)


def failing(rewards, inputs):
    return rewards[:, :3] + inputs.outcome[:, None] @ rewards


def too_few(rewards):
    return rewards


NOT_CALLABLE = 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_shape", r"returned an array of shape \[16\]; expected \[B, T\] = \[16, 17\]"),
        ("on_the_host", "uses the value of an array on the host"),
        ("with_numpy", "uses the value of an array on the host"),
        ("whole_numbers", "returned an array of int32; expected floating-point"),
        ("failing", "failed while it was traced"),
        ("too_few", "too_few"),
        ("NOT_CALLABLE", "is not callable"),
        ("no_such_function", "no_such_function"),
    ],
)
@pytest.mark.parametrize("option", ["estimator", "shaping"])
def test_functions_that_cannot_work_are_refused_before_anything_is_trained(
    run_options, tmp_path, name, message, option
):
    where = f"tests.prime.outside_test:{name}"
    changes = {"advantage": {"estimator": where}} if option == "estimator" else {"reward": {"shaping": (where,)}}
    with pytest.raises(UserError, match=message):
        prime.train(replaced(run_options, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": {"source": "implict"}}, "implicit"),
        ({"reward": {"shaping": ("clp",)}}, "clip"),
        ({"advantage": {"estimator": "rlo"}}, "rloo"),
        ({"policy": {"loss": "cliped"}}, "clipped"),
        ({"reward": {"source": "model"}}, "needs --reward.path"),
        ({"reward": {"path": ("x",)}}, "--reward.path is for --reward.source model or values"),
        ({"advantage": {"credit": "value"}}, "needs values of prefixes"),
        ({"reward": {"shaping": ("progress",)}}, "needs values of prefixes"),
        ({"advantage": {"estimator": "ppo", "credit": "step"}}, "has credit of its own"),
        ({"reward": {"source": "values", "shaping": ("clip",)}, "advantage": {"credit": "value"}}, "would change"),
        ({"eval": {"patience": 2}}, "--eval.patience needs --eval.keep-best"),
        ({"policy": {"learning_rate": float("inf")}}, "policy.learning-rate"),
    ],
)
def test_parts_that_do_not_exist_or_fit_are_named(run_options, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prime.train(replaced(run_options, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_none_is_refused(run_options, tmp_path):
    class Half:
        def score(self, state, batch):
            return batch.process

    with pytest.raises(UserError, match="Half without init, update, learns"):
        prime.train(replaced(run_options, sft={"steps": 0}), tmp_path / "run", source=Half())


def test_a_loss_that_is_no_loss_is_refused(run_options, tmp_path):
    def mean(logp, old_logp, advantages, inputs):
        return (logp * advantages).mean()

    with pytest.raises(UserError, match="expected rl.Loss"):
        prime.train(replaced(run_options, sft={"steps": 0}), tmp_path / "run", policy_loss=mean)


def test_built_in_names_resolve(options):
    assert callable(make_reward(dataclasses.replace(options.reward, shaping=("clip", "delta", "min"))))
    assert callable(make_policy_loss(options.policy))
