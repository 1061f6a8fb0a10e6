"""`forklight compare RUN_A RUN_B`: two checkpoints on the same problems."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from forklight.analysis.compare import Comparison


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
        FileNotFoundError: There are no answers at one of the paths.
        ValueError: The two have no common problems, or not the same golds.
    """
    from rich.console import Console

    from forklight.analysis.compare import compare_runs  # with torch, which the help text does not need

    found = compare_runs(Path(run_a), Path(run_b), name, step_a, step_b, confidence, resamples)
    if json_line:
        print(json.dumps({item.name: asdict(item) | {"difference": item.difference._asdict()} for item in found}))
    else:
        Console().print(comparison_table(found, confidence))


def comparison_table(found: list["Comparison"], confidence: float) -> "Table":
    """A row per set: scores in per cent, differences in points; below it what was compared."""
    from rich.table import Table

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


def _caption(item: "Comparison") -> str:
    sides = (
        f"{name} {answers:g} answers after {step} updates"
        for name, answers, step in zip("AB", item.answers, item.steps, strict=True)
    )
    alone = f"; {item.left_out} problems that only one has" if item.left_out else ""
    return f"{item.name}: {', '.join(sides)}{alone}"
