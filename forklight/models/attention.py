"""Attention over one row of many sequences, through the attention interface of transformers.

The function registered as `forklight` is transformers' own `sdpa` unless a forward pass gives it a `Packed` row: then
the tokens of a bucket are gathered into a batch, in which every answer of a group has the prompt's tokens before it.
On a GPU, in half precision, torch's kernel for variable lengths needs no buckets.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from forklight.algo.packing import Packed, Segments
from forklight.models.architecture import text_settings

NAME = "forklight"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Packed | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention of every token to its own sequence.

    Args:
        module: the layer; not read.
        query: [1,heads,U,d] of a packed row, or [B,heads,L,d] without one.
        key: as `query`, with the number of key heads.
        value: as `key`.
        attention_mask: of transformers; a packed row needs none.
        packed: how the row was laid out; None for a plain batch.
        **settings: of transformers' attention.

    Returns:
        [1,U,heads,d] (or [B,L,heads,d]) and None, as transformers expects it.
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [U,heads,d]
    scale, grouped = settings.get("scaling"), query.shape[1] != key.shape[1]
    if packed.segments is not None and query.dtype in (torch.float16, torch.bfloat16):
        return _any_lengths(q, k, v, packed.segments, scale, grouped)[None], None
    found = []
    for index in packed.buckets:
        out = _bucket(batch(q, index), batch(k, index), batch(v, index), scale, grouped)
        found.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, packed.place)[None], None


def _bucket(query: Tensor, key: Tensor, value: Tensor, scale: float | None, grouped: bool) -> Tensor:
    """Causal attention of one batch, `[B,heads,L,d]`."""
    lower = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    # autocast leaves float64 as it is
    if query.device.type != "cpu" or query.dtype == torch.float64 or lower == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    # on a CPU, torch's backward in bfloat16 takes several times as long as in float32
    with torch.autocast("cpu", enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    return out.to(lower)


def batch(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens `[U,heads,d]` at the indices `[B,L]`, as `[B,heads,L,d]`."""
    return tokens.index_select(0, index.flatten()).view(*index.shape, *tokens.shape[1:]).transpose(1, 2)


def _any_lengths(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None, grouped: bool
) -> Tensor:
    """One kernel for all prompts and answers, whose keys are gathered once."""
    found: Tensor = varlen_attn(  # type: ignore[assignment]
        query.contiguous(),
        key.index_select(0, segments.keys),
        value.index_select(0, segments.keys),
        segments.query_ends,
        segments.key_ends,
        segments.most_queries,
        segments.most_keys,
        scale=scale,
        window_size=(-1, 0),  # causal, aligned at the end
        enable_gqa=grouped,
    )
    return found


def packs(model: PreTrainedModel) -> bool:
    """Whether a model can run packed rows: its attention function can be replaced, and all layers have full attention.

    A sliding window would have to know where a sequence begins; a recurrent layer would mix the sequences of a row. A
    model may still get packed rows wrong, which `forward_check` finds out.

    Args:
        model: loaded with `attn_implementation` `sdpa` or `forklight`.
    """
    config = text_settings(model.config)
    layers = getattr(config, "layer_types", None)
    full = set(layers) == {"full_attention"} if layers else getattr(config, "sliding_window", None) is None
    # llama4 scales queries by their place in the row
    return bool(model._supports_attention_backend) and full and not getattr(config, "attn_temperature_tuning", False)


def plain_mask(like: Tensor) -> Tensor:
    """The mask of a packed row for transformers: it has four dimensions, so transformers does not build its own."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=like.device)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
