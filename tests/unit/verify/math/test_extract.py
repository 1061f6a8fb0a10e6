import time

import pytest

from forklight.verify.math.extract import WINDOW, extract_box, find_boxes, first_box_end


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
        (r"\\boxed{5}", "5"),
        (r"\\boxed{\\frac{1}{2}}", r"\\frac{1}{2}"),
        (r"\boxed{6} no: \\fbox{5}", "5"),
        (r"\boxed{6}, \\boxed{5}", "6, 5"),
        (r"\boxed{6 \boxed{5}", "5"),
        (r"\boxed{5}}", "5"),
        (r"\boxed{5} }{ \boxed{6}", "6"),
    ],
)
def test_the_last_box_is_the_answer(text, answer):
    assert extract_box(text) == (answer, "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$x = \boxed{5}, y = \boxed{6}$", "5, 6"),
        (r"$$x = \boxed{5}, y = \boxed{6}$$", "5, 6"),
        (r"\(x = \boxed{5}, y = \boxed{6}\)", "5, 6"),
        (r"\[x = \boxed{5}, \quad y = \boxed{6}\]", "5, 6"),
        ("\\[ \\boxed{5} + 1, 7 \\cdot \\boxed{6} \\]", "5, 6"),
        (r"$\boxed{5} \text{ for the first part, and for the second } \boxed{6}$", "5, 6"),
        (r"$\boxed{5} \mbox{ wins over } \boxed{6}$", "5, 6"),
        (r"$x_1 = \boxed{5} < x_2 = \boxed{6} < x_3 = \boxed{7}$", "5, 6, 7"),
        (r"$\boxed{6} = 2 \cdot 3$, so $\boxed{5} = a, \boxed{6} = b$", "5, 6"),
        (r"It costs \$5: $\boxed{5} + \boxed{6}$", "5, 6"),
    ],
)
def test_boxes_of_one_formula_are_one_list(text, answer):
    assert extract_box(text) == (answer, "")


@pytest.mark.parametrize(
    "text",
    [
        r"$x = \boxed{5}$ but $y = \boxed{6}$",
        r"$x = \boxed{5}$, $y = \boxed{6}$",
        r"$$x = \boxed{5}$$ $$y = \boxed{6}$$",
        r"\(x = \boxed{5}\), \(y = \boxed{6}\)",
        r"\[\boxed{5}\] Wait. \[\boxed{6}\]",
        r"$x = \boxed{5} wait \boxed{6}$",
        r"x = \boxed{5} + \boxed{6}",
        r"\$\boxed{5} + \boxed{6}\$",
        "$x = \\boxed{5}\n y = \\boxed{6}$",
    ],
)
def test_of_boxes_in_different_formulas_or_with_words_between_the_last_counts(text):
    assert extract_box(text) == ("6", "")


@pytest.mark.parametrize(
    "text",
    [r"\boxed{6, \boxed{5}}", r"\boxed{\boxed{5} \text{ or } 6}", r"\boxed{\boxed{5}6}", r"\boxed{6 = \boxed{5}}"],
)
def test_what_stands_beside_a_box_in_another_box_is_not_dropped(text):
    """Outside of the inner box, but shown within the outer one: the answer is both."""
    assert extract_box(text).answer != "5"


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
    [
        *(
            r"\boxed{",
            "{",
            "}",
            r"\boxed",
            "\\boxed ",
            r"\boxed{}",
            " ",
            r"\boxed{1} and ",
            r"\text{",
            "</think>",
            "\\",
        ),
        *(
            "$",
            r"$\boxed{1}",
            r"\boxed{1}+",
            r"$\boxed{1}+\boxed{2}$",
            r"\(",
            r"\text{a}",
            "a",
            r"\boxed{1}\text{",
            r"\quad",
        ),
    ],
)
def test_work_is_linear_in_the_length(unit):
    text = r"\boxed{1}" + unit * (200_000 // len(unit)) + r"\boxed{2}"
    start = time.perf_counter()
    extract_box(text)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("text", [r"perhaps \boxed{5}? wait", r"Maybe $\boxed{5}$? No", r"\(\boxed{5}\) ?"])
def test_a_box_with_a_question_mark_behind_it_is_no_answer(text):
    assert extract_box(text) == (None, "box in doubt")


def test_a_question_before_the_last_box_does_not_matter():
    assert extract_box(r"\boxed{6}? No, it is \boxed{5}. Right?") == ("5", "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\frac{1}{3}} \approx \boxed{0.333}", r"\frac{1}{3} \approx 0.333"),
        (r"$\boxed{6} \approx \boxed{5}$", r"6 \approx 5"),
        (r"\boxed{1}, \boxed{2} \approx \boxed{2.0}", r"1, 2 \approx 2.0"),
    ],
)
def test_a_box_behind_a_sign_of_approximation_belongs_to_the_one_before(text, answer):
    assert extract_box(text) == (answer, "")


def test_box_tokens_of_a_model_are_boxes_in_their_places():
    text = "So <|begin_of_box|>C<|end_of_box|>."
    assert extract_box(text) == ("C", "")
    assert extract_box("<|begin_of_box|>C") == (None, "box not closed")
    assert find_boxes(text).last == "C"
    assert 0 < first_box_end(text) <= len(text) - 1


@pytest.mark.parametrize(
    ("text", "answer", "reason"),
    [
        (r"perhaps \boxed{5}, or", None, "thought not ended"),
        (r"perhaps \boxed{6}</think> \boxed{5}", "5", ""),
        (r"perhaps \boxed{6}</think><think>\boxed{5}", None, "thought not ended"),
    ],
)
def test_a_thought_that_the_prompt_opened_has_to_end(text, answer, reason):
    assert extract_box("<think>\n" + text) == (answer, reason)
