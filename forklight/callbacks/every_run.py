"""The callbacks that every run has, on the command line and in Python."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from forklight.callbacks.checkpoint import RngState, RunCheckpoint
from forklight.callbacks.dump import DiagnosticDump
from forklight.callbacks.evaluate import MathEval
from forklight.callbacks.export import PolicyExport
from forklight.callbacks.fork_monitor import ForkMonitor
from forklight.callbacks.guards import Guards
from forklight.callbacks.health import HealthGuards
from forklight.callbacks.small_steps import SmallSteps
from forklight.callbacks.startup import StartupTable
from forklight.callbacks.throughput import Throughput


def run_callbacks(run_dir: str | Path, *chosen: Callback) -> list[Callback]:
    """What a run needs besides the Trainer: checkpoints to resume from, evaluation, curves, health, the export.

    Args:
        run_dir: folder of the run. Give the Trainer a logger that writes there, too.
        chosen: some of `RunCheckpoint`, `MathEval`, `ForkMonitor`, `HealthGuards` and `Throughput` with settings of
            your own, in place of the ones with default settings.

    Returns:
        For `Trainer(callbacks=...)`.

    Raises:
        TypeError: one of `chosen` is another callback.
    """
    settable = RunCheckpoint, MathEval, Throughput, ForkMonitor, HealthGuards
    if foreign := [type(callback).__name__ for callback in chosen if not isinstance(callback, settable)]:
        names = ", ".join(kind.__name__ for kind in settable)
        raise TypeError(f"run_callbacks takes {names}, not {', '.join(foreign)}: add others to the list it returns")
    mine = [next((each for each in chosen if isinstance(each, kind)), kind()) for kind in settable]
    folder = Path(run_dir)
    place(mine, folder, folder / "checkpoints", None)
    return [*fixed_callbacks(folder, None), *mine]


def fixed_callbacks(output: Path, config: dict[str, Any] | None) -> list[Callback]:
    """Those that have no settings.

    Args:
        output: the folder of the run, or of a verb in it.
        config: the run's, for the model card.
    """
    return [Guards(), RngState(), StartupTable(), PolicyExport(output, config), DiagnosticDump(), SmallSteps()]


def place(callbacks: Iterable[Callback], output: Path, checkpoints: Path, config: dict[str, Any] | None) -> None:
    """Tells callbacks where to write.

    Args:
        callbacks: some of which write files.
        output: folder of records.
        checkpoints: folder of checkpoints.
        config: the run's, kept in every checkpoint.
    """
    for callback in callbacks:
        if isinstance(callback, RunCheckpoint):
            callback.folder, callback.config = checkpoints, config
        if isinstance(callback, MathEval | ForkMonitor | HealthGuards):
            callback.folder = output
