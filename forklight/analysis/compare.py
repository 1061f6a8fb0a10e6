"""Compares two checkpoints on the same problems, from the files that their evaluations wrote."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from forklight.metrics import Paired, paired_difference

FILES = ("samples.jsonl", "predictions.jsonl")


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints on the problems that both have answered."""

    name: str
    """The set's."""
    problems: int
    """Number of problems that both have."""
    left_out: int
    """Problems that only one has."""
    steps: tuple[int, int]
    """Updates done on either side."""
    answers: tuple[float, float]
    """Answers per problem on either side."""
    scores: tuple[float, float]
    """avg@n on either side."""
    difference: Paired
    """B - A."""


@dataclass(frozen=True)
class _Side:
    step: int
    right: dict[str, list[bool]]
    """Whether each answer is right, by uid."""
    golds: dict[str, str]


def compare_runs(
    run_a: Path,
    run_b: Path,
    name: str | None = None,
    step_a: int | None = None,
    step_b: int | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> list[Comparison]:
    """Every set that both sides have answered.

    Args:
        run_a: Folder of a run or of an evaluation, or a file of answers.
        run_b: The same for the other side.
        name: The one set to compare; all if None.
        step_a: Updates done at the evaluation of A; the last one of each set if None.
        step_b: Updates done at the evaluation of B.
        confidence: Of the bootstrap interval.
        resamples: Of the bootstrap over problems.

    Raises:
        FileNotFoundError: There are no answers at one of the paths.
        ValueError: The two have no common problems, or not the same golds.
    """
    a, b = read_answers(run_a, step_a), read_answers(run_b, step_b)
    common = [each for each in a if each in b and name in (None, each)]
    if not common:
        names = " and ".join(", ".join(side) or "none" for side in (a, b))
        raise ValueError(f"there is no set {name or ''} that both have; A and B have {names}")
    return [compare_set(each, a[each], b[each], confidence, resamples) for each in common]


def compare_set(name: str, a: _Side, b: _Side, confidence: float, resamples: int) -> Comparison:
    """Compares one set.

    Raises:
        ValueError: The sides have no common problem, or different golds for one.
    """
    uids = sorted(a.right.keys() & b.right.keys())
    if not uids:
        raise ValueError(f"{name}: A has {len(a.right)} problems, B {len(b.right)}, and none is the same")
    other = [uid for uid in uids if a.golds[uid] != b.golds[uid]]
    if other:
        uid = other[0]
        raise ValueError(f"{name}: {len(other)} golds differ, such as {uid}: {a.golds[uid]!r} and {b.golds[uid]!r}")
    shares = [
        torch.tensor([sum(side.right[uid]) / len(side.right[uid]) for uid in uids], dtype=torch.float64)
        for side in (a, b)
    ]
    return Comparison(
        name=name,
        problems=len(uids),
        left_out=len(a.right.keys() ^ b.right.keys()),
        steps=(a.step, b.step),
        answers=(_answers(a, uids), _answers(b, uids)),
        scores=(float(shares[0].mean()), float(shares[1].mean())),
        difference=paired_difference(*shares, confidence=confidence, resamples=resamples),
    )


def read_answers(run: Path, step: int | None) -> dict[str, _Side]:
    """The verdicts of one evaluation on its answers, by set.

    Args:
        run: folder or file.
        step: updates done; the last evaluation of each set if None.

    Raises:
        FileNotFoundError: there is no file of answers.
        ValueError: the file is malformed, or has no evaluation at this step.
    """
    path = _answers_file(run)
    right: dict[tuple[str, int], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    golds: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    with path.open() as file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
                key = line["set"], line["step"]
                right[key][line["uid"]].append(line["outcome"] == "right")
                golds[key][line["uid"]] = line["gold"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: no line of an evaluation ({error!r})") from error
    steps: dict[str, int] = {}
    for name, done in right:
        if step in (None, done):
            steps[name] = max(done, steps.get(name, done))
    if not steps:
        found = sorted({done for _, done in right})
        raise ValueError(f"{path} has no evaluation after {step} updates; there are {found}")
    return {name: _Side(done, right[name, done], golds[name, done]) for name, done in steps.items()}


def _answers(side: _Side, uids: list[str]) -> float:
    return sum(len(side.right[uid]) for uid in uids) / len(uids)


def _answers_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    inside = sorted(str(file.parent) for name in FILES for file in path.glob(f"*/{name}"))
    hint = f"; there are some in {', '.join(inside)}" if inside else ""
    raise FileNotFoundError(f"{path} holds no {' or '.join(FILES)}{hint}")
