import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forklight.algo import logprobs
from forklight.algo.logprobs import selected_logprob, token_stats


def batch(n=7, hidden_size=5, vocabulary=11, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, hidden_size, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, dtype=dtype)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def from_logits(logits):
    """Hidden size 1: the weight of the head is the row of logits."""
    return torch.ones(1, 1, dtype=logits.dtype), logits[:, None]


class LargestOutput(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("rows_per_tile", [1, 3, 512])
@pytest.mark.parametrize(("temperature", "entropy_temperature"), [(1.0, None), (0.7, None), (0.7, 1.0), (1.0, 1.5)])
def test_equals_the_plain_formula(monkeypatch, rows_per_tile, temperature, entropy_temperature):
    monkeypatch.setattr(logprobs, "ROWS_PER_TILE", rows_per_tile)
    hidden, weight, targets = batch()
    stats = token_stats(hidden, weight, targets, temperature, entropy_temperature)
    logits = hidden @ weight.T
    logp = (logits / temperature).log_softmax(-1)[torch.arange(7), targets]
    entropy = torch.distributions.Categorical(logits=logits / (entropy_temperature or temperature)).entropy()
    torch.testing.assert_close(stats.logp, logp, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(stats.entropy, entropy.detach(), rtol=1e-12, atol=1e-12)
    assert not stats.entropy.requires_grad
    upstream = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    actual = torch.autograd.grad(stats.logp @ upstream, (hidden, weight))
    expected = torch.autograd.grad(logp @ upstream, (hidden, weight))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_hand_worked():
    hidden, weight = from_logits(torch.tensor([0.0, math.log(3)], dtype=torch.float64))
    stats = token_stats(hidden, weight, torch.tensor([1]))  # p = 1/4, 3/4
    assert stats.logp.item() == pytest.approx(math.log(3 / 4), rel=1e-14)
    assert stats.entropy.item() == pytest.approx(math.log(4) - 3 / 4 * math.log(3), rel=1e-14)
    half = token_stats(hidden, weight, torch.tensor([1]), temperature=0.5)  # p = 1/10, 9/10
    assert half.logp.item() == pytest.approx(math.log(9 / 10), rel=1e-14)


def test_uniform_distribution_has_the_logarithm_of_the_vocabulary():
    hidden, weight = from_logits(torch.full((64,), 37.5))
    assert token_stats(hidden, weight, torch.tensor([3])).entropy.item() == pytest.approx(math.log(64), rel=1e-6)


def test_impossible_tokens_do_not_count():
    hidden, weight = from_logits(torch.tensor([0.0, -math.inf, 0.0, -math.inf]))
    weight.requires_grad_()
    for entropy_temperature in (None, 2.0):
        stats = token_stats(hidden, weight, torch.tensor([2]), 1.0, entropy_temperature)
        assert stats.entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    assert stats.logp.item() == pytest.approx(-math.log(2), rel=1e-6)
    (gradient,) = torch.autograd.grad(stats.logp.sum(), weight)
    assert gradient.flatten().tolist() == pytest.approx([-0.5, 0, 0.5, 0])


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_float32_is_accurate_far_from_zero_and_near_certainty(offset):
    logits = torch.tensor([16.0, 0.0, 1.0]) + offset
    hidden, weight = from_logits(logits)
    stats = token_stats(hidden, weight, torch.tensor([0]))
    exact = token_stats(*from_logits(logits.double()), torch.tensor([0]))
    assert stats.entropy.dtype == torch.float32
    assert stats.entropy.item() == pytest.approx(exact.entropy.item(), abs=2e-7)
    assert stats.logp.item() == pytest.approx(exact.logp.item(), abs=2e-7)
    assert stats.entropy.item() >= 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_upcast_before_the_temperature(dtype):
    hidden, weight, targets = batch(n=50, dtype=dtype)
    stats = token_stats(hidden, weight, targets, temperature=0.3)
    logits = (hidden @ weight.T).double() / 0.3
    assert stats.logp.dtype == stats.entropy.dtype == torch.float32
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(stats.entropy.double(), entropy, rtol=1e-5, atol=1e-5)


def test_autocast_governs_the_product_only():
    hidden, weight, targets = batch(n=20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        stats = token_stats(hidden, weight, targets)
    expected = token_stats(hidden.bfloat16(), weight.bfloat16(), targets)
    assert stats.logp.dtype == torch.float32
    assert torch.equal(stats.logp, expected.logp)
    assert torch.equal(stats.entropy, expected.entropy)


def test_ratio_of_the_policy_to_itself_is_exactly_one():
    hidden, weight, targets = batch(n=1500, hidden_size=16, vocabulary=97, dtype=torch.float32)
    with torch.no_grad():
        old = token_stats(hidden, weight, targets, 0.9)
    new = token_stats(hidden, weight, targets, 0.9)
    assert torch.equal((new.logp - old.logp).exp(), torch.ones(1500))
    assert torch.equal(new.entropy, old.entropy)


def test_pass_without_gradients_never_holds_all_logits():
    n, vocabulary = 4 * logprobs.ROWS_PER_TILE, 32
    hidden, weight, targets = batch(n=n, hidden_size=2, vocabulary=vocabulary, dtype=torch.float32)
    with torch.no_grad(), LargestOutput() as largest:
        token_stats(hidden, weight, targets)
    assert largest.elements == logprobs.ROWS_PER_TILE * vocabulary


def test_graph_keeps_one_tensor_of_logits():
    hidden, weight, targets = batch(n=40, hidden_size=3, vocabulary=50, dtype=torch.float32)
    saved = set()

    def remember(tensor):
        if tensor.numel() >= 40 * 50:
            saved.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        stats = token_stats(hidden, weight, targets, 0.8, 1.0)
    assert len(saved) == 1
    stats.logp.sum().backward()
    assert hidden.grad.abs().sum() > 0


def test_no_tokens_give_a_connected_zero():
    hidden, weight, targets = batch(n=0)
    stats = token_stats(hidden, weight, targets)
    assert stats.logp.shape == stats.entropy.shape == (0,)
    stats.logp.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert hidden.grad.shape == hidden.shape


def test_selected_rows_equal_the_full_pass():
    hidden, weight, targets = batch(n=30)
    full = token_stats(hidden, weight, targets, 0.7).logp
    mask = torch.arange(30) % 4 == 1
    for rows in (mask, mask.nonzero().squeeze(1)):
        some = selected_logprob(hidden, weight, targets, rows, 0.7)
        torch.testing.assert_close(some, full[mask], rtol=1e-12, atol=1e-12)
        actual = torch.autograd.grad(some.sum(), (hidden, weight), retain_graph=True)
        expected = torch.autograd.grad(full[mask].sum(), (hidden, weight), retain_graph=True)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_selected_rows_alone_enter_the_head():
    hidden, weight, targets = batch(n=100, hidden_size=2, vocabulary=50)
    with LargestOutput() as largest:
        selected_logprob(hidden, weight, targets, torch.arange(7))
    assert largest.elements == 7 * 50


def test_no_selected_rows_give_a_connected_zero():
    hidden, weight, targets = batch()
    for rows in (torch.zeros(7, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)):
        logp = selected_logprob(hidden, weight, targets, rows)
        assert logp.shape == (0,)
        gradients = torch.autograd.grad(logp.sum(), (hidden, weight))
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(7, 4)}, ValueError, "hidden"),
        ({"targets": torch.zeros(7)}, TypeError, "int64"),
        ({"targets": torch.zeros(6, dtype=torch.int64)}, ValueError, r"\[7\]"),
        ({"temperature": 0.0}, ValueError, "positive"),
        ({"rows": torch.zeros(7)}, TypeError, "rows"),
        ({"rows": torch.zeros(6, dtype=torch.bool)}, ValueError, "rows"),
    ],
)
def test_wrong_arguments_are_refused(change, error, message):
    hidden, weight, targets = batch()
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, "rows": torch.arange(2), **change}
    with pytest.raises(error, match=message):
        selected_logprob(**arguments)


def test_entropy_temperature_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        token_stats(*batch(), entropy_temperature=-1.0)


@pytest.mark.parametrize("rows_per_tile", [1, 3, 512])
@pytest.mark.parametrize(("temperature", "entropy_temperature"), [(1.0, None), (0.7, None), (0.7, 1.5)])
def test_entropy_has_the_gradient_of_the_plain_formula(monkeypatch, rows_per_tile, temperature, entropy_temperature):
    monkeypatch.setattr(logprobs, "ROWS_PER_TILE", rows_per_tile)
    hidden, weight, targets = batch()
    stats = token_stats(hidden, weight, targets, temperature, entropy_temperature, entropy_grad=True)
    probabilities = (hidden @ weight.T / (entropy_temperature or temperature)).softmax(-1)
    logp = (hidden @ weight.T / temperature).log_softmax(-1)[torch.arange(7), targets]
    entropy = torch.stack([-sum(p * p.log() for p in row) for row in probabilities])
    torch.testing.assert_close(stats.entropy, entropy, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    actual = torch.autograd.grad(stats.entropy @ weights + stats.logp.sum(), (hidden, weight))
    expected = torch.autograd.grad(entropy @ weights + logp.sum(), (hidden, weight))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_connected_entropy_changes_no_value(dtype):
    hidden, weight, targets = batch(n=1500, hidden_size=16, vocabulary=97, dtype=dtype)
    plain = token_stats(hidden, weight, targets, 0.9, 1.1)
    connected = token_stats(hidden, weight, targets, 0.9, 1.1, entropy_grad=True)
    assert torch.equal(connected.logp, plain.logp)
    assert torch.equal(connected.entropy, plain.entropy)
    assert connected.entropy.requires_grad
    assert not plain.entropy.requires_grad
    gradients = [torch.autograd.grad(stats.logp.sum(), (hidden, weight)) for stats in (plain, connected)]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    with torch.no_grad():
        assert not token_stats(hidden, weight, targets, entropy_grad=True).entropy.requires_grad


def test_impossible_tokens_take_no_part_in_the_gradient_of_the_entropy():
    hidden, weight = from_logits(torch.tensor([0.0, -math.inf, math.log(3), -math.inf]))
    weight.requires_grad_()
    stats = token_stats(hidden, weight, torch.tensor([2]), entropy_grad=True)
    (gradient,) = torch.autograd.grad(1e6 * stats.entropy.sum(), weight)
    slope = 1e6 * 3 / 16 * math.log(3)  # dH/dz_j = -p_j (log p_j + H), p = 1/4 and 3/4
    assert gradient.flatten().tolist() == pytest.approx([slope, 0, -slope, 0], rel=1e-5)


def test_no_tokens_give_a_connected_entropy():
    hidden, weight, targets = batch(n=0)
    token_stats(hidden, weight, targets, entropy_grad=True).entropy.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
