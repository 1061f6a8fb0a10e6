"""Data as users bring them, through the command line: what is known at the start is said at the start."""

import json

import pytest
from tiny import write_model
from toy_runs import contents, curves, fit, refused
from transformers import AutoTokenizer

CHAT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{{ message['content'] }} {% endfor %}w3"
    "{% if think is defined and think %} <think>{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A random policy with a chat template that has no system role."""
    path = write_model(tmp_path_factory.mktemp("model"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(path)
    return path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(*lengths):
    return [{"problem": " ".join(["w5"] * length), "answer": str(length)} for length in lengths]


def test_a_file_that_grew_is_not_gone_on_with(tmp_path, capsys):
    file, folder = write(tmp_path / "set.jsonl", rows(*range(1, 9))), tmp_path / "run"
    fit(folder, "--data.train", file, steps=1)
    before = contents(folder)
    write(file, rows(*range(1, 11)))
    capsys.readouterr()
    more = ("--data.train", file, "--ckpt_path", "last")
    error = refused(capsys, lambda: fit(folder, *more))
    assert "the checkpoint was trained on 8 problems (sha256 " in error
    assert "the sources hold 10 problems (sha256 " in error
    assert contents(folder) == before
    write(file, rows(*range(1, 9)))
    fit(folder, *more)
    assert [step for step, _ in curves(folder)["rollout/reward"]] == [1, 2]


def test_prompts_that_are_too_long_are_refused_before_anything_is_written(chat_model, tmp_path, capsys):
    file = write(tmp_path / "set.jsonl", rows(1, 2, 3, 4, 80))
    more = ("--model.policy.path", chat_model, "--data.train", file, "--data.template.kind", "base")
    error = refused(capsys, lambda: fit(tmp_path / "run", *more, "--data.val", "null"))
    assert "data.train: 1 of 5 prompts are too long: the model reads 64 tokens, max_new_tokens = 6 leaves 58" in error
    assert "data.overlong: drop" in error
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_too_long_are_dropped_on_request(chat_model, tmp_path, caplog):
    file = write(tmp_path / "set.jsonl", rows(1, 2, 3, 4, 80))
    more = ("--model.policy.path", chat_model, "--data.train", file, "--data.template.kind", "base")
    plain = ("--model.rollout.dynamic_sampling", "false")
    fit(tmp_path / "run", *more, "--data.val", "null", "--data.overlong", "drop", *plain, steps=1)
    assert "1 of 5 prompts are too long" in caplog.text
    assert curves(tmp_path / "run")["rollout/epoch"] == [(1, 1.0)]  # 4 problems are drawn, and there are 4


def test_rows_of_verl_with_all_that_a_template_can_do(chat_model, tmp_path, caplog):
    turns = [{"role": "system", "content": "w4"}, {"role": "user", "content": "w5"}]
    verl = [{"prompt": [*turns[i % 2 :]], "reward_model": {"ground_truth": str(i)}} for i in range(2)]
    verl += [
        {"prompt": [{"role": "user", "content": f"w{i}"}], "reward_model": {"ground_truth": "1"}} for i in (6, 7, 8)
    ]
    template = {
        "kind": "chat",
        "text": "{problem}",
        "chat_template_kwargs": {"think": True},
        "few_shot": [{"problem": "w9", "answer": "w10"}],
        "prefill": " w11",
    }
    more = (
        "--data.template",
        json.dumps(template),
        "--data.val",
        "null",
        "--model.rollout.keep_special_tokens",
        "[<eos>]",
    )
    fit(tmp_path / "run", "--model.policy.path", chat_model, "--data.train", write(tmp_path / "v.jsonl", verl), *more)
    assert "`prompt` is read in its place" in caplog.text
    assert "has no system role" in caplog.text
    assert len(curves(tmp_path / "run")["rollout/reward"]) == 2


def test_short_class_names_of_sources(tmp_path):
    file = write(tmp_path / "set.jsonl", rows(*range(1, 9)))
    sources = [{"class_path": "ProblemFile", "init_args": {"path": str(file)}}, str(file)]
    val = {"toy": {"source": {"class_path": "CountdownProblems", "init_args": {"size": 6, "split": "eval"}}}}
    fit(tmp_path / "run", "--data.train", json.dumps(sources), "--data.val", json.dumps(val), steps=1)
    assert (tmp_path / "run" / "policy").is_dir()
