"""The single-GPU recipes on the CPU: their own files, a small model on disk, real problems."""

import html
import json
from pathlib import Path

import pytest
import yaml
from small_model import write_small_model
from toy_runs import checkpoint, curves, events, run

CONFIGS = Path(__file__).parents[2] / "configs"
GSM8K, MATH = CONFIGS / "gsm8k" / "qwen2.5-0.5b.yaml", CONFIGS / "math" / "qwen3-1.7b.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model"), guesses=True)


def local(path, limit):
    """A set of problems in a file, as configs/README.md describes: what the recipe says of the hub is taken back."""
    fields = {"path": str(path), "prompt_field": "problem", "answer_field": "answer", "limit": limit}
    fields |= {"answer_pattern": "", **dict.fromkeys(("split", "subset", "revision"))}
    return {"class_path": "forklight.data.problems.ProblemFile", "init_args": fields}


def guessable(source, target):
    """The problems of a file with an answer of one digit, of which the small model gets one in ten."""
    lines = source.read_text().splitlines(keepends=True)
    target.write_text("".join(line for line in lines if json.loads(line)["answer"] in set("0123456789")))
    return target


def shrunk(folder, model, *, train, val, test=None):
    """An overlay file that takes a recipe to this machine: paths, sizes, CPU."""
    data = {"train": [train], "val": val, "prompts_per_rollout": 4, "answers_per_prompt": 8, "eval_batch_size": 8}
    data |= {"updates_per_rollout": 2, "eval_every_rollouts": 1} | ({"test": test} if test else {})
    rollout = {"max_new_tokens": 16, "overlong_buffer": 14}  # two answers of different length have an advantage
    overlay = {
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",
            "max_steps": 2,
            "accumulate_grad_batches": 2,
            "enable_progress_bar": False,
        },
        "model": {"init_args": {"policy": {"path": model}, "rollout": rollout}},
        "data": {"init_args": data},
    }
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay, sort_keys=False))
    return "--config", folder / "overlay.yaml"


def samples(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_verdicts(lines, counts):
    """Every answer to every problem has been judged, and says why."""
    assert {name: sum(line["set"] == name for line in lines) for name in counts} == counts
    assert len(lines) == sum(counts.values())
    assert {line["outcome"] for line in lines} <= {"right", "wrong"}
    assert all(line["reason"] and line["prompt"] and line["gold"] for line in lines)
    assert all(line["extracted"] in line["text"] for line in lines if line["outcome"] == "right")


def shown_prompt(folder):
    """The text with answers that TensorBoard shows, prompt included."""
    (event,) = events(folder).Tensors("rollout/answers/text_summary")
    return html.unescape(event.tensor_proto.string_val[0].decode().replace("<br>", "\n"))


def test_gsm8k_recipe(tmp_path, model, shared_data, capsys):
    source = local(shared_data("gsm8k_test.jsonl"), 12)
    overlay = shrunk(
        tmp_path, model, train=local(shared_data("gsm8k_train.jsonl"), 64), val={"gsm8k_test": {"source": source}}
    )
    folder = tmp_path / "run"
    run("fit", folder, *overlay, config=GSM8K)

    evaluations = samples(folder / "samples.jsonl")
    for step in (0, 2):  # the recipe's protocol: one greedy answer
        check_verdicts([line for line in evaluations if line["step"] == step], {"gsm8k_test": 12})
    assert "<|im_end|>\n<|im_start|>assistant\n" in shown_prompt(folder)
    assert r"put your final answer within \boxed{}." in shown_prompt(folder)

    found = curves(folder)
    assert [value for _, value in found["rollout/unjudged"]] == [0.0]
    assert all(value > 0 for _, value in found["train/tokens"] + found["train/grad_norm"])
    assert all(0.19 < value < 0.35 for _, value in found["fork/kept_share"])  # rho, rounded up to whole tokens
    assert checkpoint(folder, 2)["global_step"] == 2

    run("validate", folder, *overlay, "--ckpt_path", "last", config=GSM8K)
    again = samples(folder / "validate-0" / "samples.jsonl")
    check_verdicts(again, {"gsm8k_test": 12})
    assert again == [line for line in evaluations if line["step"] == 2]
    assert "gsm8k_test" in capsys.readouterr().out


def test_math_recipe(tmp_path, model, shared_data):
    math500, aime24 = (local(shared_data(f"{name}.jsonl"), 10) for name in ("math500", "aime24"))
    overlay = shrunk(
        tmp_path,
        model,
        train=local(guessable(shared_data("math_train.jsonl"), tmp_path / "train.jsonl"), 200),
        val={"math500": {"source": math500}, "aime24": {"source": aime24}},
        test={"math500": {"source": math500, "answers": 2}},
    )
    folder = tmp_path / "run"
    run("fit", folder, *overlay, config=MATH)

    evaluations = samples(folder / "samples.jsonl")
    for step in (0, 2):  # the recipe's answers per problem: 1 and 4
        check_verdicts([line for line in evaluations if line["step"] == step], {"math500": 10, "aime24": 40})
    assert len({line["extracted"] for line in evaluations}) > 5  # temperature 1
    assert "\n\nAssistant:\n" in shown_prompt(folder)
    assert "<|im_start|>" not in shown_prompt(folder)

    found = {tag: points[0][1] for tag, points in curves(folder).items()}
    assert found["rollout/problems_drawn"] >= 4
    assert found["rollout/solved_none"] == found["rollout/solved_all"] == 0  # dynamic sampling keeps only mixed groups
    assert found["rollout/masked_groups"] == found["rollout/unjudged"] == 0
    assert 0 < found["rollout/right"] < 1
    assert found["train/tokens"] > 0

    run("test", folder, *overlay, "--ckpt_path", "last", config=MATH)
    check_verdicts(samples(folder / "test-0" / "samples.jsonl"), {"math500": 20})
