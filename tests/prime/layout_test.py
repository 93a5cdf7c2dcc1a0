"""Length buckets, packing and microbatches by tokens: what the models read changes, and no number of the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import init_value_head
from prm_jax.prime import train
from prm_jax.prime.checks import check_options
from prm_jax.prime.critic import Critic
from prm_jax.prime.layout import Layout, length_buckets, make_layout, pack
from prm_jax.prime.pieces import microbatches, unpacked
from prm_jax.prime.sizes import chunk_rows, pieces_of_tokens
from prm_jax.prime.sources.critic import CriticSource
from prm_jax.prime.step import init_state, make_step
from prm_jax.runs.learner import Learner, make_optimizer, split_rows
from prm_jax.runs.metrics_log import read_metrics
from tests.prime.conftest import make_batch, replaced, setup_of

pytestmark = pytest.mark.heavy


def test_length_buckets():
    assert length_buckets(4096, 4) == (1024, 2048, 3072, 4096)
    assert length_buckets(4096, 1) == (4096,)
    assert length_buckets(300, 4) == (128, 256, 300)
    assert length_buckets(40, 4) == (40,) and length_buckets(129, 4) == (128, 129)
    for width, count in ((1000, 3), (777, 8), (128, 2)):
        widths = length_buckets(width, count)
        assert len(widths) <= count and widths[-1] == width and all(w % 128 == 0 for w in widths[:-1])


def wide(width: int = 200, longest: int = 9, seed: int = 0):
    """A batch in a rectangle that is wider than its rows."""
    batch = make_batch(seed, width=longest + 3)
    more = ((0, 0), (0, width - longest - 3))
    return dataclasses.replace(
        batch, tokens=np.pad(batch.tokens, more), mask=np.pad(batch.mask, more),
        step_ids=np.pad(batch.step_ids, more, constant_values=-1),
    )  # fmt: skip


def test_a_batch_is_cut_to_the_bucket_that_holds_it():
    batch, sizes = Layout((128, 200))(wide())
    assert batch.tokens.shape == batch.mask.shape == batch.step_ids.shape == (16, 128)
    assert sizes["batch/columns"] == 128 and sizes["batch/saved"] == pytest.approx(1 - 128 / 200)
    assert sizes["batch/padding"] == pytest.approx(1 - (3 * 16 + batch.mask.sum()) / (16 * 128))
    long = wide()
    long.mask[3, 128] = True
    assert Layout((128, 200))(long)[0].mask.shape == (16, 200)


@pytest.mark.parametrize("chunk", [16, 8, 4])
def test_every_response_is_one_segment_of_the_packed_rows_of_its_chunk(chunk):
    batch = pack(make_batch(width=40), chunk)
    batch = pack(dataclasses.replace(batch, mask=batch.mask & (np.arange(40) < 14), packed=None), chunk)
    rows = batch.packed
    per_chunk = len(rows.tokens) // (16 // chunk)
    assert per_chunk < chunk and rows.tokens.shape[1] == 40
    lengths = np.where(batch.mask.any(1), 40 - batch.mask[:, ::-1].argmax(1), 0)
    assert (rows.segment_ids >= 0).sum() == lengths.sum() and rows.scored.sum() == batch.mask.sum()
    for row in range(16):
        flat = slice(row // chunk * per_chunk, (row // chunk + 1) * per_chunk)
        here = slice(rows.place[row], rows.place[row] + lengths[row])
        np.testing.assert_array_equal(rows.tokens[flat].ravel()[here], batch.tokens[row, : lengths[row]])
        assert (rows.segment_ids[flat].ravel()[here] == row % chunk).all()
        assert rows.place[row] // 40 == (rows.place[row] + lengths[row] - 1) // 40  # in one row
    as_rows = unpacked(jnp.asarray(rows.tokens), jax.tree.map(jnp.asarray, batch))
    np.testing.assert_array_equal(as_rows, np.where(batch.mask, batch.tokens, 0))
    pieces = split_rows(jax.tree.map(jnp.asarray, batch), 16 // chunk)  # a piece holds whole chunks
    last = jax.tree.map(lambda x: x[-1], pieces)
    np.testing.assert_array_equal(unpacked(last.packed.tokens, last), as_rows[-chunk:])


def test_a_batch_that_would_not_shrink_stays_as_it_is():
    full = make_batch(width=12)
    full.mask[:, 3:] = True
    assert pack(full, 16).packed is None
    empty = dataclasses.replace(full, mask=np.zeros_like(full.mask))
    assert pack(empty, 16).packed.tokens.shape == (2, 12)


def test_the_number_of_shapes_is_bounded():
    layout = Layout(length_buckets(512, 4), (32,))
    shapes = set()
    rng = np.random.default_rng(0)
    for _ in range(200):
        scale = rng.uniform(0.02, 1.0)
        lengths = np.clip(rng.exponential(scale * 300, 32).astype(int), 1, 509)
        columns = np.arange(512)
        mask = (columns >= 3) & (columns < 3 + lengths[:, None])
        batch = dataclasses.replace(
            make_batch(prompts=8, width=12), tokens=np.ones((32, 512), np.int32), mask=mask, step_ids=mask - 1
        )
        laid_out, sizes = layout(batch)
        shapes.add((laid_out.tokens.shape, None if laid_out.packed is None else laid_out.packed.tokens.shape))
        assert sizes["batch/saved"] >= 0
    assert 4 < len(shapes) <= 4 * 8


def step_of(options, config, frozen, batch, source="implicit", ways=1):
    setup = setup_of(options, config, frozen.constants, source=source, ways=ways)
    state, metrics, rewards = make_step(setup)(init_state(setup, frozen, jax.random.key(0)), frozen, batch)
    return (state, jax.device_get(metrics), np.asarray(rewards))


def assert_equal_steps(found, expected):
    for x, y in zip(jax.tree.leaves(found[0].policy_opt), jax.tree.leaves(expected[0].policy_opt), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    for x, y in zip(jax.tree.leaves(found[0].source), jax.tree.leaves(expected[0].source), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)  # one step of Adam: its first update is a sign
    np.testing.assert_allclose(found[2], expected[2], atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


PIECES = {"minibatches": 2, "microbatches": 2}
STEPS = {
    "minibatches, divergence, entropy, step rewards": {
        "policy": {**PIECES, "kl_coef": 0.1, "entropy_coef": 0.01, "epochs": 2}, "reward": {"shaping": ("delta",)},
        "advantage": {"credit": "step"}, "prm": {**PIECES, "update": "before"},
    },
    "critic": {"advantage": {"estimator": "ppo"}},
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_packed_step_equals_the_unpacked_one(name, options, tiny_config, tiny_frozen):
    changed = replaced(options, **STEPS[name])
    batch = make_batch(width=24)
    batch = dataclasses.replace(batch, mask=batch.mask & (np.arange(24) < 11))
    packed = pack(batch, chunk_rows(changed, 1))
    assert packed.packed is not None and len(packed.packed.tokens) <= 12
    found, expected = (step_of(changed, tiny_config, tiny_frozen, b) for b in (packed, batch))
    assert_equal_steps(found, expected)
    if name == "critic":
        np.testing.assert_array_equal(found[2], 0.0)  # the PRM equals its reference
        for x, y in zip(jax.tree.leaves(found[0].critic_opt), jax.tree.leaves(expected[0].critic_opt), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def test_values_of_packed_rows_are_those_of_the_rows(options, tiny_config, tiny_frozen):
    """The source of values reads columns before and after the response, too."""
    batch = make_batch(width=24)
    packed = jax.tree.map(jnp.asarray, pack(batch, 8))
    critic = Critic(Learner(tiny_config, make_optimizer(1e-2)), options.critic, options.policy, 1)
    arrays = {"trunk": tiny_frozen.reference, "head": init_value_head(tiny_config, jax.random.key(1))}
    np.testing.assert_allclose(
        critic.before(arrays, tiny_frozen.reference, packed),
        critic.before(arrays, tiny_frozen.reference, batch),
        atol=1e-6,
    )
    source = CriticSource(critic, tiny_frozen.reference)
    changed = replaced(options, advantage={"credit": "value"})
    assert_equal_steps(*(step_of(changed, tiny_config, tiny_frozen, b, source) for b in (pack(batch, 16), batch)))


def test_packed_rows_on_devices_equal_one_device(options, tiny_config, tiny_frozen):
    changed = replaced(options, policy={"microbatches": 2})
    batch = pack(make_batch(width=24), chunk_rows(changed, 2, 2))
    alone = step_of(changed, tiny_config, tiny_frozen, batch, ways=2)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    frozen = jax.device_put(tiny_frozen, jax.NamedSharding(mesh, jax.P()))
    assert_equal_steps(step_of(changed, tiny_config, frozen, spread, ways=2), alone)


def test_microbatches_by_tokens(options, tiny_config, tiny_frozen, batch):
    assert pieces_of_tokens(16, 12, 16 * 12) == 1 and pieces_of_tokens(16, 12, 100) == 2
    assert pieces_of_tokens(6, 10, 39) == 2 and pieces_of_tokens(6, 10, 9) == 6
    by_tokens = replaced(options, policy={"microbatch_tokens": 50}, prm={"microbatch_tokens": 100})
    assert microbatches(by_tokens.policy, batch, 1) == 4 and microbatches(by_tokens.prm, batch, 2) == 1
    explicit = replaced(options, policy={"microbatches": 4}, prm={"microbatches": 2})
    found, expected = (step_of(o, tiny_config, tiny_frozen, batch) for o in (by_tokens, explicit))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_packed_chunks_keep_the_budget(options):
    budget = replaced(options, policy={"microbatch_tokens": 60}, batch={"pack": True})
    layout = make_layout(budget, 1)
    assert layout.chunks == (16, 8, 4, 2, 1) and layout.budget == 60
    batch, _ = layout(make_batch(width=12))
    rows = batch.packed
    chunks = 16 // rows.chunk if rows is not None else 16
    assert (batch.tokens if rows is None else rows.tokens).size / chunks <= 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": {"microbatch_tokens": 5}}, "less than one row of 12 tokens"),
        ({"prm": {"microbatch_tokens": 64, "microbatches": 2}}, "leave one out"),
        ({"prm": {"microbatch_tokens": 64, "loss": "dpo"}}, "--prm.microbatch-tokens cuts through groups"),
        (
            {"batch": {"pack": True}, "policy": {"microbatches": 3}, "prm": {"microbatches": 4},
             "rollout": {"prompts_per_step": 6, "samples_per_prompt": 2}},
            "",
        ),
        (
            {"batch": {"pack": True}, "policy": {"microbatches": 9}, "prm": {"microbatches": 4},
             "rollout": {"prompts_per_step": 9, "samples_per_prompt": 2}},
            "must divide",
        ),
        ({"batch": {"length_buckets": 0}}, "batch.length-buckets"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_by_name(options, changes, message):
    changed = replaced(options, **changes)
    if not message:
        check_options(changed)
        return
    with pytest.raises(UserError, match=message):
        check_options(changed)


def test_a_packed_run_reports_what_it_saves(run_options, tmp_path):
    """Its samples have the rewards of their steps, although the rows were cut."""
    changed = replaced(
        run_options, prm={"pretrain_rollouts": 0}, sft={"steps": 0}, rollout={"max_new_tokens": 140},
        batch={"pack": True}, eval={"prm_problems": 0, "greedy": False},
    )  # fmt: skip
    train(dataclasses.replace(changed, steps=2, sample_every=1), tmp_path / "run")
    last = read_metrics(tmp_path / "run")[-1]
    assert last["batch/saved"] > 0 and last["batch/columns"] in (128, 145) and 0 < last["batch/padding"] < 1
    assert (tmp_path / "run" / "samples.html").exists()
