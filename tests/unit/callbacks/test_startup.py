"""The selection as the table at the start of a run shows it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.config import AlgorithmConfig
from forklight.algo.correction import CorrectionConfig
from forklight.algo.kl import KLConfig
from forklight.algo.objectives import Archer, ClipCov
from forklight.algo.ratios import ClipRange
from forklight.algo.selection.spec import PRESETS, ForkSelection
from forklight.callbacks.startup import FEW, describe, describe_loss

KEYS = [field.name for field in dataclasses.fields(ForkSelection)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_shown_by_its_name(name):
    assert describe(PRESETS[name]).startswith(f"{name}: rho ")


def test_a_selection_is_shown_by_the_nearest_preset():
    near = dataclasses.replace(PRESETS["trl"], rho=0.1)
    assert describe(near) == (
        "trl but rho 0.1: rho 0.1, keep top, scope micro_batch, entropy_of current, rule threshold, tau none, "
        "balance none, keep_eos false, relative_to none, temperature sampling, eligible answers, denominator answer, "
        "masked_terms policy+entropy, select_truncated true"
    )
    falling = dataclasses.replace(PRESETS["forklight"], rho={"from": 1.0, "to": 0.2, "over_rollouts": 9})
    assert describe(falling).startswith("forklight but rho 1 -> 0.2 over 9 rollouts (linear): rho 1 -> 0.2 over 9")
    two = dataclasses.replace(PRESETS["bottom-80"], rho=0.5, temperature=1)
    assert describe(two).startswith("bottom-80 but rho 0.5, temperature 1: rho 0.5, keep bottom")


@given(
    st.builds(
        ForkSelection,
        rho=st.sampled_from([0.1, 0.2, 0.8, 1.0]),
        keep=st.sampled_from(["top", "bottom", "band", "all"]),
        scope=st.sampled_from(["update", "sequence", "micro_batch"]),
        rule=st.sampled_from(["count", "threshold"]),
        eligible=st.sampled_from(["contributing", "answers"]),
        select_truncated=st.booleans(),
    )
)
def test_every_key_is_shown_once_and_no_preset_is_nearer(selection):
    title, _, keys = describe(selection).partition(": ")
    assert [key.split(" ")[0] for key in keys.split(", ")] == KEYS
    differing = {
        name: [key for key in KEYS if getattr(selection, key) != getattr(preset, key)]
        for name, preset in PRESETS.items()
    }
    fewest = min(map(len, differing.values()))
    name, _, but = title.partition(" but ")
    assert (name == "own") == (fewest > FEW)
    if name != "own":
        assert [key.split(" ")[0] for key in but.split(", ") if key] == differing[name]
        assert len(differing[name]) == fewest


@pytest.mark.parametrize(
    ("loss", "advantage", "shown"),
    [
        (AlgorithmConfig(), "grpo", "Dapo (clip -0.2 +0.28), advantage grpo"),
        (
            AlgorithmConfig(old_logp_from="sampler"),
            "grpo",
            "Dapo (clip -0.2 +0.28), advantage grpo, old log-probabilities of the sampler",
        ),
        (
            AlgorithmConfig(
                objective=ClipCov(ClipRange(0.2, 0.3, 10.0)), kl=KLConfig(0.04, "k2", refresh_every_rollouts=9)
            ),
            "rloo",
            "ClipCov (clip -0.2 +0.3 dual 10, covariance 0.0002 of the kept tokens between 1 and 5), advantage rloo, "
            "KL k2 0.04 in the loss, reference refreshed every 9 rollouts",
        ),
        (
            AlgorithmConfig(
                ForkSelection(denominator="answer"),
                Archer(),
                KLConfig(0.1, placement="reward"),
                0.01,
                CorrectionConfig("token_mask"),
            ),
            "dr_grpo",
            "Archer (fork_clip -0.5 +0.5, other_clip -0.2 +0.2, fork_kl 0.0, other_kl 0.001), advantage dr_grpo, "
            "KL k3 0.1 in the reward, reference frozen, entropy bonus 0.01, correction token_mask 0.5 to 2",
        ),
    ],
    ids=["default", "old from sampler", "clip_cov", "archer"],
)
def test_the_loss_is_shown_with_everything_that_is_not_off(loss, advantage, shown):
    assert describe_loss(loss, advantage) == shown
