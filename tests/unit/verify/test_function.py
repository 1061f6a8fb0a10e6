import copy
import datetime
import operator
import pickle
import sys
import time

import pytest

from forklight.types import Problem
from forklight.verify import FunctionVerifier, Verifier, Weighted, WeightedVerifier, judge

MODULE = """
import os, sys, time

class Grader:
    @staticmethod
    def strict(answer, gold):
        return answer == gold

    def method(self, answer, gold):
        return True

def same(answer, gold):
    return answer == gold

def share(answer, gold):
    return sum(a == b for a, b in zip(answer, gold)) / max(len(gold), 1)

def number(answer, gold):
    return int(answer) if answer.isdecimal() else float(answer)

def anything(answer, gold):
    return {"text": "right", "none": None, "nan": float("nan"), "inf": -float("inf"), "list": [1.0],
            "huge": 10**400, "complex": 1j}[answer]

def moody(answer, gold):
    if answer == "hang":
        while True:
            pass
    if answer == "sleep":
        time.sleep(60)
    if answer == "raise":
        raise ValueError("no such answer: " + gold * 100)
    if answer == "grow":
        kept = []
        while True:
            kept.append(bytes(bytearray(b"x" * 2**20)))
    if answer == "exit":
        os._exit(7)
    if answer == "leave":
        sys.exit()
    if answer == "recurse":
        return moody(answer, gold)
    if answer == "print":
        print("seen", flush=True)
        os.write(2, b"seen")
    return True

def lazy(answer, gold):
    if answer == "slow":
        import forklight_test_slow
    if answer == "endless":
        import forklight_test_endless
    if answer == "hang":
        time.sleep(60)
    return True

def fields(answer, gold, *, level, **fields):
    return level * (fields["day"] == "2024-05-01")

def outer():
    def inner(answer, gold):
        return True
    return inner

nameless = lambda answer, gold: True
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module of reward functions."""
    (tmp_path / "forklight_test_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import forklight_test_rewards

    yield forklight_test_rewards
    del sys.modules["forklight_test_rewards"]


def verdicts(function, *answers, gold="5", **arguments):
    with FunctionVerifier(function, workers=1, **arguments) as verifier:
        return verifier.verify_many([(answer, gold) for answer in answers])


def test_a_function_may_say_right_or_wrong(module):
    right, wrong = verdicts(module.same, "5", "6")
    assert (right.outcome, right.reason, right.reward, right.parts) == ("right", "same", 1.0, (("same", 1.0),))
    assert (wrong.outcome, wrong.reason, wrong.reward, wrong.parts) == ("wrong", "same", 0.0, (("same", 0.0),))
    assert right.seconds > 0


def test_a_function_may_give_a_number(module):
    found = verdicts(module.share, "abcd", "abxx", "xxxx", gold="abcd")
    assert [verdict.reward for verdict in found] == [1.0, 0.5, 0.0]
    assert [verdict.outcome for verdict in found] == ["right", "wrong", "wrong"]
    found = verdicts(module.number, "-2.5", "1e300", "0.999", "1", "2")
    assert [verdict.reward for verdict in found] == [-2.5, 1e300, 0.999, 1.0, 2.0]
    assert [verdict.outcome for verdict in found] == ["wrong", "right", "wrong", "right", "right"]


def test_an_answer_is_right_from_some_reward_on(module):
    found = verdicts(module.number, "-1", "-0.5", "0", right_from=-0.5)
    assert [verdict.outcome for verdict in found] == ["wrong", "right", "right"]
    assert [verdict.reward for verdict in found] == [-1.0, -0.5, 0.0]


def test_all_of_both_texts_reaches_the_function(module):
    text = "\ud800 <think>\n\0é</think> " * 20_000
    found = verdicts(module.same, text, text + "x", gold=text)
    assert [verdict.outcome for verdict in found] == ["right", "wrong"]


def test_what_is_no_number_is_unjudged(module):
    reasons = {
        "text": "not a number (str)",
        "none": "not a number (NoneType)",
        "nan": "not a number (nan)",
        "inf": "not a number (-inf)",
        "list": "not a number (list)",
        "complex": "not a number (complex)",
        "nothing": "the function failed (KeyError: 'nothing')",
    }
    found = dict(zip(reasons, verdicts(module.anything, *reasons), strict=True))
    assert {answer: verdict.reason for answer, verdict in found.items()} == reasons
    assert {(verdict.outcome, verdict.reward) for verdict in found.values()} == {("unjudged", 0.0)}


def test_a_whole_number_beyond_floats_is_no_number(module):
    verdict = verdicts(module.anything, "huge")[0]
    assert verdict.outcome == "unjudged"
    assert verdict.reason.startswith("not a number (")


def test_what_hangs_grows_raises_or_dies_is_unjudged_and_the_next_is_judged(module):
    answers = ["hang", "sleep", "raise", "exit", "grow", "recurse", "fine"]
    start = time.monotonic()
    found = verdicts(module.moody, *answers, timeout=2.0, memory_limit=0.1)
    assert time.monotonic() - start < 60
    assert [verdict.outcome for verdict in found] == ["unjudged"] * 6 + ["right"]
    reasons = [verdict.reason for verdict in found]
    assert reasons[:2] == ["time limit 2.0 s"] * 2
    assert reasons[2].startswith("the function failed (ValueError: no such answer: 555")
    assert len(reasons[2]) < 300
    assert reasons[3:5] == ["worker died (exit code 7)", "memory limit 0.1 GiB"]
    assert reasons[5].startswith("the function failed (RecursionError: ")


def test_a_function_that_leaves_is_unjudged(module):
    found = verdicts(module.moody, "leave", "fine")
    assert [verdict.outcome for verdict in found] == ["unjudged", "right"]
    assert found[0].reason == "worker died (exit code 0)"


def test_what_a_function_prints_is_not_seen(module, capfd):
    assert verdicts(module.moody, "print")[0].right
    assert capfd.readouterr() == ("", "")


def test_functions_of_classes_and_of_the_library_are_found(module):
    assert verdicts(module.Grader.strict, "5")[0].reason == "Grader.strict"
    assert [verdict.outcome for verdict in verdicts(operator.eq, "5", "6")] == ["right", "wrong"]


def test_what_cannot_be_found_by_its_name_is_refused(module):
    def local(answer, gold):
        return True

    def of_the_script(answer, gold):
        return True

    of_the_script.__module__ = "__main__"
    of_the_script.__qualname__ = "of_the_script"
    sys.modules["__main__"].of_the_script = of_the_script
    try:
        for function in (
            lambda answer, gold: True,
            local,
            of_the_script,
            module.nameless,
            module.outer(),
            module.Grader().method,
            operator.itemgetter(0),
        ):
            with pytest.raises(ValueError, match="must be importable by this name from its module"):
                FunctionVerifier(function)
    finally:
        del sys.modules["__main__"].of_the_script


@pytest.mark.parametrize(
    "arguments",
    [
        *({"timeout": value} for value in (0, -1.0, float("nan"), float("inf"), "3", None)),
        *({"memory_limit": value} for value in (0, -1, float("nan"), "2", None)),
        *({"workers": value} for value in (0, -1, 1.5)),
        {"right_from": float("nan")},
    ],
)
def test_faulty_arguments_are_refused(module, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FunctionVerifier(module.same, **arguments)


def test_a_module_that_the_workers_cannot_import_is_an_error(module, tmp_path, capfd):
    (tmp_path / "forklight_test_rewards.py").write_text("raise RuntimeError('broken since')")
    with pytest.raises(ChildProcessError, match="did not start"):
        verdicts(module.same, "5")
    assert "broken since" in capfd.readouterr().err


def test_what_a_function_imports_while_it_runs_is_not_its_time(module, tmp_path):
    (tmp_path / "forklight_test_slow.py").write_text("import time; time.sleep(1.5)")
    (tmp_path / "forklight_test_endless.py").write_text("import time; time.sleep(600)")
    found = verdicts(module.lazy, "slow", "slow", "hang", timeout=0.5)
    assert [verdict.outcome for verdict in found] == ["right", "right", "unjudged"]
    assert all(verdict.seconds < 0.5 for verdict in found[:2])
    assert found[2].reason == "time limit 0.5 s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forklight.verify.workers.process.IMPORT_LIMIT", 1.0)
        with FunctionVerifier(module.lazy, workers=1, timeout=0.5) as verifier:
            verifier.verify_many([("print", "5")])
            (endless,) = verifier.verify_many([("endless", "5")])
    assert endless.reason == "time limit 1.0 s of imports"


def test_a_function_sees_the_fields_of_its_problem(module):
    problem = Problem.make("What is 2 + 3?", "5", "school", {"level": 3, "day": datetime.date(2024, 5, 1)})
    with FunctionVerifier(module.fields, workers=1) as verifier:
        (verdict,) = judge(verifier, [("5", problem)])
        assert verdict.reward == 3.0
        (unknown,) = verifier.verify_many([("5", "5")])
        assert unknown.reason.startswith("no field for the parameter `level`")
        assert verifier.describe() == "forklight_test_rewards.fields(answer, gold, level=field, **fields)"


def test_copies_carry_settings(module):
    verifier = FunctionVerifier(module.number, right_from=0.25, timeout=2.0, memory_limit=0.5, workers=1)
    for twin in (pickle.loads(pickle.dumps(verifier)), copy.deepcopy(verifier)):
        assert (twin.right_from, twin.timeout, twin.memory_limit, twin.workers) == (0.25, 2.0, 0.5, 1)
        with twin:
            assert [verdict.outcome for verdict in twin.verify_many([("0.25", ""), ("0.2", "")])] == ["right", "wrong"]
    assert isinstance(verifier, Verifier)
    assert verifier.verify_many([]) == []


def test_a_function_can_be_a_part_of_a_sum(module):
    with FunctionVerifier(module.share, workers=1) as share:
        verifier = WeightedVerifier({"share": Weighted(share, 2.0)})
        verdict = verifier.verify_many([("abxx", "abcd")])[0]
    assert (verdict.outcome, verdict.reward, verdict.parts) == ("wrong", 1.0, (("share", 1.0),))
