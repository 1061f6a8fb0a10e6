"""Scaled, capped and biased logits: every way through the head has the values and gradients of plain autograd."""

import pytest
import torch
from head_cases import assert_close, cut, few, heads, shapes
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.logprobs.fused import selected_logprob, selected_policy_loss, selected_stats, token_stats
from forklight.algo.logprobs.plain import plain_stats
from forklight.algo.logprobs.transform import PLAIN, LogitTransform
from forklight.models.heads import HEADS
from forklight.sampling.inverse_cdf import draw


@st.composite
def transforms(draw_, vocabulary):
    """A bias or none, a scale, a soft cap or none; at least the scale is never 1."""
    generator = torch.Generator().manual_seed(draw_(st.integers(0, 2**32)))
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64, requires_grad=True)
    cap = draw_(st.none() | st.sampled_from([0.5, 3.0, 30.0]))
    return LogitTransform(draw_(st.sampled_from([None, bias])), draw_(st.sampled_from([0.0625, 0.5, 4.0])), cap)


@st.composite
def cases(draw_):
    head = draw_(heads())
    return (*head, draw_(transforms(len(head[1]))), draw_(st.floats(0.3, 3)))


def naive(hidden, weight, targets, temperature, entropy_temperature, transform):
    """Logits as the models write them, log-probabilities, entropies and squared gradients of all rows."""
    logits = hidden @ weight.T
    if transform.bias is not None:
        logits = logits + transform.bias
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    log_p = (logits / temperature).log_softmax(-1)
    logp = log_p[torch.arange(len(targets)), targets]
    at = (logits / entropy_temperature).log_softmax(-1)
    p = log_p.detach().exp()
    of_target = torch.nn.functional.one_hot(targets, len(weight)) - p
    return logits, logp, -(at.exp() * at).sum(-1), of_target.square().sum(-1)


def operands(hidden, weight, transform):
    return [hidden, weight, *([] if transform.bias is None else [transform.bias])]


def gradients(loss, hidden, weight, transform):
    return torch.autograd.grad(loss, operands(hidden, weight, transform))


@few
@given(cases(), shapes())
def test_statistics_and_gradients_are_those_of_plain_autograd(case, shape):
    hidden, weight, targets, rows, by, temperature, transform, entropy_temperature = case
    if not len(targets):
        return
    _, logp, entropy, square = naive(hidden, weight, targets, temperature, entropy_temperature, transform)
    by_entropy = torch.linspace(-1, 2, len(rows), dtype=torch.float64)
    expected = gradients(logp[rows] @ by + entropy[rows] @ by_entropy, hidden, weight, transform)
    with cut(shape):
        fused = selected_stats(
            hidden, weight, targets, rows, temperature, entropy_temperature, True, transform=transform
        )
        plain = plain_stats(hidden[rows], weight, targets[rows], temperature, entropy_temperature, True, transform)
        for found in (fused, plain):
            assert_close([found.logp, found.entropy, found.grad_square], [logp[rows], entropy[rows], square[rows]])
            loss = found.logp @ by + found.entropy @ by_entropy
            assert_close(gradients(loss, hidden, weight, transform), expected)


@few
@given(cases(), shapes())
def test_losses_of_log_probabilities_are_those_of_plain_autograd(case, shape):
    hidden, weight, targets, rows, by, temperature, transform, _ = case
    if not len(targets):
        return
    _, logp, entropy, square = naive(hidden, weight, targets, temperature, temperature, transform)
    expected = gradients(logp[rows].square() @ by, hidden, weight, transform)
    with cut(shape):
        known = token_stats(hidden, weight, targets, temperature, transform=transform)
        some = selected_logprob(hidden, weight, targets, rows, temperature, known, transform)
        one_pass = selected_policy_loss(
            hidden, weight, targets, rows, lambda s, part: s.logp.square() * by[part], temperature, transform
        )
        assert_close([one_pass.stats.entropy, one_pass.stats.grad_square], [entropy[rows], square[rows]])
        for loss in (some.square() @ by, one_pass.loss):
            assert_close([loss], [logp[rows].square() @ by])
            assert_close(gradients(loss, hidden, weight, transform), expected)


@few
@given(cases())
def test_the_three_heads_agree(case):
    hidden, weight, targets, rows, _, temperature, transform, entropy_temperature = case
    if not len(targets):
        return
    rows = rows.unique()
    results = []
    for kind in HEADS.values():
        head = kind(hidden, weight, targets, temperature, entropy_temperature, True, transform)
        known = head.all_stats()
        again = head.stats(rows, known)
        loss = (again.logp[rows].square() + again.entropy[rows]).sum()
        results.append(
            (
                *(getattr(known, name).detach() for name in ("logp", "entropy", "grad_square")),
                *gradients(loss, hidden, weight, transform),
            )
        )
    for same in results[1:]:
        assert_close(same, results[0])


@few
@given(cases())
def test_tokens_are_drawn_from_the_same_logits(case):
    hidden, weight, targets, _, _, temperature, transform, _ = case
    if not len(targets):
        return
    uniform = torch.linspace(0.01, 0.99, len(targets), dtype=torch.float64)
    token, logp = draw(hidden.detach(), weight.detach(), uniform, temperature, transform=transform)
    expected = naive(hidden, weight, token, temperature, temperature, transform)[1]
    assert_close([logp.detach()], [expected.detach()])


def test_worked_by_hand():
    """Products 1 and 3, bias 1 and -1, halved, capped at 2: 2 tanh(0.5) both, and so a fair coin."""
    hidden, weight = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    transform = LogitTransform(torch.tensor([1.0, -1.0], dtype=torch.float64), 0.5, 2.0)
    logits = transform.logits(hidden, weight)
    torch.testing.assert_close(logits, torch.full((1, 2), 0.9242343145200195, dtype=torch.float64))
    stats = token_stats(hidden, weight, torch.tensor([1]), transform=transform)
    assert stats.logp.item() == pytest.approx(-0.6931471805599453, rel=1e-12)
    assert stats.grad_square.item() == pytest.approx(0.5, rel=1e-12)


def test_without_one_nothing_is_computed():
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(PLAIN.logits(hidden, weight), torch.nn.functional.linear(hidden, weight))
    assert PLAIN.linear
    assert PLAIN.slope(hidden) == 1


@pytest.mark.parametrize("statistics", [token_stats, plain_stats])
def test_a_wrong_transform_is_refused(statistics):
    hidden, weight, targets = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"bias \[5\], got \[4\]"):
        statistics(hidden, weight, targets, transform=LogitTransform(torch.zeros(4)))
    with pytest.raises(ValueError, match="soft cap must be positive, got 0"):
        statistics(hidden, weight, targets, transform=LogitTransform(softcap=0.0))
