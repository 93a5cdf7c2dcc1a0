"""The training loop on a quadratic: logging, resuming, divergence, best state, callbacks and failed starts."""

import dataclasses
import json
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prm_jax.errors import UserError
from prm_jax.runs.checkpoint import Checkpointer
from prm_jax.runs.console import Console, Phase
from prm_jax.runs.fitting import FitOptions, Frontend, fit, load_best
from prm_jax.runs.interrupts import Interrupts
from prm_jax.runs.learner import guarded_update, make_schedule
from prm_jax.runs.metrics_log import read_metrics
from prm_jax.runs.run_dir import open_run
from prm_jax.runs.soundness import complaint
from prm_jax.runs.stopping import DivergedRun, InterruptedRun


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0


OPTIONS = FitOptions(steps=6, save_every=2, eval_every=2)


def initial_state():
    return {"w": jnp.zeros(3), "momentum": jnp.zeros(3)}


@jax.jit
def step(state, batch):
    gradient = state["w"] - batch
    momentum = 0.9 * state["momentum"] + gradient
    return {"w": state["w"] - 0.1 * momentum, "momentum": momentum}, {"loss": jnp.square(gradient).sum()}


def batch_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=3).astype(np.float32)


def distance(state) -> dict[str, float]:
    return {"eval/distance": float(jnp.abs(state["w"]).sum())}


def run_loop(path, *, resume=False, options=OPTIONS, batches=batch_of, step=step, **more):
    with open_run(path, Config(), resume=resume) as run:
        return fit(initial_state, step, batches, run=run, options=options, evaluate=distance, **more)


def stop_at(number):
    interrupts = Interrupts()

    def callback(event):
        if event.kind == "step" and event.step == number:
            interrupts.request("SIGTERM")

    return interrupts, callback


def test_every_step_is_logged_evaluated_and_saved_as_asked(tmp_path):
    fitted = run_loop(tmp_path / "run")
    records = read_metrics(tmp_path / "run")
    assert [record["step"] for record in records] == list(range(7))
    assert ["eval/distance" in record for record in records] == [True, False, True, False, True, False, True]
    assert fitted.steps == 6 and fitted.before == {"eval/distance": 0.0}
    assert fitted.after["eval/distance"] == pytest.approx(distance(fitted.state)["eval/distance"])
    with Checkpointer(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [4, 6]


def test_the_metrics_of_a_step_are_read_after_the_next_one_is_dispatched(tmp_path):
    events = []

    def dispatching(state, batch):
        events.append("dispatch")
        return step(state, batch)

    options = dataclasses.replace(OPTIONS, steps=3, save_every=3, eval_every=0)
    run_loop(
        tmp_path / "run", options=options, step=dispatching,
        callbacks=[lambda event: events.append(f"read {event.step}") if event.kind == "step" else None],
    )  # fmt: skip
    assert events == ["dispatch", "dispatch", "read 1", "dispatch", "read 2", "read 3"]


def test_a_clock_that_jumps_back_changes_no_duration(tmp_path, monkeypatch):
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    run_loop(tmp_path / "run")
    records = read_metrics(tmp_path / "run")
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds) and seconds[-1] < 600
    assert all(0 <= record[name] < 600 for record in records for name in record if name.startswith("time/"))


class Slow:
    """Batches that depend on the state and take 20 ms."""

    needs_state = True

    def draw(self, state, step):
        time.sleep(0.02)
        return batch_of(step)

    def position(self):
        return {}

    def restore(self, position):
        pass


def test_the_times_of_drawing_update_and_evaluation_are_separate(tmp_path):
    def evaluate(state):
        time.sleep(0.05)
        return distance(state)

    with open_run(tmp_path / "run", Config()) as run:
        fitted = fit(initial_state, step, Slow(), run=run, options=OPTIONS, evaluate=evaluate)
    assert "time/evaluation_seconds" not in fitted.after
    for record in read_metrics(tmp_path / "run")[1:]:
        parts = record["time/draw_seconds"] + record["time/update_seconds"]
        assert record["time/draw_seconds"] >= 0.02 and record["time/step_seconds"] == pytest.approx(parts, rel=1e-3)
        assert ("time/evaluation_seconds" in record) == ("eval/distance" in record)
        assert record.get("time/evaluation_seconds", 0.05) >= 0.05


@pytest.mark.parametrize("kind", ["drawing the batch of step 3", "evaluation after step 4"])
def test_the_watchdog_names_the_phase_and_prints_the_stacks(tmp_path, kind, capfd):
    def hanging(number):
        time.sleep(0.6 * (kind.startswith("drawing") and number == 2))
        return batch_of(number)

    def evaluate(state):
        calls.append(1)
        time.sleep(0.6 * (kind.startswith("evaluation") and len(calls) == 3))
        return {"eval/x": 0.0}

    calls = []
    warm = jax.tree.map(jnp.asarray, initial_state())
    jax.block_until_ready(step(warm, batch_of(0)))  # compiled, so that only the sleep is slow
    with open_run(tmp_path / "run", Config()) as run:
        frontend = Frontend(title="a test", watchdog=0.4)
        fit(initial_state, step, hanging, run=run, options=OPTIONS, evaluate=evaluate, frontend=frontend)
    err = capfd.readouterr().err
    assert f"{kind} (a test) has taken more than 0.4 s" in err
    assert ("in hanging" if kind.startswith("drawing") else "in evaluate") in err
    assert "Thread 0x" in err


@pytest.mark.parametrize("kind", ["function", "iterable", "object"])
def test_an_interrupted_loop_is_bit_identical_for_every_kind_of_batches(tmp_path, kind):
    class Walk:
        def __init__(self):
            self.place = 0

        def draw(self, state, step):
            self.place += 2
            return batch_of(self.place)

        def position(self):
            return {"place": self.place}

        def restore(self, position):
            self.place = position["place"]

    make = {"function": lambda: batch_of, "iterable": lambda: map(batch_of, range(100)), "object": Walk}[kind]
    whole = run_loop(tmp_path / "whole", batches=make())
    interrupts, callback = stop_at(3)
    with pytest.raises(InterruptedRun, match="SIGTERM after step"):
        run_loop(tmp_path / "cut", batches=make(), callbacks=[callback], frontend=Frontend(interrupts=interrupts))
    resumed = run_loop(tmp_path / "cut", resume=True, batches=make())
    for name in whole.state:
        assert np.array_equal(whole.state[name], resumed.state[name])
    assert resumed.before == whole.before and resumed.after == whole.after
    losses = [[record.get("loss") for record in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_running_out_of_batches_is_an_error(tmp_path):
    with pytest.raises(UserError, match="the batches ended after 4 steps, but step 5 needs another one"):
        run_loop(tmp_path / "run", batches=[batch_of(i) for i in range(4)])


def test_an_invalid_source_of_batches_is_refused(tmp_path):
    with pytest.raises(UserError, match="batches is a int"):
        run_loop(tmp_path / "run", batches=3)


def test_non_finite_updates_stop_the_run_and_keep_their_batches(tmp_path):
    @jax.jit
    def skipping(state, batch):
        bad = batch[0] > 50
        new, metrics = step(state, batch)
        new = jax.tree.map(lambda a, b: jnp.where(bad, b, a), new, state)
        return new, {**metrics, "policy/skipped": bad.astype(jnp.float32)}

    def batches(number):
        return batch_of(number) + 100 * (number in (1, 3, 4))

    options = dataclasses.replace(OPTIONS, max_bad_steps=2)
    with pytest.raises(DivergedRun, match="2 steps in a row had a non-finite update"):
        run_loop(tmp_path / "run", step=skipping, batches=batches, options=options)
    kept = sorted(path.name for path in (tmp_path / "run" / "bad_steps").iterdir())
    assert kept == ["step_2.npz", "step_4.npz", "step_5.npz"]


def test_a_poisoned_state_is_never_saved_and_the_last_good_one_remains(tmp_path):
    def poisoned(state, batch):
        new, metrics = step(state, batch)
        return jax.tree.map(lambda x: x * (jnp.inf if poison[0] else 1.0), new), metrics

    poison = [False]

    def batches(number):
        poison[0] = number == 4
        return batch_of(number)

    with pytest.raises(DivergedRun, match="after step 6 the parameters .* not finite; this state was not saved"):
        run_loop(tmp_path / "run", step=poisoned, batches=batches, options=dataclasses.replace(OPTIONS, eval_every=0))
    with Checkpointer(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4]


def test_a_step_without_an_update_does_not_end_a_series_of_bad_ones(tmp_path):
    def skipping(state, batch):
        return state, {"policy/skipped": 1.0}

    with pytest.raises(DivergedRun, match="2 steps in a row had a non-finite update"):
        run_loop(
            tmp_path / "run", step=skipping, batches=lambda number: None if number == 1 else batch_of(number),
            options=dataclasses.replace(OPTIONS, max_bad_steps=2),
        )  # fmt: skip


def sgd(learning_rate):
    """An unguarded step."""

    @jax.jit
    def step(state, batch):
        return {**state, "w": state["w"] - learning_rate * (state["w"] - batch)}, {"loss": jnp.float32(0)}

    return step


def test_an_absurd_learning_rate_is_stopped_and_can_be_lowered_on_resuming(tmp_path):
    path, options = tmp_path / "run", dataclasses.replace(OPTIONS, keep_checkpoints=1)
    run_loop(path, step=sgd(0.1), options=dataclasses.replace(options, steps=2))
    with pytest.raises(DivergedRun, match=r"after step 4 .* absurdly large; this state was not saved"):
        run_loop(path, step=sgd(1e15), options=options, resume=True)
    assert [entry.name for entry in (path / "checkpoints").iterdir()] == ["2"]
    resumed = run_loop(path, step=sgd(0.1), options=options, resume=True)
    whole = run_loop(tmp_path / "whole", step=sgd(0.1), options=options)
    assert resumed.steps == 6 and np.array_equal(resumed.state["w"], whole.state["w"])


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"w": np.array([1.0, np.nan], np.float32)}, "not finite"),
        ({"w": np.array([1.0, -np.inf], np.float32)}, "not finite"),
        ({"w": np.array([1.0, -1e30], np.float32)}, "reach 1.0e\\+30"),
        ({"w": np.ones(2, np.float32), "best": np.array(np.nan, np.float32)}, "contain NaN"),
        ({"w": np.ones(2, np.float32), "best": np.array(np.inf, np.float32), "count": np.int32(2**31 - 1)}, "$"),
    ],
)
def test_which_states_are_sound(state, problem):
    found = complaint(jax.tree.map(jnp.asarray, state))
    assert re.search(problem, found) and bool(found) == (problem != "$")


def test_a_poisoned_state_is_not_kept_as_the_best(tmp_path):
    def evaluate(state):
        return {"eval/score": 1.0 + bool(jnp.isnan(state["w"]).any())}

    options = dataclasses.replace(OPTIONS, best="eval/score")
    with open_run(tmp_path / "run", Config()) as run, pytest.raises(DivergedRun):
        batches = [batch_of(0), batch_of(1), batch_of(2), np.full(3, np.nan, np.float32)]
        fit(initial_state, step, batches, run=run, options=options, evaluate=evaluate)
    with open_run(tmp_path / "run", Config(), resume=True) as run:
        best = load_best(run, jax.eval_shape(initial_state))
    assert np.array_equal(best["w"], np.zeros(3))  # of step 0


def test_the_best_state_is_rewound_with_the_run(tmp_path):
    options = FitOptions(steps=6, save_every=2, eval_every=2, best="eval/distance")
    path = tmp_path / "run"

    def growing(scale):
        return jax.jit(lambda state, batch: ({**state, "w": state["w"] + scale}, {"loss": jnp.float32(0)}))

    run_loop(path, step=growing(1.0), options=dataclasses.replace(options, steps=4))
    shutil.rmtree(path / "checkpoints" / "4")  # as if the run had been killed while it was written
    with open_run(path, Config(), resume=True) as run:
        fitted = fit(initial_state, growing(2.0), batch_of, run=run, options=options, evaluate=distance)
        best = load_best(run, jax.eval_shape(initial_state))
    assert fitted.best_step == 6 and np.array_equal(best["w"], np.full(3, 10.0))
    assert any(entry.name.startswith("4-superseded") for entry in (path / "best" / "set_aside").iterdir())


def test_resuming_walks_back_past_a_checkpoint_that_is_not_finite(tmp_path):
    whole = run_loop(tmp_path / "whole")
    interrupts, callback = stop_at(3)
    with pytest.raises(InterruptedRun):
        run_loop(tmp_path / "run", callbacks=[callback], frontend=Frontend(interrupts=interrupts))
    directory = tmp_path / "run" / "checkpoints"
    with Checkpointer(directory, max_to_keep=9) as checkpoints:
        newest = checkpoints.latest_step()
        restored = checkpoints.restore(jax.eval_shape(initial_state))
        assert restored is not None
        bad = jax.tree.map(lambda x: x.at[0].set(jnp.nan), restored.state)
        checkpoints.save(newest + 1, bad, restored.metadata, wait=True)
    resumed = run_loop(tmp_path / "run", resume=True)
    assert np.array_equal(resumed.state["w"], whole.state["w"])
    assert any("damaged" in path.name for path in (directory / "set_aside").iterdir())


def test_changed_weights_or_data_are_refused_on_resuming(tmp_path):
    interrupts, callback = stop_at(1)
    with pytest.raises(InterruptedRun):
        run_loop(tmp_path / "run", callbacks=[callback], frontend=Frontend(interrupts=interrupts), identity="a")
    with pytest.raises(UserError, match="have changed since its checkpoint was written"):
        run_loop(tmp_path / "run", resume=True, identity="b")


def test_the_best_state_is_kept_and_patience_ends_the_loop(tmp_path):
    @jax.jit
    def walk(state, batch):
        return {**state, "w": state["w"] + batch}, {"loss": batch.sum()}

    course = [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]  # the distance is 3 at first, then 1.5, 0, 3, 6

    def evaluate(state):
        return {"eval/distance": float(jnp.abs(state["w"] - 1).sum())}

    options = FitOptions(steps=6, eval_every=1, best="eval/distance", best_is="min", patience=2)
    with open_run(tmp_path / "run", Config()) as run:
        fitted = fit(
            initial_state, walk, lambda n: np.full(3, course[n], np.float32), run=run, options=options,
            evaluate=evaluate,
        )  # fmt: skip
        best = load_best(run, jax.eval_shape(initial_state))
    assert fitted.stopped_early and fitted.steps == 4 and fitted.best_step == 2
    assert np.array_equal(best["w"], np.ones(3))


def test_an_unknown_metric_for_the_best_state_is_refused(tmp_path):
    with pytest.raises(UserError, match="no metric 'eval/accuracy' .* it has eval/distance"):
        run_loop(tmp_path / "run", options=dataclasses.replace(OPTIONS, best="eval/accuracy"))


def test_callbacks_add_metrics_and_end_the_loop(tmp_path):
    kinds = []

    def callback(event):
        kinds.append(event.kind)
        if event.kind == "step":
            assert event.state is None and event.batch is not None
            event.metrics["own/double"] = 2 * event.metrics["loss"]
            if event.step == 3:
                event.stop("enough")

    fitted = run_loop(tmp_path / "run", callbacks=[callback])
    records = read_metrics(tmp_path / "run")
    assert records[1]["own/double"] == pytest.approx(2 * records[1]["loss"], rel=1e-6)
    assert fitted.stopped_early and fitted.steps == 4 and kinds[0] == "start" and kinds[-1] == "end"
    again = run_loop(tmp_path / "run", resume=True)
    assert again.steps == 4 and np.array_equal(again.state["w"], fitted.state["w"])


def test_a_failed_start_removes_what_it_wrote(tmp_path):
    def broken(state, batch):
        raise ValueError("no such device")

    with pytest.raises(ValueError, match="no such device"):
        run_loop(tmp_path / "run", step=broken)
    assert not (tmp_path / "run").exists()
    assert run_loop(tmp_path / "run").steps == 6


def test_a_directory_whose_run_never_completed_a_step_can_be_started_again(tmp_path):
    run = open_run(tmp_path / "run", Config())
    run.log(0, {"loss": 1.0})
    run.close()  # as a kill would leave it
    assert run_loop(tmp_path / "run").steps == 6
    assert json.loads((tmp_path / "run" / "run.json").read_text())["claimed"] is True
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        run_loop(tmp_path / "run")


def test_other_files_survive_a_failed_start(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError), open_run(tmp_path / "run", Config()):
        (tmp_path / "run" / "notes.txt").write_text("mine")
        raise UserError("no data")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_phase_has_its_own_metrics_and_checkpoints_and_claims_the_run(tmp_path):
    with open_run(tmp_path / "run", Config()) as run, run.phase("warm_start") as phase:
        fit(initial_state, step, batch_of, run=phase, options=OPTIONS)
    assert len(read_metrics(tmp_path / "run" / "phases" / "warm_start")) == 6
    with open_run(tmp_path / "run", Config(), resume=True) as run, run.phase("warm_start") as phase:
        assert fit(initial_state, step, batch_of, run=phase, options=OPTIONS).steps == 6


@pytest.mark.parametrize(("learning_rate", "skipped"), [(1e-2, 0.0), (1e30, 1.0), (float("inf"), 1.0)])
def test_an_update_that_would_ruin_the_parameters_is_skipped(learning_rate, skipped):
    optimizer = optax.sgd(learning_rate)
    params, grads = {"w": jnp.ones(3)}, {"w": jnp.full(3, 0.5)}
    new, _, health = guarded_update(optimizer, grads, optimizer.init(params), params)
    assert float(health["skipped"]) == skipped
    expected = np.ones(3) - (0.0 if skipped else learning_rate * 0.5)
    np.testing.assert_allclose(new["w"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.5, 0.0]),
        ("cosine", [0.0, 0.5, 1.0, 0.55, 0.1]),
    ],
)
def test_schedules_equal_hand_computed_values(schedule, expected):
    rate = make_schedule(1.0, schedule=schedule, warmup_steps=2, total_steps=4)
    np.testing.assert_allclose([float(rate(count)) for count in range(5)], expected, atol=1e-6)


def test_the_time_left_covers_the_whole_plan(monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr("prm_jax.runs.console.time.monotonic", lambda: clock[0])
    with (tmp_path / "out").open("w") as file:
        console = Console(file=file, live=False)
        console.plan([Phase("PRIME", 10), Phase("outcome only", 5, like="PRIME"), Phase("report", 2)])
        console.phase("PRIME", 10)
        for number in range(1, 4):
            clock[0] += 2.0
            console.update(number, {})
        assert console.seconds_left() == pytest.approx(14.0) and console.run_seconds_left() is None
        assert "14 s left, then outcome only, report" in console.line()
        console.plan([Phase("PRIME", 10), Phase("outcome only", 5, like="PRIME")])
        assert console.run_seconds_left() == pytest.approx(24.0) and "24 s left" in console.line()


@pytest.mark.parametrize("when", [2, 3])
def test_a_loop_that_a_callback_ends_is_evaluated_at_its_end(tmp_path, when):
    """At a step with a checkpoint, and at one without, where the next step is running already."""

    def enough(event):
        if event.kind == "step" and event.step == when:
            event.stop("enough")

    options = FitOptions(steps=9, save_every=2, eval_every=0)
    fitted = run_loop(tmp_path / "run", options=options, callbacks=[enough])
    assert fitted.stopped_early and fitted.steps == (2 if when == 2 else 4)
    assert fitted.after["eval/distance"] == pytest.approx(distance(fitted.state)["eval/distance"])
    again = run_loop(tmp_path / "run", options=options, resume=True)
    assert again.after == fitted.after and again.steps == fitted.steps
    assert sorted({record["step"] for record in read_metrics(tmp_path / "run")}) == list(range(fitted.steps + 1))


def test_the_best_state_by_another_metric_starts_over_on_resuming(tmp_path):
    options = dataclasses.replace(OPTIONS, steps=4, best="eval/distance", best_is="min")
    assert run_loop(tmp_path / "run", options=options).best_step == 0

    def rising(state):
        return {"eval/rising": -100.0}

    with open_run(tmp_path / "run", Config(), resume=True) as run:
        other = dataclasses.replace(OPTIONS, best="eval/rising")
        fitted = fit(initial_state, step, batch_of, run=run, options=other, evaluate=rising)
        assert fitted.best_step == 6 and load_best(run, jax.eval_shape(initial_state)) is not None
