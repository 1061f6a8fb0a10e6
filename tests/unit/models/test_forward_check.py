"""Log-probabilities that are not the model's own are refused, and packed rows that are wrong are not used."""

import pytest
import torch
from architectures import write
from tiny import VOCABULARY, load, write_model

from forklight.algo.logprobs.transform import LogitTransform
from forklight.distributed import Ranks
from forklight.errors import WeightSyncError
from forklight.models import policy as policy_file
from forklight.models.forward_check import forward_check, probe
from forklight.models.loading import say_once
from forklight.sampling.hf import HFSampler
from forklight.sampling.weight_check import WeightSyncCheck


def test_the_probe_has_two_answers_to_each_of_two_prompts_and_is_spread_over_the_vocabulary():
    x = probe(10**6, torch.device("cpu"))
    prompts = x.input_ids[:, :7]
    assert torch.equal(prompts[0], prompts[1]) and torch.equal(prompts[2], prompts[3])
    assert not torch.equal(prompts[0], prompts[2])
    assert not torch.equal(x.input_ids[0, 7:16], x.input_ids[1, 7:16])
    assert x.input_ids.max() > 500_000
    assert x.answer_mask.sum(1).tolist() == [17, 9, 12, 16]


@pytest.mark.parametrize(
    ("dtype", "transform"),
    [
        ("float32", LogitTransform(scale=1.01)),
        ("float64", LogitTransform(scale=1.01)),
        ("float32", LogitTransform(softcap=20.0)),
        ("bfloat16", LogitTransform(scale=1.5)),
    ],
)
def test_logits_of_another_kind_are_refused_by_name(tmp_path, monkeypatch, dtype, transform):
    monkeypatch.setattr(policy_file, "logit_transform", lambda model: transform)
    policy = load(write_model(tmp_path), dtype)
    with pytest.raises(ValueError, match=r"model\.policy\.path: qwen3 cannot be trained.*of 54 differences") as error:
        forward_check(policy)
    assert "\n" not in str(error.value)


def test_an_unknown_multiplier_is_refused(tmp_path, monkeypatch):
    """Falcon-H1 multiplies its logits; without that both trainer and sampler would be wrong alike."""
    monkeypatch.setattr(policy_file, "logit_transform", lambda model: LogitTransform())
    policy = load(write(tmp_path, "falcon_h1"), "float32")
    assert WeightSyncCheck(None, Ranks()).sync(HFSampler(), policy) < 1e-4
    with pytest.raises(ValueError, match="falcon_h1 cannot be trained"):
        forward_check(policy)


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_rounding_passes_and_nothing_is_left_behind(tmp_path, dtype, largest):
    policy = load(write_model(tmp_path), dtype)
    work, random, training = dict(policy.work), torch.get_rng_state(), policy.model.training
    assert forward_check(policy) < largest
    assert policy.packing
    assert policy.work == work
    assert policy.model.training == training
    assert torch.equal(torch.get_rng_state(), random)


def test_under_autocast_the_tolerance_is_that_of_half_precision(tmp_path):
    policy = load(write_model(tmp_path), "float32")
    with torch.autocast("cpu", torch.bfloat16):
        assert forward_check(policy) > 1e-3


def test_packed_rows_that_are_wrong_are_not_used_and_it_is_said(tmp_path, caplog):
    policy = load(write(tmp_path, "nemotron"), "float32")
    say_once.cache_clear()
    assert policy.packing
    assert forward_check(policy) < 1e-5
    assert not policy.packing
    assert "model.policy.packing: nemotron computes packed rows wrongly" in caplog.text


def test_all_ranks_stop_together(tmp_path):
    policy = load(write_model(tmp_path), "float32")
    with pytest.raises(ValueError, match="qwen3 cannot be trained"):
        forward_check(policy, lambda values: values + 1)


def test_the_sampler_is_not_blamed_for_packed_rows(tmp_path):
    policy = load(write(tmp_path, "nemotron"), "float32")
    with pytest.raises(WeightSyncError, match=r"it is the trainer that is wrong, set model\.policy\.packing = false"):
        WeightSyncCheck(None, Ranks()).sync(HFSampler(), policy)
    assert policy.packing


def test_numbers_that_are_not_finite_are_left_to_the_rollout(tmp_path):
    policy = load(write_model(tmp_path), "float32")
    with torch.no_grad():
        policy.head_weight.fill_(torch.nan)
    assert forward_check(policy) == 0
    assert len(policy.head_weight) == VOCABULARY
