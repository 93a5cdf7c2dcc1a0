"""Every kind learns to order a tiny separable data set; losses and scores agree with written-out definitions."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import rl, stats
from prm_jax.errors import UserError
from prm_jax.models import LoRAConfig, init_params
from prm_jax.prm.data import batch_of, make_plan, select, stack, step_pairs
from prm_jax.prm.forward import step_sums
from prm_jax.prm.kinds import GPM, Armo, BCoder, BradleyTerry, DigiQ, Implicit, Outcome, StepQ, Token, Value
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.rows import Batch, RowReport, Shape, build_rows, collate
from prm_jax.prm.spec import Spec
from prm_jax.prm.step import PRMLearner, make_scorer, make_step
from prm_jax.runs.learner import make_optimizer
from tests.models.checkpoints import FAMILIES

LAYOUT = TextLayout(separator=" ")
FAST = {"digi_q": 60, "b_coder": 60, "armo": 40, "value": 40}
slow = pytest.mark.slow
CASES = [
    Implicit(),
    pytest.param(Implicit(loss="dpo"), marks=slow),
    Implicit(loss="nca"),
    Implicit(loss="kto"),
    pytest.param(Implicit(loss="kto_vanilla"), marks=slow),
    Token(head_layers=2, head_activation="relu"),
    pytest.param(Token(labels="hard", mask_after_error=False), marks=slow),
    pytest.param(Value(value="bce"), marks=slow),
    pytest.param(Value(value="tanh"), marks=slow),
    pytest.param(Value(value="quantile"), marks=slow),
    Value(value="twin"),
    pytest.param(Value(value="ensemble", head_layers=2), marks=slow),
    StepQ(),
    pytest.param(Outcome(), marks=slow),
    BradleyTerry(),
    GPM(),
    Armo(verbosity="short"),
    DigiQ(),
    BCoder(),
]


def rows_for(spec, records, tokenizer):
    kind = spec.kind
    rows, report = build_rows(
        kind.select_records(records), tokenizer, LAYOUT, max_length=64, only_last=kind.only_last
    )
    return select(rows, kind.learns_from, report)


def learner_for(config, options, *, lora=False, rate=1e-2):
    names = ("right", "short") if options.needs == "objectives" else ()
    config = dataclasses.replace(config, lora_alpha=8.0) if lora else config
    spec = Spec(options, config, objectives=names)
    adapters = LoRAConfig(rank=4, alpha=8.0) if lora else None
    return PRMLearner(spec, make_optimizer(rate, grad_clip=10.0), adapters, options.head_only)


def train(learner, params, rows, steps, *, size=24):
    spec = learner.spec
    groups = spec.kind.whole_groups
    plan = make_plan(rows, batch_size=size, epochs=steps, whole_groups=groups, objectives=spec.objectives)
    state = learner.init(params, jax.random.key(0))
    step_fn, losses = make_step(learner), []
    whole = collate(rows, Shape(len(rows), 32, len(rows), 3, spec.objectives), packed=False)
    weights = learner.weights(state.trainable, state.fixed, params)
    state = dataclasses.replace(state, fixed=spec.kind.fit_fixed(spec, weights, [(whole, len(rows))]))
    for number in range(steps):
        batch = batch_of(plan, rows, number)
        extra = spec.kind.extra_batch([rows[i] for i in plan.microbatches(number)[0]], plan.shape)
        other = None if extra is None else stack([extra])
        state, metrics = step_fn(state, params, batch, other)
        losses.append(float(metrics["prm/loss"]))
        assert metrics["prm/skipped"] == 0
    return state, losses


def name_of(options):
    given = [str(getattr(options, name)) for name in ("loss", "value", "labels") if hasattr(options, name)]
    return "-".join([options.kind, *given])


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_a_kind_learns_to_order_responses(options, config, params, tokenizer, records):
    learner = learner_for(config, options)
    kind = options
    rows = rows_for(learner.spec, records, tokenizer)
    state, losses = train(learner, params, rows, FAST.get(options.kind, 20), size=max(24, len(rows)))
    assert np.isfinite(losses).all() and min(losses[-3:]) < losses[0]
    full, _ = build_rows(records, tokenizer, LAYOUT, max_length=64)
    shape = Shape(len(full), 32, len(full), 3, learner.spec.objectives)
    batch = collate(full, shape)
    scores, _ = make_scorer(learner)(state, params, batch)
    assert scores.shape == batch.step_mask.shape and np.isfinite(scores).all()
    assert not np.asarray(scores)[~batch.step_mask].any()
    if kind.output == "probability":
        assert (scores >= 0).all() and (scores <= 1).all()
    how = kind.how
    response = rl.aggregate_steps(scores, batch.step_mask, how=how)
    accuracy = rl.pairwise_accuracy(response, batch.outcome, batch.group_ids, num_groups=len(full))
    assert accuracy > 0.75, f"{accuracy} after losses {losses[0]:.3f} ... {losses[-1]:.3f}"
    if kind.needs in ("labels", "step_pairs"):
        assert stats.roc_auc(scores, batch.labels > 0.5, batch.label_mask) > 0.9


def test_adapters_without_effect_score_exactly_zero(config, params, tokenizer, records):
    learner = learner_for(config, Implicit(reference="base"), lora=True)
    rows = rows_for(learner.spec, records[:4], tokenizer)
    state = learner.init(params, jax.random.key(0))
    scores, loss = make_scorer(learner)(state, params, collate(rows, Shape(4, 24, 4, 3)))
    assert (scores == 0).all() and float(loss.mean()) == pytest.approx(np.log(2), rel=1e-6)


def test_accumulated_gradients_are_those_of_the_whole_batch(config, params, tokenizer, records):
    learner = learner_for(config, Implicit(loss="dpo"))
    rows = rows_for(learner.spec, records[:16], tokenizer)
    ends = []
    for pieces in (1, 2):
        plan = make_plan(rows, batch_size=16, microbatches=pieces, whole_groups=True, shuffle=False)
        assert len(plan.microbatches(0)) == pieces
        state = learner.init(params, jax.random.key(0))
        batch = batch_of(plan, rows, 0, microbatches=pieces)
        ends.append(make_step(learner, microbatches=pieces)(state, params, batch, None))
    chex.assert_trees_all_close(ends[0][1], ends[1][1], rtol=1e-4)
    chex.assert_trees_all_close(ends[0][0].trainable["model"], ends[1][0].trainable["model"], atol=2e-4)


def test_the_token_loss_equals_trls():
    # A worked example of TRL's definition: the mean of the cross-entropy over the three labelled tokens.
    logits = np.zeros((1, 4, 2), np.float32)
    logits[0, :3] = [[-0.057, 0.1443], [-0.2915, 0.4315], [-1.1701, -1.9203]]
    labels = np.asarray([[1, 0, 1, -100]], np.float32)
    batch = empty_batch(labels=labels, label_mask=labels >= 0)
    loss = Token().training_loss(Spec(Token(), None), jnp.asarray(logits), batch, jnp.float32(0))
    assert float(loss.mean()) == pytest.approx(0.9510578558509568, rel=1e-6)
    assert float(loss.summary()["accuracy"]) == pytest.approx(1 / 3)
    softer = dataclasses.replace(batch, labels=np.asarray([[0.9, 0.25, 0.6, 0]], np.float32))
    p = 1 / (1 + np.exp(-(logits[0, :3, 1] - logits[0, :3, 0])))
    y = np.asarray([0.9, 0.25, 0.6])
    loss = Token().training_loss(Spec(Token(), None), jnp.asarray(logits), softer, jnp.float32(0))
    assert float(loss.mean()) == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rel=1e-5)


def test_implicit_step_scores_are_those_of_the_released_scoring():
    # Log-ratios of tokens in shifted coordinates, and where the prompt and each of two steps ends.
    ratios = np.asarray([
        [-1.637, 1.024, -0.936, 1.071, 0.415, -1.543, -0.103, -1.906],
        [-0.146, 1.045, -1.408, -0.486, 1.272, -0.011, 0.154, 1.601],
        [-1.133, 2.119, 1.19, 0.343, 0.962, -0.4, 1.072, 0.304],
    ])  # fmt: skip
    ends = [[1, 3, 6], [1, 4, 7], [2, 4, 5]]
    slots = np.full(ratios.shape, -1, np.int32)
    for row, (first, one, two) in enumerate(ends):
        slots[row, first : one + 1], slots[row, one + 1 : two + 1] = 2 * row, 2 * row + 1
    batch = empty_batch(slots=slots, step_mask=np.ones((3, 2), bool))
    steps = 0.001 * step_sums(jnp.asarray(ratios, jnp.float32), batch)
    single = [[0.001159, -0.001231], [0.000423, 0.001744], [0.002495, -0.0004]]
    np.testing.assert_allclose(steps, single, atol=1e-8)
    np.testing.assert_allclose(np.cumsum(steps, 1)[:, 1], [-7.2e-05, 0.002167, 0.002095], atol=1e-8)
    lowest = rl.aggregate_steps(steps, batch.step_mask, how="min")
    assert int(np.argmax(lowest)) == 1
    votes = stats.vote_totals(jax.nn.sigmoid(lowest), jnp.asarray([0, 0, 1]))
    np.testing.assert_allclose(votes, [0.9997980000372859, 0.9997980000372859, 0.49990000000133333], rtol=1e-6)


def test_an_ensemble_scores_below_its_mean():
    logits = jnp.asarray([[[0.0, 2.0], [1.0, 1.0]]])
    batch = empty_batch(step_mask=np.ones((1, 2), bool))
    spec = Spec(Value(value="ensemble", members=2, pessimism=1.0), None)
    p = 1 / (1 + np.exp(-np.asarray([0.0, 2.0])))
    found = spec.kind.scores(spec, logits, batch)
    np.testing.assert_allclose(found, [[p.mean() - p.std(), 1 / (1 + np.exp(-1))]], rtol=1e-5)


def empty_batch(**arrays):
    fields = {field.name: None for field in dataclasses.fields(Batch)}
    return Batch(**{**fields, **arrays})


def test_pairs_of_steps_share_their_prefix(records):
    pairs = step_pairs(records, how="first_error", margin=0.5)
    assert len(pairs) % 2 == 0
    for good, bad in zip(pairs[::2], pairs[1::2], strict=True):
        assert good.steps[:-1] == bad.steps[:-1] and good.steps[-1] != bad.steps[-1]
        assert (good.outcome, bad.outcome) == (1.0, 0.0) and good.group == bad.group
    assert len(step_pairs(records, how="siblings", margin=0.5)) <= len(pairs)
    with pytest.raises(UserError, match="nothing to learn from"):
        step_pairs([dataclasses.replace(r, labels=None) for r in records], how="siblings", margin=0.5)


@pytest.mark.parametrize("needs", ["labels", "outcome", "groups", "either"])
def test_data_from_which_nothing_can_be_learned_is_refused(needs, tokenizer, records):
    bare = [dataclasses.replace(r, labels=None, outcome=1.0 if needs == "groups" else None) for r in records]
    rows, _ = build_rows(bare, tokenizer, LAYOUT, max_length=64)
    with pytest.raises(UserError, match="nothing to learn from"):
        select(rows, needs, RowReport())


def test_plans_keep_groups_whole_and_are_deterministic(tokenizer, records):
    rows, _ = build_rows(records, tokenizer, LAYOUT, max_length=64)
    plan = make_plan(rows, batch_size=8, epochs=2, seed=1, whole_groups=True)
    for epoch in plan.epochs:
        assert sorted(i for step in epoch for piece in step for i in piece) == list(range(len(rows)))
        for step in epoch:
            for piece in step:
                assert len(piece) == 8 and len({rows[i].group for i in piece}) == 2
    assert plan.epochs[0] != plan.epochs[1]
    assert make_plan(rows, batch_size=8, epochs=2, seed=1, whole_groups=True) == plan
    with pytest.raises(UserError, match="a problem has 4 solutions"):
        make_plan(rows, batch_size=8, microbatches=4, whole_groups=True)


def test_packed_rows_are_as_wide_as_is_cheapest(tokenizer, records):
    rows, _ = build_rows(records, tokenizer, LAYOUT, max_length=64)
    longest = max(len(row.tokens) for row in rows)
    shape = make_plan(rows, batch_size=8).shape
    assert shape.width % 8 == 0 and longest <= shape.width <= 4 * longest + 8
    own = sum(len(row.tokens) for row in rows) / len(rows)
    assert shape.rows * shape.width < 1.5 * 8 * own  # one solution a row would be 8 * longest, padded to eights


def test_the_experts_of_a_sparse_model_can_be_balanced(tokenizer, records):
    """Through hidden states; kinds that read log-probs have the same metrics."""
    config = dataclasses.replace(FAMILIES["mixtral"], vocab_size=tokenizer.vocab_size, num_layers=1)
    learner = learner_for(config, Token())
    rows = rows_for(learner.spec, records[:8], tokenizer)
    sparse = init_params(config, jax.random.key(0))
    router = sparse["layers"]["mlp"]["router"]
    router["kernel"] = 8 * router["kernel"]  # sure of itself, and uneven
    plan = make_plan(rows, batch_size=8)
    state, step = learner.init(sparse, jax.random.key(0)), make_step(learner, balance_coef=20.0)
    found = []
    for _ in range(11):
        state, metrics = step(state, sparse, batch_of(plan, rows, 0), None)
        found.append({name: float(value) for name, value in metrics.items()})
    before, after = found[0]["prm/expert_balance"], found[-1]["prm/expert_balance"]
    assert before > 1.1 and after < 1 + 0.7 * (before - 1)
    other = learner_for(config, Implicit())
    start = other.init(sparse, jax.random.key(0))
    shapes = jax.eval_shape(make_step(other), start, sparse, batch_of(plan, rows, 0), None)
    assert shapes[1]["prm/expert_balance"].shape == ()
    assert found[0]["prm/loss"] > 20 * before and found[0]["prm/expert_load"] == found[0]["prm/expert_load/0"] > 1
