"""A whole update, body and head, forward and backward, beside TRL's parts on a padded batch; no optimiser.

A Qwen3 with random weights (4 layers, width 256, Qwen's vocabulary, tied) and a rollout of random tokens: 4 prompts of
about 32 tokens, 8 answers each of 16 to 48 tokens, every group with an advantage, one update per rollout, DAPO, the
fifth of tokens with the highest entropies carries gradient. `ours` does what a run does: `Learner.begin`,
`prepare_update`, `loss`, backward, with the policy's defaults: rows without padding, prompts once per group, entropies
and the mask made in the training pass.

`trl` is put together as GRPOTrainer does it: prompts padded on the left, answers on the right, transformers' body with
an attention mask, TRL's chunked head for log-probabilities and entropies, the loss of all tokens times the mask; all
sequences at once or 8 at a time, whichever is faster. In its favour, the head gets answer tokens only (without Triton
TRL's own goes over prompts and padding, too), and the mask is given. `trl_old_pass` is the pass without gradient that
TRL adds where old log-probabilities are wanted. `naive` is autograd over the logits of all answer positions, 8
sequences at a time, without entropies. Before anything is timed, loss and gradients of all are compared, with the mask
that `ours` has made.

The last line printed is one JSON object:

agreement   largest difference of a parameter's gradient / its largest value, or of the loss, of each against `naive`
update_speedup_onpolicy   seconds of `trl` / `ours`
update_speedup_oldpass   seconds of `trl` and `trl_old_pass` / `ours`, which needs no such pass here
update_speedup_known   seconds of `trl` / `known`: the same update as the second of a rollout with two; the pass that
    made old log-probabilities and entropies before is left out on both sides
update_speedup_naive   seconds of `naive` / `ours`
zero_advantage_speedup   seconds of `zero_kept` / `zero_dropped`, both ours: an update of 5 groups of which 3 have no
    advantage, with all sequences in the passes, and without those 24, whose gradient is 0; the loss is the same
update_memory_ratio   megabytes of `trl`, with the setting that needs less, / `ours`
seconds, wall_seconds   medians over rounds in which all have their turn: `clock`, and wall time
megabytes   peak memory beyond weights and rollout, gradients (`gradient_megabytes`) included, of one update in a
    process of its own
trl_setting, trl_tried   the faster one of `trl_whole` and `trl_8`, which is `trl`, and seconds of a first round
tokens   of answers; `sequences`: with prompts; through the layers of `ours`; of `trl`
clock, kept, rounds, threads, device, versions, load   clock: cpu (one thread: what others do on the machine disturbs
    less), else wall; load: the machine's, of the last minute, at the start

    python benchmarks/bench_update.py            five to ten minutes on one thread; 4 GB of memory
    python benchmarks/bench_update.py --quick    a small model: shows that it works, the ratios mean little
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bench_planner import padded
from peers import clip_loss, missing_peers, short, versions
from torch import Tensor
from updates import (
    Ours,
    Side,
    Size,
    Update,
    apart,
    distance,
    exact_memory,
    peak,
    policy_of,
    results,
    rollout_of,
    rounds_of,
)

from forklight.algo.batch import RolloutBatch
from forklight.models.work import Work

TOLERANCE = 1e-4


def known_of(ours: Ours) -> Update:
    """The same update as the second of a rollout with two: statistics and mask are there."""
    tensors = {name: value for name, value in ours.x.state_dict().items() if isinstance(value, torch.Tensor)}
    both = {name: torch.cat([value, value]) for name, value in tensors.items()}
    number = torch.arange(2).repeat_interleave(len(ours.x.problem_index))
    both |= {
        "update": number,
        "problem_index": both["problem_index"] + number * len(number),
        "sequence_id": torch.arange(len(number)),
    }
    x = RolloutBatch(**both).to(ours.x.problem_index.device)
    state = ours.learner.begin(x, rollout=0, updates=2, micro_batches=1)
    for update in range(2):
        ours.learner.prepare_update(state, update, ours.policy, None)

    def second() -> Tensor:
        loss = ours.learner.loss(state, 1, ours.policy)[0]
        loss.backward()
        return loss.detach()

    return second


class Theirs:
    """TRL's parts, and plain autograd, on a padded batch.

    Args:
        size: of model and rollout.
        device: where.
        mask: the tokens that carry gradient, bool `[N]`; every fifth if None.
    """

    def __init__(self, size: Size, device: str, mask: Tensor | None = None) -> None:
        self.policy, self.x = policy_of(size, device, packing=False), rollout_of(size, device)
        self.ids, self.held, self.answer = padded(self.x)
        self.kept = torch.zeros_like(self.answer)
        self.kept[self.answer] = torch.arange(int(self.answer.sum()), device=device) % 5 == 0 if mask is None else mask
        self.model = self.policy.model

    def trl(self, rows: int) -> Tensor:
        """So many rows at a time."""
        return self._update(rows, self._trl_logp)

    @torch.no_grad()
    def old_pass(self, rows: int) -> Tensor:
        """What TRL runs before, if it wants old log-probabilities."""
        found = [self._trl_logp(part) for part in self._parts(rows)]
        return torch.cat(found).sum()

    def naive(self) -> Tensor:
        """All logits of the answers' columns."""
        return self._update(8, self._naive_logp)

    def _parts(self, rows: int) -> tuple[Tensor, ...]:
        return torch.arange(len(self.ids), device=self.ids.device).split(rows)

    def _update(self, rows: int, logp_of: Callable[[Tensor], Tensor]) -> Tensor:
        total, count = torch.zeros((), device=self.ids.device), self.kept.sum()
        for part in self._parts(rows):
            logp, answer = logp_of(part), self.answer[part]
            advantages = self.x.advantages[part, None].expand_as(answer)[answer]
            values = clip_loss(logp, logp.detach(), advantages) * self.kept[part][answer]
            loss = values.sum() / count
            loss.backward()
            total += loss.detach()
        return total

    def _trl_logp(self, part: Tensor) -> Tensor:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

        body = self.model.base_model(input_ids=self.ids[part], attention_mask=self.held[part].long(), use_cache=False)
        hidden = body.last_hidden_state[:, :-1][self.answer[part, 1:]]
        # no bias; temperature 1; no soft cap, no scale
        settings = None, self.ids[part][self.answer[part]], 1.0, CHUNK, None, 1.0, ("log_probs", "entropy")
        logp: Tensor = ChunkedLogProbFunction.apply(hidden, self.policy.head_weight, *settings)[0]
        return logp

    def _naive_logp(self, part: Tensor) -> Tensor:
        columns, answer = int(self.x.answer_length.max()) + 1, self.answer[part]
        inputs = {"input_ids": self.ids[part], "attention_mask": self.held[part].long(), "use_cache": False}
        logits = self.model(**inputs, logits_to_keep=columns).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, self.ids[part, 1 - columns :, None]).squeeze(-1)
        return logp[answer[:, 1 - columns :]]


def sides_of(ours: Ours | None, theirs: Theirs | None) -> dict[str, Side]:
    """Who computes one and the same update."""
    found: dict[str, Side] = {}
    if ours is not None:
        found |= {"ours": (ours.policy, ours.update), "known": (ours.policy, known_of(ours))}
    if theirs is not None:
        whole = len(theirs.ids)
        found["trl_whole"] = theirs.policy, partial(theirs.trl, whole)
        found["trl_8"] = theirs.policy, partial(theirs.trl, 8)
        found["naive"] = theirs.policy, theirs.naive
    return found


def megabytes_of(size: Size, device: str, name: str) -> float:
    """Peak memory of one side."""
    if device == "cpu":
        exact_memory()

    def side(size: Size) -> Side:
        mine = name in ("ours", "known")
        return sides_of(Ours(size, device) if mine else None, None if mine else Theirs(size, device))[name]

    side(replace(size, vocabulary=1000, answer=8))[1]()  # what libraries keep for themselves is not counted
    return peak(side(size))


def agreement(sides: dict[str, Side], reference: str) -> dict[str, float]:
    """All compute the same.

    Raises:
        AssertionError: one does not, so that its time would mean nothing.
    """
    wanted = results(sides[reference])
    errors = {name: distance(results(side), wanted) for name, side in sides.items() if name != reference}
    print(json.dumps({"errors": short(errors)}), file=sys.stderr, flush=True)
    assert max(errors.values()) < TOLERANCE, errors
    return errors


def report(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All figures."""
    load, rounds = os.getloadavg()[0], 1 if options.quick else 3
    clock = "cpu" if options.threads == 1 and device == "cpu" else "wall"
    scale = 8 if device == "cuda" else 1
    size = Size(vocabulary=8192, layers=2, width=128) if options.quick else Size()
    size = replace(size, groups=size.groups * scale)
    measured = ("ours", "trl_8") if options.quick else ("ours", "known", "trl_whole", "trl_8", "naive")
    megabytes = {name: apart(device, megabytes_of, size, device, name) for name in measured}
    print(json.dumps({"megabytes": short(megabytes)}), file=sys.stderr, flush=True)

    ours = Ours(size, device)
    ours.update()
    theirs = Theirs(size, device, ours.mask)
    sides = sides_of(ours, theirs)
    zero = Ours(replace(size, groups=5 * scale, answer=26, zero=3 * scale), device)
    zeros = {
        "zero_kept": (zero.policy, partial(zero.update, dropping=False)),
        "zero_dropped": (zero.policy, zero.update),
    }
    errors = agreement(sides, "naive") | agreement(zeros, "zero_kept")
    rows = {"trl_whole": len(theirs.ids), "trl_8": 8}
    tried = rounds_of({name: sides.pop(name) for name in rows}, 1)[clock]
    setting = min(tried, key=tried.get)
    sides["trl"] = theirs.policy, partial(theirs.trl, rows[setting])
    sides["trl_old_pass"] = theirs.policy, partial(theirs.old_pass, rows[setting])
    found = rounds_of(sides | zeros, rounds)
    seconds = found[clock]
    ours.policy.work["train"] = Work()
    ours.update()
    return {
        "agreement": errors,
        "update_speedup_onpolicy": seconds["trl"] / seconds["ours"],
        "update_speedup_oldpass": (seconds["trl"] + seconds["trl_old_pass"]) / seconds["ours"],
        "update_speedup_known": seconds["trl"] / seconds["known"],
        "update_speedup_naive": seconds["naive"] / seconds["ours"],
        "zero_advantage_speedup": seconds["zero_kept"] / seconds["zero_dropped"],
        "update_memory_ratio": min(megabytes[name] for name in rows if name in megabytes) / megabytes["ours"],
        "seconds": seconds,
        "wall_seconds": found["wall"],
        "megabytes": megabytes,
        "gradient_megabytes": sum(weight.numel() * 4 for weight in ours.policy.parameters()) / 2**20,
        "trl_setting": setting,
        "trl_tried": tried,
        "tokens": {
            "answers": int(theirs.answer.sum()),
            "sequences": int(theirs.held.sum()),
            "ours": ours.policy.work["train"].row_tokens,
            "trl": theirs.ids.numel(),
        },
        "clock": clock,
        "kept": int(ours.mask.sum()),
        "rounds": rounds,
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": versions(("torch", "transformers", "trl", "triton")),
        "load": load,
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and one round")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    if missing := missing_peers():
        parser.error(missing)
    torch.set_num_threads(options.threads)
    print(json.dumps(short(report(options, "cuda" if torch.cuda.is_available() else "cpu"))))


if __name__ == "__main__":
    main()
