"""A callback that breaks the policy in the middle of a run."""

from dataclasses import replace

import torch
from lightning.pytorch import Callback

from forklight.algo.batch import TokenStats


class BreakPolicy(Callback):
    """From one micro-batch on, what the policy says is not finite.

    Args:
        how: `nan`: a weight is NaN; `infinite`: logits so far apart that some tokens have log-probability -inf, while
            all entropies are finite; `gradient`: the weights are fine, the gradient of one is NaN;
            `statistics`: the policy samples as before, the log-probabilities of its forward passes are NaN.
        rollout: number of the rollout.
        micro_batch: number of the micro-batch in it.
    """

    def __init__(self, how: str = "nan", rollout: int = 0, micro_batch: int = 0) -> None:
        self.how, self.at = how, (rollout, micro_batch)

    @torch.no_grad()
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (batch.rollout, batch.micro_batch) != self.at:
            return
        model = pl_module.policy.model
        if self.how == "gradient":
            model.model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
            return
        if self.how == "nan":
            model.model.norm.weight[0] = torch.nan
            return
        if self.how == "statistics":
            pl_module.policy.register_forward_hook(lambda *arguments: _without_logp(arguments[-1]))
            return
        head = pl_module.policy.head_weight
        head[:, 0] = 2.5e38  # two of these make an infinite float32
        head[1::2, 0] = -2.5e38
        first = torch.zeros(head.shape[1])
        first[0] = 1.0
        model.model.norm.register_forward_hook(lambda *arguments: arguments[-1] * 0 + first)


def _without_logp(out):
    return replace(out, logp=out.logp * torch.nan) if isinstance(out, TokenStats) else out
