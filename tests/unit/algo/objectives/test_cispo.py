import math

import pytest
import torch
from loss_cases import FACTS, GOLDEN, ONE, expect, facts, tensor

from forklight.algo.objectives import Cispo
from forklight.algo.objectives.cispo import cispo_loss
from forklight.algo.ratios import ClipRange


@pytest.mark.parametrize("case", GOLDEN["cispo"], ids=str)
def test_hand_worked_cispo(case):
    logp = tensor(case["logp"]).requires_grad_()
    old = tensor(case["logp"] - math.log(case["ratio"]))
    expect(case, cispo_loss(logp, old, tensor(case["advantage"]), ONE, ClipRange(case["low"], 4.0)), logp)


def test_what_it_is():
    assert facts(Cispo()) == FACTS | {"separable": True}


def test_a_dual_bound_is_refused():
    row, mask = torch.zeros(3), torch.ones(3).bool()
    with pytest.raises(ValueError, match=r"clip\.dual"):
        cispo_loss(row, row, row, mask, ClipRange(dual=10.0))
    with pytest.raises(ValueError, match=r"model\.objective\.weight_clip\.dual"):
        Cispo(ClipRange(dual=10.0))
