"""Selections, objectives and corrections that contradict themselves are refused; sets of nothing and of one are not."""

import math
from collections.abc import Sequence

import pytest
import torch
import toy_runs
from toy_runs import checkpoint, curves, fit, run, weights

from forklight.algo.config import AlgorithmConfig
from forklight.algo.correction import CorrectionConfig
from forklight.algo.kl import KLConfig
from forklight.algo.objectives import Archer, Grpo, Gspo
from forklight.algo.selection.spec import ForkSelection
from forklight.rollout.config import RolloutConfig
from forklight.sampling.base import Sampled, SamplingParams
from forklight.sampling.hf import HFSampler
from forklight.types import Verdict


class SilentSampler(HFSampler):
    """Does not tell how probable its tokens were."""

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
    ) -> list[list[Sampled]]:
        groups = super().sample(prompts, keys, answers, decoding)
        return [[Sampled(answer.token_ids, logp=None) for answer in group] for group in groups]


class AllRight:
    """Every answer is right, so that no group contributes."""

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        return [Verdict("right", "generous", extracted=answer) for answer, _ in pairs]


def refused(capsys, folder, *more):
    """The message of a run that must be refused."""
    return toy_runs.refused(capsys, run, "fit", folder, "--data.val", "null", *more)


# -- what is refused ---------------------------------------------------------------------------------------------------

S, R = "--model.selection.", "--model.rollout."
SETTINGS = {
    "rho NaN": (lambda: ForkSelection(rho=math.nan), ["selection.rho", "got nan"]),
    "rho 0": (lambda: ForkSelection(rho=0.0), ["selection.rho", "got 0.0"]),
    "rho below 0": (lambda: ForkSelection(rho=-0.1), ["selection.rho", "got -0.1"]),
    "unknown preset": (lambda: ForkSelection.preset("papper"), ["selection.preset", "paper-code", "'papper'"]),
    "unknown keep": (lambda: ForkSelection(keep="best"), ["selection.keep", "'low_probability'", "best"]),
    "unknown term": (lambda: ForkSelection(masked_terms=("policy", "value")), ["selection.masked_terms", "value"]),
    "balanced noise": (
        lambda: ForkSelection(balance="outcome", keep="random"),
        ["selection.balance: outcome", "keep: random"],
    ),
    "balance inside one answer": (
        lambda: ForkSelection(balance="outcome", scope="sequence"),
        ["selection.balance: outcome", "scope: sequence"],
    ),
    "absolute without tau": (lambda: ForkSelection(rule="absolute"), ["selection.tau", "rule: absolute", "None"]),
    "tau without absolute": (lambda: ForkSelection(tau=0.5), ["selection.tau", "rule: count", "0.5"]),
    "tau below 0": (lambda: ForkSelection(rule="absolute", tau=-1.0), ["selection.tau", "got -1.0"]),
    "an absolute share of the lowest": (
        lambda: ForkSelection(rule="absolute", tau=1.0, keep="bottom"),
        ["selection.rule: absolute", "keep: top", "bottom"],
    ),
    "relative to nothing": (
        lambda: ForkSelection(relative_to="position", keep="random"),
        ["selection.relative_to: position", "random"],
    ),
    "the end of all tokens": (lambda: ForkSelection(keep_eos=True, keep="all"), ["selection.keep_eos", "keep: all"]),
    "one advantage in one answer": (
        lambda: ForkSelection(keep="abs_advantage", scope="sequence"),
        ["selection.keep: abs_advantage", "scope"],
    ),
    "the mask on no policy term": (
        lambda: ForkSelection(masked_terms=("entropy",)),
        ["selection.masked_terms", "`policy`", "['entropy']"],
    ),
    "temperature 0": (lambda: ForkSelection(temperature=0.0), ["selection.temperature", "got 0.0"]),
    "a part of the vocabulary": (
        lambda: RolloutConfig(top_p=0.9),
        ["rollout.top_p = 0.9", "rollout.allow_truncated_sampling: true"],
    ),
    "a lower bound above 1": (lambda: CorrectionConfig(low=1.5), ["model.correction.low", "got 1.5"]),
    "an upper bound below 1": (lambda: CorrectionConfig(high=0.5), ["model.correction.high", "got 0.5"]),
    "a negative KL": (lambda: KLConfig(coef=-0.1), ["model.kl.coef", "got -0.1"]),
    "the mask on a KL that is not there": (
        lambda: AlgorithmConfig(ForkSelection(masked_terms=("policy", "kl"))),
        ["selection.masked_terms", "kl", "model.kl"],
    ),
    "covariance inside one answer": (
        lambda: AlgorithmConfig(ForkSelection(keep="covariance", scope="sequence")),
        ["selection.keep: covariance", "scope"],
    ),
    "a token mean and a sequence mean": (
        lambda: AlgorithmConfig(ForkSelection(denominator="micro_batch"), Grpo()),
        ["selection.denominator: micro_batch", "Grpo"],
    ),
    "GSPO over dropped tokens": (
        lambda: AlgorithmConfig(ForkSelection(denominator="answer"), Gspo()),
        ["selection.denominator must be selected", "Gspo"],
    ),
    "Archer over kept tokens alone": (
        lambda: AlgorithmConfig(objective=Archer()),
        ["selection.denominator must be answer", "Archer"],
    ),
    "the mismatch twice": (
        lambda: AlgorithmConfig(correction=CorrectionConfig(method="token_mask"), old_logp_from="sampler"),
        ["model.correction.method: token_mask", "model.old_logp_from: sampler"],
    ),
    "old log-probabilities of nobody": (
        lambda: AlgorithmConfig(old_logp_from="reference"),
        ["old_logp_from", "reference"],
    ),
    "a negative entropy bonus": (lambda: AlgorithmConfig(entropy_coef=-0.01), ["model.entropy_coef", "got -0.01"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_contradict_themselves_or_each_other_are_refused(case):
    make, words = SETTINGS[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011  the words are looked for below
        make()
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


RUNS = {
    "a choice, by the parser": ([S + "keep", "best"], ["selection.keep", "'low_probability'", "best"]),
    "one setting, by its class": ([S + "rho", ".nan"], ["selection.rho", "got nan"]),
    "a schedule that ends before it begins": (
        [S + "rho", '{"from": 1.0, "to": 0.2, "over_rollouts": 0}'],
        ["selection.rho.over_rollouts", "got 0", "before it begins"],
    ),
    "a schedule above 1": (
        [S + "rho", '{"from": 1.2, "to": 0.2, "over_rollouts": 5}'],
        ["selection.rho.from", "got 1.2"],
    ),
    "a schedule with an absolute threshold": (
        [S + "rho", '{"from": 1.0, "to": 0.2, "over_rollouts": 5}', S + "rule", "absolute", S + "tau", "1.0"],
        ["selection.rho is a schedule", "rule: absolute"],
    ),
    "a schedule with a wrong key": (
        [S + "rho", '{"from": 1.0, "to": 0.2, "rollouts": 5}'],
        ["selection.rho", "rollouts"],
    ),
    "balanced noise": ([S + "balance", "outcome", S + "keep", "random"], ["selection.balance", "keep: random"]),
    "several settings, by the algorithm": (
        [S + "denominator", "answer", "--model.objective", "forklight.algo.objectives.Gspo"],
        ["selection.denominator must be selected", "Gspo"],
    ),
    "a reference of random weights, by the module": (["--model.kl.coef", "0.1"], ["model.policy.random_init = true"]),
    "a rollout ranked by a policy that changes, by the guards": (
        [S + "scope", "rollout", S + "entropy_of", "current", "--data.updates_per_rollout", "2"],
        ["selection.scope: rollout", "data.updates_per_rollout = 2", "selection.entropy_of: old"],
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_contradiction_is_refused_before_anything_is_written(case, tmp_path, capsys):
    more, words = RUNS[case]
    error = refused(capsys, tmp_path / "run", *more)
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_a_contradiction_leaves_a_run_alone(tmp_path, capsys):
    folder = tmp_path / "run"
    fit(folder, "--data.val", "null", steps=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    more = ("--ckpt_path", "last", "--trainer.max_steps", 2, S + "masked_terms", "[policy,kl]")
    assert "selection.masked_terms" in refused(capsys, folder, *more)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("key", "value"), [("model.correction.method", "token_mask"), ("model.old_logp_from", "sampler")]
)
def test_what_a_silent_sampler_does_not_tell_is_missed_at_the_first_update(key, value, tmp_path, capsys):
    folder = tmp_path / "run"
    error = refused(capsys, folder, f"--{key}", value, "--model.sampler", f"{__name__}.SilentSampler")
    assert f"{key}: {value}" in error
    assert "log-probabilities of the sampler" in error
    # only the sampler itself can say that it is silent: what is left is the start, and nothing of a training
    assert (folder / "config-0.yaml").is_file()
    assert not (folder / "checkpoints").exists()
    assert not list(folder.glob("dump*"))
    assert not any(tag.startswith("train/") for tag in curves(folder))


def test_a_silent_sampler_trains_without_a_correction(tmp_path):
    fit(tmp_path / "run", "--data.val", "null", "--model.sampler", f"{__name__}.SilentSampler")
    found = curves(tmp_path / "run")
    assert len(found["train/policy_loss"]) == 2
    assert not any(tag.startswith("mismatch/") for tag in found)


# -- what is normal ----------------------------------------------------------------------------------------------------


def values(folder):
    return {tag: [value for _, value in points] for tag, points in curves(folder).items()}


UPDATES = 2
EMPTY = {
    "chosen inside of the forward": (),
    "chosen before it": ("--trainer.accumulate_grad_batches", 2, "--data.updates_per_rollout", 2),
    "over all answers": (S + "preset", "paper-code", "--trainer.accumulate_grad_batches", 2),
    "groups that only fill up": (R + "dynamic_sampling", "true"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_update_without_a_contributing_group_changes_nothing(case, tmp_path):
    folder = tmp_path / "run"
    quiet = ("--model.optimizer.weight_decay", 0, "--checkpoint.keep", -1, "--data.val", "null")
    verifier = ("--data.verifier", f"{__name__}.AllRight", R + "dynamic_sampling", "false")
    fit(folder, *quiet, *verifier, *EMPTY[case], "--checkpoint.every_n_updates", 1, steps=UPDATES)
    found = values(folder)
    empty = 0.0 if case == "over all answers" else 1.0  # that has tokens to choose from, of advantage 0
    assert found["rollout/empty_updates"] == [empty] * UPDATES
    assert ("fork/kept_share" in found) == (empty == 0)
    for tag in ("train/policy_loss", "train/grad_norm", "train/tokens", "rollout/contributing"):
        assert set(found[tag]) == {0.0}, tag
    assert found["rollout/right"][0] == 1.0
    assert all(math.isfinite(value) for points in found.values() for value in points)
    first, last = weights(folder, 1), weights(folder, UPDATES)
    assert all(torch.equal(weight, last[name]) for name, weight in first.items())
    # every weight had a gradient, of zeros
    state = checkpoint(folder, UPDATES)["optimizer_states"][0]["state"]
    assert len(state) == len({weight.data_ptr() for weight in last.values()})


@pytest.mark.parametrize("more", [(), ("--trainer.accumulate_grad_batches", 2, "--data.updates_per_rollout", 2)])
def test_a_tiny_rho_keeps_one_token_per_update(more, tmp_path):
    folder = tmp_path / "run"
    fit(folder, S + "rho", 1e-6, "--data.val", "null", "--checkpoint.keep", -1, *more, steps=4)
    found = values(folder)
    assert found["train/tokens"] == [1.0] * 4
    assert found["fork/types"] == [1.0] * 4
    assert found["fork/entropy_kept"] == pytest.approx(found["fork/threshold"], rel=1e-5)  # it is its own threshold
    assert found["fork/kept_share_min"] == [0.0] * 4
    assert all(0 < norm < math.inf for norm in found["train/grad_norm"])
    start = weights(folder, 2 if more else 1)
    assert any(not torch.equal(weight, start[name]) for name, weight in weights(folder, 4).items())


def text_of(capsys):
    """What was printed, without the lines and the line breaks of tables."""
    return " ".join(word for word in capsys.readouterr().out.split() if word != "│")


def test_current_entropies_over_an_update_cost_a_pass_and_the_table_says_so(tmp_path, capsys):
    more = ("--trainer.accumulate_grad_batches", 2, "--data.updates_per_rollout", 2, "--data.val", "null")
    fit(tmp_path / "old", *more, steps=4)
    assert "one entropy pass before each later update" not in text_of(capsys)
    fit(tmp_path / "current", *more, S + "entropy_of", "current", steps=4)
    text = text_of(capsys)
    assert "one statistics pass (old log-probs), one entropy pass before each later update, training" in text
    assert "entropy_of current" in text
    old, current = values(tmp_path / "old"), values(tmp_path / "current")
    # at the first update both policies are one; at the second only the current entropies have moved
    assert current["fork/entropy_mean"][0] == old["fork/entropy_mean"][0]
    assert current["fork/threshold"][0] == old["fork/threshold"][0]
    assert current["train/tokens"][:2] == old["train/tokens"][:2]
    assert current["fork/entropy_mean"][1] != old["fork/entropy_mean"][1]
    kept = ForkSelection().kept
    for tokens, share in zip(current["train/tokens"], current["fork/kept_share"], strict=True):
        assert tokens == kept(round(tokens / share))


def test_the_authors_code_by_name_in_micro_batches(tmp_path, capsys):
    more = (S + "preset", "paper-code", "--trainer.accumulate_grad_batches", 2, "--data.val", "null")
    fit(tmp_path / "run", *more, steps=4)
    text = text_of(capsys)
    assert "paper-code: rho 0.2, keep top, scope micro_batch_rank, entropy_of current" in text
    assert "denominator micro_batch" in text
    assert "sampling, training (selection inside)" in text  # of one micro-batch all is known there
    found = values(tmp_path / "run")
    assert all(math.isfinite(value) for points in found.values() for value in points)
    assert all(norm > 0 for norm in found["train/grad_norm"])
    for tokens, share in zip(found["train/tokens"], found["fork/kept_share"], strict=True):
        whole = round(tokens / share)
        of_two_sets = {ForkSelection().kept(n) + ForkSelection().kept(whole - n) for n in range(1, whole)}
        assert tokens in of_two_sets
