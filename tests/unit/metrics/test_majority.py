"""Majority votes against votes that are counted one by one."""

from itertools import combinations

import pytest
from answers import score
from hypothesis import given
from hypothesis import strategies as st

from forklight.metrics import MajAtK, majority_at_k


@pytest.mark.parametrize(
    ("right", "votes", "expected"),
    [
        pytest.param([1, 1, 0, 0, 0], [0, 0, 1, 2, 3], 1, id="most frequent is right"),
        pytest.param([1, 1, 0, 0, 0], [0, 0, 1, 1, 1], 0, id="most frequent is wrong"),
        pytest.param([1, 1, 0, 0, 0], [5, 5, 3, 3, -1], 1 / 2, id="two tied classes"),
        pytest.param([1, 0, 0, 0, 0], [4, 3, 2, 1, 0], 1 / 5, id="all different"),
        pytest.param([1, 0, 0, 0, 0], [7, -1, -1, -1, -1], 1, id="no answer cannot win"),
        pytest.param([0, 0, 0, 0, 0], [-1, -1, -1, -1, -1], 0, id="no votes at all"),
        pytest.param([1, 1, 1, 0, 0], [0, 0, 1, 1, 2], 3 / 4, id="a class judged right once of two times"),
    ],
)
def test_majority(right, votes, expected):
    assert score(MajAtK(), [right], votes=[votes]) == pytest.approx(expected)


def test_majority_is_the_mean_over_problems():
    assert score(MajAtK(), [[1, 1], [0, 0]], votes=[[0, 0], [0, 1]]) == pytest.approx(0.5)


def brute_majority(right, votes):
    classes = [vote for vote in set(votes) if vote >= 0]
    most = max((votes.count(vote) for vote in classes), default=0)
    tied = [
        [r for r, v in zip(right, votes, strict=True) if v == vote] for vote in classes if votes.count(vote) == most
    ]
    return sum(sum(group) / len(group) for group in tied) / len(tied) if tied else 0.0


@given(st.lists(st.tuples(st.booleans(), st.integers(-1, 3)), min_size=1, max_size=9), st.randoms())
def test_majority_equals_brute_force_in_any_order(pairs, random):
    pairs = [(right and vote >= 0, vote) for right, vote in pairs]
    right, votes = zip(*pairs, strict=True)
    value = score(MajAtK(), [right], votes=[votes])
    assert value == pytest.approx(brute_majority(right, votes))
    random.shuffle(pairs)
    shuffled_right, shuffled_votes = zip(*pairs, strict=True)
    assert score(MajAtK(), [shuffled_right], votes=[shuffled_votes]) == pytest.approx(value)


VOTES = st.lists(st.tuples(st.booleans(), st.integers(-1, 4)), min_size=1, max_size=8)


@given(VOTES, st.data())
def test_a_vote_of_k_is_the_mean_over_all_subsets(pairs, data):
    pairs = [(right and vote >= 0, vote) for right, vote in pairs]
    worth = {vote: [right for right, other in pairs if other == vote] for _, vote in pairs}
    k = data.draw(st.integers(1, len(pairs)))

    def vote_of(subset):
        """Ties broken evenly; a class is worth the share of right ones among all of its answers."""
        cast = [vote for _, vote in subset if vote >= 0]
        most = max(map(cast.count, cast), default=0)
        tied = {vote for vote in cast if cast.count(vote) == most}
        return sum(sum(worth[vote]) / len(worth[vote]) for vote in tied) / len(tied) if tied else 0.0

    subsets = list(combinations(pairs, k))
    right, votes = zip(*pairs, strict=True)
    expected = sum(map(vote_of, subsets)) / len(subsets)
    assert score(MajAtK(k), [right], votes=[votes]) == pytest.approx(expected, abs=1e-12)


def test_a_vote_of_one_is_the_share_of_right_answers():
    assert score(MajAtK(1), [[1, 0, 0, 1]], votes=[[0, 1, -1, 0]]) == pytest.approx(0.5)


def test_many_answers_are_no_trouble():
    """64 answers, 20 of them right, the others all different: the right class wins almost always."""
    assert majority_at_k((20, *[1] * 44), (1.0, *[0.0] * 44), 64, 64) == 1.0
    values = [majority_at_k((20, *[1] * 44), (1.0, *[0.0] * 44), k, 64) for k in (1, 2, 8, 32)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(20 / 64)
    assert values[-1] > 0.999


@pytest.mark.parametrize(("k", "n"), [(0, 3), (4, 3), (2, 2)])
def test_what_cannot_be_drawn_is_refused(k, n):
    with pytest.raises(ValueError, match=rf"k={k}, n={n}"):
        majority_at_k((2, 1), (1.0, 0.0), k, n)
