"""The tables of a report and the names of callbacks in errors."""

import dataclasses

import pytest

from prm_jax import prime
from prm_jax.errors import UserError
from prm_jax.prime.loop import Trained
from prm_jax.prime.report import _prm_table, _sampling_rows
from prm_jax.prime.training import _named_callbacks
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


def broken(event):
    raise KeyError("no/such/metric")


def test_a_callback_that_fails_is_named():
    options = dataclasses.replace(prime.PRESETS["smoke"], callbacks=("tests.prime.report_test:broken",))
    (callback,) = _named_callbacks(options)
    expected = r"callback tests.prime.report_test:broken \(--callbacks\) failed at step 3 \(step\): KeyError: 'no/such"
    with pytest.raises(UserError, match=expected):
        callback(Event("step", 3, {}, None, None, None))
