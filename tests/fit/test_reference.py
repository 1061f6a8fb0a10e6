"""The reference of a KL term over a run: frozen or refreshed, in the loss or in the reward, killed or not."""

import pytest
import torch
from toy_runs import checkpoint, curves, fit, weights

ROLLOUTS, EVERY = 4, 2
TRAINED = ("--model.policy.random_init", "false", "--data.val", "null", "--checkpoint.keep", -1)
REFRESHED = (*TRAINED, "--model.kl.coef", 0.1, "--model.kl.refresh_every_rollouts", EVERY)
FROZEN = (*TRAINED, "--model.kl.coef", 0.1)


def values(folder):
    return {tag: [value for _, value in points] for tag, points in curves(folder).items()}


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    """A run whose reference becomes the policy at its rollout 2, the third."""
    folder = tmp_path_factory.mktemp("refreshed") / "run"
    fit(folder, *REFRESHED, steps=ROLLOUTS)
    return folder


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A run whose reference is the policy before training."""
    folder = tmp_path_factory.mktemp("frozen") / "run"
    fit(folder, *FROZEN, steps=ROLLOUTS)
    return folder


def test_a_run_resumed_where_a_refresh_is_due_equals_an_uninterrupted_one(refreshed, tmp_path):
    folder = tmp_path / "run"
    fit(folder, *REFRESHED, steps=EVERY)
    fit(folder, *REFRESHED, "--ckpt_path", "last", steps=ROLLOUTS)
    expected, found = checkpoint(refreshed, ROLLOUTS), checkpoint(folder, ROLLOUTS)
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    for name, weight in expected["forklight"]["reference"].items():
        assert torch.equal(found["forklight"]["reference"][name], weight), name
    whole, parts = values(refreshed), values(folder)
    assert whole.keys() == parts.keys()
    for tag in whole:
        if not tag.startswith("time/"):
            assert whole[tag] == parts[tag], tag


def test_a_run_resumed_later_compares_with_the_refreshed_reference(tmp_path):
    """The last rollout needs the weights from before the third, which only the checkpoint still has."""
    more = (*REFRESHED, "--data.updates_per_rollout", 2, "--checkpoint.every_n_updates", 1)
    fit(tmp_path / "whole", *more, steps=8)
    fit(tmp_path / "parts", *more, steps=5)  # in the middle of the third rollout
    fit(tmp_path / "parts", *more, "--ckpt_path", "last", steps=8)
    whole, parts = weights(tmp_path / "whole", 8), weights(tmp_path / "parts", 8)
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())
    kl = values(tmp_path / "whole")["train/kl"]
    assert values(tmp_path / "parts")["train/kl"] == kl
    assert kl[4] == pytest.approx(0, abs=1e-7)
    assert kl[5] > 1e-5  # the second update of the rollout: the reference has stayed, the policy has not


def test_the_divergence_is_0_right_after_a_refresh(refreshed, frozen):
    moving, fixed = values(refreshed)["train/kl"], values(frozen)["train/kl"]
    assert len(moving) == len(fixed) == ROLLOUTS
    assert [abs(kl) < 1e-7 for kl in moving] == [rollout % EVERY == 0 for rollout in range(ROLLOUTS)]
    assert [abs(kl) < 1e-7 for kl in fixed] == [rollout == 0 for rollout in range(ROLLOUTS)]
    assert moving[:EVERY] == fixed[:EVERY]  # the same run up to the first refresh
    assert all(kl >= 0 for kl in moving + fixed)


def test_only_a_refreshed_reference_is_in_a_checkpoint(refreshed, frozen):
    for update in range(1, ROLLOUTS + 1):
        saved = checkpoint(frozen, update)
        assert "reference" not in saved["forklight"]
        assert not any("reference" in name for name in saved["state_dict"])
        reference = checkpoint(refreshed, update)["forklight"]["reference"]
        refresh = (update - 1) // EVERY * EVERY  # updates before the last refresh, which starts its rollout
        policy, present = weights(refreshed, refresh) if refresh else None, weights(refreshed, update)
        for name, weight in reference.items():
            key = name.removeprefix("model.")
            if policy is not None:
                assert torch.equal(weight, policy[key]), (update, name)
            else:
                assert not torch.equal(weight, present[key]), (update, name)


def test_a_penalty_is_taken_from_the_reward(frozen, tmp_path):
    folder = tmp_path / "run"
    fit(folder, *REFRESHED, "--model.kl.placement", "reward", steps=ROLLOUTS)
    found = values(folder)
    assert "train/kl" not in found
    penalty = found["rollout/penalty"]
    assert [abs(taken) < 1e-6 for taken in penalty] == [rollout % EVERY == 0 for rollout in range(ROLLOUTS)]
    assert all(taken > 1e-4 for taken in penalty[1::EVERY])
    # `rollout/reward` is what is left of the verdicts
    for reward, right, taken in zip(found["rollout/reward"], found["rollout/right"], penalty, strict=True):
        assert reward == pytest.approx(right - taken, abs=1e-5)
    assert "rollout/penalty" not in values(frozen)
    assert "reference" in checkpoint(folder, ROLLOUTS)["forklight"]
