import math

import pytest
import torch
from loss_cases import FACTS, GOLDEN, HITS, facts, hits, tensor

from forklight.algo.objectives import Gspo, GspoToken
from forklight.algo.objectives.gspo import gspo_loss, gspo_token_loss
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection


@pytest.mark.parametrize("loss", [gspo_loss, gspo_token_loss])
def test_hand_worked_gspo(loss):
    cases = GOLDEN["gspo"]
    lengths = torch.tensor([len(case["ratios"]) for case in cases])
    row = torch.arange(len(cases)).repeat_interleave(lengths)
    logp = tensor(*[math.log(r) - 1 for case in cases for r in case["ratios"]]).requires_grad_()
    mask = torch.tensor([kept for case in cases for kept in case["kept"]])
    advantages = tensor(*[case["advantage"] for case in cases])[row]
    found = loss(logp, torch.full_like(logp, -1), advantages, mask, row, len(cases), ClipRange(0.2, 0.28))
    kept = torch.zeros(len(cases), dtype=torch.float64).index_add(0, row, mask.double())
    (found.loss / kept[row]).sum().backward()
    for name in ("loss", "grad"):
        expected = torch.where(mask, tensor(*[case[name] for case in cases])[row], 0.0)
        torch.testing.assert_close({"loss": found.loss, "grad": logp.grad}[name], expected, rtol=1e-12, atol=1e-12)
    assert hits(found) == {name: [cases[i]["hit"] == name for i in row] for name in HITS}


def test_gspo_without_kept_tokens_in_a_sequence():
    logp = tensor(-1, -2, -3).requires_grad_()
    mask, row = torch.tensor([False, False, True]), torch.tensor([0, 0, 2])
    found = gspo_loss(logp, tensor(-5, -5, -3), tensor(1, 1, 1), mask, row, 3, ClipRange())
    assert found.loss.tolist() == [0, 0, -1]
    assert not any(any(values) for values in hits(found).values())


def test_gspo_keeps_its_narrow_range_apart_over_long_sequences_in_float32():
    n = 20_000
    old = -torch.rand(n, generator=torch.Generator().manual_seed(0)) * 9
    for shift, hit in ((3.9e-4, False), (4.1e-4, True)):
        logp = (old.double() + math.log1p(shift)).float()
        row, mask = torch.zeros(n, dtype=torch.int64), torch.ones(n).bool()
        found = gspo_loss(logp, old, torch.ones(n), mask, row, 1, ClipRange(3e-4, 4e-4))
        assert bool(found.clip_high.all()) == bool(found.clip_high.any()) == hit


@pytest.mark.parametrize("loss", [gspo_loss, gspo_token_loss])
def test_wrong_rows_are_refused(loss):
    row, mask = torch.zeros(3), torch.ones(3).bool()
    with pytest.raises(TypeError, match="int64"):
        loss(row, row, row, mask, row, 1, ClipRange())


@pytest.mark.parametrize("kind", [Gspo, GspoToken])
def test_what_they_are(kind):
    assert facts(kind()) == FACTS | {"aggregate": "sequence"}


@pytest.mark.parametrize("kind", [Gspo, GspoToken])
def test_a_mean_over_other_tokens_is_refused(kind):
    kind().check_selection(ForkSelection())
    with pytest.raises(ValueError, match=rf"{kind.__name__} averages .* selection\.denominator must be selected"):
        kind().check_selection(ForkSelection(denominator="answer"))
    with pytest.raises(ValueError, match=rf"selection\.denominator: micro_batch .* {kind.__name__} by sequences"):
        kind().check_selection(ForkSelection(denominator="micro_batch"))
