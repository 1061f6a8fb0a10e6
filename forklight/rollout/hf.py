"""Sampling in process with the policy's own transformers model: no second copy of the weights, nothing to sync."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from forklight.algo.noise import hash_uniform
from forklight.models.policy import Policy
from forklight.rollout.sampler import Decoding, Sampled

_TILE_ELEMENTS = 2**24
"""Largest float64 block of the inverse CDF, in elements: 128 MiB."""


class HFSampler:
    """Batched decoding with a key-value cache; each prompt is read once, whatever the number of answers.

    Tokens are drawn by inverse CDF in float64 from hashed noise, so an answer does not depend on its batch but through
    the last digits of the logits. No generation settings are read: only logits / T and what the decoding asks for.
    An answer ends at a token whose logits are not finite; its log-probability is NaN there.

    Args:
        batch_size: sequences decoded side by side; bounds the memory of the cache.
    """

    def __init__(self, batch_size: int = 512) -> None:
        if batch_size < 1:
            raise ValueError(f"sampler.batch_size = {batch_size} must be at least 1")
        self.batch_size = batch_size
        self._policy: list[Policy] = []

    def sync(self, policy: Policy) -> None:
        """Keeps a reference: the weights are shared."""
        self._policy = [policy]

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: Decoding
    ) -> list[list[Sampled]]:
        """Samples some answers to each prompt; see `Sampler.sample`."""
        policy = self._policy[0]
        training = policy.model.training
        policy.eval()  # gradient checkpointing, which acts in training mode, would switch the cache off
        width = max(1, self.batch_size // answers)
        sampled: list[list[Sampled]] = []
        for start in range(0, len(prompts), width):
            block = slice(start, start + width)
            flat = _decode(policy, prompts[block], keys[block], answers, decoding)
            sampled += [flat[i : i + answers] for i in range(0, len(flat), answers)]
        policy.train(training)
        return sampled


def _decode(
    policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: Decoding
) -> list[Sampled]:
    """Answers of one block, prompt by prompt. Rows that have ended leave the batch once they are half of it."""
    device = policy.head_weight.device
    input_ids, mask = _left_pad(prompts, device)
    cache = DynamicCache()
    hidden = policy.body(
        input_ids=input_ids,
        attention_mask=None if mask.all() else mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    cache.batch_repeat_interleave(answers)
    hidden, mask = hidden.repeat_interleave(answers, 0), mask.repeat_interleave(answers, 0)
    noise_key = torch.tensor(keys, dtype=torch.int64, device=device).repeat_interleave(answers)
    answer = torch.arange(answers, device=device).repeat(len(prompts))
    row = torch.arange(len(noise_key), device=device)  # where the live rows belong
    eos = torch.tensor(decoding.eos_ids, device=device)
    tokens = torch.full((len(row), decoding.max_new_tokens), -1, device=device)
    logps = torch.zeros(tokens.shape, dtype=torch.float32, device=device)
    live = torch.ones_like(row, dtype=torch.bool)
    for position in range(decoding.max_new_tokens):
        uniform = hash_uniform(noise_key, answer, position)
        token, logp = draw(
            hidden, policy.head_weight, uniform, decoding.temperature, top_p=decoding.top_p, top_k=decoding.top_k
        )
        tokens[row[live], position] = token[live]
        logps[row[live], position] = logp[live].float()
        live = live & ~torch.isin(token, eos) & logp.isfinite()
        alive = int(live.sum())
        if alive == 0 or position + 1 == decoding.max_new_tokens:
            break
        if alive <= len(live) // 2:
            cache.batch_select_indices(live.nonzero().flatten())
            token, mask, noise_key, answer, row = (x[live] for x in (token, mask, noise_key, answer, row))
            live = live[live]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        hidden = policy.body(
            input_ids=token[:, None],
            attention_mask=None if mask.all() else mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    lengths = (tokens >= 0).sum(1).tolist()
    return [
        Sampled(ids[:length], array("f", logp[:length]))
        for ids, logp, length in zip(tokens.tolist(), logps.tolist(), lengths, strict=True)
    ]


def draw(
    hidden: Tensor, weight: Tensor, uniform: Tensor, temperature: float, *, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """Draws a token per row by inverse CDF in float64.

    Args:
        hidden: `[B,H]`.
        weight: the head's, `[V,H]`.
        uniform: float64 `[B]` in [0, 1).
        temperature: T; 0 takes the most probable token.
        top_p: see `Decoding`; 1 leaves the probabilities as they are.
        top_k: see `Decoding`; 0 leaves the probabilities as they are.

    Returns:
        The tokens, int64 `[B]`, and the log-probability each was drawn with, float64 `[B]`: NaN in rows whose logits
        are NaN or +inf, where the token means nothing.
    """
    tile = max(1, _TILE_ELEMENTS // len(weight))
    tokens, logps = [], []
    for start in range(0, len(hidden), tile):
        logits = torch.nn.functional.linear(hidden[start : start + tile], weight)
        if temperature == 0:
            highest, token = logits.max(-1)
            tokens.append(token)
            logps.append((highest - highest).double())  # 0, or NaN where it is not finite
            continue
        probability = (logits.double() / temperature).softmax(-1)
        if top_p < 1 or top_k > 0:
            probability = _truncated(probability, top_p, top_k)
        cdf = probability.cumsum(-1)
        total = cdf[:, -1:].contiguous()
        token = torch.searchsorted(cdf, uniform[start : start + tile, None] * total, right=True)
        last_possible = torch.searchsorted(cdf, total)  # rounding must not reach tokens of probability zero
        token = torch.minimum(token, last_possible).clamp(max=len(weight) - 1)  # NaN is searched past the end
        tokens.append(token.squeeze(1))
        logps.append(probability.gather(1, token).log().squeeze(1))
    return torch.cat(tokens), torch.cat(logps)


def _truncated(probability: Tensor, top_p: float, top_k: int) -> Tensor:
    """The probabilities `[B,V]` of the tokens that top-k and then top-p leave, renormalised; 0 for all others.

    Top-p looks at the probabilities that top-k has renormalised. Of equal tokens the lower id comes first.
    """
    ranked, token = probability.sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        ranked[:, top_k:] = 0
        ranked /= ranked.sum(-1, keepdim=True)
    if top_p < 1:
        before = torch.nn.functional.pad(ranked.cumsum(-1)[:, :-1], (1, 0))  # what more probable tokens sum to
        ranked[before >= top_p] = 0
        ranked /= ranked.sum(-1, keepdim=True)
    return torch.zeros_like(ranked).scatter_(1, token, ranked)


def _left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = True
    return ids.to(device), mask.to(device)
