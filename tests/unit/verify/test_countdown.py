import pytest

from forklight.verify import CountdownVerifier, Verifier


def judge(answer, gold="49 from 7, 9, 14"):
    return CountdownVerifier().verify_many([(answer, gold)])[0]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("9*7=63;63-14=49", "49 from 7, 9, 14"),
        ("14-7=7;9*7=63", "63 from 7, 9, 14"),  # the 7 that is used is a result; the given 7 went into it
        ("6/3=2;2+2=4", "4 from 6, 3, 2"),
        ("5-5=0", "0 from 5, 5"),
        ("\n 9*7=63;63-14=49 \r\n", "49 from 7, 9, 14"),
        ("1+2=3;3+4=7;7*3=21", "21 from 1, 2, 4, 3"),
        ("1+2=3;4+3=7;3*7=21", "21 from 1, 2, 4, 3"),
    ],
)
def test_right(answer, gold):
    verdict = judge(answer, gold)
    assert (verdict.outcome, verdict.reason) == ("right", "solved")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no steps"),
        ("  \n", "no steps"),
        ("9*7=64;64-14=50", "wrong result (step 1: 9*7 is 63, not 64)"),
        ("9*7=63;63-14=50", "wrong result (step 2: 63-14 is 49, not 50)"),
        ("9*8=72;72-14=58", "number not available (8)"),
        ("9*7=63;63-7=56", "number not available (7)"),
        ("9*9=81", "number not available (9)"),
        ("9*7=63;63-14=49;49+63=112", "number not available (63)"),
        ("9*7=63", "numbers unused (14)"),
        ("7+7=14", "number not available (7)"),
        ("7*7=49", "number not available (7)"),
        ("9+14=23;23+7=30", "target missed (reached 30, not 49)"),
        ("7/9=0", "not a whole number (step 1: 7/9)"),
        ("7-9=2", "wrong result (step 1: 7-9 is -2, not 2)"),
        ("7-9=-2", "not a step ('7-9=-2')"),
        ("9*7=63;63-14=49;", "not a step ('')"),
        (";9*7=63;63-14=49", "not a step ('')"),
        ("9 * 7 = 63", "not a step ('9 * 7 = 63')"),
        ("9*7=63\n;63-14=49", "not a step ('9*7=63\\n')"),
        ("09*7=63;63-14=49", "not a step ('09*7=63')"),
        ("٩*7=63;63-14=49", "not a step ('٩*7=63')"),
        ("９*7=63;63-14=49", "not a step ('９*7=63')"),  # noqa: RUF001
        ("+9*7=63;63-14=49", "not a step ('+9*7=63')"),
        ("9**2=81", "not a step ('9**2=81')"),
        ("9*7=63=63", "not a step ('9*7=63=63')"),
        ("49", "not a step ('49')"),
        ("The answer is 9*7=63;63-14=49", "not a step ('The answer is 9*7=63')"),
        ("9*7=63;63-14=49 \x00", "not a step ('63-14=49 \\x00')"),
        ("9*7=" + "1" * 19, f"not a step ('9*7={'1' * 19}')"),
        ("1" * 1001, "too long (1001 characters)"),
    ],
)
def test_wrong_with_the_first_fault(answer, reason):
    verdict = judge(answer)
    assert (verdict.outcome, verdict.reason) == ("wrong", reason)


def test_division_by_zero_is_a_fault():
    assert judge("5-5=0;5/0=0", "0 from 5, 5, 5").reason == "not a whole number (step 2: 5/0)"


@pytest.mark.parametrize(
    "gold", ["", "62", "62 from", "62 from 3", "62 from 3,9", "x from 3, 9", "62 from 3, 9 ", "٦ from 1, 2"]
)
def test_by_a_malformed_gold_nothing_is_judged(gold):
    verdict = judge("3*9=27", gold)
    assert verdict.outcome == "unjudged"
    assert verdict.reason.startswith("gold not understood (")
    assert "62 from 3, 9, 14" in CountdownVerifier().gold_faults([gold])[0]
    assert CountdownVerifier().gold_faults(["62 from 3, 9, 14"]) == [""]


def test_order_and_record():
    verifier = CountdownVerifier()
    pairs = [("9*7=63;63-14=49", "49 from 7, 9, 14"), (" 9*7=63", "49 from 7, 9, 14"), ("", "2 from 1, 1")]
    verdicts = verifier.verify_many(pairs)
    assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "wrong"]
    assert [verdict.extracted for verdict in verdicts] == ["9*7=63;63-14=49", "9*7=63", None]
    assert all(verdict.seconds >= 0 for verdict in verdicts)
    assert isinstance(verifier, Verifier)
    assert verifier.verify_many([]) == []
