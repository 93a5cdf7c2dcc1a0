"""Saving and loading reward models: a Hugging Face directory that says what kind it is and how to score with it."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prm_jax import config_io
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, check_fits, check_same_vocabulary, load_weights, merge, save_weights
from prm_jax.models.checkpoint_layout import leaves
from prm_jax.models.files import beside, read_json, sync_directory, write_json, write_text
from prm_jax.models.hub import find_model
from prm_jax.models.qtensor import dequantized
from prm_jax.models.quantization import quantize_as
from prm_jax.models.quantization_options import PREFIX, Bits, QuantizationOptions
from prm_jax.models.safetensors_files import SUMS, verify_sums
from prm_jax.models.sharding import shard_params
from prm_jax.models.tokenizer import Tokenizer
from prm_jax.option_ranges import check_ranges
from prm_jax.option_values import convert_options
from prm_jax.prm import public
from prm_jax.prm.kinds import Implicit
from prm_jax.prm.reward_model_options import POLICY_LAYOUT, Aggregate, Convention, TextLayout
from prm_jax.prm.score import PRM
from prm_jax.prm.spec import Kind, Spec, Weights
from prm_jax.prm.train_options import kind_class, refuse_options_of_other_kinds
from prm_jax.runs import processes, shared_files
from prm_jax.runs.learner import Params

FORMAT = 2
KEY = "prm_jax"
"""The entry of ``config.json`` that says what kind of model it is and how to score with it."""
HEAD, REFERENCE = "prm_head.safetensors", "reference"


def finished(spec: Spec, weights: Weights, tokenizer: Tokenizer, layout: TextLayout) -> PRM:
    """The model after training: adapters merged, no weight quantised, and without a reference that is not kept."""
    model, fixed = merge(spec.config, weights.model), spec.kind.saved(weights.fixed)
    reference = dequantized(weights.reference) if spec.kind.keeps_reference else None
    return PRM(spec, Weights(model, weights.head, fixed, reference), tokenizer, layout)


def save(path: str | pathlib.Path, prm: PRM, *, overwrite: bool = False) -> None:
    """Writes a Hugging Face directory that ``load`` reads, atomically.

    ``config.json`` and ``model.safetensors`` are those of the language model, which other libraries load as such; the
    entry ``prm_jax`` of the config says kind, layout of the text and aggregation; ``prm_head.safetensors`` holds head
    and regressions; ``reference/`` is the reference, itself such a directory.

    Args:
      path: the directory to make.
      prm: the model, adapters merged.
      overwrite: replace a model that an earlier call wrote there.

    If any weight spans several processes, all of them call this with the same arguments, and the first one writes.

    Raises:
      UserError: a path in use, or a failed write, in every process.
    """
    path = pathlib.Path(path)
    if all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(prm.weights)):
        _save(path, prm, overwrite, lambda work: work(), beside(path, "new"))
        return
    new = processes.broadcast_from_first(str(beside(path, "new")), name="saving a reward model")
    small = processes.to_host((prm.weights.head, prm.weights.fixed))
    prm = dataclasses.replace(prm, weights=dataclasses.replace(prm.weights, head=small[0], fixed=small[1]))
    _save(path, prm, overwrite, lambda work: shared_files.by_first(work, what=f"write {path}"), pathlib.Path(new))


def _save(
    path: pathlib.Path, prm: PRM, overwrite: bool, alone: Callable[[Callable[[], None]], None], new: pathlib.Path
) -> None:
    """Writes to `new` and renames; `alone` calls a function in the process that writes."""

    def begin() -> None:
        _check_target(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)

    def finish() -> None:
        _write_head(new, {"head": prm.weights.head, "fixed": prm.weights.fixed})
        write_json(new / "config.json", {**read_json(new / "config.json"), KEY: describe(prm)})
        sync_directory(new)
        if path.exists():
            aside = beside(path, "old")
            os.rename(path, aside)
            os.rename(new, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(new, path)

    try:
        alone(begin)
        save_weights(new, prm.spec.config, prm.weights.model, tokenizer=prm.tokenizer)
        if prm.weights.reference is not None:
            config = prm.spec.reference_config or prm.spec.config
            save_weights(new / REFERENCE, config, prm.weights.reference, tokenizer=prm.tokenizer)
        alone(finish)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        if processes.is_first():
            shutil.rmtree(new, ignore_errors=True)


def save_implicit(
    path: str | pathlib.Path,
    config: ModelConfig,
    params: Params,
    reference_config: ModelConfig,
    reference_params: Params,
    tokenizer: Tokenizer,
    *,
    beta: float,
    layout: TextLayout = POLICY_LAYOUT,
    aggregate: Aggregate = "sum",
    overwrite: bool = False,
) -> None:
    """Saves an implicit reward model that something else than `train` has trained, such as PRIME's online one.

    Args:
      path: the directory to make; `load`, and the commands that take a reward model, read it.
      config: the model's architecture.
      params: its parameters; adapters are merged.
      reference_config: the reference's architecture.
      reference_params: the parameters that the log-ratio compares with.
      tokenizer: of both.
      beta: scale of the log-ratio.
      layout: how prompts and steps become the rows that the model was trained on; default: a policy's rows.
      aggregate: how step scores become a response's; the outcome losses train the sum.
      overwrite: replace a model that an earlier call wrote there.

    Raises:
      UserError: a path in use, or a failed write.
    """
    spec = Spec(Implicit(beta=beta, aggregate=aggregate), config, reference_config)
    reference = merge(reference_config, reference_params)
    save(path, finished(spec, Weights(params, {}, {}, reference), tokenizer, layout), overwrite=overwrite)


def describe(prm: PRM) -> dict[str, Any]:
    """What the config of a saved model says about it."""
    return {
        "format": FORMAT,
        "kind": dataclasses.asdict(prm.spec.kind),
        "text": dataclasses.asdict(prm.layout),
        "label_ids": prm.spec.label_ids,
        "objectives": prm.spec.objectives,
        "step_score": prm.output,
        "aggregate": prm.aggregate,
        "scored_at": "the last token of each step, its separator included",
        "reference": REFERENCE if prm.weights.reference is not None else None,
    }


def load(
    path: str | pathlib.Path,
    *,
    layout: str = "auto",
    reference: str | pathlib.Path | None = None,
    convention: Convention = "own",
    compute_dtype: str = "float32",
    mesh: Mesh | None = None,
) -> PRM:
    """Loads a process reward model.

    Args:
      path: a directory that ``save`` wrote, or a public checkpoint of a known layout; a path or a name on the hub.
      layout: "auto", or a name in ``public.LAYOUTS`` for a checkpoint whose config does not name one.
      reference: the reference of an implicit model, where the directory does not hold it.
      convention: how a public checkpoint is read. own: the score of a step is that of its own tokens; card: as the
        code of its model card reads it, where that differs (eurus_prm).
      compute_dtype: "float32" or "bfloat16".
      mesh: devices to load the weights onto, shard by shard; `score_solutions` then splits solutions over them.

    Raises:
      UserError: for anything that ``load_weights`` refuses, an unknown layout (the nearest is named), a damaged head,
        a missing reference, or a reference with another tokenizer.
    """
    path = find_model(path)
    described = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if layout == "auto" and KEY in described:
        prm = _load_own(path, described[KEY], mesh)
        if convention != "own":
            raise UserError(f"--convention {convention} is for public checkpoints; {path} says itself how to score")
    else:
        prm = public.load_public(path, described, layout, convention, mesh)
    if reference is not None:
        prm = _with_reference(prm, find_model(reference), mesh)
    if prm.spec.kind.keeps_reference and prm.weights.reference is None:
        raise UserError(
            f"{path} scores by the log-ratio to a reference, which the directory does not hold: give the model that it "
            "was trained from with --reference (for EurusPRM: Qwen2.5-Math-7B-Instruct)"
        )
    return with_compute_dtype(prm, compute_dtype)


def with_compute_dtype(prm: PRM, dtype: str) -> PRM:
    """The model with activations and products in another dtype."""
    config = dataclasses.replace(prm.spec.config, compute_dtype=dtype)  # type: ignore[arg-type]
    reference = prm.spec.reference_config
    if reference is not None:
        reference = dataclasses.replace(reference, compute_dtype=dtype)  # type: ignore[arg-type]
    return dataclasses.replace(prm, spec=dataclasses.replace(prm.spec, config=config, reference_config=reference))


def quantized(prm: PRM, bits: Bits, options: QuantizationOptions, *, prefix: str = PREFIX) -> PRM:
    """The model with the weights of its language model, and of its reference, in few bits; the head stays as it is.

    Args:
      prm: from `load`.
      bits: "int8", "int4", "int2", or "none" for the model itself.
      options: how.
      prefix: of the options' names, in errors.

    Raises:
      UserError: see ``models.quantize``.
    """
    weights, spec = prm.weights, prm.spec
    model = quantize_as(spec.config, weights.model, bits, options, prefix=prefix)
    reference = weights.reference
    if reference is not None:
        reference = quantize_as(spec.reference_config or spec.config, reference, bits, options, prefix=prefix)
    return dataclasses.replace(prm, weights=dataclasses.replace(weights, model=model, reference=reference))


def options_from(cls: type[Any], values: Any, owner: str) -> Any:
    """A dataclass of options from the values that a config holds.

    Raises:
      UserError: not an object, an unknown name, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{owner}: expected an object, found {type(values).__name__}")
    return cls(**convert_options(dict(values), config_io.leaf_types(cls), owner))


def _kind_from(values: Any, owner: str) -> Kind:
    """The kind that a config describes, with its options."""
    if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
        raise UserError(f"{owner}: expected an object with the name of a kind, found {values!r:.60}")
    name = values["kind"]
    cls = kind_class(name)
    refuse_options_of_other_kinds(map(str, values), name, f"{owner}.")
    kind = options_from(cls, values, owner)
    problems = check_ranges(kind, f"{owner}.".removeprefix("--"))
    if problems:
        raise UserError("\n".join(problem.removeprefix("--") for problem in problems))
    assert isinstance(kind, Kind)
    return kind


def _load_own(path: pathlib.Path, described: Any, mesh: Mesh | None) -> PRM:
    where = f"{path / 'config.json'}: {KEY}"
    if not isinstance(described, Mapping) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, Mapping) else described
        raise UserError(f"{where} has format {found!r}; this version reads format {FORMAT}")
    kind = _kind_from(described.get("kind"), f"{where}.kind")
    layout = options_from(TextLayout, described.get("text"), f"{where}.text")
    config, params = load_weights(path, mesh=mesh)
    tokenizer = Tokenizer.load(path)
    check_fits(tokenizer, config)
    label_ids = described.get("label_ids")
    objectives = tuple(map(str, described.get("objectives") or ()))
    spec = Spec(kind, config, None, tuple(map(int, label_ids)) if label_ids else None, objectives)  # type: ignore[arg-type]
    tree = _read_head(path, spec)
    if mesh is not None:
        tree = shard_params(tree, mesh)
    prm = PRM(spec, Weights(params, tree["head"], tree["fixed"]), tokenizer, layout)
    if described.get("reference"):
        prm = _with_reference(prm, path / REFERENCE, mesh)
    return prm


def _with_reference(prm: PRM, path: pathlib.Path, mesh: Mesh | None) -> PRM:
    if not prm.spec.kind.keeps_reference:
        raise UserError(f"a reference is given, which this model of kind {prm.spec.kind.kind} does not use")
    config, params = load_weights(path, mesh=mesh)
    check_same_vocabulary(prm.tokenizer, Tokenizer.load(path), names=("the reward model", "the reference"))
    spec = dataclasses.replace(prm.spec, reference_config=config)
    return dataclasses.replace(prm, spec=spec, weights=dataclasses.replace(prm.weights, reference=params))


def _expected_head(spec: Spec) -> dict[str, Params]:
    head, fixed = jax.eval_shape(lambda key: spec.kind.init(spec, key), jax.random.key(0))
    return {"head": head, "fixed": spec.kind.saved(fixed)}


def _write_head(directory: pathlib.Path, tree: Mapping[str, Params]) -> None:
    import hashlib

    from safetensors.numpy import save

    flat = {".".join(names): np.ascontiguousarray(np.asarray(leaf)) for names, leaf in leaves(tree).items()}
    if not flat:
        return
    data = save(flat)
    with open(directory / HEAD, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sums = (directory / SUMS).read_text(encoding="utf-8") + f"{hashlib.sha256(data).hexdigest()}  {HEAD}\n"
    write_text(directory / SUMS, sums)


def _read_head(directory: pathlib.Path, spec: Spec) -> dict[str, Params]:
    """The head's arrays, compared with what the kind expects."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    wanted = leaves(_expected_head(spec))
    tree: dict[str, Params] = {"head": {}, "fixed": {}}
    if not wanted:
        return tree
    path = directory / HEAD
    verify_sums(directory, [HEAD])
    try:
        found = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: the head of the reward model cannot be read: {error}") from error
    for names, shape in wanted.items():
        name = ".".join(names)
        if name not in found or found[name].shape != shape.shape:
            has = list(found[name].shape) if name in found else "nothing"
            raise UserError(f"{path}: {name} should have shape {list(shape.shape)}, found {has}")
        if not np.isfinite(found[name]).all():
            raise UserError(f"{path}: {name} contains values that are not finite")
        node = tree
        for key in names[:-1]:
            node = node.setdefault(key, {})
        node[names[-1]] = jnp.asarray(found[name])
    return tree


def _check_target(path: pathlib.Path, overwrite: bool) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"cannot write a model to {path}: it is not a directory")
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{path} exists and is not empty; give another path, or overwrite=True")
    config = path / "config.json"
    if not config.is_file() or KEY not in read_json(config):
        raise UserError(f"{path} holds something other than a model of this kind; give another path")
