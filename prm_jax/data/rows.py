"""Rows of data files: JSON lines, JSON lists, CSV, Parquet, Arrow, and directories of these as data sets come.

A row is read only when it is asked for, so that a bad one can be skipped and counted.
"""

import csv
import functools
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from prm_jax.data import records
from prm_jax.errors import UserError, require
from prm_jax.input_files import open_input

Row = Callable[[], Mapping[str, Any]]
"""Reads one row; raises UserError whose message starts with the place."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Names of data files end like this; text files may have ``.gz`` after it."""

_SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "dev"), "eval": ("eval",)}
_DESCRIPTIONS = {"dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"}
_MAX_JSON_LIST = 4 << 30


def is_data_name(name: str) -> bool:
    """Whether a name is that of a data file, existing or not, a directory, or a data set on the hub."""
    path = pathlib.Path(name)
    return _ends_like_data(name) or path.is_dir() or _is_split(path) or _hub_name(name) is not None


def _ends_like_data(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def read_rows(path: str | pathlib.Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of each row of a file or directory.

    Args:
      path: JSON lines, one JSON list, CSV or TSV with a header, Parquet, or Arrow, recognised by the end of the name or
        else by the first characters, text files also compressed as ``.gz``; a directory with such files, as Hugging
        Face data sets are saved; ``DIRECTORY/train`` for the files of one split in a directory that names several; or
        ``org/name`` and ``org/name/test`` for a data set on the Hugging Face hub, from the local cache or downloaded
        into it.

    Raises:
      UserError: a file that cannot be read, a data set that is neither cached nor can be downloaded.
      MissingExtraError: Parquet or Arrow without pyarrow.
    """
    hub = _hub_name(str(path))
    path = pathlib.Path(path) if hub is None else _download(*hub)
    if path.is_dir():
        for file in _files(path, "train"):
            yield from read_rows(file)
        return
    if _is_split(path):
        for file in _files(path.parent, path.name):
            yield from read_rows(file)
        return
    suffix = pathlib.Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from _csv_rows(path, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".parquet", ".arrow"):
        yield from _arrow_rows(path, suffix)
    elif _opens_list(path):
        yield from _list_rows(path)
    else:
        for where, line in records.lines(path):
            yield where, functools.partial(records.parse, line, where)


def _hub_name(name: str) -> tuple[str, str] | None:
    """("org/name", split or "") of a data set on the hub; None for what is not the name of one."""
    from prm_jax.models.hub import is_hub_name

    head, _, split = name.rpartition("/")
    if _ends_like_data(name) or pathlib.Path(name).exists():
        return None
    if is_hub_name(name):
        # A folder of the working directory that has no such file is a mistyped path.
        return None if pathlib.Path(head).is_dir() else (name, "")
    return (head, split) if split in _SPLITS and is_hub_name(head) else None


def _download(name: str, split: str) -> pathlib.Path:
    from prm_jax.models.hub import find_model

    return find_model(name, repo_type="dataset") / split


def _is_split(path: pathlib.Path) -> bool:
    """Whether a path is ``DIRECTORY/train``, a split whose files are in the directory itself."""
    return path.name in _SPLITS and path.parent != pathlib.Path() and path.parent.is_dir() and not path.exists()


def _files(directory: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The data files of one split of a data set's directory."""
    every = sorted(_data_files(directory))
    if not every:
        raise UserError(f"the directory {directory} has no data files; their names end in {', '.join(SUFFIXES)}")
    by_split: dict[str, list[pathlib.Path]] = {}
    for file in every:
        by_split.setdefault(_split_of(file.relative_to(directory)), []).append(file)
    if split in by_split:
        return by_split[split]
    if split == "train" and list(by_split) == [""]:
        return every
    raise UserError(
        f"the data set {directory} has no split {split!r}; it has {', '.join(filter(None, by_split)) or 'none'}, so "
        f"name one as {directory}/{next(filter(None, by_split), 'train')}, or a file in it"
    )


def _data_files(directory: pathlib.Path, depth: int = 3) -> Iterator[pathlib.Path]:
    """The data files in a directory and the folders below it, as deep as data sets are nested."""
    try:
        entries = list(directory.iterdir())
    except OSError:  # a folder that may not be read
        return
    for path in entries:
        if path.name.startswith((".", "cache-")) or path.name in _DESCRIPTIONS:
            continue
        if os.path.isdir(path):  # False for what may not be read
            if depth:
                yield from _data_files(path, depth - 1)
        elif _ends_like_data(path.name):
            yield path


def _split_of(path: pathlib.Path) -> str:
    """The split that a file's name or folder says; "" where they say none."""
    for part in reversed(path.parts):
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in _SPLITS.items():
            if any(word in names for word in words):
                return split
    return ""


def _csv_rows(path: pathlib.Path, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(records.MAX_LINE_BYTES)
    with open_input(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            where = f"{path}:{line}"
            try:
                cells = next(reader, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{where}: not CSV that can be read: {error}") from error
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = _header(cells, where)
            else:
                yield where, functools.partial(_csv_row, header, cells, where)


def _header(cells: list[str], where: str) -> list[str]:
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise UserError(f"{where}: the column {twice[0]!r} occurs more than once in the header")
    return cells


def _csv_row(header: list[str], cells: list[str], where: str) -> Mapping[str, Any]:
    if len(cells) != len(header):
        raise UserError(f"{where}: expected {len(header)} cells as in the header, found {len(cells)}")
    # An empty cell is a field that is not there: CSV cannot tell an absent value from an empty text.
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}


def _arrow_rows(path: pathlib.Path, suffix: str) -> Iterator[tuple[str, Row]]:
    open_input(path).close()  # for its messages
    arrow = require("pyarrow", "data")
    number = 0
    try:
        for batch in _batches(path, suffix):
            for record in batch.to_pylist():
                number += 1
                where = f"{path}:{number}"
                yield where, functools.partial(_without_none, record)
    except (arrow.ArrowException, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: not {suffix[1:].capitalize()} that can be read: {first}") from error


def _batches(path: pathlib.Path, suffix: str) -> Iterator[Any]:
    if suffix == ".parquet":
        parquet = require("pyarrow.parquet", "data")
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1024)
        return
    ipc = require("pyarrow.ipc", "data")
    with open(path, "rb") as file:
        # Data sets are saved as Arrow streams; files with a footer begin with a mark.
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            reader = ipc.open_file(file)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            yield from ipc.open_stream(file)


def _without_none(record: Mapping[str, Any]) -> Mapping[str, Any]:
    # A column that other rows fill is not a field of this one.
    return {name: value for name, value in record.items() if value is not None}


def _opens_list(path: pathlib.Path) -> bool:
    with open_input(path) as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _list_rows(path: pathlib.Path) -> Iterator[tuple[str, Row]]:
    """The elements of one JSON list, each parsed by itself, so that a message names its line."""
    with open_input(path) as file:
        text = _decoded(file, path)
    decoder, position, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    index = 0
    while True:
        position = _skip_space(text, position)
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}:{line}[{index}]"
        if index == 0 and text[position : position + 1] == "]":
            break
        try:
            _, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error) or "nested too deep"
            raise UserError(f"{where}: not JSON that can be read: {reason}") from error
        yield where, functools.partial(records.parse, text[position:end].encode(), where)
        position, index = _skip_space(text, end), index + 1
        if text[position : position + 1] != ",":
            break
        position += 1
    if text[position : position + 1] != "]" or text[position + 1 :].strip():
        found = text[position : position + 20]
        raise UserError(f"{where}: not JSON: expected ',' or the end of the list, found {found!r}")


def _decoded(file: BinaryIO, path: pathlib.Path) -> str:
    content = file.read(_MAX_JSON_LIST + 1)
    if len(content) > _MAX_JSON_LIST:
        raise UserError(f"{path} is a JSON list of more than {_MAX_JSON_LIST >> 30} GiB; write one object per line")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from None


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


_SPACE = re.compile(r"[ \t\n\r]*")
