"""Where rows come from: files, folders and patterns of files, data sets on disk and on the Hugging Face Hub."""

import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Rows with their places, such as `set.jsonl:3`."""

_GZIP = ".gz"
_SAVED = ("dataset_info.json", "state.json")  # what `datasets` writes into the folder of a saved data set
_SAVED_SPLITS = "dataset_dict.json"


def rows_of(path: str, split: str | None = None, subset: str | None = None, revision: str | None = None) -> Rows:
    """The rows of a file, of all files of a folder or pattern, or of a data set, in a fixed order.

    Args:
        path: what is read; see `ProblemFile.path`.
        split: of a data set on the Hub, or of one saved to disk with several.
        subset: of a data set on the Hub.
        revision: of a data set on the Hub.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the Hub is needed and cannot be reached.
        ValueError: it cannot be read, or a row is malformed (with its place).
    """
    if not _is_local(path):
        return _hub_rows(path, split, subset, revision)
    several = (Path(path) / _SAVED_SPLITS).is_file()
    saved = several or all((Path(path) / name).is_file() for name in _SAVED)
    files = [] if saved else _files(path)
    if subset or revision or (split and not several):
        raise ValueError(f"data: split, subset and revision are for Hub datasets, {path} is not one")
    return _saved_rows(path, split) if saved else chain.from_iterable(_READERS[_suffix(file)](file) for file in files)


def first_row(path: str | Path) -> dict[str, Any]:
    """The first row of a file, empty if it has none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file or its first row is malformed.
    """
    return next((row for _, row in rows_of(str(path))), {})


def set_name(path: str) -> str:
    """The name of a set that is given none: the file's without suffixes, the folder's, the pattern, or the Hub's."""
    if _suffix(Path(path)) in _READERS:
        return Path(path.removesuffix(_GZIP)).stem
    return Path(path).resolve().name if Path(path).is_dir() else path


def _is_local(path: str) -> bool:
    """Whether `path` names files; anything that exists or looks like a file is never looked up on the Hub."""
    looks_local = _suffix(Path(path)) in _READERS or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) is None
    return looks_local or Path(path).exists()


def _suffix(path: Path) -> str:
    """The suffix that says how a file is read, `.jsonl` of `set.jsonl.gz`."""
    return Path(path.name.removesuffix(_GZIP)).suffix


def _files(path: str) -> list[Path]:
    """The file, or those of a folder or pattern, by name."""
    kinds = ", ".join(_READERS)
    if Path(path).is_file():
        if _suffix(Path(path)) not in _READERS:
            raise ValueError(f"data: {path} is not a {kinds} file")
        return [Path(path)]
    if Path(path).is_dir():
        found = [file for file in Path(path).iterdir() if file.is_file() and not file.name.startswith(".")]
        found = [file for file in found if _suffix(file) in _READERS]
        if not found:
            raise ValueError(f"data: {path} is not a folder with {kinds} files, nor a data set saved by `datasets`")
        return sorted(found)
    found = [Path(name) for name in glob.glob(path, recursive=True) if Path(name).is_file()]
    if not found:
        raise FileNotFoundError(f"data: there is no file {path} (looked in {Path.cwd()})")
    if other := next((file for file in found if _suffix(file) not in _READERS), None):
        raise ValueError(f"data: {path} finds {other}, which is not a {kinds} file")
    return sorted(found)


def _bytes(path: Path) -> io.BufferedIOBase:
    """An open file, unpacked."""
    return gzip.open(path) if path.suffix == _GZIP else path.open("rb")


def _jsonl_rows(path: Path) -> Rows:
    with _bytes(path) as lines:
        for number, line in enumerate(_unpacked(lines, path), start=1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _object(_parsed(line, place), place)


def _json_rows(path: Path) -> Rows:
    with _bytes(path) as file:
        rows = _parsed(b"".join(_unpacked(file, path)), str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must hold a list of objects, got {type(rows).__name__}; one object a line is .jsonl")
    for number, row in enumerate(rows, start=1):
        place = f"{path}: item {number}"
        yield place, _object(row, place)


def _csv_rows(path: Path) -> Rows:
    with _bytes(path) as file:
        lines = (_decoded(line, path, number) for number, line in enumerate(_unpacked(file, path), start=1))
        table = csv.reader(lines, delimiter="\t" if _suffix(path) == ".tsv" else ",", strict=True)
        try:
            names = next(table, [])
            if len(set(names)) < len(names) or "" in names:
                raise ValueError(f"{path}:1: every column needs a name of its own, got {', '.join(map(repr, names))}")
            for values in filter(None, table):
                place = f"{path}:{table.line_num}"
                if len(values) != len(names):
                    raise ValueError(f"{place}: {len(values)} values for the {len(names)} columns of the first line")
                yield place, dict(zip(names, values, strict=True))
        except csv.Error as error:
            raise ValueError(f"{path}:{table.line_num}: not valid CSV: {error}") from error


def _parquet_rows(path: Path) -> Rows:
    import datasets  # type: ignore[import-untyped]  # imported here: it takes a second, and most sets are jsonl

    # Streamed: read as it is, without the Arrow copy that `datasets` would keep in its cache.
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


def _saved_rows(path: str, split: str | None) -> Rows:
    import datasets

    rows = datasets.load_from_disk(path)
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise ValueError(f"data: name the `split` of {path}, one of {', '.join(rows)}; got {split!r}")
        rows = rows[split]
    where = f"{path}[{split}]" if split else path
    for number, row in enumerate(rows, start=1):
        yield f"{where}: row {number}", row


def _hub_rows(name: str, split: str | None, subset: str | None, revision: str | None) -> Rows:
    import datasets

    if split is None:
        raise ValueError(f"data: name the `split` of the Hub dataset {name} (no file of that name exists)")
    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"data: {name} is no file here, and the Hugging Face Hub cannot be reached ({error}). "
            f"Give the path of a {', '.join(_READERS)} file or of a folder, or fill the Hub cache while online."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{name}[{split}]: row {number}", row


def _unpacked(file: io.BufferedIOBase, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from error


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not valid CSV: {error}") from error


def _parsed(raw: bytes, place: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{place}: not valid JSON: {error}") from error


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: must be an object with named fields, got {type(row).__name__}")
    return row


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
"""By suffix; all but .parquet are also read with .gz behind."""
