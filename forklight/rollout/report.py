"""What an update did, in numbers: the values of `train/` and `fork/`."""

import torch
from torch import Tensor

from forklight.rollout.learn import Learner, Lesson


def update_scalars(learner: Learner, lesson: Lesson, update: int, sums: dict[str, Tensor]) -> dict[str, float]:
    """What an update did: sums over its micro-batches and all ranks, over the true denominators.

    Args:
        learner: knows which tokens could be kept, and the ranks.
        lesson: the rollout.
        update: number of the update in the rollout.
        sums: what the losses of this rank's visits added up to, and the gradient's norm.

    Raises:
        RuntimeError: there were tokens to train on, and the loss read another number of forking tokens than the
            selection kept among them.
    """
    x, plan, ranks = lesson.experience, lesson.plan, learner.ranks
    assert x.entropy is not None and x.fork_mask is not None and x.threshold is not None
    assert x.denominator is not None and x.answer_tokens is not None
    local = dict(sums)
    largest = ranks.maximum(local.pop("ratio_max"))
    grad_norm = float(local.pop("grad_norm"))
    trained = torch.cat([plan.train[visit] for visit in plan.visits_of(update)])
    local["kept_trained"] = x.fork_mask[trained].sum()
    local |= _selection_sums(learner, lesson, update)
    names = sorted(local)
    values = ranks.reduce(torch.stack([local[name].double() for name in names])).tolist()
    total = dict(zip(names, values, strict=True))
    if total["tokens"] != total["kept_trained"]:
        raise RuntimeError(
            f"the selection kept {total['kept_trained']:.0f} tokens of trained answers, the loss read "
            f"{total['tokens']:.0f}: the mask did not take effect"
        )
    denominator, tokens = float(x.denominator[update]), max(total["tokens"], 1.0)
    scalars = {
        "train/policy_loss": total["policy_loss_sum"] / max(denominator, 1.0),
        "train/ratio": total["ratio_sum"] / tokens,
        "train/ratio_max": float(largest),
        "train/clip_low": total["clip_low"] / tokens,
        "train/clip_high": total["clip_high"] / tokens,
        "train/clip_dual": total["clip_dual"] / tokens,
        "train/approx_kl": total["approx_kl_sum"] / tokens,
        "train/grad_norm": grad_norm,
        "train/tokens": total["tokens"],
        "rollout/empty_updates": float(total["eligible"] == 0),
        "fork/kept_share": total["kept"] / max(total["eligible"], 1.0),
        "fork/entropy_mean": total["entropy"] / max(total["seen"], 1.0),
        "fork/entropy_kept": total["entropy_kept"] / max(total["seen_kept"], 1.0),
        "fork/entropy_dropped": (total["entropy"] - total["entropy_kept"])
        / max(total["seen"] - total["seen_kept"], 1.0),
    }
    if "kl_sum" in total:
        scalars["train/kl"] = total["kl_sum"] / max(float(x.answer_tokens[update]), 1.0)
    threshold = float(x.threshold[update])
    return scalars if threshold != threshold else scalars | {"fork/threshold": threshold}


def _selection_sums(learner: Learner, lesson: Lesson, update: int) -> dict[str, Tensor]:
    """Counts and entropies over the tokens that could be kept; entropies only where a pass has seen them."""
    x = lesson.experience
    assert x.entropy is not None and x.fork_mask is not None
    eligible = learner.eligible(x) & (x.update == update)[:, None]
    seen = eligible & ~x.entropy.isnan()
    return {
        "eligible": eligible.sum(),
        "kept": (x.fork_mask & eligible).sum(),
        "seen": seen.sum(),
        "seen_kept": (seen & x.fork_mask).sum(),
        "entropy": x.entropy[seen].double().sum(),
        "entropy_kept": x.entropy[seen & x.fork_mask].double().sum(),
    }
