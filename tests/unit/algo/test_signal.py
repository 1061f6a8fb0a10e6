"""Sums of the learning signal: hand-worked, against a loop, and what must hold for any tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forklight.algo.signal import EDGES, MEASURES, signal_sums

BINS = len(EDGES) + 1


def every(n):
    return {"all": torch.ones(n, dtype=torch.bool)}


def test_hand_worked():
    found = signal_sums(
        entropy=torch.tensor([0.0, 0.2, 0.3, 7.0]),
        grad_square=torch.tensor([0.5, 0.25, 1.0, 1.5]),
        advantages=torch.tensor([2.0, -2.0, 1.0, -1.0]),
        kept=torch.tensor([False, True, True, True]),
        parts={"right": torch.tensor([True, False, True, False]), "none": torch.zeros(4, dtype=torch.bool)},
    )
    expected = torch.zeros(BINS, 2, len(MEASURES), dtype=torch.float64)
    expected[0, 0] = torch.tensor([1, 2, 2])  # 2^2 * 0.5, not kept
    expected[3] = torch.tensor([1, 1, 1])  # 0.3 is the lower bound of its bin
    assert list(found) == ["right", "none"]
    torch.testing.assert_close(found["right"], expected, rtol=0, atol=0)
    assert not found["none"].any()


def test_bins_have_their_lower_bound():
    for place, edge in enumerate(EDGES):
        below = math.nextafter(edge, 0)
        entropy = torch.tensor([below, edge], dtype=torch.float64)
        ones = torch.ones(2)
        tokens = signal_sums(entropy, ones, ones, ones.bool(), every(2))["all"][:, 0, 0]
        assert tokens.nonzero().flatten().tolist() == [place, place + 1]
    assert list(EDGES) == sorted(EDGES)


def test_the_gradient_mass_is_that_of_autograd():
    """A^2 * grad_square / T^2 is the squared norm of the gradient of -A log p with respect to the logits."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, 30, generator=generator, dtype=torch.float64).requires_grad_()
    logits.retain_grad()
    targets = torch.randint(30, (20,), generator=generator)
    advantages = torch.randn(20, generator=generator, dtype=torch.float64)
    log_p = (logits / 0.7).log_softmax(-1)
    logp = log_p[torch.arange(20), targets]
    (-advantages * logp).sum().backward()
    p = log_p.detach().exp()
    grad_square = 1 - 2 * logp.detach().exp() + p.square().sum(-1)
    entropy = -(p * log_p.detach()).sum(-1)
    found = signal_sums(entropy, grad_square, advantages, torch.ones(20, dtype=torch.bool), every(20))["all"]
    assert float(found[:, 0, 2].sum()) / 0.7**2 == pytest.approx(float(logits.grad.square().sum()), rel=1e-12)


@st.composite
def tokens(draw):
    """Entropies, grad_square, advantages, kept tokens, and the part of each token."""
    n, numbers = draw(st.integers(0, 30)), st.floats(0, 8, width=32)
    rows = draw(
        st.lists(st.tuples(numbers, st.floats(0, 2, width=32), st.floats(-3, 3, width=32)), min_size=n, max_size=n)
    )
    flags = draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=n, max_size=n))
    values = torch.tensor(rows).view(n, 3).T
    return *values, *torch.tensor(flags, dtype=torch.bool).view(n, 2).T


@settings(deadline=None, max_examples=50)
@given(tokens(), st.integers(0, 30))
def test_sums_are_those_of_a_loop_and_add_up(found, cut):
    entropy, part = found[0], found[-1]
    n = len(entropy)
    sums = signal_sums(*found[:4], every(n) | {"one": part, "other": ~part})
    expected = torch.zeros(BINS, 2, 3, dtype=torch.float64)
    for h, g, a, k in zip(*(values.tolist() for values in found[:4]), strict=True):
        for row in (0, 1)[: 1 + k]:
            expected[sum(h >= edge for edge in EDGES), row] += torch.tensor([1, abs(a), a * a * g], dtype=torch.float64)
    torch.testing.assert_close(sums["all"], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums["one"] + sums["other"], sums["all"], rtol=1e-12, atol=1e-12)
    assert (sums["all"] >= 0).all()
    assert (sums["all"][:, 1] <= sums["all"][:, 0]).all()
    halves = [
        signal_sums(*(values[rows] for values in found[:4]), every(len(entropy[rows])))["all"]
        for rows in (slice(cut), slice(cut, None))
    ]
    torch.testing.assert_close(halves[0] + halves[1], sums["all"], rtol=1e-12, atol=1e-12)
