"""Advantages: how much better an answer is than the other answers to the same problem."""

from typing import Literal

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, *, scale: Literal["std", "none"] = "std", eps: float = 1e-6) -> Tensor:
    """Group-relative advantages of GRPO.

    `A_i = (r_i - mean(r)) / (std(r) + eps)` over the G answers to one problem: arXiv 2402.03300, section 4.1.2, and
    arXiv 2503.14476, Eq. 9. `std` is the *sample* standard deviation (divisor G - 1), as in verl and TRL; the papers do
    not say. With `scale="none"` only the mean is subtracted: Dr. GRPO, arXiv 2503.20783, section 3.2.

    Args:
        rewards: [P,G], floating point, one row per problem.
        scale: whether to divide by the standard deviation of the group.
        eps: added to the standard deviation.

    Returns:
        [P,G], dtype of `rewards`. A group of equal rewards is exactly zero, also where the mean rounds.

    Raises:
        TypeError: rewards are not floating point.
        ValueError: rewards are not [P,G] with G >= 2, a reward is NaN or infinite, `eps` is not positive, or `scale` is
            unknown.
    """
    if not rewards.is_floating_point():
        raise TypeError(f"rewards must be floating point, not {rewards.dtype}")
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [P,G] with at least 2 answers per problem, got shape {tuple(rewards.shape)}")
    if scale not in ("std", "none"):
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    broken = (~rewards.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"group {broken[0]} has a reward that is not finite: {rewards[broken[0]].tolist()}")

    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "std":
        std = (centred.square().sum(dim=1, keepdim=True) / (rewards.shape[1] - 1)).sqrt()
        centred = centred / (std + eps)
    all_equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    return torch.where(all_equal, torch.zeros_like(centred), centred)
