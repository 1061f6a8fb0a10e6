import time

import pytest

from forklight.verify.extract import WINDOW, extract_box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        ("\\boxed\n{5}", "5"),
        (r"$$\boxed{ \frac{1}{2} }$$.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5} ... \boxed{6}", "6"),
        (r"\boxed{6}. No: \fbox{5}", "5"),
        (r"\boxed{5}, so \boxed{5}", "5"),
        (r"\boxed{6}, \boxed{5}", "6, 5"),
        (r"\boxed{6} \boxed{5}", "6, 5"),
        (r"$\boxed{6}$ and $\boxed{5}$", "6, 5"),
        (r"\boxed{(2,2)} \quad \text{and} \quad \boxed{(6,2)}", "(2,2), (6,2)"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"\boxed{1} no \boxed{2}, \boxed{3}", "2, 3"),
        (r"<think>\boxed{5}</think> \boxed{6}", "6"),
        (r"\boxed{5}</think>\boxed{6}", "6"),
        (r"\boxedfoo{5} \boxed{6}", "6"),
    ],
)
def test_the_last_box_is_the_answer(text, answer):
    assert extract_box(text) == (answer, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no box"),
        ("The answer is 5", "no box"),
        (r"\boxes{5}", "no box"),
        (r"<think>\boxed{5}</think> I give up.", "no box"),
        (r"<think>\boxed{5}", "thought not ended"),
        (r"<think>a</think><think>\boxed{5}", "thought not ended"),
        (r"\boxed{5} and \boxed{6", "box not closed"),
        (r"\boxed{5} and \boxed{\frac{6}{7}", "box not closed"),
        (r"\boxed{5} and \boxed 6", "box not closed"),
        (r"\boxed{}", "empty box"),
        (r"\boxed{ }", "empty box"),
        (r"\boxed{5} \boxed{}", "empty box"),
        (r"\boxed{5}" + " " * WINDOW, "no box"),
    ],
)
def test_no_answer_has_a_reason(text, reason):
    assert extract_box(text) == (None, reason)


@pytest.mark.parametrize(
    "unit",
    [r"\boxed{", "{", "}", r"\boxed", "\\boxed ", r"\boxed{}", " ", r"\boxed{1} and ", r"\text{", "</think>", "\\"],
)
def test_work_is_linear_in_the_length(unit):
    text = r"\boxed{1}" + unit * (200_000 // len(unit)) + r"\boxed{2}"
    start = time.perf_counter()
    extract_box(text)
    assert time.perf_counter() - start < 0.5
