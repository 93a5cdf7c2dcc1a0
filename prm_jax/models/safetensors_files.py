"""Safetensors files: the shards of a checkpoint, their headers checked in full when read, written atomically."""

import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.checkpoint_layout import first
from prm_jax.models.files import check_regular, loads_json, read_json, read_text, short, write_json, write_text
from prm_jax.models.tensor_file import Index, TensorFile

SINGLE, INDEX, SUMS = "model.safetensors", "model.safetensors.index.json", "SHA256SUMS"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# The dtypes that are read and written, by the name of each.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INTEGERS = {"U8": "uint8", "I8": "int8"}
"""Of quantised parameters of this library alone; those of others mean something else."""
_NUMPY = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16),
          "uint8": np.dtype(np.uint8), "int8": np.dtype(np.int8)}  # fmt: skip
_MAX_HEADER = 100_000_000
_MAX_NAME = 255
# Prefixes that wrappers put in front of the language model's names, and what takes their place; in this order.
_WRAPPERS = (
    ("base_model.model.", ""),
    ("model.language_model.", "model."),
    ("language_model.", ""),
)
_DECODER = ("embed_tokens.", "layers.", "norm.")


class Shards:
    """The tensors of a directory's safetensors files, read on demand.

    Names are those of the language model itself: a prefix that a wrapper put in front of all of them
    (``base_model.model.``, ``language_model.``, ``model.language_model.``) is removed, and a bare decoder gets the
    ``model.`` that it was saved without.

    Args:
      directory: where they are.
      single: the file's name where there are no shards.
      plain_names: names are those of a language model, with dtypes in `DTYPES`; False: names as they are, and 8-bit
        integers too.

    Attributes:
      shapes: by name.
      dtypes: by name, NumPy's names.

    Raises:
      UserError: for files that are missing, truncated or inconsistent, a dtype that NumPy does not have, or a file
        that differs from its recorded SHA-256.
    """

    def __init__(self, directory: pathlib.Path, *, single: str = SINGLE, plain_names: bool = True):
        self._directory = directory
        self._known = DTYPES if plain_names else DTYPES | _INTEGERS
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._files: dict[str, TensorFile] = {}
        listed = _listed(directory, single)
        files = dict.fromkeys(listed.values()) if listed else {single: None}
        verify_sums(directory, files)
        for file in files:
            self._open(file)
        absent = [f"{name} (listed in {file})" for name, file in listed.items() if name not in self._files]
        if absent:
            raise UserError(f"{directory / INDEX} lists tensors that do not exist: {first(absent)}")
        self._stored = _plain_names(self._files, directory) if plain_names else {name: name for name in self._files}
        self.shapes = {name: self._shapes[stored] for name, stored in self._stored.items()}
        self.dtypes = {name: self._dtypes[stored] for name, stored in self._stored.items()}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The numbers of a tensor, as stored, or of the part of it that `index` selects; only that part is read."""
        stored = self._stored[name]
        return self._files[stored].read(stored, index)

    @property
    def bytes_read(self) -> int:
        """How much of the tensors has been read so far."""
        return sum(file.bytes_read for file in {id(file): file for file in self._files.values()}.values())

    def _open(self, file: str) -> None:
        from safetensors import SafetensorError, safe_open

        path = self._directory / file
        header, start = _read_header(path)
        specs: dict[str, tuple[tuple[int, ...], np.dtype, int]] = {}
        try:
            with safe_open(path, framework="numpy") as opened:  # checks lengths, offsets and shapes
                names = opened.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or truncated: {error}") from error
        for name in names:
            if name in self._files:
                raise UserError(f"{self._directory} has the tensor {short(name)} in two files; remove one")
            entry = header[name]
            if entry["dtype"] not in self._known:
                raise UserError(
                    f"{path}: tensor {short(name)} has dtype {entry['dtype']}, expected {', '.join(self._known)}; "
                    "use an unquantised checkpoint"
                )
            dtype = self._known[entry["dtype"]]
            specs[name] = (tuple(entry["shape"]), _NUMPY[dtype], start + entry["data_offsets"][0])
            self._shapes[name], self._dtypes[name] = specs[name][0], dtype
        self._files |= dict.fromkeys(names, TensorFile(path, specs))


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
      tensors: (name, contiguous array [rows, ...]): consecutive blocks of rows of every tensor; taken one at a time,
        so that memory for one block suffices.
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
    """Compares files with the SHA-256 that was recorded when they were written, if it was.

    The format itself has no checksum: a flipped bit would load as another number.

    Raises:
      UserError: for a file that differs.
    """
    try:
        lines = read_text(directory / SUMS).splitlines()
    except FileNotFoundError:
        return
    recorded = {name.lstrip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)}
    for file in files:
        path = directory / file
        if file not in recorded or not path.is_file():
            continue
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != recorded[file].lower():
            raise UserError(
                f"{path} was changed after it was written: its SHA-256 differs from the one in {SUMS}; use another "
                f"copy, or delete {SUMS} if the change was intended"
            )


def what_is_there(directory: pathlib.Path) -> str:
    """What a directory without loadable weights contains instead, and what to do."""
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
    return f"expected {SINGLE} or {INDEX}"


def pickle_advice(name: str) -> str:
    """Why a pickle is not loaded, and what to do instead."""
    return (
        f"{name} is a pickle, which can run any program when it is loaded, and is refused; convert it where "
        "you trust it: transformers' model.save_pretrained(directory, safe_serialization=True)"
    )


def _plain_names(stored: Iterable[str], directory: pathlib.Path) -> dict[str, str]:
    """The language model's own name of every tensor -> its name in the file."""
    found = {name: name for name in stored}
    for prefix, plain in _WRAPPERS:
        if any(name.startswith(prefix) for name in found):
            renamed = [(plain + name.removeprefix(prefix) if name.startswith(prefix) else name) for name in found]
            if len(set(renamed)) < len(found):
                raise UserError(f"{directory} has tensors with and without the prefix {prefix}, which contradict")
            found = dict(zip(renamed, found.values(), strict=True))
    if "embed_tokens.weight" in found and not any(name.startswith("model.") for name in found):
        found = {(f"model.{n}" if n.startswith(_DECODER) else n): stored for n, stored in found.items()}
    return found


def _listed(directory: pathlib.Path, single: str) -> dict[str, str]:
    """Tensor to file by the index; empty where a single file holds all."""
    if (directory / single).is_file():
        return {}
    if single != SINGLE or not (directory / INDEX).is_file():
        wanted = "" if single == SINGLE else f"expected {single}; "
        raise UserError(f"no weights in {directory}: {wanted}{what_is_there(directory)}")
    listed = read_json(directory / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(f, str) for f in listed.values()):
        raise UserError(f"{directory / INDEX}: weight_map must map tensors to files")
    files = sorted(set(listed.values()))
    outside = [file for file in files if pathlib.PurePath(file).name != file or "\0" in file]
    if outside:
        raise UserError(f"{directory / INDEX} points outside its directory: {first(outside)}")
    long = [file for file in files if len(os.fsencode(file)) > _MAX_NAME]
    if long:
        raise UserError(f"{directory / INDEX} names files with more than {_MAX_NAME} bytes: {first(long)}")
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise UserError(f"{directory / INDEX} lists files that do not exist: {first(missing)}")
    return listed


def _read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """(the header, where the numbers begin); refuses a tensor that is listed twice, which safetensors would accept."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            raw = file.read(min(length, _MAX_HEADER))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if len(head) < 8 or len(raw) < length:
        raise UserError(f"{path} is damaged or truncated: its header is cut off")
    return loads_json(raw.decode("utf-8", errors="replace"), source=f"{path} (header)"), 8 + length


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
    codes = {name: code for code, name in (DTYPES | _INTEGERS).items()}
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
            rows = 0
            while rows < shape[0]:
                given, block = take()
                rows += len(block)
                if given != name or block.shape[1:] != shape[1:] or block.dtype != dtype or rows > shape[0]:
                    raise ValueError(
                        f"expected rows of {name} {shape} {dtype}, got {given} {block.shape} {block.dtype}"
                    )
                raw = block.reshape(-1).view(np.uint8).data
                file.write(raw)
                digest.update(raw)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
