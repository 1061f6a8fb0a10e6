"""Every architecture that trains: log-probabilities are those of its own forward pass, sampled ones too; an update."""

import pytest
import torch
from architectures import ARCHITECTURES, PACKED, write
from tiny import EOS, load, rollout_batch

from forklight.algo.config import AlgorithmConfig
from forklight.algo.selection import ForkSelection
from forklight.models.architecture import text_body
from forklight.models.forward_check import forward_check
from forklight.sampling.base import SamplingParams
from forklight.sampling.hf import HFSampler
from forklight.training.update import Learner

PROMPTS = [[5, 9, 7, 3, 20], [7], [8, 3, 2, 33, 4, 5, 6, 7, 8, 9, 30, 31]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def path(name, tmp_path_factory):
    return write(tmp_path_factory.mktemp(name), name)


def own_logp(policy, ids):
    """Of all tokens but the first, by the model's own forward pass."""
    with torch.no_grad():
        logits = policy.model.eval()(input_ids=ids[None], use_cache=False).logits[0]
    return logits.double().log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1)


def test_log_probabilities_are_those_of_the_models_forward(name, path):
    policy = load(path, "float32")
    assert forward_check(policy) < 1e-5
    assert policy.packing == (name in PACKED)
    if policy.packing:
        padded = load(path, "float32", packing=False)
        assert forward_check(padded) < 1e-5
        assert not padded.packing


def test_log_probabilities_of_sampled_answers_are_those_of_the_models_forward(name, path):
    policy, sampler = load(path, "float32"), HFSampler()
    sampler.sync(policy)
    groups = sampler.sample(PROMPTS, [1, 2, 3], 2, SamplingParams(12, 1.0, (EOS,)))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for ids, logp in group:
            expected = own_logp(policy, torch.tensor(prompt + ids))[len(prompt) - 1 :]
            torch.testing.assert_close(torch.tensor(logp).double(), expected, rtol=0, atol=2e-5)


def test_an_update_is_that_of_the_full_head_and_moves_the_text_model_alone(name, path):
    """In double precision; a head is tied to the embedding or has a gradient of its own."""
    x, results = rollout_batch(5, problems=2, answers=2, shares=(0.0, 0.0, 1.0)), {}
    for head in ("full", "selected"):
        policy = load(path, head=head)
        forward_check(policy)
        learner = Learner(AlgorithmConfig(ForkSelection(rho=0.4)), length_limit=8)
        state = learner.begin(x, rollout=0, updates=1, micro_batches=1)
        learner.prepare_update(state, 0, policy, None)
        loss, _ = learner.loss(state, 0, policy)
        loss.backward()
        results[head] = (
            loss.item(),
            {place: weight.grad for place, weight in policy.model.named_parameters() if weight.grad is not None},
        )
    (loss, gradients), (same, same_gradients) = results["full"], results["selected"]
    assert same == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert gradients.keys() == same_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for place, gradient in gradients.items():
        assert (gradient - same_gradients[place]).abs().max() <= 1e-6 * largest, place
    assert largest > 1e-6
    body = {id(weight) for weight in text_body(policy.model).parameters()}
    head = {id(weight) for weight in policy.model.get_output_embeddings().parameters()}
    for place, weight in policy.model.named_parameters():
        assert weight.requires_grad == (id(weight) in body | head), place
    assert any(id(weight) in body and place in gradients for place, weight in policy.model.named_parameters())
    assert policy.head_weight.grad is not None and policy.head_weight.grad.any()
