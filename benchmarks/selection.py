"""The selection's claims: the same for every layout, equal to what others publish, and cheap at any size.

The last line printed is one JSON object:

given_entropies_compared, given_entropies_differ   tokens over all layouts, and those not in the same place of the mask,
    where entropies are bitwise the same
layouts_compared, layouts_tokens   updates that went end to end through the base policy, and tokens of the rollout
float64_flips, float64_swaps   tokens that change, in float64; swaps are those between equal answers of one group
float64_loss_difference, float64_gradient_difference   largest over all layouts, relative
float32_flipped_share   largest share of tokens that a layout changes, in float32; swaps (`float32_swaps`) included
float32_flipped_distance   largest distance of such a token's entropy from the threshold, in nats
float32_gradient_difference   largest over all layouts that change no token, relative
published_cases   random cases, for each of the presets `trl` and `paper-code`
published_updates_with_other_masks, published_loss_difference, published_gradient_difference   from the worked values
select_seconds, select_bytes_per_token   by number of tokens: one process, one thread, median of three; peak memory
    beyond the inputs, the mask included (a fixed megabyte or two is most of it below 10^6)
ranks_seconds, ranks_bytes, ranks_bytes_each, ranks_collectives   by number of processes, for `ranks_tokens` tokens in
    all: the slowest process; what all processes and each of them hand to collectives

Layouts are 1, 2, 4 and 8 micro-batches and one sequence per forward pass, on 1, 2 and 4 processes, padded wider, rows
in another order; with one update per rollout and two.

    python benchmarks/selection.py            some minutes; 2 GB of memory
    python benchmarks/selection.py --quick    a minute: fewer layouts, cases and sizes
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from selection_layouts import ANSWERS, PROBLEMS, ROLLOUT, SEED, compare

from forklight.algo.batch import RolloutBatch
from forklight.data.countdown_sets import CountdownProblems
from forklight.data.prompts import PromptTemplate
from forklight.data.stream import ProblemStream, PromptBatch
from forklight.distributed import Ranks
from forklight.models.loading import PolicyConfig, eos_ids, load_tokenizer
from forklight.models.policy import Policy
from forklight.rollout.collect import Collector
from forklight.rollout.generate import AnswerGenerator
from forklight.sampling.hf import HFSampler
from forklight.verify import CountdownVerifier

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from published import differences
from published_cases import random_case


def sampled_rollout() -> RolloutBatch:
    """16 problems, 8 answers each, sampled by the base policy in float64."""
    config = PolicyConfig(path="tiny", dtype="float64")
    tokenizer, sampler, ranks = load_tokenizer(config), HFSampler(), Ranks()
    sampler.sync(Policy(config))
    generator = AnswerGenerator(sampler, tokenizer, eos_ids(config, tokenizer), seed=SEED)
    stream = ProblemStream(CountdownProblems(size=256).read(), SEED)
    batch = PromptBatch(
        stream.draw(PROBLEMS),
        rollout=0,
        micro_batch=0,
        updates=1,
        micro_batches=1,
        answers=ANSWERS,
        stream=stream,
        template=PromptTemplate("base", "{problem}:"),
        verifier=CountdownVerifier(),
    )
    collector = Collector(generator, ROLLOUT, "grpo", ranks)
    return replace(collector.finish(collector.sample(batch)).batch, sampler_logp=None)


def layouts(quick: bool) -> dict[str, Any]:
    """All layouts, one number of processes after the other."""
    rows: list[dict[str, Any]] = []
    given = {"compared": 0, "differ": 0}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(sampled_rollout().state_dict(), Path(folder) / "rollout.pt")
        for size in (1, 2) if quick else (1, 2, 4):
            if size == 1:
                compare(0, 1, folder, quick)
            else:
                mp.spawn(compare, (size, folder, quick), nprocs=size)
            found = torch.load(Path(folder) / f"found-{size}.pt")
            rows += found["layouts"]
            given = {name: given[name] + found["given"][name] for name in given}
    exact = [row for row in rows if row["dtype"] == "float64"]
    single = [row for row in rows if row["dtype"] == "float32"]
    return {
        "given_entropies_compared": given["compared"],
        "given_entropies_differ": given["differ"],
        "layouts_compared": len(exact),
        "layouts_tokens": exact[0]["tokens"],
        "float64_flips": sum(row["flips"] for row in exact),
        "float64_swaps": sum(row["swaps"] for row in exact),
        "float64_loss_difference": max(row["loss"] for row in exact),
        "float64_gradient_difference": max(row["gradient"] for row in exact),
        "float32_flipped_share": max((row["flips"] + row["swaps"]) / row["tokens"] for row in single),
        "float32_flipped_distance": max(row["distance"] for row in single),
        "float32_swaps": sum(row["swaps"] for row in single),
        "float32_gradient_difference": max(
            (row["gradient"] for row in single if row["flips"] + row["swaps"] == 0), default=None
        ),
    }


def published(cases: int) -> dict[str, Any]:
    """Random cases against worked values, by preset."""
    report: dict[str, Any] = {"published_cases": cases}
    found = {
        preset: [update for number in range(cases) for update in differences(random_case(number), preset)]
        for preset in ("trl", "paper-code")
    }
    report["published_updates_with_other_masks"] = {
        preset: sum(update.mask > 0 for update in updates) for preset, updates in found.items()
    }
    for name in ("loss", "gradient"):
        report[f"published_{name}_difference"] = {
            preset: max(getattr(update, name) for update in updates) for preset, updates in found.items()
        }
    return report


def cost(quick: bool) -> dict[str, Any]:
    """Time, memory and traffic, from a process whose own processes have less to import."""
    command = [sys.executable, str(Path(__file__).with_name("selection_cost.py")), *(["--quick"] if quick else [])]
    report: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return report


def short(value: Any) -> Any:
    """Floats with three digits."""
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


def main() -> None:
    """Runs the three parts and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer layouts, cases and sizes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = cost(options.quick)
    print(json.dumps(short(report)), file=sys.stderr, flush=True)
    report = layouts(options.quick) | report
    report = report | published(64 if options.quick else 1000)
    print(json.dumps(short(report)))


if __name__ == "__main__":
    main()
