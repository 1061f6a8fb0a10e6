"""Sampling tokens by inverse CDF in float64, after top-k and top-p if these are set."""

import torch
from torch import Tensor

from forklight.algo.logprobs.transform import PLAIN, LogitTransform

_LOGITS_ELEMENTS = 2**24
"""Most logits in memory at once: 64 MiB in single precision."""

_TILE_ELEMENTS = {"cpu": 2**17}
"""Most probabilities in memory at once, by type of device. On a CPU 1 MiB stays in a core's cache, and larger blocks
cost more in page faults than in arithmetic; other devices need few calls."""

_CANDIDATES = 1024
"""How many of the most probable tokens top-p tries before it sorts the full vocabulary."""


def draw(
    hidden: Tensor,
    weight: Tensor,
    uniform: Tensor,
    temperature: float,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    transform: LogitTransform = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Samples one token per row by inverse CDF in float64.

    Args:
        hidden: `[B,H]`.
        weight: the head's, `[V,H]`.
        uniform: float64 `[B]` in [0, 1).
        temperature: T; 0 takes the most probable token.
        top_p: see `SamplingParams`; 1 leaves the probabilities as they are.
        top_k: see `SamplingParams`; 0 leaves the probabilities as they are.
        transform: what makes logits of the products of hidden states and weight.

    Returns:
        The tokens, int64 `[B]`, and their log-probabilities, float64 `[B]`: NaN in rows whose logits are NaN or +inf,
        where the token is undefined.
    """
    sampled = []
    rows = max(1, _LOGITS_ELEMENTS // len(weight))
    for start in range(0, len(hidden), rows):
        logits = transform.logits(hidden[start : start + rows], weight)
        noise = uniform[start : start + rows]
        if temperature == 0:
            highest, token = logits.max(-1)
            sampled.append((token, (highest - highest).double()))  # log-probability 0, or NaN where it is not finite
            continue
        tile = max(1, _TILE_ELEMENTS.get(logits.device.type, _LOGITS_ELEMENTS) // len(weight))
        for row in range(0, len(logits), tile):
            probability = logits[row : row + tile].double().div_(temperature).softmax(-1)
            if top_p < 1 or top_k > 0:
                probability = _truncated(probability, top_p, top_k)
            sampled.append(_inverse_cdf(probability, noise[row : row + tile]))
    tokens, logps = zip(*sampled, strict=True)
    return torch.cat(tokens), torch.cat(logps)


def _inverse_cdf(probability: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The first token whose cumulative probability exceeds the noise, and its log-probability: `[B,V]`, `[B]`."""
    cdf = probability.cumsum(-1)
    total = cdf[:, -1:].contiguous()
    token = torch.searchsorted(cdf, uniform[:, None] * total, right=True)
    last_possible = torch.searchsorted(cdf, total)  # rounding must not reach tokens of probability zero
    token = torch.minimum(token, last_possible).clamp_(max=probability.shape[1] - 1)  # NaN gives one past the end
    return token.squeeze(1), probability.gather(1, token).log_().squeeze(1)


def _truncated(probability: Tensor, top_p: float, top_k: int) -> Tensor:
    """The probabilities `[B,V]` of the tokens that top-k and then top-p leave, renormalised; 0 for all others.

    Top-p applies to the probabilities that top-k has renormalised. Of equally probable tokens the lower id comes first.
    """
    few = 2 * top_k + 64 if top_k > 0 else _CANDIDATES
    if 2 * few > probability.shape[1]:
        ranked, token = probability.sort(dim=-1, descending=True, stable=True)
        return torch.zeros_like(probability).scatter_(1, token, _cut(ranked, top_p, top_k))
    token = probability.topk(few, sorted=False).indices.sort(-1).values  # by id: the stable sort keeps this order
    ranked, order = probability.gather(1, token).sort(dim=-1, descending=True, stable=True)
    kept = _cut(ranked, top_p, top_k)
    truncated = torch.zeros_like(probability).scatter_(1, token.gather(1, order), kept)
    # If every token of the set is more probable than the last candidate, no other token can belong to the set.
    unsure = ~(ranked.where(kept > 0, torch.inf).amin(-1) > ranked[:, -1])
    if unsure.any():
        ranked, token = probability[unsure].sort(dim=-1, descending=True, stable=True)
        truncated[unsure] = torch.zeros_like(ranked).scatter_(1, token, _cut(ranked, top_p, top_k))
    return truncated


def _cut(ranked: Tensor, top_p: float, top_k: int) -> Tensor:
    """Sorted probabilities `[B,candidates]`, renormalised over what top-k and then top-p leave."""
    if top_k > 0:
        ranked = torch.nn.functional.pad(ranked[:, :top_k], (0, max(0, ranked.shape[1] - top_k)))
        ranked = ranked / ranked.sum(-1, keepdim=True)
    if top_p < 1:
        before = torch.nn.functional.pad(ranked.cumsum(-1)[:, :-1], (1, 0))  # sum over more probable tokens
        ranked = ranked.masked_fill(before >= top_p, 0)
        ranked = ranked / ranked.sum(-1, keepdim=True)
    return ranked
