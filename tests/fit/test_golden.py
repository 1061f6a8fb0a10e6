"""A loss curve on recorded rollouts, in float64: it moves only when the algorithm does.

`PYTHONPATH=tests/support python tests/fit/test_golden.py` records rollouts and curve again; say in the commit why they
moved.
"""

import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from replay import ROLLOUTS, RecordingSampler, RecordingVerifier
from toy_runs import fit

from forklight.algo.schedule import OldLogp, PassSchedule, SelectAt

CURVE = Path(__file__).parents[1] / "golden" / "curve.json"
TAGS = ("train/policy_loss", "train/grad_norm", "fork/threshold", "train/tokens")
ROLLOUTS_RUN, UPDATES = 5, 10
SEED = 8
"""One for which no two tokens of equal entropy meet at the threshold: rounding would decide between those."""


SCHEDULE = PassSchedule.of


def curve(folder, sampler, verifier, *settings, updates=2, micro_batches=2):
    """Five rollouts of K = 2, A = 2, rho = 0.2; by tag the values, which a CSV file keeps in full."""
    fit(
        folder / "run",
        *("--trainer.precision", "64-true", "--model.policy.dtype", "float64", "--model.selection.rho", "0.2"),
        *("--data.updates_per_rollout", updates, "--trainer.accumulate_grad_batches", micro_batches),
        *("--data.val", "null"),
        *("--model.sampler", sampler, "--data.verifier", verifier),
        *("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", folder / "csv"),
        *("--seed_everything", SEED),
        *settings,
        steps=ROLLOUTS_RUN * updates,
    )
    (file,) = (folder / "csv").rglob("metrics.csv")
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/policy_loss"]]
    return {tag: [float(row[tag]) for row in rows] for tag in TAGS}


def replayed(folder, *settings, **sizes):
    return curve(folder, "replay.ReplaySampler", "replay.ReplayVerifier", *settings, **sizes)


def same(found, expected, rel):
    assert expected.keys() == found.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=rel, abs=1e-12), tag


def test_the_curve_is_the_recorded_one(tmp_path):
    expected = json.loads(CURVE.read_text())
    assert len(expected["train/policy_loss"]) == UPDATES
    assert max(map(abs, expected["train/policy_loss"])) > 1e-3
    same(replayed(tmp_path), expected, rel=1e-9)


# The curve above is that of `selected` with packing.
@pytest.mark.parametrize(("head", "packing"), [("selected", "false"), ("gathered", "true"), ("full", "false")])
def test_head_and_packing_leave_the_curve_alone(tmp_path, head, packing):
    settings = ("--model.policy.head", head, "--model.policy.packing", packing)
    same(replayed(tmp_path, *settings), json.loads(CURVE.read_text()), rel=1e-10)


def old_by_pass(spec, **sizes):
    """Old log-probabilities and entropies by a pass of their own, whatever the training forward would yield."""
    return replace(SCHEDULE(spec, **sizes), select_at=SelectAt.ROLLOUT, old_logp=OldLogp.PASS)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_old_log_probabilities_of_the_forward_leave_the_curve_alone(tmp_path, monkeypatch, micro_batches):
    own = replayed(tmp_path / "forward", updates=1, micro_batches=micro_batches)
    monkeypatch.setattr(PassSchedule, "of", old_by_pass)
    plain = ("--model.policy.head", "full", "--model.policy.packing", "false")
    apart = replayed(tmp_path / "apart", *plain, updates=1, micro_batches=micro_batches)
    assert len(apart["train/grad_norm"]) == ROLLOUTS_RUN
    assert min(apart["train/grad_norm"]) > 1e-3
    same(own, apart, rel=1e-10)


def record():
    with tempfile.TemporaryDirectory() as folder:
        values = curve(Path(folder), "replay.RecordingSampler", "replay.RecordingVerifier")
    rollouts = {"calls": RecordingSampler.calls, "right": sorted(RecordingVerifier.right)}
    ROLLOUTS.write_text(json.dumps(rollouts, separators=(",", ":")) + "\n")
    CURVE.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    record()
