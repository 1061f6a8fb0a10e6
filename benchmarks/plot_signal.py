r"""Draws the learning signal of runs by entropy, from their `signal.jsonl`: one panel per run.

For every entropy bin there is a bar of its share of the tokens and one of its share of the gradient mass, both of
tokens with an advantage. The filled part of a bar is what the selection kept. The sums of the updates are added up;
without a range that is all of them.

    python benchmarks/plot_signal.py OUT.png runs/a runs/b                     needs the extra `analysis`
    python benchmarks/plot_signal.py OUT.png runs/a --updates 1:10 --parts right --labels "rho = 0.2"

A run is its folder or the file itself. `--updates 1:1` is the first update, `-1:` the last one.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

BARS = {"tokens": ("tab:gray", "tokens"), "gradient": ("tab:red", "gradient")}


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, one per update."""
    path = run / "signal.jsonl" if run.is_dir() else run
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if not lines:
        raise SystemExit(f"{path} has no line")
    return lines


def some(lines: list[dict[str, Any]], updates: str) -> list[dict[str, Any]]:
    """The lines of the updates FIRST:LAST, both included; a negative number counts from the end."""
    first, _, last = updates.partition(":")
    steps = [line["step"] for line in lines]
    low, high = int(first or steps[0]), int(last or steps[-1])
    low, high = (steps[number] if number < 0 else number for number in (low, high))
    found = [line for line in lines if low <= line["step"] <= high]
    if not found:
        raise SystemExit(f"--updates {updates}: there are updates {steps[0]} to {steps[-1]}")
    return found


def total(lines: list[dict[str, Any]], part: str, column: str) -> list[float]:
    """Sums over updates, by bin."""
    return [sum(values) for values in zip(*(line["sums"][part][column] for line in lines), strict=True)]


def names(edges: list[float]) -> list[str]:
    """Labels of the bins."""
    between = [f"{low:g}-{high:g}" for low, high in pairwise(edges)]
    return [f"< {edges[0]:g}", *between, f"≥ {edges[-1]:g}"]


def draw(axes: Any, lines: list[dict[str, Any]], part: str, title: str) -> None:
    """One panel."""
    for side, (measure, (colour, label)) in zip((-0.2, 0.2), BARS.items(), strict=True):
        every, kept = total(lines, part, measure), total(lines, part, f"kept_{measure}")
        whole = sum(every) or 1.0
        places = [number + side for number in range(len(every))]
        outline, fill = ([100 * value / whole for value in values] for values in (every, kept))
        axes.bar(places, outline, 0.38, facecolor="none", edgecolor=colour)
        share = f"{label}, kept {sum(fill):.0f} %"
        axes.bar(places, fill, 0.38, color=colour, alpha=0.8, label=share)
    labels = names(lines[0]["edges"])
    axes.set_xticks(range(len(labels)), labels, rotation=60)
    axes.set(xlabel="entropy in nats", title=title)
    axes.grid(alpha=0.3, axis="y")
    axes.legend()


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--updates", default=":", help="FIRST:LAST, both included")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["all"],
        help="right, wrong, cut, whole, before_box or behind_box: one, or one per run",
    )
    parser.add_argument("--columns", type=int, help="panels side by side; all if left out")
    parser.add_argument("--labels", nargs="*", help="one per run; their names if left out")
    options = parser.parse_args()
    labels = options.labels or [run.name if run.is_dir() else run.parent.name for run in options.runs]
    columns = options.columns or len(labels)
    rows = -(-len(labels) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(1 + 4.5 * columns, 4 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    parts = options.parts * len(labels) if len(options.parts) == 1 else options.parts
    for axes in panels.flat[len(labels) :]:
        axes.remove()
    for axes, run, label, part in zip(panels.flat, options.runs, labels, parts, strict=False):
        draw(axes, some(read(run), options.updates), part, label)
    for axes in panels[:, 0]:
        axes.set_ylabel("share in %, filled: kept")
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
