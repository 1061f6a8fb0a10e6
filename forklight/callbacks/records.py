"""Files of one JSON object per line that a resumed run can continue."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def writable(trainer: Trainer, folder: Path | None) -> Path | None:
    """The folder, where this process writes a run's files: rank 0 does, but not in a dry run; else None."""
    dry = trainer.fast_dev_run  # type: ignore[attr-defined]
    return folder if trainer.is_global_zero and not dry else None


def append_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Appends objects, and returns when they are on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines whose `step` is at most `step`; an incomplete line of a killed run is dropped too."""
    if not path.is_file():
        return
    beside = path.with_suffix(".tmp")
    with path.open() as old, beside.open("w") as new:
        for line in old:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                new.write(line)
    beside.replace(path)
