"""The rates of every update."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forklight.schedules import WarmupCosine


def rates(count, **arguments):
    """The rates with which the first updates are made."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = WarmupCosine(optimizer, **arguments)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_hand_worked_rates():
    expected = [1.0, 2.0, 2 * (1 + math.cos(math.pi / 4)) / 2, 1.0, 2 * (1 - math.cos(math.pi / 4)) / 2, 0.0, 0.0]
    assert rates(7, warmup=2, updates=6) == pytest.approx(expected)
    assert rates(3, warmup=0, updates=2, floor=0.5) == pytest.approx([1.5, 1.0, 1.0])


@given(st.integers(0, 20), st.integers(1, 30), st.floats(0, 1))
def test_it_rises_then_falls_to_the_floor(warmup, rest, floor):
    found = rates(warmup + rest + 2, warmup=warmup, updates=warmup + rest, floor=floor)
    assert found[:warmup] == sorted(found[:warmup])
    assert found[max(0, warmup - 1) :] == sorted(found[max(0, warmup - 1) :], reverse=True)
    assert found[-1] == pytest.approx(2 * floor)
    assert max(found) <= 2
    assert min(found) > 0 or floor == 0


@pytest.mark.parametrize("bad", [{"warmup": 5, "updates": 5}, {"warmup": -1, "updates": 5}, {"floor": 1.5}])
def test_schedules_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=r"model\.lr_scheduler\."):
        rates(1, **({"warmup": 1, "updates": 9} | bad))
