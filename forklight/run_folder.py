"""The folder of a run: one place, fixed by `--run_dir`, that is never overwritten by accident."""

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAY_CHANGE = (
    "ckpt_path",
    "run_dir",
    "checkpoint",
    "evaluation",
    "guards",
    "monitor",
    "throughput",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.accumulate_grad_batches",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.profiler",
    "trainer.log_every_n_steps",
    "trainer.val_check_interval",
    "trainer.limit_val_batches",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.default_root_dir",
    "data.init_args.val",
    "data.init_args.test",
    "data.init_args.eval_every_rollouts",
    "data.init_args.eval_batch_size",
    "data.init_args.unreadable_golds",
    "data.init_args.reward_trial",
)
"""Settings that a resumed run may change: its length, logging, evaluation, saving; none changes what is learnt."""

_ASIDE = "replaced"

_NO_RUN = re.compile(rf"(validate|test|predict|{_ASIDE})-\d+")
"""Folders in a run folder that are no part of its run."""

_OF_A_RUN = ("config-*.yaml", "events.out.tfevents.*", "*.jsonl", "checkpoints", "policy")
"""What a run leaves in its folder."""


class RunFolderError(ValueError):
    """The run folder and the command line do not fit together."""


class RunFolder:
    """`checkpoints/`, curves, `samples.jsonl` and one `config-N.yaml` per start.

    Args:
        root: the folder; need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def is_empty(self) -> bool:
        """True if the folder holds no run; output of `validate`, `test` and `predict` is none."""
        if self.root.exists() and not self.root.is_dir():
            raise RunFolderError(f"--run_dir {self.root} is a file")
        return not self.root.exists() or all(_NO_RUN.fullmatch(path.name) for path in self.root.iterdir())

    @property
    def is_unsaved(self) -> bool:
        """True if the folder holds a run that ended before its first checkpoint; a damaged checkpoint is one, too."""
        written = (path for path in self.checkpoints.glob("*") if not path.name.startswith("."))
        return (self.root / "config-0.yaml").is_file() and not any(written)

    def resume_point(self, ckpt_path: str | None, config: dict[str, Any]) -> Path | None:
        """The checkpoint to resume from, or None for a fresh start, also where a run ended before its first checkpoint.

        Args:
            ckpt_path: `last`, `best`, a file, or None.
            config: the config of this start.

        Raises:
            RunFolderError: the folder holds a run and no checkpoint was asked for, there is no intact one, or the run
                has another config.
        """
        if ckpt_path not in (None, "last"):
            assert ckpt_path is not None
            if not _is_intact(self._path(ckpt_path)):
                raise RunFolderError(f"--ckpt_path {ckpt_path}: no intact checkpoint at {self._path(ckpt_path)}")
        if self.is_empty or self.is_unsaved:
            return None if ckpt_path in (None, "last") else self._path(str(ckpt_path))
        if ckpt_path is None:
            raise RunFolderError(
                f"run folder {self.root} is not empty; give --ckpt_path last to go on with its run, "
                "or another --run_dir to start a new one"
            )
        self._check_same_config(config)
        path = self._path(ckpt_path)
        if not _is_intact(path):
            others = sorted(p.name for p in self.checkpoints.glob("update-*.ckpt") if _is_intact(p))
            raise RunFolderError(
                f"--ckpt_path last: run folder {self.root} is not empty, but {path} is no intact checkpoint; "
                + (f"intact are {', '.join(others)}: name one" if others else "there is none; give another --run_dir")
            )
        return path

    def find(self, ckpt_path: str, *, required: bool, option: str = "--ckpt_path") -> Path | None:
        """The intact checkpoint that `last`, `best` or a file name means; None if there is none and it is not required.

        Args:
            ckpt_path: `last`, `best` or a file.
            required: whether there must be one.
            option: of the command line, for the message.

        Raises:
            RunFolderError: there is none and it is required.
        """
        path = self._path(ckpt_path)
        if _is_intact(path):
            return path
        if required:
            hint = "; there is one once an evaluation beats that of the start" if ckpt_path == "best" else ""
            raise RunFolderError(f"{option} {ckpt_path}: no intact checkpoint at {path}{hint}")
        return None

    def set_aside(self) -> Path | None:
        """Moves what a run left that ended before its first checkpoint to `replaced-<n>`; returns where, or None."""
        if not self.is_unsaved:
            return None
        folder = self.numbered(_ASIDE)
        for path in [path for pattern in _OF_A_RUN for path in self.root.glob(pattern)]:
            path.rename(folder / path.name)
        return folder

    def _path(self, ckpt_path: str) -> Path:
        """The path to look at; a run killed right after its first checkpoint has that file, but no link to it yet."""
        if ckpt_path == "best":
            return self.checkpoints / "best.ckpt"
        if ckpt_path != "last":
            return Path(ckpt_path)
        link, files = self.checkpoints / "last.ckpt", list(self.checkpoints.glob("update-*.ckpt"))
        return files[0] if len(files) == 1 and not os.path.lexists(link) else link

    def keep_config(self, config: dict[str, Any]) -> None:
        """Writes the config of this start next to those of earlier ones."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f"config-{self._next('config-*.yaml')}.yaml").open("x") as file:
            yaml.safe_dump(config, file, sort_keys=False)

    def numbered(self, verb: str) -> Path:
        """A new folder `<verb>-<n>`, for what `validate`, `test` or `predict` write."""
        folder = self.root / f"{verb}-{self._next(f'{verb}-*')}"
        folder.mkdir(parents=True)
        return folder

    def _next(self, pattern: str) -> int:
        """One more than the highest number that stands for the * of a pattern."""
        prefix = pattern.partition("*")[0]
        numbers = [path.stem.removeprefix(prefix) for path in self.root.glob(pattern)]
        return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1

    def _check_same_config(self, config: dict[str, Any]) -> None:
        first = self.root / "config-0.yaml"
        if not first.is_file():
            raise RunFolderError(f"run folder {self.root} is not empty and holds no run (no {first.name})")
        if changed := changes(yaml.safe_load(first.read_text()), config):
            raise RunFolderError(
                f"run folder {self.root} belongs to a run of another config: {changed}. "
                "Restore these settings, or give another --run_dir"
            )


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Settings that differ between two configs though a resumed run must not change them, as `key: old -> new; ...`."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return "; ".join(
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _may_change(key)
    )


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested config by dotted key."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _is_intact(path: Path) -> bool:
    """True for a complete file of `torch.save`: a zip archive that has its directory, which is written last."""
    return path.is_dir() or (path.is_file() and os.path.getsize(path) > 0 and zipfile.is_zipfile(path))
