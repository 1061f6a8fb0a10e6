import time

import pytest

from forklight.types import Problem
from forklight.verify import MathVerifier
from forklight.verify.math.copied import copied, copied_terms
from forklight.verify.math.latex import clean

PROBLEM = r"Let $n = 10$. Compute $\binom{10}{3}$, and round nothing."


@pytest.mark.parametrize(
    "problem",
    [
        r"$\binom{10}{3}$",
        r"Compute $\binom{10}{3}$.",
        r"Compute \(\binom{10}{3}\).",
        "Evaluate\n\\[\\binom{10}{3}\\]",
        "Evaluate\n$$\\binom{10}{3}.$$",
        r"What is \binom{10}{3}?",
        r"Compute: $\binom{10}{3}$",
        r"What is $\binom{10}{3}$ equal to?",
        r"$x = 5$. What is $\displaystyle \binom{10}{3}$, if anything?",
    ],
)
def test_a_term_of_the_problem_is_copied_wherever_it_stands(problem):
    assert copied(r"\binom{10}{3}", "120", problem)


@pytest.mark.parametrize(
    ("answer", "gold", "problem"),
    [
        (r"\frac{7}{14}", r"\frac{1}{2}", r"Simplify: $\frac{7}{14}$."),
        (r"\tfrac{7}{14}", r"\frac{1}{2}", r"Simplify: $\dfrac{7}{14}$."),
        (r"\frac 7{14}", r"\frac{1}{2}", r"Simplify: $\frac{7}{14}$."),
        ("7/14", r"\frac{1}{2}", "Simplify: 7/14."),
        (r"\frac{3}{20}", "0.15", r"Write $\frac{3}{20}$ as a decimal."),
        ("8/2", "4", "Simplify: 8/2."),
        (r"\sqrt{12}", r"2\sqrt{3}", r"Simplify: $\sqrt{12}$."),
        ("2^{10}", "1024", "What is this: $2^{10}$?"),
        ("(x+1)^2", "x^2+2x+1", "Expand: $(x + 1)^2$."),
        ("x^2 + 2x + 1", "(x+1)^2", "Factor: $x^2+2x+1$."),
        (r"12 \times 12", "144", r"Multiply: $12\times 12$"),
        (r"3 \times 10^{8}", "300000000", r"Write this out: $3 \times 10^8$".replace("10^8", "10^{8}")),
        (r"\left(x+1\right)^2", "x^2+2x+1", "Expand: $(x+1)^2$."),
        (r"\int_0^1 x\,dx", r"\frac{1}{2}", r"Integrate: $\int_0^1 x \, dx$"),
    ],
)
def test_a_term_is_copied_whatever_the_layout(answer, gold, problem):
    assert copied(answer, gold, problem)


@pytest.mark.parametrize(
    "answer",
    [
        r"{\binom{10}{3}}",
        r"(\binom{10}{3})",
        r"\left(\binom{10}{3}\right)",
        r"+\binom{10}{3}",
        r"x = \binom{10}{3}",
        r"\binom{10}{3}\text{ ways}",
        r"\dbinom{10}{3}",
        r"\binom {10} {3}",
    ],
)
def test_a_disguise_that_changes_no_value_does_not_help(answer):
    assert copied(answer, "120", r"Compute: $\binom{10}{3}$.")


DISGUISES = [
    "0+%s",
    "%s+0",
    "1\\cdot(%s)",
    "(%s)^1",
    "%s+1-1",
    "-(-(%s))",
    r"\sqrt{(%s)^2}",
    r"\frac{%s}{1}",
    "x=0+%s",
    "0+%s=x",
]


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize(("term", "problem"), [(r"\binom{10}{3}", PROBLEM), (r"99^2+99+1", "Compute $99^2 + 99+1$.")])
def test_a_term_within_an_answer_is_found(disguise, term, problem):
    assert clean(term) in copied_terms(disguise % term, problem)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_what_leaves_the_value_alone_does_not_help(disguise):
    problem = Problem.make(PROBLEM, "120", source="test")
    answer = disguise % r"\binom{10}{3}"
    with MathVerifier(workers=1) as verifier:
        verdict = verifier.verify_answers([(rf"\boxed{{{answer}}}", problem)])[0]
    assert (verdict.outcome, verdict.reason) == ("wrong", "copied from the problem")


@pytest.mark.parametrize(
    ("answer", "gold", "problem"),
    [
        (r"\binom{10}{3} = 120", "120", PROBLEM),
        (r"\frac{720}{6}", "120", PROBLEM),
        ("x^2+2x+1", "(x+1)^2", "Let $x+1$ be a side. What is the area?"),
        ("10-5", "5", "From 10 take 5."),
        ("5.0", "5", "Is it 5?"),
    ],
)
def test_worked_out_answers_with_terms_of_the_problem_stay_right(answer, gold, problem):
    with MathVerifier(workers=1) as verifier:
        verdict = verifier.verify_answers([(rf"\boxed{{{answer}}}", Problem.make(problem, gold, source="test"))])[0]
    assert verdict.outcome == "right"


def test_a_number_of_the_problem_with_zeros_around_it_is_copied():
    assert copied_terms("0+5", "Is it 5 or 6?") == ["5"]
    assert copied_terms("10-5", "From 10 take 5.") == []


@pytest.mark.parametrize(
    ("answer", "gold", "problem"),
    [
        # worked out, or spelled as the gold
        ("120", "120", PROBLEM + " Is it 120?"),
        ("120.0", "120", "Is it $120.0$?"),
        (r"\binom{10}{3}", r"\binom{10}{3}", PROBLEM),
        (r"\binom{10}{3}", r" \binom{10} {3}", PROBLEM),
        (r"\frac{1}{2}", r"\frac{2}{4}", r"Half: $\frac{1}{2}$"),
        ("1/2", r"\frac{1}{2}", "Half: 1/2"),
        (r"-\frac{3}{4}", r"-\frac{6}{8}", r"$-\frac{3}{4}$"),
        (r"1\frac{1}{2}", r"\frac{3}{2}", r"$1\frac{1}{2}$"),
        (r"50\%", "0.5", r"It is $50\%$ off"),
        ("1,000", "1000", "1,000 or 2,000?"),
        ("east", r"\text{east}", "Is it west, east, or north?"),
        ("C", "C", "(A) red (B) blue (C) green"),
        # a part of something else
        (r"\binom{10}{3}", "120", r"Compute $2\binom{10}{3}$"),
        (r"\binom{10}{3}", "120", r"Compute $\binom{10}{3}+1$"),
        (r"\binom{10}{3}", "120", r"Compute $\binom{10}{3}!$"),
        (r"\binom{10}{3}", "120", r"Compute $1+\binom{10}{3}$"),
        (r"\binom{10}{3}", "120", r"Compute $\binom{10}{3}^2$"),
        (r"\binom{10}{3}", "120", r"Compute $\binom{10}{3}x$"),
        ("8/2", "4", "Add $8/24$ and $18/2$."),
        ("8/2", "4", "It is 8/2.5 or so"),
        # not there
        (r"\binom{10}{7}", "120", PROBLEM),
        (r"\binom{10}{3}", "120", ""),
        ("", "", PROBLEM),
    ],
)
def test_not_copied(answer, gold, problem):
    assert not copied(answer, gold, problem)


@pytest.mark.parametrize(
    ("answer", "gold", "problem"),
    [
        (r"\textbf{(C)}", "C", r"Which? $\textbf{(A)}\ 5 \qquad\textbf{(B)}\ 6 \qquad\textbf{(C)}\ 7$"),
        (r"\text{(C)}", "C", "Which? Answer with (A), (B), or (C)."),
        ("(C)", "C", "Which? Answer with (A), (B), or (C)."),
        ("even function", r"\text{even function}", "Is it an odd function, even function, or neither?"),
        (r"5\text{ cm}", "5", r"Is the side $3\text{ cm}$, $5\text{ cm}$ or $7\text{ cm}$ long?"),
    ],
)
def test_choices_words_and_numbers_with_units_are_not_copied(answer, gold, problem):
    assert not copied(answer, gold, problem)


def test_a_copied_answer_is_wrong_where_the_problem_is_known():
    problem = Problem.make(r"Compute: $\binom{10}{3}$.", "120", source="test")
    texts = [r"\boxed{\binom{10}{3}}", r"\boxed{\frac{720}{6}}", r"\boxed{120}", r"\boxed{\binom{10}{4}}", "120"]
    with MathVerifier(workers=1) as verifier:
        blind = verifier.verify_many([(text, "120") for text in texts])
        seeing = verifier.verify_answers([(text, problem) for text in texts])
    assert [verdict.outcome for verdict in blind] == ["right", "right", "right", "wrong", "wrong"]
    assert [verdict.outcome for verdict in seeing] == ["wrong", "right", "right", "wrong", "wrong"]
    assert (seeing[0].reason, seeing[0].reward) == ("copied from the problem", 0.0)
    assert seeing[0].extracted == r"\binom{10}{3}"
    assert seeing[3].reason == blind[3].reason == "not equal"  # only what would be right is looked at


@pytest.mark.parametrize("unit", ["(", r"\binom", r"\text{", " ", "$", "and ", "0", "\u00bd"])
def test_work_is_bounded(unit):
    problem = unit * (400_000 // len(unit)) + r" $\binom{10}{3}$"
    start = time.perf_counter()
    copied(r"\binom{10}{3}", "120", problem)
    copied((unit * 1500)[:1500], "120", problem)
    assert time.perf_counter() - start < 20
