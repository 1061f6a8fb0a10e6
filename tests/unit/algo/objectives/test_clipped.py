"""DAPO, GRPO and Dr. GRPO; `clipped_loss` itself is tested with the ratios."""

import torch
from loss_cases import FACTS, facts, random_tokens

from forklight.algo.objectives import Dapo, DrGrpo, Grpo
from forklight.algo.objectives.clipped import clipped_loss
from forklight.algo.ratios import ClipRange


def test_what_they_are():
    assert facts(Dapo()) == FACTS | {"separable": True}
    assert facts(Grpo()) == FACTS | {"separable": True, "aggregate": "sequence"}
    assert facts(DrGrpo()) == FACTS | {"separable": True, "aggregate": "constant"}


def test_they_differ_in_range_and_mean_alone():
    tokens, clip = random_tokens(), ClipRange(0.1, 0.15, 3.0)
    expected = clipped_loss(tokens.logp, tokens.old_logp, tokens.advantages, tokens.fork_mask, clip)
    for kind in (Dapo, Grpo, DrGrpo):
        assert torch.equal(kind(clip).token_loss(tokens).loss, expected.loss)
    assert [kind().clip for kind in (Dapo, Grpo, DrGrpo)] == [ClipRange(0.2, 0.28), *2 * [ClipRange(0.2, 0.2)]]
