"""The plain head: what holds beside the values, which are tested with those of the tiled one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forklight.algo.logprobs import plain as plain_head
from forklight.algo.logprobs.plain import plain_stats


def batch(n=7, hidden_size=5, vocabulary=11, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, hidden_size, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, dtype=dtype)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


class LargestOutput(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_half_precision_logits_are_upcast_before_the_temperature():
    hidden, weight, targets = batch(n=50, dtype=torch.bfloat16)
    stats = plain_stats(hidden, weight, targets, temperature=0.3)
    logits = (hidden @ weight.T).double() / 0.3
    assert stats.logp.dtype == stats.entropy.dtype == torch.float32
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(stats.entropy.double(), entropy, rtol=1e-5, atol=1e-5)


def test_autocast_governs_the_product_only():
    hidden, weight, targets = batch(n=20)
    with torch.autocast("cpu", torch.bfloat16):
        stats = plain_stats(hidden, weight, targets)
    expected = plain_stats(hidden.bfloat16(), weight.bfloat16(), targets)
    assert stats.logp.dtype == torch.float32
    assert torch.equal(stats.logp, expected.logp)
    assert torch.equal(stats.entropy, expected.entropy)


def test_under_autocast_the_gradient_of_the_weight_is_one_product(monkeypatch):
    """In tiles it would be added up in bfloat16."""
    hidden, weight, targets = batch(n=20)
    gradients = []
    for rows in (1, 512):
        monkeypatch.setattr(plain_head, "ROWS_PER_TILE", rows)
        with torch.autocast("cpu", torch.bfloat16):
            stats = plain_stats(hidden, weight, targets)
        gradients.append(torch.autograd.grad(stats.logp.sum(), weight)[0])
    assert torch.equal(*gradients)


def test_pass_without_gradients_never_holds_all_logits():
    n, vocabulary = 4 * plain_head.ROWS_PER_TILE, 32
    hidden, weight, targets = batch(n=n, hidden_size=2, vocabulary=vocabulary)
    with torch.no_grad(), LargestOutput() as largest:
        plain_stats(hidden, weight, targets)
    assert largest.elements == plain_head.ROWS_PER_TILE * vocabulary


@pytest.mark.parametrize(("entropy_grad", "tensors"), [(False, 1), (True, 3)])
def test_graph_keeps_one_tensor_of_logits(entropy_grad, tensors):
    """Beside two more for connected entropies."""
    hidden, weight, targets = batch(n=40, hidden_size=3, vocabulary=50)
    saved = set()

    def remember(tensor):
        if tensor.numel() >= 40 * 50:
            saved.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        stats = plain_stats(hidden, weight, targets, 0.8, 0.8 if entropy_grad else 1.0, entropy_grad)
    assert len(saved) == tensors
    stats.logp.sum().backward()
    assert hidden.grad.abs().sum() > 0
