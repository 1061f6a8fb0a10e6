"""Runs in Python, with a plain Trainer."""

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from toy import LengthParity
from toy_runs import curves, weights

from forklight.callbacks.checkpoint import RunCheckpoint
from forklight.callbacks.every_run import run_callbacks
from forklight.callbacks.fork_monitor import ForkMonitor
from forklight.data.countdown_sets import CountdownProblems
from forklight.data.datamodule import MathDataModule
from forklight.data.prompts import PromptTemplate
from forklight.data.sets import EvalSet
from forklight.models.loading import PolicyConfig
from forklight.module import ForkGRPOModule
from forklight.rollout.config import RolloutConfig

PARTS = {"policy": PolicyConfig(), "rollout": RolloutConfig(max_new_tokens=6)}


def data(**more):
    template = PromptTemplate(kind="base", text="{problem}:")
    sizes = {"prompts_per_rollout": 4, "answers_per_prompt": 4}
    return MathDataModule([CountdownProblems(size=50)], template=template, verifier=LengthParity(), **sizes, **more)


def trainer(folder, steps, *chosen):
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=run_callbacks(folder, *chosen),
        logger=TensorBoardLogger(folder, name="", version=""),
        enable_model_summary=False,
    )


def test_a_plain_trainer_needs_no_callback_and_no_evaluation_set(tmp_path):
    seed_everything(1)
    plain = Trainer(accelerator="cpu", max_steps=2, default_root_dir=tmp_path, enable_progress_bar=False)
    plain.fit(ForkGRPOModule(**PARTS), data())
    assert plain.global_step == 2


def test_a_run_in_python_has_curves_and_resumes_exactly(tmp_path):
    every = RunCheckpoint(every_n_rollouts=1, keep=-1)
    for folder, stops in (("whole", [3]), ("parts", [2, 3])):
        for number, stop in enumerate(stops):
            seed_everything(1)
            path = tmp_path / folder / "checkpoints" / "last.ckpt" if number else None
            trainer(tmp_path / folder, stop, every).fit(ForkGRPOModule(**PARTS), data(), ckpt_path=path)
    whole, parts = (weights(tmp_path / name, 3) for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    found = curves(tmp_path / "whole")
    assert [step for step, _ in found["train/grad_norm"]] == [1, 2, 3]
    assert (tmp_path / "whole" / "policy" / "generation_config.json").is_file()
    assert (tmp_path / "whole" / "signal.jsonl").is_file()


def test_a_module_can_be_loaded_from_a_checkpoint_and_scored(tmp_path, capsys):
    seed_everything(1)
    sets = {"toy": EvalSet(CountdownProblems(size=6, split="eval"), answers=2)}
    trainer(tmp_path / "run", 2).fit(ForkGRPOModule(**PARTS), data(val=sets, eval_every_rollouts=1))
    step, score = curves(tmp_path / "run")["val/toy/avg@2"][-1]
    assert step == 2
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    module = ForkGRPOModule.load_from_checkpoint(path, **PARTS)
    expected = weights(tmp_path / "run", 2)
    found = {name.removeprefix("policy.model."): value for name, value in module.state_dict().items()}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = trainer(tmp_path / "scored", 2)
    other.validate(module, data(val=sets))
    assert float(other.callback_metrics["val/toy/avg@2"]) == pytest.approx(score)


def test_callbacks_may_be_chosen_and_others_are_refused(tmp_path):
    monitor = ForkMonitor(samples=0)
    found = run_callbacks(tmp_path, monitor)
    assert [callback for callback in found if isinstance(callback, ForkMonitor)] == [monitor]
    assert monitor.folder == tmp_path
    with pytest.raises(TypeError, match=r"not PolicyExport"):
        run_callbacks(tmp_path, next(each for each in found if type(each).__name__ == "PolicyExport"))
