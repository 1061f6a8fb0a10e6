"""A number that is not finite ends the run with one line, a dump of the rollout, and the last good checkpoint."""

import json
import math
import re

import pytest
import torch
from toy_runs import fit

from forklight.algo.batch import RolloutBatch
from forklight.training.state import TokenState

K, A = 2, 2


def broken_fit(folder, capsys, how, rollout, micro_batch, *more):
    """The message of a run whose policy breaks at a micro-batch, and what its dump holds."""
    callback = {
        "class_path": "broken.BreakPolicy",
        "init_args": {"how": how, "rollout": rollout, "micro_batch": micro_batch},
    }
    with pytest.raises(SystemExit) as stop:
        fit(
            folder,
            *("--data.updates_per_rollout", K, "--trainer.accumulate_grad_batches", A, "--data.val", "null"),
            *("--checkpoint.every_n_updates", 1, "--trainer.callbacks", json.dumps([callback]), *more),
            steps=8,
        )
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    error = error.removeprefix("forklight: error: ").strip()
    assert "\n" not in error
    path = folder / f"dump-rollout-{rollout}-rank-0.pt"
    assert str(path) in out
    assert [file.name for file in folder.glob("dump*")] == [path.name]
    return error, torch.load(path, weights_only=True), path


def checkpoint(folder):
    return (folder / "checkpoints" / "last.ckpt").resolve()


@pytest.mark.parametrize(("how", "value"), [("nan", "nan and entropy nan"), ("infinite", "-inf and entropy 6.4")])
def test_the_rollout_is_dumped(how, value, tmp_path, capsys):
    folder = tmp_path / "run"
    error, dump, path = broken_fit(folder, capsys, how, 1, A)  # at the second update of the second rollout
    assert dump["error"] == error
    assert error.startswith("rollout 1: token ")
    assert f"has log-probability {value}" in error
    batch, tokens = RolloutBatch(**dump["batch"]), TokenState(**dump["tokens"])
    problem = error.split(" of an answer to problem ")[1].split()[0]
    assert problem in {uid for uid, update in zip(batch.uids, batch.update.tolist(), strict=True) if update == 1}
    assert len(batch.rewards) == len(batch.uids) == 16
    assert tokens.old_logp[batch.answer_mask].isfinite().all()  # from before the policy broke
    assert tokens.fork_mask.any()
    assert dump["rollout"] == 1
    # the last checkpoint is that of the third update, from before
    last = checkpoint(folder)
    assert last.name == "update-00000003.ckpt"
    assert last.stat().st_mtime_ns < path.stat().st_mtime_ns
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in state.values())


def test_a_gradient_that_is_not_finite_is_in_no_checkpoint(tmp_path, capsys):
    folder = tmp_path / "run"
    error, dump, _ = broken_fit(folder, capsys, "gradient", 1, 0)
    assert error.startswith("rollout 1: update 0 of 2 has a gradient of norm nan")
    assert dump["tokens"]["entropy"].shape == dump["tokens"]["fork_mask"].shape
    assert checkpoint(folder).name == "update-00000002.ckpt"


def test_a_pass_before_there_are_advantages_shows_the_rollout_so_far(tmp_path, capsys):
    kl = ("--model.kl.coef", 0.1, "--model.kl.placement", "reward")  # passes before there are rewards
    kl = (*kl, "--model.policy.random_init", "false")
    error, dump, _ = broken_fit(tmp_path / "run", capsys, "statistics", 1, 0, *kl)
    (uid,) = re.findall(r"^rollout 1: token 0 of an answer to problem ([0-9a-f]{16}) has log-probability nan", error)
    assert uid in dump["batch"]["uids"]
    assert len(dump["batch"]["answer_length"]) == 16


def test_a_sampler_that_meets_no_number_says_where(tmp_path, capsys):
    error, dump, _ = broken_fit(tmp_path / "run", capsys, "nan", 1, 0)  # broken before the second rollout is sampled
    place = r"rollout 1: token 0 of answer 0 to problem ([0-9a-f]{16}) was sampled with log-probability nan: "
    (uid,) = re.findall(place + "the policy's logits are not finite$", error)
    assert dump["error"] == error
    assert dump["batch"] == dump["tokens"] == {}
    first = dump["answers"][0]
    assert first["uid"] == uid
    assert len(dump["answers"]) == 16
    assert len(first["prompt_ids"]) > 3
    assert math.isnan(first["logp"][0])
    assert len(first["logp"]) == len(first["token_ids"]) == 1


def test_other_errors_leave_no_dump(tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        fit(folder, "--trainer.accumulate_grad_batches", 17)
    assert not list(tmp_path.rglob("dump*"))
