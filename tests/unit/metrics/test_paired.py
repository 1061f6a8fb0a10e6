"""The paired bootstrap against a naive one, and its coverage."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forklight.metrics import paired_difference

SHARES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=10)


def shares(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_hand_worked():
    found = paired_difference(shares(0.5, 0.25, 0.0, 1.0), shares(1.0, 0.25, 0.25, 0.75))
    assert found.difference == pytest.approx(0.125)
    # deviations 3/8, -1/8, 1/8, -3/8; variance (20/64) / 3; / 4 problems
    assert found.standard_error == pytest.approx(math.sqrt(20 / 64 / 3 / 4))
    assert found.low <= found.difference <= found.high


def test_against_a_bootstrap_written_out():
    generator = np.random.default_rng(1)
    a, b = generator.random(30), generator.random(30)
    found = paired_difference(torch.tensor(a), torch.tensor(b), resamples=20_000)
    drawn = [(b - a)[generator.integers(0, 30, 30)].mean() for _ in range(20_000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.b_ahead == pytest.approx(np.mean(np.array(drawn) > 0), abs=0.02)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Difficulty varies a lot, the gain little: unpaired intervals would be several times as wide."""
    generator = torch.Generator().manual_seed(0)
    held, widths = 0, []
    for number in range(200):
        easy = torch.rand(60, 1, generator=generator, dtype=torch.float64) * 0.8
        a = (torch.rand(60, 8, generator=generator) < easy).double().mean(1)
        b = (torch.rand(60, 8, generator=generator) < easy + 0.1).double().mean(1)
        found = paired_difference(a, b, resamples=1000, seed=number)
        held += found.low <= 0.1 <= found.high
        widths.append(found.high - found.low)
    assert 0.89 < held / 200 < 0.99
    assert sum(widths) / 200 < 0.15


@given(SHARES)
def test_swapping_the_sides_changes_the_sign(pairs):
    a, b = (shares(*(value / 4 for value in side)) for side in zip(*pairs, strict=True))
    one, other = paired_difference(a, b, resamples=500), paired_difference(b, a, resamples=500)
    assert other.difference == -one.difference
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert other.b_ahead == pytest.approx(1 - one.b_ahead)


def test_equal_sides_and_a_single_problem():
    same = paired_difference(shares(0.5, 1.0), shares(0.5, 1.0))
    assert (same.difference, same.low, same.high, same.b_ahead) == (0, 0, 0, 0.5)
    alone = paired_difference(shares(0.25), shares(0.75))
    assert (alone.difference, alone.low, alone.high) == (0.5, 0.5, 0.5)
    assert math.isnan(alone.standard_error)


def test_the_same_seed_gives_the_same_interval():
    a, b = torch.rand(2, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert paired_difference(a, b) == paired_difference(a, b)
    assert paired_difference(a, b) != paired_difference(a, b, seed=1)


@pytest.mark.parametrize(
    ("a", "b", "more"),
    [
        (shares(1.0), shares(1.0, 0.0), {}),
        (shares(), shares(), {}),
        (shares(1.0), shares(0.0), {"confidence": 1.0}),
        (shares(1.0), shares(0.0), {"resamples": 0}),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, more):
    with pytest.raises(ValueError, match=r"N >= 1|confidence"):
        paired_difference(a, b, **more)
