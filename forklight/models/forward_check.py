"""Checks that the policy's log-probabilities are the model's own: body, packing and head against its `forward`.

The policy never calls `forward`: its head is computed apart, on packed rows. What an architecture does besides, to its
logits or between layers, would be missing in training and in sampling alike, so comparing these two shows nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from forklight.algo.batch import MicroBatch, TokenStats
from forklight.algo.noise import hash_bits
from forklight.models.heads import all_stats
from forklight.models.loading import say_once
from forklight.models.policy import Policy

PROMPT, ANSWERS = 7, ((17, 9), (12, 16))
"""Tokens of a prompt, and of the answers to each: packed rows share prompts and have sequences of several lengths."""

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.5
"""In nats, of the largest difference: rounding by other kernels stays below 1e-4 in single precision and below 0.2 in
half precision."""

MEAN_SHARE = 0.2
"""The mean difference must stay below this share of the tolerance: rounding is rarely large."""


class Gap(NamedTuple):
    """Differences between two log-probabilities of the same tokens, in nats."""

    largest: float
    mean: float
    token: int
    """The one with the largest difference, in this process."""

    def within(self, tolerance: float) -> bool:
        """Whether it can be rounding."""
        return self.largest <= tolerance and self.mean <= MEAN_SHARE * tolerance


def forward_check(policy: Policy, maximum: Callable[[Tensor], Tensor] = lambda values: values) -> float:
    """Compares the policy with the `forward` of its own model on fixed tokens, in the present precision context.

    If only packed rows are wrong, packing is switched off, with a warning.

    Args:
        policy: may be in training or evaluation mode.
        maximum: of a tensor over all ranks, so that all of them stop together.

    Returns:
        The largest difference, in nats.

    Raises:
        ValueError: log-probabilities differ by more than rounding: the model would be trained wrongly.
    """
    micro_batch = probe(len(policy.head_weight), policy.head_weight.device)
    own = _own_logp(policy, micro_batch)
    tolerance = HALF_TOLERANCE if half_precision(policy) else TOLERANCE
    ours = policy_logp(policy, micro_batch)
    found = _gap(ours, own, maximum)
    kind = policy.model.config.model_type
    if not found.within(tolerance) and policy.packing:
        packed = found
        policy.pad()
        ours = policy_logp(policy, micro_batch)
        found = _gap(ours, own, maximum)
        if found.within(tolerance):
            say_once(
                f"model.policy.packing: {kind} computes packed rows wrongly, log-probabilities are up to "
                f"{packed.largest:.2g} nats off: it is trained in padded batches of similar lengths"
            )
    if not found.within(tolerance):
        raise ValueError(
            f"model.policy.path: {kind} cannot be trained, forklight's log-probabilities are not those of the model's "
            f"own forward pass: token {found.token} of the probe has {float(ours[found.token]):.4f}, there "
            f"{float(own[found.token]):.4f}; of {len(own)} differences the largest is {found.largest:.3g} nats, the "
            f"mean {found.mean:.3g}, rounding is below {tolerance:g} and {MEAN_SHARE * tolerance:g}"
        )
    return found.largest


def probe(vocabulary: int, device: torch.device) -> MicroBatch:
    """Two answers to each of two prompts, always the same, spread over the vocabulary."""
    lengths = torch.tensor(ANSWERS).flatten()
    rows, width = torch.arange(len(lengths)), PROMPT + int(lengths.max())
    group = rows // len(ANSWERS[0])
    column = torch.arange(width)
    author = torch.where(column < PROMPT, group[:, None], len(rows) + rows[:, None])  # prompts are those of the group
    return MicroBatch(
        input_ids=hash_bits(author, column).remainder(vocabulary).to(device),
        prompt_length=torch.full_like(rows, PROMPT).to(device),
        answer_mask=(torch.arange(int(lengths.max())) < lengths[:, None]).to(device),
        rows=rows.to(device),
        problem_index=group.to(device),
    )


@torch.no_grad()
def policy_logp(policy: Policy, micro_batch: MicroBatch) -> Tensor:
    """Log-probabilities by the path of statistics and losses, float64 `[N]` on the CPU; not counted as work."""
    counted = dict(policy.work)
    stats: TokenStats = policy(micro_batch, all_stats)
    policy.work = counted
    return stats.logp.double().cpu()


def half_precision(policy: Policy) -> bool:
    """Whether the policy computes in half precision here."""
    weight = policy.head_weight
    return weight.dtype.itemsize < 4 or torch.is_autocast_enabled(weight.device.type)


@torch.no_grad()
def _own_logp(policy: Policy, micro_batch: MicroBatch) -> Tensor:
    """The same by the model's own forward pass in evaluation mode, each sequence alone."""
    training = policy.model.training
    policy.eval()
    found = []
    for row, answer in enumerate(micro_batch.answer_mask.sum(1).tolist()):
        start = int(micro_batch.prompt_length[row])
        ids = micro_batch.input_ids[row, : start + answer]
        logits = policy.model(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1]
        logp = logits.double().log_softmax(-1)
        found.append(logp.gather(1, ids[start:, None]).squeeze(1).cpu())
    policy.train(training)
    return torch.cat(found)


def _gap(ours: Tensor, own: Tensor, maximum: Callable[[Tensor], Tensor]) -> Gap:
    """If the model's own numbers are not finite, the rollout stops the run and names the place."""
    size = (ours - own).abs().nan_to_num(torch.inf).where(own.isfinite(), 0.0)
    largest, mean = maximum(torch.stack([size.max(), size.mean()])).tolist()
    return Gap(largest, mean, int(size.argmax()))
