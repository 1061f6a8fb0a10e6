"""Weights by name, whole, whatever adapters and shards hold them."""

import copy

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, inject_adapter_in_model
from tiny import load, write_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from forklight.models.weights import full_weights


@pytest.fixture
def tied(tmp_path):
    return load(write_model(tmp_path), "float32").model


def assert_same(found, expected, tolerance=0.0):
    found = dict(found)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=tolerance, atol=tolerance, msg=name)


def test_a_plain_models_weights_are_its_state_without_gradients(tied):
    found = dict(full_weights(tied))
    assert_same(found, tied.state_dict())
    assert not any(weight.requires_grad for weight in found.values())
    assert found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr()


def test_tied_weights_come_once_if_asked_for(tied, tmp_path):
    expected = tied.state_dict()
    del expected["lm_head.weight"]
    assert_same(full_weights(tied, tied_once=True), expected)
    untied = load(write_model(tmp_path / "untied", tie_word_embeddings=False), "float32").model
    assert_same(full_weights(untied, tied_once=True), untied.state_dict())


def test_active_adapters_are_merged(tied):
    plain, names = copy.deepcopy(tied), set(tied.state_dict())
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, tied)
    merged = dict(full_weights(tied))
    assert merged.keys() == names
    changed = {name for name, weight in plain.state_dict().items() if not torch.equal(weight, merged[name])}
    assert changed == {name for name in names if "q_proj" in name or "down_proj" in name}
    ids = torch.arange(2, 9)[None]
    expected = tied(input_ids=ids).logits
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["merged", "off"])
def test_adapters_that_are_merged_already_or_off_add_nothing(tied, how):
    before = {name: weight.clone() for name, weight in tied.state_dict().items()}
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False), tied)
    merged = {name: weight.clone() for name, weight in full_weights(tied)}
    for module in tied.modules():
        if hasattr(module, "get_delta_weight"):
            module.merge() if how == "merged" else module.enable_adapters(False)
    assert_same(full_weights(tied), merged if how == "merged" else before, tolerance=1e-6)


def test_shards_are_gathered(tied):
    expected = {name: weight.clone() for name, weight in tied.state_dict().items()}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(tied, mesh=init_device_mesh("cpu", (1,)))
        found = dict(full_weights(tied))
        assert all(type(weight) is torch.Tensor for weight in found.values())
        assert_same(found, expected)
    finally:
        dist.destroy_process_group()
