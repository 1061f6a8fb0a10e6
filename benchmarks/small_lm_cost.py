"""What a fifth of the tokens saves per update of a small pretrained model, where every group has an advantage.

Runs of `small_lm.py` differ in how many groups still have an advantage, so their times per update say little about the
mask. Here both sides update SmolLM2-135M-Instruct from one and the same rollout: 8 prompts of about 76 tokens, 8
answers each of 10 to 30 tokens, one update per rollout, bfloat16 products as in `small_lm.yaml`. Tokens are random: the
cost of an update does not depend on which they are.

The last line printed is one JSON object:

time_ratio   seconds of an update with the fifth of the highest entropies / with all tokens; head and body, forward and
    backward, and the ranking
seconds, wall_seconds   medians over rounds in which both have their turn; CPU time of one thread, and wall time
kept   share of the answer tokens that carry gradient, of both sides

    python benchmarks/small_lm_cost.py            about three minutes on one thread, 5 GB of memory
    python benchmarks/small_lm_cost.py --quick    a small random model: shows that it works, the ratio means little
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from peers import short
from smollm2 import smollm2
from torch import Tensor
from updates import Side, Size, policy_of, rollout_of, rounds_of

from forklight.algo.batch import RolloutBatch
from forklight.algo.config import AlgorithmConfig
from forklight.algo.selection import ForkSelection
from forklight.models.loading import PolicyConfig
from forklight.models.policy import Policy
from forklight.training.update import Learner


class Selected:
    """An update with one selection."""

    def __init__(self, policy: Policy, rollout: RolloutBatch, selection: ForkSelection) -> None:
        self.policy, self.rollout = policy, rollout
        self.learner = Learner(AlgorithmConfig(selection=selection), length_limit=32)
        self.kept = 0.0

    def update(self) -> Tensor:
        """The only one of a rollout, with its backward."""
        with torch.autocast("cpu", torch.bfloat16):
            state = self.learner.begin(self.rollout, rollout=0, updates=1, micro_batches=1)
            self.learner.prepare_update(state, 0, self.policy, None)
            loss = self.learner.loss(state, 0, self.policy)[0]
        loss.backward()
        self.kept = float(state.tokens.fork_mask[state.batch.answer_mask].float().mean())
        return loss.detach()


def main() -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        size = Size(vocabulary=2048, layers=2, width=128, groups=2, prompt=20, answer=12)
        policy = policy_of(size, "cpu")
    else:
        size = Size(vocabulary=49_152, groups=8, prompt=76, answer=20)
        with tempfile.TemporaryDirectory() as folder:
            policy = Policy(PolicyConfig(path=str(smollm2(Path(folder))), dtype="float32"))
    rollout = rollout_of(size, "cpu")
    chosen = {"all": ForkSelection.preset("all-tokens"), "fifth": ForkSelection.preset("top-20")}
    runs = {name: Selected(policy, rollout, selection) for name, selection in chosen.items()}
    sides: dict[str, Side] = {name: (policy, run.update) for name, run in runs.items()}
    times = rounds_of(sides, 2 if options.quick else options.rounds)
    line = {
        "time_ratio": times["cpu"]["fifth"] / times["cpu"]["all"],
        "seconds": times["cpu"],
        "wall_seconds": times["wall"],
        "kept": {name: run.kept for name, run in runs.items()},
    }
    print(json.dumps(short(line)))


if __name__ == "__main__":
    main()
