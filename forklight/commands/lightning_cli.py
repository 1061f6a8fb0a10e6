"""`forklight fit|validate|test|predict`: a LightningCLI with a run folder."""

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from transformers.utils.logging import disable_progress_bar

from forklight.callbacks.checkpoint import RunCheckpoint
from forklight.callbacks.evaluate import MathEval
from forklight.callbacks.every_run import fixed_callbacks, place
from forklight.callbacks.fork_monitor import ForkMonitor
from forklight.callbacks.guards import check_fit
from forklight.callbacks.health import HealthGuards
from forklight.callbacks.progress import RunProgress
from forklight.callbacks.throughput import Throughput
from forklight.data.datamodule import MathDataModule
from forklight.presets import MODE, add_parser_mode, expand_arguments
from forklight.run_folder import RunFolder, changes

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "val_check_interval": None,
}
"""What differs from Lightning's defaults: runs are counted in updates, and the loaders give each rank its own share."""

_VERB_FOLDER = "FORKLIGHT_VERB_FOLDER"

_STOP = re.compile(r"(?P<rollout>--\w[\w.]*\.rollout)\.stop(=(?P<value>.*))?", re.DOTALL)


class ForkCLI(LightningCLI):
    """LightningCLI whose components are chosen by `class_path`, with a fixed run folder and some fixed callbacks.

    Args:
        arguments: of the command line, beginning with the verb or with options before it.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.known_verb = arguments[0] if arguments[0] in LightningCLI.subcommands() else None
        super().__init__(
            model_class=LightningModule,
            subclass_mode_model=True,
            save_config_callback=None,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "forklight", "parser_mode": MODE},
            args=arguments,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning asks the instance
        """The verb that the arguments begin with, otherwise all: the parser of each verb takes 0.2 s to build."""
        verbs = LightningCLI.subcommands()
        return verbs if self.known_verb is None else {self.known_verb: verbs[self.known_verb]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises, so that `main` prints one message and not the full usage."""
        return super().init_parser(**{**kwargs, "exit_on_error": False, "allow_abbrev": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments of `main`; Lightning would warn if the process itself also has arguments."""
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder, and the callbacks that every run has."""
        parser.epilog = (
            "The keys under --model and --data depend on their classes; these list them: "
            "`forklight fit --model.help ForkGRPOModule`, `forklight fit --data.help MathDataModule`."
        )
        parser.add_argument("--run_dir", type=str, default="runs/forklight", help="Folder of the run.")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(MathEval, "evaluation")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(ForkMonitor, "monitor")
        parser.add_lightning_class_args(HealthGuards, "guards")

    def _parse_ckpt_path(self) -> None:
        """Leaves the command line as it is: hyper-parameters in a checkpoint never override it."""

    def before_instantiate_classes(self) -> None:
        """Finds the run folder and the checkpoint, before anything is built or written."""
        config = self.config[self.subcommand]
        if isinstance(config.trainer.val_check_interval, float):
            raise ValueError(
                f"trainer.val_check_interval = {config.trainer.val_check_interval}: a share of an endless stream has "
                "no meaning; leave it out and set data.eval_every_rollouts"
            )
        if config.trainer.enable_checkpointing is False:
            raise ValueError(
                "trainer.enable_checkpointing = false: a run always keeps its last checkpoint; set "
                "checkpoint.every_n_rollouts to a large number for fewer of them"
            )
        self.folder = RunFolder(Path(config.run_dir))
        self.resume_from: Path | None = None
        if self.subcommand == "fit" and not config.trainer.fast_dev_run and _is_rank_zero():
            self.resume_from = self.folder.resume_point(config.ckpt_path, self._plain_config)
            if config.ckpt_path == "last" and self.resume_from is None:
                print(f"--ckpt_path last: run folder {self.folder.root} has no checkpoint, starting from the beginning")
            self._check_saved_config()
        elif config.ckpt_path:
            # With `last`, `fit` may find none and start from the beginning, on all ranks; the other verbs need one.
            self.resume_from = self.folder.find(config.ckpt_path, required=self.subcommand != "fit")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what every run has, whatever the config says: logger, atomic checkpoints, progress."""
        config = self._get(self.config_init, "trainer")
        output = self._output_folder()
        if config.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                save_dir=str(output), name="", version="", purge_step=self._purge_step(), default_hp_metric=False
            )
        kwargs["default_root_dir"] = str(output)
        forced = fixed_callbacks(output, self._plain_config)
        if config.enable_progress_bar is not False:
            forced.append(RunProgress())
        self.trainer_defaults["callbacks"] = forced
        trainer = super().instantiate_trainer(**kwargs)
        place(trainer.callbacks, output, self.folder.checkpoints, self._plain_config)  # type: ignore[attr-defined]
        return trainer

    def _output_folder(self) -> Path:
        """The run folder for `fit`, a numbered one inside it for the other verbs; processes of a run share it."""
        if self.subcommand == "fit" or self._get(self.config, "trainer").fast_dev_run:
            return self.folder.root
        if _is_rank_zero():
            os.environ[_VERB_FOLDER] = str(self.folder.numbered(str(self.subcommand)))
        return Path(os.environ.get(_VERB_FOLDER, self.folder.root))

    def _purge_step(self) -> int | None:
        """The step from which old points of curves are removed: the resumed run logs them again."""
        return int(self._checkpoint["global_step"]) + 1 if self._checkpoint else None

    @cached_property
    def _checkpoint(self) -> dict[str, Any]:
        """The checkpoint that `fit` goes on from, its tensors not read; empty if it begins anew."""
        if self.subcommand != "fit" or self.resume_from is None:
            return {}
        import torch

        saved: dict[str, Any] = torch.load(self.resume_from, map_location="cpu", weights_only=True, mmap=True)
        return saved

    def _check_saved_config(self) -> None:
        """Refuses to go on from a checkpoint with a config that trains something else."""
        config = self._checkpoint.get("callbacks", {}).get("RunCheckpoint", {}).get("config")
        if config is not None and (changed := changes(config, self._plain_config)):
            raise ValueError(
                f"--ckpt_path {self.resume_from}: this checkpoint is of a run with another config: {changed}. Restore "
                f"these settings; or start anew from its weights, with model.init_from {self.resume_from}"
            )

    def before_fit(self) -> None:
        """Refuses settings that cannot be trained, then saves the config of this start; a refused one is not saved."""
        check_fit(self.trainer, self.model, self.datamodule)
        if isinstance(self.datamodule, MathDataModule):
            self.datamodule.for_policy(getattr(self.model, "prompt_limit", None))
            self.datamodule.read()
            self.datamodule.check_resumed(self._checkpoint.get(type(self.datamodule).__qualname__, {}))
        if self._get(self.config, "trainer").fast_dev_run or not _is_rank_zero():
            return
        if aside := self.folder.set_aside():
            print(f"run folder {self.folder.root} held a run without a checkpoint; its files are in {aside}")
        self.folder.keep_config(self._plain_config)
        if self._checkpoint:
            done, asked = int(self._checkpoint["global_step"]), self.trainer.max_steps
            print(
                f"{self.resume_from} has {done} updates"
                + (f": trainer.max_steps = {asked} is reached" if done >= asked else f", going on to {asked}")
            )

    @cached_property
    def _plain_config(self) -> dict[str, Any]:
        """The full resolved config, defaults included, as plain values for a file."""
        everything = yaml.safe_load(self.parser.dump(self.config, skip_link_targets=False, skip_validation=True))
        plain: dict[str, Any] = everything[self.subcommand]
        return plain

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = str(self.resume_from) if self.resume_from else None
        kwargs["weights_only"] = True
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # `predictions.jsonl` has them
        return kwargs


def run(arguments: list[str]) -> None:
    """Parses the arguments and runs the verb.

    Args:
        arguments: beginning with the verb, or with options before it.

    Raises:
        ValueError: a setting is refused, by Lightning or by forklight.
        ArgumentError: the arguments cannot be parsed.
    """
    _quieten()
    # The text under a field is its --help; reading these texts takes 0.25 s.
    set_parsing_settings(docstring_parse_attribute_docstrings=any(_asks_for_help(each) for each in arguments))
    add_parser_mode()
    try:
        ForkCLI(list(_read_once(expand_arguments(arguments))))
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def _read_once(arguments: Sequence[str]) -> Iterator[str]:
    """Gives stops as `--X.rollout={"stop": VALUE}`.

    For `--X.rollout.stop VALUE` jsonargparse writes the list that it has read as Python would, and reads that as YAML:
    line breaks and backslashes become others.
    """
    rest = iter(arguments)
    for argument in rest:
        if option := _STOP.fullmatch(argument):
            value = option["value"] if option["value"] is not None else next(rest, "")
            yield f'{option["rollout"]}={{"stop": {value}}}'
        else:
            yield argument


def _quieten() -> None:
    """Drops messages that no user can act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # tips and advertisements
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # the seed is in the config
    disable_progress_bar()  # type: ignore[no-untyped-call]  # one bar per file of a model
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning 2.6 on torch 2.13


def _asks_for_help(argument: str) -> bool:
    """Whether it is `-h`, `--help`, or a component's, such as `--data.help CLASS`."""
    return argument == "-h" or argument.partition("=")[0].endswith("help")


def _is_rank_zero() -> bool:
    """True in the process that owns the run folder, also before any group of processes exists."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
