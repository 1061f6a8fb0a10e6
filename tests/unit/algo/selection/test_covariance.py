import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import on_ranks

from forklight.algo.noise import hash_bits
from forklight.algo.selection.covariance import CovarianceTokens, covariance_tokens

coarse = st.integers(-3000, 3000).map(lambda unit: unit / 1024)  # sums of these are exact
# bounds that float32 has: others are rounded to it where scores are float32
specs = st.builds(CovarianceTokens, st.sampled_from([0.0002, 0.3, 1.0])) | st.builds(
    CovarianceTokens, st.sampled_from([0.0002, 0.3, 1.0]), st.floats(-5, 0, width=32), st.floats(2**-7, 5, width=32)
)


@st.composite
def batches(draw):
    rows, width = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))

    def numbers(values, n):
        return torch.tensor(draw(st.lists(values, min_size=n, max_size=n)))

    keys = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows, unique=True))
    eligible = numbers(st.booleans(), rows * width).view(rows, width)
    return {
        "logp": torch.where(eligible, numbers(coarse, rows * width).view(rows, width).to(dtype), torch.nan),
        "advantages": numbers(coarse, rows).to(dtype),
        "eligible": eligible,
        "exclude": numbers(st.booleans(), rows * width).view(rows, width),
        "sequence_id": torch.tensor(keys),
    }


def naive(logp, advantages, eligible, spec, exclude, sequence_id, seed):
    """Token by token: the covariances, the candidates, and a sort of all of them."""
    tokens = [tuple(token) for token in eligible.nonzero().tolist()]
    n = len(tokens)
    if n == 0:
        return eligible
    mean_a = math.fsum(advantages[row].item() for row, _ in tokens) / n
    mean_x = math.fsum(logp[token].item() for token in tokens) / n
    cov = {
        t: torch.tensor((advantages[t[0]].item() - mean_a) * (logp[t].item() - mean_x), dtype=torch.float64)
        .to(logp.dtype)
        .item()
        for t in tokens
    }
    candidates = [t for t in tokens if not exclude[t]]
    value = dict(cov)
    if spec.low is not None:
        candidates = [t for t in candidates if spec.low < cov[t] < spec.high]
        value = {t: hash_bits(seed, sequence_id[t[0]], torch.tensor(t[1])).item() for t in candidates}
    candidates.sort(key=lambda t: (-value[t], sequence_id[t[0]].item(), t[1]))
    mask = torch.zeros_like(eligible)
    for token in candidates[: max(1, math.floor(spec.share * n))]:
        mask[token] = True
    return mask


@settings(deadline=None, max_examples=300)
@given(batches(), specs, st.integers(0, 5))
def test_equals_the_definition_token_by_token(batch, spec, seed):
    assert torch.equal(covariance_tokens(**batch, spec=spec, seed=seed), naive(**batch, spec=spec, seed=seed))


@settings(deadline=None, max_examples=60)
@given(batches(), specs, st.integers(2, 3), st.randoms(use_true_random=False))
def test_spread_over_ranks_equals_one_rank_and_takes_the_same_collectives(batch, spec, ranks, random):
    owner = torch.tensor([random.randrange(ranks) for _ in batch["sequence_id"]])
    whole = covariance_tokens(**batch, spec=spec, seed=1)
    calls = [0] * ranks

    def work(rank):
        def reduce(tensor):
            calls[rank.rank] += 1
            return rank.reduce(tensor)

        mine = {name: x[owner == rank.rank] for name, x in batch.items()}
        return covariance_tokens(**mine, spec=spec, seed=1, reduce=reduce)

    for rank, mask in enumerate(on_ranks(ranks, work)):
        assert torch.equal(mask, whole[owner == rank])
    assert len(set(calls)) == 1


def test_hand_worked():
    # mean A = (2*1 - 2*1)/4 = 0; mean logp = -1: covariances [[1, 0], [2, -1]]
    logp = torch.tensor([[0.0, -1.0], [-3.0, 0.0]])
    batch = {
        "logp": logp,
        "advantages": torch.tensor([1.0, -1.0]),
        "eligible": torch.ones(2, 2).bool(),
        "sequence_id": torch.arange(2),
    }
    assert covariance_tokens(**batch, spec=CovarianceTokens(0.5)).tolist() == [[True, False], [True, False]]
    assert covariance_tokens(**batch, spec=CovarianceTokens(0.49)).tolist() == [[False, False], [True, False]]
    clipped = torch.tensor([[False, False], [True, False]])
    # the clipped token stays in n and in the means
    assert covariance_tokens(**batch, spec=CovarianceTokens(0.5), exclude=clipped).tolist() == [
        [True, True],
        [False] * 2,
    ]
    # bounds are excluded: of covariances 1, 0, 2, -1 only 1 lies in (0, 2), however large the share
    assert covariance_tokens(**batch, spec=CovarianceTokens(1.0, 0.0, 2.0)).tolist() == [[True, False], [False] * 2]
    assert not covariance_tokens(**batch, spec=CovarianceTokens(0.5, 5.0, 6.0)).any()


def test_noise_of_the_choice_changes_with_the_seed_and_is_even():
    generator = torch.Generator().manual_seed(0)
    logp, advantages = -torch.rand(200, 50, generator=generator), torch.rand(200, generator=generator)
    batch = {"eligible": torch.ones(200, 50).bool(), "sequence_id": torch.arange(200)}
    spec = CovarianceTokens(0.1, -10.0, 10.0)
    first, second = (covariance_tokens(logp, advantages, **batch, spec=spec, seed=seed) for seed in (1, 2))
    assert first.sum() == second.sum() == 1000
    assert 50 < (first & second).sum() < 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": torch.zeros(3)}, r"advantages must be \(2,\)"),
        ({"logp": torch.zeros(2, 4)}, r"logp must be \(2, 3\)"),
        ({"exclude": torch.zeros(2, 1).bool()}, r"exclude must be \(2, 3\)"),
        ({"advantages": torch.tensor([1.0, math.nan])}, "3 of 6 eligible log-probabilities or advantages are NaN or"),
        ({"logp": torch.full((2, 3), -math.inf)}, "6 of 6 eligible log-probabilities or advantages are NaN or"),
        ({"sequence_id": torch.zeros(2, dtype=torch.int64)}, "sequence_id must be unique"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {
        "logp": torch.zeros(2, 3),
        "advantages": torch.zeros(2),
        "eligible": torch.ones(2, 3).bool(),
        "sequence_id": torch.arange(2),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        covariance_tokens(**arguments, spec=CovarianceTokens(0.3))


@pytest.mark.parametrize("bounds", [(0.0,), (1.5,), (math.nan,), (0.1, 1.0), (0.1, None, 1.0), (0.1, 2.0, 2.0)])
def test_wrong_specifications_are_refused(bounds):
    with pytest.raises(ValueError, match="covariance"):
        CovarianceTokens(*bounds)
