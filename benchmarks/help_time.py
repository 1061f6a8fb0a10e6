"""How long the help texts take, each in a process of its own, with one thread.

The last line printed is one JSON object; the figures are wall seconds, medians of five starts with a warm file cache:

help_seconds         `forklight --help`
fit_help_seconds     `forklight fit --help`
compare_help_seconds `forklight compare --help`

    python benchmarks/help_time.py
    python benchmarks/help_time.py --quick  one start each, to see that it works
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "help_seconds": ["--help"],
    "fit_help_seconds": ["fit", "--help"],
    "compare_help_seconds": ["compare", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one start that must succeed."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "forklight", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


def main() -> None:
    """Starts every command once to warm the file cache, then measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one start each")
    starts = 1 if parser.parse_args().quick else 5
    report = {}
    for name, arguments in COMMANDS.items():
        seconds(arguments)
        report[name] = round(statistics.median(seconds(arguments) for _ in range(starts)), 3)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
