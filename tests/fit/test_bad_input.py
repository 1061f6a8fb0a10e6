"""Bad input: one message that names key, file and numbers, an exit code, and not a byte written."""

import json
import re
import shutil

import pytest
from tiny import write_model
from toy_runs import contents, fit, refused, run

from forklight.cli import innermost, main
from forklight.data.datamodule import MathDataModule
from forklight.data.problems import ProblemFile

MODEL, DATA = "forklight.module.ForkGRPOModule", "forklight.data.datamodule.MathDataModule"
OTHER = "lightning.pytorch.callbacks."

KEYS = {
    "unknown key": (["--bogus", "1"], ["--bogus"]),
    "unknown key of the trainer": (["--trainer.max_stepz", "1"], ["--trainer.max_stepz"]),
    "unknown key of the model": (["--model.selction.rho", "0.1"], [MODEL, "selction.rho"]),
    "unknown key of the selection": (["--model.selection.roh", "0.1"], [MODEL, "selection.roh"]),
    "unknown key of the data": (["--data.promts", "1"], [DATA, "promts"]),
    "misspelt class": (["--model", "forklight.module.ForkGRPOModul"], ["model", "ForkGRPOModul"]),
    "misspelt class without a module": (["--model", "ForkGRPOModul"], ["model", "ForkGRPOModul"]),
    "misspelt nested class": (["--data.verifier", "toy.LengthParty"], ["verifier", "LengthParty"]),
    "a stop that is no text": (["--model.rollout.stop", "[1.5]"], ["rollout.stop", "Expected a <class 'int'>"]),
    "no list of stops": (["--model.rollout.stop", "abc"], ["rollout.stop", "abc"]),
    "not a number": (["--model.selection.rho", "x"], ["selection.rho", "float", "x"]),
    "not a choice": (["--model.selection.keep", "x"], ["selection.keep", "'top', 'bottom'", "x"]),
}
"""What the parser refuses."""

VALUES = {
    "a value, by its class": (["--model.selection.rho", "1.5"], ["selection.rho", "1.5"]),
    "greedy training, by its class": (["--model.rollout.temperature", "0"], ["rollout.temperature", "0.0"]),
    "an empty stop, by its class": (["--model.rollout.stop", '["x", ""]'], ["rollout.stop", "an empty string"]),
    "a stop, by the tokenizer": (["--model.rollout.stop", "[5000]"], ["rollout.stop: token 5000", "1251 tokens"]),
    "one answer, by the data": (["--data.answers_per_prompt", "1"], ["data.answers_per_prompt", "1"]),
    "max_epochs, by the guards": (["--trainer.max_epochs", "3"], ["trainer.max_epochs = 3", "trainer.max_steps"]),
    "a callback, by the guards": (
        ["--trainer.callbacks+", OTHER + "ModelCheckpoint", "--trainer.callbacks.save_last", "true"],
        ["ModelCheckpoint.save_last = True", "last.ckpt"],
    ),
    "evaluation by share, by the command line": (
        ["--trainer.val_check_interval", "0.5"],
        ["trainer.val_check_interval = 0.5"],
    ),
    "checkpoints never, by the callback": (["--checkpoint.keep", "0"], ["checkpoint.keep = 0"]),
    "no model folder": (["--model.policy.path", "/no/such/model"], ["model.policy.path = '/no/such/model'"]),
    "a file as run folder": (["--run_dir", __file__], [f"--run_dir {__file__} is a file"]),
}
"""What others refuse, one of each kind; the tests of these others have the rest."""


@pytest.mark.parametrize("case", [*KEYS, *VALUES])
def test_a_bad_setting_is_refused(case, tmp_path, capsys):
    more, words = (KEYS | VALUES)[case]
    error = refused(capsys, run, "fit", tmp_path / "run", *more)
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


FILES = {
    "empty": ("", ["no problems"]),
    "malformed": ('{"problem": "1+1", "answer": "2"}\n{"problem":\n', [":2: not valid JSON"]),
    "without answers": ('{"problem": "1+1"}\n', [":1: no field `answer`"]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_data_file_is_refused_when_it_is_read(case, tmp_path):
    text, words = FILES[case]
    file = tmp_path / "problems.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(file))) as error:
        MathDataModule(train=[ProblemFile(str(file))]).read()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("where", ["train", "val"])
def test_a_bad_data_file_is_refused_before_anything_is_written(where, tmp_path, capsys):
    text, words = FILES["malformed"]
    file = tmp_path / "problems.jsonl"
    file.write_text(text)
    source = {"class_path": "forklight.data.problems.ProblemFile", "init_args": {"path": str(file)}}
    value = [source] if where == "train" else {"file": {"source": source}}
    error = refused(capsys, run, "fit", tmp_path / "run", f"--data.{where}", json.dumps(value))
    assert str(file) in error
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_a_missing_data_file_is_refused(tmp_path, capsys):
    source = {"class_path": "forklight.data.problems.ProblemFile", "init_args": {"path": str(tmp_path / "no.jsonl")}}
    error = refused(capsys, run, "fit", tmp_path / "run", "--data.train", json.dumps([source]))
    assert str(tmp_path / "no.jsonl") in error
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_eos_is_refused(tmp_path, capsys):
    path = write_model(tmp_path / "model", tokenizer_eos=False)
    error = refused(capsys, run, "fit", tmp_path / "run", "--model.policy.path", path)
    assert path in error
    assert "no EOS token" in error
    assert not (tmp_path / "run").exists()


def test_a_model_folder_without_weights_is_refused(tmp_path, capsys):
    path = write_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    error = refused(capsys, fit, tmp_path / "run", "--model.policy.path", path, "--model.policy.random_init", "false")
    assert path in error
    assert "model.safetensors" in error


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_config_without_model_is_refused(verb, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("trainer: {max_steps: 2}\n")
    error = refused(capsys, main, [verb, "--config", str(file), "--run_dir", str(tmp_path / "run")])
    assert "model" in error
    assert not (tmp_path / "run").exists()


def test_a_config_without_data_is_refused(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    policy = "policy: {path: tiny, random_init: true}"
    file.write_text(f"trainer: {{max_steps: 2}}\nmodel: {{class_path: {MODEL}, init_args: {{{policy}}}}}\n")
    error = refused(capsys, main, ["fit", "--config", str(file), "--run_dir", str(tmp_path / "run")])
    assert error.startswith("data:")
    assert not (tmp_path / "run").exists()


COMMANDS = [
    (["fti"], "'fit', 'validate', 'test', 'predict', 'compare', 'export'"),
    ([], "{fit,validate,test,predict,compare,export}"),
    (["fit", "--config", "/no.yaml"], "/no.yaml"),
]


@pytest.mark.parametrize(("arguments", "word"), COMMANDS)
def test_a_bad_command_is_refused(arguments, word, capsys):
    assert word in refused(capsys, main, arguments)


def test_verbs_without_an_evaluation_set_are_refused(tmp_path, capsys):
    assert "data.val" in refused(capsys, run, "validate", tmp_path / "run", "--data.val", "null")


# -- an existing run folder --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two updates."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def refused_and_untouched(capsys, folder, *more, verb="fit"):
    before = contents(folder)
    error = refused(capsys, run, verb, folder, "--trainer.max_steps", 4, *more)
    assert contents(folder) == before
    return error


def test_a_run_is_not_overwritten(folder, capsys):
    error = refused_and_untouched(capsys, folder)
    assert str(folder) in error
    assert "--ckpt_path last" in error


def test_a_run_of_another_config_is_not_continued(folder, capsys):
    more = ("--ckpt_path", "last", "--model.optimizer.lr", "0.5", "--data.answers_per_prompt", "8")
    error = refused_and_untouched(capsys, folder, *more)
    assert "optimizer.init_args.lr: 0.01 -> 0.5" in error
    assert "data.init_args.answers_per_prompt: 4 -> 8" in error


def test_an_unknown_key_leaves_the_run_alone(folder, capsys):
    assert "--bogus" in refused_and_untouched(capsys, folder, "--ckpt_path", "last", "--bogus", "1")


def test_a_guarded_setting_leaves_the_run_alone(folder, capsys):
    callback = ("--trainer.callbacks+", OTHER + "ModelCheckpoint", "--trainer.callbacks.save_last", "true")
    assert "save_last" in refused_and_untouched(capsys, folder, "--ckpt_path", "last", *callback)


@pytest.mark.parametrize(
    ("verb", "name"), [("fit", "last.ckpt"), ("fit", "update-00000002.ckpt"), ("validate", "last.ckpt")]
)
def test_a_truncated_checkpoint_is_refused(verb, name, folder, capsys):
    path = folder / "checkpoints" / name
    path.write_bytes(path.read_bytes()[:-1000])  # last.ckpt is a link: the file it points to is cut
    wanted = "last" if name == "last.ckpt" else str(path)
    error = refused_and_untouched(capsys, folder, "--ckpt_path", wanted, verb=verb)
    assert name in error
    assert "no intact checkpoint" in error
    if verb == "fit" and wanted == "last":
        assert "update-00000001.ckpt" in error


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_a_folder_without_checkpoint_is_refused(verb, folder, capsys):
    shutil.rmtree(folder / "checkpoints")
    error = refused_and_untouched(capsys, folder, "--ckpt_path", "last", verb=verb)
    assert str(folder / "checkpoints" / "last.ckpt") in error


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_a_missing_checkpoint_is_refused(verb, folder, capsys):
    missing = str(folder / "checkpoints" / "update-00000009.ckpt")
    assert missing in refused_and_untouched(capsys, folder, "--ckpt_path", missing, verb=verb)


def test_a_folder_that_holds_something_else_is_not_a_run(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    error = refused_and_untouched(capsys, folder, "--ckpt_path", "last")
    assert str(folder) in error


# -- messages ----------------------------------------------------------------------------------------------------------


def test_a_report_on_nested_unions_is_cut_to_its_reason():
    report = """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'A'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'A':
        Parser key "verifier":

          - Expected a path but x.Y either not accessible or invalid
          - Does not validate against any of the Union subtypes
          Subtypes: [<class 'B'>, <class 'NoneType'>]
          Errors:
            - module 'x' has no attribute 'Y'
            - Expected a <class 'NoneType'>
          Given value type: <class 'str'>
          Given value: x.Y
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'a': 'long'}"""
    path = 'Parser key "data": Problem with given class_path \'A\': Parser key "verifier":'
    assert innermost(report) == f"{path} module 'x' has no attribute 'Y'"


def test_other_messages_stay_as_they_are():
    message = "data.train: two\n  lines"
    assert innermost(message) == message
