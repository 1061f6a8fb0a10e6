"""Verifiers of the user's are tried on made-up answers."""

import sys

import pytest

from forklight.types import Problem, Verdict
from forklight.verify import (
    CountdownVerifier,
    FunctionVerifier,
    IntegerVerifier,
    Weighted,
    WeightedVerifier,
    judge,
)
from forklight.verify.trial import try_out

PROBLEMS = [Problem.make(f"What is {n} + {n}?", str(2 * n), "school", {"level": n}) for n in range(9)]

MODULE = """
def fine(answer, gold): return float(gold in answer)
def typo(answer, gold): return float(anwser == gold)
def forgets(answer, gold):
    if gold in answer: return 1.0
def text(answer, gold): return "1.0"
def nan(answer, gold): return float("nan")
def always(answer, gold): return True
def never(answer, gold): return 0.1
def wants(answer, gold, levle): return 1.0
def level(answer, gold, *, level): return float(gold in answer) * (level >= 0)
def trl(prompts, completions, level, **kwargs): return [float(kwargs["gold"][0] in c) for c in completions]
def chat(completions, ground_truth, **kwargs):
    return [float(truth in c[0]["content"]) for c, truth in zip(completions, ground_truth)]
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(ground_truth in solution_str), "source": data_source}
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """A user's module."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "forklight_test_trial.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import forklight_test_trial

        yield forklight_test_trial
        del sys.modules["forklight_test_trial"]


def tried(function):
    with FunctionVerifier(function, workers=1) as verifier:
        return try_out(verifier, PROBLEMS)


@pytest.mark.parametrize("name", ["fine", "level", "trl", "chat", "compute_score"])
def test_what_judges_its_golds_has_no_faults(rewards, name):
    assert tried(getattr(rewards, name)) == ([], [])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("typo", "typo('0', '0'): the function failed (NameError: name 'anwser' is not defined); 15 of 15 trial"),
        ("forgets", "not a number (NoneType); 3 of 15 trial answers could not be judged"),
        ("text", "text('0', '0'): not a number (str); 15 of 15"),
        ("nan", "nan('0', '0'): not a number (nan); 15 of 15"),
        ("wants", "no field for the parameter `levle` (fields of the problem: level)"),
    ],
)
def test_a_function_that_cannot_judge_is_named_with_its_call(rewards, name, words):
    ((fault,), warnings) = tried(getattr(rewards, name))
    assert words in fault
    assert warnings == []
    assert "\n" not in fault


def test_what_may_be_meant_is_a_warning(rewards):
    (faults, (never,)) = tried(rewards.never)
    assert faults == []
    assert "finds none of its own golds right" in never
    assert "rewards 0.1 to 0.1" in never
    (faults, (always,)) = tried(rewards.always)
    assert faults == []
    assert 'finds the answer "I don\'t know." right' in always


def test_the_parts_of_a_sum_are_tried_one_by_one(rewards):
    with FunctionVerifier(rewards.typo, workers=1) as typo:
        parts = {"answer": Weighted(IntegerVerifier()), "mine": Weighted(typo, 0.1)}
        (fault,) = try_out(WeightedVerifier(parts), PROBLEMS).faults
    assert "anwser" in fault
    for ours in (IntegerVerifier(), CountdownVerifier()):
        assert try_out(ours, PROBLEMS) == ([], [])
    assert try_out(WeightedVerifier({"mine": Weighted(typo)}), []) == ([], [])


class Raises:
    def verify_many(self, pairs):
        return {}["key"]


class Forgets:
    def verify_many(self, pairs):
        [Verdict("right", "yes") for _ in pairs]


class Bare:
    def verify_many(self, pairs):
        return [1.0 for _ in pairs]


class Shrugs:
    def verify_many(self, pairs):
        return [Verdict("unjudged", "no idea") for _ in pairs]


@pytest.mark.parametrize(
    ("verifier", "words"),
    [
        (Raises(), r"Raises failed with KeyError: 'key' \(.*test_trial.py:\d+\)"),
        (Forgets(), "Forgets returned NoneType in place of a list of 2 Verdict"),
        (Bare(), "Bare returned list with float in place of a list of 2 Verdict"),
    ],
)
def test_a_class_that_raises_or_returns_something_else_is_named(verifier, words):
    with pytest.raises(ValueError, match=words):
        judge(verifier, [("5", PROBLEMS[0]), ("6", PROBLEMS[1])])
    assert len(try_out(verifier, PROBLEMS).faults) == 1


def test_a_class_that_judges_nothing_is_a_fault():
    (fault,) = try_out(Shrugs(), PROBLEMS).faults
    assert fault.startswith("Shrugs on the answer '0' to the gold '0': no idea; 15 of 15")
