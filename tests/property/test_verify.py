import time
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forklight.verify import ChoiceVerifier, CountdownVerifier, FormatVerifier, IntegerVerifier, MathVerifier
from forklight.verify.math.copied import copied
from forklight.verify.math.extract import extract_box
from forklight.verify.math.latex import clean
from forklight.verify.math.limits import too_large
from forklight.verify.math.prose import marked_answer
from forklight.verify.math.quick import quick

VERIFIER = CountdownVerifier()
TEXT = st.text(max_size=300) | st.text(alphabet=r"\boxedfrac{}()[]^_0123456789+-*/=,.;:!$% \n", max_size=300)


@st.composite
def solutions(draw):
    """A solved problem: the steps as lists of four parts, the given numbers and the target."""
    left = draw(st.lists(st.integers(1, 99), min_size=2, max_size=6))
    numbers, steps = list(left), []
    while len(left) > 1:
        a = left.pop(draw(st.integers(0, len(left) - 1)))
        b = left.pop(draw(st.integers(0, len(left) - 1)))
        values = {"+": a + b, "*": a * b}
        if a >= b:
            values["-"] = a - b
        if b and a % b == 0:
            values["/"] = a // b
        sign = draw(st.sampled_from(sorted(sign for sign, value in values.items() if value < 10**17)))
        steps.append([a, sign, b, values[sign]])
        left.append(values[sign])
    return steps, numbers, left[0]


def written(steps):
    return ";".join(f"{a}{sign}{b}={c}" for a, sign, b, c in steps)


def judge(answer, numbers, target):
    return VERIFIER.verify_many([(answer, f"{target} from {', '.join(map(str, numbers))}")])[0]


@given(solutions())
def test_every_valid_solution_is_right(problem):
    steps, numbers, target = problem
    assert judge(written(steps), numbers, target).outcome == "right"


@given(solutions(), st.data())
def test_a_changed_result_is_wrong(problem, data):
    steps, numbers, target = problem
    step = data.draw(st.sampled_from(steps))
    step[3] = data.draw(st.integers(0, 10**6).filter(lambda other: other != step[3]))
    assert judge(written(steps), numbers, target).outcome == "wrong"


@given(solutions(), st.data())
def test_a_changed_operand_is_wrong(problem, data):
    steps, numbers, target = problem
    step, place = data.draw(st.sampled_from(steps)), data.draw(st.sampled_from([0, 2]))
    old = step[place]
    step[place] = data.draw(st.integers(0, 99).filter(lambda other: other != old))
    # Every number is used exactly once, so writing another number in one place always breaks the count.
    assert judge(written(steps), numbers, target).outcome == "wrong"


@given(solutions(), st.data())
def test_a_changed_gold_is_wrong(problem, data):
    steps, numbers, target = problem
    assert judge(written(steps), numbers, target + data.draw(st.integers(1, 100))).outcome == "wrong"
    place = data.draw(st.integers(0, len(numbers) - 1))
    others = [*numbers[:place], numbers[place] + data.draw(st.integers(1, 50)), *numbers[place + 1 :]]
    assume(Counter(others) != Counter(numbers))
    assert judge(written(steps), others, target).outcome == "wrong"


@given(solutions(), st.data())
def test_a_dropped_or_repeated_step_is_wrong(problem, data):
    steps, numbers, target = problem
    place = data.draw(st.integers(0, len(steps) - 1))
    assert judge(written(steps[:place] + steps[place + 1 :]), numbers, target).outcome == "wrong"
    assert judge(written([*steps, steps[place]]), numbers, target).outcome == "wrong"


@given(TEXT | st.text(alphabet="0123456789+-*/=;", max_size=3000))
def test_no_text_raises_or_takes_long(text):
    start = time.perf_counter()
    verdict = judge(text, [7, 9, 14], 49)
    assert verdict.outcome in ("right", "wrong")
    assert len(verdict.reason) < 200
    assert time.perf_counter() - start < 0.1


@settings(deadline=None)
@given(TEXT, TEXT)
def test_the_text_stages_take_any_text(gold, answer):
    extraction = extract_box(answer)
    assert (extraction.answer is None) == bool(extraction.reason)
    if too_large(gold) is None and too_large(answer) is None:
        decided = quick(clean(gold), clean(answer))
        assert decided is None or decided.equal in (True, False)


BALANCED = st.recursive(
    st.text(alphabet="ab 1,+", max_size=5) | st.sampled_from([r"\{", r"\}", r"\frac", r"\\"]),
    lambda inner: inner.map(lambda text: f"{{{text}}}") | st.lists(inner, max_size=3).map("".join),
)


@given(TEXT.filter(lambda text: "think" not in text), BALANCED, st.text(alphabet="abc .$", max_size=20))
def test_a_box_gives_back_its_content(before, content, after):
    answer = extract_box(before + r"...\boxed{" + content + "}" + after).answer
    assert answer == (content.strip() or None)


@given(st.fractions(), st.integers(-6, 6).filter(bool))
def test_plain_numbers_are_compared_exactly(value, shift):
    spellings = [f"{value.numerator}/{value.denominator}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"]
    assert quick(clean(spellings[0]), clean(spellings[1])).equal
    other = value + shift
    assert not quick(clean(spellings[0]), clean(f"{other.numerator}/{other.denominator}")).equal


FRAGMENTS = [
    *(r"\boxed{", r"\boxed{2}", r"\boxed{3}", r"\boxed{5}", "$", "2", "3", "5", "x", "i", "A", "B", "{", "}", "}{"),
    *("=", ",", ";", " ", " or ", " and ", r"\text{", r"\text{or}", r"\phantom{", r"\mathrm{", r"\cancel{", r"\left"),
    *(
        "(",
        ")",
        "[",
        "]",
        r"\{",
        r"\}",
        "+",
        "-",
        "^",
        "_",
        "!",
        r"\%",
        "|",
        ":",
        "/",
        r"\,",
        r"\\",
        "&",
        "<",
        ">",
        "'",
    ),
    *(r"\pm ", r"\approx ", r"\in ", r"\cdot ", r"\frac{", r"\sqrt{", r"\ldots ", r"\le ", r"\cup ", r"\overline{"),
]
PIECES = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=7).map("".join)


@pytest.fixture(scope="module")
def math():
    """Verifiers of boxes, and of answers anywhere."""
    with MathVerifier(workers=1) as box, MathVerifier(extraction="any", workers=1) as anywhere:
        yield box, anywhere


@settings(max_examples=60)
@given(PIECES)
def test_no_answer_is_right_for_two_golds(math, text):
    box, anywhere = math
    shapes = [rf"\boxed{{{text}}}", rf"$\boxed{{2}} {text} \boxed{{3}}$", text]
    for verifier, answer in [*((box, shape) for shape in shapes), (anywhere, f"The answer is {text}")]:
        verdicts = verifier.verify_many([(answer, gold) for gold in ("2", "3", "5")])
        assert sum(verdict.right for verdict in verdicts) <= 1, verdicts


@given(PIECES | TEXT)
def test_no_integer_and_no_choice_is_right_for_two_golds(text):
    for extraction in ("box", "any"):
        for answer in (rf"\boxed{{{text}}}", f"The answer is {text}", text):
            integers = IntegerVerifier(extraction=extraction).verify_many([(answer, gold) for gold in ("2", "3", "5")])
            choices = ChoiceVerifier(extraction=extraction).verify_many([(answer, gold) for gold in "ABCDE"])
            assert sum(verdict.right for verdict in integers) <= 1
            assert sum(verdict.right for verdict in choices) <= 1


@given(
    st.integers(0, 999),
    st.integers(0, 999),
    st.sampled_from(["{}", "0{}", "+{}", "{}.0", "${}$", r"{}\text{{ cm}}", "{}."]),
)
def test_whole_numbers_are_compared_exactly(gold, number, spelling):
    answer = r"\boxed{" + spelling.format(number) + "}"
    assert IntegerVerifier().verify_many([(answer, str(gold))])[0].right == (gold == number)


@given(TEXT)
def test_the_form_of_any_text_is_judged(text):
    for verifier in (FormatVerifier(), FormatVerifier(box=False, thought=True), FormatVerifier(thought=True)):
        verdict = verifier.verify_many([(text, "")])[0]
        assert verdict.outcome in ("right", "wrong")
        assert verdict.right == (verdict.reason == "form kept")


@given(TEXT, st.text(alphabet="0123456789x+ ", min_size=1, max_size=20).filter(str.strip))
def test_a_marked_answer_is_the_end_of_the_text(text, answer):
    found = marked_answer(text)
    assert found is None or text.rstrip().endswith(found)
    assert marked_answer(f"{text}\nThe answer is {answer}") == answer.strip()


@given(TEXT, TEXT, TEXT)
def test_the_gold_itself_is_never_copied_and_nothing_from_nowhere(answer, gold, problem):
    assume(not too_large(answer) and not too_large(gold))
    assert not copied(gold, gold, problem + gold)
    assert not copied(answer, gold, "")
    assert copied(answer, gold, problem) in (True, False)
