"""The last layer for the tokens whose hidden states are read: of all others it computes keys and values only.

Exact, as nothing reads their last hidden states. It is for decoders whose layers are those of Llama: a norm, attention
with separate projections and rotary positions, a norm, an MLP.
"""

import sys
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from forklight.algo.packing import Packed
from forklight.models.attention import batch

KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of the models whose last layer can be pruned."""


def prune_last_layer(model: PreTrainedModel) -> None:
    """Makes the last layer look at what a packed row says of its queries; without that it is as before.

    Raises:
        ValueError: the model is of another kind.
    """
    if model.config.model_type not in KINDS:
        raise ValueError(
            f"model.policy.prune_last_layer is for {', '.join(KINDS)}, not for models of type {model.config.model_type}"
        )
    layers: Any = model.base_model.layers
    layer = layers[-1]
    layer.forward = partial(_forward, layer, layer.forward)


def _forward(layer: Any, whole: Any, hidden_states: Tensor, *args: Any, **settings: Any) -> Tensor:
    packed: Packed | None = settings.get("packed")
    if packed is None or packed.last is None:
        found: Tensor = whole(hidden_states, *args, **settings)
        return found
    tokens = packed.last.tokens
    attended = _attention(layer.self_attn, layer.input_layernorm(hidden_states)[0], packed, settings)
    hidden = hidden_states[0].index_select(0, tokens) + attended
    out: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return out[None]


def _attention(attention: Any, hidden: Tensor, packed: Packed, settings: dict[str, Any]) -> Tensor:
    """What the queries get, `[Q,H]`, from the normed states of all tokens, `[U,H]`."""
    last = packed.last
    assert last is not None
    cos, sin = settings["position_embeddings"]
    few = hidden.index_select(0, last.tokens)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb

    def heads(projection: nn.Module, states: Tensor, norm: str, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        x = projection(states).unflatten(-1, (-1, attention.head_dim))
        x = getattr(attention, norm)(x) if hasattr(attention, norm) else x
        if angles is None:
            return x  # type: ignore[no-any-return]
        rotated, _ = rotate(x.transpose(0, 1)[None], x.transpose(0, 1)[None], *angles)
        return rotated[0].transpose(0, 1)  # type: ignore[no-any-return]

    query = heads(attention.q_proj, few, "q_norm", (cos.index_select(1, last.tokens), sin.index_select(1, last.tokens)))
    key = heads(attention.k_proj, hidden, "k_norm", (cos, sin))
    value = heads(attention.v_proj, hidden, "", None)
    grouped, found = query.shape[1] != key.shape[1], []
    for queries, mask, index in zip(last.batches, last.masks, packed.buckets, strict=True):
        out = F.scaled_dot_product_attention(
            batch(query, queries), batch(key, index), batch(value, index),
            attn_mask=mask, scale=attention.scaling, enable_gqa=grouped,
        )  # fmt: skip
        found.append(out.transpose(1, 2).flatten(0, 1))
    attended: Tensor = attention.o_proj(torch.cat(found).index_select(0, last.place).flatten(1))
    return attended
