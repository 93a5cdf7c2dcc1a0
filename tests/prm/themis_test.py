"""A reward model that calls tools: what it learns from a trace, its joint loss, and traces that it writes."""

import json

import jax
import numpy as np
import pytest

from prm_jax.data.step_data import StepRecord, read_step_data, to_json, write_step_data
from prm_jax.errors import UserError
from prm_jax.prm.data import stack
from prm_jax.prm.kinds import StepQ, Themis
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions, TextLayout
from prm_jax.prm.rows import Shape, build_rows, collate
from prm_jax.prm.score import PRM
from prm_jax.prm.spec import Spec, Weights
from prm_jax.prm.step import PRMLearner, make_step
from prm_jax.prm.tool_traces import write_traces
from prm_jax.rollouts.environments import Feedback
from prm_jax.runs.learner import make_optimizer
from prm_jax.verifiers.tool_calls import Markers

LAYOUT = Themis().layout(TextLayout())


def traced(claim: str, outcome: float) -> StepRecord:
    """A claim, a call, an answer and a verdict."""
    call, answer = "=2+3?", "5"
    size = len(claim)
    spans = ((0, size), (size + len(call), size + len(call) + len(answer)))
    text = call + answer + ("a" if outcome else "b")
    return StepRecord("2+3:", (claim, text), None, outcome, "2+3:", claim, forced=spans)


def test_what_the_model_did_not_write_has_no_tokens_of_its_own(tokenizer):
    (row,), _ = build_rows([traced("5", 1.0)], tokenizer, LAYOUT, max_length=64)
    own = row.tokens[row.step_ids >= 0]
    assert tokenizer.decode(own.tolist(), skip_special=True) == "=2+3?a" and own[-1] == tokenizer.eos_id
    assert tokenizer.decode(row.tokens.tolist(), skip_special=True) == "2+3:5=2+3?5a"
    assert row.reads.tolist() == [5, len(row.tokens) - 1]  # a score is read after the answers, too
    stripped = TextLayout(separator="\n", strip=True, between=" ")
    record = StepRecord("?", (" ab ", "xyz"), None, None, "", "", forced=((2, 5),))
    (row,), _ = build_rows([record], tokenizer, stripped, max_length=64)
    assert tokenizer.decode(row.tokens[row.step_ids >= 0].tolist()) == "a\n yz\n"


def test_spans_survive_files_and_pairs_and_bad_ones_are_refused(tmp_path):
    records = [traced("5", 1.0), traced("6", 0.0)]
    write_step_data(tmp_path / "d.jsonl", records)
    assert read_step_data(tmp_path / "d.jsonl") == records
    for bad in ([[0, 99]], [[3, 2]], [[0, 2], [1, 3]], [[0]], [["a", 1]]):
        (tmp_path / "bad.jsonl").write_text(json.dumps(to_json(records[0]) | {"forced": bad}))
        with pytest.raises(UserError, match="bad.jsonl:1:forced: expected pairs"):
            read_step_data(tmp_path / "bad.jsonl")
    shared = [
        StepRecord("?", ("a5", step), (None, label), None, "?", step, forced=((1, 2), (3, 4)))
        for step, label in (("x7", 1.0), ("y8", 0.0))
    ]
    good, worse = StepQ().select_records(shared)
    assert (good.steps, good.outcome, good.forced) == (("a5", "x7"), 1.0, ((1, 2), (3, 4)))
    assert (worse.steps, worse.outcome, worse.forced) == (("a5", "y8"), 0.0, ((1, 2), (3, 4)))


def test_the_loss_is_that_of_the_trace_and_half_that_of_the_pairs(tokenizer):
    rows, _ = build_rows([traced("5", 1.0), traced("6", 0.0)], tokenizer, LAYOUT, max_length=64)
    batch = collate(rows, Shape(3, 16, 3, 2), packed=False)
    scores = np.array([[9.0, 1.5], [9.0, 0.25], [7.0, 7.0]], np.float32)
    logp = np.where(batch.slots >= 0, -0.5, 0.0).astype(np.float32)
    kind = Themis()
    loss = kind.training_loss(None, (scores, logp), batch, 0.0)
    expected = 0.5 + 0.5 * np.log1p(np.exp(-(1.5 - 0.25)))
    np.testing.assert_allclose(loss.mean(), expected, rtol=1e-6)
    np.testing.assert_allclose(loss.summary()["ranking"], np.log1p(np.exp(-1.25)), rtol=1e-6)
    assert np.asarray(kind.scores(None, (scores, logp), batch))[:, 1].tolist() == [1.5, 0.25, 0.0]


def test_options_that_cannot_work():
    kind = Themis(markers=("[",))
    train = OptimizerOptions(microbatches=2, trains="head")
    found = "\n".join(kind.problems(BaseOptions(), train))
    assert "--prm.markers takes two strings" in found and "--train.microbatches must be 1" in found
    assert "--train.trains all" in found


class Answering:
    """A tool that is called by whatever an untrained model writes first."""

    def __init__(self, close):
        self.markers = Markers("?", close)

    def step(self, action):
        return Feedback("77")


def test_the_model_writes_its_own_traces(config, params, tokenizer):
    spec = Spec(Themis(tool="none", max_new_tokens=6, rows=2), config)
    head, fixed = spec.kind.init(spec, jax.random.key(1))
    prm = PRM(spec, Weights(params, head, fixed), tokenizer, LAYOUT)
    bare = [StepRecord("2+3:", (claim,), None, None, "2+3:", claim) for claim in ("a", "b")]
    plain = write_traces(prm, [*bare, traced("5", 1.0)], None, max_new_tokens=6, rows=2)
    assert plain[2] == traced("5", 1.0)
    text = plain[0].steps[1]
    assert len(text) == 6 and plain[0].steps[0] == "a" and plain[0].forced == ((0, 1),)
    called = write_traces(prm, bare[:1], Answering(text[0]), max_new_tokens=6, max_calls=1, rows=2)[0]
    assert called.steps[1].startswith(text[0] + "77") and called.forced == ((0, 1), (2, 4))
    scored = prm.score([*bare, plain[0]])
    assert np.isclose(scored[0].response, scored[2].response, atol=1e-5) and len(scored[0].steps) == 1
    with pytest.raises(UserError, match="a: this solution and a trace of 255 tokens exceed .* --prm.max-new-tokens"):
        write_traces(prm, bare, None, max_new_tokens=255)
    with pytest.raises(UserError, match="cannot write the tool's marker '<calc>'; set --prm.markers"):
        Themis().check_tokenizer(tokenizer)


def test_training_learns_the_traces_and_the_order(config, params, tokenizer):
    rows, _ = build_rows([traced("5", 1.0), traced("6", 0.0)], tokenizer, LAYOUT, max_length=64)
    learner = PRMLearner(Spec(Themis(), config), make_optimizer(1e-2))
    state, step = learner.init(params, jax.random.key(0)), make_step(learner)
    batch = stack([collate(rows, Shape(2, 16, 2, 2), packed=False)])
    found = []
    for _ in range(12):
        state, metrics = step(state, None, batch, None)
        found.append({name: float(value) for name, value in metrics.items()})
    np.testing.assert_allclose(found[0]["prm/ranking"], np.log(2), rtol=1e-5)  # a new head scores everything 0
    assert found[-1]["prm/trace"] < 0.7 * found[0]["prm/trace"] and found[-1]["prm/ranking"] < 0.6
    last = found[-1]
    np.testing.assert_allclose(last["prm/loss"], last["prm/trace"] + 0.5 * last["prm/ranking"], rtol=1e-5)
