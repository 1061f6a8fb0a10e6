import itertools
import math
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forklight.metrics import (
    AnswerMetric,
    AvgAtK,
    AvgStandardError,
    MajAtK,
    MeanLength,
    PassAtK,
    TruncatedShare,
    answer_metrics,
    pass_at_k,
)
from forklight.types import Problem

UIDS = [Problem.make(f"problem {number}", "0", "test").uid for number in range(12)]


def answers(right, votes=None, truncated=None, length=None):
    """Arguments of `update` after the uid; by default right answers are class 0, each wrong one is its own class."""
    right = torch.tensor(right, dtype=torch.bool)
    own = torch.arange(1, right.shape[1] + 1).expand_as(right)
    return {
        "right": right,
        "votes": torch.where(right, 0, own) if votes is None else torch.tensor(votes),
        "truncated": torch.zeros_like(right) if truncated is None else torch.tensor(truncated, dtype=torch.bool),
        "length": torch.ones_like(own) if length is None else torch.tensor(length),
    }


def score(metric: AnswerMetric, right, **more) -> float:
    metric.update(UIDS[: len(right)], **answers(right, **more))
    return metric.compute().item()


# pass@k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (16, 1, 8, 0.5),
        (16, 1, 16, 1.0),
        (4, 2, 2, 1 - 1 / 6),
        (10, 3, 1, 0.3),
        (5, 0, 5, 0.0),
        (5, 5, 1, 1.0),
        (5, 4, 2, 1.0),
    ],
)
def test_pass_at_k_hand_worked(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_counts_all_subsets(n):
    for c in range(n + 1):
        right = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(right, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(n=st.integers(1, 300), data=st.data())
def test_pass_at_k_is_a_probability_that_grows(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    value = pass_at_k(n, c, k)
    assert 0 <= value <= 1
    assert value >= c / n - 1e-12
    if k < n:
        assert pass_at_k(n, c, k + 1) >= value
    if c < n:
        assert pass_at_k(n, c + 1, k) >= value


@pytest.mark.parametrize(("n", "c", "k"), [(0, 0, 1), (4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


# Scores worked by hand


RIGHT = [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]  # shares 1/2, 1/4, 0


def test_avg_is_the_mean_share():
    assert score(AvgAtK(), RIGHT) == pytest.approx(0.25)


def test_standard_error_over_problems():
    # mean 1/4; squared deviations 1/16, 0, 1/16; variance 1/16; / 3 problems
    assert score(AvgStandardError(), RIGHT) == pytest.approx(math.sqrt(1 / 48))


def test_standard_error_of_decoding():
    # sum p(1-p) = 1/4 + 3/16 = 7/16; / (n-1 = 3); root / N
    assert score(AvgStandardError("decoding"), RIGHT) == pytest.approx(math.sqrt(7 / 48) / 3)


def test_standard_errors_are_undefined_for_a_single_unit():
    assert math.isnan(score(AvgStandardError(), [[1, 0]]))
    assert math.isnan(score(AvgStandardError("decoding"), [[1], [0]]))


def test_standard_error_over_problems_matches_a_simulation():
    # Problems of very different difficulty: repeat the whole evaluation and look at the spread of avg@n.
    generator = torch.Generator().manual_seed(0)
    difficulty = torch.rand(2000, 40, 1, generator=generator) ** 2
    right = torch.rand(2000, 40, 4, generator=generator) < difficulty
    spread = right.double().mean(dim=(1, 2)).std()
    uids = [Problem.make(str(number), "", "").uid for number in range(40)]
    estimates = []
    for once in right[:50]:
        metric = AvgStandardError()
        metric.update(uids, **answers(once.tolist()))
        estimates.append(metric.compute())
    assert torch.stack(estimates).mean().item() == pytest.approx(spread.item(), rel=0.1)


def test_pass_at_two():
    # 1 - C(2,2)/C(4,2) = 5/6; 1 - C(3,2)/C(4,2) = 1/2; 0
    assert score(PassAtK(2), RIGHT) == pytest.approx((5 / 6 + 1 / 2) / 3)


def test_truncated_share_and_length():
    assert score(TruncatedShare(), RIGHT, truncated=[[0, 0, 0, 1]] * 3) == 0.25
    assert score(MeanLength(), RIGHT, length=[[1, 2, 3, 4], [5, 5, 5, 5], [0, 0, 0, 0]]) == pytest.approx(2.5)


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


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12))
def test_identities(right):
    avg = score(AvgAtK(), right)
    assert score(PassAtK(1), right) == pytest.approx(avg)
    assert score(PassAtK(4), right) == pytest.approx(sum(map(any, right)) / len(right))
    # The variance between problems can never be smaller than what avg allows, and is 0 for equal shares.
    if len(right) > 1 and len({sum(row) for row in right}) == 1:
        assert score(AvgStandardError(), right) == 0


# Counting each problem once


def test_a_problem_seen_twice_counts_once():
    metric = AvgAtK()
    metric.update(UIDS[:2], **answers([[1, 1], [0, 0]]))
    metric.update(UIDS[:1], **answers([[1, 1]]))
    metric.update([UIDS[2], UIDS[0]], **answers([[0, 0], [1, 1]]))
    assert metric.compute().item() == pytest.approx(1 / 3)


def test_the_first_answers_to_a_problem_count():
    metric = AvgAtK()
    metric.update(UIDS[:1], **answers([[1, 1]]))
    metric.update(UIDS[:1], **answers([[0, 0]]))
    assert metric.compute().item() == 1


@given(st.permutations(range(12)), st.integers(1, 12), st.lists(st.integers(0, 11), max_size=12))
def test_order_batches_and_repeats_change_no_bit(order, size, repeats):
    rows = torch.arange(36).reshape(12, 3) % 7 < 3
    collections = [answer_metrics(3), answer_metrics(3)]
    collections[0].update(UIDS, **answers(rows.tolist()))
    shown = [*order, *repeats]
    for start in range(0, len(shown), size):
        part = shown[start : start + size]
        collections[1].update([UIDS[index] for index in part], **answers(rows[part].tolist()))
    whole, parts = (collection.compute() for collection in collections)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_single_uid_takes_one_row():
    metric = AvgAtK()
    metric.update(UIDS[0], **{name: value[0] for name, value in answers([[1, 0]]).items()})
    assert metric.compute().item() == 0.5


def test_reset_forgets():
    metric = AvgAtK()
    metric.update(UIDS[:1], **answers([[1, 1]]))
    metric.reset()
    metric.update(UIDS[1:2], **answers([[0, 0, 1]]))
    assert metric.compute().item() == pytest.approx(1 / 3)


DISTRIBUTED = """
    import sys, torch
    import torch.distributed as dist
    from forklight.metrics import answer_metrics
    from forklight.types import Problem

    rank, file = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    uids = [Problem.make(str(number), "", "").uid for number in range(3)]
    right = torch.tensor([[1, 1], [1, 0], [0, 0]], dtype=torch.bool)
    metrics = answer_metrics(2)
    for shard in ([0, 2], [1, 0]), ([], [1]):  # padded: problem 0 is seen by both ranks; an empty batch on rank 0
        rows = shard[rank]
        votes = torch.where(right[rows], 0, 1)
        metrics.update([uids[row] for row in rows], right[rows], votes, ~right[rows], torch.ones_like(votes))
    values = metrics.compute()
    assert abs(values["avg@2"] - 0.5) < 1e-12, values
    assert abs(values["pass@2"] - 2 / 3) < 1e-12, values
    assert abs(values["truncated"] - 0.5) < 1e-12, values
    dist.destroy_process_group()
"""


def test_two_ranks_with_a_padded_shard(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(DISTRIBUTED))
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)


# The collection


def test_collection_names_and_shared_states():
    metrics = answer_metrics(8, prefix="val/aime24/")
    metrics.update(UIDS[:2], **answers([[1] * 8, [0] * 8]))
    values = metrics.compute()
    assert set(values) == {
        f"val/aime24/{name}"
        for name in (
            "avg@8",
            "avg@8_se",
            "avg@8_se_decoding",
            "maj@8",
            "pass@2",
            "pass@4",
            "pass@8",
            "truncated",
            "length",
        )
    }
    assert len(metrics.compute_groups) == 1
    assert values["val/aime24/avg@8"] == 0.5
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in values.values())


def test_collection_of_one_answer_has_only_what_one_answer_defines():
    assert set(answer_metrics(1).keys()) == {"avg@1", "avg@1_se", "maj@1", "truncated", "length"}


# Refusals


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"right": torch.ones(2, 3)}, TypeError, "`right` must be torch.bool"),
        ({"votes": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "`votes` must be torch.int64"),
        ({"length": torch.ones(2, 4, dtype=torch.int64)}, ValueError, r"`length` must be .* got \(2, 4\)"),
        ({"uid": UIDS[:3]}, ValueError, "B=3 uids"),
        ({"uid": [UIDS[0], "short"]}, ValueError, "uid 'short'"),
        ({"votes": torch.full((2, 3), -2)}, ValueError, "class numbers"),
        ({"votes": torch.full((2, 3), -1)}, ValueError, "right has no vote"),
    ],
)
def test_malformed_updates_are_refused(change, error, message):
    arguments = {"uid": UIDS[:2], **answers([[1, 0, 0], [0, 0, 0]])} | change
    with pytest.raises(error, match=message):
        AvgAtK().update(**arguments)


def test_changing_n_and_too_small_n_are_refused():
    metric = AvgAtK()
    metric.update(UIDS[:1], **answers([[1, 0]]))
    with pytest.raises(ValueError, match="n changed from 2 to 3"):
        metric.update(UIDS[1:2], **answers([[1, 0, 0]]))
    with pytest.raises(ValueError, match="at least 4 answers per problem, got n=2"):
        PassAtK(4).update(UIDS[:1], **answers([[1, 0]]))


def test_empty_evaluation_is_refused():
    metric = AvgAtK()
    empty = torch.empty(0, 4, dtype=torch.bool)
    metric.update([], right=empty, votes=empty.long(), truncated=empty, length=empty.long())
    with pytest.raises(ValueError, match="evaluation set is empty"):
        metric.compute()


@pytest.mark.parametrize("build", [lambda: PassAtK(0), lambda: AvgStandardError("seeds"), lambda: answer_metrics(0)])
def test_bad_settings_are_refused(build):
    with pytest.raises(ValueError, match=r"at least 1|at least one|must be 'problems'"):
        build()
