import pickle
import time

import pytest

from forklight.verify import FormatVerifier, Verifier
from forklight.verify.math.extract import extract_box

BOX = FormatVerifier()
THOUGHT = FormatVerifier(box=False, thought=True)
BOTH = FormatVerifier(thought=True)


def fault(verifier, text):
    verdict = verifier.verify_many([(text, "no gold is read")])[0]
    assert verdict.right == (verdict.reason == "form kept") == bool(verdict.reward)
    assert verdict.outcome in ("right", "wrong")
    return verdict.reason


@pytest.mark.parametrize(
    ("verifier", "text"),
    [
        (BOX, r"So it is \boxed{5}."),
        (BOX, r"\fbox{5}"),
        (BOX, "$$\\boxed{\\frac{1}{2}}$$\n\n"),
        (BOX, r"\boxed{\{1, 2\}}" + " " * 1000),
        (BOX, r"\boxed{5}" + "x" * 20),
        (BOX, r"\boxed {anything at all}"),
        (BOX, r"\\boxed{5}"),
        (BOX, r"<think>\boxed{6} or \boxed{7}</think> \boxed{5}"),
        (BOX, r"I need no thought. \boxed{5}"),
        (THOUGHT, "<think>a</think> b"),
        (THOUGHT, " \n<think></think>b"),
        (THOUGHT, r"<think>a</think> \boxed{5} \boxed{6}"),
        (BOTH, "<think>\nHm.\n</think>\nSo $\\boxed{5}$."),
    ],
)
def test_kept(verifier, text):
    assert fault(verifier, text) == "form kept"


@pytest.mark.parametrize(
    ("verifier", "text", "reason"),
    [
        (BOX, "", "no box"),
        (BOX, "The answer is 5", "no box"),
        (BOX, r"\boxes{5}", "no box"),
        (BOX, r"<think>\boxed{5}</think> done", "no box"),
        (BOX, r"\boxed{5", "box not closed"),
        (BOX, r"\boxed 5", "box not closed"),
        (BOX, r"\boxed{5} \boxed{", "box not closed"),
        (BOX, r"\boxed{}", "empty box"),
        (BOX, r"\boxed{ }", "empty box"),
        (BOX, r"\boxed{5} \boxed{}", "empty box"),
        (BOX, r"\boxed{5} or \boxed{6}", "more than one box"),
        (BOX, r"\boxed{5} \boxed{5}", "more than one box"),
        (BOX, r"\boxed{\boxed{5}}", "more than one box"),
        (BOX, r"\boxed{5" + r"\boxed{6}", "more than one box"),
        (BOX, r"\boxed{5} or \\boxed{6}", "more than one box"),
        (BOX, r"\boxed{5}" + "x" * 21, "text after the box (21 characters)"),
        (BOX, r"\boxed{5}  " + "x" * 21 + " ", "text after the box (21 characters)"),
        (BOX, r"<think>\boxed{5}", "thought not ended"),
        (THOUGHT, "", "no thought"),
        (THOUGHT, "a </think> b", "no thought"),
        (THOUGHT, "</think> b", "no thought"),
        (THOUGHT, "Well, <think>a</think> b", "no thought"),
        (THOUGHT, "<think>a", "thought not ended"),
        (THOUGHT, "<think>a</think>", "nothing after the thought"),
        (THOUGHT, "<think>a</think> \n", "nothing after the thought"),
        (THOUGHT, "<think>a</think>b</think>c", "more than one thought"),
        (THOUGHT, "<think>a<think>b</think>c", "more than one thought"),
        (THOUGHT, "<think>a</think><think>b</think>c", "more than one thought"),
        (BOTH, r"\boxed{5}", "no thought"),
        (BOTH, r"<think>\boxed{5}</think>", "nothing after the thought"),
        (BOTH, r"<think>\boxed{5}</think> 5", "no box"),
        (BOTH, r"<think>a</think> \boxed{5} \boxed{6}", "more than one box"),
    ],
)
def test_the_first_fault(verifier, text, reason):
    assert fault(verifier, text) == reason


@pytest.mark.parametrize(
    "text",
    [
        r"Well, <think> \boxed{5}",
        r"</think> <think> \boxed{5}",
        r"<think>a</think> b <think> \boxed{5}",
    ],
)
def test_a_thought_that_is_not_ended_has_no_box_behind_it(text):
    """What the other verifiers find no answer in has not kept the form."""
    assert extract_box(text).reason == "thought not ended"
    assert fault(BOX, text) == "thought not ended"


def test_what_may_follow_the_box():
    assert fault(FormatVerifier(most_after_box=0), r"\boxed{5} ") == "form kept"
    assert fault(FormatVerifier(most_after_box=0), r"\boxed{5}.") == "text after the box (1 characters)"
    assert fault(FormatVerifier(most_after_box=30), r"\boxed{5}" + "x" * 30) == "form kept"


@pytest.mark.parametrize(
    "unit",
    [r"\boxed{", "{", "}", r"\boxed", r"\boxed{}", " ", r"\boxed{1} and ", "<think>", "</think>", "\\", "$", "\ud800"],
)
def test_work_is_linear_in_the_length(unit):
    text = r"\boxed{1}" + unit * (200_000 // len(unit)) + r"\boxed{2} or \boxed{3}"
    start = time.perf_counter()
    reasons = [fault(verifier, text) for verifier in (BOX, THOUGHT, BOTH)]
    assert time.perf_counter() - start < 15
    assert "form kept" not in reasons


@pytest.mark.parametrize("arguments", [{"box": False}, {"box": False, "thought": False}, {"most_after_box": -1}])
def test_faulty_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"ask for a form|most_after_box"):
        FormatVerifier(**arguments)


def test_interface_and_pickling():
    twin = pickle.loads(pickle.dumps(BOTH))
    assert isinstance(twin, Verifier)
    assert fault(twin, r"\boxed{5}") == "no thought"
    assert twin.verify_many([]) == []


def test_a_thought_may_be_opened_by_the_prompt():
    text = "2+3 is 5\n</think>\n\\boxed{5}"
    assert FormatVerifier(thought=True).verify_many([("<think>\n" + text, "5")])[0].reason == "form kept"
    assert FormatVerifier(thought=True).verify_many([(text, "5")])[0].reason == "no thought"
    assert FormatVerifier().verify_many([("<think>\n\\boxed{5}", "5")])[0].reason == "thought not ended"
