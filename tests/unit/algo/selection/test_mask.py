import json
import math
from pathlib import Path

import pytest
import torch

from forklight.algo.noise import hash_bits
from forklight.algo.selection import ForkSelection, select


class EntropyTimesAdvantage:
    def __repr__(self):
        return "own"

    def scores(self, entropy, logp, advantages, eligible):
        return entropy * advantages.abs()[:, None]


GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "selection.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=str)
def test_hand_worked(case, dtype):
    entropy, logp, advantages = (torch.tensor(GOLDEN[x], dtype=dtype) for x in ("entropy", "logp", "advantages"))
    spec = ForkSelection(**{name: case[name] for name in ("rho", "keep", "scope", "rule") if name in case})
    sequence_id, answer_mask = torch.tensor(case["sequence_id"]), torch.tensor(GOLDEN["answer_mask"]).bool()
    result = select(entropy, answer_mask, spec, logp=logp, advantages=advantages, sequence_id=sequence_id)
    assert result.mask.dtype == torch.bool
    assert result.mask.int().tolist() == case["mask"]
    assert result.count.item() == sum(map(sum, case["mask"]))
    if case["threshold"] is None:
        assert result.threshold.isnan()
    else:
        assert result.threshold.dtype == torch.promote_types(dtype, torch.float32)
        expected = torch.tensor(case["threshold"], dtype=torch.float64)
        rounding = {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
        torch.testing.assert_close(result.threshold.double(), expected, rtol=rounding, atol=0)


def test_default_row_key_is_the_row_number():
    answer_mask = torch.ones(4, 5).bool()
    result = select(torch.zeros(4, 5), answer_mask, ForkSelection(rho=0.3))
    assert result.mask.flatten().tolist() == [True] * 6 + [False] * 14


def test_random_keeps_the_largest_hashes_of_seed_row_and_position():
    answer_mask = torch.ones(50, 40).bool()
    answer_mask[:, 30:] = False
    sequence_id = torch.arange(50) * 7 - 20
    result = select(None, answer_mask, ForkSelection(keep="random"), sequence_id=sequence_id, seed=3)
    score = hash_bits(3, sequence_id[:, None], torch.arange(30))
    assert result.count == 300
    assert torch.equal(result.mask[:, :30], score >= score.flatten().sort().values[-300])
    other = select(None, answer_mask, ForkSelection(keep="random"), sequence_id=sequence_id, seed=4)
    assert (result.mask & other.mask).sum() < 120  # 60 expected of two independent fifths


def test_random_keeps_every_position_alike():
    answer_mask = torch.ones(2000, 20).bool()
    mask = select(None, answer_mask, ForkSelection(keep="random"), seed=1).mask
    assert mask.sum() == 8000
    assert (mask.double().mean(dim=0) - 0.2).abs().max() < 4 * math.sqrt(0.2 * 0.8 / 2000)


NEEDED = {
    "top": {"entropy"},
    "bottom": {"entropy"},
    "band": {"entropy"},
    "low_probability": {"logp"},
    "covariance": {"logp", "advantages"},
    "random": set(),
    "all": set(),
    EntropyTimesAdvantage(): {"entropy", "logp", "advantages"},
}


@pytest.mark.parametrize("keep", NEEDED, ids=str)
def test_what_a_score_is_not_made_of_is_not_read(keep):
    answer_mask, spec = torch.ones(2, 5).bool(), ForkSelection(keep=keep)
    given = {"entropy": torch.rand(2, 5), "logp": -torch.rand(2, 5), "advantages": torch.tensor([1.0, -0.5])}
    expected = select(**given, answer_mask=answer_mask, spec=spec).mask
    for name in given:
        if name in NEEDED[keep]:
            with pytest.raises(ValueError, match=r"selection.keep=\w+ needs"):
                select(**{**given, name: None}, answer_mask=answer_mask, spec=spec)
        else:
            wrong = torch.full_like(given[name], math.nan)
            for value in (None, wrong):
                assert torch.equal(select(**{**given, name: value}, answer_mask=answer_mask, spec=spec).mask, expected)


def test_own_score():
    entropy, advantages = torch.tensor([[1.0, 2.0], [3.0, 0.5]]), torch.tensor([-4.0, 1.0])
    spec = ForkSelection(rho=0.5, keep=EntropyTimesAdvantage())
    result = select(entropy, torch.ones(2, 2).bool(), spec, logp=-entropy, advantages=advantages)
    assert result.mask.tolist() == [[True, True], [False, False]]
    assert result.threshold == 4.0


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (torch.ones(2, 2).long(), TypeError, "Fixed.scores must return a floating point tensor, not torch.int64"),
        ([1.0], TypeError, "Fixed.scores must return a floating point tensor, not list"),
        (torch.ones(2), ValueError, r"Fixed.scores must return \(2, 2\), got \(2,\)"),
        (torch.full((2, 2), math.inf), ValueError, "4 of 4 eligible scores of Fixed are NaN or infinite"),
    ],
)
def test_wrong_own_scores_are_refused_by_their_name(scores, error, message):
    class Fixed:
        def scores(self, entropy, logp, advantages, eligible):
            return scores

    values = torch.ones(2, 2)
    with pytest.raises(error, match=message):
        select(values, values.bool(), ForkSelection(keep=Fixed()), logp=values, advantages=torch.ones(2))


@pytest.mark.parametrize("scope", ["update", "sequence"])
@pytest.mark.parametrize("rule", ["count", "threshold"])
@pytest.mark.parametrize("keep", NEEDED, ids=str)
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_nothing_eligible_gives_an_empty_mask(keep, shape, scope, rule):
    spec = ForkSelection(keep=keep, scope=scope, rule=rule)
    values = torch.zeros(shape)
    result = select(values, values.bool(), spec, logp=values, advantages=values.new_zeros(shape[0]))
    assert result.mask.shape == shape
    assert not result.mask.any()
    assert result.count == 0
    assert result.threshold.isnan().all()
    assert result.threshold.shape == (shape[:1] if scope == "sequence" else ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_and_negative_scores_and_signed_zeros_are_ordered(dtype):
    most = torch.finfo(dtype).max
    values = [-most, -2.5, -1e-30, -0.0, 0.0, 1e-45, 1.0, 1e30, most]
    entropy = torch.tensor([values], dtype=dtype)
    for k in range(1, 10):
        for keep, best in (("top", range(8, -1, -1)), ("bottom", range(9))):
            order = sorted(best, key=lambda i: (-values[i] if keep == "top" else values[i], i))
            result = select(entropy, torch.ones(1, 9).bool(), ForkSelection(rho=k / 9 - 1e-9, keep=keep))
            assert result.mask[0].nonzero().flatten().tolist() == sorted(order[:k])
            assert result.threshold == entropy[0, order[k - 1]]
            assert not (result.threshold == 0 and result.threshold.signbit())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.2, 1 / 3, 0.7, 0.123456789, 1.0])
def test_quantile_is_that_of_torch_to_the_last_bit(rho, dtype):
    generator = torch.Generator().manual_seed(3)
    for n in (1, 2, 7, 1000, 99_999):
        for entropy in (torch.rand(1, n, generator=generator, dtype=dtype), torch.zeros(1, n, dtype=dtype)):
            for decimals in (1, 9):  # with and without ties
                rounded = (entropy * 8).round(decimals=decimals)
                spec = ForkSelection(rho=rho, rule="threshold")
                result = select(rounded, torch.ones(1, n).bool(), spec)
                expected = torch.quantile(rounded, 1 - rho)
                assert torch.equal(result.threshold, expected)
                assert torch.equal(result.mask, rounded >= expected)


def test_ranks_of_quantiles_beyond_the_integers_of_float32():
    n = 2**24 + 4
    entropy = torch.zeros(1, n)
    entropy[0, : n // 4] = 1  # rank 0.75 * (n - 1) = 12582914.25 lies between the last 0 and the first 1
    result = select(entropy, torch.ones(1, n).bool(), ForkSelection(rho=0.25, rule="threshold"))
    assert result.threshold == 0.25
    assert result.count == n // 4


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


def test_repeated_row_keys_are_refused_where_they_leave_a_tie():
    with pytest.raises(ValueError, match="sequence_id must be unique"):
        select(torch.zeros(2, 2), torch.ones(2, 2).bool(), ForkSelection(), sequence_id=torch.tensor([4, 4]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"answer_mask": torch.ones(2, 3)}, TypeError, "bool"),
        ({"answer_mask": torch.ones(6).bool()}, ValueError, r"\[S,T\]"),
        ({"answer_mask": torch.ones(2, 4).bool()}, ValueError, "do not agree"),
        ({"entropy": torch.ones(2, 3).long()}, TypeError, "floating"),
        (
            {"entropy": torch.tensor([[1.0, math.nan, 0], [0, 0, 0]])},
            ValueError,
            "1 of 6 eligible entropies are NaN or inf",
        ),
        ({"logp": torch.zeros(2, 4)}, ValueError, "logp .* do not agree"),
        ({"advantages": torch.zeros(2, 3)}, ValueError, "advantages .* do not agree"),
        ({"sequence_id": torch.zeros(2)}, TypeError, "int64"),
        ({"sequence_id": torch.arange(3)}, ValueError, "one per row"),
        ({"reduce": lambda counts: counts}, ValueError, "sequence_id is required"),
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


# -- two sets, tokens that are always kept, an absolute threshold ------------------------------------------------------


def random_set(seed=0, rows=12, width=20):
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(rows, width, generator=generator) * 4
    length = torch.randint(0, width + 1, (rows, 1), generator=generator)
    advantages = torch.randn(rows, generator=generator).round()  # some are 0
    return entropy, torch.arange(width) < length, advantages


@pytest.mark.parametrize("rule", ["count", "threshold"])
@pytest.mark.parametrize(
    "keep", ["top", "bottom", "band", "low_probability", "abs_advantage", "entropy_times_advantage"]
)
def test_balance_is_two_selections_with_the_same_rho(keep, rule):
    entropy, eligible, advantages = random_set()
    spec = ForkSelection(rho=0.3, keep=keep, rule=rule, balance="outcome")
    inputs = {"logp": -entropy, "advantages": advantages}
    found = select(entropy, eligible, spec, **inputs)
    one = ForkSelection(rho=0.3, keep=keep, rule=rule)
    right = advantages > 0
    for side in (right, ~right):
        alone = select(entropy, eligible & side[:, None], one, **inputs)
        assert torch.equal(found.mask[side], alone.mask[side])
        assert set(found.threshold[side].tolist()) == {alone.threshold.item()}
        if rule == "count":
            assert found.mask[side].sum() == one.kept(int(eligible[side].sum()))
    assert found.count == found.mask.sum()
    with pytest.raises(ValueError, match="balance: outcome needs advantages"):
        select(entropy, eligible, ForkSelection(balance="outcome"))


@pytest.mark.parametrize("scope", ["update", "sequence"])
@pytest.mark.parametrize("keep", ["top", "bottom", "band", "random"])
def test_tokens_that_are_always_kept_are_part_of_k(keep, scope):
    entropy, eligible, _ = random_set(1)
    always = eligible & ~eligible.roll(-1, 1)
    always[:, -1] = eligible[:, -1]  # the last token of every row
    spec = ForkSelection(rho=0.3, keep=keep, scope=scope)
    found = select(entropy, eligible, spec, always=always)
    assert found.mask[always].all()
    assert found.count == found.mask.sum()
    others = select(entropy, eligible & ~always, ForkSelection(rho=1.0, keep="all")).mask
    assert torch.equal(found.mask | others, eligible)
    for row in range(len(entropy)) if scope == "sequence" else [slice(None)]:
        n, kept = int(eligible[row].sum()), int(found.mask[row].sum())
        assert kept == (max(spec.kept(n), int(always[row].sum())) if n else 0)


def test_more_such_tokens_than_k_are_all_that_is_kept():
    entropy = torch.arange(10.0).view(2, 5)
    always = torch.zeros(2, 5).bool()
    always[:, :3] = True
    found = select(entropy, torch.ones(2, 5).bool(), ForkSelection(rho=0.2), always=always)
    assert torch.equal(found.mask, always)
    assert found.threshold.isnan()
    every = select(entropy, always, ForkSelection(rho=0.2), always=always)
    assert torch.equal(every.mask, always)
    assert every.count == 6
    with pytest.raises(ValueError, match="always must be bool"):
        select(entropy, always, ForkSelection(), always=always.long())


@pytest.mark.parametrize("scope", ["update", "sequence"])
def test_an_absolute_threshold_is_exclusive_and_may_keep_nothing(scope):
    entropy = torch.tensor([[0.5, 0.7, 0.700001], [2.0, 9.0, 0.0]])
    eligible = torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()
    spec = ForkSelection(rule="absolute", tau=0.7, scope=scope)
    found = select(entropy, eligible, spec)
    assert found.mask.int().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert found.count == 2
    assert torch.allclose(found.threshold, torch.tensor(0.7))
    none = select(entropy, eligible, ForkSelection(rule="absolute", tau=11.0, scope=scope))
    assert none.count == 0
    assert not none.mask.any()
    assert select(entropy, eligible, ForkSelection(rule="absolute", tau=0.0)).mask.sum() == 4


def test_scores_with_the_advantage():
    entropy = torch.tensor([[1.0, 4.0], [3.0, 2.0]])
    eligible, advantages = torch.ones(2, 2).bool(), torch.tensor([2.0, -1.0])
    weighted = select(entropy, eligible, ForkSelection(rho=0.5, keep="entropy_times_advantage"), advantages=advantages)
    assert weighted.mask.int().tolist() == [[0, 1], [1, 0]]  # 2, 8; 3, 2
    assert weighted.threshold == 3
    largest = select(None, eligible, ForkSelection(rho=0.5, keep="abs_advantage"), advantages=advantages)
    assert largest.mask.int().tolist() == [[1, 1], [0, 0]]
    with pytest.raises(ValueError, match="keep=abs_advantage needs advantages"):
        select(entropy, eligible, ForkSelection(keep="abs_advantage"))
