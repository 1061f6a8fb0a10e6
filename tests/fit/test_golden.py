"""A loss curve on recorded rollouts, in float64: it moves only when the algorithm does.

`PYTHONPATH=tests python tests/fit/test_golden.py` records rollouts and curve anew; say in the commit why they moved.
"""

import csv
import json
import tempfile
from pathlib import Path

import pytest
from replay import ROLLOUTS, RecordingSampler, RecordingVerifier
from toy_runs import fit

CURVE = Path(__file__).parents[1] / "golden" / "curve.json"
TAGS = ("train/policy_loss", "train/grad_norm", "fork/threshold", "train/tokens")
UPDATES = 10
SEED = 8
"""One for which no two tokens of equal entropy meet at the threshold: rounding would decide between those."""


def curve(folder, sampler, verifier):
    """Ten updates with K = 2, A = 2, rho = 0.2; by tag the values, which a CSV file keeps in full."""
    fit(
        folder / "run",
        *("--trainer.precision", "64-true", "--model.policy.dtype", "float64", "--model.selection.rho", "0.2"),
        *("--data.updates_per_rollout", 2, "--trainer.accumulate_grad_batches", 2, "--data.val", "null"),
        *("--model.sampler", sampler, "--data.verifier", verifier),
        *("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", folder / "csv"),
        *("--seed_everything", SEED),
        steps=UPDATES,
    )
    (file,) = (folder / "csv").rglob("metrics.csv")
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/policy_loss"]]
    return {tag: [float(row[tag]) for row in rows] for tag in TAGS}


def test_the_curve_is_the_recorded_one(tmp_path):
    expected, found = json.loads(CURVE.read_text()), curve(tmp_path, "replay.ReplaySampler", "replay.ReplayVerifier")
    assert len(expected["train/policy_loss"]) == UPDATES
    assert max(map(abs, expected["train/policy_loss"])) > 1e-3
    assert expected.keys() == found.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-9, abs=1e-12), tag


def record():
    with tempfile.TemporaryDirectory() as folder:
        values = curve(Path(folder), "replay.RecordingSampler", "replay.RecordingVerifier")
    rollouts = {"calls": RecordingSampler.calls, "right": sorted(RecordingVerifier.right)}
    ROLLOUTS.write_text(json.dumps(rollouts, separators=(",", ":")) + "\n")
    CURVE.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    record()
