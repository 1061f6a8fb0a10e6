"""Sampler and trainer that disagree: what the curves say of it, and what each correction makes of the loss."""

import math
from collections.abc import Sequence

import pytest
import torch
from toy_runs import curves, fit, weights

from forklight.algo.noise import hash_uniform
from forklight.sampling.base import Sampled, SamplingParams
from forklight.sampling.hf import HFSampler

METHODS = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
SPREAD = 2.0
"""Width of the noise on log-probabilities: ratios lie between 1/e and e, on either side of a correction's bounds."""


def shifted(answer, offset):
    """The same answer with other log-probabilities."""
    logp = torch.tensor(answer.logp, dtype=torch.float64) + offset
    return Sampled(answer.token_ids, logp.float().tolist())


class NoisySampler(HFSampler):
    """Tells log-probabilities that are off by up to half of SPREAD either way, by a fixed noise of each token."""

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
    ) -> list[list[Sampled]]:
        def noise(key, number, answer):
            uniform = hash_uniform(torch.tensor(key), number, torch.arange(len(answer.token_ids)))
            return SPREAD * (uniform - 0.5)

        groups = super().sample(prompts, keys, answers, decoding)
        return [
            [shifted(answer, noise(key, number, answer)) for number, answer in enumerate(group)]
            for key, group in zip(keys, groups, strict=True)
        ]


class ShiftedSampler(HFSampler):
    """Tells that every token was a fourth as probable as it was: all ratios trainer / sampler are 4."""

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
    ) -> list[list[Sampled]]:
        groups = super().sample(prompts, keys, answers, decoding)
        return [[shifted(answer, -math.log(4)) for answer in group] for group in groups]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs once each: values by tag, and the weights at the end."""
    runs = {}

    def values(sampler, method, *more):
        key = (sampler, method, *more)
        if key not in runs:
            folder = tmp_path_factory.mktemp("correction") / "run"
            more = ("--model.correction.method", method, "--data.val", "null", *more)
            own = () if sampler is HFSampler else ("--model.sampler", f"{__name__}.{sampler.__name__}")
            fit(folder, *own, *more, steps=2)
            found = {tag: [value for _, value in points] for tag, points in curves(folder).items()}
            runs[key] = found, weights(folder, 2)
        return runs[key]

    return values


K2 = ("--data.updates_per_rollout", 2, "--trainer.accumulate_grad_batches", 2)
NAMES = ("ess", "kl", "ratio_max", "diff_mean", "diff_max")
MISMATCH = {f"mismatch/{name}_{of}" for name in NAMES for of in ("kept", "dropped")}


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_a_mismatch_is_logged_by_kept_and_dropped_tokens(method, trained):
    found, _ = trained(NoisySampler, method)
    assert {tag for tag in found if tag.startswith("mismatch/")} == MISMATCH
    assert all(math.isfinite(value) for points in found.values() for value in points)
    for of in ("kept", "dropped"):
        # w = exp(u) for u uniform over SPREAD: the squared mean over the mean square, and the mean of w - 1 - u
        mean, mean_square = 2 * math.sinh(SPREAD / 2) / SPREAD, math.sinh(SPREAD) / SPREAD
        assert found[f"mismatch/ess_{of}"] == pytest.approx([mean**2 / mean_square] * 2, abs=0.12)
        assert all(value < 0.95 for value in found[f"mismatch/ess_{of}"])
        assert found[f"mismatch/kl_{of}"] == pytest.approx([mean - 1] * 2, abs=0.1)
        assert all(1.5 < value <= math.exp(SPREAD / 2) * 1.001 for value in found[f"mismatch/ratio_max_{of}"])
        assert found[f"mismatch/diff_mean_{of}"] == pytest.approx([SPREAD / 4] * 2, abs=0.2)
        assert all(SPREAD / 4 < value <= SPREAD / 2 * 1.001 for value in found[f"mismatch/diff_max_{of}"])
    assert found["mismatch/ess_kept"] != found["mismatch/ess_dropped"]


@pytest.mark.parametrize("method", METHODS)
def test_every_correction_changes_the_loss_of_the_same_answers(method, trained):
    (plain, before), (found, after) = trained(NoisySampler, "none"), trained(NoisySampler, method)
    assert found["rollout/right"][0] == plain["rollout/right"][0]
    assert found["mismatch/ess_kept"][0] == plain["mismatch/ess_kept"][0]
    assert found["fork/threshold"][0] == plain["fork/threshold"][0]
    assert abs(found["train/policy_loss"][0] - plain["train/policy_loss"][0]) > 1e-3
    assert found["train/tokens"][0] == plain["train/tokens"][0]  # a masked token is still counted
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())
    others = [trained(NoisySampler, other)[0]["train/grad_norm"][0] for other in METHODS if other != method]
    assert all(abs(norm - found["train/grad_norm"][0]) > 1e-3 for norm in others)


@pytest.mark.parametrize(
    ("method", "factor", "more"),
    [
        ("token_truncate", 2.0, ()),
        ("token_mask", 0.0, K2),
        ("sequence_truncate", 2.0, K2),
        ("sequence_mask", 0.0, ()),
    ],
)
def test_ratios_of_4_are_cut_to_2_or_masked(method, factor, more, trained):
    plain, found = trained(HFSampler, "none", *more)[0], trained(ShiftedSampler, method, *more)[0]
    loss, norm = plain["train/policy_loss"][0], plain["train/grad_norm"][0]
    assert norm > 0.01
    assert found["train/grad_norm"][0] == pytest.approx(factor * norm, rel=1e-4)
    assert found["train/policy_loss"][0] == pytest.approx(factor * loss, rel=1e-5, abs=1e-7)
    # equal weights are no spread
    assert found["mismatch/ess_kept"][0] == pytest.approx(1, abs=1e-6)
    assert found["mismatch/ratio_max_kept"][0] == pytest.approx(4, rel=1e-4)
    assert found["mismatch/kl_kept"][0] == pytest.approx(3 - math.log(4), rel=1e-4)
    assert found["mismatch/diff_mean_kept"][0] == pytest.approx(math.log(4), rel=1e-4)
    assert found["mismatch/diff_max_kept"][0] == pytest.approx(math.log(4), rel=1e-4)


@pytest.mark.parametrize("more", [(), K2])
def test_a_sampler_that_agrees_needs_no_correction(more, trained):
    plain, found = trained(HFSampler, "none", *more)[0], trained(HFSampler, "token_truncate", *more)[0]
    for tag in ("mismatch/ess_kept", "mismatch/ess_dropped"):
        assert found[tag] == pytest.approx([1.0] * 2, abs=1e-6)
    assert found["train/policy_loss"] == pytest.approx(plain["train/policy_loss"], abs=1e-5)
    assert max(map(abs, plain["train/policy_loss"])) > 1e-3


FROM_SAMPLER = ("--model.old_logp_from", "sampler")


@pytest.mark.parametrize("more", [(), K2])
def test_the_samplers_log_probabilities_are_the_old_ones(more, trained):
    (plain, before), (found, after) = (
        trained(NoisySampler, "none", *more),
        trained(NoisySampler, "none", *more, *FROM_SAMPLER),
    )
    assert plain["train/ratio"][0] == 1
    # the mean of exp(u) for u uniform over SPREAD, and ranges that a part of the tokens leaves at once
    assert found["train/ratio"][0] == pytest.approx(2 * math.sinh(SPREAD / 2) / SPREAD, abs=0.15)
    assert found["train/ratio_max"][0] == pytest.approx(found["mismatch/ratio_max_kept"][0], rel=1e-4)
    assert found["train/clip_low"][0] + found["train/clip_high"][0] > 0
    assert found["fork/threshold"][0] == pytest.approx(plain["fork/threshold"][0], rel=1e-5)
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())
    # the mismatch is logged nevertheless
    for tag in MISMATCH:
        assert found[tag][0] == pytest.approx(plain[tag][0], rel=1e-4), tag
        assert len(found[tag]) == 2
    passes = [values["time/passes_statistics"] for values in (plain, found)]
    assert passes == ([[4.0], [4.0]] if more else [[0.0, 0.0]] * 2)  # at K = 2 for the entropies of both updates


def test_no_pass_runs_for_them_where_no_token_is_ranked_by_the_old_policy(trained):
    current = ("--data.updates_per_rollout", 2, "--model.selection.entropy_of", "current")
    found, _ = trained(NoisySampler, "none", *current, *FROM_SAMPLER)
    assert found["time/passes_statistics"] == [0.0]
    assert len(found["train/ratio"]) == 2
    # under the policy that sampled the trainer then knows the first update's tokens alone
    assert {tag: len(found[tag]) for tag in MISMATCH} == dict.fromkeys(MISMATCH, 1)
