"""The policy's weights out of a checkpoint of Lightning, without anything else that is in it."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forklight.models.policy import Policy

_PREFIX = "policy."

_DAMAGED = RuntimeError, OSError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, pickle.UnpicklingError
"""What reading a damaged or foreign file raises."""


def policy_weights(path: str | Path, key: str = "checkpoint") -> dict[str, Tensor]:
    """The weights of the policy in a checkpoint, by their names in `Policy`, on the CPU.

    Args:
        path: `<run_dir>/checkpoints/update-N.ckpt`, or a link to one.
        key: what names it, for messages.

    Raises:
        ValueError: there is no such file, it is damaged, or holds no policy.
    """
    saved = _read(path, key)
    weights = {name: value for name, value in saved["state_dict"].items() if name.startswith(_PREFIX)}
    if not weights:
        raise ValueError(f"{key} {path} holds no policy: no weight in it is named {_PREFIX}*")
    return {name.removeprefix(_PREFIX): value for name, value in weights.items()}


def updates_of(path: str | Path) -> int:
    """Updates that the policy of a checkpoint was trained for.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    return int(_read(path, "checkpoint")["global_step"])


def _read(path: str | Path, key: str) -> dict[str, Any]:
    """A checkpoint, whose tensors stay on disk until they are read."""
    if not Path(path).is_file():
        raise ValueError(f"{key} {path}: there is no such file")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _ = saved["state_dict"].items(), saved["global_step"]
    except _DAMAGED as error:
        raise ValueError(f"{key} {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return dict(saved)


def load_weights(policy: Policy, weights: dict[str, Tensor], source: str | Path) -> None:
    """Copies weights into a policy.

    Args:
        policy: of the same architecture.
        weights: as `policy_weights` gives them.
        source: where they are from, for the message.

    Raises:
        ValueError: names or shapes are others than the policy's.
    """
    mine = policy.state_dict()
    wrong = [
        f"{name}: {tuple(mine[name].shape) if name in mine else 'none'} in the model, "
        f"{tuple(weights[name].shape) if name in weights else 'none'} in the checkpoint"
        for name in sorted(mine.keys() | weights.keys())
        if name not in mine or name not in weights or mine[name].shape != weights[name].shape
    ]
    if wrong:
        raise ValueError(f"{source} is of another model: {len(wrong)} weights differ, such as {wrong[0]}")
    policy.load_state_dict(weights)
