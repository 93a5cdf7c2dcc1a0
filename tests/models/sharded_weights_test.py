"""Weights loaded and saved shard by shard: the same bits, and little memory on the host."""

import dataclasses
import functools
import mmap
import os
import socket
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import load_weights, make_mesh, save_weights, shardings_for
from prm_jax.models import tensor_blocks as blocks_module
from prm_jax.models.checkpoint_layout import leaves, slots
from prm_jax.models.loading import fresh_params
from prm_jax.models.safetensors_files import Shards
from prm_jax.models.sharded_assembly import assemble_sharded
from prm_jax.models.tensor_blocks import tensor_blocks
from prm_jax.models.tensor_file import TensorFile
from tests.models.checkpoints import CONFIGS, DTYPES, random_params, same_bits, write_gguf

MESHES = ((1, 8, 1), (2, 2, 2), (1, 4, 2), (8, 1, 1))
WIDE = dataclasses.replace(
    CONFIGS["llama"], vocab_size=512, hidden_size=256, intermediate_size=512, num_heads=8, head_dim=32, num_layers=4
)


def _lies_as_planned(params, mesh) -> bool:
    planned = leaves(shardings_for(params, mesh))
    return all(leaf.sharding == planned[path] for path, leaf in leaves(params).items())


def _copied(put, x: np.ndarray, device) -> jax.Array:
    """``put(x, device)`` from memory that tracemalloc does not count.

    A CPU device keeps NumPy's own memory as its array where that happens to be aligned, whatever ``may_alias`` says;
    it would then look as if the loader held it.
    """
    own = np.frombuffer(mmap.mmap(-1, x.nbytes), x.dtype).reshape(x.shape)
    own[...] = x
    return put(own, device)


class TestTensorFile:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(5,), (6, 4), (3, 3000), (3, 2, 2), ()])
    def test_parts_are_those_of_the_array(self, tmp_path, shape, dtype):
        array = np.random.default_rng(0).normal(size=shape).astype(DTYPES[dtype])
        (tmp_path / "f").write_bytes(b"header" + array.tobytes())
        file = TensorFile(tmp_path / "f", {"x": (shape, array.dtype, 6)})
        ways = [None, *([tuple(slice(n // 3, n) for n in shape), (slice(1, 2),)] if shape else [])]
        if len(shape) == 2:
            ways += [(slice(0, 3), slice(0, 1)), (slice(0, 3), slice(shape[1] // 5, shape[1]))]
        for index in ways:
            expected = array if index is None else array[index]
            found = file.read("x", index)
            assert (found.dtype, found.shape) == (array.dtype, expected.shape)
            assert found.tobytes() == expected.tobytes()

    def test_only_the_rows_and_long_runs_that_are_wanted_are_read(self, tmp_path):
        array = np.arange(4 * 16384, dtype=np.float32).reshape(4, 16384)
        (tmp_path / "f").write_bytes(array.tobytes())
        file = TensorFile(tmp_path / "f", {"x": (array.shape, array.dtype, 0)})
        np.testing.assert_array_equal(file.read("x", (slice(1, 3), slice(8192, 10240))), array[1:3, 8192:10240])
        assert file.bytes_read == 2 * 2048 * 4
        file.read("x", (slice(3, 4),))
        assert file.bytes_read == 2 * 2048 * 4 + 16384 * 4

    def test_a_file_that_was_cut_after_it_was_opened(self, tmp_path):
        (tmp_path / "f").write_bytes(bytes(16))
        file = TensorFile(tmp_path / "f", {"x": ((8,), np.dtype(np.float32), 0)})
        with pytest.raises(UserError, match="truncated: it ends at byte 16"):
            file.read("x")


class TestLoading:
    @pytest.mark.parametrize("sizes", MESHES)
    @pytest.mark.parametrize("family", CONFIGS)
    def test_bits_and_places_are_those_of_a_whole_model_that_is_then_spread(self, tmp_path, family, sizes):
        config, mesh = CONFIGS[family], make_mesh(*sizes)
        params = random_params(config, dtype="bfloat16")
        save_weights(tmp_path / "m", config, params, max_shard_bytes=20_000)
        read, back = load_weights(tmp_path / "m", mesh=mesh)
        assert read == dataclasses.replace(config, dtype="bfloat16")
        assert same_bits(params, back) and _lies_as_planned(back, mesh)

    def test_conversion_of_every_shard(self, tmp_path):
        params, mesh = random_params(CONFIGS["qwen2"]), make_mesh(1, 4, 2)
        save_weights(tmp_path / "m", CONFIGS["qwen2"], params)
        halves = jax.tree.map(lambda leaf: leaf.astype(DTYPES["bfloat16"]), params)
        assert same_bits(load_weights(tmp_path / "m", mesh=mesh, dtype="bfloat16")[1], halves)

    def test_each_number_is_read_once_and_by_shard(self, tmp_path):
        config, mesh = CONFIGS["llama"], make_mesh(1, 4, 2)
        save_weights(tmp_path / "m", config, random_params(config))
        source, sizes = Shards(tmp_path / "m"), []

        def read(name, index=None, /):
            part = source.read(name, index)
            sizes.append((name, part.size))
            return part

        assemble_sharded(config, read, dtype=np.dtype(np.float32), mesh=mesh, host_bytes=1)
        whole = {name: int(np.prod(shape)) for name, shape in source.shapes.items()}
        kernel = "model.layers.0.mlp.up_proj.weight"
        assert [size for name, size in sizes if name == kernel] == [whole[kernel] // 8] * 8
        once = {name: sum(size for found, size in sizes if found == name) for name in whole}
        assert once == whole

    def test_host_memory_holds_shards_and_never_a_leaf(self, tmp_path, monkeypatch):
        monkeypatch.setattr(jax, "device_put", functools.partial(_copied, jax.device_put))
        config = dataclasses.replace(WIDE, num_layers=16)
        save_weights(tmp_path / "m", config, random_params(config))
        source, mesh = Shards(tmp_path / "m"), make_mesh(1, 8)
        total = sum(int(np.prod(slot.leaf_shape)) * 4 for slot in slots(config))
        peaks = {}
        for host_bytes in (1, 1 << 30):
            load = lambda host_bytes=host_bytes: assemble_sharded(  # noqa: E731
                config, source.read, dtype=np.dtype(np.float32), mesh=mesh, host_bytes=host_bytes
            )
            load()  # what jax allocates once
            tracemalloc.start()
            params = load()
            peaks[host_bytes] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert same_bits(params, random_params(config))
        kernel = 16 * 512 * 256 * 4
        assert peaks[1] < kernel < peaks[1 << 30] < total, (peaks, kernel, total)

    def test_gguf_and_adapters(self, tmp_path):
        mesh, config = make_mesh(1, 4, 2), CONFIGS["llama"]
        write_gguf(tmp_path / "m.gguf", config, random_params(config))
        assert same_bits(load_weights(tmp_path / "m.gguf", mesh=mesh)[1], load_weights(tmp_path / "m.gguf")[1])

    def test_a_fresh_model_made_in_shards_has_the_bits_of_one_made_whole(self):
        config, mesh, key = CONFIGS["qwen2"], make_mesh(1, 4, 2), jax.random.key(3)
        params = fresh_params(config, key, mesh=mesh)
        assert _lies_as_planned(params, mesh) and same_bits(params, fresh_params(config, key))

    def test_a_mesh_and_the_host_contradict(self, tmp_path):
        with pytest.raises(ValueError, match="not both"):
            load_weights(tmp_path, host=True, mesh=make_mesh(8))

    def test_an_axis_that_does_not_divide(self, tmp_path):
        config = dataclasses.replace(CONFIGS["llama"], intermediate_size=44)
        save_weights(tmp_path / "m", config, random_params(config))
        with pytest.raises(UserError, match="'fsdp' of size 8 does not divide|'tensor' of size 8 does not divide"):
            load_weights(tmp_path / "m", mesh=make_mesh(1, 1, 8))


class TestSaving:
    @pytest.mark.parametrize(("sizes", "dtype"), [((1, 8, 1), "float32"), ((2, 2, 2), "bfloat16")])
    def test_sharded_leaves_in_blocks(self, sizes, dtype):
        config, mesh = CONFIGS["qwen2"], make_mesh(*sizes)
        params = random_params(config)
        placed = leaves(jax.device_put(params, shardings_for(params, mesh)))
        for slot in slots(config):
            if slot.path[-2] not in ("q", "down", "attn_norm"):
                continue
            found: dict[str, list[np.ndarray]] = {}
            size = 10 * slot.shape[-1] * 4
            for name, block in tensor_blocks(
                slot, placed[slot.path], np.dtype(DTYPES[dtype]), block_bytes=size, small_bytes=0
            ):
                found.setdefault(name, []).append(block)
            for name, row in zip(slot.names, leaves(params)[slot.path], strict=True):
                expected = (row.T if slot.transposed else row).astype(DTYPES[dtype])
                assert np.concatenate(found[name]).tobytes() == expected.tobytes(), name
                assert len(found[name]) > 1 or len(slot.shape) == 1

    def test_host_memory_holds_a_block(self, tmp_path, monkeypatch):
        config = dataclasses.replace(WIDE, num_layers=8)
        mesh = make_mesh(1, 8)
        params = random_params(config)
        placed = jax.device_put(params, shardings_for(params, mesh))
        del params
        monkeypatch.setattr(blocks_module.tensor_blocks, "__kwdefaults__", {"block_bytes": 1 << 16, "small_bytes": 0})
        save_weights(tmp_path / "first", config, placed)
        tracemalloc.start()
        save_weights(tmp_path / "m", config, placed)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 16, peak
        assert same_bits(placed, load_weights(tmp_path / "m", host=True)[1])


_WORKER = """
import pathlib, sys
import jax
rank, port, directory = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
from prm_jax.errors import UserError
from prm_jax.models import load_weights, make_mesh, save_weights
from prm_jax.models.tensor_file import TensorFile

count = 0
read = TensorFile._read_into
def counted(self, array, offset):
    global count
    count += array.nbytes
    read(self, array, offset)
TensorFile._read_into = counted
config, params = load_weights(directory / "m", mesh=make_mesh(1, 1, 4))
save_weights(directory / "again", config, params)
try:
    save_weights(directory / "again", config, params)
except UserError as error:
    print(count, "again" in str(error), error)
else:
    print("no error")
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_processes_read_their_own_parts_and_save_together(tmp_path):
    save_weights(tmp_path / "m", WIDE, random_params(WIDE))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(rank), str(port), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        ended = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, (out, err) in zip(workers, ended, strict=True):
        assert worker.returncode == 0, out + err[-3000:]
    lines = [out.splitlines()[-1] for out, _ in ended]
    total = sum(leaf.nbytes for leaf in leaves(random_params(WIDE)).values())
    for line in lines:
        read, refused = line.split()[:2]
        assert refused == "True" and int(read) < 0.7 * total, (lines, total)
    assert "exists and is not empty" in lines[0] and "the first process could not write" in lines[1]
    assert same_bits(random_params(WIDE), load_weights(tmp_path / "again", host=True)[1])
