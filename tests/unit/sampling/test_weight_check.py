"""Whether weights arrive: what the probe lets pass, what it stops, and what it blames."""

import copy
import logging
import re

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny import VOCABULARY, load, on_ranks, write_model

from forklight.distributed import Ranks
from forklight.errors import EngineError, WeightSyncError
from forklight.models.weights import full_weights
from forklight.sampling.base import Sampler, TakesWeights
from forklight.sampling.hf import HFSampler
from forklight.sampling.weight_check import TOLERANCE, WeightSyncCheck, probe_tokens


class CopyingSampler(HFSampler):
    """Samples with a copy of the policy, which does not take weights whose name matches `deaf`."""

    def __init__(self, deaf="nothing"):
        super().__init__()
        self.deaf = deaf

    def sync(self, policy):
        if not self._policy:
            self._policy = [copy.deepcopy(policy)]
            with torch.no_grad():
                for weight in self._policy[0].parameters():
                    weight.uniform_(-0.01, 0.01)
        self.push(self.weights(policy))

    def weights(self, policy):
        return full_weights(policy.model, tied_once=True)

    def push(self, weights):
        taken = {name: weight for name, weight in weights if not re.search(self.deaf, name)}
        assert not self._policy[0].model.load_state_dict(taken, strict=False).unexpected_keys


class SilentSampler(HFSampler):
    """Tells no log-probabilities."""

    def logprobs(self, sequences):
        return None


class BrokenSampler(HFSampler):
    """Cannot take weights."""

    def sync(self, policy):
        raise EngineError("out of memory")


@pytest.fixture
def policy(tmp_path):
    return load(write_model(tmp_path, tie_word_embeddings=False), "float32")


def sync(sampler, policy, tolerance=None, ranks=None):
    return WeightSyncCheck(tolerance, ranks or Ranks()).sync(sampler, policy)


def change(policy):
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.1).add_(0.01)


def test_the_probe_is_fixed_and_spread_over_the_vocabulary():
    tokens = probe_tokens(VOCABULARY)
    assert torch.equal(tokens, probe_tokens(VOCABULARY))
    assert tokens.min() >= 0
    assert len(tokens[tokens < VOCABULARY].unique()) > 20
    assert probe_tokens(10**6).max() > 500_000


def test_protocols():
    assert isinstance(CopyingSampler(), TakesWeights)
    assert isinstance(CopyingSampler(), Sampler)
    assert not isinstance(HFSampler(), TakesWeights)


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 1e-4), ("float64", 1e-10), ("bfloat16", 0.2)])
def test_a_sampler_with_the_policys_own_weights_passes(tmp_path, dtype, largest):
    policy = load(write_model(tmp_path), dtype)
    assert sync(HFSampler(), policy) <= largest


def test_nothing_is_left_behind(policy):
    work, random = dict(policy.work), torch.get_rng_state()
    mode = policy.train().model.training
    sync(HFSampler(), policy)
    assert policy.work == work
    assert policy.model.training == mode
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in policy.parameters())


def test_weights_that_are_pushed_arrive_after_every_change(policy):
    sampler = CopyingSampler()
    for _ in range(3):
        assert sync(sampler, policy) < TOLERANCE / 10
        change(policy)


@pytest.mark.parametrize(
    ("deaf", "blamed"),
    [
        ("lm_head", "lm_head.weight"),
        ("q_norm", "model.layers.*.self_attn.q_norm.weight"),
        (r"layers\.\d+\.mlp", "model.layers.*.mlp.gate_proj.weight, model.layers.*.mlp.up_proj.weight, "
                              "model.layers.*.mlp.down_proj.weight"),
        (r"model\.norm", "model.norm.weight"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("at_first", [True, False])
def test_weights_that_do_not_arrive_are_named(policy, deaf, blamed, at_first):
    sampler = CopyingSampler(deaf if at_first else "nothing")
    if not at_first:
        sync(sampler, policy)
        sampler.deaf = deaf
        change(policy)
    with pytest.raises(WeightSyncError, match=re.escape("model.rollout.weight_sync_tolerance = 0.001")) as error:
        sync(sampler, policy)
    assert str(error.value).endswith(
        f"These weights do not arrive, pushing other values for them changes nothing: {blamed}"
    )
    assert re.search(r"CopyingSampler gives token \d+ of the probe log-probability -\d+\.\d{4}", str(error.value))


def test_one_layer_that_is_missing_is_caught_too(policy):
    with pytest.raises(WeightSyncError, match="Every kind of weight arrives"):
        sync(CopyingSampler(r"layers\.1\."), policy)


def test_the_tolerance_decides(policy):
    sampler = CopyingSampler()
    sync(sampler, policy)
    sampler.deaf = ""
    with torch.no_grad():
        policy.head_weight.mul_(1.001)
    largest = sync(sampler, policy, tolerance=1.0)
    assert 1e-3 < largest < 1.0
    with pytest.raises(WeightSyncError, match=r"weight_sync_tolerance = 0\.0001"):
        sync(sampler, policy, tolerance=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_with_dropout_are_caught_with_the_trainers_own_model(policy, dropout):
    """The trainer's forward passes drop units out, the sampler's do not: two policies."""
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=dropout, init_lora_weights=False)
    inject_adapter_in_model(config, policy.model)
    policy.train()
    if not dropout:
        assert sync(HFSampler(), policy) < TOLERANCE
        assert sync(CopyingMerged(), policy) < TOLERANCE
        return
    with pytest.raises(WeightSyncError, match="adapters with dropout"):
        sync(HFSampler(), policy)


class CopyingMerged(CopyingSampler):
    """Has a plain model, which knows nothing of adapters."""

    def sync(self, policy):
        if not self._policy:
            plain = copy.deepcopy(policy)
            plain.model = type(policy.model)(policy.model.config).eval()
            plain.packing = False
            self._policy = [plain]
        self.push(self.weights(policy))


def test_all_ranks_stop_if_one_has_other_weights(policy):
    def work(ranks):
        with pytest.raises(WeightSyncError) as error:
            sync(CopyingSampler("lm_head" if ranks.rank else "nothing"), policy, ranks=ranks)
        return str(error.value)

    fine, stale = on_ranks(2, work)
    assert "on another rank" in fine
    assert "lm_head.weight" in stale


def test_all_ranks_stop_if_one_cannot_take_the_weights(policy):
    def work(ranks):
        with pytest.raises(EngineError) as error:
            sync(BrokenSampler() if ranks.rank else HFSampler(), policy, ranks=ranks)
        return str(error.value)

    assert on_ranks(2, work) == ["the sampler of another rank could not take the policy's weights", "out of memory"]


def test_a_sampler_that_tells_nothing_is_let_pass_and_named_once(policy, caplog):
    probe = WeightSyncCheck(None, Ranks())
    with caplog.at_level(logging.WARNING):
        assert [probe.sync(SilentSampler(), policy) for _ in range(2)] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "SilentSampler gives no log-probabilities: whether it has the policy's weights is not checked"
    ]


def test_a_policy_that_is_not_finite_is_left_to_the_rollout(policy):
    with torch.no_grad():
        policy.model.model.norm.weight[0] = torch.nan
    assert sync(HFSampler(), policy) == 0.0


# -- replicas ----------------------------------------------------------------------------------------------------------


def synced_on_ranks(policy, drift):
    """Each rank has a copy, which `drift` may change."""

    def work(ranks):
        mine = copy.deepcopy(policy)
        with torch.no_grad():
            drift(ranks.rank, mine)
        return sync(HFSampler(), mine, ranks=ranks)

    return on_ranks(3, work)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_equal_replicas_pass(tmp_path, dtype):
    policy = load(write_model(tmp_path), dtype)
    assert len(set(synced_on_ranks(policy, lambda rank, mine: None))) == 1


def test_a_replica_that_differs_in_the_last_bit_stops_all_ranks(policy):
    def drift(rank, mine):
        if rank == 1:
            weight = mine.body.layers[1].mlp.up_proj.weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))

    names = [name for name, _ in policy.model.named_parameters()]
    with pytest.raises(WeightSyncError) as error:
        synced_on_ranks(policy, drift)
    expected = f"the 3 ranks do not have the same weights: 1 of {len(names)} differ, the first is "
    assert str(error.value).startswith(expected + "model.layers.1.mlp.up_proj.weight. ")
    assert "trainer.strategy" in str(error.value)
