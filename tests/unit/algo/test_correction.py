import math

import pytest
import torch
from tiny import flat

from forklight.algo.correction import CorrectionConfig, correction_weights, mismatch_metrics

# ratios by hand: answer 0 has 2, 1/4 and 1 (product 1/2), answer 1 has 4 and 2 (product 8), answer 2 has 1 alone
RATIOS = [2.0, 0.25, 1.0, 4.0, 2.0, 1.0]
ROW = torch.tensor([0, 0, 0, 1, 1, 2])


def mismatch(logp, sampler_logp, mask):
    """The metrics by name."""
    return flat(mismatch_metrics(logp, sampler_logp, mask))


def pair(ratios, dtype=torch.float64):
    sampler = torch.linspace(-3, -0.5, len(ratios), dtype=dtype)
    return sampler + torch.tensor(ratios, dtype=dtype).log(), sampler


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (CorrectionConfig(), [1, 1, 1, 1, 1, 1]),
        (CorrectionConfig("token_truncate", high=3), [2, 0.25, 1, 3, 2, 1]),
        (CorrectionConfig("token_mask", low=0.5, high=3), [2, 0, 1, 0, 2, 1]),
        (CorrectionConfig("token_mask", low=0, high=3), [2, 0.25, 1, 0, 2, 1]),
        (CorrectionConfig("sequence_truncate", high=3), [0.5, 0.5, 0.5, 3, 3, 1]),
        (CorrectionConfig("sequence_mask", low=0.4, high=3), [0.5, 0.5, 0.5, 0, 0, 1]),
        (CorrectionConfig("sequence_mask", low=0.6, high=9), [0, 0, 0, 8, 8, 1]),
    ],
)
def test_hand_worked(spec, expected):
    weights = correction_weights(*pair(RATIOS), ROW, 3, spec)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_metrics_by_hand():
    # w = 2, 1/4, 4 under the mask: sum 25/4, squares 4 + 1/16 + 16; k3 = 1 - log 2, log 4 - 3/4, 3 - log 4;
    # differences log 2, log 4, log 4
    mask = torch.tensor([True, True, False, True, False, False])
    metrics = mismatch(*pair(RATIOS), mask)
    expected = {
        "tokens": 3.0,
        "weight_sum": 6.25,
        "weight_square_sum": 20.0625,
        "kl_sum": 3.25 - math.log(2),
        "diff_sum": 5 * math.log(2),
        "ratio_max": 4.0,
        "diff_max": math.log(4),
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-12)
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in metrics.values())


def test_an_empty_mask_gives_zeros():
    metrics = mismatch(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert [value.item() for value in metrics.values()] == [0.0] * 7
    empty = mismatch(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert [value.item() for value in empty.values()] == [0.0] * 7


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_metrics_do_not_see_tokens_outside_the_mask(broken):
    metrics = mismatch(torch.tensor([-1.0, broken]), torch.tensor([-1.0, -1.0]), torch.tensor([True, False]))
    one = {"tokens", "weight_sum", "weight_square_sum", "ratio_max"}
    assert {name: value.item() for name, value in metrics.items()} == {name: float(name in one) for name in metrics}


@pytest.mark.parametrize("method", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_long_answers_do_not_overflow_and_nan_is_not_masked_away(method):
    logp = torch.tensor([-1.0] * 4000 + [math.nan] + [-60.0])
    sampler_logp = torch.tensor([-900.0] * 4000 + [-1.0] + [-1.0])
    row = torch.tensor([0] * 4000 + [1, 2])
    weights = correction_weights(logp, sampler_logp, row, 3, CorrectionConfig(method))
    assert weights[:4000].tolist() == [2.0 if method.endswith("truncate") else 0.0] * 4000
    assert weights[4000].isnan()
    assert 0 <= weights[4001] < 1e-20


def test_the_product_of_many_float32_tokens_is_that_of_float64():
    sampler_logp = -torch.linspace(0.01, 9, 20_000)
    logp = sampler_logp + 1e-2 * torch.linspace(1, -1, 20_000)  # the running sum rises to 50 and comes back
    row = torch.zeros(20_000, dtype=torch.int64)
    weights = correction_weights(logp, sampler_logp, row, 1, CorrectionConfig("sequence_mask"))
    product = math.exp(math.fsum(logp.tolist()) - math.fsum(sampler_logp.tolist()))
    float32 = torch.zeros(1).index_add(0, row, logp - sampler_logp).exp().item()
    assert abs(float32 - product) > 1e-6  # the case exists
    assert weights.dtype == torch.float32
    assert weights.unique().item() == pytest.approx(product, rel=2**-23)


@pytest.mark.parametrize("method", ["token_mask", "sequence_mask"])
def test_the_bounds_themselves_are_kept(method):
    logp, row = torch.tensor([-1.0, -1.0 + 1e-6, -1.0 - 1e-6]), torch.arange(3)
    weights = correction_weights(logp, torch.full((3,), -1.0), row, 3, CorrectionConfig(method, low=1, high=1))
    assert weights.tolist() == [1, 0, 0]


def test_metrics_stay_finite_where_the_sampler_was_almost_certain_to_draw_something_else():
    metrics = mismatch(torch.tensor([-1.0]), torch.tensor([-900.0]), torch.tensor([True]))
    assert metrics["ratio_max"].item() == pytest.approx(math.exp(20))
    assert metrics["weight_square_sum"].item() == pytest.approx(math.exp(40))
    assert metrics["kl_sum"].item() == pytest.approx(math.exp(20) - 21)


@pytest.mark.parametrize(("logp", "sampler_logp"), [(-1.0, -900.0), (-900.0, -1.0)])
def test_a_large_difference_is_told_in_full(logp, sampler_logp):
    pair = torch.tensor([logp, -2.0]), torch.tensor([sampler_logp, -2.5])
    metrics = mismatch(*pair, torch.tensor([True, True]))
    assert metrics["diff_max"] == 899
    assert metrics["diff_sum"] == 899.5


def test_no_tokens_give_no_weights():
    none = torch.zeros(0)
    for method in ("none", "token_mask", "sequence_truncate"):
        assert correction_weights(none, none, torch.zeros(0, dtype=torch.int64), 0, CorrectionConfig(method)).shape == (
            0,
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "geometric"}, r"model\.correction\.method"),
        ({"low": -0.1}, r"model\.correction\.low"),
        ({"low": 1.1}, r"model\.correction\.low"),
        ({"low": math.nan}, r"model\.correction\.low"),
        ({"high": 0.9}, r"model\.correction\.high"),
        ({"high": math.inf}, r"model\.correction\.high"),
        ({"high": math.nan}, r"model\.correction\.high"),
    ],
)
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CorrectionConfig(**kwargs)


def test_wrong_tensors_are_refused():
    two, three = torch.zeros(2), torch.zeros(3)
    row = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="int64"):
        correction_weights(two, two, row.int(), 1, CorrectionConfig())
    for arguments in ((two, three, row), (three, three, row), (two[None], two[None], row[None])):
        with pytest.raises(ValueError, match=r"\[N\]"):
            correction_weights(*arguments, 1, CorrectionConfig("token_mask"))
    with pytest.raises(TypeError, match="bool"):
        mismatch(two, two, two)
    with pytest.raises(ValueError, match="one shape"):
        mismatch(two, three, torch.ones(2, dtype=torch.bool))
