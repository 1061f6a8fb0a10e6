import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forklight.verify import MathVerifier
from forklight.verify.math.classes import MOST_FORMULAS, answer_classes

ARABIC_FIVE = "\u0665"
TEXTS = st.sampled_from(
    [
        *("5", " 5", "5.0", "05", "5x", "x5", "x+x", "2x", r"\frac12", "1/2", "0.5", r"50\%", "x=5", r"5\text{ cm}"),
        *("C", "(C)", "c", "(1,2)", "1,2", "no", r"\text{no}", "No"),
        *("", r"\foo{", "\ud800", ARABIC_FIVE, "1" * 500, "2" * 500, "x^{99999}"),
    ]
)


def never(pairs):
    return [False] * len(pairs)


def always(pairs):
    return [True] * len(pairs)


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(workers=1) as verifier:
        yield verifier


def test_equal_answers_are_one_class_and_numbered_in_order():
    lists = [
        ["1/2", r"\frac12", "2", "0.5", r"\dfrac{1}{2}", "02"],
        ["7", "8", "7", "9", "8"],
        [],
        ["x"],
    ]
    assert answer_classes(lists, never) == [[0, 0, 1, 0, 0, 1], [0, 1, 0, 2, 1], [], [0]]


def test_lists_are_numbered_by_themselves():
    assert answer_classes([["8", "7"], ["7", "8"]], never) == [[0, 1], [0, 1]]


def test_the_comparison_is_asked_once_for_what_the_texts_leave_open():
    asked = []

    def compare(pairs):
        asked.append(pairs)
        return [set(pair) == {"(x+1)^2", "x^2+2x+1"} for pair in pairs]

    lists = [["(x+1)^2", "x^2+2x+1", "x", "5", "5.0"], ["x", "x^2+2x+1", "(x+1)^2"], ["6", "7"]]
    assert answer_classes(lists, compare) == [[0, 0, 1, 2, 2], [0, 1, 1], [0, 1]]
    assert len(asked) == 1
    assert len(set(asked[0])) == len(asked[0])
    assert ("5", "5.0") not in asked[0]
    assert all("6" not in pair for pair in asked[0])


def test_all_answers_of_a_class_are_equal_to_each_other():
    def compare(pairs):
        return [set(pair) in ({"f(a)", "f(b)"}, {"f(b)", "f(c)"}) for pair in pairs]

    assert answer_classes([["f(a)", "f(c)", "f(d)", "f(b)"]], compare) == [[0, 1, 2, 0]]


def test_an_ambiguous_answer_joins_what_more_answers_gave():
    lists = [[r"50\%", "0.5", "50", "0.5"], [r"50\%", "0.5", "50", "50"]]
    assert answer_classes(lists, never) == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_what_cannot_be_read_or_is_too_large_is_equal_to_its_own_text_only(verifier):
    huge = ["1+" * 800 + "1", "1+" * 800 + "2", "9^{9^{9^{9}}}", "1e99999", "(" * 5000]
    unread = [r"\foo{", "", "\ud800", ARABIC_FIVE, "?", "\x00"]
    texts = [*huge, *unread, "5"]
    assert verifier.classes([texts + texts])[0] == list(range(len(texts))) * 2


def test_formulas_are_compared_by_the_math_verifier(verifier):
    lists = [
        ["(x+1)^2", "x^2+2x+1", "x+1", "1+x", "5", "x=5"],
        [r"\sqrt{12}", r"2\sqrt{3}", "3.464102", r"\sqrt{13}"],
        ["1, 2", "2, 1", r"\{1, 2\}", "1, 3"],
        [r"\text{east}", "East", "seat"],
    ]
    assert verifier.classes(lists) == [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1]]
    assert verifier.classes([]) == []


def test_a_comparison_that_hangs_leaves_two_classes():
    with MathVerifier(timeout=2.0, workers=1) as verifier:
        assert verifier.classes([["(10^{9})!", "(10^{9}+1)!", "x+y", "y+x"]]) == [[0, 1, 2, 2]]


@pytest.mark.parametrize(
    "texts",
    [
        ["(C) 5", "C"],
        ["(1,2)", r"\begin{pmatrix}1\\2\end{pmatrix}"],
        ["x=5", "5"],
        ["x>3", r"(3,\infty)"],
        [r"0.5", r"50\%"],
    ],
)
def test_the_order_of_the_answers_does_not_matter(verifier, texts):
    assert verifier.classes([texts, texts[::-1]]) == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "texts",
    [
        ["50", "0.5", r"50\%"],
        [r"5\text{ cm}", r"5\text{ m}", "5"],
        ["101_2", "101_3", "101"],
        ["(1,2)", "(2,1)", "1,2", "2,1"],
    ],
)
def test_an_ambiguous_answer_does_not_join_two_that_differ(verifier, texts):
    """`50%` may stand for 50 and for 0.5, but votes for 50 are no votes for 0.5."""
    assert verifier.classes([texts[:2]]) == [[0, 1]]
    numbers = verifier.classes([texts])[0]
    assert numbers[0] != numbers[1]


def test_only_the_most_frequent_formulas_are_compared():
    asked = []

    def compare(pairs):
        asked.extend(pairs)
        return always(pairs)

    rare = [f"f({number})" for number in range(40)]
    frequent = [f"g({number})" for number in range(MOST_FORMULAS)]
    texts = rare + frequent * 2
    numbers = answer_classes([texts], compare)[0]
    assert {text for pair in asked for text in pair} == set(frequent)
    assert len(asked) == len(set(asked)) == MOST_FORMULAS * (MOST_FORMULAS - 1)  # either may be the gold
    assert numbers == [*range(40), *[40] * (2 * MOST_FORMULAS)]


def test_many_answers_are_sorted_in_time(verifier):
    lists = [[f"x^2+{number}x" for number in range(64)], [str(number) for number in range(256)]]
    start = time.perf_counter()
    assert verifier.classes(lists) == [list(range(64)), list(range(256))]
    assert time.perf_counter() - start < 60


@given(st.lists(TEXTS, max_size=12), st.sampled_from([never, always]))
def test_numbers_are_in_order_of_first_appearance_and_equal_texts_together(texts, compare):
    (numbers,) = answer_classes([texts], compare)
    assert len(numbers) == len(texts)
    assert list(dict.fromkeys(numbers)) == list(range(len(set(numbers))))
    for text, number in zip(texts, numbers, strict=True):
        assert number == numbers[texts.index(text)]


@given(st.lists(st.lists(TEXTS, max_size=6), max_size=4), st.sampled_from([never, always]))
def test_a_list_is_sorted_the_same_whatever_is_beside_it(lists, compare):
    assert answer_classes(lists, compare) == [answer_classes([texts], compare)[0] for texts in lists]


@given(st.lists(st.text(max_size=20), max_size=6))
def test_any_texts_can_be_sorted(texts):
    (numbers,) = answer_classes([texts + texts], never)
    assert numbers[: len(texts)] == numbers[len(texts) :]
