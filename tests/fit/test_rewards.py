"""Rewards of one's own through the command line: found where the run starts, tried before it, told while it trains."""

import json
import subprocess
import sys

import pytest
import toy_runs
from toy_runs import TOY, curves, environment, fit, refused, run

FUNCTION = "forklight.verify.FunctionVerifier"

MODULE = """
def typo(answer, gold):
    return float(anwser == gold)

def moody(answer, gold):
    return float(len(answer) % 2) if " from " in answer or "know" in answer else None

class Raises:
    def verify_many(self, pairs: list[tuple[str, str]]) -> list["Verdict"]:
        raise KeyError("key")

class Forgets:
    def verify_many(self, pairs: list[tuple[str, str]]) -> list["Verdict"]:
        return None

from forklight.types import Verdict
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a module of rewards, which is on no path."""
    (tmp_path / "forklight_test_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop("forklight_test_mine", None)


def function(name):
    return ("--data.verifier", FUNCTION, "--data.verifier.function", f"forklight_test_mine.{name}")


def test_a_function_that_fails_is_refused_before_anything_is_written(here, capsys):
    error = refused(capsys, run, "fit", here / "run", *function("typo"))
    assert error.startswith("data.verifier, tried before the run: typo('")
    assert "the function failed (NameError: name 'anwser' is not defined)" in error
    assert not (here / "run").exists()
    error = refused(capsys, run, "validate", here / "run", *function("typo"))
    assert "anwser" in error


@pytest.mark.parametrize(
    ("name", "words"), [("Raises", "failed with KeyError: 'key'"), ("Forgets", "returned NoneType in place of a list")]
)
def test_a_class_that_fails_is_refused_in_one_line(here, name, words, capsys):
    error = refused(capsys, run, "fit", here / "run", "--data.verifier", f"forklight_test_mine.{name}")
    assert error.startswith(f"data.verifier, tried before the run: {name} ")
    assert words in error
    assert not (here / "run").exists()


def test_a_run_whose_answers_are_not_judged_says_so_and_stops_if_it_should(here, caplog, capsys):
    plain = ("--data.val", "null", "--model.rollout.dynamic_sampling", "false", "--checkpoint.keep", -1)
    fit(here / "run", *plain, *function("moody"), "--guards.unjudged.action", "stop", "--data.reward_trial", "warn")
    (line,) = [json.loads(line) for line in (here / "run" / "guards.jsonl").read_text().splitlines()]
    assert (line["step"], line["rule"]) == (1, "unjudged")
    assert line["message"].startswith("guards.unjudged: 16 of 16 answers (100%) of rollout 1 could not be judged")
    assert "not a number (NoneType) (16)" in line["message"]
    assert line["message"].endswith("; the run stops")
    assert "guards.unjudged" in caplog.text
    assert curves(here / "run")["rollout/unjudged"] == [(1, 1.0)]
    assert "forklight_test_mine.moody(answer, gold)" in capsys.readouterr().out


def test_golds_that_cannot_be_read_are_refused_before_anything_is_written(here, capsys):
    rows = [{"problem": f"What is {n} + {n}?", "answer": f"So it is\n#### {2 * n}"} for n in range(1, 5)]
    (here / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = json.dumps([{"class_path": "ProblemFile", "init_args": {"path": "raw.jsonl"}}])
    more = ("--data.train", train, "--data.val", "null", "--data.verifier", "MathVerifier")
    error = refused(capsys, run, "fit", here / "run", *more)
    assert error.startswith("data.train (raw): MathVerifier cannot read 4 of 4 golds (100.0%)")
    assert r"answer_pattern: '####\s*(.+)'" in error
    assert not (here / "run").exists()


def test_components_of_the_package_need_no_module(here):
    """As `--model.objective Gspo` does."""
    data = {
        "verifier": {"class_path": "WeightedVerifier", "init_args": {"parts": {
            "answer": {"verifier": {"class_path": "IntegerVerifier", "init_args": {"high": 5}}},
            "form": {"verifier": "FormatVerifier", "weight": 0.1},
        }}},
        "train": [{"class_path": "CountdownProblems", "init_args": {"size": 5}}],
        "val": {"a": {"source": {"class_path": "Benchmark", "init_args": {"name": "aime24"}}}},
    }  # fmt: skip
    (here / "more.yaml").write_text(json.dumps({"data": {"init_args": data}}))
    code = "from forklight.cli import main; import sys; main(sys.argv[1:])"
    arguments = ["fit", "--config", str(TOY), "--config", "more.yaml", "--model.sampler=HFSampler", "--print_config"]
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    for path in (
        *("verify.WeightedVerifier", "verify.IntegerVerifier", "verify.FormatVerifier", "sampling.HFSampler"),
        *("data.countdown_sets.CountdownProblems", "data.benchmarks.Benchmark"),
    ):
        assert f"forklight.{path}" in shown, path


def test_a_misspelt_short_name_is_refused(tmp_path, capsys):
    error = toy_runs.refused(capsys, run, "fit", tmp_path / "run", "--data.verifier", "MathVerifer")
    assert "verifier" in error
    assert "MathVerifer" in error
