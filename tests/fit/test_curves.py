"""The curves of a run: which there are, how many points they have, and where these stand."""

import json
import math
from itertools import pairwise

import pytest
from toy_runs import curves, fit

K, A, ROLLOUTS = 4, 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three rollouts of four updates of two micro-batches, evaluated after every second rollout.

    With the head that looks at every token: others say nothing of the ratios of dropped ones at later updates.
    """
    root = tmp_path_factory.mktemp("curves") / "run"
    more = ("--data.updates_per_rollout", K, "--trainer.accumulate_grad_batches", A, "--data.eval_every_rollouts", 2)
    fit(root, *more, "--model.policy.head", "full", steps=K * ROLLOUTS)
    return root


@pytest.fixture(scope="module")
def found(folder):
    """The curves of this run."""
    return curves(folder)


def steps(points):
    return [step for step, _ in points]


PER_UPDATE = {
    "train": "policy_loss ratio ratio_max clip_low clip_high clip_dual approx_kl grad_norm tokens lr",
    "fork": "threshold kept_share kept_share_right kept_share_wrong kept_share_first_third kept_share_last_third "
    "kept_share_min kept_share_max entropy_mean entropy_kept entropy_dropped types types_share overlap_random "
    "ratio_kept ratio_dropped clip_kept clip_dropped kl_kept kl_dropped signal_kept",
    "mismatch": "ess_kept ess_dropped kl_kept kl_dropped ratio_max_kept ratio_max_dropped diff_mean_kept "
    "diff_mean_dropped diff_max_kept diff_max_dropped",
    "rollout": "empty_updates",
}


def test_every_curve_is_in_one_of_eight_groups(found):
    groups = {"rollout", "train", "fork", "signal", "mismatch", "verify", "val", "time"}
    assert {tag.split("/")[0] for tag in found} == groups


def test_what_an_update_did_stands_at_its_number(found):
    expected = {f"{group}/{name}" for group, names in PER_UPDATE.items() for name in names.split()}
    groups = ("train/", "fork/", "mismatch/")
    assert {tag for tag in found if tag.startswith(groups)} == expected - {"rollout/empty_updates"} | {
        "fork/overlap_previous"
    }
    for tag in expected:
        assert steps(found[tag]) == list(range(1, K * ROLLOUTS + 1)), tag
    assert steps(found["fork/overlap_previous"]) == list(range(2, K * ROLLOUTS + 1))


def test_the_signal_of_every_update_is_a_line(found, folder):
    tags = {tag for tag in found if tag.startswith("signal/")}
    edges = ("0", "0.01", "0.1", "0.3", "0.7", "1", "1.5", "2", "3", "4", "6", "inf")
    bins = {f"signal/{of}/{low}_to_{high}" for of in ("gradient", "tokens") for low, high in pairwise(edges)}
    # the length limit cuts every answer, and none has a box
    assert tags - bins == {f"signal/{of}_{part}" for of in ("share", "kept") for part in ("right", "wrong", "cut")}
    for tag in bins:
        assert steps(found[tag]) == list(range(1, K * ROLLOUTS + 1)), tag
    lines = [json.loads(line) for line in (folder / "signal.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, K * ROLLOUTS + 1))
    assert [line["rollout"] for line in lines] == [rollout for rollout in range(ROLLOUTS) for _ in range(K)]
    for line, (_, kept) in zip(lines, found["fork/signal_kept"], strict=True):
        assert list(line) == ["step", "rollout", "edges", "sums"]
        assert set(line["sums"]) == {"all", "right", "wrong", "cut", "whole", "before_box", "behind_box"}
        every = {name: sum(bins) for name, bins in line["sums"]["all"].items()}
        assert every["kept_gradient"] / every["gradient"] == pytest.approx(kept)
        assert len(line["edges"]) + 1 == len(line["sums"]["right"]["kept_tokens"])


def test_a_rollout_stands_at_the_first_update_it_feeds(found):
    per_rollout = {tag for tag in found if tag.startswith("rollout/")} - {"rollout/empty_updates"}
    assert per_rollout >= {"rollout/reward", "rollout/right", "rollout/truncated", "rollout/epoch"}
    for tag in per_rollout:
        assert steps(found[tag]) == [1 + K * rollout for rollout in range(ROLLOUTS)], tag


def test_times_stand_at_the_last_update_of_a_rollout(found):
    times = {tag for tag in found if tag.startswith("time/")}
    parts = {f"time/{part}" for part in ("sample", "verify", "statistics", "forward", "backward", "optimizer")}
    assert times >= parts | {"time/rollout", "time/tokens_per_second"}
    for tag in times:
        assert steps(found[tag]) == [K * (rollout + 1) for rollout in range(ROLLOUTS)], tag
    assert times >= {f"time/{name}" for name in ("head_share", "prefix_ratio", "packing_ratio", "skipped_share")}
    for rollout, (_, whole) in enumerate(found["time/rollout"]):
        assert 0 < sum(found[part][rollout][1] for part in parts) <= whole


def test_scores_stand_at_the_updates_before_them(found):
    scores = {tag for tag in found if tag.startswith("val/")}
    assert scores >= {"val/toy/avg@2", "val/toy/pass@2", "val/toy/length", "val/toy/truncated"}
    for tag in scores:
        assert steps(found[tag]) == [0, 2 * K], tag


def test_values_are_what_their_names_say(found):
    values = {tag: [value for _, value in points] for tag, points in found.items()}
    assert all(math.isfinite(value) for tag in values for value in values[tag])
    shares = {tag for tag in found if "share" in tag or "clip" in tag or "overlap" in tag or "ess" in tag}
    for tag in shares | {"rollout/reward", "rollout/right", "val/toy/avg@2"}:
        assert all(0 <= value <= 1 + 1e-6 for value in values[tag]), tag
    assert values["rollout/epoch"] == sorted(values["rollout/epoch"])
    assert values["train/ratio"][::K] == pytest.approx([1.0] * ROLLOUTS, abs=1e-6)
    # Linear warm-up, stepped once per update: the rate with which update n is made.
    assert values["train/lr"][:9] == pytest.approx([1e-2 * (0.1 + 0.9 * n / 10) for n in range(9)], rel=1e-5)
    for kept, mean, dropped in zip(*(values[f"fork/entropy_{x}"] for x in ("kept", "mean", "dropped")), strict=True):
        assert kept >= mean >= dropped > 0
    # the sampler and the trainer are one model: they disagree by rounding
    for part in ("kept", "dropped"):
        assert values[f"mismatch/ess_{part}"] == pytest.approx([1.0] * K * ROLLOUTS, abs=1e-6)
        assert values[f"mismatch/ratio_max_{part}"] == pytest.approx([1.0] * K * ROLLOUTS, abs=1e-4)
