"""The head in tiles against log_softmax of all logits at once, in float64 and under autograd."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forklight.algo.batch import TokenStats
from forklight.algo.logprobs import plain as plain_head
from forklight.algo.logprobs import tiles
from forklight.algo.logprobs.fused import selected_logprob, selected_policy_loss, selected_stats, token_stats
from forklight.algo.logprobs.plain import plain_stats

N, HIDDEN, VOCABULARY = 11, 5, 600
SOME = torch.tensor([7, 2, 2, 10, 0])  # in any order, and one twice
TEMPERATURES = [(1.0, None), (0.7, None), (0.7, 1.0), (1.0, 1.5)]
TILES = {
    "one of each": (1, 1, 1),
    "one row, a part of the vocabulary": (1, 300, 600),
    "some rows, the whole vocabulary": (4, 4 * 600, 3 * 600),
    "some rows, a part of the vocabulary": (3, 1, 4 * 600 + 7),
    "everything": (512, 2**19, 2**23),
}
"""Rows and logits of a tile, logits of a block; a tile has at least 256 columns, of which 600 is no multiple."""


def set_tiles(monkeypatch, rows, elements, block):
    monkeypatch.setattr(plain_head, "ROWS_PER_TILE", rows)
    monkeypatch.setitem(tiles.ROWS_PER_TILE, "cpu", rows)
    monkeypatch.setitem(tiles.ELEMENTS_PER_TILE, "cpu", elements)
    monkeypatch.setitem(tiles.ELEMENTS_PER_BLOCK, "cpu", block)


def batch(n=N, hidden_size=HIDDEN, vocabulary=VOCABULARY, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, hidden_size, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, dtype=torch.float64) / hidden_size**0.5
    targets = torch.randint(vocabulary, (n,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def from_logits(logits):
    """Hidden size 1: the weight of the head is the row of logits."""
    return torch.ones(1, 1, dtype=logits.dtype), logits[:, None]


def naive(hidden, weight, targets, temperature=1.0, entropy_temperature=None):
    """Both statistics from all logits, connected."""
    logits = hidden @ weight.T
    log_p = (logits / (entropy_temperature or temperature)).log_softmax(-1)
    logp = (logits / temperature).log_softmax(-1)[torch.arange(len(targets)), targets]
    return TokenStats(logp, -(log_p.exp() * log_p).sum(-1))


def squares_by_autograd(hidden, weight, targets, temperature=1.0):
    """T^2 times the squared norm of the gradient of each log-probability with respect to its logits."""
    logits = (hidden.detach().double() @ weight.detach().double().T).requires_grad_()
    logp = (logits / temperature).log_softmax(-1)[torch.arange(len(targets)), targets]
    (gradient,) = torch.autograd.grad(logp.sum(), logits)
    return temperature**2 * gradient.square().sum(-1)


def exact(hidden, weight):
    """The operands in float64, leaves of a graph of their own."""
    return hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()


def upstream(n, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apart(found, expected):
    """Largest difference over the largest expected number."""
    assert found.shape == expected.shape
    return float((found.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max())


def assert_close(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        assert apart(one, other) < tolerance


def surrogate(weights):
    """A clipped policy loss of the selected rows, beside what the old policy gave every token."""

    def loss(stats, rows):
        ratio = (stats.logp + math.log(VOCABULARY)).exp()
        advantages = weights.to(stats.logp.dtype)[rows]
        return -torch.minimum(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)) + 0.1 * stats.entropy

    return loss


class LargestOutput(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


class Products(TorchDispatchMode):
    """Adds up the multiplications of matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            first, second = args[-2:]
            self.count += first.numel() * second.shape[1]
        return func(*args, **(kwargs or {}))


both = pytest.mark.parametrize("statistics", [token_stats, plain_stats])

WAYS = {
    "token_stats": lambda h, w, t, r, T: token_stats(h, w, t, T).logp[r],
    "selected_stats": lambda h, w, t, r, T: selected_stats(h, w, t, r, T).logp,
    "selected_logprob": lambda h, w, t, r, T: selected_logprob(h, w, t, r, T),
    "known": lambda h, w, t, r, T: selected_logprob(h, w, t, r, T, known=token_stats(h, w, t, T)),
}
"""Ways to the log-probabilities of some rows."""


# -- the formula -------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("shape", TILES.values(), ids=TILES)
@pytest.mark.parametrize(("temperature", "entropy_temperature"), TEMPERATURES)
def test_equals_the_plain_formula(monkeypatch, statistics, shape, temperature, entropy_temperature):
    set_tiles(monkeypatch, *shape)
    hidden, weight, targets = batch()
    stats = statistics(hidden, weight, targets, temperature, entropy_temperature)
    expected = naive(hidden, weight, targets, temperature, entropy_temperature)
    assert_close((stats.logp, stats.entropy), (expected.logp, expected.entropy.detach()))
    assert not stats.entropy.requires_grad
    by = upstream(N)
    found = torch.autograd.grad(stats.logp @ by, (hidden, weight))
    assert_close(found, torch.autograd.grad(expected.logp @ by, (hidden, weight)))


@both
@pytest.mark.parametrize("shape", TILES.values(), ids=TILES)
@pytest.mark.parametrize(("temperature", "entropy_temperature"), [(1.0, None), (0.7, None), (0.7, 1.5)])
def test_entropy_has_the_gradient_of_the_plain_formula(
    monkeypatch, statistics, shape, temperature, entropy_temperature
):
    set_tiles(monkeypatch, *shape)
    hidden, weight, targets = batch()
    stats = statistics(hidden, weight, targets, temperature, entropy_temperature, entropy_grad=True)
    expected = naive(hidden, weight, targets, temperature, entropy_temperature)
    by, by_entropy = upstream(N), upstream(N, seed=2)
    for loss in (lambda s: s.entropy @ by_entropy, lambda s: s.entropy @ by_entropy + s.logp @ by):
        found = torch.autograd.grad(loss(stats), (hidden, weight), retain_graph=True)
        assert_close(found, torch.autograd.grad(loss(expected), (hidden, weight), retain_graph=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", TILES.values(), ids=TILES)
def test_some_rows_equal_the_plain_formula(monkeypatch, way, shape):
    set_tiles(monkeypatch, *shape)
    hidden, weight, targets = batch()
    mask = torch.arange(N) % 4 == 1
    for rows in (SOME, mask, torch.arange(N)):
        logp, expected = WAYS[way](hidden, weight, targets, rows, 0.7), naive(hidden, weight, targets, 0.7).logp[rows]
        assert_close([logp], [expected])
        by = upstream(len(logp))
        found = torch.autograd.grad(logp @ by, (hidden, weight))
        assert_close(found, torch.autograd.grad(expected @ by, (hidden, weight)))


@pytest.mark.parametrize("temperatures", [(0.7, None), (0.7, 1.5)])
def test_entropies_of_some_rows_equal_the_plain_formula(temperatures):
    hidden, weight, targets = batch()
    expected = naive(hidden, weight, targets, *temperatures)
    known = [None, token_stats(hidden, weight, targets, *temperatures)] if temperatures[1] is None else [None]
    by, by_entropy = upstream(len(SOME)), upstream(len(SOME), seed=2)
    wanted = expected.logp[SOME] @ by + expected.entropy[SOME] @ by_entropy
    gradients = torch.autograd.grad(wanted, (hidden, weight))
    for every in known:
        some = selected_stats(hidden, weight, targets, SOME, *temperatures, entropy_grad=True, known=every)
        assert_close((some.logp, some.entropy), (expected.logp[SOME], expected.entropy[SOME]))
        found = torch.autograd.grad(some.logp @ by + some.entropy @ by_entropy, (hidden, weight))
        assert_close(found, gradients)


@pytest.mark.parametrize("shape", TILES.values(), ids=TILES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_loss_in_one_pass_equals_the_plain_formula(monkeypatch, shape, temperature):
    set_tiles(monkeypatch, *shape)
    hidden, weight, targets = batch()
    for rows in (SOME, torch.arange(N) % 4 == 1, torch.arange(N)):
        every = naive(hidden, weight, targets, temperature)
        some = TokenStats(every.logp[rows], every.entropy.detach()[rows])
        token_loss = surrogate(upstream(len(some.logp)))
        expected = token_loss(some, slice(None)).sum()
        found = selected_policy_loss(hidden, weight, targets, rows, token_loss, temperature)
        assert_close((found.stats.logp, found.stats.entropy), (some.logp, some.entropy))
        assert not (found.stats.logp.requires_grad or found.stats.entropy.requires_grad)
        assert found.loss.item() == pytest.approx(expected.item(), rel=1e-12)
        gradients = torch.autograd.grad(3 * found.loss, (hidden, weight))
        assert_close(gradients, torch.autograd.grad(3 * expected, (hidden, weight)))


@pytest.mark.parametrize("shape", TILES.values(), ids=TILES)
@pytest.mark.parametrize(("temperature", "entropy_temperature"), TEMPERATURES)
def test_the_square_of_the_gradient_is_that_of_autograd(monkeypatch, shape, temperature, entropy_temperature):
    set_tiles(monkeypatch, *shape)
    hidden, weight, targets = batch()
    temperatures = temperature, entropy_temperature
    expected = squares_by_autograd(hidden, weight, targets, temperature)
    known = token_stats(hidden, weight, targets, *temperatures)
    assert_close((known.grad_square, plain_stats(hidden, weight, targets, *temperatures).grad_square), [expected] * 2)
    for rows in (SOME, torch.arange(N) % 4 == 1, torch.arange(N)):
        found = [selected_stats(hidden, weight, targets, rows, *temperatures, known=k) for k in (None, known)]
        seen = []

        def token_loss(stats, part, seen=seen):
            seen.append(stats.grad_square)
            return stats.logp

        fused = selected_policy_loss(hidden, weight, targets, rows, token_loss, temperature).stats
        assert torch.equal(torch.cat(seen), fused.grad_square)
        for stats in (*found, fused):
            assert_close([stats.grad_square], [expected[rows]])
            assert not stats.grad_square.requires_grad


@both
@pytest.mark.parametrize("gap", [0.0, 5.0, 10.0, 14.0, 16.0, 30.0])
def test_the_square_of_the_gradient_is_accurate_near_certainty(monkeypatch, statistics, gap):
    """The norm is as accurate as the probability, of which 1 - 2p + sum p^2 in float32 leaves nothing."""
    set_tiles(monkeypatch, 1, 1, 1)
    logits = torch.linspace(-2, 2, VOCABULARY)
    logits[470] = 2 + gap
    hidden, weight = from_logits(logits)
    for target in (470, 599, 0):
        targets = torch.tensor([target])
        found = statistics(hidden, weight, targets).grad_square
        expected = squares_by_autograd(hidden, weight, targets)
        assert float((found.double().sqrt() - expected.sqrt()).abs()) < 3e-7


def test_gradients_are_those_of_finite_differences():
    hidden, weight, targets = batch(n=4, hidden_size=2, vocabulary=5)
    rows = torch.tensor([3, 0])

    def gradcheck(function):
        assert torch.autograd.gradcheck(function, (hidden, weight))

    def both_of(stats):
        return stats.logp, stats.entropy

    gradcheck(lambda h, w: both_of(token_stats(h, w, targets, 0.7, 1.3, entropy_grad=True)))
    gradcheck(lambda h, w: both_of(selected_stats(h, w, targets, rows, 0.7, entropy_grad=True)))
    gradcheck(lambda h, w: selected_logprob(h, w, targets, rows, 0.7))
    gradcheck(lambda h, w: selected_logprob(h, w, targets, rows, 0.7, known=token_stats(h, w, targets, 0.7)))


def test_the_gradient_of_one_pass_is_the_slope_of_the_loss():
    hidden, weight, targets = batch(n=4, hidden_size=2, vocabulary=5)
    rows, advantages = torch.tensor([3, 0]), torch.tensor([0.5, -1.0], dtype=torch.float64)

    def loss(h, w):
        return selected_policy_loss(h, w, targets, rows, lambda s, part: s.logp.exp() * advantages[part], 0.7).loss

    gradients = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    for seed in range(8):
        along = [upstream(x.numel(), seed).view(x.shape) * 1e-5 for x in (hidden, weight)]
        ahead, behind = loss(hidden + along[0], weight + along[1]), loss(hidden - along[0], weight - along[1])
        slope = sum((gradient * step).sum() for gradient, step in zip(gradients, along, strict=True))
        assert (ahead - behind).item() / 2 == pytest.approx(slope.item(), abs=1e-13)


@pytest.mark.parametrize("shape", [(16, 16 * 300, 8 * 700), (512, 2**19, 2**23)])
def test_float32_is_near_float64(monkeypatch, shape):
    set_tiles(monkeypatch, *shape)
    hidden, weight, targets = batch(n=64, hidden_size=32, vocabulary=700, dtype=torch.float32)
    wide = exact(hidden, weight)
    rows = torch.arange(0, 64, 3)
    stats, expected = token_stats(hidden, weight, targets, 0.8, 1.2, True), naive(*wide, targets, 0.8, 1.2)
    by = upstream(64)
    losses = [(s.logp @ by.to(s.logp.dtype) + s.entropy.sum()) for s in (stats, expected)]
    assert_close((stats.logp, stats.entropy), (expected.logp, expected.entropy), 2e-6)
    assert_close(torch.autograd.grad(losses[0], (hidden, weight)), torch.autograd.grad(losses[1], wide), 2e-6)

    weights = upstream(len(rows))
    every = naive(*wide, targets, 0.8)
    loss = surrogate(weights)(TokenStats(every.logp[rows], every.entropy.detach()[rows]), slice(None)).sum()
    found = selected_policy_loss(hidden, weight, targets, rows, surrogate(weights), 0.8)
    assert found.loss.item() == pytest.approx(loss.item(), rel=2e-6)
    assert_close(torch.autograd.grad(found.loss, (hidden, weight)), torch.autograd.grad(loss, wide), 2e-6)

    known = token_stats(hidden, weight, targets, 0.8)
    for logp in (WAYS["selected_logprob"](hidden, weight, targets, rows, 0.8), known.logp[rows]):
        found = torch.autograd.grad(logp.sum(), (hidden, weight))
        plain = naive(*wide, targets, 0.8).logp[rows]
        assert_close((logp, *found), (plain, *torch.autograd.grad(plain.sum(), wide)), 2e-6)


# -- worked by hand ----------------------------------------------------------------------------------------------------


@both
def test_hand_worked(statistics):
    hidden, weight = from_logits(torch.tensor([0.0, math.log(3)], dtype=torch.float64))
    stats = statistics(hidden, weight, torch.tensor([1]))  # p = 1/4, 3/4
    assert stats.logp.item() == pytest.approx(math.log(3 / 4), rel=1e-14)
    assert stats.entropy.item() == pytest.approx(math.log(4) - 3 / 4 * math.log(3), rel=1e-14)
    assert stats.grad_square.item() == pytest.approx(1 / 16 + 1 / 16, rel=1e-14)
    half = statistics(hidden, weight, torch.tensor([1]), temperature=0.5)  # p = 1/10, 9/10
    assert half.logp.item() == pytest.approx(math.log(9 / 10), rel=1e-14)
    assert half.grad_square.item() == pytest.approx(0.02, rel=1e-14)
    other = statistics(hidden, weight, torch.tensor([0]), temperature=0.5)
    assert other.grad_square.item() == pytest.approx(2 * 0.81, rel=1e-14)


def test_hand_worked_normaliser():
    hidden, weight = from_logits(torch.tensor([0.0, math.log(3)], dtype=torch.float64))
    assert token_stats(hidden, weight, torch.tensor([1]), 0.5).normaliser.item() == pytest.approx(math.log(10))


def test_hand_worked_loss_in_one_pass():
    hidden, weight = from_logits(torch.tensor([0.0, math.log(3)], dtype=torch.float64))
    hidden.requires_grad_()
    weight.requires_grad_()
    # p = 1/10, 9/10 of the second token: d logp / dz = (1[target] - p) / T = -0.2, 0.2
    found = selected_policy_loss(hidden, weight, torch.tensor([1]), torch.tensor([0]), lambda s, _: -2 * s.logp, 0.5)
    assert found.loss.item() == pytest.approx(-2 * math.log(0.9), rel=1e-14)
    assert found.stats.logp.item() == pytest.approx(math.log(0.9), rel=1e-14)
    assert found.stats.entropy.item() == pytest.approx(math.log(10) - 0.9 * math.log(9), rel=1e-14)
    by_hidden, by_weight = torch.autograd.grad(found.loss, (hidden, weight))
    assert by_weight.flatten().tolist() == pytest.approx([0.4, -0.4], rel=1e-14)
    assert by_hidden.item() == pytest.approx(-0.4 * math.log(3), rel=1e-14)


@both
def test_uniform_distribution_has_the_logarithm_of_the_vocabulary(statistics):
    hidden, weight = from_logits(torch.full((1000,), 37.5))
    assert statistics(hidden, weight, torch.tensor([3])).entropy.item() == pytest.approx(math.log(1000), rel=1e-6)


@both
def test_impossible_tokens_do_not_count(statistics):
    hidden, weight = from_logits(torch.tensor([0.0, -math.inf, 0.0, -math.inf]))
    weight.requires_grad_()
    for entropy_temperature in (None, 2.0):
        stats = statistics(hidden, weight, torch.tensor([2]), 1.0, entropy_temperature)
        assert stats.entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    assert stats.logp.item() == pytest.approx(-math.log(2), rel=1e-6)
    assert stats.grad_square.item() == pytest.approx(0.5, rel=1e-6)
    (gradient,) = torch.autograd.grad(stats.logp.sum(), weight)
    assert gradient.flatten().tolist() == pytest.approx([-0.5, 0, 0.5, 0])


@both
def test_impossible_tokens_take_no_part_in_the_gradient_of_the_entropy(statistics):
    hidden, weight = from_logits(torch.tensor([0.0, -math.inf, math.log(3), -math.inf]))
    weight.requires_grad_()
    stats = statistics(hidden, weight, torch.tensor([2]), entropy_grad=True)
    (gradient,) = torch.autograd.grad(1e6 * stats.entropy.sum(), weight)
    slope = 1e6 * 3 / 16 * math.log(3)  # dH/dz_j = -p_j (log p_j + H), p = 1/4 and 3/4
    assert gradient.flatten().tolist() == pytest.approx([slope, 0, -slope, 0], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_part_of_the_vocabulary_may_be_impossible(monkeypatch, place, dtype):
    """The largest logit so far is then none at all, or stays."""
    set_tiles(monkeypatch, 1, 1, 1)
    possible = torch.linspace(-2, 3, 256).to(dtype)
    impossible = torch.full((512,), -math.inf, dtype=dtype)
    logits = torch.cat([impossible, possible] if place == "first" else [possible, impossible])
    target = torch.tensor([515 if place == "first" else 3])
    hidden, weight = from_logits(logits)
    weight.requires_grad_()
    expected = naive(*from_logits(possible.double()), torch.tensor([3]))
    stats = token_stats(hidden, weight, target, entropy_grad=True)
    found = selected_policy_loss(hidden, weight, target, torch.tensor([0]), lambda s, _: -s.logp)
    for one in (stats, found.stats):
        assert one.logp.item() == pytest.approx(expected.logp.item(), rel=2e-6)
        assert one.entropy.item() == pytest.approx(expected.entropy.item(), rel=2e-6)
    p = torch.where(logits.isinf(), 0, logits.exp()) / possible.exp().sum()
    by_loss = p - (torch.arange(768) == target).to(dtype)
    torch.testing.assert_close(torch.autograd.grad(found.loss, weight)[0][:, 0], by_loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(-stats.logp.sum(), weight)[0][:, 0], by_loss, rtol=1e-5, atol=1e-7)


@both
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_float32_is_accurate_far_from_zero_and_near_certainty(statistics, offset):
    logits = torch.tensor([16.0, 0.0, 1.0]) + offset
    hidden, weight = from_logits(logits)
    stats = statistics(hidden, weight, torch.tensor([0]))
    exactly = naive(*from_logits(logits.double()), torch.tensor([0]))
    assert stats.entropy.dtype == torch.float32
    assert stats.entropy.item() == pytest.approx(exactly.entropy.item(), abs=2e-7)
    assert stats.logp.item() == pytest.approx(exactly.logp.item(), abs=2e-7)
    assert stats.entropy.item() >= 0


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_tiles_far_apart_lose_no_accuracy(monkeypatch, offset):
    """The certain token comes in the last part, after the sums of the others."""
    set_tiles(monkeypatch, 1, 1, 1)
    logits = torch.cat([torch.linspace(-1, 1, 300), torch.linspace(0, 2, 299), torch.tensor([20.0])]) + offset
    hidden, weight = from_logits(logits)
    stats = token_stats(hidden, weight, torch.tensor([599]))
    exactly = naive(*from_logits(logits.double()), torch.tensor([599]))
    assert stats.entropy.item() == pytest.approx(exactly.entropy.item(), abs=2e-7)
    assert stats.logp.item() == pytest.approx(exactly.logp.item(), abs=2e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_seen(monkeypatch, value):
    set_tiles(monkeypatch, 1, 1, 1)
    hidden, weight, targets = batch()
    with torch.no_grad():
        hidden[4, 0] = value
    for stats in (
        token_stats(hidden, weight, targets),
        selected_policy_loss(hidden, weight, targets, torch.arange(N), lambda s, _: s.logp).stats,
    ):
        for values in (stats.logp, stats.entropy):
            assert torch.equal(values.isfinite(), torch.arange(N) != 4)


# -- what stays equal --------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_connected_entropy_changes_no_value(statistics, dtype):
    hidden, weight, targets = batch(n=1500, hidden_size=16, vocabulary=97, dtype=dtype)
    plain = statistics(hidden, weight, targets, 0.9, 1.1)
    connected = statistics(hidden, weight, targets, 0.9, 1.1, entropy_grad=True)
    assert torch.equal(connected.logp, plain.logp)
    assert torch.equal(connected.entropy, plain.entropy)
    assert connected.entropy.requires_grad
    assert not plain.entropy.requires_grad
    gradients = [torch.autograd.grad(stats.logp.sum(), (hidden, weight)) for stats in (plain, connected)]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    with torch.no_grad():
        assert not statistics(hidden, weight, targets, entropy_grad=True).entropy.requires_grad


@both
def test_ratio_of_the_policy_to_itself_is_exactly_one(statistics):
    hidden, weight, targets = batch(n=1500, hidden_size=16, vocabulary=97, dtype=torch.float32)
    with torch.no_grad():
        old = statistics(hidden, weight, targets, 0.9)
    new = statistics(hidden, weight, targets, 0.9)
    assert torch.equal((new.logp - old.logp).exp(), torch.ones(1500))
    assert torch.equal(new.entropy, old.entropy)


def test_known_statistics_are_returned_as_they_are():
    hidden, weight, targets = batch(n=100, dtype=torch.float32)
    rows = torch.arange(0, 100, 7)
    with torch.no_grad():
        known = token_stats(hidden, weight, targets, 0.9, 1.1)
    some = selected_stats(hidden, weight, targets, rows, 0.9, 1.1, known=known)
    for one, every in ((some.logp, known.logp), (some.entropy, known.entropy), (some.normaliser, known.normaliser)):
        assert torch.equal(one, every[rows])
    assert some.logp.requires_grad
    assert not some.entropy.requires_grad


def test_token_loss_sees_the_rows_in_their_order(monkeypatch):
    set_tiles(monkeypatch, 1, 1, 2 * VOCABULARY)
    hidden, weight, targets = batch()
    seen, places = [], []

    def token_loss(stats, rows):
        assert stats.logp.requires_grad
        assert not stats.entropy.requires_grad
        seen.append(stats.logp.detach().clone())
        places.extend(range(len(SOME))[rows])
        return stats.logp

    with torch.no_grad():
        found = selected_policy_loss(hidden, weight, targets, SOME, token_loss)
    assert [len(logp) for logp in seen] == [2, 2, 1]
    assert places == list(range(len(SOME)))
    assert torch.equal(torch.cat(seen), found.stats.logp)
    assert not found.loss.requires_grad


def test_a_loss_that_reads_no_log_probability_has_no_gradient():
    hidden, weight, targets = batch()
    found = selected_policy_loss(hidden, weight, targets, SOME, lambda s, _: torch.ones_like(s.logp))
    assert found.loss.item() == len(SOME)
    assert not any(gradient.any() for gradient in torch.autograd.grad(found.loss, (hidden, weight)))


@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen):
    *operands, targets = batch()
    operands[frozen].requires_grad_(False)
    expected = torch.autograd.grad(naive(*operands, targets, 0.7).logp[SOME].sum(), operands[1 - frozen])
    for logp in (way(*operands, targets, SOME, 0.7) for way in WAYS.values()):
        assert_close(torch.autograd.grad(logp.sum(), operands[1 - frozen]), expected)
    found = selected_policy_loss(*operands, targets, SOME, lambda s, _: s.logp, 0.7)
    found.loss.backward()
    assert_close([operands[1 - frozen].grad], expected)
    assert operands[frozen].grad is None


def test_backward_can_be_repeated():
    hidden, weight, targets = batch()
    for loss in (
        token_stats(hidden, weight, targets, entropy_grad=True).logp.sum(),
        selected_logprob(hidden, weight, targets, SOME).sum(),
    ):
        first, again = (torch.autograd.grad(2 * loss, (hidden, weight), retain_graph=True) for _ in range(2))
        assert all(map(torch.equal, first, again))


def test_a_second_backward_of_one_pass_is_refused():
    """The gradient is scaled in place: another one would be scaled twice."""
    hidden, weight, targets = batch()
    loss = selected_policy_loss(hidden, weight, targets, SOME, lambda s, _: -s.logp).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# -- tied weights and sums over micro-batches --------------------------------------------------------------------------


class Tied(torch.nn.Module):
    """A model whose embedding is its head."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding = torch.nn.Embedding(VOCABULARY, HIDDEN, dtype=torch.float64)
        self.layer = torch.nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def forward(self, ids):
        return self.layer(self.embedding(ids)).tanh(), self.embedding.weight


@pytest.mark.parametrize("way", [*WAYS, "one pass"])
def test_a_tied_embedding_gets_its_whole_gradient_once(way):
    model = Tied()
    ids = torch.randint(VOCABULARY, (2, N + 1), generator=torch.Generator().manual_seed(4))
    gradients = []
    for tiled in (False, True):
        model.zero_grad()
        for sequence in ids:  # as two micro-batches
            hidden, weight = model(sequence[:-1])
            if not tiled:
                loss = -naive(hidden, weight, sequence[1:], 0.7).logp[SOME].sum()
            elif way == "one pass":
                loss = selected_policy_loss(hidden, weight, sequence[1:], SOME, lambda s, _: -s.logp, 0.7).loss
            else:
                loss = -WAYS[way](hidden, weight, sequence[1:], SOME, 0.7).sum()
            (loss / 2).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert_close(gradients[1], gradients[0])


# -- memory and work ---------------------------------------------------------------------------------------------------

MANY, TILE = 40, 8 * 256  # rows, and logits of a tile
HEADS = {
    **{name: lambda h, w, t, way=way: way(h, w, t, torch.arange(MANY), 0.7).sum() for name, way in WAYS.items()},
    "entropies": lambda h, w, t: token_stats(h, w, t, 0.7, 1.2, entropy_grad=True).entropy.sum(),
    "one pass": lambda h, w, t: selected_policy_loss(h, w, t, torch.arange(MANY), lambda s, _: s.logp).loss,
}


@pytest.mark.parametrize("head", HEADS)
def test_the_logits_of_all_rows_are_never_there(monkeypatch, head):
    set_tiles(monkeypatch, 8, TILE, 8 * VOCABULARY)
    hidden, weight, targets = batch(n=MANY, hidden_size=2, dtype=torch.float32)
    with LargestOutput() as largest:
        loss = HEADS[head](hidden, weight, targets)
        loss.backward()
    assert weight.numel() < TILE
    assert hidden.grad.any()
    assert largest.elements == TILE


@pytest.mark.parametrize("head", HEADS)
def test_no_logits_are_kept_for_backward(head):
    hidden, weight, targets = batch(n=MANY, hidden_size=2, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        HEADS[head](hidden, weight, targets)
    assert max(kept) <= weight.numel()


def test_rows_that_are_not_asked_for_cost_nothing(monkeypatch):
    set_tiles(monkeypatch, 8, TILE, 2 * VOCABULARY)
    hidden, weight, targets = batch(n=100)
    known = token_stats(hidden, weight, targets)
    one = len(SOME) * VOCABULARY * HIDDEN  # multiplications for logits, or for either gradient
    for wanted, loss in (
        (4, lambda: selected_logprob(hidden, weight, targets, SOME).sum()),
        (3, lambda: selected_logprob(hidden, weight, targets, SOME, known=known).sum()),
        (4, lambda: selected_stats(hidden, weight, targets, SOME, 1.0, 1.5, entropy_grad=True).entropy.sum()),
        (3, lambda: selected_policy_loss(hidden, weight, targets, SOME, lambda s, _: s.logp).loss),
    ):
        with Products() as products:
            loss().backward()
        assert products.count == wanted * one


# -- no rows -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled_memory():
    """New tensors that nobody has written into are NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


WITHOUT_ROWS = WAYS | {
    "entropies": lambda h, w, t, r, T: selected_stats(h, w, t, r, T, 1.2, entropy_grad=True).entropy,
    "plain": lambda h, w, t, r, T: plain_stats(h[r], w, t[r], T).logp,
    "plain entropies": lambda h, w, t, r, T: plain_stats(h[r], w, t[r], T, entropy_grad=True).entropy,
}
NOTHING = {
    "no tokens": (0, torch.zeros(0, dtype=torch.int64)),
    "no index": (N, torch.zeros(0, dtype=torch.int64)),
    "empty mask": (N, torch.zeros(N, dtype=torch.bool)),
}


@pytest.mark.parametrize(("n", "rows"), NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("way", [*WITHOUT_ROWS, "one pass"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_rows_give_a_connected_zero(filled_memory, dtype, way, n, rows):
    hidden, weight, targets = batch(n=n, dtype=dtype)
    if way == "one pass":
        found = selected_policy_loss(hidden, weight, targets, rows, lambda s, _: s.logp * 2)
        assert found.loss == 0
        assert found.stats.logp.shape == found.stats.entropy.shape == (0,)
        found.loss.backward()
    else:
        values = WITHOUT_ROWS[way](hidden, weight, targets, rows, 0.7)
        assert values.shape == (0,)
        values.sum().backward()
    for operand in (hidden, weight):
        assert torch.equal(operand.grad, torch.zeros_like(operand))


# -- precision ---------------------------------------------------------------------------------------------------------


def test_bfloat16_operands_are_summed_in_float32():
    hidden, weight, targets = batch(n=50, hidden_size=64, dtype=torch.bfloat16)
    wide = exact(hidden, weight)
    stats, expected = token_stats(hidden, weight, targets, 0.8), naive(*wide, targets, 0.8)
    assert stats.logp.dtype == stats.entropy.dtype == torch.float32
    assert_close((stats.logp, stats.entropy), (expected.logp, expected.entropy), 2e-6)
    found = torch.autograd.grad(stats.logp.sum(), (hidden, weight))
    assert [gradient.dtype for gradient in found] == [torch.bfloat16] * 2
    assert_close(found, torch.autograd.grad(expected.logp.sum(), wide), 2**-8)


@pytest.mark.parametrize("way", ["token_stats", "one pass"])
def test_gradients_of_bfloat16_weights_do_not_stop_growing(monkeypatch, way):
    """Every row brings the same: in bfloat16 the sum would stand still at 256 times one of them."""
    set_tiles(monkeypatch, 1, 1, 1)
    n = 300
    hidden = torch.ones(n, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(n, dtype=torch.int64)
    if way == "one pass":
        loss = selected_policy_loss(hidden, weight, targets, torch.arange(n), lambda s, _: s.logp).loss
    else:
        loss = token_stats(hidden, weight, targets).logp.sum()
    loss.backward()
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [n / 2, -n / 2]


@pytest.mark.parametrize("way", ["token_stats", "known", "one pass"])
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_governs_the_operands_only(way, inside):
    hidden, weight, targets = batch(n=50, hidden_size=64, dtype=torch.float32)
    rounded = exact(hidden.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        if way == "one pass":
            loss, stats = selected_policy_loss(hidden, weight, targets, torch.arange(50), lambda s, _: s.logp.exp())
        else:
            known = token_stats(hidden, weight, targets) if way == "known" else None
            stats = selected_stats(hidden, weight, targets, torch.arange(50), known=known)
            loss = stats.logp.exp().sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    expected = naive(*rounded, targets)
    assert stats.logp.dtype == stats.entropy.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    assert_close((stats.logp, stats.entropy), (expected.logp, expected.entropy), 2e-6)
    expected.logp.exp().sum().backward()
    assert_close((hidden.grad, weight.grad), [operand.grad for operand in rounded], 2e-6)


# -- wrong arguments ---------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "token_stats": lambda rows, **x: token_stats(**x),
    "plain_stats": lambda rows, **x: plain_stats(**x),
    "selected_stats": selected_stats,
    "selected_logprob": selected_logprob,
    "selected_policy_loss": lambda **x: selected_policy_loss(**x, token_loss=lambda s, _: s.logp),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(N, 4)}, ValueError, r"hidden \[N,H\] .*got \[11, 4\] and \[600, 5\]"),
        ({"hidden": torch.zeros(N)}, ValueError, r"hidden \[N,H\]"),
        ({"targets": torch.zeros(N)}, TypeError, "int64"),
        ({"targets": torch.zeros(6, dtype=torch.int64)}, ValueError, r"\[11\], got \[6\]"),
        ({"targets": torch.arange(N) + 595}, ValueError, "tokens 595 to 605, the head has 600"),
        ({"targets": torch.arange(N) - 2}, ValueError, "tokens -2 to 8, the head has 600"),
        ({"temperature": 0.0}, ValueError, "positive, got 0"),
        ({"temperature": math.nan}, ValueError, "positive, got nan"),
        ({"hidden": torch.zeros(N, HIDDEN, dtype=torch.float16)}, TypeError, "float16 is for GPUs"),
        ({"weight": torch.zeros(VOCABULARY, HIDDEN, dtype=torch.float16)}, TypeError, "float16 is for GPUs"),
    ],
)
def test_wrong_arguments_are_refused(function, change, error, message):
    hidden, weight, targets = batch()
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, "rows": torch.arange(2), **change}
    with pytest.raises(error, match=message):
        FUNCTIONS[function](**arguments)


@pytest.mark.parametrize("function", ["selected_stats", "selected_logprob", "selected_policy_loss"])
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.zeros(N), TypeError, "rows must be int64 or bool, not torch.float32"),
        (torch.zeros(N, dtype=torch.int32), TypeError, "int32"),
        (torch.zeros(6, dtype=torch.bool), ValueError, r"a mask \[11\], got shape \[6\]"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"rows .*got shape \[2, 2\]"),
        (torch.tensor([N]), IndexError, "out of"),
    ],
)
def test_wrong_rows_are_refused(function, rows, error, message):
    hidden, weight, targets = batch()
    with pytest.raises(error, match=message):
        FUNCTIONS[function](hidden=hidden, weight=weight, targets=targets, rows=rows)


@both
def test_entropy_temperature_must_be_positive(statistics):
    with pytest.raises(ValueError, match="positive"):
        statistics(*batch(), entropy_temperature=-1.0)


def test_known_statistics_must_be_those_of_all_rows():
    hidden, weight, targets = batch()
    few = token_stats(hidden[:5], weight, targets[:5])
    whole = token_stats(hidden, weight, targets)
    bare = replace(whole, grad_square=None)
    for known in (few, plain_stats(hidden, weight, targets), TokenStats(whole.logp, whole.entropy), bare):
        with pytest.raises(ValueError, match="token_stats of all 11 rows, with their normalisers"):
            selected_logprob(hidden, weight, targets, torch.arange(5), known=known)


def test_known_entropies_of_another_temperature_cannot_be_connected():
    hidden, weight, targets = batch()
    known = token_stats(hidden, weight, targets, 0.7, 1.0)
    with pytest.raises(ValueError, match="known entropies of another temperature"):
        selected_stats(hidden, weight, targets, torch.arange(5), 0.7, 1.0, entropy_grad=True, known=known)


@pytest.mark.parametrize(
    "token_loss", [lambda s, _: s.logp.sum(), lambda s, _: s.logp[:, None], lambda s, _: s.logp[1:]]
)
def test_a_token_loss_of_another_shape_is_refused(token_loss):
    hidden, weight, targets = batch()
    with pytest.raises(ValueError, match=r"token_loss must return \[5\] losses, got \["):
        selected_policy_loss(hidden, weight, targets, SOME, token_loss)
