import time
from pathlib import Path

import pytest

from forklight.verify import MathVerifier, Verifier

REASONS = {f"equal {by}" for by in ("text", "number", "ratio", "words", "choice", "expression")}


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier() as verifier:
        yield verifier


def table(name):
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" ;; ")) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(("gold", "answer"), [*table("right.txt"), ("5", "5\u200b")])
def test_right(verifier, gold, answer):
    verdict = verifier.verify_many([(rf"So it is $\boxed{{{answer}}}$.", gold)])[0]
    assert verdict.outcome == "right"
    assert verdict.reason in REASONS
    assert verdict.reward == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"), [*table("wrong.txt"), ("5", "\ud800"), ("5", ",".join(map(str, range(1000))))]
)
def test_wrong(verifier, gold, answer):
    verdict = verifier.verify_many([(rf"So it is $\boxed{{{answer}}}$.", gold)])[0]
    assert verdict.outcome == "wrong"
    assert verdict.reward == 0.0


@pytest.mark.parametrize(
    ("gold", "answer", "by"),
    [
        ("5", "5", "text"),
        ("x^2+2x+1", "x^2 + 2x + 1", "text"),
        (r"\dfrac{1}{2}", r"\frac12", "text"),
        ("5", "5.0", "number"),
        ("5", r"5\text{ cm}", "number"),
        ("3:4", "3 : 04", "ratio"),
        (r"\text{even}", "Even", "words"),
        ("C", r"\text{(C)}", "choice"),
        ("C", r"(C)\ 5", "choice"),
        ("5", "x=5", "expression"),
        ("x^2+2x+1", "(x+1)^2", "expression"),
    ],
)
def test_the_reason_of_a_right_answer_says_what_decided(verifier, gold, answer, by):
    assert verifier.verify_many([(rf"\boxed{{{answer}}}", gold)])[0].reason == f"equal {by}"


@pytest.mark.parametrize(
    "gold", [r"\frac{1}{2}", r"$\frac{1}{2}$", r"\boxed{\frac{1}{2}}", r"We get \(\boxed{\frac{1}{2}}\).", "1/2"]
)
def test_a_gold_may_be_bare_delimited_or_a_solution(verifier, gold):
    assert verifier.verify_many([(r"\boxed{0.5}", gold)])[0].outcome == "right"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The answer is 5", "no box"),
        (r"<think>\boxed{5}</think> I give up.", "no box"),
        (r"<think>\boxed{5}", "thought not ended"),
        (r"answer: 5, \boxed{\frac{", "box not closed"),
        (r"\boxed{}", "empty box"),
        (r"\boxed{6} Wait. Final answer is $5$.", "not equal"),
        (r"\boxed{6}, \boxed{5}", "not equal"),
        (r"\boxed{5} ... \boxed{6}", "not equal"),
    ],
)
def test_text_outside_of_the_last_box_earns_nothing(verifier, text, reason):
    verdict = verifier.verify_many([(text, "5")])[0]
    assert (verdict.outcome, verdict.reason) == ("wrong", reason)


@pytest.mark.parametrize(
    ("answer", "cap"),
    [
        ("1+" * 800 + "1", "1601 characters"),
        ("(" * 16 + "5" + ")" * 16, "nested"),
        ("1" * 401, "400 digits"),
        ("3^{1000000000}", "exponent"),
        ("3**1000000000", "exponent"),
        ("1e999999999", "exponent"),
        ("9^{9^{9^{9}}}", "tower"),
        ("9^9^9^9", "tower"),
        ("10^{10^{10}}+0.5", "tower"),
        ("((9!)!)!", "factorial"),
    ],
)
def test_what_is_too_large_is_wrong_at_once(verifier, answer, cap):
    verdict = verifier.verify_many([(rf"\boxed{{{answer}}}", "5")])[0]
    assert verdict.outcome == "wrong"
    assert verdict.reason.startswith("too large to be an answer (")
    assert cap in verdict.reason
    assert verdict.seconds < 2


@pytest.mark.parametrize(
    ("gold", "answer"), [("e^{x^2}", r"\exp(x^2)"), ("2^{2^{3}}", "256"), ("100000", r"\frac{100000!}{99999!}")]
)
def test_the_caps_leave_room_for_real_answers(verifier, gold, answer):
    assert verifier.verify_many([(rf"\boxed{{{answer}}}", gold)])[0].outcome == "right"


@pytest.mark.parametrize("gold", ["", " ", r"\foo{", r"\boxed{"])
def test_a_gold_that_cannot_be_read_is_unjudged(verifier, gold):
    verdict = verifier.verify_many([(r"\boxed{5+x}", gold)])[0]
    assert (verdict.outcome, verdict.reason) == ("unjudged", "gold not understood")


def test_order_record_and_interface(verifier):
    verdicts = verifier.verify_many(
        [(r"\boxed{(x+1)^2}", "x^2+2x+1"), (r"\boxed{x^2}", "x^2+2x+1"), ("", "5"), (r"\boxed{5}", "5")]
    )
    assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "wrong", "right"]
    assert [verdict.extracted for verdict in verdicts] == ["(x+1)^2", "x^2", None, "5"]
    assert all(verdict.seconds > 0 for verdict in verdicts)
    assert isinstance(verifier, Verifier)
    assert verifier.verify_many([]) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("timeout", value) for value in (0, -1.0, float("nan"), float("inf"), "3", None, True)),
        *(("memory_limit", value) for value in (0, -1, float("nan"), "2", None)),
        *(("workers", value) for value in (0, -1, 1.5, True, "2")),
        *(("extraction", value) for value in ("last", "", None)),
    ],
)
def test_faulty_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        MathVerifier(**{name: value})


@pytest.mark.parametrize(
    "content",
    [
        "~" * 1500,
        "\N{DEGREE SIGN}" * 1500,
        r"\," * 750,
        r"\qquad " * 213,
        "\u2473" * 1500,
        r"\boxed{" * 2200 + "5" + "}" * 2200,
    ],
    ids=["ties", "degrees", "thin blanks", "quads", "circled numbers", "nested boxes"],
)
def test_no_text_keeps_the_process_of_the_run_busy(content):
    """What texts decide is decided there, where nothing could end it: its time must grow with the length only."""
    start = time.perf_counter()
    with MathVerifier(timeout=1.0, workers=1) as verifier:
        verifier._look(rf"\boxed{{{content}}}", "5")
    assert time.perf_counter() - start < 2.0  # milliseconds; quadratic or cubic in these lengths is 4 to 16 s


@pytest.mark.parametrize("answer", ["9⁹⁹⁹⁹⁹⁹", "5＾{863503397}", ")" * 200 + "(" * 200])  # noqa: RUF001
def test_other_spellings_do_not_get_around_the_caps(verifier, answer):
    verdict = verifier.verify_many([(rf"\boxed{{{answer}}}", "5")])[0]
    assert verdict.outcome == "wrong"
    assert verdict.reason.startswith("too large to be an answer (")


def test_a_formula_against_a_number_in_another_base_is_wrong(verifier):
    assert verifier.verify_many([(r"\boxed{x+1}", "40_9")])[0].outcome == "wrong"
