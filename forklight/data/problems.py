"""Readers: files, folders and data sets to lists of `Problem`. Every error says where in the file it is."""

import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from forklight.data.fields import ANSWERS, PROMPTS, RowReader, choose_field
from forklight.data.files import rows_of, set_name
from forklight.data.source import ProblemSource
from forklight.types import Problem

log = logging.getLogger(__name__)

GSM8K_ANSWER = r"####\s*(.+)"
"""`answer_pattern` for GSM8K's own files, whose answers are worked solutions that end in `#### 72`."""


@dataclass(frozen=True)
class ProblemFile(ProblemSource):
    """A set of problems: files, or a dataset on disk or on the Hugging Face Hub.

    Example:
        >>> ProblemFile("data/gsm8k.jsonl", answer_pattern=GSM8K_ANSWER).label
        'gsm8k'
    """

    path: str
    """A .jsonl, .json (list of objects), .csv, .tsv or .parquet file, the text files also packed (.gz); a folder of
    such files or a pattern (`data/part-*.jsonl`), read by name; the folder of a data set saved by `datasets`; or the
    name of a Hub dataset such as `openai/gsm8k`."""
    name: str | None = None
    """Name of the set, part of every problem's uid; by default the file's name without suffix, the folder's, or the
    Hub name."""
    prompt_field: str | None = None
    """Field that holds the problem: text, or a list of messages with `role` and `content`. A nested one by its path,
    `extra.question`. If not given, `problem`, or the only one of `question` and `prompt` that is there."""
    answer_field: str | None = None
    """Field that holds the answer to compare with: text, a number, or a list of texts, which are joined by commas. A
    nested one by its path, `reward_model.ground_truth`. If not given, `answer`, or the only one of `final_answer`,
    `solution`, `ground_truth` and `reward_model.ground_truth` that is there."""
    answer_pattern: str = ""
    r"""Regular expression whose one group cuts out the answer, such as `####\s*(.+)`; the last match wins."""
    split: str | None = None
    """Split of a dataset, such as `train`; needed on the Hub and refused for files."""
    subset: str | None = None
    """Subset (configuration) of a Hub dataset, such as `main`."""
    revision: str | None = None
    """Commit, branch or tag of a Hub dataset."""
    limit: int | None = None
    """Keep only this number of different problems, the first ones."""

    @property
    def label(self) -> str:
        """The set's name: `name`, or what `path` says."""
        return self.name or set_name(self.path)

    def read(self) -> list[Problem]:
        """Reads the problems in file order, each different one once; see `read_problems`."""
        return read_problems(**asdict(self))


def read_problems(
    path: str | Path,
    *,
    name: str | None = None,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    answer_pattern: str = "",
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """Reads a set of problems.

    White space around prompts and answers is dropped. A problem whose prompt was read before is dropped with a warning.
    A list with one message, the user's, is that message's text.

    Args:
        path: what is read; the arguments are the fields of `ProblemFile`.
        name: name of the set.
        prompt_field: field of the problem.
        answer_field: field of the answer.
        answer_pattern: regular expression with one group for the answer.
        split: split of a dataset.
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
    pattern = _pattern(answer_pattern)
    rows = rows_of(str(path), split, subset, revision)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} holds no problems")
    reader = RowReader(
        name or set_name(str(path)),
        choose_field(prompt_field, PROMPTS, first[1], "prompt_field", str(path)),
        choose_field(answer_field, ANSWERS, first[1], "answer_field", str(path)),
        pattern,
    )
    problems = (reader.problem(row, place) for place, row in chain([first], rows))
    return _first_different(problems, limit, str(path))


def _pattern(text: str) -> re.Pattern[str] | None:
    """The compiled `answer_pattern`, if there is one."""
    try:
        pattern = re.compile(text) if text else None
    except re.error as error:
        raise ValueError(f"answer_pattern {text!r} is no regular expression: {error}") from error
    if pattern is not None and pattern.groups != 1:
        raise ValueError(f"answer_pattern needs exactly one group (...), {text!r} has {pattern.groups}")
    return pattern


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
