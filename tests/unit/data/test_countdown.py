import hashlib
import re
from collections import Counter
from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forklight.data.countdown import (
    HELD_OUT_COUNT,
    HELD_OUT_SHA256,
    LARGEST_RESULT,
    CountdownTask,
    Puzzle,
    countdown_problems,
    countdown_puzzle,
    held_out_problems,
    reachable,
    solutions,
    split_of,
    worked_example,
    worked_trace,
)

TASKS = st.sampled_from([CountdownTask(), CountdownTask(counts=(4,)), CountdownTask(counts=(2, 3, 4), high=9)])
SPLITS = st.sampled_from(["train", "eval"])
NUMBERS = st.lists(st.integers(1, 20), min_size=2, max_size=4).map(tuple)
CALCULATE = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def last_result(answer: str, numbers: tuple[int, ...]) -> int:
    """Reads a worked answer as a strict human would; fails on any broken rule."""
    left_over = Counter(numbers)
    result = -1
    for line in answer.split(";"):
        match = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", line)
        assert match, line
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        left_over.subtract([left, right])
        assert min(left_over.values()) >= 0, f"{line} uses a number that is not there"
        assert match[2] != "/" or left % right == 0
        assert CALCULATE[match[2]](left, right) == result
        assert 0 <= result <= LARGEST_RESULT
        left_over[result] += 1
    assert left_over.total() == 1
    return result


def brute_force(numbers: list[int]) -> set[int]:
    """Every reachable result, by trying all ordered pairs."""
    if len(numbers) == 1:
        return set(numbers)
    found: set[int] = set()
    for i, j in permutations(range(len(numbers)), 2):
        others = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for operator, calculate in CALCULATE.items():
            if operator == "/" and (numbers[j] == 0 or numbers[i] % numbers[j]):
                continue
            result = calculate(numbers[i], numbers[j])
            if 0 <= result <= LARGEST_RESULT:
                found |= brute_force([*others, result])
    return found


@given(TASKS, SPLITS, st.integers(0, 5), st.integers(0, 10**6))
def test_a_puzzle_is_in_range_solvable_and_in_its_split(task, split, seed, index):
    puzzle = countdown_puzzle(task, split, seed, index)
    assert len(puzzle.numbers) in task.counts
    assert all(task.low <= number <= task.high for number in puzzle.numbers)
    assert task.target_low <= puzzle.target <= task.target_high
    assert split_of(tuple(sorted(puzzle.numbers))) == split
    assert last_result(next(solutions(puzzle)), puzzle.numbers) == puzzle.target


@given(st.lists(st.integers(1, 20), min_size=2, max_size=3).map(tuple))
def test_reachable_agrees_with_brute_force(numbers):
    assert reachable(numbers) == brute_force(list(numbers))


def test_reachable_agrees_with_brute_force_for_four_numbers():
    assert reachable((3, 8, 8, 20)) == brute_force([3, 8, 8, 20])


@given(NUMBERS)
def test_solutions_are_different_and_right(numbers):
    for target in sorted(reachable(numbers))[::7]:
        found = list(solutions(Puzzle(target, numbers)))
        assert found
        assert len(set(found)) == len(found)
        assert all(last_result(answer, numbers) == target for answer in found)


def test_an_unreachable_target_has_no_solution():
    puzzle = Puzzle(100, (1, 1, 1))
    assert list(solutions(puzzle)) == []
    with pytest.raises(ValueError, match="hits 100"):
        worked_trace(puzzle, Random(0), hit=True)


@given(NUMBERS, st.randoms(use_true_random=False), st.booleans())
def test_a_trace_is_right_arithmetic_and_ends_as_asked(numbers, rng, hit):
    puzzle = Puzzle(rng.choice(sorted(reachable(numbers))), numbers)
    answer = worked_trace(puzzle, Random(rng.random()), hit)
    assert (last_result(answer, numbers) == puzzle.target) == hit


@given(NUMBERS, st.randoms(use_true_random=False))
def test_a_miss_stays_within_the_range_it_can_keep(numbers, rng):
    puzzle = Puzzle(rng.choice(sorted(reachable(numbers))), numbers)
    others = reachable(numbers) - {puzzle.target}
    result = last_result(worked_trace(puzzle, rng, hit=False, largest_miss=30), numbers)
    assert result <= 30 or min(others) > 30


def test_traces_cover_every_solution():
    puzzle = Puzzle(20, (2, 3, 14))
    traces = {worked_trace(puzzle, Random(seed), hit=True) for seed in range(2000)}
    assert set(solutions(puzzle)) == traces
    assert "3*2=6;14+6=20" in traces


def test_results_above_the_largest_are_never_written():
    assert 20 * 20 * 20 not in reachable((20, 20, 20))
    assert max(reachable((20, 20, 20, 20))) == 820 == max(brute_force([20, 20, 20, 20]))


@given(TASKS, st.integers(0, 1000))
def test_examples_are_pure_functions_of_their_index(task, index):
    first = worked_example(index, task)
    assert worked_example(index, task) == first
    assert worked_example(index, task, seed=1) != first


def test_example_shows_prompt_with_colon_and_bare_steps():
    example = worked_example(0)
    assert re.fullmatch(r"reach \d+ from \d+, \d+, \d+:", example.prompt)
    assert re.fullmatch(r"\d+[-+*/]\d+=\d+;\d+[-+*/]\d+=\d+", example.answer)


@pytest.mark.parametrize("hit_share", [0.0, 0.4, 1.0])
def test_hit_share_of_examples(hit_share):
    size, hits = 1000, 0
    for index in range(size):
        example = worked_example(index, hit_share=hit_share)
        target, *numbers = map(int, re.findall(r"\d+", example.prompt))
        hits += last_result(example.answer, tuple(numbers)) == target
    assert abs(hits / size - hit_share) <= 4 * (hit_share * (1 - hit_share) / size) ** 0.5


def test_examples_come_from_the_training_split():
    multisets = {tuple(sorted(map(int, re.findall(r"\d+", worked_example(i).prompt)[1:]))) for i in range(500)}
    assert {split_of(numbers) for numbers in multisets} == {"train"}


def test_held_out_problems_are_the_committed_ones():
    problems = held_out_problems()
    assert len(problems) == HELD_OUT_COUNT == 256
    assert len({problem.uid for problem in problems}) == 256
    assert hashlib.sha256("\n".join(problem.prompt for problem in problems).encode()).hexdigest() == HELD_OUT_SHA256


def test_no_multiset_of_numbers_is_in_both_splits():
    def multisets(split):
        problems = countdown_problems(1000, split=split)
        return {tuple(sorted(map(int, re.findall(r"\d+", problem.answer)[1:]))) for problem in problems}

    assert not multisets("train") & multisets("eval")


def test_problems_are_different_and_a_longer_list_begins_with_the_shorter():
    problems = countdown_problems(200, CountdownTask(counts=(3, 4)))
    assert countdown_problems(50, CountdownTask(counts=(3, 4))) == problems[:50]
    assert len({problem.uid for problem in problems}) == 200
    assert countdown_problems(50, CountdownTask(counts=(3, 4)), seed=1) != problems[:50]


def test_problem_text():
    problem = Puzzle(62, (3, 9, 14)).problem()
    assert (problem.prompt, problem.answer, problem.source) == (
        "reach 62 from 3, 9, 14",
        "62 from 3, 9, 14",
        "countdown",
    )


def test_too_few_problems_is_an_error_with_the_numbers():
    with pytest.raises(ValueError, match=r"wanted 500 .* found \d+"):
        countdown_problems(500, CountdownTask(counts=(2,), high=3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": ()},
        {"counts": (5,)},
        {"low": 0},
        {"low": 9, "high": 8},
        {"target_high": 1000},
        {"target_low": 7, "target_high": 6},
    ],
)
def test_a_wrong_task_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        CountdownTask(**wrong)


def test_hit_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"hit_share.*1\.5"):
        worked_example(0, hit_share=1.5)
