"""Tokens that the policy losses are tested on: worked by hand, and random."""

import json
from pathlib import Path

import pytest
import torch

from forklight.algo.batch import TokenBatch

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
HITS = ("clip_low", "clip_high", "clip_dual")
ONE = torch.ones(1).bool()


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def hits(found):
    """The clip flags, as lists."""
    return {name: getattr(found, name).tolist() for name in HITS}


def expect(case, found, logp):
    """The numbers of one token."""
    found.loss.sum().backward()
    assert found.loss.item() == pytest.approx(case["loss"], rel=1e-12)
    assert logp.grad.item() == pytest.approx(case["grad"], rel=1e-12)
    assert hits(found) == {name: [name == case.get("hit")] for name in HITS}


def one_row(logp, old_logp, advantages):
    """A sequence whose tokens are all kept."""
    everything, row = torch.ones(len(logp)).bool(), torch.zeros(len(logp), dtype=torch.int64)
    return TokenBatch(logp, old_logp, advantages, everything, everything, row, 1)


def random_tokens(n=40, rows=5):
    """Tokens with every field that an objective may ask for."""
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(n, generator=generator, dtype=torch.float64)

    eligible = torch.rand(n, generator=generator) < 0.7
    old_logp = -noise().abs()
    return TokenBatch(
        logp=(old_logp + noise() / 4).requires_grad_(),
        old_logp=old_logp,
        advantages=noise(),
        fork_mask=eligible & (torch.rand(n, generator=generator) < 0.4),
        eligible=eligible,
        row=torch.arange(n) * rows // n,
        rows=rows,
        entropy=noise().abs(),
        ref_logp=old_logp + noise() / 4,
        cov_mask=torch.rand(n, generator=generator) < 0.2,
    )


FACTS = {
    "aggregate": "token",
    "trains": "forks",
    "needs_reference": False,
    "trains_zero_advantage": False,
    "separable": False,
    "within_micro_batch": False,
    "covariance": None,
}
"""What an objective that changes nothing tells the rest of the package."""


def facts(objective):
    """What an objective tells the rest of the package."""
    return {name: getattr(objective, name) for name in FACTS}
