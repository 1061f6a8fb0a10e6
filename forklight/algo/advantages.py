"""Advantages: how much better an answer is than the other answers to the same problem.

All functions take all rewards of a rollout, over all ranks: some divide by a standard deviation over the batch.
Standard deviations are *sample* standard deviations (divisor n - 1), as in verl and TRL; the papers do not say.
"""

from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

AdvantageName = Literal["grpo", "dr_grpo", "batch_std", "rloo", "reinforce_pp", "reinforce_pp_baseline"]


@runtime_checkable
class Advantage(Protocol):
    """A user-defined estimator. Each rank calls it with the same arguments and must get the same result."""

    def advantages(self, rewards: Tensor, values: Tensor | None = None) -> Tensor:
        """Advantages of all answers.

        Args:
            rewards: [P,G], floating point and finite, one row per problem, over all ranks.
            values: [P,G], a critic's estimates of the rewards; None without a critic.

        Returns:
            Floating point [P,G], finite. A group whose advantages are all exactly zero does not contribute.
        """


def estimate_advantages(kind: AdvantageName | Advantage, rewards: Tensor, values: Tensor | None = None) -> Tensor:
    """Advantages by name, or by a user-defined estimator.

    Args:
        kind: `grpo` and `dr_grpo` (`group_advantages` with scale `std` and `none`), `batch_std`
            (`batch_std_advantages`), `rloo` (`rloo_advantages`), `reinforce_pp` and `reinforce_pp_baseline`
            (`reinforce_pp_advantages`), or an `Advantage`.
        rewards: [P,G], floating point, one row per problem, over all ranks.
        values: [P,G], a critic's estimates, which only an `Advantage` reads; None without a critic.

    Returns:
        [P,G], dtype of `rewards`, detached.

    Raises:
        TypeError: rewards, or what the `Advantage` returned, are not floating point.
        ValueError: rewards are not [P,G] with G >= 2, or a reward is NaN or infinite; there is no estimator of that
            name; values are given but not read, or do not have the shape of the rewards; or what the `Advantage`
            returned is not [P,G] or not finite.
    """
    if not isinstance(kind, str) and isinstance(kind, Advantage):
        return _own_advantages(kind, rewards, values)
    if kind not in get_args(AdvantageName):
        raise ValueError(f"model.advantage must be one of {get_args(AdvantageName)} or an Advantage, got {kind!r}")
    if values is not None:
        raise ValueError(f"model.advantage {kind!r} does not read the values of a critic")
    if kind == "batch_std":
        return batch_std_advantages(rewards)
    if kind == "rloo":
        return rloo_advantages(rewards)
    if kind in ("reinforce_pp", "reinforce_pp_baseline"):
        return reinforce_pp_advantages(rewards, baseline=kind == "reinforce_pp_baseline")
    return group_advantages(rewards, scale="std" if kind == "grpo" else "none")


def group_advantages(rewards: Tensor, *, scale: Literal["std", "none"] = "std", eps: float = 1e-6) -> Tensor:
    """Group-relative advantages of GRPO.

    `A_i = (r_i - mean(r)) / (std(r) + eps)` over the G answers to one problem: arXiv 2402.03300, section 4.1.2, and
    arXiv 2503.14476, Eq. 9. With `scale="none"` only the mean is subtracted: Dr. GRPO, arXiv 2503.20783, section 3.2.

    Args:
        rewards: [P,G], floating point, one row per problem.
        scale: whether to divide by the standard deviation of the group.
        eps: added to the standard deviation.

    Returns:
        [P,G], dtype of `rewards`. A group of equal rewards is exactly zero, even if its mean is rounded.

    Raises:
        TypeError: rewards are not floating point.
        ValueError: rewards are not [P,G] with G >= 2, a reward is NaN or infinite, `eps` is not positive, or `scale` is
            unknown.
    """
    _check(rewards, eps)
    if scale not in ("std", "none"):
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}")
    centred = _group_centred(rewards)
    if scale == "none":
        return centred
    std = (centred.square().sum(dim=1, keepdim=True) / (rewards.shape[1] - 1)).sqrt()
    return centred / (std + eps)


def batch_std_advantages(rewards: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Mean of the group, standard deviation of the batch: Lite PPO, arXiv 2508.08221.

    `A_i = (r_i - mean(r of the group)) / (std(all P*G rewards) + eps)`. The standard deviation is that of the rewards
    themselves, so it includes differences between problems, unlike `reinforce_pp_advantages` with a baseline.

    Args:
        rewards: [P,G], floating point, one row per problem, over all ranks.
        eps: added to the standard deviation.

    Returns:
        [P,G], dtype of `rewards`. A group of equal rewards is exactly zero.

    Raises:
        TypeError: rewards are not floating point.
        ValueError: rewards are not [P,G] with G >= 2, a reward is NaN or infinite, or `eps` is not positive.
    """
    _check(rewards, eps)
    return _group_centred(rewards) / (_centred_std(rewards - rewards.mean()) + eps)


def rloo_advantages(rewards: Tensor) -> Tensor:
    """Leave-one-out advantages: RLOO, arXiv 2402.14740.

    `A_i = r_i - mean(r_j, j != i)` over the G answers to one problem: those of Dr. GRPO times `G / (G - 1)`.

    Args:
        rewards: [P,G], floating point, one row per problem.

    Returns:
        [P,G], dtype of `rewards`. A group of equal rewards is exactly zero.

    Raises:
        TypeError: rewards are not floating point.
        ValueError: rewards are not [P,G] with G >= 2, or a reward is NaN or infinite.
    """
    _check(rewards)
    answers = rewards.shape[1]
    return _group_centred(rewards) * answers / (answers - 1)


def reinforce_pp_advantages(rewards: Tensor, *, baseline: bool, eps: float = 1e-6) -> Tensor:
    """Advantages normalised over the batch: REINFORCE++, arXiv 2501.03262.

    Without baseline `A_i = (r_i - mean(r)) / (std(r) + eps)` over all P*G rewards. With baseline the same is done to
    `r_i - mean(r of the group)`; the mean of these over the batch is zero and is not subtracted, as its rounding error
    would move groups of equal rewards off zero. Mean and standard deviation are over answers; verl and OpenRLHF take
    them over answer tokens, so that long answers weigh more. The KL penalty in the reward is no part of this function.

    Args:
        rewards: [P,G], floating point, one row per problem, over all ranks.
        baseline: whether to subtract the group's mean first.
        eps: added to the standard deviation.

    Returns:
        [P,G], dtype of `rewards`. With baseline, a group of equal rewards is exactly zero. Without, such a group has an
        advantage if other groups have other rewards, and only a batch of equal rewards is exactly zero.

    Raises:
        TypeError: rewards are not floating point.
        ValueError: rewards are not [P,G] with G >= 2, a reward is NaN or infinite, or `eps` is not positive.
    """
    _check(rewards, eps)
    centred = _group_centred(rewards) if baseline else _group_centred(rewards.reshape(1, -1)).reshape(rewards.shape)
    return centred / (_centred_std(centred) + eps)


def _own_advantages(own: Advantage, rewards: Tensor, values: Tensor | None) -> Tensor:
    _check(rewards)
    if values is not None and values.shape != rewards.shape:
        raise ValueError(f"values {tuple(values.shape)} must have the shape of the rewards {tuple(rewards.shape)}")
    name = f"model.advantage ({type(own).__name__})"
    result = own.advantages(rewards, values)
    if not result.is_floating_point():
        raise TypeError(f"{name} must return floating point, not {result.dtype}")
    if result.shape != rewards.shape:
        raise ValueError(f"{name} must return [P,G] = {list(rewards.shape)}, got {list(result.shape)}")
    result = result.detach().to(rewards)  # before the check: a narrower dtype may overflow
    _check_finite(result, f"{name} returned an advantage that is not finite for group")
    return result


def _group_centred(rewards: Tensor) -> Tensor:
    # the mean of equal numbers may be rounded, which must not create an advantage
    all_equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    return torch.where(all_equal, 0.0, rewards - rewards.mean(dim=1, keepdim=True))


def _centred_std(centred: Tensor) -> Tensor:
    # standard deviation of numbers with mean zero
    return (centred.square().sum() / (centred.numel() - 1)).sqrt()


def _check(rewards: Tensor, eps: float = 1.0) -> None:
    if not rewards.is_floating_point():
        raise TypeError(f"rewards must be floating point, not {rewards.dtype}")
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [P,G] with at least 2 answers per problem, got shape {tuple(rewards.shape)}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    _check_finite(rewards, "a reward is not finite in group")


def _check_finite(values: Tensor, what: str) -> None:
    broken = (~values.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"{what} {broken[0]}: {values[broken[0]].tolist()}")
