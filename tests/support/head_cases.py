"""Random operands of the LM head for property tests, tiles of random shapes, and a comparison."""

from unittest import mock

import torch
from hypothesis import settings
from hypothesis import strategies as st

from forklight.algo.logprobs import tiles

few = settings(deadline=None, max_examples=25)


@st.composite
def heads(draw):
    """Operands, targets, rows in any order (some twice, perhaps none), weights of the rows, and a temperature."""
    n, hidden_size = draw(st.integers(0, 9)), draw(st.integers(1, 6))
    vocabulary = draw(st.integers(1, 20) | st.integers(250, 800))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.1, 1.0, 8.0]))
    hidden = (scale * torch.randn(n, hidden_size, generator=generator, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(vocabulary, hidden_size, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    rows = torch.tensor(draw(st.lists(st.integers(0, n - 1), max_size=12) if n else st.just([])), dtype=torch.int64)
    by = torch.randn(len(rows), generator=generator, dtype=torch.float64)
    return hidden, weight, targets, rows, by, draw(st.floats(0.3, 3))


@st.composite
def shapes(draw):
    """Rows of a tile, its logits, and the logits of a block."""
    return draw(st.integers(1, 10)), draw(st.integers(1, 4000)), draw(st.integers(1, 4000))


def cut(shape):
    """Tiles of that shape, for a while."""
    names = ("ROWS_PER_TILE", "ELEMENTS_PER_TILE", "ELEMENTS_PER_BLOCK")
    return mock.patch.multiple(tiles, **{name: {"cpu": size} for name, size in zip(names, shape, strict=True)})


def assert_close(found, expected):
    """The largest difference is 1e-12 of the largest number, or of 1 where sums cancel."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        if other.numel():
            assert (one - other).abs().max() <= 1e-12 * max(1.0, float(other.detach().abs().max()))
