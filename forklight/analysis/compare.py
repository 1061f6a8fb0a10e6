"""`forklight compare RUN_A RUN_B`: two checkpoints on the same problems."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

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


def compare(
    run_a: str,
    run_b: str,
    name: str | None = None,
    step_a: int | None = None,
    step_b: int | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    json_line: bool = False,
) -> None:
    """Compares the scores of two checkpoints, problem by problem, with a bootstrap interval of the difference.

    Args:
        run_a: Run folder, a `validate-N`, `test-N` or `predict-N` inside of one, or a file such as `samples.jsonl`.
        run_b: The same for the other side; may be the same run at another step.
        name: Evaluation set to compare; all that both have if not given.
        step_a: Evaluation of A, by the number of updates; the last one of each set if not given.
        step_b: Evaluation of B.
        confidence: Of the interval.
        resamples: Of the bootstrap over problems.
        json_line: Print one JSON line instead of a table.

    Raises:
        FileNotFoundError: There are no answers at one of the places.
        ValueError: Nothing can be compared, or the two do not have the same golds.
    """
    sides = read_answers(run_a, step_a), read_answers(run_b, step_b)
    common = [each for each in sides[0] if each in sides[1] and name in (None, each)]
    if not common:
        there = " and ".join(", ".join(side) or "none" for side in sides)
        raise ValueError(f"there is no set {name or ''} that both have; A and B have {there}")
    a, b = sides
    found = [compare_set(each, a[each], b[each], confidence, resamples) for each in common]
    if json_line:
        print(json.dumps({item.name: asdict(item) | {"difference": item.difference._asdict()} for item in found}))
    else:
        Console().print(comparison_table(found, confidence))


def compare_set(name: str, a: "_Side", b: "_Side", confidence: float, resamples: int) -> Comparison:
    """One set.

    Raises:
        ValueError: No problem is on both sides, or one has another gold there.
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


def read_answers(run: str, step: int | None) -> dict[str, "_Side"]:
    """What one evaluation says of each answer, by set.

    Args:
        run: folder or file.
        step: updates done; the last evaluation of each set if None.

    Raises:
        FileNotFoundError: no answers are there.
        ValueError: the file is malformed, or has no evaluation at this step.
    """
    path = _answers_file(Path(run))
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
        there = sorted({done for _, done in right})
        raise ValueError(f"{path} has no evaluation after {step} updates; there are {there}")
    return {name: _Side(done, right[name, done], golds[name, done]) for name, done in steps.items()}


def comparison_table(found: list[Comparison], confidence: float) -> Table:
    """A row per set: scores in per cent, differences in points; below it what was compared."""
    table = Table(caption="\n".join(map(_caption, found)), caption_justify="left")
    for heading in ("set", "problems", "A", "B", "B - A", f"{confidence:.0%} interval", "B ahead"):
        table.add_column(heading, justify="left" if heading == "set" else "right", no_wrap=True)
    for item in found:
        gain = item.difference
        table.add_row(
            item.name,
            str(item.problems),
            *(f"{100 * score:.1f} %" for score in item.scores),
            f"{100 * gain.difference:+.1f}",
            f"{100 * gain.low:+.1f} .. {100 * gain.high:+.1f}",
            f"{100 * gain.b_ahead:.1f} %",
        )
    return table


def _caption(item: Comparison) -> str:
    sides = (
        f"{name} {answers:g} answers after {step} updates"
        for name, answers, step in zip("AB", item.answers, item.steps, strict=True)
    )
    alone = f"; {item.left_out} problems that only one has" if item.left_out else ""
    return f"{item.name}: {', '.join(sides)}{alone}"


def _answers(side: "_Side", uids: list[str]) -> float:
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
