import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.selection import select
from forklight.algo.selection.census import Census, bounds_of, decided_by, extremes, overlap, within
from forklight.algo.selection.spec import ForkSelection

V = 7
PARTS = ("", "_right", "_wrong", "_first_third", "_last_third")


@st.composite
def answers(draw):
    """Answers as (right, tokens), a token as (kept, id, entropy or NaN)."""
    entropy = st.one_of(st.just(math.nan), st.sampled_from([0.0, 0.25, 1.5]))
    token = st.tuples(st.booleans(), st.integers(0, V - 1), entropy)
    return draw(st.lists(st.tuples(st.booleans(), st.lists(token, max_size=9)), max_size=6))


def census(answers):
    tokens = [(row, column, *token) for row, (_, all_) in enumerate(answers) for column, token in enumerate(all_)]
    row, column, kept, ids, entropy = zip(*tokens, strict=True) if tokens else ((),) * 5
    return Census(
        kept=torch.tensor(kept, dtype=torch.bool),
        ids=torch.tensor(ids, dtype=torch.int64),
        row=torch.tensor(row, dtype=torch.int64),
        column=torch.tensor(column, dtype=torch.int64),
        entropy=torch.tensor(entropy, dtype=torch.float32),
        length=torch.tensor([len(all_) for _, all_ in answers], dtype=torch.int64),
        right=torch.tensor([right for right, _ in answers], dtype=torch.bool),
    )


def naive_counts(answers):
    found = dict.fromkeys([f"{name}{part}" for name in ("eligible", "kept") for part in PARTS], 0)
    found |= dict.fromkeys(["seen", "seen_kept", "entropy", "entropy_kept"], 0)
    for right, tokens in answers:
        for column, (kept, _, entropy) in enumerate(tokens):
            place = column / len(tokens)
            first, last = place < 1 / 3 - 1e-9, place >= 2 / 3 - 1e-9
            for part, here in zip(PARTS, (True, right, not right, first, last), strict=True):
                found[f"eligible{part}"] += here
                found[f"kept{part}"] += here and kept
            if not math.isnan(entropy):
                found["seen"] += 1
                found["seen_kept"] += kept
                found["entropy"] += entropy
                found["entropy_kept"] += entropy * kept
    return found


@given(answers())
def test_counts_are_those_of_a_loop(answers):
    counts = census(answers).counts()
    assert {name: value.item() for name, value in counts.items()} == naive_counts(answers)


@given(answers(), st.integers(0, 6))
def test_counts_add_up_over_ranks(answers, cut):
    parts = [census(answers[:cut]).counts(), census(answers[cut:]).counts()]
    whole = census(answers).counts()
    assert {name: (parts[0][name] + parts[1][name]).item() for name in whole} == {k: v.item() for k, v in whole.items()}


@given(answers())
def test_row_shares_and_types_are_those_of_a_loop(answers):
    found = census(answers)
    for share, (_, tokens) in zip(found.row_shares().tolist(), answers, strict=True):
        expected = sum(kept for kept, _, _ in tokens) / len(tokens) if tokens else math.nan
        assert share == expected or (math.isnan(share) and math.isnan(expected))
    kept_types = {token for _, tokens in answers for kept, token, _ in tokens if kept}
    types = {token for _, tokens in answers for _, token, _ in tokens}
    expected = [[token in kept_types for token in range(V)], [token in types for token in range(V)]]
    assert found.types(V).tolist() == expected


def test_thirds_of_a_short_answer():
    # columns 0, 1, 2, 3 of 4: 0 and 1 start before a third, 3 starts behind two thirds
    one = census([(True, [(column == 3, 0, 0.5) for column in range(4)])]).counts()
    assert (one["eligible_first_third"], one["eligible_last_third"]) == (2, 1)
    assert (one["kept_first_third"], one["kept_last_third"]) == (0, 1)


@given(st.lists(st.floats(-5, 5) | st.just(math.nan)))
def test_extremes_pass_over_nan(values):
    largest, minus_smallest = extremes(torch.tensor(values, dtype=torch.float64)).tolist()
    numbers = [value for value in values if not math.isnan(value)]
    assert largest == max(numbers, default=-math.inf)
    assert minus_smallest == -min(numbers, default=math.inf)


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_overlap_is_the_jaccard_index(pairs):
    mask, other = torch.tensor(pairs, dtype=torch.bool).view(-1, 2).unbind(1)
    first, second = ({i for i, pair in enumerate(pairs) if pair[which]} for which in (0, 1))
    found = overlap(mask, other)
    assert (int(found["both"]), int(found["either"])) == (len(first & second), len(first | second))


@pytest.mark.parametrize("keep", ["top", "bottom", "band", "low_probability"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 10**6), rho=st.floats(0.01, 0.99))
def test_the_bounds_of_a_selection_give_its_mask_back(keep, dtype, seed, rho):
    noise = torch.Generator().manual_seed(seed)
    entropy, logp = (torch.rand(4, 9, generator=noise, dtype=dtype) for _ in range(2))  # without ties
    eligible = torch.rand(4, 9, generator=noise) < 0.8
    eligible[0, 0] = True
    spec = ForkSelection(rho=rho, keep=keep)
    found = select(entropy, eligible, spec, logp=-logp)
    kept = entropy[found.mask]
    bounds = bounds_of(spec, float(found.threshold), (float(kept.min()), float(kept.max())))
    scores = {"entropy": entropy, "logp": -logp}[decided_by(spec)]
    assert torch.equal(within(scores, bounds) & eligible, found.mask)


@pytest.mark.parametrize("keep", ["random", "all", "covariance"])
def test_bounds_of_sets_decide_about_no_token(keep):
    spec = ForkSelection(keep=keep)
    assert decided_by(spec) is None
    assert bounds_of(spec, math.nan, (0.1, 0.2)) == (-math.inf, math.inf)


def test_no_bounds_hold_an_unseen_token():
    assert within(torch.tensor([math.nan, 1.0]), (-math.inf, math.inf)).tolist() == [False, True]
