"""Safetensors files: a checkpoint's shards opened with every lie in their headers found, and written whole."""

import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.checkpoint_layout import first
from prm_jax.models.files import loads_json, read_json, write_json, write_text

SINGLE, INDEX, SUMS = "model.safetensors", "model.safetensors.index.json", "SHA256SUMS"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# The dtypes that are read and written, by the name of each.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER = 100_000_000


class Shards:
    """The tensors of a directory's safetensors files, read when asked for.

    Attributes:
      shapes: by name.
      dtypes: by name, as NumPy calls them.

    Raises:
      UserError: for files that are missing, truncated, contradict themselves or each other, hold a dtype that
        NumPy has not, or differ from their recorded SHA-256.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        listed = _listed(directory)
        files = dict.fromkeys(listed.values()) if listed else {SINGLE: None}
        verify_sums(directory, files)
        for file in files:
            self._open(file)
        astray = [n for n, file in listed.items() if n not in self._files]
        if astray:
            wrong = [f"{name} (said to be in {listed[name]})" for name in astray]
            raise UserError(f"{directory / INDEX} lists tensors that are not there: {first(wrong)}")

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor, as stored."""
        return self._files[name].get_tensor(name)

    def _open(self, file: str) -> None:
        from safetensors import SafetensorError, safe_open

        path = self._directory / file
        _check_header(path)
        try:
            opened = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or truncated: {error}") from error
        for name in opened.keys():
            if name in self._files:
                raise UserError(f"{self._directory} holds the tensor {name} in two files; remove one")
            view = opened.get_slice(name)
            if view.get_dtype() not in DTYPES:
                raise UserError(
                    f"{path}: tensor {name} has dtype {view.get_dtype()}, expected {', '.join(DTYPES)}; "
                    "take an unquantised checkpoint"
                )
            self._files[name] = opened
            self.shapes[name] = tuple(view.get_shape())
            self.dtypes[name] = DTYPES[view.get_dtype()]


def write_shards(
    directory: pathlib.Path,
    specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    max_bytes: int,
) -> None:
    """Writes tensors as one file, or above a size as several with an index, and their SHA-256.

    Args:
      directory: where to.
      specs: shape and dtype of every tensor, in the order in which ``tensors`` gives them.
      tensors: names and contiguous arrays; taken one at a time, so that memory for one suffices.
      max_bytes: size above which tensors go to a further file.
    """
    groups = _groups(specs, max_bytes)
    single = len(groups) == 1
    stream = iter(tensors)
    sums: dict[str, str] = {}
    placed: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = SINGLE if single else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        sums[file] = _write_file(directory / file, {n: specs[n] for n in names}, lambda: next(stream))
        placed |= dict.fromkeys(names, file)
    if not single:
        total = sum(_size(*spec) for spec in specs.values())
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    write_text(directory / SUMS, "".join(f"{digest}  {file}\n" for file, digest in sums.items()))


def verify_sums(directory: pathlib.Path, files: Iterable[str]) -> None:
    """Compares files with the SHA-256 that was recorded when they were written, where it was.

    The format itself has no checksum: a flipped bit would load as another number.

    Raises:
      UserError: for a file that differs.
    """
    try:
        lines = (directory / SUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {directory / SUMS}: {error}") from error
    recorded = {name.lstrip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)}
    for file in files:
        path = directory / file
        if file not in recorded or not path.is_file():
            continue
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != recorded[file].lower():
            raise UserError(
                f"{path} is not what was written: its SHA-256 differs from the one in {SUMS}; take another "
                f"copy, or delete {SUMS} if it was changed on purpose"
            )


def what_is_there(directory: pathlib.Path) -> str:
    """What a directory without loadable weights has instead, and what to do."""
    names = sorted(entry.name for entry in directory.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    ggufs = [name for name in names if name.endswith(".gguf")]
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return f"it has {first(shards)} but no {INDEX}"
    if ggufs:
        return f"it has GGUF files; give the path of one: {first(ggufs)}"
    if pickles:
        return pickle_advice(pickles[0])
    return f"expected {SINGLE} or {INDEX} in it"


def pickle_advice(name: str) -> str:
    """Why a pickle is not loaded, and what to do instead."""
    return (
        f"{name} is a pickle, which can run any program when it is loaded, and is refused; convert it where "
        "you trust it: transformers' model.save_pretrained(directory, safe_serialization=True)"
    )


def _listed(directory: pathlib.Path) -> dict[str, str]:
    """Tensor to file by the index; empty where a single file holds all."""
    if (directory / SINGLE).is_file():
        return {}
    if not (directory / INDEX).is_file():
        raise UserError(f"no weights in {directory}: {what_is_there(directory)}")
    listed = read_json(directory / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(f, str) for f in listed.values()):
        raise UserError(f"{directory / INDEX}: weight_map must map tensors to files")
    files = sorted(set(listed.values()))
    outside = [file for file in files if pathlib.PurePath(file).name != file]
    if outside:
        raise UserError(f"{directory / INDEX} points outside its directory: {first(outside)}")
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise UserError(f"{directory / INDEX} lists files that are not there: {first(missing)}")
    return listed


def _check_header(path: pathlib.Path) -> None:
    """Finds a tensor listed twice, which the reader below would take the last of."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            raw = file.read(min(length, _MAX_HEADER))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if len(head) < 8 or len(raw) < length:
        raise UserError(f"{path} is damaged or truncated: its header is cut off")
    loads_json(raw.decode("utf-8", errors="replace"), source=f"{path} (header)")


def _groups(specs: Mapping[str, tuple[tuple[int, ...], np.dtype]], max_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    used = 0
    for name, spec in specs.items():
        size = _size(*spec)
        if groups[-1] and used + size > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _write_file(
    path: pathlib.Path,
    specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    take: Callable[[], tuple[str, np.ndarray]],
) -> str:
    """Streams tensors into one file; its SHA-256."""
    codes = {name: code for code, name in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # what transformers asks for
    offset = 0
    for name, (shape, dtype) in specs.items():
        end = offset + _size(shape, dtype)
        header[name] = {"dtype": codes[dtype.name], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # aligns the numbers
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for part in (struct.pack("<Q", len(encoded)), encoded):
            file.write(part)
            digest.update(part)
        for name, (shape, dtype) in specs.items():
            given, tensor = take()
            if given != name or tensor.shape != shape or tensor.dtype != dtype:
                raise ValueError(f"expected {name} {shape} {dtype}, got {given} {tensor.shape} {tensor.dtype}")
            raw = tensor.reshape(-1).view(np.uint8).data
            file.write(raw)
            digest.update(raw)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
