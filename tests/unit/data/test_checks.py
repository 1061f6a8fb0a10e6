"""Golds are read and verifiers tried before a run."""

import logging
import operator

import pytest

from forklight.data.checks import check_golds, check_verifier
from forklight.data.datamodule import MathDataModule
from forklight.data.problems import ProblemFile
from forklight.data.sets import EvalSet
from forklight.types import Problem, Verdict
from forklight.verify import ChoiceVerifier, FunctionVerifier, IntegerVerifier, MathVerifier, Weighted, WeightedVerifier


def problems(*golds):
    return [Problem.make(f"problem {i}", gold, "set") for i, gold in enumerate(golds)]


WORKED = "He has 24 more.\n#### 72"


def test_golds_that_math_verifier_can_read():
    readable = [
        "72",
        r"\frac{1}{2}",
        "x^2+1",
        "(1,2]",
        "A",
        r"\text{east}",
        "Evelyn",
        "10:30 PM",
        r"so \boxed{5}",
        "1, 2",
    ]
    unreadable = [WORKED, "<answer>72</answer>", "The answer is 72.", r"\frac{1}{", "", "1" * 2000]
    with MathVerifier(workers=1) as verifier:
        assert verifier.gold_faults(readable) == [""] * len(readable)
        faults = verifier.gold_faults(unreadable)
    assert all(faults), faults


def test_of_many_formulas_all_are_parsed_where_some_are_broken(monkeypatch):
    monkeypatch.setattr("forklight.verify.math.verifier.FIRST_PARSED", 3)
    parsed = []
    judge = MathVerifier.verify_many
    monkeypatch.setattr(
        MathVerifier, "verify_many", lambda self, pairs: parsed.append([g for _, g in pairs]) or judge(self, pairs)
    )
    fine = [f"x^2+{n}y" for n in range(2, 11)]
    with MathVerifier(workers=1) as verifier:
        assert not any(verifier.gold_faults(fine))
        assert parsed == [fine[::3]]
        broken = [r"\frac{1}{", *fine[:4], r"\frac{2}{"]
        assert [bool(fault) for fault in verifier.gold_faults(broken)] == [True, False, False, False, False, True]
    assert parsed[1:] == [broken[::2], broken[1::2]]


def test_gsm8ks_own_golds_are_refused_with_the_pattern_to_set():
    with MathVerifier(workers=1) as verifier:
        with pytest.raises(ValueError, match="cannot read") as error:
            check_golds(problems(*[WORKED] * 4), verifier, 0.05, "data.train (gsm)")
        check_golds(problems(*["72"] * 4), verifier, 0.05, "data.train (gsm)")
    message = str(error.value)
    assert message.startswith("data.train (gsm): MathVerifier cannot read 4 of 4 golds (100.0%): ")
    assert "data.unreadable_golds = 0.05" in message
    assert r"answer_pattern: '####\s*(.+)'" in message
    assert "\n" not in message
    assert len(message) < 450


def test_a_small_share_is_listed_and_a_larger_one_refused(caplog):
    few = problems(*["7"] * 97, "1,200", "-5", "2.5")
    with caplog.at_level(logging.WARNING):
        check_golds(few, IntegerVerifier(), 0.03, "data.val.aime")
    assert "data.val.aime: IntegerVerifier cannot read 3 of 100 golds (3.0%): '1,200' (no whole number" in caplog.text
    with pytest.raises(ValueError, match=r"3 of 100 golds .* data.unreadable_golds = 0.02"):
        check_golds(few, IntegerVerifier(), 0.02, "data.val.aime")
    with pytest.raises(ValueError, match="ChoiceVerifier cannot read"):
        check_golds(few, ChoiceVerifier(), 0.5, "data.train")
    caplog.clear()
    check_golds(few, FunctionVerifier(operator.eq), 0.0, "data.train")
    with pytest.raises(ValueError, match="WeightedVerifier cannot read"):
        check_golds(few, WeightedVerifier({"answer": Weighted(IntegerVerifier())}), 0.0, "data.train")
    assert caplog.text == ""


def test_the_golds_of_gsm8k_that_are_no_contest_answers_are_found_at_once(shared_data):
    found = ProblemFile(str(shared_data("gsm8k_train.jsonl"))).read()
    with pytest.raises(ValueError, match=r"IntegerVerifier cannot read \d+ of 7\d+ golds \(1\d\.\d%\)"):
        check_golds(found, IntegerVerifier(), 0.05, "data.train")


class Nothing:
    def verify_many(self, pairs):
        return [Verdict("unjudged", "no idea") for _ in pairs]


class Judges:
    calls = 0

    def verify_many(self, pairs):
        self.calls += 1
        return [Verdict("right" if gold in text else "wrong", "in it") for text, gold in pairs]


def test_what_a_trial_finds_stops_warns_or_is_not_looked_for(caplog):
    with pytest.raises(ValueError, match=r"data.verifier, tried before the run: .*no idea.*data.reward_trial: warn"):
        check_verifier(problems("5"), Nothing(), "error", "data.verifier")
    check_verifier(problems("5"), Nothing(), "off", "data.verifier")
    assert caplog.text == ""
    check_verifier(problems("5"), Nothing(), "warn", "data.verifier")
    assert "no idea" in caplog.text


class Listed:
    def __init__(self, *golds):
        self.golds = golds

    def read(self):
        return problems(*self.golds)


def test_the_data_module_checks_training_and_evaluations_each_once():
    verifier = Judges()
    data = MathDataModule(train=[Listed("5", "6")], val={"a": EvalSet(Listed("7"))}, verifier=verifier)
    assert data.read() == 2
    data.setup("fit")
    assert verifier.calls == 1
    bad = MathDataModule(train=[Listed("5")], val={"a": EvalSet(Listed("5"), verifier=Nothing())}, verifier=verifier)
    with pytest.raises(ValueError, match=r"data.val.a.verifier, tried before the run"):
        bad.setup("validate")
    with pytest.raises(ValueError, match=r"data.train \(set\): IntegerVerifier cannot read 1 of 1 golds"):
        MathDataModule(train=[Listed("x")], verifier=IntegerVerifier()).read()
    MathDataModule(train=[Listed("x")], verifier=IntegerVerifier(), unreadable_golds=1.0).read()


@pytest.mark.parametrize(
    ("settings", "words"), [({"unreadable_golds": 2}, "data.unreadable_golds = 2"), ({"reward_trial": "no"}, "'no'")]
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        MathDataModule(**settings)
