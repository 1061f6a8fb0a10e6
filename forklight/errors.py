"""Errors that stop a run, where a plain `ValueError` would not say enough."""

from collections.abc import Mapping
from typing import Any


class NonFiniteError(ValueError):
    """A log-probability, an entropy or a gradient is NaN or infinite.

    Args:
        message: says where the number is.
        dump: what a diagnostic dump shows of a rollout that is not complete yet; see
            `forklight.callbacks.dump.DiagnosticDump` for the keys.
    """

    def __init__(self, message: str, dump: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.dump = dict(dump or {})


class EngineError(RuntimeError):
    """A sampler cannot be built, does not support what is asked for, or has failed."""


class WeightSyncError(RuntimeError):
    """The sampler does not compute with the trainer's weights."""
