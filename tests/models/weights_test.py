"""Weights round-trip through Hugging Face directories bit for bit; defects of a file are reported by name."""

import dataclasses
import json
import os
import pathlib
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer, Tokenizer, init_params, load_weights, save_weights
from prm_jax.models import weights_writing as weights_module
from prm_jax.models.checkpoint_layout import leaves, slots
from prm_jax.models.lora import LoRAConfig, init_lora, join, merge
from tests.models.checkpoints import CONFIGS, DTYPES, random_params, same_bits, write_raw_safetensors

CONFIG = CONFIGS["qwen2"]


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    save_weights(tmp_path / "model", CONFIG, random_params(CONFIG))
    return tmp_path / "model"


def rewrite(directory: pathlib.Path, **changes: np.ndarray | None) -> None:
    """Changes tensors of a single-file checkpoint without updating its checksums; __ for dots, None to drop."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for name, value in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, file)
    (directory / "SHA256SUMS").unlink(missing_ok=True)


class TestLayout:
    @pytest.mark.parametrize("family", CONFIGS)
    def test_slots_are_the_leaves_of_the_model(self, family):
        tree = jax.eval_shape(lambda: init_params(CONFIGS[family], jax.random.key(0)))
        shapes = {path: leaf.shape for path, leaf in leaves(tree).items()}
        assert shapes == {slot.path: slot.leaf_shape for slot in slots(CONFIGS[family])}


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("family", CONFIGS)
    def test_bit_for_bit(self, tmp_path, family, dtype):
        config = dataclasses.replace(CONFIGS[family], dtype=dtype)
        params = random_params(config, dtype=dtype)
        save_weights(tmp_path / "m", config, params)
        read, back = load_weights(tmp_path / "m")
        assert read == config
        assert same_bits(params, back)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves(back).values())

    def test_special_numbers_survive(self, tmp_path):
        params = random_params(CONFIG, dtype="bfloat16")
        bits = np.array([0x7FC1, 0xFF80, 0x8000, 0x0001], np.uint16).view(DTYPES["bfloat16"])
        params["final_norm"]["scale"][:4] = bits  # NaN with a payload, -inf, -0, a subnormal
        save_weights(tmp_path / "m", CONFIG, params)
        assert same_bits(params, load_weights(tmp_path / "m", host=True)[1])

    def test_jax_arrays_and_host_leaves(self, tmp_path):
        params = random_params(CONFIG)
        save_weights(tmp_path / "m", CONFIG, jax.tree.map(jnp.asarray, params))
        back = load_weights(tmp_path / "m", host=True)[1]
        assert same_bits(params, back)
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves(back).values())

    def test_sharded_arrays(self, tmp_path):
        mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
        params = random_params(CONFIG)
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
        params["layers"]["mlp"]["up"]["kernel"] = jax.device_put(params["layers"]["mlp"]["up"]["kernel"], spread)
        save_weights(tmp_path / "m", CONFIG, params)
        assert same_bits(params, load_weights(tmp_path / "m")[1])

    def test_shards_with_an_index(self, tmp_path):
        params = random_params(CONFIG)
        save_weights(tmp_path / "m", CONFIG, params, max_shard_bytes=20_000)
        index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
        files = sorted(set(index["weight_map"].values()))
        assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        for file in files:
            with safe_open(tmp_path / "m" / file, framework="numpy") as opened:
                assert set(opened.keys()) == {n for n, f in index["weight_map"].items() if f == file}
        assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in leaves(params).values())
        assert same_bits(params, load_weights(tmp_path / "m")[1])

    def test_kernels_are_stored_out_by_in(self, saved):
        params = random_params(CONFIG)
        stored = load_file(saved / "model.safetensors")
        for key, name in (("q", "self_attn.q_proj"), ("o", "self_attn.o_proj")):
            np.testing.assert_array_equal(
                stored[f"model.layers.1.{name}.weight"], params["layers"]["attn"][key]["kernel"][1].T
            )
        np.testing.assert_array_equal(stored["model.embed_tokens.weight"], params["embed"]["embedding"])

    def test_casting_while_saving(self, tmp_path):
        params = random_params(CONFIG)
        halves = jax.tree.map(lambda leaf: leaf.astype(DTYPES["bfloat16"]), params)
        save_weights(tmp_path / "full", CONFIG, params)
        config, read = load_weights(tmp_path / "full", dtype=jnp.bfloat16)
        assert config.dtype == "bfloat16" and same_bits(read, halves)
        save_weights(tmp_path / "half", CONFIG, params, dtype="bfloat16")
        config, read = load_weights(tmp_path / "half")
        assert config.dtype == "bfloat16" and same_bits(read, halves)

    def test_mixed_dtypes_are_read_as_float32(self, saved):
        rewrite(saved, model__norm__weight=np.full(32, 1.5, np.float16))
        config, params = load_weights(saved)
        assert config.dtype == "float32" and params["final_norm"]["scale"].dtype == jnp.float32
        np.testing.assert_array_equal(params["final_norm"]["scale"], 1.5)

    def test_a_copy_of_the_tied_head_and_old_buffers_are_fine(self, saved):
        embedding = load_file(saved / "model.safetensors")["model.embed_tokens.weight"]
        inverse = {"model__layers__0__self_attn__rotary_emb__inv_freq": np.ones(4, np.float32)}
        rewrite(saved, lm_head__weight=embedding, **inverse)
        assert same_bits(load_weights(saved)[1], random_params(CONFIG))

    def test_a_tokenizer_is_saved_too(self, tmp_path):
        config = dataclasses.replace(CONFIG, vocab_size=13)
        tokenizer = CharTokenizer("0123456789")
        save_weights(tmp_path / "m", config, random_params(config), tokenizer=tokenizer)
        assert Tokenizer.load(tmp_path / "m").fingerprint == tokenizer.fingerprint
        assert json.loads((tmp_path / "m" / "generation_config.json").read_text())["eos_token_id"] == [2]
        assert json.loads((tmp_path / "m" / "config.json").read_text())["eos_token_id"] == 2

    def test_loads_without_the_record_of_sums(self, saved):
        (saved / "SHA256SUMS").unlink()
        assert same_bits(load_weights(saved)[1], random_params(CONFIG))


class TestSaving:
    def test_adapters_are_refused_and_can_be_merged(self, tmp_path):
        lora = LoRAConfig(rank=2, targets=("q",))
        base = jax.tree.map(jnp.asarray, random_params(CONFIG))
        joined = join(base, init_lora(CONFIG, base, jax.random.key(0), lora))
        with pytest.raises(UserError, match="LoRA.*merge"):
            save_weights(tmp_path / "m", CONFIG, joined)
        assert not list(tmp_path.iterdir())
        save_weights(tmp_path / "m", CONFIG, merge(CONFIG, joined))
        assert same_bits(base, load_weights(tmp_path / "m")[1])  # lora_b is zero

    def test_other_files_are_never_overwritten(self, saved, tmp_path):
        before = {file.name: file.read_bytes() for file in saved.iterdir()}
        other = random_params(CONFIG, seed=1)
        with pytest.raises(UserError, match="not empty.*overwrite"):
            save_weights(saved, CONFIG, other)
        (saved / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="notes.txt"):
            save_weights(saved, CONFIG, other, overwrite=True)
        (saved / "notes.txt").unlink()
        assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
        save_weights(saved, CONFIG, other, overwrite=True)
        assert same_bits(load_weights(saved)[1], other)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="not a directory"):
            save_weights(tmp_path / "file", CONFIG, other, overwrite=True)

    @pytest.mark.parametrize("fails", ["write_json", "sync_directory"])
    def test_a_failing_disk_leaves_the_old_checkpoint(self, saved, tmp_path, monkeypatch, fails):
        def no_space(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(weights_module, fails, no_space)
        with pytest.raises(UserError, match="No space left"):
            save_weights(saved, CONFIG, random_params(CONFIG, seed=1), overwrite=True)
        assert same_bits(load_weights(saved)[1], random_params(CONFIG))
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]

    def test_a_failing_rename_puts_the_old_checkpoint_back(self, saved, tmp_path, monkeypatch):
        rename = os.rename

        def fail_for_new(source, target):
            if ".new." in str(source):
                raise OSError(5, "Input/output error")
            rename(source, target)

        monkeypatch.setattr(weights_module.os, "rename", fail_for_new)
        with pytest.raises(UserError, match="Input/output"):
            save_weights(saved, CONFIG, random_params(CONFIG, seed=1), overwrite=True)
        assert same_bits(load_weights(saved)[1], random_params(CONFIG))
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]

    def test_files_of_an_old_checkpoint_are_removed(self, saved):
        save_weights(saved, CONFIG, random_params(CONFIG), max_shard_bytes=20_000, overwrite=True)
        assert not (saved / "model.safetensors").exists()
        save_weights(saved, CONFIG, random_params(CONFIG), overwrite=True)
        assert not (saved / "model.safetensors.index.json").exists()

    def test_parameters_of_another_model(self, tmp_path):
        params = random_params(CONFIG)
        params["layers"]["attn"]["q"]["kernel"] = params["layers"]["attn"]["q"]["kernel"][:, :-1]
        del params["final_norm"]
        params["value"] = {"kernel": np.zeros(3, np.float32)}
        with pytest.raises(UserError) as error:
            save_weights(tmp_path / "m", CONFIG, params)
        for part in ("final_norm.scale is missing", "layers.attn.q.kernel has shape", "value.kernel is not"):
            assert part in str(error.value)

    def test_other_refusals(self, tmp_path):
        params = random_params(CONFIG)
        with pytest.raises(UserError, match="tokenizer does not match"):
            tokenizer = CharTokenizer("".join(chr(i) for i in range(200, 400)))
            save_weights(tmp_path / "m", CONFIG, params, tokenizer=tokenizer)
        with pytest.raises(UserError, match="int8.*not supported"):
            save_weights(tmp_path / "m", CONFIG, params, dtype="int8")
        with pytest.raises(UserError, match="unstacked"):
            save_weights(tmp_path / "m", CONFIG, {**params, "layers": ()})
        assert not list(tmp_path.iterdir())


class TestBadFiles:
    def test_missing_checkpoint(self, tmp_path):
        with pytest.raises(UserError, match="no such file or directory; expected a path, or a name on the"):
            load_weights(tmp_path / "nothing")
        with pytest.raises(UserError, match="has no config.json"):
            load_weights(tmp_path)

    def test_config(self, saved):
        text = (saved / "config.json").read_text()
        for broken, message in [
            (text.replace("Qwen2For", "GPT2For"), "architectures"),
            (text[:-10], r"config.json:\d+:\d+: not valid JSON"),
            ("[]", "expected a JSON object"),
            (text.replace('"num_hidden_layers": 2', f'"num_hidden_layers": {10**12}'), "layers, but it has only"),
            (text.replace('"vocab_size"', '"hidden_size"'), "duplicate key 'hidden_size'"),
        ]:
            (saved / "config.json").write_text(broken)
            with pytest.raises(UserError, match=message):
                load_weights(saved)

    @pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
    def test_pickles_are_refused(self, saved, suffix):
        (saved / "model.safetensors").rename(saved / f"pytorch_model{suffix}")
        with pytest.raises(UserError, match="pickle.*refused.*safe_serialization"):
            load_weights(saved)
        with pytest.raises(UserError, match="pickle.*refused.*safe_serialization"):
            load_weights(saved / f"pytorch_model{suffix}")

    def test_a_file_that_is_no_checkpoint(self, saved):
        with pytest.raises(UserError, match="expected a directory"):
            load_weights(saved / "model.safetensors")

    def test_gguf_inside_a_directory(self, saved):
        (saved / "model.safetensors").rename(saved / "model.gguf")
        with pytest.raises(UserError, match="give the path of one: model.gguf"):
            load_weights(saved)

    def test_pipes_and_devices_are_not_opened(self, saved):
        (saved / "config.json").rename(saved / "kept.json")
        os.mkfifo(saved / "config.json")
        with pytest.raises(UserError, match="has no config.json"):
            load_weights(saved)
        os.remove(saved / "config.json")
        (saved / "kept.json").rename(saved / "config.json")
        (saved / "SHA256SUMS").unlink()
        os.mkfifo(saved / "SHA256SUMS")
        with pytest.raises(UserError, match=r"SHA256SUMS is a named pipe \(FIFO\), expected a regular file"):
            load_weights(saved)
        os.mkfifo(saved / "m.gguf")
        with pytest.raises(UserError, match="m.gguf is a named pipe"):
            load_weights(saved / "m.gguf")
        with pytest.raises(UserError, match="/dev/zero is a device"):
            load_weights("/dev/zero")
        (saved / "SHA256SUMS").unlink()
        (saved / "SHA256SUMS").symlink_to("/dev/zero")
        with pytest.raises(UserError, match="SHA256SUMS is a device"):
            load_weights(saved)

    def test_tensors_that_do_not_fit(self, saved):
        rewrite(
            saved,
            model__norm__weight=None,
            model__embed_tokens__weight=np.zeros((96, 32), np.float32),
            **{f"model__layers__{i}__extra": np.zeros(1, np.float32) for i in range(2, 7)},
        )
        with pytest.raises(UserError) as error:
            load_weights(saved)
        for part in (
            "model.norm.weight is missing",
            "model.embed_tokens.weight has shape [96, 32], expected [97, 32]",
            "model.layers.2.extra is not a tensor of this model",
            "and 2 more",
        ):
            assert part in str(error.value)

    def test_a_tied_head_that_differs(self, saved):
        rewrite(saved, lm_head__weight=np.zeros((97, 32), np.float32))
        with pytest.raises(UserError, match="tie_word_embeddings"):
            load_weights(saved)

    def test_a_flipped_bit(self, saved):
        raw = bytearray((saved / "model.safetensors").read_bytes())
        raw[-5] ^= 1
        (saved / "model.safetensors").write_bytes(raw)
        with pytest.raises(UserError, match="SHA-256"):
            load_weights(saved)

    def test_truncated_anywhere(self, saved):
        (saved / "SHA256SUMS").unlink()
        raw = (saved / "model.safetensors").read_bytes()
        for length in [0, 4, 8, 100, len(raw) // 3, len(raw) - 4, len(raw) - 1]:
            (saved / "model.safetensors").write_bytes(raw[:length])
            with pytest.raises(UserError, match="truncated"):
                load_weights(saved)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', "damaged"),
            ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', "damaged"),
            ('{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}', "F8_E4M3.*unquantised"),
            ('{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}', "dtype I64, expected F32, F16, BF16"),
            ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": 1}', "duplicate key 'a'"),
            ("no json", "not valid JSON"),
            ("[1]", "expected a JSON object"),
        ],
    )
    def test_inconsistent_headers(self, saved, header, message):
        (saved / "SHA256SUMS").unlink()
        write_raw_safetensors(saved / "model.safetensors", header, b"\0" * 8)
        with pytest.raises(UserError, match=message):
            load_weights(saved)

    def test_a_header_of_absurd_size(self, saved):
        (saved / "SHA256SUMS").unlink()
        (saved / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
        with pytest.raises(UserError, match="truncated"):
            load_weights(saved)


class TestWrappedNames:
    """Names with a prefix that a wrapper put in front of them."""

    @pytest.mark.parametrize("prefix", ["base_model.model.", "language_model."])
    def test_prefixes(self, saved, prefix):
        expected = load_weights(saved)[1]
        tensors = load_file(saved / "model.safetensors")
        rewrite(saved, **dict.fromkeys(tensors), **{prefix + name: tensor for name, tensor in tensors.items()})
        assert same_bits(load_weights(saved)[1], expected)

    def test_inside_and_bare(self, saved):
        expected = load_weights(saved)[1]
        tensors = load_file(saved / "model.safetensors")
        for new in ("model.language_model.", ""):
            save_file({n.replace("model.", new, 1): t for n, t in tensors.items()}, saved / "model.safetensors")
            (saved / "SHA256SUMS").unlink(missing_ok=True)
            assert same_bits(load_weights(saved)[1], expected)

    def test_both(self, saved):
        rewrite(saved, **{"base_model.model.model.norm.weight": np.zeros(32, np.float32)})
        with pytest.raises(UserError, match="with and without the prefix base_model.model."):
            load_weights(saved)

    def test_adapters_that_were_not_merged(self, saved):
        name = "model.layers.0.self_attn.q_proj"
        q = load_file(saved / "model.safetensors")[f"{name}.weight"]
        rewrite(saved, **{f"{name}.weight": None, f"{name}.base_layer.weight": q})
        with pytest.raises(UserError, match="LoRA adapters that were not merged .*merge_and_unload"):
            load_weights(saved)


class TestBadShards:
    @pytest.fixture
    def shards(self, tmp_path) -> pathlib.Path:
        save_weights(tmp_path / "m", CONFIG, random_params(CONFIG), max_shard_bytes=20_000)
        (tmp_path / "m" / "SHA256SUMS").unlink()
        return tmp_path / "m"

    def test_missing(self, shards):
        next(shards.glob("model-00002*")).unlink()
        with pytest.raises(UserError, match="files that do not exist: model-00002-of"):
            load_weights(shards)

    def test_no_index(self, shards):
        (shards / "model.safetensors.index.json").unlink()
        with pytest.raises(UserError, match="but no model.safetensors.index.json"):
            load_weights(shards)

    def test_the_same_tensor_in_two(self, shards):
        first, second = sorted(shards.glob("model-*"))[:2]
        tensors = load_file(second)
        save_file({**tensors, **load_file(first)}, second)
        with pytest.raises(UserError, match="in two files"):
            load_weights(shards)

    def test_a_listed_tensor_is_missing(self, shards):
        first = min(shards.glob("model-*"))
        tensors = load_file(first)
        name = min(tensors)
        save_file({**{n: t for n, t in tensors.items() if n != name}, "other": tensors[name]}, first)
        with pytest.raises(UserError, match=f"lists tensors that do not exist: {name}"):
            load_weights(shards)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ({"weight_map": {"a": "../model.safetensors"}}, "outside its directory"),
            ({"weight_map": {"a": "/etc/passwd"}}, "outside its directory"),
            ({"weight_map": {"a": "x" * 5000 + ".safetensors"}}, r"files with more than 255 bytes: x+\.\.\. \(50"),
            ({"weight_map": {"a": "model\0.safetensors"}}, "outside its directory"),
            ({"weight_map": {}}, "weight_map must map"),
            ({"weight_map": {"a": 3}}, "weight_map must map"),
            ({}, "weight_map must map"),
        ],
    )
    def test_index(self, shards, index, message):
        (shards / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=message):
            load_weights(shards)

    def test_a_single_file_counts_before_an_index(self, shards, tmp_path):
        save_weights(tmp_path / "one", CONFIG, random_params(CONFIG, seed=1))
        shutil.copy(tmp_path / "one" / "model.safetensors", shards)
        assert same_bits(load_weights(shards)[1], random_params(CONFIG, seed=1))
