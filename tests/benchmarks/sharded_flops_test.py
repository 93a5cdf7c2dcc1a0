"""Work per device on a mesh, read from the compiled program: gradient of log-probs and PRIME step."""

import math

import jax
import pytest

from experiments.benchmarks import sharded_flops
from experiments.benchmarks.sharded_flops import CONFIG, MESHES, PROGRAMS, ROWS, TOKENS, measure, minimum

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
_ALONE: dict = {}


def _check(name, sizes):
    if name not in _ALONE:
        _ALONE[name] = measure(PROGRAMS[name], (1, 1, 1))
    alone, found = _ALONE[name], measure(PROGRAMS[name], sizes)
    devices = math.prod(sizes)
    assert found.flops * devices <= 1.1 * alone.flops
    rows, heads = ROWS // (sizes[0] * sizes[1]), CONFIG.num_heads // sizes[2]
    assert found.scores == rows * heads * TOKENS * TOKENS
    # Logits are a device's own rows times its own columns; other arrays over V have D as their other dimension.
    columns = CONFIG.vocab_size // sizes[2]
    logits = [math.prod(shape) for _, shape in found.arrays if shape[-1] in (columns, CONFIG.vocab_size)]
    assert max(logits) <= max(rows * TOKENS * columns, CONFIG.vocab_size * CONFIG.hidden_size)
    _check_communication(name, sizes, found)


def _check_communication(name, sizes, found):
    """Bytes near the minimum; outside of loops nothing is gathered but the head, token ids and a device's own rows."""
    assert found.sent <= 1.1 * minimum(name, sizes) + 2**16  # norms and biases
    columns = -(-CONFIG.vocab_size // sizes[2])
    stream = ROWS // (sizes[0] * sizes[1]) * TOKENS * CONFIG.hidden_size
    for one in found.collectives:
        if one.kind == "all-gather" and not one.loops:
            (_, shape), *_ = one.shapes
            assert sorted(shape) == sorted((columns, CONFIG.hidden_size)) or math.prod(shape) <= stream, one


@pytest.mark.parametrize("sizes", [m for m in MESHES if math.prod(m) == 8 or m in ((1, 2, 1), (1, 4, 1), (1, 1, 4))])
def test_the_gradient_of_log_probs_is_divided_evenly(sizes):
    _check("gradient", sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("step", (1, 8, 1)), ("step", (2, 2, 2)), ("step-lora", (2, 2, 2))])
def test_the_prime_step_is_divided_evenly(name, sizes):
    _check(name, sizes)


def test_the_table_names_every_mesh():
    assert len(MESHES) == 20 and all(math.prod(sizes) in (1, 2, 4, 8) for sizes in MESHES)
    assert set(sharded_flops.PROGRAMS) == {"gradient", "step", "step-lora"}
