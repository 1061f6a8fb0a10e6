"""A model's weights by their names in a checkpoint, also if they are sharded or have adapters."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_WRAPPED = ".base_layer"
"""Where an adapter of peft keeps the layer that it wraps."""


@torch.no_grad()
def full_weights(model: nn.Module, *, tied_once: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Names and weights, one after the other: at most one gathered or merged weight is in memory at a time.

    If they are sharded, every rank must take all of them: each is a collective.

    Args:
        model: a causal LM, possibly sharded (FSDP2) or with adapters of peft inside its layers. Adapters that are
            switched on are merged into the weights that they adapt.
        tied_once: whether a weight with several names (tied embeddings) comes once, under its first name.

    Yields:
        Name and weight; not to be changed, it may be the model's own memory.
    """
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    again = every - {name for name, _ in model.named_parameters()} if tied_once else set()
    adapters = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, value in model.state_dict().items():
        if name in again:
            continue
        place, _, leaf = name.rpartition(".")
        inside = next((adapter for adapter in adapters if place.startswith(adapter + ".")), None)
        if inside is None:
            yield name, _whole(value)
        elif place == inside + _WRAPPED:
            weight = _whole(value)
            yield f"{inside}.{leaf}", weight + _delta(adapters[inside]).to(weight) if leaf == "weight" else weight


def _delta(adapter: nn.Module) -> Tensor:
    """What the active adapters of a layer add to its weight."""
    found: Tensor = torch.zeros(())
    if getattr(adapter, "merged", False) or getattr(adapter, "disable_adapters", False):
        return found
    for name in getattr(adapter, "active_adapters", ()):
        found = found + adapter.get_delta_weight(name)  # type: ignore[operator]
    return found


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value.detach()


@torch.no_grad()
def checksums(model: nn.Module) -> Tensor:
    """The sum of the bit patterns of every weight, int64 `[n]` in the order of the parameters: equal for equal weights.

    Args:
        model: not sharded.
    """
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [weight.detach().view(kinds[weight.element_size()]).sum(dtype=torch.int64) for weight in model.parameters()]
    return torch.stack(sums).cpu()
