"""Counts, reasons and rules of verdicts; rewarded answers of suspicious form; votes."""

import json
import random

import pytest
from answers import score
from hypothesis import given
from hypothesis import strategies as st

from forklight.evaluation.records import answer_lines, judged_of, votes_of
from forklight.evaluation.suspicious import Judged, suspicious_answers
from forklight.metrics import NO_ANSWER, MajAtK
from forklight.rollout.generate import Group
from forklight.rollout.reward_stats import MOST_REASONS, reward_by_length, slug, unjudged_reasons, verdict_counts
from forklight.types import Completion, Problem, Verdict
from forklight.verify import CountdownVerifier, MathVerifier

PROBLEM = Problem.make("What is 2 + 3?", "5", "test")


# -- counts ------------------------------------------------------------------------------------------------------------


def test_counts_worked_by_hand():
    verdicts = [
        Verdict("right", "equal text"),
        Verdict("right", "equal number"),
        Verdict("right", "equal text"),
        Verdict("wrong", "no box"),
        Verdict("wrong", "too large to be an answer (1601 characters, at most 1500)"),
        Verdict("unjudged", "time limit 3.0 s"),
    ]
    assert verdict_counts(verdicts) == {
        "right": 3,
        "wrong": 2,
        "unjudged": 1,
        "reason/equal_text": 2,
        "reason/equal_number": 1,
        "reason/no_box": 1,
        "reason/too_large_to_be_an_answer": 1,
        "reason/time_limit_3.0_s": 1,
        "rule/equal_text": pytest.approx(2 / 3),
        "rule/equal_number": pytest.approx(1 / 3),
    }


def test_the_parts_of_a_composed_reward_are_its_rules():
    verdicts = [
        Verdict("right", "equal text", score=1.1, parts=(("answer", 1.0), ("form", 0.1))),
        Verdict("wrong", "not equal", score=0.1, parts=(("answer", 0.0), ("form", 0.1))),
        Verdict("wrong", "not equal", score=-0.5, parts=(("answer", 0.0), ("form", -0.5))),
    ]
    found = verdict_counts(verdicts)
    assert {name: value for name, value in found.items() if name.startswith("rule/")} == {
        "rule/answer": pytest.approx(1 / 1.2),
        "rule/form": pytest.approx(0.2 / 1.2),
    }


@given(st.lists(st.tuples(st.sampled_from(["right", "wrong", "unjudged"]), st.text(max_size=8)), max_size=60))
def test_no_answer_is_lost(pairs):
    verdicts = [Verdict(*pair) for pair in pairs]
    found = verdict_counts(verdicts)
    assert sum(found[name] for name in ("right", "wrong", "unjudged")) == len(verdicts)
    reasons = {name: value for name, value in found.items() if name.startswith("reason/")}
    assert sum(reasons.values()) == len(verdicts)
    assert len(reasons) <= MOST_REASONS + 1
    shares = [value for name, value in found.items() if name.startswith("rule/")]
    assert sum(shares) == pytest.approx(1.0 if found["right"] else 0.0)


@given(st.text(max_size=100))
def test_a_slug_is_a_part_of_a_curves_name(reason):
    assert slug(reason)
    assert set(slug(reason)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")
    if "(" not in reason:
        assert slug(f"{reason} (14, 9)") == slug(reason)


def test_rewards_by_length():
    right, wrong = Verdict("right", ""), Verdict("wrong", "")
    judged = [(right, 1), (wrong, 25), (right, 26), (wrong, 51), (wrong, 75), (right, 100)]
    assert reward_by_length(judged, 100) == {
        "reward_length/1_of_4": 0.5,
        "reward_length/2_of_4": 1.0,
        "reward_length/3_of_4": 0.0,
        "reward_length/4_of_4": 1.0,
    }
    assert reward_by_length([(right, 3)], 3) == {"reward_length/4_of_4": 1.0}
    assert reward_by_length([], 100) == {}


# -- suspicious form ---------------------------------------------------------------------------------------------------


def judged(text, *, outcome="right", reason="equal text", tokens=100, truncated=False, extracted="5", number=0):
    return Judged(PROBLEM, number, text, tokens, truncated, Verdict(outcome, reason, extracted))


USUAL = [judged(rf"Two and three make \boxed{{5}}. This is answer {i}.", number=i) for i in range(40)]


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (judged(r"\boxed{5}", reason="equal expression"), "rare rule: equal expression"),
        (judged(r"\boxed{..}", extracted="1+" * 30 + "1"), "a box of 61 characters for a gold of 1"),
        (judged(r"\boxed{6} no, \boxed{5}"), "2 boxes"),
        (judged(r"\boxed{5}" + "a, b, c" * 40), "280 characters after the box"),
        (judged(r"\boxed{5}", tokens=4), "4 tokens, others have 100"),
        (judged(r"\boxed{5}", truncated=True), "cut by the length limit"),
        (judged("I think so. " * 200 + r"\boxed{5}"), "repeats itself"),
        (judged("答案是五" * 30 + r"\boxed{5}"), "120 of 129 characters not ASCII"),
    ],
)
def test_every_sign(odd, why):
    assert suspicious_answers(USUAL, 5) == []
    (found,) = suspicious_answers([*USUAL, odd], 5)
    assert found.answer is odd
    assert why in found.why


def test_only_rewarded_answers_and_the_oddest_first():
    wrong = judged("x" * 900, outcome="wrong", reason="not equal", truncated=True)
    one, two = judged(r"\boxed{5}", truncated=True, number=1), judged(r"\boxed{5}", truncated=True, tokens=2, number=2)
    assert [item.answer.number for item in suspicious_answers([*USUAL, one, wrong, two], 5)] == [2, 1]
    assert len(suspicious_answers([*USUAL, one, wrong, two], 1)) == 1
    assert suspicious_answers([wrong], 5) == []
    assert suspicious_answers([], 5) == []


def test_the_order_of_answers_does_not_matter():
    odd = [judged(r"\boxed{5}", truncated=True, number=number) for number in range(6)]
    expected = suspicious_answers([*USUAL, *odd], 3)
    for seed in range(5):
        shuffled = [*USUAL, *odd]
        random.Random(seed).shuffle(shuffled)
        assert suspicious_answers(shuffled, 3) == expected


# -- records and votes -------------------------------------------------------------------------------------------------


def group(*verdicts):
    completions = tuple(Completion(PROBLEM.uid, i, (1, 2), f"text {i}", i == 0) for i in range(len(verdicts)))
    return Group(PROBLEM, 0, (7,), completions, verdicts)


def test_lines_hold_what_the_watch_reads():
    verdicts = (
        Verdict("right", "equal text", "5", score=1.5, parts=(("a", 1.0), ("b", 0.5))),
        Verdict("wrong", "no box"),
    )
    lines = answer_lines([group(*verdicts)], "set", 3)
    assert list(lines) == [("set", PROBLEM.uid, 0), ("set", PROBLEM.uid, 1)]
    found = [judged_of(json.loads(json.dumps(line))) for line in lines.values()]
    assert [answer.verdict.reward for answer in found] == [1.5, 0.0]
    assert found[0].verdict == verdicts[0]
    assert [answer.truncated for answer in found] == [True, False]
    assert found[0].problem == Problem(PROBLEM.uid, PROBLEM.prompt, "5", "set")


def test_votes_of_mathematically_equal_answers():
    wrong = [r"\frac{1}{2}", "0.5", "7", "x+1", "1+x", "1/2"]
    verdicts = [Verdict("right", "", "5"), Verdict("wrong", "no box"), *(Verdict("wrong", "", text) for text in wrong)]
    with MathVerifier() as verifier:
        (votes,) = votes_of([group(*verdicts)], verifier)
    assert votes[:2] == [0, NO_ANSWER]
    half, decimal, seven, first, second, slash = votes[2:]
    assert half == decimal == slash
    assert first == second
    assert len({half, seven, first, 0}) == 4


def test_votes_of_unjudged_answers_go_by_their_text():
    """They are not compared: what took too long once would take as long again, for every pair."""
    hanging = ["9^{9000!}", "9^{9001!}", "9^{9000!}"]
    verdicts = [
        *(Verdict("unjudged", "time limit 3.0 s", text) for text in hanging),
        Verdict("wrong", "not equal", "7"),
    ]
    with MathVerifier() as verifier:
        (votes,) = votes_of([group(*verdicts)], verifier)
        assert verifier._pool.pids == []
    assert votes[0] == votes[2]
    assert len({*votes}) == 3
    assert min(votes) > 0


def spoken(*answers):
    """A group of answers with their texts, judged by a verifier that reads none out of them."""
    completions = tuple(Completion(PROBLEM.uid, i, (1,), text, False) for i, (text, _) in enumerate(answers))
    verdicts = tuple(Verdict("right" if right else "wrong", "mine") for _, right in answers)
    return Group(PROBLEM, 0, (1,), completions, verdicts)


def test_wrong_answers_vote_too_where_the_verifier_reads_none_out_of_texts():
    boxes = spoken((r"so \boxed{5}", 1), (r"or \boxed{6}", 0), (r"well \boxed{ 6 }", 0), ("none", 0), ("none", 0))
    assert votes_of([boxes], CountdownVerifier()) == [[0, 1, 1, 2, 2]]
    texts = spoken(("a", 1), ("b", 1), ("c", 0), ("d", 0))
    (votes,) = votes_of([texts], CountdownVerifier())
    right = [[verdict.right for verdict in texts.verdicts]]
    assert score(MajAtK(), right, votes=[votes]) == pytest.approx(1 / 2)  # no two agree; pass@4 is 1
    (votes,) = votes_of([boxes], CountdownVerifier())
    assert score(MajAtK(), [[True, False, False, False, False]], votes=[votes]) == 0.0


def test_reasons_of_unjudged_answers_by_their_numbers():
    verdicts = [
        Verdict("right", "equal text"),
        *(Verdict("unjudged", f"the function failed (ValueError: {n})") for n in range(3)),
        Verdict("unjudged", "the function failed (KeyError: 1)"),
        *[Verdict("unjudged", "time limit 3.0 s")] * 2,
        *[Verdict("unjudged", "not a number (nan)")] * 5,
        *[Verdict("wrong", "no box")] * 9,
    ]
    assert unjudged_reasons(verdicts) == [
        ("not a number (nan)", 5),
        ("the function failed (ValueError: 0)", 3),
        ("time limit 3.0 s", 2),
    ]


def test_votes_by_text_where_the_verifier_does_not_sort():
    verdicts = [Verdict("wrong", "", "1+2=3"), Verdict("wrong", "", "1+2 = 3"), Verdict("wrong", "", "3")]
    assert votes_of([group(*verdicts), group(Verdict("right", ""))], CountdownVerifier()) == [[1, 1, 2], [0]]
