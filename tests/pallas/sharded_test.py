import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.pallas import LogprobOptions, Partition, linear_logprob, sharded_lse_and_target
from tests.pallas.backend_contract import call, error, oracle, problem

COUNT, WIDTH, VOCAB = 24, 8, 44


def make_mesh(*sizes):
    names = {2: ("data", "tensor"), 3: ("data", "fsdp", "tensor")}[len(sizes)]
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def check(partition, *, layout="vd", vocab=VOCAB, **given):
    """Outputs and all three gradients against float64, with all arguments and options."""
    hidden, head, tokens, bias = problem(COUNT, WIDTH, vocab)
    tokens = tokens.at[1:5].set(jnp.array([10, 11, 21, 22]))  # borders of four and of two devices' columns
    mask = jnp.arange(COUNT) % 5 < 3
    cotangents = jax.random.normal(jax.random.key(9), (3, COUNT))
    options = {"mask": mask, "temperature": jnp.linspace(0.5, 2.0, COUNT), "softcap": 5.0}

    def run(hidden, head, bias):
        return sharded_lse_and_target(
            partition,
            hidden,
            head,
            tokens,
            **call(bias=bias, entropy=True, head_layout=layout, token_block=4, vocab_block=5, **given, **options),
        )

    def both(hidden, head, bias):
        outputs, vjp = jax.vjp(run, hidden, head, bias)
        return outputs, vjp(tuple(cotangents))

    outputs, gradients = jax.jit(both)(hidden, head if layout == "vd" else head.T, bias)
    gradients = (gradients[0], gradients[1] if layout == "vd" else gradients[1].T, gradients[2])
    exact, exact_gradients = oracle(hidden, head, tokens, cotangents=cotangents, bias=bias, **options)
    for ours, expected in zip((*outputs, *gradients), (*exact, *exact_gradients), strict=True):
        assert error(ours, expected) < 1e-5


@pytest.mark.parametrize(
    ("shape", "implementation"),
    [((2, 2), "xla_vocab"), ((1, 4), "xla_vocab"), ((4, 1), "xla_vocab"), ((1, 4), "xla_token")],
)
def test_vocabulary_parallel(shape, implementation):
    check(Partition(make_mesh(*shape), ("data",), gather_axes=()), implementation=implementation)


@pytest.mark.parametrize(
    ("shape", "layout", "compact"),
    [((2, 2, 2), "vd", True), ((1, 4, 1), "vd", False), ((1, 2, 4), "dv", True)],
)
def test_rows_over_data_and_fsdp_and_a_head_split_both_ways(shape, layout, compact):
    check(Partition(make_mesh(*shape)), layout=layout, compact=compact)


@pytest.mark.parametrize(("vocab", "layout"), [(128, "vd"), (VOCAB, "vd"), (128, "dv")])
def test_a_head_gathered_before_the_call(vocab, layout):
    """A head [V, D] is turned first where implementations can read it [D, V]."""
    check(Partition(make_mesh(2, 2, 2), gather_once=True), layout=layout, vocab=vocab)


def test_the_head_is_never_whole():
    mesh = make_mesh(2, 4, 1)
    width, vocab = 64, 4096
    hidden, head, tokens, _ = problem(64, width, vocab)
    placed = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P("tensor", "fsdp"))
    hidden, tokens, head = *jax.device_put((hidden, tokens), placed[0]), jax.device_put(head, placed[1])

    def loss(hidden, head):
        lse, target = sharded_lse_and_target(
            Partition(mesh), hidden, head, tokens, options=LogprobOptions(vocab_block=256)
        )
        return jnp.sum(target - lse)

    compiled = jax.jit(jax.grad(loss, (0, 1)), out_shardings=placed).lower(hidden, head).compile()
    text = compiled.as_text()
    assert f"f32[256,{width}]" in text and f"f32[{vocab},{width}]" not in text
    for gradient, exact in zip(compiled(hidden, head), _gradients(hidden, head, tokens), strict=True):
        assert error(gradient, exact) < 1e-5


def _gradients(hidden, head, tokens):
    cotangents = -np.ones(64), np.ones(64), np.zeros(64)
    return oracle(hidden, head, tokens, cotangents=cotangents)[1][:2]


def test_a_token_outside_the_whole_vocabulary_gives_nan():
    mesh = make_mesh(1, 4)
    hidden, head, tokens, _ = problem(4, WIDTH, VOCAB)
    tokens = jnp.array([43, 44, -1, 11])
    partition = Partition(mesh, ("data",), gather_axes=())
    run = jax.jit(lambda y: sharded_lse_and_target(partition, hidden, head, y))
    lse, target = run(tokens)
    np.testing.assert_array_equal(np.isnan(target), [False, True, True, False])
    assert np.all(np.isfinite(lse))


def test_without_the_check_of_varying_axes_the_vocabulary_is_refused():
    mesh = make_mesh(1, 4)
    hidden, head, tokens, _ = problem(4, WIDTH, VOCAB)

    def local(hidden, head, tokens):
        return linear_logprob(hidden, head, tokens, **call(vocab_axis="tensor"))

    specs = {"in_specs": (P("data"), P("tensor"), P("data")), "out_specs": P("data"), "check_vma": False}
    with pytest.raises(ValueError, match="check_vma=True"):
        jax.shard_map(local, mesh=mesh, **specs)(hidden, head, tokens)
    with pytest.raises(ValueError, match="check_vma=True"):
        local(hidden, head, tokens)
    with pytest.raises(ValueError, match="gather_axes names 'fsdp'"):
        linear_logprob(hidden, head, tokens, **call(gather_axes=("fsdp",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_axis": "model"}, r"axes \('data', 'tensor'\), not 'model', which should split V"),
        ({"tokens": jnp.zeros((3,), jnp.int32), "hidden": jnp.zeros((3, 8))}, "T=3 cannot be split into 2"),
        ({"head": jnp.zeros((45, 8))}, "V=45 cannot be split into 2"),
        ({"gather_axes": ("tensor",)}, "gather_axes must be among token_axes"),
        ({"hidden": jnp.zeros((2, 2, 8))}, "two dimensions"),
        ({"options": LogprobOptions(vocab_axis="data")}, "cannot use vocab_axis='data': it is set by the partition"),
    ],
)
def test_arguments_that_do_not_fit_the_mesh_are_named(change, message):
    arguments = {"hidden": jnp.zeros((4, 8)), "head": jnp.zeros((44, 8)), "tokens": jnp.zeros((4,), jnp.int32)}
    axes = {"token_axes": ("data",), "gather_axes": (), **change}
    axes = {name: axes[name] for name in ("token_axes", "vocab_axis", "gather_axes") if name in axes}
    arguments.update({name: value for name, value in change.items() if name not in axes})
    with pytest.raises(ValueError, match=message):
        sharded_lse_and_target(Partition(make_mesh(2, 2), **axes), **arguments)
