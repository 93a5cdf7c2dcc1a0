"""Plans by the compiler: a step compiled for fake CPU devices in a child process, and what cannot be compiled."""

import json

import pytest

from prm_jax.cli import main
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.prime import PRESETS, plan_compile
from prm_jax.prime.accelerators import ACCELERATORS, GIB
from prm_jax.prime.plan import make_plan
from prm_jax.prime.plan_child import _used
from prm_jax.prime.plan_compile import CompiledStep, compile_step, missing_compiler, topology_of
from prm_jax.prime.plan_table import fits, render, summary
from tests.prime.conftest import replaced

pytestmark = pytest.mark.heavy

SMALL = ModelConfig(
    vocab_size=512, hidden_size=64, intermediate_size=192, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16
)


def test_the_command_compiles_a_step_for_fake_devices(capsys, tmp_path):
    words = [
        "plan",
        "--preset",
        "smoke",
        "--vocab-size",
        "32",
        "--devices",
        "2",
        "--mesh.fsdp",
        "2",
        "--model.num-layers",
        "1",
    ]
    program = tmp_path / "program.txt"
    assert main([*words, "--compile", "--json", "--program", str(program)]) == 0
    values = json.loads(capsys.readouterr().out)
    compiled = values["compiled"]
    assert values["method"] == "compiled" and compiled["target"] == "2 fake CPU devices"
    assert compiled["memory"]["temporaries"] > 0 and compiled["peak_bytes"] < GIB
    assert compiled["operations"]["products"] == pytest.approx(compiled["operations_ideal"], rel=0.15)
    assert set(compiled["collectives"]) >= {"all-gather"}
    assert compiled["collective_bytes"] == sum(compiled["collectives"].values())
    assert program.read_text().startswith("HloModule")


@pytest.mark.parametrize(
    ("name", "devices", "shape", "expected"),
    [
        ("v5p", 64, "", "v5p:4x4x4"),
        ("v6e", 64, "", "v6e:8x8"),
        ("v5e", 16, "2x8", "v5e:2x8"),
        ("v5e", 1, "", "v5e:2x2"),
        ("cpu", 3, "", ""),
    ],
)
def test_the_topology_of_a_number_of_chips(name, devices, shape, expected):
    assert topology_of(ACCELERATORS[name], devices, shape) == expected


@pytest.mark.parametrize(
    ("name", "devices", "shape", "message"),
    [
        ("v5p", 48, "", "--devices 48: v5p slices have 4, 8, .*--topology"),
        ("v5p", 64, "4x4", "--topology 4x4: .* such as 4x4x4"),
        ("v5e", 64, "4x4", "at least the 64 of --devices"),
        ("v5e", 16, "4xfour", "--topology 4xfour"),
    ],
)
def test_a_slice_that_does_not_exist_is_refused(name, devices, shape, message):
    with pytest.raises(UserError, match=message):
        topology_of(ACCELERATORS[name], devices, shape)


def test_without_a_compiler_the_plan_is_arithmetic_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(plan_compile.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'prm-jax[tpu]'" in missing_compiler(ACCELERATORS["v5e"])
    assert main(["plan", "--preset", "smoke", "--vocab-size", "32", "--device", "v5e", "--compile"]) == 0
    found = capsys.readouterr()
    assert "nothing was compiled (libtpu is not installed" in found.out and "not compiled" in found.err
    assert main(["plan", "--preset", "smoke", "--vocab-size", "32", "--device", "h100", "--compile"]) == 0
    assert "no compiler for h100" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be compiled for h100"):
        compile_step(PRESETS["smoke"], SMALL, ACCELERATORS["h100"])


def test_what_the_compilers_process_says_is_passed_on(monkeypatch):
    monkeypatch.setattr(plan_compile.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="could not be compiled: the compiler's process ended with 1"):
        compile_step(PRESETS["smoke"], SMALL, ACCELERATORS["cpu"])


def test_a_step_with_arrays_on_the_host_is_not_compiled():
    options = replaced(PRESETS["smoke"], prm={"offload": True})
    with pytest.raises(UserError, match="--prm.offload: .* by arithmetic"):
        compile_step(options, SMALL, ACCELERATORS["cpu"])


def test_options_of_the_compiler_need_it(capsys):
    assert main(["plan", "--preset", "smoke", "--vocab-size", "32", "--topology", "4x4x4"]) == 2
    assert "belong to --compile" in " ".join(capsys.readouterr().err.split())


def test_a_refusal_of_the_compiler_is_a_plan_that_does_not_fit():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 187.19G of 95.74G hbm. Exceeded by 91G"
    assert _used(message) == {"used_bytes": 187.19 * GIB} and _used("RESOURCE_EXHAUSTED: ?") == {}
    other = "the total memory required for HLO temporaries (17.36G) exceeds available HBM (15.75G)."
    assert _used(other) == {"used_bytes": 17.36 * GIB}
    found = make_plan(PRESETS["qwen2.5-7b-math-lora"], SMALL, devices=8)
    device = ACCELERATORS["v5p"]
    refused = CompiledStep("v5p:2x2x2", "libtpu", 3.0, used_bytes=187.19 * GIB, refusal=message)
    assert fits(found, device) and not fits(found, device, refused)
    assert "refused: it needs 187 GiB" in render(found, device, refused) and "does not fit" in render(
        found, device, refused
    )
    assert not summary(found, device, refused)["fits"]
    assert not fits(found, device, CompiledStep("v5p:2x2x2", "libtpu", 3.0, refusal="?"))
