"""Mean entropies, and entropies relative to those of similar tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.selection.relative import mean_surprisal, relative_entropies


def alone(tensor):
    return tensor


def test_hand_worked():
    entropy = torch.tensor([[1.0, 3.0, 7.0], [2.0, 5.0, 0.5]], dtype=torch.float64)
    eligible = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    position = torch.arange(3).expand(2, 3)
    found = relative_entropies(entropy, position, eligible, 3, alone)
    assert found.tolist() == [[-0.5, -1.0, 0.0], [0.5, 1.0, 0.5]]  # the last is not eligible
    ids = torch.tensor([[4, 9, 4], [9, 4, 4]])
    by_type = relative_entropies(entropy, ids, eligible, 10, alone)
    third = 13 / 3
    assert by_type[eligible].tolist() == pytest.approx([1 - third, 0.5, 7 - third, -0.5, 5 - third], abs=1e-7)
    assert mean_surprisal(-entropy, eligible, alone) == 3.6
    assert mean_surprisal(entropy, ~eligible & False, alone) is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9), st.integers(1, 5))
def test_means_of_every_kind_are_0_and_do_not_depend_on_order_or_ranks(seed, rows, width, kinds):
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(rows, width, generator=generator, dtype=torch.float64) * 5
    kind = torch.randint(kinds, (rows, width), generator=generator)
    eligible = torch.rand(rows, width, generator=generator) < 0.8
    found = relative_entropies(entropy, kind, eligible, kinds, alone)
    for one in range(kinds):
        values = found[eligible & (kind == one)]
        assert values.sum().item() == pytest.approx(0, abs=1e-6 * (1 + len(values)))
        if len(values) == 1:
            assert values.item() == 0
    order = torch.randperm(rows, generator=generator)
    assert torch.equal(relative_entropies(entropy[order], kind[order], eligible[order], kinds, alone), found[order])
    cut = rows // 2
    sums = []

    def note(tensor):
        sums.append(tensor)
        return tensor

    for part in (slice(0, cut), slice(cut, rows)):
        relative_entropies(entropy[part], kind[part], eligible[part], kinds, note)
    for part in (slice(0, cut), slice(cut, rows)):
        on_rank = relative_entropies(entropy[part], kind[part], eligible[part], kinds, lambda _: sums[0] + sums[1])
        assert torch.equal(on_rank, found[part])
