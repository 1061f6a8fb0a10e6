import itertools
import math
import subprocess
import sys
import textwrap

import pytest
import torch
from answers import UIDS, answers, score
from hypothesis import given
from hypothesis import strategies as st

from forklight.metrics import (
    AnswerScores,
    AvgAtK,
    AvgStandardError,
    MajAtK,
    MeanLength,
    PassAtK,
    TruncatedShare,
    UnjudgedShare,
    pass_at_k,
)
from forklight.metrics.scores import shown_k
from forklight.types import Problem

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
    length = [[1, 2, 3, 4], [5, 5, 5, 5], [0, 0, 0, 0]]
    assert score(MeanLength(), RIGHT, length=length) == pytest.approx(2.5)
    assert score(MeanLength("right"), RIGHT, length=length) == pytest.approx(8 / 3)  # 1, 2 and 5
    assert score(MeanLength("wrong"), RIGHT, length=length) == pytest.approx(22 / 9)
    assert math.isnan(score(MeanLength("right"), [[0, 0]]))


def test_unjudged_share():
    metric = UnjudgedShare()
    unjudged = torch.tensor([[True, False], [False, False]])
    metric.update(UIDS[:2], **answers([[0, 1], [0, 0]]), unjudged=unjudged)
    metric.update(UIDS[2:4], **answers([[0, 1], [0, 0]]))  # not given: none
    assert metric.compute() == 1 / 8


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
    collections = [AnswerScores(3), AnswerScores(3)]
    collections[0].update(UIDS, **answers(rows.tolist()))
    shown = [*order, *repeats]
    for start in range(0, len(shown), size):
        part = shown[start : start + size]
        collections[1].update([UIDS[index] for index in part], **answers(rows[part].tolist()))
    whole, parts = (collection.compute() for collection in collections)
    assert whole.keys() == parts.keys()
    assert all(whole[name].equal(parts[name]) or (whole[name].isnan() and parts[name].isnan()) for name in whole)


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
    from forklight.metrics import AnswerScores
    from forklight.types import Problem

    rank, file = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    uids = [Problem.make(str(number), "", "").uid for number in range(3)]
    right = torch.tensor([[1, 1], [1, 0], [0, 0]], dtype=torch.bool)
    metrics = AnswerScores(2)
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


def test_names_and_values_of_all_scores():
    metrics = AnswerScores(8)
    metrics.update(UIDS[:2], **answers([[1] * 8, [0] * 8]))
    values = metrics.compute()
    assert set(values) == {
        "avg@8", "avg@8_se", "avg@8_se_decoding", *(f"pass@{k}" for k in range(2, 9)), "maj@2", "maj@4", "maj@8",
        "truncated", "unjudged", "length", "length_right", "length_wrong",
    }  # fmt: skip
    assert values["avg@8"] == values["maj@4"] == values["pass@3"] == 0.5
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in values.values())


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_pass_at_every_k_equals_brute_force(right):
    metrics = AnswerScores(5)
    metrics.update(UIDS[: len(right)], **answers(right))
    values = metrics.compute()
    for k in range(2, 6):
        chances = [
            sum(map(any, subsets)) / len(subsets) for row in right if (subsets := list(itertools.combinations(row, k)))
        ]
        assert values[f"pass@{k}"].item() == pytest.approx(sum(chances) / len(right), abs=1e-12)


def test_one_answer_has_only_what_one_answer_defines():
    metrics = AnswerScores(1)
    metrics.update(UIDS[:2], **answers([[1], [0]]))
    assert set(metrics.compute()) == {
        "avg@1", "avg@1_se", "truncated", "unjudged", "length", "length_right", "length_wrong",
    }  # fmt: skip


def test_scores_equal_the_single_classes():
    right, length = [[1, 0, 1], [0, 0, 0], [1, 1, 1]], [[5, 9, 2], [4, 4, 4], [7, 1, 3]]
    votes = [[0, 1, 0], [1, 1, 2], [0, 0, 0]]
    metrics = AnswerScores(3)
    metrics.update(UIDS[:3], **answers(right, votes=votes, length=length))
    found = metrics.compute()
    for name, single in {
        "avg@3": AvgAtK(), "avg@3_se": AvgStandardError(), "pass@2": PassAtK(2), "maj@3": MajAtK(), "maj@2": MajAtK(2),
        "length_right": MeanLength("right"), "length_wrong": MeanLength("wrong"),
    }.items():  # fmt: skip
        assert found[name].item() == score(single, right, votes=votes, length=length), name


@pytest.mark.parametrize(("n", "shown"), [(1, []), (2, [2]), (3, [2, 3]), (8, [2, 4, 8]), (12, [2, 4, 8, 12])])
def test_which_k_are_shown(n, shown):
    assert shown_k(n) == shown


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


@pytest.mark.parametrize(
    "build",
    [
        lambda: PassAtK(0),
        lambda: AvgStandardError("seeds"),
        lambda: AnswerScores(0),
        lambda: MajAtK(0),
        lambda: MeanLength("long"),
    ],
)
def test_bad_settings_are_refused(build):
    with pytest.raises(ValueError, match=r"at least 1|at least one|must be 'problems'|must be 'all'"):
        build()
