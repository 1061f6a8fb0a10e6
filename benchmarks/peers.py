"""What other projects offer for the same work, each behind one call, and what the benchmarks against them share.

A head is a function of a `Work`: it computes the loss of the kept tokens, leaves the gradients in `hidden.grad` and
`weight.grad`, and returns the loss. Peers are called as libraries, at the versions of the extra `bench`:

    pip install -e '.[bench]' -c constraints.txt
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SEED = 0
SEQUENCES = 8
KEPT = 0.2
"""Share of the tokens that carry gradient."""
CLIP = 0.2


@dataclass(frozen=True)
class Shape:
    """How much work there is."""

    vocabulary: int
    width: int
    tokens: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Work:
    """One update of a head: N tokens, as sequences of equal length; the loss is that of the kept ones."""

    hidden: Tensor
    """[N,H], wants a gradient."""
    weight: Tensor
    """[V,H], wants a gradient."""
    targets: Tensor
    """[N]."""
    old_logp: Tensor
    """[N], float32 or better: the policy that sampled."""
    advantages: Tensor
    """[N], one value per sequence."""
    rows: Tensor
    """[M], the kept tokens, ascending."""
    sequences: int
    """N is a multiple of it."""

    @property
    def mask(self) -> Tensor:
        """The kept tokens as 1 among 0, [N]."""
        return torch.zeros_like(self.old_logp).index_fill_(0, self.rows, 1.0)

    def clear(self) -> None:
        """Drops the gradients."""
        self.hidden.grad = self.weight.grad = None


Head = Callable[[Work], Tensor]


def make(shape: Shape, device: str) -> Work:
    """A policy whose tokens differ in entropy, what it sampled, and old log-probabilities a little off."""
    tokens, dtype = shape.tokens, shape.dtype
    draw = torch.Generator().manual_seed(SEED)
    exact = torch.promote_types(dtype, torch.float32)
    sharpness = torch.linspace(0.5, 5.0, tokens)[torch.randperm(tokens, generator=draw)]
    hidden = (torch.randn(tokens, shape.width, generator=draw) * sharpness[:, None]).to(device, dtype)
    weight = torch.randn(shape.vocabulary, shape.width, generator=draw).div_(shape.width**0.5).to(device, dtype)
    entropy, logp, targets = [], [], []
    for rows in hidden.split(64):  # few rows: what is freed here must not hide a peak
        log_p = (rows @ weight.T).to(exact).log_softmax(-1)
        p = log_p.exp()
        entropy.append(-(p * log_p).sum(-1))
        dice = torch.rand(len(rows), 1, generator=draw).to(device, exact)
        targets.append(torch.searchsorted(p.cumsum_(-1), dice).clamp_(max=shape.vocabulary - 1))
        logp.append(log_p.gather(-1, targets[-1]).squeeze(-1))
    noise = 0.15 * torch.randn(tokens, generator=draw).to(device, exact)
    signs = torch.tensor([1.0, -1.0]).repeat(SEQUENCES // 2).repeat_interleave(tokens // SEQUENCES)
    return Work(
        hidden=hidden.requires_grad_(),
        weight=weight.requires_grad_(),
        targets=torch.cat(targets).squeeze(-1),
        old_logp=torch.cat(logp) + noise,
        advantages=signs.to(device, exact),
        rows=torch.cat(entropy).topk(int(KEPT * tokens)).indices.sort().values,
        sequences=SEQUENCES,
    )


def in_precision(work: Work, dtype: torch.dtype) -> Work:
    """The same numbers, in another type."""
    floats = {name: getattr(work, name).detach().to(dtype) for name in ("hidden", "weight", "old_logp", "advantages")}
    floats["hidden"].requires_grad_()
    floats["weight"].requires_grad_()
    return replace(work, **floats)


def clip_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor) -> Tensor:
    """DAPO's loss of each token."""
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


def masked_loss(work: Work, logp: Tensor) -> Tensor:
    """The loss of those who score every token: the mask comes after the fact."""
    return (clip_loss(logp, work.old_logp, work.advantages) * work.mask).sum() / len(work.rows)


def naive(work: Work) -> Tensor:
    """All logits at once and autograd, no entropy."""
    logits = F.linear(work.hidden, work.weight).to(work.old_logp.dtype)
    loss = masked_loss(work, logits.log_softmax(-1).gather(-1, work.targets[:, None]).squeeze(-1))
    loss.backward()
    return loss.detach()


def naive_entropy(work: Work) -> Tensor:
    """The same, and entropies by TRL's `entropy_from_logits`, without a gradient."""
    from trl.trainer.utils import entropy_from_logits

    logits = F.linear(work.hidden, work.weight).to(work.old_logp.dtype)
    with torch.no_grad():
        entropy_from_logits(logits)
    loss = masked_loss(work, logits.log_softmax(-1).gather(-1, work.targets[:, None]).squeeze(-1))
    loss.backward()
    return loss.detach()


def trl(work: Work) -> Tensor:
    """The head that TRL gives every policy of GRPOTrainer: log-probabilities and entropies of all tokens, in tiles."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    # no bias; temperature 1; no soft cap, no scale
    outputs = ("log_probs", "entropy")
    logp, *_ = ChunkedLogProbFunction.apply(
        work.hidden, work.weight, None, work.targets, 1.0, CHUNK, None, 1.0, outputs
    )
    loss = masked_loss(work, logp)
    loss.backward()
    return loss.detach()


def liger(work: Work) -> Tensor:
    """Liger's fused GRPO loss, sequence by sequence. It knows no entropy: the mask is given, and its time is left out.

    The few operations on log-probabilities are not compiled: on so few numbers that gains nothing.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    fused = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, loss_type="dapo")
    shape = (work.sequences, -1)
    loss, _ = fused(
        work.hidden.view(*shape, work.hidden.shape[1]),
        work.weight,
        work.targets.view(shape),
        work.mask.view(shape),
        work.advantages.view(shape)[:, 0],
        old_per_token_logps=work.old_logp.view(shape),
    )
    loss.backward()
    return loss.detach()


PEERS: dict[str, Head] = {"naive": naive, "naive_entropy": naive_entropy, "trl": trl, "liger": liger}
"""`naive` does less than the task asks: no entropy, as `liger`."""


def missing_peers() -> str | None:
    """What to say if the peers are not installed."""
    absent = [name for name in ("trl", "liger-kernel") if versions((name,))[name] is None]
    return f"no {' and no '.join(absent)} here: pip install -e '.[bench]' -c constraints.txt" if absent else None


def versions(names: tuple[str, ...] = ("torch", "transformers", "trl", "liger-kernel", "triton")) -> dict[str, Any]:
    """Installed versions, None for what is not there."""
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def memory(line: str) -> int:
    """A figure of the kernel's about this process, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(text.split()[1]) for text in status if text.startswith(line))


def fresh(script: str, arguments: list[str], threads: int, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON object that a script prints last, from a process of its own with so many threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(variables or {})}
    command = [sys.executable, script, *arguments, "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def short(value: Any) -> Any:
    """Floats with four digits, also inside of dicts."""
    if isinstance(value, dict):
        return {name: short(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
