import pytest

from forklight.verify import MathVerifier, Verifier


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier() as verifier:
        yield verifier


RIGHT = [
    # spellings of a number
    ("5", "5"), ("5", "+5"), ("5", "5."), ("5", "5.0"), ("25", "025"), ("0.5", ".5"), ("-3", "−3"),  # noqa: RUF001
    ("1000", "1,000"), ("1000", "1{,}000"), ("1000", r"1\,000"), ("1000", r"1,\!000"), ("1000000", r"1,\! 000,\! 000"),
    ("0.5", r"\frac{1}{2}"), (r"\frac{1}{2}", "1/2"), (r"\frac12", r"\dfrac{2}{4}"), (r"\frac{3}{2}", r"1\frac{1}{2}"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"), ("8.7e8", r"8.7 \times 10^{8}"), ("1e-3", "0.001"), ("10^{5}", "100000"),
    ("5", "５"), ("5", "5\u200b"), ("25", "5²"), (r"\frac{1}{2}", "½"), (r"\frac{3}{2}", "1½"), (r"\sqrt{2}", "√2"),  # noqa: RUF001
    # tolerance
    (r"\frac{1}{3}", "0.333333"), (r"\frac{2}{3}", "0.666667"), (r"\pi", "3.141593"), ("3.61e-10", r"3.61\times 10^{-10}"),
    # percent, units, bases
    ("50", r"50\%"), (r"50\%", "50"), ("0.5", r"50\%"), (r"50\%", "0.5"), (r"28\%", "28 percent"),
    ("5", r"5\text{ cm}"), (r"5\text{ cm}", "5"), (r"5\text{ cm}^2", r"5\,\mathrm{cm}^2"), ("12", r"\$12"), ("12", "12 dollars"),
    (r"90^\circ", "90"), (r"12\sqrt{13}\text{ feet}", r"12\sqrt{13}"), ("204_5", "204_{5}"), ("204_5", "204"), ("2s", "s+s"),
    # equations and chains
    ("5", "x = 5"), ("5", "f(2) = 5"), ("x=5", "5"), ("5", r"x = \frac{10}{2} = 5"), (r"\sqrt{2}", r"\sqrt{2} \approx 1.414"),
    ("y=2x+1", "2y=4x+2"), ("f(x)=x", "f(x)=x+0"), ("(p,q)=(3,2)", "(3,2)"), ("x=2, x=-3", "x=-3, x=2"),
    ("a_3 = 2, a_{37} = 19", r"a_{37} = 19, \quad a_3 = 2"), ("AB=4,CD=5", "4, 5"), (r"0.56 = 56\%", "0.56"),
    # lists, sets, intervals
    ("1, 2", "2, 1"), (r"\{1,2\}", "1, 2"), ("(1,2)", "1,2"), (r"\pm 2", "-2, 2"), (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    ("2 and 3", r"2 \text{ and } 3"), ("[0,1)", r"\left[0, 1\right)"), ("x>3", r"(3,\infty)"), (r"(3,\infty)", "x > 3"),
    (r"(-\infty,0) \cup (5,\infty)", r"(5,\infty)\cup(-\infty,0)"), (r"\emptyset", r"\{\}"), ("(1,2),(3,4)", "(3,4), (1,2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    # words and choices
    (r"\text{east}", "East"), ("C", r"\text{(C)}"), ("C", r"(C)\ 5"), (r"\text{Evelyn}", r"x = \text{Evelyn}"), (r"\text{13}", "13"),
    (r"\text{A, B}", "B, A"), ("12:00", "12:00"), (r"4\!:\!51 \text{ p.m.}", r"4:51 \text{ p.m.}"),
    # expressions
    ("x^2+2x+1", "(x+1)^2"), (r"2\sqrt{3}", r"\sqrt{12}"), ("6-5i", r"-5\mathrm{i}+6"), ("2i", "(1+i)^2"), (r"\sin^2 t", r"1-\cos^2 t"),
    ("a + b + c", "c+b+a"), (r"\binom52", "10"), (r"\frac{4 A}{3+3 i} e^{i t}", r"\frac{4A}{3+3i}e^{it}"), ("6!", "720"),
]  # fmt: skip

WRONG = [
    # numbers
    ("5", "15"), ("5", "0.5"), ("5", "-5"), ("5", "٥"), ("5", "5 6"), ("32349", "32, 349"), ("100200", "(100,200)"), ("1000", "1000!"),
    (r"\frac{3}{2}", r"3\frac{1}{2}"), ("11", r"\phantom{6}5"), ("11", "5 6"),
    # tolerance: relative, and zero is only zero
    (r"\frac{1}{3}", "0.33"), (r"\pi", "3.14"), ("9.6", "9.62"), ("3.61e-10", "0.0"), ("3.61e-10", r"7.2\times 10^{-10}"),
    ("0", "1e-400"), ("0.0000001", "0.0000002"), ("10^{-20}", "10^{-30}"), ("10^{20}", "10^{20}+1"), ("306956.63", "306956.93"),
    ("1000000", "1000000.5"), (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"), (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"\sqrt{2}+10^{-16}", r"\sqrt{2}"), (r"1-\frac{1}{e}", r"1+\frac{1}{e}"), ("x", "x+10^{-20}"),
    (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", r"\frac{1}{6}"), ("(0.0000001, 1)", "(0.0000002, 1)"),
    # percent, units, bases
    ("5", "0.05"), ("0.05", "5"), (r"5\text{ cm}", r"5\text{ m}"), ("5", "101_2"), ("101_2", "101_3"), ("2s", "2"),
    (r"3\text{ p.m.}", r"3\text{ a.m.}"),
    # relations instead of values
    ("5", "6=5"), ("5", "x=6=5"), ("5", "1=2=3=4=5"), ("0", "x^2-1=0"), ("7", "x^2+y^2=7"), ("0", "5x-7y+11z+4=0"), ("5", "x>5"),
    ("5", r"5\le x\le 5"), ("5", r"x\to 5"), ("5", r"5 \approx 6"), ("5", r"5 \ne 6"), ("5", r"5\equiv 0"), ("x=5", "y=5"), ("5", "0=0"),
    ("y=2x+1", "x=2y+1"), ("x+y=1", "0=0"), ("f(x)=2x", "f(x)=2y"), ("2x + z = 1", "1"), ("x>3", r"x \ge 3"), (r"0.56 = 56\%", r"8.56 = 56\%"),
    # lists instead of values
    ("5", "5,6"), ("5", "4;5"), ("5", r"5 \text{ or } 6"), ("5", "x=5 or x=6"), ("5", r"\pm 5"), ("5", "[0,999]"), (r"\{1,2\}", "1"),
    ("5", ",".join(map(str, range(1000)))), (r"\pm 2", "2"), ("1331 and 1728", "1728"), (r"1, 2, \ldots, n", r"1, 3, \ldots, 2n-1"),
    ("1, 1, 2", "1, 2, 2"),
    # brackets and order
    ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("(1,2)", r"\{1,2\}"), ("[0,1)", "(0,1)"), ("[0,1]", "0, 1"), ("AB=4,CD=5", "5, 4"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "(2,1)"),
    # words and choices
    (r"\text{east}", r"\text{seat}"), ("C", "c"), ("C", "(C) or (D)"), ("C", r"\text{A, B, C, D}"), (r"\text{No}", r"\text{Yes}"),
    ("5", r"\text{5 is wrong}"), ("5", r"5 \text{ is wrong}"), ("5", r"\text{not } 5"), ("5", r"\text{forty-two}"), ("12:00", "1:00"),
    # expressions
    ("2x", "2y"), ("n", "5"), ("2A", "2a"), ("4", r"4\sqrt(2)"), ("45", r"4\cdot 5"), ("x+2n+1", "x+1"), (r"\infty", r"\frac{1}{0}"),
    ("5", r"\mathbb{R}"), ("5", r"\infty"), (r"c^2(\gamma^{2}-1)", r"c^2(\gamma^{2}-7)"), (r"x \cdot 2^{-99}", r"x \cdot 2^{-98}"),
    # not readable
    ("5", "\ud800"), ("5", "5\\\\6"), ("5", "**5**"), ("5", r"5 \foo 6"), ("5", "5|6"), ("5", "(5"), ("5", "5 & 6"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right(verifier, gold, answer):
    verdict = verifier.verify_many([(rf"So it is $\boxed{{{answer}}}$.", gold)])[0]
    assert (verdict.outcome, verdict.reason) == ("right", "equal")


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_wrong(verifier, gold, answer):
    verdict = verifier.verify_many([(rf"So it is $\boxed{{{answer}}}$.", gold)])[0]
    assert verdict.outcome == "wrong"


@pytest.mark.parametrize("gold", [r"\frac{1}{2}", r"$\frac{1}{2}$", r"\boxed{\frac{1}{2}}", r"We get \(\boxed{\frac{1}{2}}\).", "1/2"])
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
    assert verdict.seconds < 0.1


@pytest.mark.parametrize(("gold", "answer"), [("e^{x^2}", r"\exp(x^2)"), ("2^{2^{3}}", "256"), ("100000", r"\frac{100000!}{99999!}")])
def test_the_caps_leave_room_for_real_answers(verifier, gold, answer):
    assert verifier.verify_many([(rf"\boxed{{{answer}}}", gold)])[0].outcome == "right"


@pytest.mark.parametrize("gold", ["", " ", r"\foo{", r"\boxed{"])
def test_a_gold_that_cannot_be_read_is_unjudged(verifier, gold):
    verdict = verifier.verify_many([(r"\boxed{5+x}", gold)])[0]
    assert (verdict.outcome, verdict.reason) == ("unjudged", "gold not understood")


def test_any_searches_the_text_only_where_there_is_no_box():
    pairs = [
        ("The answer is 5.", "5"),
        ("We get $x = 5$.", "5"),
        (r"The answer is 5. \boxed{6}", "5"),
        (r"The answer is 5. \boxed{", "5"),
        ("<think>5</think> I give up", "5"),
        ("<think>The answer is 5.", "5"),
        (r"The answer is $\frac{1}{2}$", "0.5"),
        ("The answer is 9^9^9^9", "5"),
    ]
    with MathVerifier(extraction="any") as verifier:
        outcomes = [verdict.outcome for verdict in verifier.verify_many(pairs)]
    assert outcomes == ["right", "right", "wrong", "wrong", "wrong", "wrong", "right", "wrong"]


def test_order_record_and_interface(verifier):
    verdicts = verifier.verify_many([(r"\boxed{(x+1)^2}", "x^2+2x+1"), (r"\boxed{x^2}", "x^2+2x+1"), ("", "5"), (r"\boxed{5}", "5")])
    assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "wrong", "right"]
    assert [verdict.extracted for verdict in verdicts] == ["(x+1)^2", "x^2", None, "5"]
    assert all(verdict.seconds > 0 for verdict in verdicts)
    assert isinstance(verifier, Verifier)
    assert verifier.verify_many([]) == []


@pytest.mark.parametrize(
    "arguments",
    [{"timeout": 0}, {"timeout": -1.0}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"timeout": "3"}, {"timeout": None}]
    + [{"timeout": True}, {"memory_limit": 0}, {"extraction": "last"}],
)  # fmt: skip
def test_faulty_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MathVerifier(**arguments)
