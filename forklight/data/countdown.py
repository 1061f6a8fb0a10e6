"""Countdown: reach a target from a few whole numbers with + - * /, every number used exactly once.

A problem reads ``reach 47 from 8, 8, 17`` and a worked answer ``8*8=64;64-17=47``: one step after the other, each with
its result, the last result being the target. Every result is a whole number from 0 to 999 and divisions are exact.

Problem *i* of a split is a pure function of (task, split, seed, i), so a run can stop, resume or shard anywhere. A
multiset of numbers belongs to exactly one split, decided by its hash: no held-out problem is a training problem in
another order or with another target.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from random import Random
from typing import Literal, NamedTuple

from forklight.types import Problem

PROMPT_TEMPLATE = "{problem}:"
"""The base policy's complete template. The answer follows the colon without a blank: each token costs time."""

LARGEST_RESULT = 999
"""Results above this are not allowed: 0 .. 999 are single tokens of the base policy."""

HELD_OUT_COUNT = 256
HELD_OUT_SHA256 = "74d5d18ef2c2e4eec0cfee8063fe7bc0b82871e66bb7d631f3df4eff4c942a0c"
"""Checksum of the prompts, one a line, of `held_out_problems()`: scores are comparable only if it holds."""

MAX_DRAWS = 10_000
"""Draws without a fitting problem after which a task is refused as impossible."""

Split = Literal["train", "eval"]


@dataclass(frozen=True)
class CountdownTask:
    """The kind of problems.

    Args:
        counts: How many numbers a problem has; each problem draws one entry, so with `(3, 3, 4)` a third of the
            problems have four numbers.
        low: Smallest number.
        high: Largest number.
        target_low: Smallest target.
        target_high: Largest target.

    Raises:
        ValueError: If a range is empty or exceeds the numbers that results may have.
    """

    counts: tuple[int, ...] = (3,)
    low: int = 1
    high: int = 20
    target_low: int = 1
    target_high: int = 100

    def __post_init__(self) -> None:
        if not self.counts or not all(2 <= size <= 4 for size in self.counts):
            raise ValueError(f"counts must hold 2, 3 or 4 (numbers of a problem), got {self.counts}")
        if not 1 <= self.low <= self.high <= LARGEST_RESULT:
            raise ValueError(f"low .. high must lie within 1 .. {LARGEST_RESULT}, got {self.low} .. {self.high}")
        if not 0 <= self.target_low <= self.target_high <= LARGEST_RESULT:
            bounds = f"{self.target_low} .. {self.target_high}"
            raise ValueError(f"target_low .. target_high must lie within 0 .. {LARGEST_RESULT}, got {bounds}")


class Puzzle(NamedTuple):
    """A target and the numbers to reach it from, in the order shown."""

    target: int
    numbers: tuple[int, ...]

    def problem(self) -> Problem:
        """Returns the puzzle as a problem; its gold, `62 from 3, 9, 14`, is what the verifier parses."""
        gold = f"{self.target} from {', '.join(map(str, self.numbers))}"
        return Problem.make(f"reach {gold}", gold, source="countdown")


class Step(NamedTuple):
    """One line of arithmetic and the sorted numbers that are left after it, its result among them."""

    left: int
    operator: str
    right: int
    result: int
    remaining: tuple[int, ...]

    def text(self) -> str:
        """Returns `left operator right = result` without blanks."""
        return f"{self.left}{self.operator}{self.right}={self.result}"


@lru_cache(maxsize=1 << 14)
def possible_steps(numbers: tuple[int, ...]) -> tuple[Step, ...]:
    """Returns every different valid step from sorted numbers, the larger operand on the left.

    Args:
        numbers: Two or more whole numbers in ascending order.
    """
    steps: dict[tuple[int, str, int], Step] = {}
    for low, high in combinations(range(len(numbers)), 2):
        right, left = numbers[low], numbers[high]
        others = numbers[:low] + numbers[low + 1 : high] + numbers[high + 1 :]
        results = {"+": left + right, "-": left - right, "*": left * right}
        if right and left % right == 0:
            results["/"] = left // right
        for operator, result in results.items():
            if result <= LARGEST_RESULT:
                steps[left, operator, right] = Step(left, operator, right, result, tuple(sorted((*others, result))))
    return tuple(steps.values())


@lru_cache(maxsize=1 << 17)
def _reachable_bits(numbers: tuple[int, ...]) -> int:
    """Returns a bit set: bit t is set if t can be reached from the sorted numbers."""
    if len(numbers) == 1:
        return 1 << numbers[0]
    bits = 0
    for step in possible_steps(numbers):
        bits |= _reachable_bits(step.remaining)
    return bits


def reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    """Returns every whole number that can be reached with all the numbers."""
    bits = _reachable_bits(tuple(sorted(numbers)))
    return frozenset(value for value in range(LARGEST_RESULT + 1) if bits >> value & 1)


def solutions(puzzle: Puzzle) -> Iterator[str]:
    """Yields every worked answer that hits the target; of commutative operands the larger one comes first."""

    def descend(numbers: tuple[int, ...], written: tuple[str, ...]) -> Iterator[str]:
        if len(numbers) == 1:
            yield ";".join(written)
            return
        for step in possible_steps(numbers):
            if _reachable_bits(step.remaining) >> puzzle.target & 1:
                yield from descend(step.remaining, (*written, step.text()))

    if _reachable_bits(tuple(sorted(puzzle.numbers))) >> puzzle.target & 1:
        yield from descend(tuple(sorted(puzzle.numbers)), ())


def worked_trace(puzzle: Puzzle, rng: Random, hit: bool, largest_miss: int = LARGEST_RESULT) -> str:
    """Writes one random worked answer with right arithmetic that uses every number once.

    Each step is drawn evenly from those after which the answer can still end as asked. The larger operand is on the
    left: with both orders a policy has twice the arithmetic to learn, and learns to reach targets half as fast.

    Args:
        puzzle: Target and numbers.
        rng: Source of randomness; only `random()` is called, whose values are the same in every Python version.
        hit: Whether the last result is the target, or anything else.
        largest_miss: A miss ends at or below this if it can. Misses within the range of targets train the same
            arithmetic as hits.

    Raises:
        ValueError: If the numbers allow no such answer.
    """
    ordered = tuple(sorted(puzzle.numbers))
    reached = _reachable_bits(ordered)
    target_bit = 1 << puzzle.target
    others = reached & ~target_bit
    wanted = reached & target_bit if hit else others & ((1 << largest_miss + 1) - 1) or others
    if not wanted:
        raise ValueError(f"no worked answer from {puzzle.numbers} that {'hits' if hit else 'misses'} {puzzle.target}")
    numbers, written = ordered, []
    while len(numbers) > 1:
        steps = [step for step in possible_steps(numbers) if _reachable_bits(step.remaining) & wanted]
        step = steps[int(rng.random() * len(steps))]
        written.append(step.text())
        numbers = step.remaining
    return ";".join(written)


@lru_cache(maxsize=1 << 14)
def split_of(numbers: tuple[int, ...]) -> Split:
    """Returns the split that a sorted multiset of numbers belongs to, with every target: one in ten is held out."""
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


def _rng(*key: object) -> Random:
    """Returns a generator that is a pure function of the key."""
    return Random(int.from_bytes(hashlib.sha256(repr(key).encode()).digest(), "big"))


def _draw_puzzle(task: CountdownTask, split: Split, rng: Random) -> Puzzle:
    """Draws numbers evenly within the split, then a target evenly from those within range and reach."""
    in_range = (1 << task.target_high + 1) - (1 << task.target_low)
    for _ in range(MAX_DRAWS):
        size = task.counts[int(rng.random() * len(task.counts))]
        numbers = tuple(task.low + int(rng.random() * (task.high - task.low + 1)) for _ in range(size))
        ordered = tuple(sorted(numbers))
        targets = _reachable_bits(ordered) & in_range
        if targets and split_of(ordered) == split:
            for _ in range(int(rng.random() * targets.bit_count())):
                targets &= targets - 1  # clears the lowest bit
            return Puzzle((targets & -targets).bit_length() - 1, numbers)
    raise ValueError(f"{MAX_DRAWS} draws gave no problem of split {split!r} for {task}")


def countdown_puzzle(task: CountdownTask, split: Split, seed: int, index: int) -> Puzzle:
    """Returns puzzle number `index` of a split: solvable, and the same whatever was called before."""
    return _draw_puzzle(task, split, _rng("puzzle", task, split, seed, index))


def countdown_problems(
    size: int, task: CountdownTask | None = None, split: Split = "train", seed: int = 0
) -> list[Problem]:
    """Returns the first `size` different puzzles of a split as problems; the order of numbers makes no difference.

    Args:
        size: Number of problems.
        task: The kind of problems; three numbers by default.
        split: `train` or `eval`; no multiset of numbers is in both.
        seed: Which endless sequence of puzzles to read.

    Raises:
        ValueError: If the task has too few different problems; the default task has about 15000 for training.

    Example:
        >>> countdown_problems(1)[0].prompt
        'reach 16 from 13, 4, 12'
    """
    task = task or CountdownTask()
    found: dict[tuple[int, ...], Problem] = {}
    for index in range(MAX_DRAWS + 10 * size):
        if len(found) == size:
            return list(found.values())
        puzzle = countdown_puzzle(task, split, seed, index)
        found.setdefault((puzzle.target, *sorted(puzzle.numbers)), puzzle.problem())
    raise ValueError(f"wanted {size} different problems of split {split!r}, found {len(found)} for {task}")


def held_out_problems() -> list[Problem]:
    """Returns the fixed problems on which the demo is scored: three numbers from 1 .. 20, targets 1 .. 100."""
    return countdown_problems(HELD_OUT_COUNT, CountdownTask(), "eval", seed=0)


class WorkedTrace(NamedTuple):
    """One example for the cold start; the loss is on the answer and the EOS after it."""

    prompt: str
    answer: str


def worked_example(
    index: int, task: CountdownTask | None = None, hit_share: float = 0.5, split: Split = "train", seed: int = 0
) -> WorkedTrace:
    """Returns example number `index` of an endless sequence of prompts, template applied, with worked answers.

    Args:
        index: Number of the example; each is a pure function of all arguments.
        task: The kind of problems; three numbers by default.
        hit_share: Probability that the answer reaches the target; otherwise its arithmetic is right but it ends
            elsewhere. A policy trained on this knows how to hit without always doing so.
        split: Where the numbers come from.
        seed: Which sequence.

    Raises:
        ValueError: If `hit_share` is no probability.
    """
    if not 0 <= hit_share <= 1:
        raise ValueError(f"hit_share must lie within 0 .. 1, got {hit_share}")
    task = task or CountdownTask()
    rng = _rng("worked", task, split, seed, index)
    puzzle = _draw_puzzle(task, split, rng)
    answer = worked_trace(puzzle, rng, rng.random() < hit_share, largest_miss=task.target_high)
    return WorkedTrace(PROMPT_TEMPLATE.format(problem=puzzle.problem().prompt), answer)
