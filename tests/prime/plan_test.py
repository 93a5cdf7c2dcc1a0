"""Plans against real states and compiled programs: bytes exact, operations within 10 %, memory within a factor of 2."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from prm_jax.cli import main
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, init_params, token_logprobs
from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.models.sharding import make_mesh, shardings_for
from prm_jax.prime import PRESETS, Options, train
from prm_jax.prime.accelerators import ACCELERATORS, GIB, find_accelerator
from prm_jax.prime.batch import Batch, Frozen
from prm_jax.prime.options import AdvantageOptions, MeshOptions, ModelOptions, PolicyOptions, PRMOptions, RolloutOptions
from prm_jax.prime.plan import check_fits, make_plan, planned_mesh, remedies
from prm_jax.prime.plan_memory import make_workload, model_bytes, parameter_counts, projection_params, state_bytes
from prm_jax.prime.plan_table import render, summary
from prm_jax.prime.plan_work import backward, collective_minimum, forward, scored_passes, step_flops
from prm_jax.prime.sources import make_source
from prm_jax.prime.start import frozen_arrays, load_start, make_setup
from prm_jax.prime.step import init_state, make_step
from prm_jax.rollouts.slot_programs import cache_bytes
from tests.prime.conftest import replaced, setup_of

QWEN_7B = ModelConfig(
    architecture="qwen2", attention_bias=True, vocab_size=152064, hidden_size=3584, intermediate_size=18944,
    num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, dtype="bfloat16",
)  # fmt: skip
SMALL = ModelConfig(
    vocab_size=512, hidden_size=64, intermediate_size=192, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16
)
ROWS, COLUMNS = 16, 256


# ------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("variant", ["full", "lora", "quantised", "critic", "replay"])
def test_state_bytes_are_those_of_a_real_state(run_options, variant):
    groups = {
        "full": {},
        "lora": {"model": {"lora_rank": 2}, "prm": {"lora_rank": 4}},
        "quantised": {"model": {"quantize": "int4", "quantization": QuantizationOptions(group=8, rank=2)},
                      "prm": {"lora_rank": 4}},
        "critic": {"advantage": {"estimator": "ppo"}},
        "replay": {"prm": {"replay": 20, "replay_warm_up": 0.5}},
    }  # fmt: skip
    options = replaced(run_options, **groups[variant])
    start = load_start(options)
    base = init_params(start.config, jax.random.key(0))
    start = start.placed(base, None, options)
    source = make_source(options, start)
    setup = make_setup(options, start, source)
    state = jax.eval_shape(lambda: init_state(setup, frozen_arrays(start, source), jax.random.key(0)))
    real = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, start.base)))
    found = state_bytes(make_workload(options, start.config, None, planned_mesh(options.mesh, 1), "cpu"))
    assert sum(found.values()) == real - 4  # the step's number


def test_state_of_7b_at_full_fine_tuning():
    work = make_workload(PRESETS["qwen2.5-7b-math"], QWEN_7B, None, planned_mesh(MeshOptions(), 1), "tpu")
    found = state_bytes(work)
    assert found["policy parameters"] + found["policy optimiser"] == pytest.approx(85 * GIB, rel=0.01)
    assert found["PRM parameters"] + found["PRM optimiser"] == pytest.approx(85 * GIB, rel=0.01)
    assert found["reference (initial weights)"] == pytest.approx(14.2 * GIB, rel=0.01)
    assert make_plan(work.options, QWEN_7B).update["policy gradient"] == pytest.approx(28.4 * GIB, rel=0.01)
    on_eight = make_workload(work.options, QWEN_7B, None, planned_mesh(MeshOptions(fsdp=8), 8), "tpu")
    assert sum(state_bytes(on_eight).values()) == pytest.approx((85 + 85 + 14.2) / 8 * GIB, rel=0.02)


def test_experts_are_counted_whole_in_memory_and_k_of_them_in_work():
    dense = ModelConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8
    )
    sparse = dataclasses.replace(dense, architecture="mixtral", num_experts=8, experts_per_token=2)
    expert, router = 3 * 16 * 24, 16 * 8
    assert projection_params(sparse) == projection_params(dense) + expert + router
    total, active = parameter_counts(sparse)
    assert parameter_counts(dense) == (total - 3 * (7 * expert + router),) * 2
    assert total - active == 3 * 6 * expert


def test_an_axis_of_experts_divides_their_memory_and_sends_tokens():
    """Mixtral's sizes: 46.7 billion parameters, 45.1 of them in experts."""
    config = ModelConfig(
        architecture="mixtral", num_experts=8, experts_per_token=2, vocab_size=32000, hidden_size=4096,
        intermediate_size=14336, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, dtype="bfloat16",
        compute_dtype="bfloat16",
    )  # fmt: skip
    options = replaced(PRESETS["qwen2.5-7b-math"], advantage={"process_coef": 0.0})
    rows, eight = replaced(options, mesh={"fsdp": 64}), {"fsdp": 8, "expert": 8}
    whole, divided = (make_plan(one, config, devices=64) for one in (rows, replaced(options, mesh=eight)))
    experts = 3 * 8 * 4096 * 14336 * 32
    total, _ = parameter_counts(config)
    for plan, rest in ((whole, 64), (divided, 8)):  # what is not an expert is divided by "fsdp" alone
        expected = (experts / 64 + (total - experts) / rest) * 12 / GIB
        found = plan.state["policy parameters"] + plan.state["policy optimiser"]
        assert found == pytest.approx(expected * GIB, rel=0.01)
    tokens = divided.work.rows * divided.work.columns / 64
    sent = 2 * 2 * 7 * tokens * 4096 * 2 * 32  # forward and backward, there and back, to 7 devices
    assert sent < collective_minimum(divided.work) < collective_minimum(whole.work)
    assert "--mesh.fsdp 64 --mesh.data 1 --mesh.expert 1 --mesh.tensor 1" in [one.option for one in remedies(divided)]
    with pytest.raises(UserError, match="--mesh.expert 8 divides experts, .* 'qwen2' has none"):
        make_plan(replaced(options, mesh=eight), QWEN_7B, devices=64)


def test_each_process_samples_with_weights_on_its_own_devices():
    options = replaced(PRESETS["qwen2.5-7b-math"], mesh={"fsdp": 64})
    alone, shared = (make_plan(options, QWEN_7B, devices=64, processes=n) for n in (1, 16))
    assert shared.state == alone.state and shared.update == alone.update
    assert alone.rollout["rollout weights on each process's devices"] == 0
    assert shared.rollout["rollout weights on each process's devices"] == pytest.approx(28.4 * GIB / 4, rel=0.01)
    assert shared.rollout["rollout cache"] == pytest.approx(alone.rollout["rollout cache"])  # 256 prompts, 64 devices
    with pytest.raises(UserError, match="--processes 3: 64 devices cannot be shared evenly"):
        make_plan(options, QWEN_7B, devices=64, processes=3)


def test_memory_of_slots_is_that_of_their_cache():
    options = replaced(PRESETS["tiny"], rollout={"slots": 40, "max_prompt_tokens": 10, "max_new_tokens": 22})
    found = {
        kind: make_plan(replaced(options, rollout={"cache_dtype": kind}), SMALL).rollout["rollout cache"]
        for kind in ("auto", "int8")
    }
    assert found == {kind: cache_bytes(SMALL, 40, 32, dtype) for kind, dtype in (("auto", "float32"), ("int8", "int8"))}
    assert make_plan(replaced(options, rollout={"engine": "generate"}), SMALL).rollout["rollout cache"] != found["auto"]
    assert not make_plan(replaced(options, rollout={"engine": "http://localhost:1"}), SMALL).rollout
    with pytest.raises(UserError, match=r"Largest: rollout cache .* What helps most: --rollout.slots 0 "):
        check_fits(replaced(options, rollout={"slots": 10**9}), SMALL, jax.devices()[:1])


def test_outcome_only_training_keeps_no_prm():
    options = replaced(PRESETS["tiny"], advantage={"process_coef": 0.0})
    assert not any("PRM" in cause for cause, _ in make_plan(options, SMALL).causes())


# --------------------------------------------------------------------------------- compiled programs


def small_options(remat="none", attention="naive") -> Options:
    return Options(
        model=ModelOptions(remat=remat, attention=attention),
        rollout=RolloutOptions(
            prompts_per_step=ROWS // 4, samples_per_prompt=4, max_prompt_tokens=COLUMNS - 128, max_new_tokens=128
        ),
        prm=PRMOptions(), policy=PolicyOptions(), advantage=AdvantageOptions(),
    )  # fmt: skip


def compiled_step(options: Options, unroll: int):
    """The compiled step of `options` on SMALL, for abstract rollouts."""
    config = dataclasses.replace(
        SMALL, remat=options.model.remat, attention=options.model.attention, scan_unroll=unroll
    )
    params = init_params(config, jax.random.key(0))
    setup, frozen = setup_of(options, config, params), Frozen(params, params)
    state = jax.eval_shape(lambda: init_state(setup, frozen, jax.random.key(0)))
    shapes = {
        "tokens": ((ROWS, COLUMNS), jnp.int32), "mask": ((ROWS, COLUMNS), bool), "keep": ((ROWS,), bool),
        "outcome": ((ROWS,), jnp.float32), "group_ids": ((ROWS,), jnp.int32), "step_ids": ((ROWS, COLUMNS), jnp.int32),
    }  # fmt: skip
    batch = Batch(**{name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()})
    # One phase after the other, as accelerators compute, instead of branches side by side.
    flags = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    return make_step(setup).lower(state, frozen, batch).compile(compiler_options=flags)


@pytest.mark.parametrize(("remat", "reference"), [("none", "policy"), ("full", "frozen")])
@pytest.mark.heavy
def test_operations_are_those_of_the_compiled_step(remat, reference):
    options = replaced(small_options(remat), prm={"reference": reference})
    counted = compiled_step(options, unroll=SMALL.num_layers).cost_analysis()["flops"]
    work = make_workload(options, SMALL, None, planned_mesh(MeshOptions(), 1), "cpu")
    expected = sum(part.total() for name, part in step_flops(work).items() if name != "generation")
    assert expected == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "layers", "expected"),
    [
        ({}, 4, ["reference"]),
        ({"prm": {"reference": "policy"}}, 4, []),  # the policy's update scores with the same weights
        ({"prm": {"reference": "policy"}}, 40, ["reference"]),  # not under a scan of layers
        ({"prm": {"reference": "policy", "minibatches": 2}, "policy": {"minibatches": 2}}, 40, ["policy"]),
        ({"prm": {"reference": "policy"}, "policy": {"minibatches": 2}}, 40, ["policy", "reference"]),
        ({"prm": {"reference": "policy", "minibatches": 2}, "policy": {"minibatches": 2},
          "rollout": {"temperature": 0.8}}, 40, ["policy", "reference"]),
        ({"policy": {"kl_coef": 0.1}}, 40, ["reference"]),  # which the divergence reads too
        ({"policy": {"kl_coef": 0.1}, "prm": {"reference": "policy"}}, 4, ["divergence"]),
        ({"policy": {"kl_coef": 0.1, "kl_placement": "reward"}, "advantage": {"process_coef": 0.0}}, 40,
         ["policy", "divergence"]),
    ],
)  # fmt: skip
def test_passes_that_the_step_shares_are_counted_once(changes, layers, expected):
    options = replaced(small_options(), **changes)
    config = dataclasses.replace(SMALL, num_layers=layers)
    found = scored_passes(make_workload(options, config, None, planned_mesh(MeshOptions(), 1), "cpu"))
    assert [name.split()[0] for name in found] == expected


@pytest.mark.parametrize(("remat", "attention"), [("none", "blockwise"), ("full", "blockwise"), ("none", "naive")])
@pytest.mark.heavy
def test_working_memory_is_within_a_factor_of_two_of_the_compiled_step(remat, attention):
    options = small_options(remat, attention)
    used = compiled_step(options, unroll=1).memory_analysis().temp_size_in_bytes
    expected = sum(make_plan(options, SMALL, platform="cpu").update.values())
    assert used / 2 <= expected <= 2 * used


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_operations_on_a_mesh(sizes):
    mesh, config = make_mesh(*sizes), dataclasses.replace(SMALL, scan_unroll=SMALL.num_layers, attention="naive")
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings_for(shapes, mesh)
    )
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    tokens = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.int32, sharding=rows)
    gradient = jax.jit(jax.value_and_grad(lambda p, t: token_logprobs(config, p, t).sum()))
    program = gradient.lower(params, tokens).compile()
    options = dataclasses.replace(
        small_options(), mesh=MeshOptions(*sizes), advantage=AdvantageOptions(process_coef=0.0)
    )
    work = make_workload(options, config, None, planned_mesh(options.mesh, 8), "cpu")
    expected = forward(work, config).per_device(work) + backward(work, config, lora=False).per_device(work)
    assert expected == pytest.approx(program.cost_analysis()["flops"], rel=0.15)


def test_minimum_of_collectives_is_that_of_gathers_and_gradients():
    options = dataclasses.replace(PRESETS["qwen2.5-7b-math"], prm=PRMOptions(), policy=PolicyOptions())
    work = make_workload(options, QWEN_7B, None, planned_mesh(MeshOptions(fsdp=64), 64), "tpu")
    gathers = 5 * model_bytes(QWEN_7B, planned_mesh(MeshOptions(), 1), "bfloat16")
    gradients = 2 * model_bytes(QWEN_7B, planned_mesh(MeshOptions(), 1), "bfloat16")
    assert collective_minimum(work) == pytest.approx((gathers + gradients) * 63 / 64)
    assert collective_minimum(work) == pytest.approx(97.7 * GIB, rel=0.02)


# ----------------------------------------------------------------------------------- what would help


def test_remedies_are_ordered_by_what_they_save_and_do_save_it():
    options = replaced(PRESETS["qwen2.5-7b-math"], model={"remat": "none", "attention": "naive"})
    found = make_plan(options, QWEN_7B, devices=8)
    helps = remedies(found)
    assert [x.saves for x in helps] == sorted((x.saves for x in helps), reverse=True)
    names = [x.option for x in helps]
    assert "--model.remat full" in names and "--model.attention auto" in names
    in_preset = [x.option for x in remedies(make_plan(PRESETS["qwen2.5-7b-math"], QWEN_7B, devices=8))]
    assert "--prm.lora-rank 16" in in_preset and "--model.remat full" not in in_preset
    changed = make_plan(replaced(options, model={"remat": "full"}), QWEN_7B, devices=8)
    saved = next(x.saves for x in helps if x.option == "--model.remat full")
    assert found.peak - changed.peak == pytest.approx(saved)


def test_what_is_in_use_already_is_not_suggested():
    least = {"microbatch_tokens": 4096}
    options = replaced(PRESETS["qwen2.5-7b-math-lora"], policy=least, prm=least)
    names = " ".join(x.option for x in remedies(make_plan(options, QWEN_7B)))
    assert "lora" not in names and "microbatch" not in names and "bfloat16" not in names


def test_smaller_pieces_are_spelled_as_the_run_asks_for_them():
    by_tokens = replaced(PRESETS["qwen2.5-7b-math"], rollout={"prompts_per_step": 32})
    # With more prompts the peak is the slots' cache, which smaller pieces of an update leave as it is.
    plain = {"microbatches": 4, "microbatch_tokens": 0}
    by_count = replaced(by_tokens, policy=plain, prm=plain)
    for options, spelled in (
        (by_tokens, "--policy.microbatch-tokens 4096 --prm.microbatch-tokens 4096"),
        (by_count, "--policy.microbatches 32 --prm.microbatches 32"),
    ):
        assert spelled in [x.option for x in remedies(make_plan(options, QWEN_7B))]


def test_small_and_offloaded_optimiser_states_are_remedies():
    full = replaced(PRESETS["qwen2.5-7b-math"], rollout={"prompts_per_step": 8})
    saved = {x.option: x.saves for x in remedies(make_plan(full, QWEN_7B, devices=8))}
    # Moments in float32 have 7.1 GiB on each of eight devices; in 8 bits a quarter of that.
    assert saved["--prm.moments int8"] == pytest.approx(0.75 * 56.8 / 8 * GIB, rel=0.05)
    assert saved["--prm.offload"] > saved["--model.offload-reference"] > 0
    small = replaced(full, prm={"moments": "int8", "offload": True}, policy={"moments": "int8", "offload": True})
    names = [x.option for x in remedies(make_plan(small, QWEN_7B, devices=8))]
    used = ("--policy.moments", "--prm.moments", "--policy.offload", "--prm.offload")
    assert not any(name.startswith(used) for name in names)


class Device:
    """A device of a given memory."""

    platform, process_index = "tpu", 0

    def __init__(self, memory: float | None):
        self.memory = memory

    def memory_stats(self):
        return {} if self.memory is None else {"bytes_limit": int(self.memory)}


def test_a_run_that_cannot_fit_is_refused_with_cause_and_option():
    options = PRESETS["qwen2.5-7b-math"]
    with pytest.raises(UserError, match=r"cannot fit.*at least .* per device.*policy optimiser.*--prm.lora-rank 16"):
        check_fits(options, QWEN_7B, [Device(16 * GIB)] * 8)


def test_a_replay_buffer_larger_than_memory_is_refused_by_name():
    options = replaced(PRESETS["qwen2.5-7b-math"], prm={"replay": 2_000_000})
    largest = r"Largest: PRM's replay buffer \(--prm.replay\)"
    with pytest.raises(UserError, match=largest + ".*What helps most: --prm.replay 0"):
        check_fits(options, QWEN_7B, [Device(80 * GIB)] * 8)


def test_a_run_that_may_not_fit_is_only_warned_about(caplog):
    found = make_plan(PRESETS["qwen2.5-7b-math"], QWEN_7B, devices=8)
    check_fits(PRESETS["qwen2.5-7b-math"], QWEN_7B, [Device((found.peak + found.least) / 2)] * 8)
    assert "may not fit" in caplog.text


@pytest.mark.parametrize("memory", [1e12, None])
def test_a_run_that_fits_or_whose_memory_is_unknown_passes_silently(memory, caplog):
    check_fits(PRESETS["qwen2.5-7b-math"], QWEN_7B, [Device(memory)] * 8)
    assert not caplog.text


def test_a_source_from_outside_needs_no_prm():
    options = PRESETS["qwen2.5-7b-math"]
    least = make_plan(options, QWEN_7B, devices=8, online_prm=False).least
    check_fits(options, QWEN_7B, [Device(1.5 * least)] * 8, online_prm=False)
    with pytest.raises(UserError, match="cannot fit"):
        check_fits(options, QWEN_7B, [Device(0.9 * least)] * 8, online_prm=False)


@pytest.fixture
def huge(tmp_path):
    """The configuration of a model far larger than this machine, without weights."""
    config = dataclasses.replace(QWEN_7B, num_layers=2000)
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "config.json").write_text(json.dumps(config.to_hf()))
    return tmp_path / "huge"


def test_train_refuses_before_it_reads_weights(huge, tmp_path):
    options = replaced(PRESETS["smoke"], model={"path": str(huge)}, sft={"steps": 0})
    with pytest.raises(UserError, match="cannot fit"):
        train(options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------- command line


def test_the_command_prints_causes_work_and_verdict(huge, capsys):
    code = main(["plan", "--preset", "qwen2.5-7b-math", "--model.path", str(huge), "--device", "v5p", "--devices", "8"])
    text = capsys.readouterr().out
    assert code == 3
    assert all(part in text for part in ("By arithmetic", "policy optimiser", "PRM backward", "minimum", "saves"))


def test_the_command_prints_json_of_a_fresh_model(capsys):
    assert main(["plan", "--preset", "smoke", "--vocab-size", "32", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] and values["method"] == "arithmetic" and values["devices"] == 1
    assert sum(values["flops"].values()) == pytest.approx(values["flops_without_repetition"])


def test_the_command_reads_a_config_file_and_the_tasks_vocabulary(capsys):
    assert main(["plan", "--preset", "smoke"]) == 0
    assert "It fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "h1000"], r"unknown device.*did you mean 'h100'"),
        (["--device", "zzz"], "there are v5e, v5p"),
        (["--devices", "8"], r"--mesh.data 1 --mesh.fsdp 1 --mesh.tensor 1 makes 1 devices, but there are 8"),
        (["--devices", "8", "--mesh.fsdp", "3", "--mesh.data", "-1"], "makes 6 devices, but there are 8"),
        (["--devices", "0"], "--devices is 0.*at least 1"),
        (["--devices", "3", "--mesh.tensor", "3"], "'tensor' of size 3 does not divide"),
        (["--rollout.max-new-tokens", "0"], "--rollout.max-new-tokens"),
        (["--sft.steps", "0", "--model.path", "/nowhere"], "no such file or directory"),
    ],
)
def test_bad_input_is_refused(words, message, capsys):
    assert main(["plan", "--preset", "smoke", *words]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("change", "message"), [({"hidden_size": None}, "hidden_size"), ({"vocab_size": 0}, "vocab_size")]
)
def test_a_configuration_without_a_field_is_refused_by_name(tmp_path, capsys, change, message):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B.to_hf() | change))
    assert main(["plan", "--preset", "smoke", "--sft.steps", "0", "--model.path", str(tmp_path / "config.json")]) == 2
    found = capsys.readouterr().err
    assert message in found and "config.json" in found


@pytest.mark.heavy
def test_a_plan_of_every_device_and_preset_can_be_printed():
    for name in ("v5e", "TPU-v6e", "NVIDIA H200"):
        device = find_accelerator(name)
        found = make_plan(PRESETS["qwen2.5-7b-math-lora"], QWEN_7B, devices=4, platform=device.platform)
        assert summary(found, device)["fits"] == ("It fits." in render(found, device))
    assert all(device.memory > 0 for device in ACCELERATORS.values())
