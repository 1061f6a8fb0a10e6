import time
from collections import Counter

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forklight.verify import CountdownVerifier
from forklight.verify.extract import extract_box
from forklight.verify.latex import clean
from forklight.verify.limits import too_large
from forklight.verify.quick import quick

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
        assert quick(clean(gold), clean(answer)) in (True, False, None)


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
    assert quick(clean(spellings[0]), clean(spellings[1])) is True
    other = value + shift
    assert quick(clean(spellings[0]), clean(f"{other.numerator}/{other.denominator}")) is False
