import math
import pickle

import pytest

from forklight.types import Problem, Verdict
from forklight.verify import (
    FormatVerifier,
    IntegerVerifier,
    MathVerifier,
    ReadsProblems,
    SortsAnswers,
    Verifier,
    Weighted,
    WeightedVerifier,
)

FORMS = [r"It is \boxed{5}.", r"It is \boxed{6}.", r"\boxed{5} " + "x" * 30, "5"]


class Fixed:
    """Says the same of every answer."""

    def __init__(self, verdict):
        self.verdict = verdict

    def verify_many(self, pairs):
        return [self.verdict] * len(pairs)


class NamesTheSource:
    """Rewards an answer that names the problem's source, which only the problem tells."""

    def verify_many(self, pairs):
        raise AssertionError("the problem was not passed on")

    def verify_answers(self, answers):
        return [Verdict("right" if problem.source in text else "wrong", "source") for text, problem in answers]


class Alike:
    """All answers are equal to each other."""

    def verify_many(self, pairs):
        return [Verdict("wrong", "never right")] * len(pairs)

    def classes(self, answers):
        return [[0] * len(texts) for texts in answers]


def both(weight=0.25):
    return WeightedVerifier({"answer": Weighted(IntegerVerifier()), "form": Weighted(FormatVerifier(), weight)})


def test_the_reward_is_the_weighted_sum_and_the_first_part_decides():
    verdicts = both().verify_many([(text, "5") for text in FORMS])
    assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "right", "wrong"]
    assert [verdict.reason for verdict in verdicts] == ["equal number", "not equal", "equal number", "no box"]
    assert [verdict.extracted for verdict in verdicts] == ["5", "6", "5", None]
    assert [verdict.reward for verdict in verdicts] == [1.25, 0.25, 1.0, 0.0]
    assert [dict(verdict.parts) for verdict in verdicts] == [
        {"answer": 1.0, "form": 0.25},
        {"answer": 0.0, "form": 0.25},
        {"answer": 1.0, "form": 0.0},
        {"answer": 0.0, "form": 0.0},
    ]


def test_the_order_of_the_parts_decides_which_is_the_answer():
    parts = {"form": Weighted(FormatVerifier(), 0.25), "answer": Weighted(IntegerVerifier(), 2.0)}
    verdict = WeightedVerifier(parts).verify_many([(FORMS[1], "5")])[0]
    assert (verdict.outcome, verdict.reason, verdict.reward) == ("right", "form kept", 0.25)
    assert [name for name, _ in verdict.parts] == ["form", "answer"]


def test_weights_may_be_negative_and_zero():
    assert both(-0.5).verify_many([(FORMS[0], "5")])[0].reward == 0.5
    assert both(0.0).verify_many([(FORMS[0], "5")])[0].reward == 1.0
    parts = {str(number): Weighted(FormatVerifier(), 0.1) for number in range(10)}
    assert WeightedVerifier(parts).verify_many([(FORMS[0], "5")])[0].reward == 1.0  # not 0.9999999999999999


def test_a_score_is_weighted_where_there_is_one():
    parts = {"answer": Weighted(Fixed(Verdict("right", "fixed", score=0.5)), 3.0), "form": Weighted(FormatVerifier())}
    verdict = WeightedVerifier(parts).verify_many([(FORMS[0], "5")])[0]
    assert (verdict.outcome, verdict.reward, verdict.parts) == ("right", 2.5, (("answer", 1.5), ("form", 1.0)))


@pytest.mark.parametrize("score", [None, 0.7])
def test_a_part_that_could_not_judge_gives_nothing(score):
    unjudged = Weighted(Fixed(Verdict("unjudged", "time limit 3.0 s", score=score)), 2.0)
    last = WeightedVerifier({"answer": Weighted(IntegerVerifier()), "other": unjudged}).verify_many([(FORMS[0], "5")])[
        0
    ]
    assert (last.outcome, last.reward, last.parts) == ("right", 1.0, (("answer", 1.0), ("other", 0.0)))
    first = WeightedVerifier({"other": unjudged, "form": Weighted(FormatVerifier(), 0.25)}).verify_many(
        [(FORMS[0], "5")]
    )[0]
    assert (first.outcome, first.reason) == ("unjudged", "time limit 3.0 s")
    assert dict(first.parts)["other"] == 0.0


def test_a_nested_verifier_that_could_not_judge_gives_nothing():
    """Its own form reward is no judgement of the answer."""
    unjudged = Weighted(Fixed(Verdict("unjudged", "time limit 3.0 s")))
    inner = WeightedVerifier({"answer": unjudged, "form": Weighted(FormatVerifier(), 0.25)})
    outer = WeightedVerifier({"answer": Weighted(IntegerVerifier()), "inner": Weighted(inner)})
    verdict = outer.verify_many([(FORMS[0], "5")])[0]
    assert verdict.parts == (("answer", 1.0), ("inner", 0.0))


def test_seconds_add_up():
    parts = {
        name: Weighted(Fixed(Verdict("right", "fixed", seconds=spent))) for name, spent in (("a", 0.5), ("b", 0.25))
    }
    assert WeightedVerifier(parts).verify_many([("", "")])[0].seconds == 0.75


def test_a_nested_part_that_reads_problems_gets_the_problem():
    inner = WeightedVerifier({"answer": Weighted(IntegerVerifier()), "source": Weighted(NamesTheSource(), 0.5)})
    outer = WeightedVerifier({"inner": Weighted(inner, 2.0), "form": Weighted(FormatVerifier())})
    problem = Problem.make("What is 2 + 3?", "5", source="school")
    verdicts = outer.verify_answers([(r"From school: \boxed{5}", problem), (r"\boxed{5}", problem)])
    assert [verdict.reward for verdict in verdicts] == [4.0, 3.0]
    assert verdicts[0].parts == (("inner", 3.0), ("form", 1.0))
    assert isinstance(outer, ReadsProblems)


def test_an_answer_copied_from_the_problem_earns_only_its_form():
    with MathVerifier(workers=1) as verifier:
        parts = {"answer": Weighted(verifier), "form": Weighted(FormatVerifier(), 0.25)}
        problem = Problem.make(r"What is this number: $\frac{7}{14}$", r"\frac{1}{2}", source="test")
        verdict = WeightedVerifier(parts).verify_answers([(r"\boxed{\frac{7}{14}}", problem)])[0]
    assert (verdict.outcome, verdict.reason, verdict.reward) == ("wrong", "copied from the problem", 0.25)


def test_classes_are_those_of_the_first_part():
    lists = [["5", "five", " 5"], []]
    alike = WeightedVerifier({"answer": Weighted(Alike()), "form": Weighted(FormatVerifier())})
    assert alike.classes(lists) == [[0, 0, 0], []]
    assert both().classes(lists) == [[0, 1, 0], []]  # by text: the first part does not sort
    assert isinstance(alike, SortsAnswers)


def test_a_part_that_loses_verdicts_is_an_error():
    class Loses:
        def verify_many(self, pairs):
            return [Verdict("right", "fixed")] * (len(pairs) - 1)

    verifier = WeightedVerifier({"answer": Weighted(IntegerVerifier()), "form": Weighted(Loses())})
    problem = Problem.make("What is 2 + 3?", "5", source="test")
    with pytest.raises(ValueError, match="1 verdicts for 2 answers"):
        verifier.verify_answers([(r"\boxed{5}", problem)] * 2)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        verifier.verify_many([(r"\boxed{5}", "5")] * 2)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_faulty_arguments_are_refused(weight):
    with pytest.raises(ValueError, match="the weight of form is"):
        both(weight)
    with pytest.raises(ValueError, match="at least one part"):
        WeightedVerifier({})


def test_interface_and_pickling():
    twin = pickle.loads(pickle.dumps(both()))
    assert isinstance(twin, Verifier)
    assert twin.verify_many([(FORMS[0], "5")])[0].reward == 1.25
    assert twin.verify_many([]) == []
