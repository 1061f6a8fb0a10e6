"""Every config that ships is valid, also without GPU and network, and so is what configs/README.md tells to type."""

import re
import shlex
import socket
from math import isfinite
from pathlib import Path

import pytest
import yaml
from toy_runs import curves, fit, run

from forklight.cli import main
from forklight.presets import expand

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]
CONTENTS = {name: expand(yaml.safe_load((CONFIGS / name).read_text())) for name in FILES}
WHOLE = [name for name in FILES if "model" in CONTENTS[name] and not name.startswith("overlay/")]
EVALS = [name for name in FILES if name.startswith("eval/")]
RLVR = [name for name in WHOLE if CONTENTS[name]["model"]["class_path"] == "forklight.module.ForkGRPOModule"]
OVERLAYS = [name for name in FILES if name not in (*WHOLE, *EVALS)]
STACKS = [(name,) for name in WHOLE] + [("math/qwen3-1.7b.yaml", f"overlay/{name}.yaml") for name in ("gspo", "archer")]
STACKS += [("math/qwen3-1.7b.yaml", name) for name in EVALS]
"""Every config alone, and overlays of other classes over one that has arguments of its own for the class before."""
README = (CONFIGS / "README.md").read_text()


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No GPU to be seen, no host to be reached."""

    def refuse(*_):
        raise AssertionError("a config was read over the network")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def parsed(capsys, *args):
    with pytest.raises(SystemExit) as done:
        main([*args, "--print_config"])
    out, err = capsys.readouterr()
    assert done.value.code == 0, err
    return yaml.safe_load(out)


def lost(given, found, key=""):
    """The keys whose values did not arrive as they were given."""
    if isinstance(given, str) and isinstance(found, dict) and "class_path" in found:
        found = found["class_path"]
    if isinstance(given, dict) and isinstance(found, dict):
        return [k for name, value in given.items() for k in lost(value, found.get(name), f"{key}.{name}")]
    if isinstance(given, list) and isinstance(found, list) and len(given) == len(found):
        return [k for i, pair in enumerate(zip(given, found, strict=True)) for k in lost(*pair, f"{key}[{i}]")]
    return [] if given == found else [f"{key}: {given!r} became {found!r}"]


def test_there_are_configs():
    assert set(WHOLE) >= {"countdown/base.yaml", *RLVR}
    assert set(RLVR) >= {"countdown/grpo.yaml", "gsm8k/qwen2.5-0.5b.yaml", "math/qwen3-1.7b.yaml"}


@pytest.mark.parametrize("names", STACKS, ids=" + ".join)
def test_a_config_arrives_whole(names, capsys):
    found = parsed(capsys, "fit", *(arg for name in names for arg in ("--config", str(CONFIGS / name))))
    assert lost(CONTENTS[names[-1]], found) == []
    assert found["trainer"]["max_steps"] > 0
    assert found["run_dir"].startswith("runs/")


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_config_is_for_all_verbs(verb, capsys):
    name = "math/qwen3-1.7b.yaml"
    assert lost(CONTENTS[name], parsed(capsys, verb, "--config", str(CONFIGS / name))) == []


@pytest.mark.parametrize("name", EVALS)
def test_a_config_of_benchmarks_replaces_the_sets_before(name, capsys):
    stack = ("--config", str(CONFIGS / "countdown" / "grpo.yaml"), "--config", str(CONFIGS / name))
    found = parsed(capsys, "validate", *stack)["data"]["init_args"]
    sets = CONTENTS[name]["data"]["init_args"]["val"]
    assert list(found["val"]) == list(found["test"]) == list(sets)
    for key, given in found["val"].items():
        assert given["source"]["init_args"]["name"] == key
        assert given["seed"] == 0


@pytest.mark.parametrize("name", [name for name in WHOLE if name.startswith("countdown/")])
def test_a_config_without_downloads_runs(name, tmp_path):
    more = ("--trainer.fast_dev_run", "true", "--model.policy.path", "tiny", "--model.policy.random_init", "true")
    run("fit", tmp_path / "run", *more, config=CONFIGS / name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_arrives_whole(name, capsys):
    found = parsed(capsys, "fit", "--config", str(CONFIGS / "countdown" / "grpo.yaml"), "--config", str(CONFIGS / name))
    assert lost(CONTENTS[name], found) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_trains(name, tmp_path):
    more = ("--config", CONFIGS / name, "--data.val", "null", "--data.updates_per_rollout", "2")
    # a limit before which some answers end
    fit(tmp_path / "run", *more, "--model.policy.random_init", "false", "--model.rollout.max_new_tokens", 16, steps=2)
    kept = yaml.safe_load((tmp_path / "run" / "config-0.yaml").read_text())
    assert lost(CONTENTS[name], kept) == []
    found = dict(curves(tmp_path / "run")["train/policy_loss"])
    assert set(found) == {1, 2}
    assert all(isfinite(value) for value in found.values())
    assert any(found.values())


@pytest.fixture
def overlay(tmp_path, monkeypatch):
    """The README's overlay, where the README's commands look for it."""
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my-data.yaml").write_text(block)
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    return yaml.safe_load(block)


def test_the_commands_of_the_readme_are_valid(overlay, capsys):
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    commands = [line for block in blocks for line in re.split(r"\n(?=forklight )", block.strip())]
    assert len(commands) > 5
    for command in commands:
        program, *args = shlex.split(command.replace("\\\n", " "))
        assert program == "forklight"
        parsed(capsys, *args)


def test_problems_in_files_replace_those_of_the_hub(overlay, capsys):
    recipe = "configs/gsm8k/qwen2.5-0.5b.yaml"
    found = parsed(capsys, "fit", "--config", recipe, "--config", "my-data.yaml")["data"]["init_args"]
    assert lost(overlay["data"]["init_args"], found) == []
    assert found["train"][0]["init_args"]["name"] == "gsm8k_train"
    assert found["val"]["gsm8k_test"]["answers"] == 1


@pytest.mark.parametrize(("column", "name"), [(-2, "gsm8k/qwen2.5-0.5b.yaml"), (-1, "math/qwen3-1.7b.yaml")])
def test_the_readme_has_the_sizes_of_the_recipes(column, name, capsys):
    found = parsed(capsys, "fit", "--config", str(CONFIGS / name))
    values = found["data"]["init_args"] | found["trainer"]
    rows = re.findall(r"^\| [PGKA] \|.*", README, re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        cells = row.strip("| ").split("|")
        key = cells[2].strip(" `").partition(".")[2]
        assert int(cells[column]) == values[key], key
