"""Benchmarks by name: files in place of the hub, sizes, prompts, verifiers, protocols."""

import json
from typing import get_args

import pytest

from forklight.data.benchmarks import BENCHMARKS, Benchmark, BenchmarkName
from forklight.data.datamodule import MathDataModule
from forklight.data.prompts import BOXED_CHAT, PAPER_BASE, PromptTemplate
from forklight.data.sets import EvalSet, protocol
from forklight.verify import CountdownVerifier, IntegerVerifier, MathVerifier

SHARED = {name: f"{name}.jsonl" for name in BENCHMARKS} | {"gsm8k": "gsm8k_test.jsonl"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problems(count):
    return [{"problem": f"What is {i} + 0?", "answer": str(i)} for i in range(count)]


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("FORKLIGHT_DATA", raising=False)


def test_every_name_has_its_facts():
    assert list(BENCHMARKS) == list(get_args(BenchmarkName))
    for name, facts in BENCHMARKS.items():
        assert facts.hub.name == name
        assert facts.hub.split
        assert len(facts.hub.revision or "") == 40
        assert Benchmark(name).source() == facts.hub
    assert {name for name, facts in BENCHMARKS.items() if facts.small} == {"aime24", "aime25", "amc23"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_real_files(name, shared_data, monkeypatch):
    path = shared_data(SHARED[name])
    found = Benchmark(name, str(path)).read()
    assert len(found) in BENCHMARKS[name].sizes
    assert {problem.source for problem in found} == {name}
    verifier = Benchmark(name).verifier()
    first = found[0]
    assert verifier.verify_many([(rf"\boxed{{{first.answer}}}", first.answer)])[0].right
    monkeypatch.setenv("FORKLIGHT_DATA", str(path.parent))
    assert Benchmark(name).read() == Benchmark(name, str(path.parent)).read() == found
    assert Benchmark(name, limit=2).read() == found[:2]


def test_every_gold_of_the_integer_benchmarks_can_be_judged(shared_data):
    for name in ("aime24", "aime25"):
        golds = [problem.answer for problem in Benchmark(name, str(shared_data(f"{name}.jsonl"))).read()]
        verdicts = IntegerVerifier().verify_many([(rf"\boxed{{{gold}}}", gold) for gold in golds])
        assert all(verdict.right for verdict in verdicts)


def test_a_file_with_the_fields_of_the_hub(tmp_path):
    rows = [{"question": f"Add {i}", "answer": f"So 1 + {i} = <<>>{i + 1}\n#### {i + 1}"} for i in range(3)]
    found = Benchmark("gsm8k", str(write(tmp_path / "mine.jsonl", rows)), limit=3).read()
    assert [(problem.prompt, problem.answer) for problem in found] == [("Add 0", "1"), ("Add 1", "2"), ("Add 2", "3")]


def test_a_list_of_answers_is_joined(tmp_path):
    rows = [{"question": "Solve", "final_answer": ["$1$", "$2$"]}, {"question": "Add", "final_answer": ["$3$"]}]
    found = Benchmark("olympiadbench", str(write(tmp_path / "olympiad.jsonl", rows)), limit=2).read()
    assert [problem.answer for problem in found] == ["$1$, $2$", "$3$"]
    with MathVerifier() as verifier:
        assert verifier.verify_many([(r"\boxed{2, 1}", found[0].answer)])[0].right


def test_uids_are_the_same_wherever_the_problems_come_from(tmp_path):
    plain = write(tmp_path / "a.jsonl", [{"problem": "Add 0", "answer": "1"}])
    hub = write(tmp_path / "b.jsonl", [{"question": "Add 0", "answer": "#### 1"}])
    assert Benchmark("gsm8k", str(plain), 1).read() == Benchmark("gsm8k", str(hub), 1).read()


def test_another_number_of_problems_is_refused(tmp_path):
    path = write(tmp_path / "aime24.jsonl", problems(29))
    with pytest.raises(ValueError, match=r"aime24\.jsonl holds 29 problems, aime24 has 30"):
        Benchmark("aime24", str(path)).read()
    assert len(Benchmark("aime24", str(path), limit=5).read()) == 5


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"aime25\.jsonl nor aime25_test\.jsonl in"):
        Benchmark("aime25", str(tmp_path)).read()
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        Benchmark("aime25", str(tmp_path / "none.jsonl")).read()
    with pytest.raises(ValueError, match="there is no benchmark 'aime26'; there are aime24, "):
        Benchmark("aime26")


def test_the_hub_out_of_reach_names_the_way_around_it(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match=r"FORKLIGHT_DATA = a folder with math500\.jsonl"):
        Benchmark("math500").read()


# -- how a set is answered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "small", "sampling"),
    [
        ("paper", True, (16, 1.0, 1.0, 0)),
        ("paper", False, (16, 1.0, 1.0, 0)),
        ("common", True, (32, 0.6, 0.95, 0)),
        ("common", False, (4, 0.6, 0.95, 0)),
        (None, False, (8, 1.0, 1.0, 0)),
    ],
)
def test_protocols(name, small, sampling):
    assert protocol(name, small) == sampling


def test_keys_override_the_protocol():
    assert EvalSet(Benchmark("aime24"), "common").sampling == (32, 0.6, 0.95, 0)
    assert EvalSet(Benchmark("math500"), "common", answers=1, temperature=0.0).sampling == (1, 0.0, 0.95, 0)
    assert EvalSet(Benchmark("aime24"), "paper", answers=64, top_k=20).sampling == (64, 1.0, 1.0, 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answers": 0}, "answers = 0"),
        ({"temperature": -1.0}, "temperature = -1"),
        ({"temperature": 0.0}, "temperature = 0 gives 8 times"),
        ({"top_p": 0.0}, "top_p = 0"),
        ({"top_k": -1}, "top_k = -1"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
    ],
)
def test_protocols_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EvalSet(Benchmark("aime24"), **settings)


@pytest.mark.parametrize(("kind", "expected"), [("chat", BOXED_CHAT), ("base", PAPER_BASE)])
def test_a_benchmark_brings_prompt_and_verifier(kind, expected):
    data = MathDataModule(template=PromptTemplate(kind, "{problem}:"), verifier=CountdownVerifier())
    batch = data._eval_batch("aime24", [], EvalSet(Benchmark("aime24")))
    assert batch.template == expected
    assert isinstance(batch.verifier, IntegerVerifier)
    own = PromptTemplate("base", "{problem}!")
    batch = data._eval_batch("math500", [], EvalSet(Benchmark("math500"), template=own, verifier=data.verifier))
    assert (batch.template, batch.verifier) == (own, data.verifier)
    shared = [data._eval_batch(name, [], EvalSet(Benchmark(name))).verifier for name in ("math500", "minerva")]
    assert shared[0] is shared[1]


def test_variables_of_the_chat_template_hold_for_benchmarks_too(tmp_path):
    path = write(tmp_path / "aime24.jsonl", problems(30))
    template = PromptTemplate(chat_template_kwargs={"enable_thinking": False}, system="Be brief.")
    data = MathDataModule(val={"a": EvalSet(Benchmark("aime24", str(path)))}, template=template)
    found = data._eval_batch("a", [], data.val_sets["a"]).template
    assert found == PromptTemplate("chat", BOXED_CHAT.text, chat_template_kwargs={"enable_thinking": False})
