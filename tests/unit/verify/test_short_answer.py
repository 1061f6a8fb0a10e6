import pickle
import time

import pytest

from forklight.types import Problem
from forklight.verify import ChoiceVerifier, IntegerVerifier, Verifier

HUGE = ["1" * 401, "1+" * 800, "(" * 16 + "5" + ")" * 16, "9^{9^{9^{9}}}", "1e99999", "x" * 200_000, "{" * 100_000]
PATTERNS = ["A ", "(A)", " .", r"\text{", r"\text{A} ", "Answer: ", "####", "\n", "5,", "\\frac", "1\u00bd", "\ud800"]


def judge(verifier, answer, gold):
    return verifier.verify_many([(rf"So it is $\boxed{{{answer}}}$.", gold)])[0]


@pytest.mark.parametrize(
    "answer",
    [
        *("25", "025", "+25", "25.", "25.0", "25.000", "2.5e1", r"2.5 \times 10^{1}", "= 25", "$25$", "\t25\n"),
        *(
            r"25\text{ cm}",
            r"25 \text{ square units}",
            "25 degrees",
            r"25^\circ",
            r"\$25",
            r"\text{25}",
            r"\mathbf{25}",
        ),
        *("\uff12\uff15", "2\u200b5", r"\displaystyle 25"),
        *(
            "x=25",
            "n = 25",
            "m+n=25",
            "m+n = 12+13 = 25",
            "25 = 25",
            "(25)",
            "25+0",
            "5^2",
            r"\sqrt{625}",
            "2^4+9",
            "4!+1",
        ),
        *(r"\binom{5}{2}+15", "50/2", r"5 \cdot 5", "a_1 + a_2 = 25"),
    ],
)
def test_a_whole_number_is_right_in_any_common_spelling(answer):
    verdict = judge(IntegerVerifier(), answer, "25")
    assert (verdict.outcome, verdict.reason) == ("right", "equal number")
    assert verdict.extracted == answer.strip()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        *((answer, "not equal") for answer in ("26", "0", "-0", "999", "52", "2", "250")),
        *((answer, "not in 0 .. 999") for answer in ("-25", "1000", "1{,}025", "1,025", "1e9999", "25000", r"-25.0")),
        *(
            (answer, "not a whole number")
            for answer in (
                "26=25",
                "x=26=25",
                "x^2=25",
                "2x=25",
                "x>25",
                "x \\ne 25",
                r"x \approx 25",
                r"\sqrt{626}",
                "x+25",
            )
        ),
        *((answer, "not equal") for answer in ("x=26", "m+n=26", "5^2+1", "4!", "(26)", "5^3/5+1")),
        *((answer, "not a whole number") for answer in ("25x", "25i", r"25\mathrm{i}", "2 5", r"2\,5", "2,5", "25,0")),
        *(
            (answer, "not a whole number")
            for answer in ("25, 26", "25 or 26", r"25 \text{ or } 26", r"25 \pm 0", "{25, 26}")
        ),
        *(
            (answer, "not a whole number")
            for answer in (r"25\%", "25_{10}", "25_7", "25 : 1", "0x19", "24.9999999", "1/3")
        ),
        *((answer, "not a whole number") for answer in ("twenty-five", "XXV", r"\text{not } 25", r"\text{25 or 26}")),
        *(
            (answer, "not a whole number")
            for answer in ("\u0662\u0665", "\u0968\u096b", "2\u0665", "²⁵", "₂₅", "25\u0332", "2\u03385", "\ud800")
        ),
        *((answer, "not a whole number") for answer in ("0,025", "25\\\\26", "25 & 26", r"25 \text{ is wrong}", "?")),
    ],
)
def test_anything_else_is_wrong_with_a_reason(answer, reason):
    verdict = judge(IntegerVerifier(), answer, "25")
    assert (verdict.outcome, verdict.reason, verdict.reward) == ("wrong", reason, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        r"25\text{ million}",
        r"25\text{ thousand}",
        r"25\text{ minus one}",
        r"25\text{ squared}",
        r"25\text{ x}",
        r"25\text{ pi}",
        r"2\text{ }5",
        r"2\phantom{0}5",
        r"\boxed{25}6",
        r"6\boxed{25}",
    ],
)
def test_words_and_tricks_that_change_the_number_are_wrong(answer):
    assert judge(IntegerVerifier(), answer, "25").outcome == "wrong"


@pytest.mark.parametrize("verifier", [IntegerVerifier(), ChoiceVerifier()])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no box"),
        ("The answer is 3, or C.", "no box"),
        (r"\boxed{}", "empty box"),
        (r"\boxed{3", "box not closed"),
        (r"\boxed 3", "box not closed"),
        (r"<think>\boxed{3} \boxed{C}", "thought not ended"),
        (r"<think>\boxed{C} \boxed{3}</think> done", "no box"),
    ],
)
def test_no_box_has_a_reason(verifier, text, reason):
    gold = "3" if isinstance(verifier, IntegerVerifier) else "C"
    verdict = verifier.verify_many([(text, gold)])[0]
    assert (verdict.outcome, verdict.reason, verdict.extracted) == ("wrong", reason, None)


@pytest.mark.parametrize(("verifier", "gold"), [(IntegerVerifier(), "5"), (ChoiceVerifier(), "A")])
@pytest.mark.parametrize("extraction", ["box", "any"])
def test_hostile_texts_are_wrong_at_once(verifier, gold, extraction):
    texts = [rf"\boxed{{{text}}}" for text in HUGE] + [f"The answer is {text}" for text in HUGE]
    texts += [
        before + pattern * (100_000 // len(pattern)) for pattern in PATTERNS for before in (r"\boxed{", "Answer: ")
    ]
    texts += [rf"\boxed{{{pattern * (1400 // len(pattern))}}}" for pattern in PATTERNS]
    twin = type(verifier)(extraction=extraction)
    for text in texts:
        start = time.perf_counter()
        verdict = twin.verify_many([(text, gold)])[0]
        assert time.perf_counter() - start < 10
        assert verdict.outcome == "wrong"
        assert len(verdict.reason) < 100


def test_the_range_of_whole_numbers():
    verifier = IntegerVerifier(low=-5, high=5000)
    assert judge(verifier, "-5", "-5").right
    assert judge(verifier, "−5", "-5").right  # noqa: RUF001
    assert judge(verifier, "1,025", "1025").right
    assert judge(verifier, "1{,}025", "1,025").right
    assert judge(verifier, "-6", "-5").reason == "not in -5 .. 5000"
    assert judge(verifier, "5001", "5000").reason == "not in -5 .. 5000"
    assert judge(IntegerVerifier(), "007", "7").right


@pytest.mark.parametrize(
    "gold", ["", " ", "x", "1000", "-1", "2.5", r"\frac{1}{2}", "25%", "1" * 401, "25, 26", "\u0665"]
)
def test_by_a_gold_that_is_no_such_number_nothing_is_judged(gold):
    for text in (r"\boxed{25}", "", gold):
        verdict = IntegerVerifier().verify_many([(text, gold)])[0]
        assert (verdict.outcome, verdict.reason) == ("unjudged", "gold not understood (no whole number in 0 .. 999)")
    assert IntegerVerifier().gold_faults([gold, "25"]) == ["no whole number in 0 .. 999", ""]


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "C",
            "(C)",
            "C.",
            "C)",
            "C:",
            " C ",
            "(C) 5",
            "C. 5",
            "C: 5",
            r"(C)\ 5",
            r"C\quad \frac{1}{2}",
            "$C$",
            "(C) x^2",
        ),
        *(r"\text{C}", r"\text{(C)}", r"\textbf{(C)}", r"\mathrm{C}", r"\text{(C) 5}", "\uff23"),
    ],
)
def test_a_choice_is_right_with_or_without_its_value(answer):
    verdict = judge(ChoiceVerifier(), answer, "C")
    assert (verdict.outcome, verdict.reason) == ("right", "equal choice")


@pytest.mark.parametrize("answer", [r"\textbf{(C)}\ 5", r"\text{C}\ 5", r"\mathrm{(C)}\ 5", r"\text{(C) east}"])
def test_a_choice_is_right_as_contests_print_it(answer):
    assert judge(ChoiceVerifier(), answer, "C").outcome == "right"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        *((answer, "not equal") for answer in ("D", "(D)", r"\text{(A)}", "(B)")),
        *(
            (answer, "not a choice")
            for answer in ("c", "(c)", r"\text{c}", "F", "CD", "5", "C5", "C'", "C^2", "C_1", "?")
        ),
        *(
            (answer, "not a choice")
            for answer in ("C or D", "C, D", "C and D", "C D", "C/D", "(C)(D)", "(C) D", "C. D")
        ),
        *(
            (answer, "not a choice")
            for answer in ("D or C", "C = D", "D = C", r"C \to D", r"C \lor D", "C\\\\D", "C; D")
        ),
        *((answer, "not a choice") for answer in (r"C \text{ or } D", r"\text{C or D}", r"C \text{ or } \mathbf{D}")),
        *((answer, "not a choice") for answer in ("C or \uff24", "C or Ⓓ", "C \u200bD", "C\u00a0D", "A, B, C, D, E")),
        *((answer, "not a choice") for answer in ("not C", r"\text{not } C", "С", "\ud800", r"\mathbb{C}")),  # noqa: RUF001
    ],
)
def test_other_choices_are_wrong_with_a_reason(answer, reason):
    verdict = judge(ChoiceVerifier(), answer, "C")
    assert (verdict.outcome, verdict.reason) == ("wrong", reason)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("C is wrong", "C"), (r"C \text{ is wrong}", "C"), ("C not", "C"), ("A triangle", "A"), ("E = mc^2", "E")],
)
def test_a_letter_in_a_sentence_or_formula_is_no_choice(answer, gold):
    assert judge(ChoiceVerifier(), answer, gold).outcome == "wrong"


def test_the_letters_there_are():
    verifier = ChoiceVerifier("ABCDEFGHIJ")
    assert judge(verifier, "(J)", "J").right
    assert judge(verifier, "J and B", "J").reason == "not a choice"
    assert judge(ChoiceVerifier("AB"), "C", "A").reason == "not a choice"


@pytest.mark.parametrize("gold", ["", "c", "F", "AB", "A or B", "5", "A" * 2000])
def test_by_a_gold_that_is_no_choice_nothing_is_judged(gold):
    for text in (r"\boxed{C}", "", gold):
        verdict = ChoiceVerifier().verify_many([(text, gold)])[0]
        assert (verdict.outcome, verdict.reason) == ("unjudged", "gold not understood (none of the choices ABCDE)")
    assert ChoiceVerifier().gold_faults([gold, "(C)"]) == ["none of the choices ABCDE", ""]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (r"It is \boxed{25}.", "right"),
        ("So it adds up.\nThe answer is 25.", "right"),
        ("Thus, the final answer is: 025", "right"),
        ("Answer: 25 dollars", "right"),
        ("16 + 9\n#### 25\n", "right"),
        (r"A: $25\text{ cm}$", "right"),
        (r"\boxed{26}" + "\nThe answer is 25.", "wrong"),  # a box is looked at alone
        (r"\boxed{" + "\nThe answer is 25.", "wrong"),
        ("The answer is 25.\nOr 26.", "wrong"),
        ("The answer is 25 or 26", "wrong"),
        ("The answer is not 25", "wrong"),
        ("I say the answer is 25", "wrong"),
        ("25", "wrong"),
        ("<think>\nThe answer is 25.</think>", "wrong"),
        ("<think>\nThe answer is 25.", "wrong"),
        ("The answer is ٢٥", "wrong"),
    ],
)
def test_any_takes_a_marked_last_line_where_there_is_no_box(text, outcome):
    assert IntegerVerifier(extraction="any").verify_many([(text, "25")])[0].outcome == outcome


def test_any_takes_a_marked_choice_where_there_is_no_box():
    verifier = ChoiceVerifier(extraction="any")
    texts = ["So:\nAnswer: (C)", "The answer is C.", "The answer is C or D", "A: B", "C"]
    verdicts = verifier.verify_many([(text, "C") for text in texts])
    assert [verdict.outcome for verdict in verdicts] == ["right", "right", "wrong", "wrong", "wrong"]
    assert [verdict.reason for verdict in verdicts[2:]] == ["not a choice", "not equal", "no answer found"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntegerVerifier(low=5, high=4), "must not be above high"),
        (lambda: IntegerVerifier(extraction="last"), "extraction must be"),
        (lambda: ChoiceVerifier(extraction="last"), "extraction must be"),
        *((lambda c=c: ChoiceVerifier(c), "capital letters") for c in ("", "A", "AA", "ab", "A B", "12", "ÄÖ")),
    ],
)
def test_faulty_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("verifier", [IntegerVerifier(0, 9, "any"), ChoiceVerifier("ABC", "any")])
def test_interface_order_and_pickling(verifier):
    gold, other = ("5", "6") if isinstance(verifier, IntegerVerifier) else ("A", "B")
    pairs = [(rf"\boxed{{{gold}}}", gold), ("", gold), (rf"\boxed{{{other}}}", gold), (f"Answer: {other}", other)]
    for twin in (verifier, pickle.loads(pickle.dumps(verifier))):
        assert isinstance(twin, Verifier)
        verdicts = twin.verify_many(pairs)
        assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "wrong", "right"]
        assert all(verdict.seconds >= 0 for verdict in verdicts)
        assert twin.verify_many([]) == []


def test_a_term_copied_from_the_problem_is_wrong():
    problem = Problem.make("What is $2^5+1$?", "33", source="test")
    texts = [r"\boxed{2^5+1}", r"\boxed{0+2^5+1}", r"\boxed{x=2^5+1=33}", r"\boxed{33}", r"\boxed{32+1}"]
    verdicts = IntegerVerifier().verify_answers([(text, problem) for text in texts])
    assert [verdict.outcome for verdict in verdicts] == ["wrong", "wrong", "right", "right", "right"]
    assert verdicts[0].reason == verdicts[1].reason == "copied from the problem"


@pytest.mark.parametrize("make", [IntegerVerifier, ChoiceVerifier])
def test_a_box_in_a_thought_that_the_prompt_opened_is_no_answer(make):
    gold = "5" if make is IntegerVerifier else "A"
    pairs = [(rf"Maybe \boxed{{{gold}}}", gold), (rf"Hm.</think> \boxed{{{gold}}}", gold)]
    opened = [("<think>\n" + text, answer) for text, answer in pairs]  # as verifiers get the texts of such prompts
    assert [v.outcome for v in make().verify_many(opened)] == ["wrong", "right"]
    assert [v.outcome for v in make().verify_many(pairs)] == ["right", "right"]
