"""Whole runs: files left behind, kill -9 and resume to the same bits, signals, and errors a user can make."""

import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import load_weights
from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.models.sharding import make_mesh
from prm_jax.prime import loop as loop_module
from prm_jax.prime import training, warm_start, warm_up
from prm_jax.prime.options import TaskOptions
from prm_jax.prime.start import load_start
from prm_jax.prime.training import BASELINE, train
from prm_jax.prime.warm_start import demonstration_batches
from prm_jax.runs.stopping import DivergedRun, InterruptedRun
from tests.prime.conftest import replaced

pytestmark = pytest.mark.heavy

# The child kills itself after the update of its third step, while the checkpoint of the second may still be written.
_CHILD = """
import os, pickle, signal, sys
from prm_jax import prime

def kill(event):
    if event.kind == "step" and event.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)

options, path = pickle.load(open(sys.argv[1], "rb"))
prime.train(options, path, callbacks=[kill])
"""


def terminate_at(step: int):
    """A callback that sends SIGTERM once `step` steps are complete."""

    def callback(event):
        if event.kind == "step" and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return callback


def final_weights(path: pathlib.Path) -> list[np.ndarray]:
    return [np.asarray(x) for name in ("policy", "prm") for x in jax.tree.leaves(load_weights(path / name)[1])]


@pytest.fixture(scope="module")
def finished(run_options, tmp_path_factory):
    """(options, directory, summary) of a run with its baseline that nothing disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    options = dataclasses.replace(run_options, baseline=True)
    return options, path, train(options, path).summary


def records(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_report_says_why_the_policies_have_different_numbers_of_steps(finished):
    text = (finished[1] / "report.md").read_text()
    assert "| training steps | 0 | 4 | 5 |" in text and "equal numbers of sampled responses" in text


def test_the_report_says_how_well_the_slots_were_used(finished):
    text, used = (finished[1] / "report.md").read_text(), []
    for run in (finished[1], finished[1] / BASELINE):
        found = [record["rollout/utilisation"] for record in records(run) if "rollout/utilisation" in record]
        used.append(f"{np.mean(found):.2f}")
    assert f"| utilisation of the slots, mean over steps |  | {used[0]} | {used[1]} |" in text
    assert "| tokens sampled but not used | 0 | 0 | 0 |" in text


def test_a_run_leaves_its_configuration_metrics_samples_models_and_report(finished):
    options, path, summary = finished
    for name in ("config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "result.json", "report.md", BASELINE):
        assert (path / name).exists(), name
    assert set(summary["arms"]) == {"prime", BASELINE}
    main = summary["arms"]["prime"]
    assert main["rollouts"] == 16 + 16 * options.steps  # the PRM's warm-up, then every step
    assert summary["arms"][BASELINE]["rollouts"] == main["rollouts"], "the baseline gets as many in steps of its own"
    assert 0 <= main["prm_after_warm_up"]["prm_eval/step_auc"] <= 1
    steps = [record["step"] for record in records(path) if "policy/loss" in record]
    assert steps == [1, 2, 3, 4]
    assert not any(name.startswith("prm/") for record in records(path / BASELINE) for name in record)
    sample = json.loads((path / "samples.jsonl").read_text().splitlines()[0])
    assert "".join(text for text, _ in sample["steps"]) == sample["response"]

def assert_same_as_undisturbed(whole: pathlib.Path, path: pathlib.Path) -> None:
    for a, b in zip(final_weights(whole), final_weights(path), strict=True):
        np.testing.assert_array_equal(a, b)
    seen = [record["step"] for record in records(path) if "policy/loss" in record]
    assert seen == [1, 2, 3, 4], "a step is recorded twice or lost"


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_it_ends_in_the_same_bits(finished, tmp_path):
    options, whole, _ = finished
    options = dataclasses.replace(options, baseline=False)
    path, order = tmp_path / "killed", tmp_path / "order.pickle"
    order.write_bytes(pickle.dumps((options, str(path))))
    child = subprocess.run([sys.executable, "-c", _CHILD, str(order)], capture_output=True, timeout=500, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert not (path / "result.json").exists()
    train(options, path, resume=True)
    assert_same_as_undisturbed(whole, path)


def test_a_signal_saves_and_stops_and_the_rest_follows_on_resume(finished, tmp_path):
    options, whole, _ = finished
    options = dataclasses.replace(options, baseline=False)
    with pytest.raises(InterruptedRun, match="SIGTERM"):
        train(options, tmp_path / "run", callbacks=[terminate_at(2)])
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal()]
    assert 2 in saved and max(saved) < 4
    train(options, tmp_path / "run", resume=True)
    assert_same_as_undisturbed(whole, tmp_path / "run")


@pytest.mark.slow
def test_adapters_critic_and_prompts_put_back_survive_a_stop(run_options, tmp_path):
    options = replaced(
        run_options,
        model={"lora_rank": 2, "quantize": "int4", "quantization": QuantizationOptions(group=8)},
        prm={"lora_rank": 2},
        advantage={"estimator": "ppo"},
        rollout={"filter": "resample", "solve_rate_low": 0.3, "solve_rate_high": 0.9, "outcome_noise": 0.3},
    )
    train(options, tmp_path / "whole")
    with pytest.raises(InterruptedRun, match="SIGTERM"):
        train(options, tmp_path / "run", callbacks=[terminate_at(2)])
    train(options, tmp_path / "run", resume=True)
    assert_same_as_undisturbed(tmp_path / "whole", tmp_path / "run")
    whole, run = (records(tmp_path / name) for name in ("whole", "run"))
    assert any(record["rollout/sampled"] > 16 for record in whole if "rollout/sampled" in record), "nothing resampled"
    for a, b in zip(whole, run, strict=True):
        assert {k: v for k, v in a.items() if not k.startswith(("time/", "seconds"))} == {
            k: v for k, v in b.items() if not k.startswith(("time/", "seconds"))
        }


def test_an_absurd_learning_rate_stops_the_run_and_can_be_lowered_on_resume(finished, tmp_path):
    options, whole, _ = finished
    options, path = dataclasses.replace(options, baseline=False), tmp_path / "run"
    absurd = dataclasses.replace(options.policy, learning_rate=1e30)
    with pytest.raises(DivergedRun, match="had a non-finite update and were skipped.*learning"):
        train(dataclasses.replace(options, policy=absurd, max_bad_steps=1), path)
    assert (path / "bad_steps" / "step_1.npz").is_file()
    train(options, path, resume=True)
    assert_same_as_undisturbed(whole, path)


def test_stopped_while_sampling_for_the_prm_warm_up_it_ends_in_the_same_bits(finished, tmp_path, monkeypatch):
    options, whole, _ = finished
    options = dataclasses.replace(options, baseline=False)
    real = warm_up.Collector.collect

    def collect(self, params, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, params, step)

    monkeypatch.setattr(warm_up.Collector, "collect", collect)
    with pytest.raises(InterruptedRun, match="while sampling for the PRM warm-up"):
        train(options, tmp_path / "run")
    monkeypatch.undo()
    train(options, tmp_path / "run", resume=True)
    assert_same_as_undisturbed(whole, tmp_path / "run")


def test_stopped_in_the_warm_start_it_continues_from_its_checkpoint(finished, tmp_path, monkeypatch):
    options, whole, _ = finished
    options = dataclasses.replace(options, baseline=False)
    real = warm_start.demonstration_batches

    def batches(options, start):
        inner = real(options, start)

        def batch(step):
            if step == 20:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(step)

        return batch

    monkeypatch.setattr(warm_start, "demonstration_batches", batches)
    with pytest.raises(InterruptedRun) as stopped:
        train(options, tmp_path / "run")
    # Batches are made ahead of their steps.
    done = int(str(stopped.value).rpartition(" ")[2])
    assert 17 <= done <= 21
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(
        warm_start, "demonstration_batches", lambda *args: lambda step: (asked.append(step), real(*args)(step))[1]
    )
    train(options, tmp_path / "run", resume=True)
    assert asked == list(range(done, 30))
    assert_same_as_undisturbed(whole, tmp_path / "run")


def test_the_prms_accuracy_on_fresh_rollouts_rises_during_a_run(run_options, tmp_path):
    """From outcomes alone; the policy stands still, so that nothing but the PRM changes."""
    options = replaced(
        run_options,
        model={"hidden_size": 32, "intermediate_size": 64, "num_layers": 2},
        sft={"steps": 300, "learning_rate": 1e-2},
        rollout={"prompts_per_step": 16, "samples_per_prompt": 8, "filter": "mask", "solve_rate_low": 0.05},
        prm={"learning_rate": 3e-3, "pretrain_rollouts": 0},
        policy={"learning_rate": 0.0},
        eval={"prm_problems": 0},
    )
    train(dataclasses.replace(options, steps=16, save_every=16), tmp_path / "run")
    accuracy = [record["prm/pairwise_accuracy"] for record in records(tmp_path / "run") if "prm/loss" in record]
    assert accuracy[0] == 0.5, "a PRM that equals its reference tells nothing apart"
    assert np.mean(accuracy[-5:]) > 0.7, accuracy


def test_a_run_that_died_in_its_baseline_or_report_is_finished_by_resuming(finished, tmp_path, monkeypatch):
    options, whole, summary = finished
    path = tmp_path / "run"

    def die(*_, **__):
        raise RuntimeError("died")

    monkeypatch.setattr(training, "write_report", die)
    with pytest.raises(RuntimeError, match="died"):
        train(options, path)
    monkeypatch.undo()
    (path / BASELINE / "run.json").unlink()  # as if killed while the baseline's directory was being made
    again = train(options, path, resume=True).summary
    assert_same_as_undisturbed(whole, path)
    assert again["arms"][BASELINE]["after"] == summary["arms"][BASELINE]["after"]


def test_resuming_from_other_weights_is_refused(finished, tmp_path):
    options, whole, _ = finished
    weights = tmp_path / "weights"
    shutil.copytree(whole / "start", weights)
    options = replaced(options, model={"path": str(weights)}, sft={"steps": 0}, prm={"pretrain_rollouts": 0})
    options = dataclasses.replace(options, baseline=False, steps=1)
    train(options, tmp_path / "run")
    shutil.rmtree(weights)
    shutil.copytree(whole / "policy", weights)
    with pytest.raises(UserError, match="weights or the data that this run starts from have changed"):
        train(dataclasses.replace(options, steps=2), tmp_path / "run", resume=True)


def test_a_prm_that_only_warms_up_gives_rewards_and_stays(run_options, tmp_path):
    options = dataclasses.replace(replaced(run_options, prm={"update": "none"}), steps=2, save_every=1)
    train(options, tmp_path / "run")
    found = [record for record in records(tmp_path / "run") if "policy/loss" in record]
    assert all(record["prm/reward_abs"] > 0 for record in found)
    assert not any("prm/loss" in record for record in found)


def test_resuming_with_another_configuration_shows_the_difference(finished):
    options, path, _ = finished
    with pytest.raises(UserError, match=r"prm\.beta"):
        train(replaced(options, prm={"beta": 0.5}), path, resume=True)

def test_a_finished_directory_is_not_overwritten(finished):
    options, path, _ = finished
    before = (path / "result.json").read_bytes()
    with pytest.raises(UserError, match="resume"):
        train(options, path)
    assert (path / "result.json").read_bytes() == before


def test_steps_that_never_pass_the_filter_stop_the_run(run_options, tmp_path):
    options = replaced(
        run_options, rollout={"filter": "mask", "solve_rate_low": 0.99, "solve_rate_high": 0.995},
        prm={"pretrain_rollouts": 0}, advantage={"process_coef": 0.0},
    )  # fmt: skip
    with pytest.raises(DivergedRun, match="2 steps in a row"):
        train(dataclasses.replace(options, max_empty_steps=2), tmp_path / "run")


def test_gradients_that_never_are_finite_stop_the_run_and_keep_the_batch(run_options, tmp_path, monkeypatch):
    real = loop_module.make_step

    def broken(setup, **rest):
        inner = real(setup, **rest)

        def step(state, frozen, batch):
            state, metrics, rewards = inner(state, frozen, batch)
            return state, {**metrics, "policy/skipped": 1.0}, rewards

        return step

    monkeypatch.setattr(loop_module, "make_step", broken)
    options = replaced(run_options, prm={"pretrain_rollouts": 0}, advantage={"process_coef": 0.0})
    with pytest.raises(DivergedRun, match="non-finite"):
        train(dataclasses.replace(options, max_bad_steps=2), tmp_path / "run")
    kept = np.load(tmp_path / "run" / "bad_steps" / "step_2.npz")
    assert kept["tokens"].shape == (16, 17)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"samples_per_prompt": 1}}, "samples-per-prompt"),
        ({"policy": {"minibatches": 3}}, "must divide"),
        ({"prm": {"microbatches": 5}}, "must divide"),
        ({"rollout": {"solve_rate_low": 0.9, "solve_rate_high": 0.1}}, "is greater than --rollout.solve-rate-high"),
        ({"prm": {"beta": -1.0}}, "prm.beta"),
        ({"prm": {"beta": float("nan")}}, "prm.beta"),
        ({"policy": {"warmup_steps": -5}}, "policy.warmup-steps"),
        ({"policy": {"kl_coef": 0.1, "kl_estimator": "k1"}}, "k1"),
        ({"prm": {"update": "none", "pretrain_rollouts": 0}}, "prm.update none"),
        ({"mesh": {"data": 3}}, "cannot be split over 3 devices"),
        ({"mesh": {"tensor": 8}, "model": {"layers": "manual"}}, "2 heads and 1 key-value heads cannot be split"),
        ({"eval": {"problems": 0}}, "eval.problems"),
        ({"advantage": {"process_coef": 0.0, "outcome_coef": 0.0}}, "nothing would be learned"),
        ({"reward": {"source": "checker"}, "advantage": {"gate": True}}, "with --reward.source checker there is none"),
        ({"task": {"name": "cary"}}, "carry"),
        ({"task": {"options": {"min_operand": "2"}}}, "min_operands"),
        ({"model": {"path": "/no/such/weights"}, "sft": {"steps": 0}}, "/no/such/weights"),
    ],
)
def test_options_that_cannot_work_are_named(run_options, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(replaced(run_options, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_problems_are_listed_at_once(run_options, tmp_path):
    bad = replaced(run_options, prm={"beta": 0.0}, policy={"minibatches": 3}, rollout={"samples_per_prompt": 1})
    with pytest.raises(UserError) as caught:
        train(bad, tmp_path / "run")
    assert str(caught.value).count("\n  - ") >= 3


def test_demonstrations_are_a_function_of_seed_and_step(run_options):
    start = load_start(run_options)
    first, second = demonstration_batches(run_options, start), demonstration_batches(run_options, start)
    for a, b in zip(first(3), second(3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first(3)[0], first(4)[0])
    tokens, mask = first(0)
    assert (tokens[:, 0] == start.tokenizer.bos_id).all(), "as prompts are encoded for sampling"
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    assert (tokens[np.arange(len(tokens)), last] == start.tokenizer.eos_id).all()


def test_a_demonstration_longer_than_the_row_is_refused(run_options):
    options = dataclasses.replace(run_options, task=TaskOptions("carry", {"min_operands": "9", "max_operands": "9"}))
    with pytest.raises(UserError, match="max-new-tokens"):
        demonstration_batches(options, load_start(options))(0)


def test_layers_that_a_mesh_cannot_divide_are_said_to_be_left_to_the_compiler(run_options):
    start, said = load_start(run_options), []
    frontend = types.SimpleNamespace(say=said.append)
    for tensor in (1, start.config.num_heads, 2 * start.config.num_heads):
        mesh = make_mesh(8 // tensor, 1, tensor)
        training._introduce(types.SimpleNamespace(start=start, mesh=mesh), run_options, frontend)
    warnings = [line for line in said if "--model.layers constraints" in line]
    assert len(warnings) == 1 and f"cannot be split over tensor {2 * start.config.num_heads}" in warnings[0]
