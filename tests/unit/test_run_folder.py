"""The rules of the run folder, without a run in it."""

import itertools

import pytest
import torch
import yaml

from forklight.run_folder import MAY_CHANGE, RunFolder, RunFolderError

CONFIG = {"trainer": {"max_steps": 4, "callbacks": None}, "model": {"init_args": {"lr": 0.1, "sizes": [1, 2]}}}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def saved(folder, update, *, last=True):
    """A checkpoint of so many updates."""
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    path = folder.checkpoints / f"update-{update:08d}.ckpt"
    torch.save({"global_step": update}, path)
    if last:
        (folder.checkpoints / "last.ckpt").unlink(missing_ok=True)
        (folder.checkpoints / "last.ckpt").symlink_to(path.name)
    return path


@pytest.fixture
def run(folder):
    """A folder in which a run has got to update 2."""
    folder.keep_config(CONFIG)
    saved(folder, 1)
    saved(folder, 2)
    return folder


@pytest.mark.parametrize("ckpt_path", [None, "last"])
def test_an_empty_folder_starts_from_the_beginning(ckpt_path, folder):
    assert folder.resume_point(ckpt_path, CONFIG) is None
    folder.root.mkdir()
    assert folder.resume_point(ckpt_path, CONFIG) is None


def test_an_empty_folder_goes_on_from_a_file(folder, tmp_path):
    path = saved(RunFolder(tmp_path / "other"), 3)
    assert folder.resume_point(str(path), CONFIG) == path


def test_what_other_verbs_left_is_no_run(folder):
    assert folder.numbered("validate").name == "validate-0"
    assert folder.numbered("predict").name == "predict-0"
    assert folder.is_empty
    (folder.root / "validate-notes.txt").write_text("mine")
    assert not folder.is_empty


def test_last_is_the_link_and_a_file_is_itself(run):
    assert run.resume_point("last", CONFIG) == run.checkpoints / "last.ckpt"
    first = run.checkpoints / "update-00000001.ckpt"
    assert run.resume_point(str(first), CONFIG) == first


def test_a_run_needs_a_word_to_go_on(run):
    with pytest.raises(RunFolderError, match="--ckpt_path last"):
        run.resume_point(None, CONFIG)


@pytest.mark.parametrize("damage", ["cut", "emptied", "not a checkpoint"])
def test_a_damaged_last_checkpoint_names_those_that_are_whole(damage, run):
    path = run.checkpoints / "update-00000002.ckpt"
    content = {"cut": path.read_bytes()[:-50], "emptied": b"", "not a checkpoint": b"text\n" * 1000}[damage]
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"intact are update-00000001\.ckpt: name one"):
        run.resume_point("last", CONFIG)
    with pytest.raises(RunFolderError, match="no intact checkpoint"):
        run.resume_point(str(path), CONFIG)
    with pytest.raises(RunFolderError, match=r"last\.ckpt"):
        run.find("last", required=True)
    assert run.find("last", required=False) is None


def test_the_first_checkpoint_is_the_last_also_without_its_link(folder):
    folder.keep_config(CONFIG)
    first = saved(folder, 1, last=False)
    assert folder.resume_point("last", CONFIG) == first
    assert folder.find("last", required=True) == first
    saved(folder, 2, last=False)
    with pytest.raises(RunFolderError, match=r"intact are update-00000001\.ckpt, update-00000002\.ckpt: name one"):
        folder.resume_point("last", CONFIG)


@pytest.mark.parametrize("ckpt_path", [None, "last"])
def test_a_run_that_ended_before_its_first_checkpoint_starts_anew_and_its_files_stay(ckpt_path, folder):
    folder.keep_config(CONFIG)
    (folder.root / "samples.jsonl").write_text("{}\n")
    folder.checkpoints.mkdir()
    (folder.checkpoints / ".update-00000001.ckpt.17.tmp").write_bytes(b"half")  # killed while it was written
    (folder.root / "notes.txt").write_text("mine")
    assert folder.resume_point(ckpt_path, changed("trainer.max_steps", 7)) is None
    assert folder.set_aside() == folder.root / "replaced-0"
    assert {path.name for path in folder.root.iterdir()} == {"replaced-0", "notes.txt"}
    assert {path.name for path in (folder.root / "replaced-0").iterdir()} == {
        "config-0.yaml", "samples.jsonl", "checkpoints",
    }  # fmt: skip
    folder.keep_config(CONFIG)
    assert folder.set_aside() == folder.root / "replaced-1"


def test_a_run_with_damaged_checkpoints_only_is_not_started_over(folder):
    folder.keep_config(CONFIG)
    saved(folder, 1).write_bytes(b"")
    with pytest.raises(RunFolderError, match="there is none; give another --run_dir"):
        folder.resume_point("last", CONFIG)
    assert folder.set_aside() is None


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(RunFolderError, match=str(path)):
        RunFolder(path).resume_point(None, CONFIG)


def changed(key, value):
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    *parents, name = key.split(".")
    inner = config
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[name] = value
    return config


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_what_does_not_change_what_is_learnt_may_change(key, run):
    assert run.resume_point("last", changed(key, "other")) == run.checkpoints / "last.ckpt"


def test_a_group_that_may_change_may_change_in_all_its_parts(run):
    config = changed("evaluation.table", False)
    assert run.resume_point("last", config) == run.checkpoints / "last.ckpt"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.init_args.lr", 0.2, "model.init_args.lr: 0.1 -> 0.2"),
        ("model.init_args.new", 1, "model.init_args.new: None -> 1"),
        ("model.init_args.sizes", [1, 3], "model.init_args.sizes: [1, 2] -> [1, 3]"),
        ("trainer.max_steps_", 5, "trainer.max_steps_: None -> 5"),
        ("seed_everything", 1, "seed_everything: None -> 1"),
    ],
)
def test_everything_else_may_not(key, value, words, run):
    with pytest.raises(RunFolderError) as refused:
        run.resume_point("last", changed(key, value))
    assert words in str(refused.value)


def test_the_first_config_is_the_one_that_counts(run):
    run.keep_config(changed("trainer.max_steps", 8))
    assert yaml.safe_load((run.root / "config-1.yaml").read_text())["trainer"]["max_steps"] == 8
    (run.root / "config-1.yaml").write_text("overwritten: by hand\n")
    assert run.resume_point("last", CONFIG) == run.checkpoints / "last.ckpt"


def test_numbers_go_on_after_gaps(folder):
    for _ in range(12):
        folder.keep_config(CONFIG)
    (folder.root / "config-3.yaml").unlink()
    (folder.root / "config-notes.yaml").write_text("")
    folder.keep_config(CONFIG)
    assert (folder.root / "config-12.yaml").is_file()
    names = [folder.numbered("test").name for _ in range(11)]
    assert names == [f"test-{n}" for n in range(11)]
    (folder.root / "test-0").rmdir()
    assert folder.numbered("test").name == "test-11"
    assert all(a != b for a, b in itertools.pairwise(names))
