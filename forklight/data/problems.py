"""Readers: files and Hugging Face Hub datasets to lists of `Problem`. Every error says where in the file it is."""

import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forklight.types import Problem

log = logging.getLogger(__name__)

GSM8K_ANSWER = r"####\s*(.+)"
"""`answer_pattern` for GSM8K's own files, whose answers are worked solutions that end in `#### 72`."""


@dataclass(frozen=True)
class ProblemFile:
    """A set of problems: a file or a dataset on the Hugging Face Hub.

    Example:
        >>> ProblemFile("data/gsm8k.jsonl", answer_pattern=GSM8K_ANSWER).label
        'gsm8k'
    """

    path: str
    """A .jsonl, .json (list of objects) or .parquet file, or the name of a Hub dataset such as `openai/gsm8k`."""
    name: str | None = None
    """Name of the set, part of every problem's uid; by default the file's name without suffix, or the Hub name."""
    prompt_field: str = "problem"
    """Field that holds the problem's text."""
    answer_field: str = "answer"
    """Field that holds the answer to compare with: text, a number, or a list of texts, which are joined by commas."""
    answer_pattern: str = ""
    r"""Regular expression whose one group cuts out the answer, such as `####\s*(.+)`; the last match wins."""
    split: str | None = None
    """Split of a Hub dataset, such as `train`; needed there and refused for files."""
    subset: str | None = None
    """Subset (configuration) of a Hub dataset, such as `main`."""
    revision: str | None = None
    """Commit, branch or tag of a Hub dataset."""
    limit: int | None = None
    """Keep only this number of different problems, the first ones."""

    @property
    def label(self) -> str:
        """The set's name: `name`, or what `path` says."""
        return self.name or (Path(self.path).stem if Path(self.path).suffix in _FILE_READERS else self.path)

    def read(self) -> list[Problem]:
        """Reads the problems in file order, each different one once; see `read_problems`."""
        return read_problems(**asdict(self))


def read_problems(
    path: str | Path,
    *,
    name: str | None = None,
    prompt_field: str = "problem",
    answer_field: str = "answer",
    answer_pattern: str = "",
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """Reads a set of problems.

    White space around prompts and answers is dropped. A problem whose prompt was read before is dropped with a warning.

    Args:
        path: file, or name of a Hub dataset; the arguments are the fields of `ProblemFile`.
        name: name of the set.
        prompt_field: field of the problem's text.
        answer_field: field of the answer.
        answer_pattern: regular expression with one group for the answer.
        split: split of a Hub dataset.
        subset: subset of a Hub dataset.
        revision: revision of a Hub dataset.
        limit: number of problems to keep.

    Returns:
        At least one problem, in the order of the file.

    Raises:
        FileNotFoundError: if there is neither such a file nor such a dataset.
        ConnectionError: if the Hub is needed and cannot be reached.
        ValueError: if a row is malformed (with its place), the set is empty, or the arguments contradict each other.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit} for {path}")
    pattern = re.compile(answer_pattern) if answer_pattern else None
    if pattern is not None and pattern.groups != 1:
        raise ValueError(f"answer_pattern needs exactly one group (...), {answer_pattern!r} has {pattern.groups}")
    source = ProblemFile(str(path), name).label
    rows = (
        _file_rows(Path(path), split, subset, revision)
        if _is_file(path)
        else _hub_rows(str(path), split, subset, revision)
    )
    problems = (
        Problem.make(_prompt(row, prompt_field, place), _answer(row, answer_field, pattern, place), source)
        for place, row in rows
    )
    kept = _first_different(problems, limit, str(path))
    if not kept:
        raise ValueError(f"{path} holds no problems")
    return kept


def first_row(path: str | Path) -> dict[str, Any]:
    """The first row of a file, empty if it has none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file or its first row is malformed.
    """
    return next((row for _, row in _file_rows(Path(path), None, None, None)), {})


def _first_different(problems: Iterator[Problem], limit: int | None, path: str) -> list[Problem]:
    """The first `limit` problems of different uid; warns of the repeats among them."""
    kept: dict[str, Problem] = {}
    repeated = conflicting = 0
    for problem in problems:
        first = kept.setdefault(problem.uid, problem)
        if first is not problem:
            repeated += 1
            conflicting += first.answer != problem.answer
        if len(kept) == limit:
            break
    if repeated:
        log.warning(
            "%s: dropped %d problems that repeat an earlier one, %d of them with another answer; %d are left",
            path,
            repeated,
            conflicting,
            len(kept),
        )
    return list(kept.values())


def _prompt(row: dict[str, Any], field: str, place: str) -> str:
    value = _value(row, field, place)
    if not isinstance(value, str):
        raise ValueError(f"{place}: `{field}` must be text, got {type(value).__name__}")
    return _filled(value, field, place)


def _answer(row: dict[str, Any], field: str, pattern: re.Pattern[str] | None, place: str) -> str:
    value = _value(row, field, place)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{place}: `{field}` must be text, a list of texts or a number, got {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: `{field}` is {value}, which no answer can equal")
    text = str(value)
    if pattern is not None:
        found = pattern.findall(text)
        if not found:
            raise ValueError(
                f"{place}: answer_pattern {pattern.pattern!r} matches nothing in `{field}`: {text[-80:]!r}"
            )
        text = found[-1]
    return _filled(text, field, place)


def _value(row: dict[str, Any], field: str, place: str) -> Any:
    if field not in row:
        fields = ", ".join(f"`{name}`" for name in row) or "none"
        raise ValueError(f"{place}: no field `{field}` (set prompt_field / answer_field); fields here: {fields}")
    return row[field]


def _filled(text: str, field: str, place: str) -> str:
    if not text.strip():
        raise ValueError(f"{place}: `{field}` is empty")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{place}: `{field}` holds half a character (a lone UTF-16 surrogate)")
    return text.strip()


def _is_file(path: str | Path) -> bool:
    """Whether `path` names a file; anything that exists or looks like a file is never looked up on the Hub."""
    return (
        Path(path).exists()
        or Path(path).suffix in _FILE_READERS
        or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path)) is None
    )


def _file_rows(
    path: Path, split: str | None, subset: str | None, revision: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.exists():
        raise FileNotFoundError(f"data: there is no file {path} (looked in {Path.cwd()})")
    if path.suffix not in _FILE_READERS or path.is_dir():
        raise ValueError(f"data: {path} is not a {', '.join(_FILE_READERS)} file")
    if split or subset or revision:
        raise ValueError(f"data: split, subset and revision are for Hub datasets, {path} is a file")
    return _FILE_READERS[path.suffix](path)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _object(_parsed(line, place), place)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = _parsed(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must hold a list of objects, got {type(rows).__name__}; one object a line is .jsonl")
    for number, row in enumerate(rows, start=1):
        place = f"{path}: item {number}"
        yield place, _object(row, place)


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets  # type: ignore[import-untyped]  # imported here: it takes a second, and most sets are jsonl

    # Streamed: read as it is, without the Arrow copy that `datasets` would keep in its cache.
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


def _hub_rows(
    name: str, split: str | None, subset: str | None, revision: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    if split is None:
        raise ValueError(f"data: name the `split` of the Hub dataset {name} (no file of that name exists)")
    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"data: {name} is no file here, and the Hugging Face Hub cannot be reached ({error}). "
            "Give the path of a .jsonl, .json or .parquet file, or fill the Hub cache while online."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{name}[{split}]: row {number}", row


def _parsed(raw: bytes, place: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{place}: not valid JSON: {error}") from error


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: must be an object with named fields, got {type(row).__name__}")
    return row


_FILE_READERS = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
