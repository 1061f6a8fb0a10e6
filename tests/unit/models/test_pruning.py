"""The last layer for the tokens that are read: the same hidden states and gradients as for all."""

import pytest
import torch
from tiny import SMALL, experience, load, write_kind, write_model
from transformers import LlamaConfig, Phi3Config, Qwen2Config

from forklight.models import pruning
from forklight.models.policy import Policy


@pytest.fixture(params=["qwen3", "qwen2", "llama"])
def path(request, tmp_path):
    kinds = {"qwen2": Qwen2Config, "llama": LlamaConfig}
    return write_kind(tmp_path, kinds[request.param](**SMALL)) if request.param in kinds else write_model(tmp_path)


def read_states(policy, chunk, read):
    policy.zero_grad()
    hidden = policy._answer_hidden(chunk, read)[0][read]
    (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()
    return hidden.detach(), torch.cat(
        [weight.grad.flatten() for weight in policy.parameters() if weight.grad is not None]
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_what_is_read_is_the_same(share, checkpointing, path):
    x = experience(4)
    chunk = x.chunk(torch.arange(len(x.group)))
    tokens = len(chunk.row)
    read = (
        torch.randperm(tokens, generator=torch.Generator().manual_seed(1))[: max(1, int(share * tokens))].sort().values
    )
    whole = load(path)
    pruned = load(path, prune_last_layer=True, gradient_checkpointing=checkpointing)
    states, gradient = read_states(whole, chunk, read)
    few, same = read_states(pruned, chunk, read)
    torch.testing.assert_close(few, states, rtol=1e-12, atol=1e-12)
    assert (same - gradient).abs().max() <= 1e-12 * gradient.abs().max()


def test_the_last_layer_sees_only_what_is_read(path, monkeypatch):
    seen = []
    attention = pruning._attention
    monkeypatch.setattr(pruning, "_attention", lambda *given: seen.append(attention(*given)) or seen[-1])
    x = experience(4, problems=2, answers=3)
    chunk = x.chunk(torch.arange(len(x.group)))
    policy = load(path, prune_last_layer=True)
    first = (
        (chunk.column == 0).nonzero().flatten()
    )  # the first tokens of all answers: two prompts' last tokens say them
    read_states(policy, chunk, first)
    assert [len(states) for states in seen] == [2]


def test_it_is_refused_by_name_where_it_cannot_be(tmp_path):
    path = write_kind(tmp_path / "phi", Phi3Config(**SMALL))
    with pytest.raises(ValueError, match=r"prune_last_layer is for llama, mistral, qwen2, qwen3, .* of type phi3"):
        load(path, prune_last_layer=True)
    path = write_model(tmp_path / "qwen")
    with pytest.raises(ValueError, match=r"prune_last_layer needs packing.* packing is off, head: selected"):
        load(path, prune_last_layer=True, packing=False)
    with pytest.raises(ValueError, match=r"a head other than full.* head: full"):
        load(path, prune_last_layer=True, head="full")


def test_a_pass_that_reads_everything_is_the_plain_one(path):
    x = experience(4)
    chunk = x.chunk(torch.arange(len(x.group)))
    whole, pruned = load(path), load(path, prune_last_layer=True)
    assert isinstance(pruned, Policy)
    assert torch.equal(whole(chunk, 1.0).logp, pruned(chunk, 1.0).logp)
