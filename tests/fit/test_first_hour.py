"""What a user meets in the first hour: folders that hold half a run, other checkpoints, what a run says, its export."""

import json
import re

import pytest
import torch
import yaml
from toy_runs import checkpoint, contents, curves, fit, refused, run, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from forklight.cli import main
from forklight.models.checkpoints import policy_weights
from forklight.models.loading import PolicyConfig, eos_ids, load_tokenizer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two updates."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder)
    return folder


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


# -- folders and checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--ckpt_path", "last")])
def test_a_run_that_failed_before_its_first_checkpoint_does_not_block_its_folder(tmp_path, capsys, more):
    folder = tmp_path / "run"
    fit(folder, steps=1)
    last(folder).unlink()
    (folder / "checkpoints" / "update-00000001.ckpt").unlink()
    fit(folder, *more, "--model.optimizer.lr", "0.5", steps=1)
    assert f"its files are in {folder / 'replaced-0'}" in capsys.readouterr().out
    assert [step for step, _ in curves(folder)["train/lr"]] == [1]
    assert (folder / "replaced-0" / "config-0.yaml").is_file()
    assert checkpoint(folder, 1)["global_step"] == 1


def test_a_checkpoint_does_not_go_on_in_a_new_folder_with_another_config(finished, tmp_path, capsys):
    error = refused(capsys, lambda: fit(tmp_path / "new", "--ckpt_path", last(finished), "--model.optimizer.lr", "0.5"))
    assert "lr: 0.01 -> 0.5" in error
    assert "model.init_from" in error
    assert not (tmp_path / "new").exists()
    fit(tmp_path / "new", "--ckpt_path", last(finished), steps=3)
    assert f"{last(finished)} has 2 updates, going on to 3" in capsys.readouterr().out


def test_a_checkpoint_that_has_all_updates_says_so(finished, tmp_path, capsys):
    fit(tmp_path / "new", "--ckpt_path", last(finished), steps=2)
    assert f"{last(finished)} has 2 updates: trainer.max_steps = 2 is reached" in capsys.readouterr().out


KL = ("--model.kl.coef", "0.1", "--model.kl.placement", "loss")


def test_a_new_run_from_the_weights_of_a_checkpoint_takes_nothing_else(finished, tmp_path):
    """It is the run from the exported policy, bit for bit, reference included; also when it is resumed."""
    more = (*KL, "--model.policy.random_init", "false", "--model.optimizer.lr", "0.5")
    fit(tmp_path / "exported", *more, "--model.policy.path", finished / "policy", steps=2)
    more = (*more, "--model.init_from", last(finished))
    fit(tmp_path / "new", *more, steps=1)
    fit(tmp_path / "new", *more, "--ckpt_path", "last", steps=2)
    expected, found = (weights(tmp_path / name, 2) for name in ("exported", "new"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("content", [None, b"", b"text", "cut", "no policy", "another model"])
def test_a_checkpoint_to_start_from_that_cannot_be_used_is_one_line(content, finished, tmp_path, capsys):
    path, whole = tmp_path / "start.ckpt", last(finished).read_bytes()
    if content == "no policy":
        torch.save({"state_dict": {"other": torch.zeros(1)}, "global_step": 1}, path)
    elif content == "another model":
        torch.save({"state_dict": {"policy.other": torch.zeros(1)}, "global_step": 1}, path)
    elif content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    error = refused(capsys, lambda: fit(tmp_path / "run", "--model.init_from", path))
    assert f"model.init_from {path}" in error


def test_the_best_checkpoint_is_never_worse_than_the_start(tmp_path, capsys):
    best = ("--checkpoint.best", "val/toy/avg@2", "--model.optimizer.lr", "0")
    fit(tmp_path / "run", *best, steps=2)
    scores = [score for _, score in curves(tmp_path / "run")["val/toy/avg@2"]]
    assert len(set(scores)) == 1
    error = refused(capsys, lambda: run("validate", tmp_path / "run", "--ckpt_path", "best"))
    assert "once an evaluation beats that of the start" in error


# -- what a run says ---------------------------------------------------------------------------------------------------


def test_without_a_terminal_every_rollout_and_evaluation_is_a_line_and_the_table_comes_once(tmp_path, capsys):
    fit(tmp_path / "run", "--trainer.enable_progress_bar", "true", steps=4)
    lines = capsys.readouterr().out.splitlines()
    rollouts = [line for line in lines if line.startswith("update ")]
    assert len(rollouts) == 4
    pattern = r"update 3/4, reward \d\.\d+, toy avg@2 [\d.]+ %, length \d+, [\d,]+ tokens/s, \d:\d\d:\d\d left"
    assert re.fullmatch(pattern, rollouts[2]), rollouts[2]
    assert sum(line.startswith("evaluation at update ") for line in lines) == len(
        curves(tmp_path / "run")["val/toy/avg@2"]
    )
    assert sum("avg@n" in line for line in lines) == 1
    assert f"policy saved to {tmp_path / 'run' / 'policy'}" in lines
    assert all(len(line) <= 80 for line in lines if "tokens/s" not in line and str(tmp_path) not in line)


def test_training_rollouts_can_be_kept_and_a_resumed_run_repeats_none(tmp_path):
    more = ("--monitor.rollouts_every_n", 2, "--data.updates_per_rollout", 2, "--checkpoint.keep", -1)
    fit(tmp_path / "run", *more, steps=10)
    whole = (tmp_path / "run" / "rollouts.jsonl").read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert sorted({(line["rollout"], line["step"]) for line in lines}) == [(0, 1), (2, 5), (4, 9)]
    assert len(lines) == 3 * 4 * 4
    assert len({(line["rollout"], line["uid"], line["answer"]) for line in lines}) == len(lines)
    rewards = dict(curves(tmp_path / "run")["rollout/reward"])
    assert sum(line["reward"] for line in lines if line["step"] == 5) / 16 == pytest.approx(rewards[5])
    older = tmp_path / "run" / "checkpoints" / "update-00000004.ckpt"
    fit(tmp_path / "run", *more, "--ckpt_path", older, steps=10)
    assert (tmp_path / "run" / "rollouts.jsonl").read_text() == whole


# -- settings of the Trainer that have no meaning here -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--trainer.overfit_batches", "1"], ["trainer.overfit_batches", "limit"]),
        (["--trainer.enable_checkpointing", "false"], ["trainer.enable_checkpointing", "checkpoint.every_n_rollouts"]),
        (
            ["--model.lr_scheduler", "lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor", "x"],
            ["ReduceLROnPlateau", "forklight.schedules.WarmupCosine"],
        ),
        (
            ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
            ["EarlyStopping.monitor = val_loss", "val/toy/avg@2"],
        ),
        (["--checkpoint.best", "val/toy/avg@2", "--data.val", "null"], ["checkpoint.best", "data.val"]),
    ],
)
def test_settings_that_have_no_meaning_are_refused_in_their_own_words(more, words, tmp_path, capsys):
    error = refused(capsys, lambda: fit(tmp_path / "run", *more))
    assert all(word in error for word in words), error
    assert not (tmp_path / "run" / "config-0.yaml").exists()


def test_a_warm_up_with_a_cosine_behind_it_trains(tmp_path):
    name = "--model.lr_scheduler"
    more = [name, "forklight.schedules.WarmupCosine", f"{name}.warmup", "1", f"{name}.updates", "3"]
    fit(tmp_path / "run", *more, steps=3)
    assert [lr for _, lr in curves(tmp_path / "run")["train/lr"]] == pytest.approx([0.01, 0.005, 0.0])


# -- the exported policy -----------------------------------------------------------------------------------------------


def test_the_exported_policy_stops(finished):
    """transformers' own sampling ends at every token that ends an answer in training."""
    folder = finished / "policy"
    config = GenerationConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(PolicyConfig())
    assert set(config.eos_token_id) == set(eos_ids(PolicyConfig(), tokenizer))
    assert config.pad_token_id is not None
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[config.eos_token_id[0]] += 1e3 * model.lm_head.weight.mean(0).sign()
    ids = tokenizer("3 4 5", return_tensors="pt")
    ended = model.generate(**ids, max_new_tokens=8, suppress_tokens=None)
    bound = model.generate(**ids, max_new_tokens=8, eos_token_id=-1)
    assert ended.shape[1] <= bound.shape[1] == ids["input_ids"].shape[1] + 8
    card = (folder / "README.md").read_text()
    assert "after 2 updates" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["data"]["init_args"]["answers_per_prompt"] == 4


def test_any_checkpoint_of_an_interrupted_run_can_be_exported(finished, tmp_path, capsys):
    main(["export", str(finished), "--out", str(tmp_path / "out")])
    exported, whole = contents(tmp_path / "out"), contents(finished / "policy")
    assert exported.keys() == whole.keys()
    assert exported["model.safetensors"] == whole["model.safetensors"]
    assert exported["generation_config.json"] == whole["generation_config.json"]
    main(["export", str(finished), "--checkpoint", str(finished / "checkpoints" / "update-00000001.ckpt")])
    assert capsys.readouterr().out.splitlines()[-1] == f"policy saved to {finished / 'policy-1'}"
    model = AutoModelForCausalLM.from_pretrained(finished / "policy-1")
    expected = policy_weights(finished / "checkpoints" / "update-00000001.ckpt")
    assert all(torch.equal(value, expected[f"model.{name}"]) for name, value in model.state_dict().items())


def test_what_cannot_be_exported_is_one_line(finished, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for arguments in ([tmp_path / "none"], [finished, "--checkpoint", "none.ckpt"], [finished, "--checkpoint", "best"]):
        assert str(arguments[-1]) in refused(capsys, main, ["export", *map(str, arguments)])
    error = refused(capsys, lambda: main(["export", str(finished), "--out", str(tmp_path / "full")]))
    assert "is not empty" in error
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
