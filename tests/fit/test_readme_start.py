"""The README's config and its Python script: copied out of it, both train, and they say the same."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from pages import README, blocks, named_block
from small_model import write_small_model
from toy_runs import curves

from forklight.algo.selection import ForkSelection
from forklight.cli import main
from forklight.data.problems import ProblemFile
from forklight.data.prompts import PromptTemplate
from forklight.data.sets import EvalSet
from forklight.models.loading import PolicyConfig
from forklight.rollout.config import RolloutConfig

TEXT = README.read_text()
YAML, SCRIPT = named_block("mine.yaml", TEXT), named_block("mine.py", TEXT)
SMALL = {"max_steps": 1, "accumulate_grad_batches": 2, "max_new_tokens": 16, "prompts_per_rollout": 4}
"""Sizes that a test can afford; everything else is as it stands in the README."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the model and the problems that the README speaks of."""
    write_small_model(tmp_path / "models" / "mine", guesses=True)
    (tmp_path / "data").mkdir()
    for name, first in (("train", 0), ("test", 100)):
        lines = [{"problem": f"What is {i} - {i - i % 10}?", "answer": str(i % 10)} for i in range(first, first + 20)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_config_trains(place):
    (place / "mine.yaml").write_text(YAML)
    data = yaml.safe_load(YAML)["data"]["init_args"]
    keys = {"max_steps": "trainer", "accumulate_grad_batches": "trainer", "max_new_tokens": "model.rollout"}
    small = [part for key, value in SMALL.items() for part in (f"--{keys.get(key, 'data')}.{key}", str(value))]
    main(["fit", "--config", "mine.yaml", *small, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"])
    found = curves(place / "runs" / "mine")
    assert len(found["train/policy_loss"]) == 1
    assert f"val/held_out/avg@{data['val']['held_out']['answers']}" in found
    assert (place / "runs" / "mine" / "policy" / "model.safetensors").is_file()


def test_the_script_trains(place):
    script = SCRIPT.replace(
        'precision="bf16-mixed"', 'precision="32-true", accelerator="cpu", enable_progress_bar=False'
    )
    for key, value in SMALL.items():
        script, count = re.subn(rf"\b{key}=\d+", f"{key}={value}", script)
        assert count == 1, key
    space = {"__name__": "__main__"}
    exec(compile(script, "mine.py", "exec"), space)
    assert space["trainer"].global_step == 1
    assert (place / "runs" / "mine" / "policy" / "model.safetensors").is_file()
    (events,) = (place / "runs" / "mine").rglob("events.out.tfevents.*")
    found = curves(events.parent)
    assert len(found["train/policy_loss"]) == 1
    assert "val/held_out/avg@4" in found


def test_the_script_is_short():
    (code,) = blocks("python", TEXT)
    statements = [line for line in code.splitlines() if line and not line.startswith(("#", "from ", "import "))]
    assert len(statements) <= 21


def test_the_script_says_what_the_config_says(place):
    space = {"__name__": "__main__"}
    exec(compile(SCRIPT.partition("trainer.fit(")[0], "mine.py", "exec"), space)
    module, data, trainer = space["module"], space["data"], space["trainer"]

    config = yaml.safe_load(YAML)
    assert {key: getattr(trainer, key) for key in config["trainer"]} == config["trainer"]
    assert Path(trainer.logger.log_dir) == Path(config["run_dir"])

    model = config["model"]["init_args"]
    assert set(model) == {"policy", "rollout", "selection", "optimizer"}
    assert module.policy_config == PolicyConfig(**model["policy"])
    assert module.rollout_config == RolloutConfig(**model["rollout"])
    assert module.config.selection == ForkSelection.preset(model["selection"]["preset"])
    optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert f"torch.optim.{type(optimizer).__name__}" == model["optimizer"]["class_path"]
    assert optimizer.defaults["lr"] == model["optimizer"]["init_args"]["lr"]

    asked = config["data"]["init_args"]
    verifier = asked.pop("verifier")
    assert verifier == f"forklight.verify.{type(data.verifier).__name__}"
    assert data.template == PromptTemplate(**asked.pop("template"))
    assert data.train_sources == [ProblemFile(**source["init_args"]) for source in asked.pop("train")]
    assert data.val_sets == {
        key: EvalSet(ProblemFile(**spec.pop("source")["init_args"]), **spec) for key, spec in asked.pop("val").items()
    }
    assert {key: getattr(data, key) for key in asked} == asked
