"""Packed rows through real architectures: the hidden states and gradients of every sequence alone."""

import pytest
import torch
from tiny import SMALL, load, rollout_batch, write_kind, write_model
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

from forklight.models.heads import all_stats


@pytest.fixture(
    params=[
        LlamaConfig,
        Qwen2Config,
        Phi3Config,
        lambda **s: MistralConfig(**s, sliding_window=None),
        None,
    ],
    ids=["llama", "qwen2", "phi3", "mistral", "qwen3"],
)
def path(request, tmp_path):
    return write_model(tmp_path) if request.param is None else write_kind(tmp_path, request.param(**SMALL))


def hidden_and_gradients(policy, micro_batch):
    policy.zero_grad()
    hidden = policy._answer_hidden(micro_batch, None)[0]
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
    (hidden * weights).sum().backward()
    grads = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return hidden.detach(), torch.cat([grad.flatten() for grad in grads])


def alone(policy, x):
    """Every sequence in a pass of its own."""
    hidden = []
    for row in range(len(x.problem_index)):
        prompt, length = int(x.prompt_length[row]), int(x.prompt_length[row] + x.answer_length[row])
        found = policy.body(input_ids=x.input_ids[row : row + 1, : length - 1], use_cache=False).last_hidden_state
        hidden.append(found[0, prompt - 1 :])
    return torch.cat(hidden)


def test_packed_rows_are_the_sequences_alone(path):
    x = rollout_batch(1)
    micro_batch = x.micro_batch(torch.arange(len(x.problem_index)))
    policy = load(path)
    assert policy.packing
    packed, by_packed = hidden_and_gradients(policy, micro_batch)
    torch.testing.assert_close(packed, alone(policy, x), rtol=1e-10, atol=1e-10)
    padded = load(path, packing=False)
    assert not padded.packing
    by_length, by_padded = hidden_and_gradients(padded, micro_batch)
    torch.testing.assert_close(by_length, packed, rtol=1e-10, atol=1e-10)
    assert (by_packed - by_padded).abs().max() <= 1e-10 * by_padded.abs().max()


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (MistralConfig(**SMALL, sliding_window=4), {}),
        (Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4), {}),
        (LlamaConfig(**SMALL), {"attention": "eager"}),
    ],
    ids=["window", "alternating windows", "eager"],
)
def test_others_are_padded_and_it_is_said(config, settings, tmp_path, caplog):
    caplog.set_level("INFO")
    path, x = write_kind(tmp_path, config), rollout_batch(2)
    policy = load(path, **settings)
    assert not policy.packing
    assert f"model.policy.packing: {path} is trained in padded batches" in caplog.text
    hidden, _ = hidden_and_gradients(policy, x.micro_batch(torch.arange(len(x.problem_index))))
    torch.testing.assert_close(hidden, alone(policy, x), rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_computes_packed_rows_again(tmp_path):
    path, x = write_model(tmp_path), rollout_batch(1)
    micro_batch = x.micro_batch(torch.arange(len(x.problem_index)))
    plain, again = (hidden_and_gradients(load(path, gradient_checkpointing=on), micro_batch) for on in (False, True))
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])


def test_a_shared_prompt_goes_through_the_layers_once(tmp_path):
    x = rollout_batch(1)
    policy = load(write_model(tmp_path))
    with torch.no_grad():
        policy(x.micro_batch(torch.arange(len(x.problem_index))), all_stats)
    work = policy.work["statistics"]
    prompts = x.prompt_length[:: len(x.problem_index) // 6].sum()  # one of each group
    assert work.passes == 1
    assert work.sequences == len(x.problem_index)
    assert work.tokens == (x.prompt_length + x.answer_length - 1).sum()
    assert work.row_tokens == prompts + (x.answer_length - 1).sum()
    assert work.padded_tokens == len(x.problem_index) * int((x.prompt_length + x.answer_length - 1).max())
    assert work.head_products == x.answer_length.sum()


def test_under_autocast_on_a_cpu_attention_is_computed_in_single_precision(tmp_path):
    x = rollout_batch(1)
    policy, micro_batch = load(write_model(tmp_path), "float32"), x.micro_batch(torch.arange(len(x.problem_index)))
    kinds = []

    def seen(query, key, value, **settings):
        kinds.append(query.dtype)
        return attend(query, key, value, **settings)

    attend = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
        hidden, _ = policy._answer_hidden(micro_batch, None)
    hidden.sum().backward()
    assert kinds and set(kinds) == {torch.float32}
    exact, _ = load(write_model(tmp_path), "float64")._answer_hidden(micro_batch, None)
    torch.testing.assert_close(hidden.double(), exact, rtol=0, atol=0.1)
    assert policy.body.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_autocast_leaves_attention_in_double_precision(tmp_path):
    x = rollout_batch(1)
    policy, micro_batch = load(write_model(tmp_path), "float64"), x.micro_batch(torch.arange(len(x.problem_index)))
    exact, _ = policy._answer_hidden(micro_batch, None)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = policy._answer_hidden(micro_batch, None)
    assert torch.equal(hidden, exact)
