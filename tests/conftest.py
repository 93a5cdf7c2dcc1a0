"""Test-wide set-up: eight fake CPU devices and a persistent compilation cache, chosen before jax starts."""

import os
import pathlib

_REPO = pathlib.Path(__file__).resolve().parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Sharding tests need several devices.  With few cores the fake devices' collectives can dead-lock in XLA's
# thread pool unless it is told that there are more threads than cores (NPROC).
os.environ.setdefault("NPROC", "16")
_FLAGS = {
    "xla_force_host_platform_device_count": 8,
    # Compiling takes most of the suite's time, running next to none: machine code need not be optimised, and the
    # older emitters of fused loops compile a training step in a third of the time. Where XLA no longer has them, it
    # passes over this option.
    "xla_backend_optimization_level": 0,
    "xla_backend_extra_options": "xla_cpu_disable_new_fusion_emitters",
    "xla_cpu_parallel_codegen_split_count": 1,
}
for _name, _value in _FLAGS.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_name}={_value}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_REPO / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import gc  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from prm_jax.data.carry import ALPHABET  # noqa: E402
from prm_jax.models import CharTokenizer, ModelConfig, init_params, save_weights  # noqa: E402

# Tracing makes many small objects, few of them in cycles: with Python's threshold of 700 the collector takes a
# twentieth of the time.
gc.set_threshold(20_000, 10, 10)

_MAPS = pathlib.Path("/proc/self/maps")  # on Linux only, and so is the limit


# How long drawing an example takes depends on the machine's other work.
hypothesis.settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_let_go() -> Iterator[None]:
    """Each holds memory and a few memory maps, of which the kernel gives a process 65,530: tests would use them up."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 8_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Public data kept beside a checkout, where there is any; tests that need it skip without it."""
    path = pathlib.Path(os.environ.get("PRM_JAX_DATA", _REPO.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no public data at {path} (set PRM_JAX_DATA)")
    return path


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=18, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    return jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(1))


@pytest.fixture(scope="session")
def carry_model(tmp_path_factory) -> str:
    """Directory of a small model with the letters of the carry task, of which it knows nothing."""
    tokenizer = CharTokenizer(ALPHABET)
    config = ModelConfig(
        architecture="llama", vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1,
        num_heads=2, num_kv_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("carry_model") / "hf"
    save_weights(path, config, init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    return str(path)
