"""Statistics of verdicts: counts, reasons, sources of reward."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from forklight.types import Verdict

MOST_REASONS = 12
"""Number of reasons that get their own curve, the most frequent ones; the rest is `other`."""

LENGTH_BINS = 4
"""Bins of answer lengths: quarters of the length limit."""


def verdict_counts(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Numbers of answers by outcome and by reason, and the share of the reward that each rule gave.

    Args:
        verdicts: of any number of answers.

    Returns:
        `right`, `wrong`, `unjudged`; `reason/<reason>` for every reason; `rule/<rule>`, shares of all reward above 0,
        if there is any. A rule is a part of a composed reward, else the reason of a right answer.
    """
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    counts = {name: float(outcomes[name]) for name in ("right", "wrong", "unjudged")}
    reasons = Counter(slug(verdict.reason) for verdict in verdicts)
    counts |= {f"reason/{name}": float(count) for name, count in _largest(reasons).items()}
    given: dict[str, float] = defaultdict(float)
    for verdict in verdicts:
        for name, reward in verdict.parts or ((verdict.reason, verdict.reward),):
            if reward > 0 and verdict.outcome != "unjudged":
                given[slug(name)] += reward
    total = sum(given.values())
    return counts | {f"rule/{name}": value / total for name, value in _largest(given).items()}


def unjudged_reasons(verdicts: Iterable[Verdict], most: int = 3) -> list[tuple[str, int]]:
    """The most frequent reasons why answers could not be judged, with their numbers.

    Reasons that differ behind their first colon only, as messages of one kind of error do, are counted as one and shown
    as the first of them.

    Args:
        verdicts: of any number of answers.
        most: number of reasons.
    """
    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    for verdict in verdicts:
        if verdict.outcome == "unjudged":
            kind = verdict.reason.partition(":")[0]
            counts[kind] += 1
            shown.setdefault(kind, verdict.reason)
    return [(shown[kind], count) for kind, count in counts.most_common(most)]


def reward_by_length(judged: Iterable[tuple[Verdict, int]], limit: int) -> dict[str, float]:
    """Mean reward of short and of long answers.

    Args:
        judged: verdicts with the numbers of tokens.
        limit: the length limit in tokens.

    Returns:
        `reward_length/1_of_4` to `reward_length/4_of_4`, by quarters of the limit; none for a quarter without answers.
    """
    bins: dict[int, list[float]] = defaultdict(list)
    for verdict, tokens in judged:
        bins[min(max(tokens * LENGTH_BINS - 1, 0) // limit, LENGTH_BINS - 1)].append(verdict.reward)
    return {f"reward_length/{i + 1}_of_{LENGTH_BINS}": sum(bins[i]) / len(bins[i]) for i in sorted(bins)}


def slug(reason: str) -> str:
    """A reason as part of a curve's name: without brackets at its end, and with letters, digits and dots only.

    Example:
        >>> slug("worker died (exit code -9)"), slug("time limit 3.0 s")
        ('worker_died', 'time_limit_3.0_s')
    """
    bare = re.sub(r"\s*\(.*\)$", "", reason, flags=re.DOTALL)
    return re.sub(r"[^A-Za-z0-9.]+", "_", bare).strip("_")[:60] or "none"


def _largest(counts: Mapping[str, float]) -> dict[str, float]:
    """The largest counts by name, in a fixed order, and the sum of the others."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ranked[:MOST_REASONS])
    rest = sum(count for _, count in ranked[MOST_REASONS:])
    return kept | ({"other": rest} if rest else {})
