"""The tables of a report and the names of callbacks in errors."""

import dataclasses

import pytest

from prm_jax import prime
from prm_jax.errors import MissingExtraError, UserError
from prm_jax.prime.loop import Trained
from prm_jax.prime.proxy_report import proxy_gold, proxy_table
from prm_jax.prime.report import _plots, _prm_table, _sampling_rows
from prm_jax.prime.training import _named_callbacks
from prm_jax.runs import plots
from prm_jax.runs.callbacks import Event

F1 = {"prm_eval/first_error_f1": 0.5}


def trained(before, warmed_up, after):
    policy = {field.name: None for field in dataclasses.fields(Trained)}
    return Trained(**{**policy, "before": before, "warmed_up": warmed_up, "after": after})


def test_the_table_of_process_rewards_names_their_source_and_drops_empty_columns():
    title, header, rows = _prm_table("model", {"prime": trained(F1, {}, F1)})
    assert title.startswith("Process rewards (source: model) against exact step labels")
    assert header == ["", "before", "after PRIME"] and rows == [["first-error F1", "0.500", "0.500"]]
    title, header, _ = _prm_table("implicit", {"prime": trained(F1, F1, F1)})
    assert title.startswith("PRM, trained on outcomes alone, against")
    assert header == ["", "after warm-up", "after PRIME"]
    assert _prm_table("implicit", {})[2] == []


def test_wasted_tokens_are_summed_and_utilisation_is_shown_where_there_are_slots():
    own = [{"step": 1, "rollout/utilisation": 0.5, "rollout/wasted_tokens": 1500.0}, {"step": 1, "eval/greedy": 0.0}]
    own.append({"step": 2, "rollout/utilisation": 0.7, "rollout/wasted_tokens": 20.0})
    assert _sampling_rows([own]) == [
        ["utilisation of the slots, mean over steps", "", "0.60"], ["tokens sampled but not used", "0", "1,520"]
    ]  # fmt: skip
    assert _sampling_rows([[{"step": 1, "rollout/wasted_tokens": 3.0}]]) == [["tokens sampled but not used", "0", "3"]]


def run_of(proxy, gold):
    """Metrics of a run; evaluations lie between the steps."""
    steps = [
        {"step": n, "watch/reward": p, "rollout/solve_rate": g, "gold/spearman": 0.5, "gold/r_squared": 0.25}
        for n, (p, g) in enumerate(zip(proxy, gold, strict=True), 1)
    ]
    return [{"step": 0, "eval/sampled_accuracy": 0.1}, *steps, {"step": 40, "eval/sampled_accuracy": 0.2}]


def test_a_proxy_that_rises_while_the_gold_falls_is_dated():
    rising = [0.1 * n for n in range(40)]
    falling = [0.5] * 20 + [0.5 - 0.02 * n for n in range(20)]
    hacked = proxy_gold(run_of(rising, falling), tolerance=0.1)
    assert hacked["steps"] == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40] and hacked["diverged_at"] == 28
    assert hacked["proxy"][0] == pytest.approx(0.15) and hacked["gold"][-1] == pytest.approx(0.15)
    assert hacked["spearman"] == [0.5] * 10 and hacked["correlation"] < -0.8
    sound = proxy_gold(run_of(rising, rising), tolerance=0.1)
    assert sound["diverged_at"] is None and sound["correlation"] == pytest.approx(1.0, abs=1e-5)
    _, header, rows = proxy_table(hacked)
    assert rows[0] == ["process reward per response", "0.150", "3.750"] and len(header) == 3
    assert rows[-1][-1] == "step 28" and proxy_table(sound)[2][-1][-1] == "never"


def test_runs_without_process_rewards_have_no_proxy():
    plain = [{"step": n, "rollout/solve_rate": 0.5} for n in range(5)]
    assert proxy_gold(plain, tolerance=0.1) == {} == proxy_gold(run_of([1.0], [1.0]), tolerance=0.1)
    assert proxy_table({})[2] == []


def broken(event):
    raise KeyError("no/such/metric")


def test_a_callback_that_fails_is_named():
    options = dataclasses.replace(prime.PRESETS["smoke"], callbacks=("tests.prime.report_test:broken",))
    (callback,) = _named_callbacks(options)
    expected = r"callback tests.prime.report_test:broken \(--callbacks\) failed at step 3 \(step\): KeyError: 'no/such"
    with pytest.raises(UserError, match=expected):
        callback(Event("step", 3, {}, None, None, None))


def test_the_command_that_installs_matplotlib_is_shown_as_it_is(tmp_path, monkeypatch, capsys):
    def absent(*_):
        raise MissingExtraError("this needs the package 'matplotlib': pip install 'prm-jax[plots]'")

    monkeypatch.setattr(plots, "plot_report", absent)
    assert _plots(tmp_path, prime.Options(), {}) == []
    assert capsys.readouterr().err.endswith("pip install 'prm-jax[plots]'\n")
