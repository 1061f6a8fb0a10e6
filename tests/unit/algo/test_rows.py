import torch
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.rows import row_sums


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(5, 7))
def test_sums_are_those_of_each_row_in_any_order_and_gradients_pass(row, rows):
    values = torch.randn(len(row), generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    sums = row_sums(values, torch.tensor(row, dtype=torch.int64), rows)
    expected = [
        sum((values[i].item() for i, owner in enumerate(row) if owner == number), 0.0) for number in range(rows)
    ]
    torch.testing.assert_close(sums, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad((sums * torch.arange(rows)).sum(), values)
    assert torch.equal(gradient, torch.tensor(row, dtype=torch.float64))


def test_sums_are_float64_whatever_the_values_are():
    sums = row_sums(torch.tensor([1e8, 1.0, -1e8]), torch.zeros(3, dtype=torch.int64), 1)
    assert sums.dtype == torch.float64
    assert sums.tolist() == [1.0]
