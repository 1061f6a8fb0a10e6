import time

import pytest

from forklight.verify import MathVerifier
from forklight.verify.math.prose import marked_answer


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(extraction="any", workers=1) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18", "18"),
        ("the answer is: 18", "18"),
        ("The answer is $18.", "$18."),
        ("Answer: 18", "18"),
        ("answer = 18", "18"),
        ("FINAL ANSWER: x", "x"),
        ("The final answer is x = 3", "x = 3"),
        ("Final answer: 18", "18"),
        ("So the answer is 18", "18"),
        ("So, the answer is 18", "18"),
        ("Thus, the final answer is 18", "18"),
        ("Therefore the answer is 18", "18"),
        ("Hence, answer: 18", "18"),
        ("A: 18", "18"),
        ("A : 18", "18"),
        ("#### 18", "18"),
        ("####18", "18"),
        ("16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18\n\n", "18"),
        ("x" * 1000 + "\n  The answer is 18  ", "18"),
        ("The answer is 17.\nThe answer is 18.", "18."),
        ("The answer is " + "1" * 280, "1" * 280),
    ],
)
def test_the_rest_of_a_last_line_that_says_it_is_the_answer(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "18",
        "It is 18",
        "The answer is",
        "Answer:",
        "####",
        "### 18",
        "The answer is 5, I think.\nOr 6.",
        "I say the answer is 18",
        "We know that the answer is 18",
        "Not so the answer is 18",
        "The answer, 18",
        "The answer to that is 18",
        "The answers are 18 and 19",
        "The answer isn't 18",
        "Answers: 18",
        "Question A: 18",
        "BA: 18",
        "The answer is " + "1" * 290,
        "x" * 290 + " The answer is 18",
    ],
)
def test_other_last_lines_are_not_marked(text):
    assert marked_answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "I doubt that" + " " * 285 + "the answer is 18\n",
        "I doubt that " + "the answer is 18".ljust(300, "\n"),
        "It is not so that " + "the answer is 18" + " " * (300 - 16),
        "Nobody knows, so " + "#### 18" + " \n" * 147,
    ],
)
def test_a_line_that_is_cut_off_is_not_read_as_if_it_began_there(text):
    """The mark stands within a line, at the edge of the characters that are looked at."""
    assert marked_answer(text) is None


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        # a marked number on the last line
        ("16 - 3 - 4 = 9\nThe answer is $18.", "18"),
        ("#### 1,000", "1000"),
        ("Answer: -3", "-3"),
        (r"A: $\frac{1}{2}$", "0.5"),
        ("So the answer is 50%", "0.5"),
        # other places
        ("The final answer is $(x+1)^2$. I hope it is correct.", "x^2+2x+1"),
        ("The answer is $x=5$.", "5"),
        ("We get $x = 5$.", "5"),
        ("Hence there are 42 ways.", "42"),
        ("Let me see. 3 + 4 is 7, and so 7 apples are left.", "7"),
        (r"It follows that $n = \sqrt{12}$.", r"2\sqrt{3}"),
        ("Final Answer: The final answer is $\\sqrt{3}/3$.", r"\frac{1}{\sqrt{3}}"),
        ("<think>It is 6.</think> The answer is 5.", "5"),
        # derivations
        ("$x = 5+5+1 = 11$", "11"),
        ("The total is $5+5+1 = 11$.", "11"),
        (r"The answer is $A = \frac{1}{2} \cdot 4 \cdot 3 = 6$", "6"),
        (r"So $x = \sqrt{2} \approx 1.41$.", r"\sqrt{2}"),
        (r"$\binom{5}{2} = \frac{5!}{2! 3!} = 10$", "10"),
        # golds that are solutions
        ("The answer is 5.", r"We add them and get \boxed{5}."),
        ("The answer is 5.", "Adding both sides gives $x = 5$."),
    ],
)
def test_any_finds_the_answer(verifier, text, gold):
    verdict = verifier.verify_many([(text, gold)])[0]
    assert verdict.outcome == "right", verdict


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("", "5"),
        ("I do not know.", "5"),
        ("The answer is 5", "6"),
        ("The answer is \u0665", "5"),
        ("The answer is 15", "5"),
        ("The answer is -5", "5"),
        ("The answer is 0.5", "5"),
        ("The answer is 1/5", "5"),
        ("The answer is 5 / 6", "5"),
        ("The answer is 5 + 6", "5"),
        ("The answer is 10^{-5}", "5"),
        ("The answer is 1,5", "5"),
        ("The answer is 9^9^9^9", "5"),
        ("The final answer is $6$. I hope it is correct. Or $5$.", "5"),
        ("The answer is 6.\nOr 5.", "7"),
        # a box is looked at alone
        (r"The answer is 5. \boxed{6}", "5"),
        (r"The answer is 5. \boxed{", "5"),
        (r"The answer is 5. \boxed{}", "5"),
        (r"The answer is \boxed 5", "5"),
        # thoughts are no answers
        ("<think>5</think> I give up", "5"),
        ("<think>The answer is 5.</think> I give up", "5"),
        ("<think>The answer is 5.", "5"),
        # lists are not each of their items
        ("The answer is $5$ or $6$", "5"),
        ("The answer is $5$ or $6$", "6"),
        ("The answer is $5, 6$", "6"),
        ("The answer is either 5 or 6", "6"),
        ("We have $x = 5$ and $y = 6$", "5"),
        # relations are no values
        ("$x^2-1=0$", "0"),
        ("We get $x^2-1=0$.", "0"),
        ("The answer is $x > 5$", "5"),
        ("$x = 5+5+1 = 11$", "5"),
        (r"The answer is $5 \approx 6$", "6"),
        (r"$y = 2x + 1 = 5$", "5"),
    ],
)
def test_any_pays_for_nothing_else(verifier, text, gold):
    verdict = verifier.verify_many([(text, gold)])[0]
    assert verdict.outcome == "wrong", verdict


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("x^2-1=0", "0"),
        ("We get x^2-1=0.", "0"),
        ("The answer is 5x", "5"),
        ("The answer is 5\u00b2", "5"),
        ("The answer is 5 million", "5"),
        ("The answer is 5 or 6", "5"),
        ("The answer is 5, 6", "5"),
    ],
)
def test_a_part_of_an_answer_is_not_the_answer(verifier, text, gold):
    verdict = verifier.verify_many([(text, gold)])[0]
    assert verdict.outcome == "wrong", verdict


def test_the_reason_where_nothing_is_found(verifier):
    verdicts = verifier.verify_many([("I do not know.", "5"), ("<think>5", "5"), (r"\boxed{}", "5")])
    assert [verdict.reason for verdict in verdicts] == ["no answer found", "thought not ended", "empty box"]
    assert [verdict.extracted for verdict in verdicts] == [None] * 3


def test_what_was_found_is_recorded(verifier):
    verdicts = verifier.verify_many([("The answer is 5.", "5"), ("So it is $6$, then.", "5")])
    assert [verdict.extracted for verdict in verdicts] == ["5.", "6"]


@pytest.fixture(scope="module")
def hasty():
    with MathVerifier(extraction="any", timeout=1.0, workers=1) as verifier:
        verifier.verify_many([(r"\boxed{x+y}", "y+x")])
        yield verifier


@pytest.mark.parametrize("unit", ["answer is ", "$", "$5$ and ", "1", "1 ", "5.", "\\frac{", "(", "$\\frac{1}{", "=5"])
def test_hostile_prose_is_judged_within_the_limit(hasty, unit):
    text = "The answer is " + unit * (100_000 // len(unit))
    start = time.perf_counter()
    verdict = hasty.verify_many([(text, "7")])[0]
    assert time.perf_counter() - start < 10
    assert verdict.outcome != "right"
