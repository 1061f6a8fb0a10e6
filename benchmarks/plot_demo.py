"""Draws the arms of `benchmarks/demo.py --results FILE` as one figure: avg@8 on the held-out problems over updates.

python benchmarks/plot_demo.py FILE OUT.png     needs the extra `analysis`
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

COLOURS = {"forking": "tab:red", "all_tokens": "tab:blue", "random_20": "tab:gray"}
LABELS = {"forking": "forking tokens, rho = 0.2", "all_tokens": "all tokens", "random_20": "random 20 %"}


def main(results: Path, out: Path) -> None:
    """Draws the figure."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    drawn = set()
    for line in results.read_text().splitlines():
        arm = json.loads(line)
        kind = arm["arm"].split("-")[0]
        steps, scores = zip(*arm["curve"], strict=True)
        label = None if kind in drawn else LABELS[kind]
        axes.plot(steps, [100 * score for score in scores], color=COLOURS[kind], label=label, marker=".", linewidth=1.5)
        drawn.add(kind)
    axes.set(
        xlabel="updates", ylabel="avg@8 in %", title="Countdown, 256 held-out problems, T = 1, one laptop-class CPU"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
