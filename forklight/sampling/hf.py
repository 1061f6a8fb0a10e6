"""Sampling in process with the policy's own transformers model: no second copy of the weights, nothing to sync."""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from forklight.algo.noise import hash_uniform
from forklight.models.policy import Policy
from forklight.sampling.base import Sampled, Sampler, SamplingParams
from forklight.sampling.inverse_cdf import draw
from forklight.sampling.kv_cache import decoding_cache

_NOISE_POSITIONS = 32
"""Positions whose noise is hashed at once: a hash takes about fifty small operations, whatever its size."""


class HFSampler(Sampler):
    """Batched decoding with a key-value cache; each prompt is read once, whatever the number of answers.

    An answer that has ended leaves the batch at once. Prompts of about equal length are decoded together.

    Tokens are sampled by inverse CDF in float64 with hashed noise, so an answer depends on its batch only through the
    last digits of the logits. No generation settings are read: only logits / T and the `SamplingParams` count.
    An answer ends at a token whose logits are not finite; its log-probability is NaN there.

    Args:
        batch_size: sequences decoded together; bounds the memory of the cache.
    """

    def __init__(self, batch_size: int = 512) -> None:
        if batch_size < 1:
            raise ValueError(f"sampler.batch_size = {batch_size} must be at least 1")
        self.batch_size = batch_size
        self._policy: list[Policy] = []

    @property
    def half_precision(self) -> bool:
        """True if the policy's weights or the present precision context are in half precision."""
        weights = [policy.head_weight for policy in self._policy]
        return any(w.dtype.itemsize < 4 or torch.is_autocast_enabled(w.device.type) for w in weights)

    def sync(self, policy: Policy) -> None:
        """Keeps a reference to the policy: the weights are shared."""
        self._policy = [policy]

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
    ) -> list[list[Sampled]]:
        """Samples some answers to each prompt; see `Sampler.sample`."""
        policy = self._policy[0]
        training = policy.model.training
        policy.eval()  # gradient checkpointing, which acts in training mode, would switch the cache off
        width = max(1, self.batch_size // answers)
        by_length = sorted(range(len(prompts)), key=lambda prompt: len(prompts[prompt]))
        sampled: list[list[Sampled]] = [[]] * len(prompts)
        with _casting_weights_once(policy.head_weight.device.type):
            for start in range(0, len(prompts), width):
                block = by_length[start : start + width]
                flat = _decode(policy, [prompts[i] for i in block], [keys[i] for i in block], answers, decoding)
                for number, prompt in enumerate(block):
                    sampled[prompt] = flat[number * answers : (number + 1) * answers]
        policy.train(training)
        return sampled

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """See `Sampler.logprobs`."""
        policy = self._policy[0]
        training, weight = policy.model.training, policy.head_weight
        policy.eval()
        found = []
        for sequence in sequences:
            ids = torch.tensor(sequence, device=weight.device)
            hidden = policy.body(input_ids=ids[None], use_cache=True).last_hidden_state[0, :-1]
            logp = policy.logit_transform.logits(hidden, weight).double().log_softmax(-1)
            found.append(logp.gather(1, ids[1:, None]).squeeze(1).tolist())
        policy.train(training)
        return found

    def sleep(self) -> None:
        """Does nothing: the cache is freed with the answers."""

    def close(self) -> None:
        """Drops the reference to the policy."""
        self._policy = []


@contextmanager
def _casting_weights_once(device: str) -> Iterator[None]:
    """Keeps autocast's casts of the weights over all decoding steps, which the Trainer's own context does not."""
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    with torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=True):
        try:
            yield
        finally:
            torch.clear_autocast_cache()  # some versions of torch reuse casts made without gradient in training


def _decode(
    policy: Policy, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
) -> list[Sampled]:
    """Samples the answers of one block, in the order of the prompts."""
    live = _Live(policy, prompts, answers, decoding.max_new_tokens)
    device, limit = live.row.device, decoding.max_new_tokens
    noise_key = torch.tensor(keys, dtype=torch.int64, device=device).repeat_interleave(answers)[:, None]
    number = torch.arange(answers, device=device).repeat(len(prompts))[:, None]
    eos, stops = torch.tensor(decoding.eos_ids, device=device), decoding.stops
    transform = policy.logit_transform
    tokens = torch.full((len(number), limit), -1, device=device)
    logps = torch.zeros(tokens.shape, dtype=torch.float32, device=device)
    for position in range(limit):
        if (column := position % _NOISE_POSITIONS) == 0:
            positions = torch.arange(position, min(position + _NOISE_POSITIONS, limit), device=device)
            noise = hash_uniform(noise_key, number, positions)
        token, logp = draw(
            live.hidden,
            policy.head_weight,
            noise[live.row, column],
            decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            transform=transform,
        )
        tokens[live.row, position], logps[live.row, position] = token, logp.float()
        ended = torch.isin(token, eos) | ~logp.isfinite()
        if stops is not None:
            asked = stops.may_end(token).nonzero().squeeze(1)
            so_far = tokens[live.row[asked], : position + 1].tolist()
            ended[asked] |= torch.tensor([stops.ends(ids) for ids in so_far], dtype=torch.bool, device=device)
        remaining = len(ended) - int(ended.sum())
        if remaining == 0 or position + 1 == limit:
            break
        if remaining < len(ended):
            token = token[live.drop(ended, remaining)]
        live.feed(token)
    lengths = (tokens >= 0).sum(1).tolist()
    return [
        Sampled(ids[:length], array("f", logp[:length]))
        for ids, logp, length in zip(tokens.tolist(), logps.tolist(), lengths, strict=True)
    ]


class _Live:
    """The answers of a block that are still being decoded. They change rows as others end; `row` has their numbers."""

    def __init__(self, policy: Policy, prompts: Sequence[Sequence[int]], answers: int, max_new_tokens: int) -> None:
        """Runs the prompts, padded on the left to one length, then makes one row per answer."""
        device = policy.head_weight.device
        self.end = max(map(len, prompts))
        self.first = 0  # column
        self.body, self.takes_positions = policy.body, policy.takes_positions
        self.cache = decoding_cache(policy.model, max_new_tokens)
        self.column = torch.arange(self.end + max_new_tokens, device=device)
        self.padding = torch.tensor([self.end - len(prompt) for prompt in prompts], device=device)
        self._trim()
        ids = torch.tensor([[0] * (self.end - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        hidden = self._read(ids, (self.column[: self.end] - self.padding[:, None]).clamp_(min=0))
        self.row = torch.arange(len(prompts) * answers, device=device)
        prompt = self.row // answers
        self.cache.select_rows(prompt)
        self.hidden, self.padding = hidden[prompt], self.padding[prompt]

    def drop(self, ended: Tensor, remaining: int) -> Tensor:
        """Removes ended answers; rows from the end of the batch replace them. Returns the old rows of the remaining."""
        order = torch.arange(remaining, device=ended.device)
        target = ended[:remaining].nonzero().squeeze(1)
        source = (~ended[remaining:]).nonzero().squeeze(1) + remaining
        order[target] = source
        self.cache.move_rows(source, target, remaining)
        self.row, self.padding = self.row[order], self.padding[order]
        if self.padded:
            self._trim()
        return order

    def feed(self, token: Tensor) -> None:
        """Appends one token per answer, `[B]`."""
        self.end += 1
        self.hidden = self._read(token[:, None], (self.end - 1 - self.padding)[:, None])

    def _trim(self) -> None:
        """Drops columns in which all rows are padding."""
        least, most = torch.stack(self.padding.aminmax()).tolist()
        self.first = self.cache.drop_columns(least)
        self.padded = most > self.first

    def _read(self, ids: Tensor, position: Tensor) -> Tensor:
        """Hidden states that predict the next token, `[B,H]`."""
        mask = self.column[self.first : self.end] >= self.padding[:, None] if self.padded else None
        places = {"position_ids": position} if self.takes_positions else {}
        output = self.body(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **places)
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden
