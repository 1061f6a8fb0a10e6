"""Tasks of reasoning-gym and their scorers, where the extra is installed."""

import pytest

from forklight.data.reasoning_gym import ReasoningGym
from forklight.types import Problem
from forklight.verify import ReasoningGymVerifier, Weighted, WeightedVerifier, judge


@pytest.fixture(scope="module")
def _installed():
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")


@pytest.fixture(scope="module")
def verifier(_installed):
    with ReasoningGymVerifier(workers=1, timeout=60.0) as verifier:
        yield verifier


@pytest.mark.usefixtures("_installed")
def test_problems_are_the_same_every_time():
    source = ReasoningGym("basic_arithmetic", 20, seed=3, options={"min_terms": 2, "max_terms": 2})
    problems = source.read()
    assert problems == source.read()
    assert 10 < len(problems) <= 20
    assert problems != ReasoningGym("basic_arithmetic", 20, seed=4, options={"min_terms": 2, "max_terms": 2}).read()
    assert {problem.source for problem in problems} == {"basic_arithmetic"}
    assert problems[0].fields["metadata"]["num_terms"] == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arc_agi's data: a file is left open
@pytest.mark.parametrize("task", ["basic_arithmetic", "countdown", "arc_agi"])
def test_golds_are_right_and_other_texts_are_not(task, verifier):
    problems = ReasoningGym(task, 2).read()
    right = judge(verifier, [(f"So\n<answer> {problem.answer}\n</answer>", problem) for problem in problems])
    assert [(verdict.outcome, verdict.reward, verdict.reason) for verdict in right] == [("right", 1.0, task)] * 2
    wrong = judge(verifier, [("<answer>zz</answer>", problem) for problem in problems])
    assert {verdict.outcome for verdict in wrong} <= {"wrong"}


def test_what_is_judged(verifier):
    (problem,) = ReasoningGym("basic_arithmetic", 1).read()
    gold = problem.answer
    texts = {
        f"<think><answer>{gold}</answer></think> It is {gold}": "no answer tag",
        f"<think><answer>{gold}</answer>": "thought not ended",
        f"<answer>{gold}": "no answer tag",
        f"<answer>zz</answer> <answer>{gold}</answer>": "basic_arithmetic",
        f"<answer>zz <answer>{gold}</answer>": "basic_arithmetic",
    }
    verdicts = judge(verifier, [(text, problem) for text in texts])
    assert [verdict.reason for verdict in verdicts] == list(texts.values())
    assert [verdict.outcome for verdict in verdicts] == ["wrong"] * 3 + ["right"] * 2
    assert verdicts[3].extracted == gold


def test_a_part_of_a_sum_sees_the_problem(verifier):
    (problem,) = ReasoningGym("basic_arithmetic", 1).read()
    both = WeightedVerifier({"score": Weighted(verifier, 2.0)})
    assert judge(both, [(f"<answer>{problem.answer}</answer>", problem)])[0].reward == 2.0


@pytest.mark.usefixtures("_installed")
def test_the_box():
    (problem,) = ReasoningGym("basic_arithmetic", 1).read()
    with ReasoningGymVerifier(part="box", workers=1, timeout=60.0) as verifier:
        verdicts = judge(verifier, [(rf"\boxed{{{problem.answer}}}", problem), (f"<answer>{problem.answer}", problem)])
    assert [(verdict.outcome, verdict.reason) for verdict in verdicts] == [
        ("right", "basic_arithmetic"),
        ("wrong", "no box"),
    ]


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "no_such"}, "the task 'no_such' of reasoning-gym with {}: Dataset 'no_such' not registered"),
        ({"task": "basic_arithmetic", "options": {"terms": 2}}, "'basic_arithmetic' .* unexpected keyword"),
    ],
)
def test_unknown_tasks_and_options_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        ReasoningGym(size=2, **settings).read()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"pip install 'forklight\[reasoning-gym\]'"):
        ReasoningGym("basic_arithmetic", 2).read()


def test_other_problems_are_refused():
    verifier = ReasoningGymVerifier(workers=1)
    with pytest.raises(ValueError, match="is of no task"):
        judge(verifier, [("<answer>5</answer>", Problem.make("2 + 3?", "5", "test"))])
    with pytest.raises(ValueError, match="not pairs of texts"):
        verifier.verify_many([("5", "5")])
    with pytest.raises(ValueError, match="part must be one of tag, box"):
        ReasoningGymVerifier(part="all")
    with pytest.raises(ValueError, match="size = 0"):
        ReasoningGym("basic_arithmetic", 0).read()
