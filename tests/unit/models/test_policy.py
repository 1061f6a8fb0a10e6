import copy
import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from lightning.pytorch import Trainer
from oracle import stats_of
from tiny import EOS, load, poison, rollout_batch, write_model
from transformers import GenerationConfig

from forklight.algo.kl import KLConfig
from forklight.algo.logprobs.transform import PLAIN
from forklight.models import Policy, PolicyConfig, Reference
from forklight.models.forward_check import forward_check
from forklight.models.heads import HeadName, all_stats, differentiable_stats
from forklight.models.loading import eos_ids, load_tokenizer
from forklight.module import ForkGRPOModule

ROWS = torch.arange(18)
HEADS = get_args(HeadName)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"))


def sum_of_logp(head):
    """The sum of the log-probabilities of all tokens, by the fused loss where the head has one."""
    rows = torch.arange(len(head))
    if head.fuses:
        return head.fused_loss(rows, lambda stats, part: stats.logp)[0]
    return head.stats(rows).logp.sum()


# -- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attention", "head"), [("sdpa", "selected"), ("sdpa", "full"), ("eager", "gathered")])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_statistics_are_those_of_the_whole_model(tmp_path, attention, head, tied, temperature):
    policy = load(write_model(tmp_path, tie_word_embeddings=tied), attention=attention, head=head)
    x = rollout_batch(1)
    stats = policy(x.micro_batch(ROWS), all_stats, temperature=temperature)
    alone = stats_of(policy.model, x, ROWS.tolist(), temperature, temperature)
    # eager attention rounds its softmax to float32, also in a float64 model
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if attention == "sdpa" else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(stats.logp, torch.cat(list(alone.logp.values())), **tolerance)
    torch.testing.assert_close(stats.entropy, torch.cat(list(alone.entropy.values())).detach(), **tolerance)
    assert not stats.entropy.requires_grad
    assert stats.logp.dtype == torch.float64


def test_rows_and_padding_of_a_micro_batch(path):
    policy, x = load(path), rollout_batch(2)
    rows = torch.tensor([13, 2, 7])
    some = policy(x.micro_batch(rows), all_stats)
    padding = torch.arange(x.input_ids.shape[1]) >= (x.prompt_length + x.answer_length)[:, None]
    other = replace(x, input_ids=torch.where(padding, 37, x.input_ids))
    assert torch.equal(policy(other.micro_batch(rows), all_stats).logp, some.logp)
    logp = torch.zeros(x.answer_mask.shape, dtype=torch.float64)
    logp[x.answer_mask] = policy(x.micro_batch(ROWS), all_stats).logp
    torch.testing.assert_close(some.logp, logp[rows][x.answer_mask[rows]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_the_result_of_the_loss_function_is_returned(path, head):
    policy, micro_batch = load(path, head=head), rollout_batch(3).micro_batch(ROWS)
    loss = policy(micro_batch, sum_of_logp)
    stats = policy(micro_batch, differentiable_stats)
    assert loss.item() == pytest.approx(stats.logp.sum().item(), rel=1e-12)
    assert len(stats.logp) == len(micro_batch.row)
    found = torch.autograd.grad(loss, list(policy.parameters()))
    expected = torch.autograd.grad(stats.logp.sum(), list(policy.parameters()))
    for gradient, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_micro_batch_without_rows_is_connected_to_every_parameter(path, checkpointing, head):
    policy = load(path, gradient_checkpointing=checkpointing, head=head)
    micro_batch = rollout_batch(3).micro_batch(torch.zeros(0, dtype=torch.int64))
    stats = policy(micro_batch, all_stats)
    assert stats.logp.shape == stats.entropy.shape == (0,)
    policy(micro_batch, sum_of_logp).backward()
    for parameter in policy.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_gradient_checkpointing_recomputes_the_same_gradients(path):
    gradients = []
    for checkpointing in (False, True):
        policy, calls = load(path, gradient_checkpointing=checkpointing), []
        policy.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        micro_batch = rollout_batch(4).micro_batch(ROWS)
        policy(micro_batch, sum_of_logp).backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
        assert len(calls) == 1 + checkpointing
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", ["selected", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_statistics_are_at_least_float32(path, dtype, head):
    policy = load(path, dtype, head=head)
    assert policy.head_weight.dtype == getattr(torch, dtype)
    stats = policy(rollout_batch(0).micro_batch(ROWS), all_stats)
    assert stats.logp.dtype == stats.entropy.dtype == (torch.float64 if dtype == "float64" else torch.float32)


# -- loading -----------------------------------------------------------------------------------------------------------


def test_random_init_takes_the_architecture_only(path):
    torch.manual_seed(3)
    drawn = load(path, random_init=True)
    torch.manual_seed(3)
    again = load(path, random_init=True)
    stored = load(path)
    assert torch.equal(drawn.head_weight, again.head_weight)
    assert drawn.head_weight.shape == stored.head_weight.shape
    assert not torch.equal(drawn.head_weight, stored.head_weight)


@pytest.mark.parametrize("missing", ["/nowhere/model", "./nowhere", "~/nowhere", "nowhere", "runs/a/export"])
@pytest.mark.parametrize("build", [Policy, load_tokenizer])
def test_a_missing_folder_is_an_error_with_the_key(missing, build):
    with pytest.raises(FileNotFoundError, match=rf"model\.policy\.path = '{missing}'"):
        build(PolicyConfig(path=missing))


def test_dropout_is_set_to_0_and_it_is_said_once(tmp_path, caplog):
    path = write_model(tmp_path, attention_dropout=0.1, classifier_dropout=0.2, unheard_of_dropout=0.3)
    policy = load(path)
    load(path)
    said = [record.message for record in caplog.records]
    assert said == [f"model.policy: {path} has dropout (attention_dropout 0.1): set to 0, as the ratio would be noise"]
    assert policy.model.training
    assert policy.body.layers[0].self_attn.attention_dropout == 0
    x = rollout_batch(0).micro_batch(ROWS)
    assert torch.equal(policy(x, all_stats).logp, policy(x, all_stats).logp)


@pytest.mark.parametrize(
    ("name", "value"), [("final_logit_softcapping", 30.0), ("logits_scaling", 8.0), ("logit_scale", 0.0625)]
)
def test_keys_that_the_model_does_not_read_change_nothing(tmp_path, name, value):
    folder = write_model(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {name: value}))
    policy = load(folder)
    assert policy.logit_transform == PLAIN
    assert forward_check(policy) < 1e-10


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    folder = write_model(tmp_path, tokenizer_eos=False)
    with pytest.raises(ValueError, match=r"model\.policy: the tokenizer of .* has no EOS token"):
        load_tokenizer(PolicyConfig(path=folder))


@pytest.mark.parametrize(
    ("model_eos", "generation_eos", "expected"),
    [(EOS, None, (1,)), ([EOS, 5], None, (1, 5)), (None, None, (1,)), (7, [9, 5], (1, 5, 7, 9)), (EOS, 3, (1, 3))],
)
def test_all_eos_tokens_of_the_folder_end_an_answer(tmp_path, model_eos, generation_eos, expected):
    config = PolicyConfig(path=write_model(tmp_path, eos_token_id=model_eos))
    poison(tmp_path, temperature=0.1, top_k=1, do_sample=True, eos_token_id=generation_eos)
    assert eos_ids(config, load_tokenizer(config)) == expected
    assert load(config.path).model.generation_config.to_dict() == GenerationConfig().to_dict()


# -- the reference -----------------------------------------------------------------------------------------------------


def test_reference_is_frozen_and_stays_what_the_policy_was(path):
    policy, reference = load(path), Reference(PolicyConfig(path=path, dtype="float64"))
    micro_batch = rollout_batch(5).micro_batch(ROWS)
    before = policy(micro_batch, all_stats, temperature=0.8)
    with torch.no_grad():
        policy.head_weight.mul_(1.5)
    stats = reference.stats(micro_batch, 0.8)
    assert torch.equal(stats.logp, before.logp)
    assert not stats.logp.requires_grad
    assert not torch.equal(policy(micro_batch, all_stats, temperature=0.8).logp, before.logp)
    assert not any(parameter.requires_grad for parameter in reference.policy.parameters())


def test_reference_takes_device_and_type_of_the_policy(path):
    reference = Reference(PolicyConfig(path=path))
    reference.to(load(path, "float64").head_weight)
    assert {parameter.dtype for parameter in reference.policy.parameters()} == {torch.float64}


def test_reference_of_randomly_drawn_weights_is_refused(path):
    with pytest.raises(ValueError, match=r"model\.policy\.random_init .*model\.kl"):
        Reference(PolicyConfig(path=path, random_init=True))


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_reference_is_in_no_checkpoint(path, coef):
    module = ForkGRPOModule(policy=PolicyConfig(path=path), kl=KLConfig(coef=coef))
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.configure_model()
    assert (module.reference is None) == (coef == 0)
    expected = {f"policy.{name}" for name in load(path).state_dict()}
    assert set(module.state_dict()) == expected
    assert {name for name, _ in module.named_parameters()} <= expected
    once = copy.copy(module.policy)
    module.configure_model()  # Lightning calls it again for every verb
    assert module.policy.head_weight is once.head_weight
