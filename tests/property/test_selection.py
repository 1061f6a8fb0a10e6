import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import on_ranks

from forklight.algo.noise import hash_bits, hash_uniform
from forklight.algo.selection import ForkSelection, select

entropies = st.sampled_from([0.0, -0.0, 0.1, 0.5, 2.0]) | st.floats(0, 10, width=32)
coarse = st.integers(-3000, 3000).map(lambda unit: unit / 1024)  # sums of these are exact
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Product:
    """A score of one's own: H * |A| + logp."""

    def __repr__(self):
        return "own"

    def scores(self, entropy, logp, advantages, eligible):
        return entropy * advantages.abs()[:, None] + logp


KEEPS = ["top", "bottom", "random", "all", "band", "low_probability", "covariance", Product()]
specs = st.builds(
    ForkSelection,
    rho=st.sampled_from([0.01, 0.2, 0.5, 0.8, 1.0]) | st.floats(0.001, 1),
    keep=st.sampled_from(KEEPS),
    scope=st.sampled_from(["update", "sequence"]),
    rule=st.sampled_from(["count", "threshold"]),
)


@st.composite
def batches(draw, max_rows=6):
    """Tokens with ties, answers of any length (also none), and unique sequence ids in any order."""
    rows, width = draw(st.integers(1, max_rows)), draw(st.integers(1, 7))
    dtype = draw(st.sampled_from(DTYPES))

    def numbers(values, *shape):
        n = math.prod(shape)
        return torch.tensor(draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float64).view(shape).to(dtype)

    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    keys = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows, unique=True))
    answer_mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {
        "entropy": torch.where(answer_mask, numbers(entropies, rows, width), torch.nan),
        "answer_mask": answer_mask,
        "logp": torch.where(answer_mask, numbers(coarse, rows, width), torch.inf),
        "advantages": numbers(coarse, rows),
        "sequence_id": torch.tensor(keys),
    }


def rows_of(batch, rows, width=None):
    return {name: x[rows] if x.ndim == 1 else x[rows, :width] for name, x in batch.items()}


def scores_of(batch, spec, seed):
    """The definitions, for the tokens of one set; of bfloat16 and float32 inputs in float32."""
    mask = batch["answer_mask"]
    dtype = torch.promote_types(batch["entropy"].dtype, torch.float32)
    entropy, logp, advantages = (batch[name].to(dtype) for name in ("entropy", "logp", "advantages"))
    if spec.keep == "random":
        noise = hash_bits if spec.rule == "count" else hash_uniform
        return noise(seed, batch["sequence_id"][:, None], torch.arange(mask.shape[1]))
    if spec.keep == "covariance":
        A, x = advantages.double()[:, None].expand(mask.shape), logp.double()
        mean_a, mean_x = (math.fsum(y[mask].tolist()) / max(1, int(mask.sum())) for y in (A, x))
        return ((A - mean_a) * (x - mean_x)).to(dtype)
    if spec.own_score:
        return spec.keep.scores(batch["entropy"], batch["logp"], batch["advantages"], mask).to(dtype)
    return {"top": entropy, "band": entropy, "bottom": -entropy, "low_probability": -logp}[spec.keep]


def chosen_of_set(batch, spec, seed):
    """Sorts all tokens of one set: the mask, and the threshold."""
    mask, sequence_id = batch["answer_mask"], batch["sequence_id"].tolist()
    if spec.keep == "all" or not mask.any():
        return mask, math.nan
    scores = scores_of(batch, spec, seed)
    kept = torch.zeros_like(mask)
    if spec.rule == "count":
        tokens = sorted(mask.nonzero().tolist(), key=lambda t: (-scores[tuple(t)].item(), sequence_id[t[0]], t[1]))
        k = spec.kept(len(tokens))
        skipped = (len(tokens) - k) // 2 if spec.keep == "band" else 0
        for row, column in tokens[skipped : skipped + k]:
            kept[row, column] = True
        low = scores[tuple(tokens[skipped + k - 1])]
    elif spec.keep == "band":
        low, high = (torch.quantile(scores[mask], q) for q in ((1 - spec.rho) / 2, (1 + spec.rho) / 2))
        kept = mask & (scores >= low) & (scores <= high)
    else:
        low = torch.quantile(scores[mask], 1 - spec.rho)
        kept = mask & (scores >= low)
    return kept, math.nan if spec.keep == "random" else low.item() * (-1 if spec.keep == "bottom" else 1)


def chosen(batch, spec, seed=0):
    """The definition of the whole selection."""
    if spec.scope != "sequence":
        mask, threshold = chosen_of_set(batch, spec, seed)
        return mask, torch.tensor(threshold, dtype=torch.float64)
    rows = [chosen_of_set(rows_of(batch, [row]), spec, seed) for row in range(len(batch["sequence_id"]))]
    return torch.cat([mask for mask, _ in rows]), torch.tensor([t for _, t in rows], dtype=torch.float64)


def over_ranks(parts, spec, **kwargs):
    """Calls `select` on every rank; the results or errors, and the number of collectives of each rank."""
    calls = [0] * len(parts)

    def work(ranks):
        def reduce(tensor):
            assert tensor.dtype == torch.int64
            calls[ranks.rank] += 1
            return ranks.reduce(tensor)

        try:
            return select(**parts[ranks.rank], spec=spec, reduce=reduce, **kwargs)
        except ValueError as error:
            return error

    return on_ranks(len(parts), work), calls


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=500)
@given(batches(), specs, st.integers(0, 9))
def test_equals_sorting_everything(batch, spec, seed):
    result = select(**batch, spec=spec, seed=seed)
    mask, threshold = chosen(batch, spec, seed)
    assert torch.equal(result.mask, mask)
    assert result.count == mask.sum()
    assert_same(result.threshold.double(), threshold)


@settings(deadline=None, max_examples=100)
@given(batches(), specs)
def test_count_is_exact_and_padding_is_never_kept(batch, spec):
    mask = select(**batch, spec=spec).mask
    eligible = batch["answer_mask"]
    assert not (mask & ~eligible).any()
    sets = zip(mask, eligible, strict=True) if spec.scope == "sequence" else [(mask, eligible)]
    for kept, of in sets:
        n = int(of.sum())
        if spec.rule == "count":
            assert kept.sum() == spec.kept(n)
        if n and (spec.rho == 1 or spec.keep == "all"):
            assert torch.equal(kept, of)


@settings(deadline=None, max_examples=150)
@given(batches(), specs, st.randoms(use_true_random=False), st.integers(0, 3))
def test_order_of_rows_and_padding_do_not_matter(batch, spec, random, padding):
    order = random.sample(range(len(batch["sequence_id"])), len(batch["sequence_id"]))
    expected = select(**batch, spec=spec, seed=5)
    moved = rows_of(batch, order)
    for name in ("entropy", "logp", "answer_mask"):
        moved[name] = torch.nn.functional.pad(moved[name], (0, padding), value=0)
    actual = select(**moved, spec=spec, seed=5)
    assert torch.equal(actual.mask, torch.nn.functional.pad(expected.mask[order], (0, padding)))
    assert_same(actual.threshold, expected.threshold[order] if spec.scope == "sequence" else expected.threshold)


@settings(deadline=None, max_examples=60)
@given(batches(), specs.filter(lambda spec: spec.keep in ("top", "bottom", "band") and spec.rule == "count"))
def test_strictly_monotone_maps_do_not_matter(batch, spec):
    entropy, mask = batch["entropy"].nan_to_num(99), batch["answer_mask"]
    ranks = torch.searchsorted(entropy.unique(), entropy).double()  # order only, exact in every dtype
    expected = select(**batch, spec=spec).mask
    for mapped in (ranks, (ranks - 20).half(), ranks.float() ** 3 - 7, 2.0 ** (ranks * 20 - 500)):
        assert torch.equal(select(mapped, mask, spec, sequence_id=batch["sequence_id"]).mask, expected)


@settings(deadline=None, max_examples=100)
@given(batches(max_rows=7), specs, st.integers(2, 3), st.randoms(use_true_random=False))
def test_spread_over_ranks_equals_one_rank(batch, spec, ranks, random):
    owner = torch.tensor([random.randrange(ranks) for _ in batch["sequence_id"]])
    parts = []
    for rank in range(ranks):
        mine = owner == rank
        longest = int(batch["answer_mask"][mine].sum(dim=1).max()) if mine.any() else 0
        parts.append(rows_of(batch, mine, longest))  # every rank pads to its own longest
    whole = select(**batch, spec=spec, seed=2)
    results, calls = over_ranks(parts, spec, seed=2)
    for rank, result in enumerate(results):
        expected = whole.mask[owner == rank]
        assert torch.equal(result.mask, expected[:, : result.mask.shape[1]])
        assert not expected[:, result.mask.shape[1] :].any()
        assert result.count == whole.count
        assert_same(result.threshold, whole.threshold[owner == rank] if spec.scope == "sequence" else whole.threshold)
    assert len(set(calls)) == 1


COLLECTIVES = {
    # the size of the set, 2 per 16 bits of the score, 8 of the row key if tokens are counted, the tokens kept
    ("top", "count", torch.float32): 1 + 4 + 8 + 1,
    ("top", "count", torch.bfloat16): 1 + 4 + 8 + 1,
    ("top", "count", torch.float64): 1 + 8 + 8 + 1,
    ("bottom", "threshold", torch.float32): 1 + 2 * 4 + 1,
    ("band", "count", torch.float32): 1 + 2 * (4 + 8) + 1,
    ("band", "threshold", torch.float32): 1 + 4 * 4 + 1,
    ("random", "count", torch.float32): 1 + 8 + 8 + 1,
    ("low_probability", "threshold", torch.float64): 1 + 2 * 8 + 1,
    ("covariance", "count", torch.float32): 1 + 1 + 4 + 8 + 1,
    ("all", "threshold", torch.float32): 1,
}


@pytest.mark.parametrize(("keep", "rule", "dtype"), COLLECTIVES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_number_of_collectives_is_fixed_also_on_a_rank_without_tokens(keep, rule, dtype, ties):
    generator = torch.Generator().manual_seed(0)

    def part(rows, first):
        values = torch.zeros(rows, 6) if ties else torch.rand(rows, 6, generator=generator)
        values = values.to(dtype)
        return {
            "entropy": values,
            "answer_mask": torch.ones(rows, 6).bool(),
            "logp": -values,
            "advantages": torch.arange(rows).to(dtype),
            "sequence_id": torch.arange(rows) + first,
        }

    spec = ForkSelection(keep=keep, rule=rule)
    results, calls = over_ranks([part(4, 0), part(0, 4), part(3, 4)], spec)
    assert calls == [COLLECTIVES[keep, rule, dtype]] * 3
    assert len({result.count.item() for result in results}) == 1
    assert results[1].mask.shape == (0, 6)
    nobody, calls = over_ranks([part(0, 0), part(0, 0)], spec)
    assert calls[0] == calls[1] <= 2
    assert [result.count.item() for result in nobody] == [0, 0]


@pytest.mark.parametrize("scope", ["update", "sequence"])
@pytest.mark.parametrize("keep", [keep for keep in KEEPS if keep != "all"], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_on_one_rank_is_an_error_on_all(scope, keep, value):
    parts = [
        {
            "entropy": torch.rand(2, 3),
            "logp": torch.rand(2, 3),
            "advantages": torch.ones(2),
            "answer_mask": torch.ones(2, 3).bool(),
            "sequence_id": torch.arange(2) + 2 * rank,
        }
        for rank in range(2)
    ]
    spec = ForkSelection(keep=keep, scope=scope)
    parts[1]["logp" if keep in ("low_probability", "covariance") else "entropy"][0, 1] = value
    results, _ = over_ranks(parts, spec)
    if keep == "random":
        assert [result.count for result in results] == [3 if scope == "update" else 4] * 2
    else:
        assert all("1 of 12 eligible" in str(result) and "NaN or infinite" in str(result) for result in results)


def test_repeated_row_keys_on_two_ranks_are_an_error_on_both():
    part = {"entropy": torch.zeros(2, 3), "answer_mask": torch.ones(2, 3).bool(), "sequence_id": torch.arange(2)}
    results, _ = over_ranks([part, part], ForkSelection(rho=0.4))
    assert all("sequence_id must be unique over all ranks" in str(result) for result in results)


@pytest.mark.parametrize("keep", ["top", "random", "band"])
@pytest.mark.parametrize("rule", ["count", "threshold"])
@pytest.mark.parametrize("ties", [False, True])
def test_more_tokens_than_a_tile(keep, rule, ties):
    generator = torch.Generator().manual_seed(0)
    width = 3000
    answer_mask = torch.arange(width) < torch.randint(1, width + 1, (200, 1), generator=generator)
    entropy = torch.rand(200, width, generator=generator)
    entropy = (entropy * 4).floor() if ties else entropy
    spec, sequence_id = ForkSelection(keep=keep, rule=rule), torch.randperm(200, generator=generator)
    batch = {"entropy": entropy, "answer_mask": answer_mask, "sequence_id": sequence_id}
    whole = select(**batch, spec=spec, seed=11)
    score = {"logp": entropy, "advantages": torch.zeros(200)}
    dense = {**batch, **score}
    scores = scores_of(dense, spec, 11).masked_fill(
        ~answer_mask, -(2**63) if keep == "random" and rule == "count" else -9
    )
    n = int(answer_mask.sum())
    if rule == "threshold":
        tokens = scores[answer_mask]
        low = torch.quantile(tokens, 0.4 if keep == "band" else 0.8)
        high = torch.quantile(tokens, 0.6) if keep == "band" else tokens.max()
        expected = answer_mask & (scores >= low) & (scores <= high)
    else:
        by_key = sequence_id.argsort()
        ranked = scores[by_key].flatten().sort(stable=True, descending=True).indices
        k = spec.kept(n)
        skipped = (n - k) // 2 if keep == "band" else 0
        expected = torch.zeros(200 * width, dtype=torch.bool)
        expected[ranked[skipped : skipped + k]] = True
        expected = expected.view(200, width)[sequence_id]
    assert torch.equal(whole.mask, expected)
    parts = [rows_of(batch, slice(rank, None, 3)) for rank in range(3)]
    results, _ = over_ranks(parts, spec, seed=11)
    for rank, result in enumerate(results):
        assert torch.equal(result.mask, whole.mask[rank::3])
