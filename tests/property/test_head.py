"""Every way through the LM head gives the same loss and gradients, however it is cut into tiles."""

import pytest
import torch
from head_cases import assert_close, cut, few, heads, shapes
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.logprobs.fused import selected_logprob, selected_policy_loss, token_stats
from forklight.algo.logprobs.plain import plain_stats


def ways(hidden, weight, targets, rows, by, temperature):
    """The weighted sum of the log-probabilities of the rows, and these, by every function."""
    arguments = hidden, weight, targets, rows
    plain = plain_stats(hidden[rows], weight, targets[rows], temperature).logp
    some = selected_logprob(*arguments, temperature)
    known = selected_logprob(*arguments, temperature, known=token_stats(hidden, weight, targets, temperature))
    one_pass = selected_policy_loss(*arguments, lambda stats, part: stats.logp * by[part], temperature)
    return [(logp @ by, logp) for logp in (plain, some, known)] + [(one_pass.loss, one_pass.stats.logp)]


def gradients(loss, *operands):
    return torch.autograd.grad(loss, operands)


@few
@given(heads(), shapes())
def test_all_ways_are_one(head, shape):
    hidden, weight = head[:2]
    with cut(shape):
        (loss, logp), *others = ways(*head)
        expected = gradients(loss, hidden, weight)
        for same, same_logp in others:
            assert_close([same, same_logp], [loss, logp])
            assert_close(gradients(same, hidden, weight), expected)


@few
@given(heads(), shapes(), st.floats(0.3, 3))
def test_the_tiles_make_no_difference(head, shape, entropy_temperature):
    hidden, weight, targets, rows, by, temperature = head
    by_all = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    results = []
    for cut_into in ((512, 2**19, 2**23), shape):
        with cut(cut_into):
            stats = token_stats(hidden, weight, targets, temperature, entropy_temperature, entropy_grad=True)
            found = selected_policy_loss(
                hidden, weight, targets, rows, lambda s, part: s.logp.square() * by[part] + s.entropy, temperature
            )
            results.append(
                (
                    stats.logp,
                    stats.entropy,
                    stats.normaliser,
                    stats.grad_square,
                    *gradients(stats.logp @ by_all + stats.entropy.sum(), hidden, weight),
                    found.loss,
                    found.stats.entropy,
                    found.stats.grad_square,
                    *gradients(found.loss, hidden, weight),
                )
            )
    assert_close(*results)


@few
@given(heads(), shapes(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_makes_no_difference(head, shape, random):
    hidden, weight, targets, rows, by, temperature = head
    order = torch.tensor(random.sample(range(len(rows)), len(rows)), dtype=torch.int64)
    with cut(shape):
        straight = ways(*head)
        turned = ways(hidden, weight, targets, rows[order], by[order], temperature)
        for (loss, logp), (same, same_logp) in zip(straight, turned, strict=True):
            assert_close([same, same_logp], [loss, logp[order]])
            assert_close(gradients(same, hidden, weight), gradients(loss, hidden, weight))


@few
@given(heads(), st.floats(-30, 30))
def test_a_shift_of_all_logits_makes_no_difference(head, shift):
    hidden, weight, targets, _, _, temperature = head
    wider = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=torch.float64)], 1)
    results = []
    for bias in (0.0, shift):
        stats = token_stats(wider, torch.nn.functional.pad(weight, (0, 1), value=bias), targets, temperature)
        results.append((stats.logp, stats.entropy, *gradients(stats.logp.sum(), hidden, weight)))
    assert_close(*results)


@pytest.mark.parametrize("statistics", [token_stats, plain_stats])
@few
@given(heads())
def test_entropies_lie_between_0_and_the_logarithm_of_the_vocabulary(statistics, head):
    hidden, weight, targets, _, _, temperature = head
    stats = statistics(hidden, weight, targets, temperature)
    most = torch.tensor(len(weight), dtype=torch.float64).log()
    assert (stats.entropy >= -1e-12).all()
    assert (stats.entropy <= most + 1e-12).all()
    assert (stats.logp <= 0).all()


@pytest.mark.parametrize("statistics", [token_stats, plain_stats])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@few
@given(heads(), shapes())
def test_the_square_of_the_gradient_lies_between_one_and_two_squares_of_what_is_missing(statistics, dtype, head, shape):
    """(1 - p)^2 and the squares of probabilities that sum to 1 - p."""
    hidden, weight, targets, _, _, temperature = head
    with cut(shape):
        stats = statistics(hidden.to(dtype), weight.to(dtype), targets, temperature)
    missing = stats.logp.detach().expm1().square()
    assert (stats.grad_square >= 0).all()
    assert (stats.grad_square <= 2 + 1e-5).all()
    assert (stats.grad_square >= missing * (1 - 1e-5)).all()
    assert (stats.grad_square <= 2 * missing + 1e-6).all()
