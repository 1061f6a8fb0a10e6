import math
from dataclasses import replace

import pytest
import torch
from loss_cases import FACTS, GOLDEN, facts, random_tokens, tensor

from forklight.algo.objectives import Dapo, EntropyShaped
from forklight.algo.objectives.entropy_shaped import entropy_shaped_advantages


@pytest.mark.parametrize("case", GOLDEN["shaped"], ids=str)
def test_hand_worked_shaping(case):
    entropy = tensor(case["entropy"]).requires_grad_()
    shaped = entropy_shaped_advantages(tensor(case["advantage"]), entropy, 0.4, 2.0)
    assert shaped.item() == pytest.approx(case["shaped"])
    assert not shaped.requires_grad


def test_shaping_raises_only_the_advantages():
    tokens = random_tokens()
    flat = replace(tokens, entropy=torch.zeros_like(tokens.entropy))
    assert torch.equal(EntropyShaped().token_loss(flat).loss, Dapo().token_loss(tokens).loss)
    assert not torch.equal(EntropyShaped().token_loss(tokens).loss, Dapo().token_loss(tokens).loss)


def test_what_it_is():
    assert facts(EntropyShaped()) == FACTS | {"separable": True}


def test_a_missing_entropy_is_named():
    with pytest.raises(ValueError, match="EntropyShaped needs entropy"):
        EntropyShaped().token_loss(replace(random_tokens(), entropy=None))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: EntropyShaped(alpha=-0.1), "alpha"),
        (lambda: EntropyShaped(kappa=1.0), "kappa"),
        (lambda: EntropyShaped(kappa=math.inf), "kappa"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=rf"model\.objective\.{name}"):
        make()
