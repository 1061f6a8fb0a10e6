"""Tables of scores, for the terminal and for TensorBoard."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from forklight.evaluation.suspicious import Suspicious

Scores = dict[str, dict[str, float]]
"""Values by set and name."""

HEADINGS = ("set", "updates", "n", "avg@n", "maj@n", "pass@n", "cut", "length")


def score_table(evaluations: Sequence[tuple[int, Scores]]) -> Table:
    """Scores by set and updates: shares in per cent, avg@n with its standard error; `cut` is the truncated share."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(HEADINGS[0], overflow="fold")  # eight columns fit into 80 characters
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _rows(evaluations):
        table.add_row(*map(escape, row))
    return table


def score_line(step: int, scores: Scores) -> str:
    """An evaluation on one line: `evaluation at update 10: aime24 avg@16 23.1 ± 1.2 %, math500 ...`."""
    parts = []
    for name, values in scores.items():
        n, mean, *_ = _cells(values)
        parts.append(f"{name} avg@{n} {mean}")
    return f"evaluation at update {step}: {', '.join(parts)}"


def score_markdown(evaluations: Sequence[tuple[int, Scores]]) -> str:
    """The same as Markdown."""
    rows = [HEADINGS, ["---"] * len(HEADINGS), *_rows(evaluations)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def suspicious_markdown(found: dict[str, list[Suspicious]]) -> str:
    """Answers as preformatted text, each under the signs that make it suspicious."""
    parts = []
    for name, items in found.items():
        for answer, why in items:
            text = answer.text if len(answer.text) <= 1500 else f"{answer.text[:700]}\n[..]\n{answer.text[-700:]}"
            quoted = "\n".join(f"    {line}" for line in text.splitlines())
            parts.append(f"{name}, {answer.problem.uid}, answer {answer.number}: {'; '.join(why)}\n\n{quoted}")
    return "\n\n---\n\n".join(parts)


def _rows(evaluations: Sequence[tuple[int, Scores]]) -> list[list[str]]:
    names = dict.fromkeys(name for _, scores in evaluations for name in scores)
    return [
        [name, str(step), *_cells(scores[name])] for name in names for step, scores in evaluations if name in scores
    ]


def _cells(values: dict[str, float]) -> list[str]:
    n = max(int(key.removeprefix("avg@")) for key in values if key.startswith("avg@") and "_" not in key)
    error = values[f"avg@{n}_se"]
    return [
        str(n),
        f"{100 * values[f'avg@{n}']:.1f} ± {100 * error:.1f} %",
        f"{100 * values[f'maj@{n}']:.1f} %" if n > 1 else "",
        f"{100 * values[f'pass@{n}']:.1f} %" if n > 1 else "",
        f"{100 * values['truncated']:.1f} %",
        f"{values['length']:.1f}",
    ]
