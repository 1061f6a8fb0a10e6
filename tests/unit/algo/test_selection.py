import json
import math
from pathlib import Path

import pytest
import torch

from forklight.algo.noise import hash_bits
from forklight.algo.selection import ForkSelection, kth, select

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "selection.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=str)
def test_hand_worked(case, dtype):
    entropy, answer_mask = torch.tensor(GOLDEN["entropy"], dtype=dtype), torch.tensor(GOLDEN["answer_mask"]).bool()
    spec = ForkSelection(rho=case["rho"], keep=case["keep"])
    result = select(entropy, answer_mask, spec, row_key=torch.tensor(case["row_key"]))
    assert result.mask.dtype == torch.bool
    assert result.mask.int().tolist() == case["mask"]
    assert result.count.item() == sum(map(sum, case["mask"]))
    assert result.threshold.dtype == dtype
    if case["threshold"] is None:
        assert result.threshold.isnan()
    else:
        assert result.threshold == torch.tensor(case["threshold"], dtype=dtype)


@pytest.mark.parametrize("case", GOLDEN["kept"], ids=str)
def test_number_kept(case):
    assert ForkSelection(rho=case["rho"]).kept(case["n"]) == case["k"]
    assert ForkSelection(rho=case["rho"], keep="all").kept(case["n"]) == case["n"]


def test_default_row_key_is_the_row_number():
    answer_mask = torch.ones(4, 5).bool()
    result = select(torch.zeros(4, 5), answer_mask, ForkSelection(rho=0.3))
    assert result.mask.flatten().tolist() == [True] * 6 + [False] * 14


def test_random_keeps_the_largest_hashes_of_seed_row_and_position():
    answer_mask = torch.ones(50, 40).bool()
    answer_mask[:, 30:] = False
    row_key = torch.arange(50) * 7 - 20
    result = select(None, answer_mask, ForkSelection(keep="random"), row_key=row_key, seed=3)
    score = hash_bits(3, row_key[:, None], torch.arange(30))
    assert result.count == 300
    assert torch.equal(result.mask[:, :30], score >= score.flatten().sort().values[-300])
    other = select(None, answer_mask, ForkSelection(keep="random"), row_key=row_key, seed=4)
    assert (result.mask & other.mask).sum() < 120  # 60 expected of two independent fifths


def test_random_keeps_every_position_alike():
    answer_mask = torch.ones(2000, 20).bool()
    mask = select(None, answer_mask, ForkSelection(keep="random"), seed=1).mask
    assert mask.sum() == 8000
    assert (mask.double().mean(dim=0) - 0.2).abs().max() < 4 * math.sqrt(0.2 * 0.8 / 2000)


def test_entropy_is_not_read_where_it_is_not_needed():
    answer_mask = torch.ones(2, 5).bool()
    entropy = torch.full((2, 5), math.nan)
    for keep in ("random", "all"):
        spec = ForkSelection(keep=keep)
        assert not spec.needs_entropy
        assert torch.equal(select(entropy, answer_mask, spec).mask, select(None, answer_mask, spec).mask)
    for keep in ("top", "bottom"):
        assert ForkSelection(keep=keep).needs_entropy
        with pytest.raises(ValueError, match=f"selection.keep={keep}"):
            select(None, answer_mask, ForkSelection(keep=keep))


@pytest.mark.parametrize("keep", ["top", "bottom", "random", "all"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_nothing_eligible_gives_an_empty_mask(keep, shape):
    result = select(torch.zeros(shape), torch.zeros(shape).bool(), ForkSelection(keep=keep))
    assert result.mask.shape == shape
    assert not result.mask.any()
    assert result.count == 0
    assert result.threshold.isnan()


def test_infinite_and_negative_scores_and_signed_zeros_are_ordered():
    values = [-math.inf, -2.5, -1e-300, -0.0, 0.0, 5e-324, 1.0, 1e300, math.inf]
    entropy = torch.tensor([values], dtype=torch.float64)
    for k in range(1, 10):
        for keep, best in (("top", range(8, -1, -1)), ("bottom", range(9))):
            order = sorted(best, key=lambda i: (-values[i] if keep == "top" else values[i], i))
            result = select(entropy, torch.ones(1, 9).bool(), ForkSelection(rho=k / 9 - 1e-9, keep=keep))
            assert result.mask[0].nonzero().flatten().tolist() == sorted(order[:k])
            assert result.threshold == values[order[k - 1]]


def test_inputs_are_left_alone_and_results_are_detached():
    entropy = torch.rand(3, 4).requires_grad_()
    answer_mask = torch.ones(4, 3).bool().T  # not contiguous
    before = entropy.detach().clone()
    result = select(entropy, answer_mask, ForkSelection(rho=0.5))
    assert not result.threshold.requires_grad
    assert torch.equal(entropy, before)
    assert answer_mask.all()
    select(entropy, answer_mask, ForkSelection(keep="all")).mask.fill_(False)
    assert answer_mask.all()


def test_kth_agrees_with_sorting():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(-(2**63), 2**63 - 1, (200,), generator=generator)
    narrow = torch.randint(-3, 3, (200,), generator=generator)
    for keys in (wide, narrow, torch.tensor([-(2**63), 2**63 - 1, 0, -1, 0])):
        ordered = sorted(keys.tolist(), reverse=True)
        for k in {1, 2, len(ordered) // 2, len(ordered)}:
            value = ordered[k - 1]
            assert kth(keys, k, lambda counts: counts) == (value, sum(key > value for key in ordered))
    for k in (0, 201):
        with pytest.raises(ValueError, match="between 1 and"):
            kth(wide, k, lambda counts: counts)


def test_repeated_row_keys_are_refused_where_they_leave_a_tie():
    with pytest.raises(ValueError, match="row_key must be unique"):
        select(torch.zeros(2, 2), torch.ones(2, 2).bool(), ForkSelection(), row_key=torch.tensor([4, 4]))


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"rho": 0.0}, "selection.rho"),
        ({"rho": 1.01}, "selection.rho"),
        ({"rho": math.nan}, "selection.rho"),
        ({"keep": "most"}, "selection.keep"),
        ({"scope": "batch"}, "selection.scope"),
        ({"entropy_of": "new"}, "selection.entropy_of"),
        ({"over": "prompts"}, "selection.over"),
        ({"denominator": "none"}, "selection.denominator"),
    ],
)
def test_wrong_specifications_are_refused_by_name(kwargs, name):
    with pytest.raises(ValueError, match=name):
        ForkSelection(**kwargs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"answer_mask": torch.ones(2, 3)}, TypeError, "bool"),
        ({"answer_mask": torch.ones(6).bool()}, ValueError, r"\[S,T\]"),
        ({"answer_mask": torch.ones(2, 4).bool()}, ValueError, "do not agree"),
        ({"entropy": torch.ones(2, 3).long()}, TypeError, "floating"),
        ({"entropy": torch.tensor([[1.0, math.nan, 0], [0, 0, 0]])}, ValueError, "1 of 6 eligible entropies are NaN"),
        ({"row_key": torch.zeros(2)}, TypeError, "int64"),
        ({"row_key": torch.arange(3)}, ValueError, "one per row"),
        ({"reduce": lambda counts: counts}, ValueError, "row_key is required"),
    ],
)
def test_wrong_arguments_are_refused(change, error, message):
    arguments = {"entropy": torch.zeros(2, 3), "answer_mask": torch.ones(2, 3).bool(), **change}
    with pytest.raises(error, match=message):
        select(**arguments, spec=ForkSelection())


def test_nan_outside_the_answer_is_ignored():
    entropy = torch.tensor([[1.0, math.nan], [0.5, 2.0]])
    answer_mask = torch.tensor([[True, False], [True, True]])
    result = select(entropy, answer_mask, ForkSelection(rho=0.3))
    assert result.mask.tolist() == [[False, False], [False, True]]
