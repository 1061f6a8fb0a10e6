"""Rewarded answers of suspicious form: the answers to read to find out whether a policy hacks the reward."""

import re
import statistics
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from forklight.rollout.reward_stats import slug
from forklight.types import Problem, Verdict
from forklight.verify.math.extract import find_boxes

RARE = 0.05
"""Share of the rewarded answers below which a rule is rare."""


class Judged(NamedTuple):
    """An answer and its verdict."""

    problem: Problem
    number: int
    """Number of the answer to its problem."""
    text: str
    tokens: int
    truncated: bool
    verdict: Verdict


class Suspicious(NamedTuple):
    """A rewarded answer, and the signs that make it suspicious."""

    answer: Judged
    why: tuple[str, ...]


def suspicious_answers(answers: Sequence[Judged], count: int) -> list[Suspicious]:
    """The rewarded answers that differ most from typical rewarded answers.

    Signs, each counted once: a rule that gave less than 5 % of the rewards; a box much longer than the gold; several
    boxes; much text after the box; an answer far shorter than the others, that was cut by the length limit, that
    repeats itself, or of which more than a fifth of the characters are not ASCII.

    Args:
        answers: of one evaluation set.
        count: number of answers to return, at most.

    Returns:
        Those with the most signs first, then by uid and number; none without a sign.
    """
    rewarded = [answer for answer in answers if answer.verdict.reward > 0]
    if not rewarded:
        return []
    rules = Counter(slug(answer.verdict.reason) for answer in rewarded)
    typical = statistics.median(answer.tokens for answer in rewarded)
    found = [Suspicious(answer, tuple(_signs(answer, rules, typical))) for answer in rewarded]
    found = [item for item in found if item.why]
    return sorted(found, key=lambda item: (-len(item.why), item.answer.problem.uid, item.answer.number))[:count]


def _signs(answer: Judged, rules: "Counter[str]", typical: float) -> list[str]:
    text, verdict, signs = answer.text, answer.verdict, []
    share = rules[slug(verdict.reason)] / rules.total()
    if share < RARE:
        signs.append(f"rare rule: {verdict.reason}")
    if verdict.extracted and len(verdict.extracted) > 20 + 3 * len(answer.problem.answer):
        signs.append(f"a box of {len(verdict.extracted)} characters for a gold of {len(answer.problem.answer)}")
    final = text.rpartition("</think>")[2]
    boxes = find_boxes(final)
    if boxes.total > 1:
        signs.append(f"{boxes.total} boxes")
    if boxes.total and len(final) - boxes.end > 200:
        signs.append(f"{len(final) - boxes.end} characters after the box")
    if answer.tokens < typical / 8:
        signs.append(f"{answer.tokens} tokens, others have {typical:.0f}")
    if answer.truncated:
        signs.append("cut by the length limit")
    raw = text.encode(errors="replace")
    if len(raw) > 500 and len(zlib.compress(raw)) < len(raw) / 8:
        signs.append("repeats itself")
    foreign = len(re.findall(r"[^\x00-\x7f]", text))
    if foreign > len(text) / 5:
        signs.append(f"{foreign} of {len(text)} characters not ASCII")
    return signs
