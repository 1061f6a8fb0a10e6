import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forklight.algo.selection import ForkSelection, select

scores = st.sampled_from([0.0, -0.0, 0.1, 0.5, 2.0]) | st.floats(0, 10, width=32)
rhos = st.sampled_from([0.01, 0.2, 0.5, 0.8, 1.0]) | st.floats(0.001, 1)
ranked = st.sampled_from(["top", "bottom"])
keeps = st.sampled_from(["top", "bottom", "random", "all"])


@st.composite
def batches(draw, max_rows=6):
    """Entropies with ties, answers of any length (also none), and unique row keys in any order."""
    rows, width = draw(st.integers(1, max_rows)), draw(st.integers(1, 7))
    values = draw(st.lists(scores, min_size=rows * width, max_size=rows * width))
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    keys = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows, unique=True))
    answer_mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    entropy = torch.tensor(values, dtype=torch.float64).view(rows, width)
    return torch.where(answer_mask, entropy, 99.0), answer_mask, torch.tensor(keys)


def sorted_choice(entropy, answer_mask, row_key, spec):
    """The definition: sort all eligible tokens and keep the first k."""
    sign = -1 if spec.keep == "top" else 1
    tokens = answer_mask.nonzero().tolist()
    tokens.sort(key=lambda token: (sign * entropy[tuple(token)].item(), row_key[token[0]].item(), token[1]))
    kept = tokens[: spec.kept(len(tokens))]
    mask = torch.zeros_like(answer_mask)
    for row, column in kept:
        mask[row, column] = True
    return mask, entropy[tuple(kept[-1])].item() if kept else None


def over_ranks(parts, spec, **kwargs):
    """Calls `select` in one thread per rank; the results, and the number of collectives of each rank."""
    barrier, shared, calls = threading.Barrier(len(parts)), [None] * len(parts), [0] * len(parts)
    results = [None] * len(parts)

    def run(rank):
        def reduce(tensor):
            shared[rank] = tensor
            barrier.wait(10)
            total = torch.stack(list(shared)).sum(dim=0)
            barrier.wait(10)
            calls[rank] += 1
            return total

        entropy, answer_mask, row_key = parts[rank]
        try:
            results[rank] = select(entropy, answer_mask, spec, row_key=row_key, reduce=reduce, **kwargs)
        except ValueError as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, calls


@settings(deadline=None, max_examples=150)
@given(batches(), rhos, ranked)
def test_equals_sorting_everything(batch, rho, keep):
    entropy, answer_mask, row_key = batch
    spec = ForkSelection(rho=rho, keep=keep)
    result = select(entropy, answer_mask, spec, row_key=row_key)
    mask, threshold = sorted_choice(entropy, answer_mask, row_key, spec)
    assert torch.equal(result.mask, mask)
    assert result.threshold.isnan() if threshold is None else result.threshold == threshold


@settings(deadline=None, max_examples=80)
@given(batches(), rhos, keeps, st.integers(0, 9))
def test_count_is_exact_and_padding_is_never_kept(batch, rho, keep, seed):
    entropy, answer_mask, row_key = batch
    spec = ForkSelection(rho=rho, keep=keep)
    result = select(entropy, answer_mask, spec, row_key=row_key, seed=seed)
    assert result.mask.sum() == result.count == spec.kept(int(answer_mask.sum()))
    assert not (result.mask & ~answer_mask).any()
    if rho == 1 or keep == "all":
        assert torch.equal(result.mask, answer_mask)


@settings(deadline=None, max_examples=80)
@given(batches(), rhos, keeps, st.randoms(use_true_random=False), st.integers(0, 3))
def test_order_of_rows_and_padding_do_not_matter(batch, rho, keep, random, padding):
    entropy, answer_mask, row_key = batch
    spec = ForkSelection(rho=rho, keep=keep)
    order = random.sample(range(len(row_key)), len(row_key))
    expected = select(entropy, answer_mask, spec, row_key=row_key, seed=5)
    wide_entropy = torch.nn.functional.pad(entropy[order], (0, padding), value=99.0)
    wide_mask = torch.nn.functional.pad(answer_mask[order], (0, padding))
    actual = select(wide_entropy, wide_mask, spec, row_key=row_key[order], seed=5)
    assert torch.equal(actual.mask[:, : entropy.shape[1]], expected.mask[order])
    torch.testing.assert_close(actual.threshold, expected.threshold, rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(batches(), rhos, ranked)
def test_strictly_monotone_maps_do_not_matter(batch, rho, keep):
    entropy, answer_mask, row_key = batch
    spec = ForkSelection(rho=rho, keep=keep)
    ranks = torch.searchsorted(entropy.unique(), entropy).double()  # order only, exact in every dtype
    expected = select(entropy, answer_mask, spec, row_key=row_key).mask
    for mapped in (ranks, (ranks - 20).half(), ranks.float() ** 3 - 7, 2.0 ** (ranks * 20 - 500)):
        assert torch.equal(select(mapped, answer_mask, spec, row_key=row_key).mask, expected)


@settings(deadline=None, max_examples=40)
@given(batches(max_rows=7), rhos, keeps, st.integers(2, 3), st.randoms(use_true_random=False))
def test_spread_over_ranks_equals_one_rank(batch, rho, keep, ranks, random):
    entropy, answer_mask, row_key = batch
    spec = ForkSelection(rho=rho, keep=keep)
    owner = torch.tensor([random.randrange(ranks) for _ in row_key])
    parts = []
    for rank in range(ranks):
        mine = owner == rank
        width = int(answer_mask[mine].sum(dim=1).max()) if mine.any() else 0  # every rank pads to its own longest
        parts.append((entropy[mine, :width], answer_mask[mine, :width], row_key[mine]))
    whole = select(entropy, answer_mask, spec, row_key=row_key, seed=2)
    results, calls = over_ranks(parts, spec, seed=2)
    for rank, result in enumerate(results):
        expected = whole.mask[owner == rank]
        assert torch.equal(result.mask, expected[:, : result.mask.shape[1]])
        assert not expected[:, result.mask.shape[1] :].any()
        assert result.count == whole.count
        torch.testing.assert_close(result.threshold, whole.threshold, rtol=0, atol=0, equal_nan=True)
    assert len(set(calls)) == 1


def test_number_of_collectives_is_fixed_also_on_a_rank_without_tokens():
    torch.manual_seed(0)
    answers = (torch.rand(4, 6), torch.ones(4, 6).bool(), torch.arange(4))
    nothing = (torch.zeros(0, 9), torch.zeros(0, 9).bool(), torch.arange(0))
    results, calls = over_ranks([answers, nothing, nothing], ForkSelection())
    assert calls == [26, 26, 26]
    assert [result.count.item() for result in results] == [5, 5, 5]
    assert results[1].mask.shape == (0, 9)
    assert over_ranks([nothing, nothing], ForkSelection())[1] == [1, 1]


@pytest.mark.parametrize("fault", ["nan", "row_key"])
def test_fault_on_one_rank_is_an_error_on_all(fault):
    parts = [(torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.arange(2) + 2 * rank) for rank in range(2)]
    if fault == "nan":
        parts[1][0][0, 1] = torch.nan
    else:
        parts[1] = (*parts[1][:2], parts[0][2])
    results, _ = over_ranks(parts, ForkSelection(rho=0.4))
    message = "1 of 12 eligible entropies are NaN" if fault == "nan" else "row_key must be unique over all ranks"
    assert all(message in str(result) for result in results)


def test_random_share_holds_for_any_cut_into_ranks():
    answer_mask = torch.arange(40) < torch.randint(1, 41, (60, 1), generator=torch.Generator().manual_seed(0))
    spec, row_key = ForkSelection(keep="random"), torch.arange(60)
    whole = select(None, answer_mask, spec, row_key=row_key, seed=11)
    assert whole.count == spec.kept(int(answer_mask.sum()))
    parts = [(None, answer_mask[rank::3], row_key[rank::3]) for rank in range(3)]
    results, _ = over_ranks(parts, spec, seed=11)
    for rank, result in enumerate(results):
        assert torch.equal(result.mask, whole.mask[rank::3])
