"""What a selection costs: seconds, memory beyond its inputs, and what processes exchange.

Part of `selection.py`, whose text says what the keys of the JSON line are.

    python benchmarks/selection_cost.py --quick
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from forklight.algo.selection import ForkSelection, select
from forklight.distributed import Ranks

WIDTH = 1000  # tokens per answer


def tokens(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Entropies, distributed about as in arXiv 2506.01939: half below 0.01 nats, a fifth above 0.6; all eligible."""
    width = min(WIDTH, count)
    entropy = torch.rand(count // width, width, generator=torch.Generator().manual_seed(seed)).pow_(7).mul_(3)
    return entropy, torch.ones(entropy.shape, dtype=torch.bool)


def memory(line: str) -> int:
    """A figure of the kernel's about this process, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(text.split()[1]) for text in status if text.startswith(line))


def alone(count: int) -> dict[str, float]:
    """One selection among so many tokens on one thread, in a process that has done nothing else."""
    torch.set_num_threads(1)
    select(*tokens(10_000, 1), ForkSelection())  # what torch keeps for itself is not counted
    entropy, mask = tokens(count, 0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, seconds = memory("VmRSS"), []
    for _ in range(3):
        started = time.perf_counter()
        select(entropy, mask, ForkSelection())
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "bytes_per_token": (memory("VmHWM") - before) / count}


def together(rank: int, size: int, count: int, folder: str) -> None:
    """A process's part of a selection among `count` tokens; the first one writes what it took."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{size}", rank=rank, world_size=size)
    ranks, moved = Ranks(), []
    entropy, mask = tokens(count // size, rank)
    sequence_id = torch.arange(len(entropy)) + rank * len(entropy)

    def reduce(tensor: Tensor) -> Tensor:
        moved.append(tensor.numel() * tensor.element_size())
        return ranks.reduce(tensor)

    seconds = []
    for _ in range(4):  # the first one warms up
        moved.clear()
        ranks.gather(None)
        started = time.perf_counter()
        select(entropy, mask, ForkSelection(), sequence_id=sequence_id, reduce=reduce if size > 1 else None)
        seconds.append(ranks.maximum(torch.tensor(time.perf_counter() - started)).item())
    everywhere = ranks.gather(moved)
    if rank == 0:
        found = {
            "seconds": statistics.median(seconds[1:]),
            "bytes": sum(map(sum, everywhere)),
            "bytes_each": max(map(sum, everywhere)),
            "collectives": max(map(len, everywhere)),
        }
        (Path(folder) / f"{size}.json").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


def cost(quick: bool) -> dict[str, Any]:
    """Time, memory and traffic."""
    sizes = [10**power for power in range(4, 7 if quick else 9)]
    command = [sys.executable, __file__, "--tokens"]
    lines = {n: subprocess.run([*command, str(n)], stdout=subprocess.PIPE, check=True, text=True).stdout for n in sizes}
    found = {n: json.loads(line) for n, line in lines.items()}
    shared, count = {}, 10**5 if quick else 10**7
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2, 4):
            mp.spawn(together, (size, count, folder), nprocs=size)
            shared[size] = json.loads((Path(folder) / f"{size}.json").read_text())
    return {
        "select_seconds": {n: figures["seconds"] for n, figures in found.items()},
        "select_bytes_per_token": {n: figures["bytes_per_token"] for n, figures in found.items()},
        "ranks_tokens": count,
        **{
            f"ranks_{name}": {size: figures[name] for size, figures in shared.items()}
            for name in ("seconds", "bytes", "bytes_each", "collectives")
        },
    }


def main() -> None:
    """Prints the figures, or for `--tokens` those of one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to a million tokens")
    parser.add_argument("--tokens", type=int, help="one process, so many tokens")
    options = parser.parse_args()
    print(json.dumps(alone(options.tokens) if options.tokens else cost(options.quick)))


if __name__ == "__main__":
    main()
