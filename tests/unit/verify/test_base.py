import pytest

from forklight.types import Problem, Verdict
from forklight.verify import (
    FormatVerifier,
    MathVerifier,
    ReadsProblems,
    SortsAnswers,
    StartsEarly,
    Verifier,
    Weighted,
    WeightedVerifier,
    judge,
    sort_answers,
    start_early,
)

PROBLEMS = [Problem.make("What is 2 + 3?", "5", "school"), Problem.make("What is 2 + 4?", "6", "school")]
ANSWERS = list(zip(["5", "5"], PROBLEMS, strict=True))


class Exact:
    """Compares texts."""

    def verify_many(self, pairs):
        return [Verdict("right" if text == gold else "wrong", "exact") for text, gold in pairs]


class Prompted(Exact):
    """Wants the problem."""

    def verify_answers(self, answers):
        return [Verdict("right", problem.prompt) for _, problem in answers]


class Sorted(Exact):
    """Sorts by length."""

    def classes(self, answers):
        return [[len(text) for text in texts] for texts in answers]


def test_answers_are_judged_against_the_golds_of_their_problems():
    assert [verdict.outcome for verdict in judge(Exact(), ANSWERS)] == ["right", "wrong"]
    assert judge(Exact(), []) == []


def test_a_verifier_that_reads_problems_gets_them_instead():
    assert [verdict.reason for verdict in judge(Prompted(), ANSWERS)] == ["What is 2 + 3?", "What is 2 + 4?"]
    assert isinstance(Prompted(), ReadsProblems)
    assert not isinstance(Exact(), ReadsProblems)


@pytest.mark.parametrize("method", ["verify_many", "verify_answers"])
@pytest.mark.parametrize("change", [-2, -1, 1])
def test_another_number_of_verdicts_is_an_error(method, change):
    class Miscounts(Exact):
        pass

    setattr(Miscounts, method, lambda _, answers: [Verdict("right", "fixed")] * (len(answers) + change))
    with pytest.raises(ValueError, match=f"Miscounts gave {2 + change} verdicts for 2 answers"):
        judge(Miscounts(), ANSWERS)


def test_answers_are_sorted_by_text_unless_the_verifier_knows_better():
    lists = [["a b", "ab", "c", "a  b "], [], ["c", "C", ""]]
    assert sort_answers(Exact(), lists) == [[0, 0, 1, 0], [], [0, 1, 2]]
    assert sort_answers(Sorted(), lists) == [[3, 2, 1, 5], [], [1, 1, 0]]
    assert isinstance(Sorted(), SortsAnswers)
    assert not isinstance(Exact(), SortsAnswers)


class Slow(Exact):
    """Has something to start."""

    started = 0

    def start(self):
        self.started += 1


def test_what_takes_time_can_be_started_early():
    slow = Slow()
    start_early(slow)
    start_early(Exact())
    parts = {"form": Weighted(FormatVerifier()), "slow": Weighted(slow)}
    start_early(WeightedVerifier({"nested": Weighted(WeightedVerifier(parts)), "exact": Weighted(Exact())}))
    assert slow.started == 2
    assert not isinstance(Exact(), StartsEarly)


def test_what_a_verdict_earns():
    assert Verdict("right", "equal text").reward == 1.0
    assert Verdict("wrong", "not equal").reward == 0.0
    assert Verdict("unjudged", "time limit 3.0 s").reward == 0.0
    assert Verdict("wrong", "not equal", score=0.25).reward == 0.25
    assert Verdict("right", "fixed", score=0.0).reward == 0.0
    assert [Verdict(outcome, "").right for outcome in ("right", "wrong", "unjudged")] == [True, False, False]


def test_the_math_verifier_has_all_interfaces():
    verifier = MathVerifier()
    assert isinstance(verifier, Verifier)
    assert isinstance(verifier, ReadsProblems)
    assert isinstance(verifier, SortsAnswers)
    assert isinstance(verifier, StartsEarly)
