import math
from dataclasses import replace

import pytest
import torch
from loss_cases import FACTS, GOLDEN, ONE, expect, facts, random_tokens, tensor

from forklight.algo.objectives import ClipCov, KlCov
from forklight.algo.objectives.covariance import clip_cov_loss, kl_cov_loss
from forklight.algo.ratios import ClipRange
from forklight.algo.selection.covariance import CovarianceTokens


def test_clip_cov_takes_loss_and_gradient_from_its_tokens():
    logp, old = tensor(0.1, 0.1, 0.9).requires_grad_(), tensor(0, 0, 0)
    mask, cov_mask = torch.ones(3).bool(), torch.tensor([False, True, True])
    found = clip_cov_loss(logp, old, tensor(2, 2, 2), mask, cov_mask, ClipRange())
    found.loss.sum().backward()
    ratio = math.exp(0.1)
    assert found.loss.tolist() == pytest.approx([-2 * ratio, 0, 0])
    assert logp.grad.tolist() == pytest.approx([-2 * ratio, 0, 0])
    assert found.clip_high.tolist() == [False, False, True]


@pytest.mark.parametrize("case", GOLDEN["kl_cov"], ids=str)
def test_hand_worked_kl_cov(case):
    logp = tensor(math.log(case["ratio"]) - 1.5).requires_grad_()
    held = torch.tensor([case["held"]])
    expect(case, kl_cov_loss(logp, tensor(-1.5), tensor(case["advantage"]), ONE, held, 1.0), logp)


def test_wrong_masks_are_refused():
    row, mask = torch.zeros(3), torch.ones(3).bool()
    with pytest.raises(TypeError, match="bool"):
        clip_cov_loss(row, row, row, mask, row, ClipRange())
    with pytest.raises(ValueError, match="one shape"):
        kl_cov_loss(row, row, row, mask, mask[:1], 1.0)


def test_what_they_are():
    assert facts(ClipCov()) == FACTS | {"separable": True, "covariance": CovarianceTokens(0.0002, 1.0, 5.0)}
    held = {"covariance": CovarianceTokens(0.002), "trains_zero_advantage": True}
    assert facts(KlCov()) == FACTS | {"separable": True} | held


@pytest.mark.parametrize("kind", [ClipCov, KlCov])
def test_a_missing_mask_is_named(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} needs cov_mask"):
        kind().token_loss(replace(random_tokens(), cov_mask=None))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ClipCov(share=0.0), "share"),
        (lambda: ClipCov(share=1.1), "share"),
        (lambda: ClipCov(low=5.0, high=5.0), "low"),
        (lambda: ClipCov(low=-math.inf), "low"),
        (lambda: ClipCov(high=math.nan), "low"),
        (lambda: KlCov(penalised_share=-0.1), "penalised_share"),
        (lambda: KlCov(coef=-1.0), "coef"),
        (lambda: KlCov(coef=math.inf), "coef"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=rf"model\.objective\.{name}"):
        make()
