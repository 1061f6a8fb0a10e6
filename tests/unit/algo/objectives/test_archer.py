import math
from dataclasses import replace

import pytest
import torch
from loss_cases import FACTS, GOLDEN, ONE, expect, facts, random_tokens, tensor

from forklight.algo.objectives import Archer
from forklight.algo.objectives.archer import dual_token_loss
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection


@pytest.mark.parametrize("case", GOLDEN["archer"], ids=str)
def test_hand_worked_archer(case):
    logp = tensor(math.log(case["ratio"]) - 1.5).requires_grad_()
    found = dual_token_loss(
        logp,
        tensor(-1.5),
        tensor(case["advantage"]),
        ONE,
        torch.tensor([case["fork"]]),
        fork_clip=ClipRange(0.5, 0.5),
        other_clip=ClipRange(0.2, 0.2),
        ref_logp=logp.detach() + math.log(case["reference_ratio"]),
        other_kl=0.1,
    )
    expect(case, found, logp)


def test_a_divergence_needs_a_reference():
    row, mask, clip = torch.zeros(3), torch.ones(3).bool(), ClipRange()
    with pytest.raises(ValueError, match="reference"):
        dual_token_loss(row, row, row, mask, mask, fork_clip=clip, other_clip=clip)
    with pytest.raises(ValueError, match="Archer needs ref_logp"):
        Archer().token_loss(replace(random_tokens(), ref_logp=None))


def test_archer_without_a_divergence_needs_no_reference():
    tokens = replace(random_tokens(), ref_logp=None)
    assert Archer(other_kl=0.0).token_loss(tokens).loss.isfinite().all()


def test_what_it_is():
    everything = FACTS | {"trains": "eligible", "separable": True}
    penalised = {"needs_reference": True, "trains_zero_advantage": True}
    assert facts(Archer()) == facts(Archer(fork_kl=0.1, other_kl=0.0)) == everything | penalised
    assert facts(Archer(other_kl=0.0)) == everything


@pytest.mark.parametrize("denominator", ["selected", "micro_batch"])
def test_a_mean_over_kept_tokens_is_refused(denominator):
    Archer().check_selection(ForkSelection(denominator="answer"))
    message = rf"Archer trains forking and other tokens; selection\.denominator must be answer, not {denominator}"
    with pytest.raises(ValueError, match=message):
        Archer().check_selection(ForkSelection(denominator=denominator))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Archer(fork_kl=-1.0), "fork_kl"),
        (lambda: Archer(other_kl=math.nan), "other_kl"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=rf"model\.objective\.{name}"):
        make()
