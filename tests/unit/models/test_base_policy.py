"""The base policy that ships: small, plain, and made by the config that ships beside it."""

import hashlib
import json
from pathlib import Path

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from forklight.models.loading import TINY

WEIGHTS = TINY / "model.safetensors"
PROVENANCE = json.loads((TINY / "provenance.json").read_text())


def test_weights_are_those_of_the_provenance():
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == PROVENANCE["sha256"]
    assert WEIGHTS.stat().st_size <= 3_000_000


def test_the_configs_that_made_them_ship():
    configs = Path(__file__).parents[3] / "configs" / "countdown"
    for name, stage in zip(("hits", "base"), PROVENANCE["stages"], strict=True):
        assert stage["command"] == f"forklight fit --config configs/countdown/{name}.yaml"
        assert yaml.safe_load((configs / f"{name}.yaml").read_text()) == stage["config"]
    assert PROVENANCE["seed"] == PROVENANCE["stages"][-1]["config"]["seed_everything"]


def test_loads_plainly_and_answers():
    model = AutoModelForCausalLM.from_pretrained(TINY)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 750_000
    assert model.config.max_position_embeddings == 4096
    prompt = tokenizer("reach 62 from 3, 9, 14:", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id
    steps = tokenizer.decode(answer, skip_special_tokens=True).split(";")
    assert len(steps) == 2
    assert all(step.count("=") == 1 for step in steps)
