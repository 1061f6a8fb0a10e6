"""The report on an update: against loops over all tokens, on one rank and on two, and what stops a run."""

import math
from dataclasses import replace

import pytest
import torch
from cases import load
from tiny import VOCABULARY, on_ranks, rollout_batch, rows_of

from forklight.algo.batch import Metrics
from forklight.algo.config import AlgorithmConfig
from forklight.algo.kl import KLConfig
from forklight.algo.noise import hash_bits, hash_uniform, string_key
from forklight.algo.objectives import Archer, Dapo
from forklight.algo.plan import eligible_rows, update_and_rank
from forklight.algo.selection.spec import PRESETS, ForkSelection
from forklight.distributed import Ranks
from forklight.models import PolicyConfig, Reference
from forklight.models.heads import all_stats
from forklight.training.report import update_report
from forklight.training.update import Learner

SEED, ROLLOUT, K = 5, 3, 2
PARTS = ("", "_right", "_wrong", "_first_third", "_last_third")


class LeastSurprising:
    """A score of one's own."""

    def scores(self, entropy, logp, advantages, eligible):
        return logp - 0.1 * entropy


def move(policy, seed):
    """The same step on all ranks, long enough to move ratios."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)


def rollout(seed=1, updates=K, **settings):
    """Sequences, and log-probabilities of a sampler that are a little off."""
    x = rollout_batch(seed, problems=8, answers=3, updates=updates, **settings)
    noise = torch.Generator().manual_seed(seed)
    right = torch.rand(len(x.rewards), generator=noise) < 0.4
    return replace(x, right=right), torch.randn(x.answer_mask.shape, generator=noise) * 0.1 - 3.5


def reports(
    model,
    settings,
    x,
    sampler_logp=None,
    *,
    ranks=None,
    micro_batches=2,
    learner=Learner,
    reference=None,
    previous=None,
):
    """The reports on all updates of a rollout, each with the state of the tokens as it then is."""
    policy, ranks = load(model) if isinstance(model, str) else model, ranks or Ranks()
    learner = learner(settings, length_limit=8, seed=SEED, ranks=ranks)
    if sampler_logp is not None:
        x = replace(x, sampler_logp=sampler_logp[:, : x.answer_mask.shape[1]])
    updates = int(x.update.max()) + 1
    state = learner.begin(x, rollout=ROLLOUT, updates=updates, micro_batches=micro_batches)
    found = []
    for update in range(updates):
        learner.prepare_update(state, update, policy, reference)
        metrics = Metrics({}, {})
        for number in state.plan.micro_batches_of(update):
            metrics = metrics.and_also(learner.loss(state, number, policy)[1])
        report = update_report(learner, state, update, metrics, vocabulary=VOCABULARY, previous=previous)
        found.append((report, state.tokens))
        previous = report.bounds or previous
        move(policy, update)
    return found


SPECS = {name: spec for name, spec in PRESETS.items() if spec.schedule is None} | {
    "low probability": ForkSelection(keep="low_probability"),
    "band": ForkSelection(keep="band", rho=0.5),
    "covariance": ForkSelection(keep="covariance"),
    "own score": ForkSelection(keep=LeastSurprising()),
    "by answer": ForkSelection(scope="sequence", eligible="answers", rho=0.4),
    "rollout": ForkSelection(scope="rollout"),
}


@pytest.mark.parametrize("name", SPECS)
def test_shares_are_those_of_a_loop(name, path):
    spec = SPECS[name]
    x, sampler_logp = rollout()
    found = reports(path, AlgorithmConfig(spec), x, sampler_logp)
    for update, (report, after) in enumerate(found):
        rows = (x.update == update) & (x.contributing if spec.eligible == "contributing" else True)
        tokens = [(r, c) for r in rows.nonzero().flatten().tolist() for c in range(int(x.answer_length[r]))]
        kept = {token for token in tokens if after.fork_mask[token]}
        right = {token for token in tokens if x.right[token[0]]}
        first = {(r, c) for r, c in tokens if 3 * c < x.answer_length[r]}
        last = {(r, c) for r, c in tokens if 3 * c >= 2 * x.answer_length[r]}
        for part, members in zip(PARTS, (set(tokens), right, set(tokens) - right, first, last), strict=True):
            assert report.scalars[f"fork/kept_share{part}"] == len(kept & members) / len(members)
        shares = [sum(t[0] == r for t in kept) / int(x.answer_length[r]) for r in {r for r, _ in tokens}]
        assert (report.scalars["fork/kept_share_min"], report.scalars["fork/kept_share_max"]) == (
            pytest.approx(min(shares)),
            pytest.approx(max(shares)),
        )
        ids_of = x.answer_ids(torch.arange(len(x.update)))
        ids = {token: int(ids_of[token]) for token in tokens}
        types = {ids[token] for token in kept}
        assert report.scalars["fork/types"] == len(types)
        assert report.scalars["fork/types_share"] == len(types) / len(set(ids.values()))
        by_chance = hash_uniform(
            hash_bits(SEED, ROLLOUT, string_key("overlap")),
            x.sequence_id[:, None],
            torch.arange(after.fork_mask.shape[1]),
        )
        chance = {token for token in tokens if by_chance[token] >= 1 - len(kept) / len(tokens)}
        assert report.scalars["fork/overlap_random"] == len(kept & chance) / len(kept)
        thresholds = [float(after.threshold[r]) for r in {r for r, _ in tokens}]
        if spec.keep in ("all", "random"):
            assert "fork/threshold" not in report.scalars
        else:
            assert report.scalars["fork/threshold"] == pytest.approx(sum(thresholds) / len(thresholds), rel=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_overlap_with_the_previous_rule(name, path):
    spec = SPECS[name]
    x, sampler_logp = rollout()
    (first, before), (second, after) = reports(path, AlgorithmConfig(spec), x, sampler_logp)
    assert "fork/overlap_previous" not in first.scalars
    if spec.own_score or spec.keep == "covariance":
        assert "fork/overlap_previous" not in second.scalars
        return
    eligible = (
        x.answer_mask & ((x.update == 1) & (x.contributing if spec.eligible == "contributing" else True))[:, None]
    )
    threshold, entropy = first.scalars.get("fork/threshold"), after.entropy
    kept = before.entropy[(x.update == 0)[:, None] & before.fork_mask]
    noise = hash_uniform(hash_bits(SEED, ROLLOUT - 1), x.sequence_id[:, None], torch.arange(entropy.shape[1]))
    rules = {
        "top": lambda: entropy >= threshold,
        "bottom": lambda: entropy <= threshold,
        "band": lambda: (entropy >= kept.min()) & (entropy <= kept.max()),
        "low_probability": lambda: -after.logp >= threshold,
        "random": lambda: noise >= 1 - second.scalars["fork/kept_share"],
        "all": lambda: eligible,
    }
    old, new = rules[spec.keep]() & eligible, after.fork_mask & eligible
    assert second.scalars["fork/overlap_previous"] == float((old & new).sum() / (old | new).sum().double())
    if spec.keep == "all":
        assert second.scalars["fork/overlap_previous"] == 1


def test_an_unchanged_policy_keeps_its_mask_on_the_same_tokens(path):
    x, _ = rollout(updates=1)
    ((first, _),) = reports(path, AlgorithmConfig(), x)
    ((second, _),) = reports(path, AlgorithmConfig(), x, previous=first.bounds)
    assert second.scalars == first.scalars | {"fork/overlap_previous": 1}


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("paper-code", "trl")])
def test_two_ranks_report_what_one_reports(name, path):
    settings = AlgorithmConfig(SPECS[name], kl=KLConfig(coef=0.1))
    x, sampler_logp = rollout(2)
    owner = torch.tensor([rank for _, rank in update_and_rank(8, K, 2)]).repeat_interleave(3)
    shares = [(owner == rank).nonzero().flatten() for rank in (0, 1)]
    reference, policies = Reference(PolicyConfig(path=path, dtype="float64")), [load(path), load(path)]

    def run(ranks):
        rows = shares[ranks.rank]
        part = reports(
            policies[ranks.rank], settings, rows_of(x, rows), sampler_logp[rows], ranks=ranks, reference=reference
        )
        return [report for report, _ in part]

    expected = reports(path, settings, x, sampler_logp, micro_batches=3, reference=reference)
    one, two = on_ranks(2, run)
    assert one == two
    for (report, _), found in zip(expected, one, strict=True):
        assert found.scalars == pytest.approx(report.scalars, rel=1e-9, abs=1e-12)
        assert found.bounds == pytest.approx(report.bounds, rel=1e-9)


@pytest.mark.parametrize("name", ["paper-code", "trl"])
def test_sets_of_micro_batches_are_counted_on_two_ranks(name, path):
    x, _ = rollout(2)
    owner = torch.tensor([rank for _, rank in update_and_rank(8, K, 2)]).repeat_interleave(3)

    policies = [load(path), load(path)]

    def run(ranks):
        share = rows_of(x, (owner == ranks.rank).nonzero().flatten())
        return [report for report, _ in reports(policies[ranks.rank], AlgorithmConfig(SPECS[name]), share, ranks=ranks)]

    one, two = on_ranks(2, run)
    assert one == two
    assert all(0 < report.scalars["fork/kept_share"] < 0.5 for report in one)


def test_ratio_clip_kl_and_mismatch_of_kept_and_dropped_tokens(path):
    x, sampler_logp = rollout(4)
    spec = ForkSelection(eligible="answers")
    # the head that looks at dropped tokens again
    (_, _), (report, after) = reports(load(path, head="full"), AlgorithmConfig(spec), x, sampler_logp)
    trained = x.answer_mask & ((x.update == 1) & (x.advantages != 0))[:, None]
    policy = load(path)
    move(policy, 0)
    micro_batch = x.micro_batch(torch.arange(len(x.rewards)))
    logp = torch.zeros(x.answer_mask.shape, dtype=torch.float64)
    logp = micro_batch.write(logp, policy(micro_batch, all_stats).logp)
    log_ratio, log_weight = logp - after.old_logp, after.old_logp - sampler_logp
    advantages = x.advantages[:, None].expand_as(log_ratio)
    for part, mask in (("kept", after.fork_mask & trained), ("dropped", trained & ~after.fork_mask)):
        ratio, weight = log_ratio[mask].exp(), log_weight[mask].exp()
        clipped = ((ratio < 0.8) & (advantages[mask] < 0)) | ((ratio > 1.28) & (advantages[mask] > 0))
        expected = {
            f"fork/ratio_{part}": ratio.mean(),
            f"fork/clip_{part}": clipped.double().mean(),
            f"fork/kl_{part}": (ratio - 1 - log_ratio[mask]).mean(),
            f"mismatch/ess_{part}": weight.sum() ** 2 / weight.square().sum() / mask.sum(),
            f"mismatch/kl_{part}": (weight - 1 - log_weight[mask]).mean(),
            f"mismatch/ratio_max_{part}": weight.max(),
            f"mismatch/diff_mean_{part}": log_weight[mask].abs().mean(),
            f"mismatch/diff_max_{part}": log_weight[mask].abs().max(),
        }
        for name, value in expected.items():
            assert report.scalars[name] == pytest.approx(float(value), rel=1e-9), name
        if part == "kept":
            assert report.scalars["train/ratio"] == pytest.approx(float(ratio.mean()), rel=1e-9)
            assert report.scalars["train/ratio_max"] == pytest.approx(float(ratio.max()), rel=1e-9)
            assert report.scalars["train/tokens"] == len(ratio)
    entropy = after.entropy[x.answer_mask & (x.update == 1)[:, None]]
    assert report.scalars["fork/entropy_mean"] == pytest.approx(float(entropy.mean()), rel=1e-12)


@pytest.mark.parametrize("entropy_of", ["old", "current"])
def test_mismatch_of_a_sampler_whose_log_probabilities_are_the_old_ones(entropy_of, path):
    x, sampler_logp = rollout(4)
    spec = ForkSelection(entropy_of=entropy_of)
    expected, found = (
        [report.scalars for report, _ in reports(path, AlgorithmConfig(spec, old_logp_from=source), x, sampler_logp)]
        for source in ("trainer", "sampler")
    )
    for update, (one, two) in enumerate(zip(expected, found, strict=True)):
        reported = {tag: value for tag, value in one.items() if tag.startswith("mismatch/")}
        assert len(reported) == 10
        if update and entropy_of == "current":  # no pass has looked at these tokens before the first update
            assert not any(tag.startswith("mismatch/") for tag in two)
        else:
            assert {tag: value for tag, value in two.items() if tag.startswith("mismatch/")} == pytest.approx(reported)
    assert expected[0]["train/ratio"] == 1
    assert abs(found[0]["train/ratio"] - 1) > 0.01


def test_an_objective_on_all_tokens_counts_all(path):
    x, _ = rollout()
    settings = AlgorithmConfig(ForkSelection(denominator="answer"), Archer(other_kl=0.0))
    for update, (report, _) in enumerate(reports(path, settings, x)):
        eligible = (x.answer_length * x.contributing * (x.update == update) * (x.advantages != 0)).sum()
        assert report.scalars["train/tokens"] == eligible
        assert 0 < report.scalars["fork/kept_share"] < 0.5


def test_terms_are_divided_by_their_own_tokens(path):
    x, _ = rollout()
    reference = Reference(PolicyConfig(path=path, dtype="float64"))
    for terms in (("policy",), ("policy", "kl", "entropy")):
        settings = AlgorithmConfig(ForkSelection(masked_terms=terms), kl=KLConfig(coef=0.1), entropy_coef=0.01)
        (first, after), _ = reports(path, settings, x, reference=reference)
        mine = x.answer_mask & (x.update == 0)[:, None]
        counted = after.fork_mask & mine if "entropy" in terms else mine
        assert first.scalars["train/entropy"] == pytest.approx(float(after.entropy[counted].mean()), rel=1e-9)
        assert first.scalars["train/kl"] == pytest.approx(0, abs=1e-12)  # the reference is the policy


def test_an_update_without_tokens_has_no_shares(path):
    x, sampler_logp = rollout(shares=(1.0, 0.0, 0.0))
    for report, _ in reports(path, AlgorithmConfig(), x, sampler_logp):
        assert report.bounds is None
        assert report.scalars == {
            "train/policy_loss": 0,
            "train/tokens": 0,
            "rollout/empty_updates": 1,
        }


@pytest.mark.parametrize(("updates", "micro_batches"), [(1, 1), (1, 3), (2, 1)])
@pytest.mark.parametrize("name", SPECS)
def test_every_value_is_finite_and_there_is_no_mismatch_without_a_sampler_that_tells(
    name, updates, micro_batches, path
):
    x, _ = rollout(updates=updates)
    for report, _ in reports(path, AlgorithmConfig(SPECS[name]), x, micro_batches=micro_batches):
        assert {"train/ratio", "fork/kept_share", "fork/overlap_random"} <= report.scalars.keys()
        assert all(math.isfinite(value) for value in report.scalars.values())
        assert not any(tag.startswith("mismatch/") for tag in report.scalars)


# -- masks that took no effect -----------------------------------------------------------------------------------------


def broken(mask_of, late=False):
    """A learner whose selection is replaced, before the loss reads it or after."""

    class Broken(Learner):
        def prepare_update(self, state, update, policy, reference):
            super().prepare_update(state, update, policy, reference)
            if not late:
                state.tokens = replace(state.tokens, fork_mask=mask_of(state, self))

        def loss(self, state, number, policy):
            result = super().loss(state, number, policy)
            if late:
                state.tokens = replace(state.tokens, fork_mask=mask_of(state, self))
            return result

    return Broken


def everything(state, learner):
    return state.batch.answer_mask & eligible_rows(state.batch, learner.config.selection)[:, None]


def nothing(state, learner):
    return torch.zeros_like(state.tokens.fork_mask)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("rollout", "paper", "trl", "all-tokens")])
def test_a_mask_of_all_tokens_stops_the_run(name, path):
    spec = SPECS[name] if SPECS[name].entropy_of == "old" else replace(SPECS[name], entropy_of="old")
    with pytest.raises(RuntimeError, match=r"kept (\d+) of \1 tokens, it should have kept \d+; selection.keep = .*rho"):
        reports(path, AlgorithmConfig(spec), rollout()[0], learner=broken(everything))


@pytest.mark.parametrize("spec", [ForkSelection(), ForkSelection(rule="threshold"), ForkSelection(keep="all")])
def test_an_empty_mask_stops_the_run(spec, path):
    with pytest.raises(RuntimeError, match=rf"kept none of \d+ tokens; selection.keep = {spec.keep}, rho = 0.2"):
        reports(path, AlgorithmConfig(spec, Dapo()), rollout()[0], learner=broken(nothing))


def test_a_mask_that_no_loss_has_read_stops_the_run(path):
    def other(state, learner):
        kept = state.tokens.fork_mask
        return torch.roll(kept, 1, 0) & everything(state, learner) | kept

    with pytest.raises(
        RuntimeError, match=r"kept \d+ tokens of trained answers, the loss read \d+: .*rule = threshold"
    ):
        reports(path, AlgorithmConfig(ForkSelection(rule="threshold")), rollout()[0], learner=broken(other, late=True))


def test_an_objective_that_ignores_the_mask_stops_the_run(path):
    class Deaf(Dapo):
        def token_loss(self, tokens):
            return super().token_loss(replace(tokens, fork_mask=torch.ones_like(tokens.fork_mask)))

    with pytest.raises(
        RuntimeError, match=r"the objective gave \d+ tokens outside of the mask a loss or a gradient; selection.keep"
    ):
        reports(path, AlgorithmConfig(objective=Deaf()), rollout()[0])


def test_an_update_of_a_ranked_rollout_may_keep_nothing(path):
    shares = []
    for seed in range(6):
        found = reports(path, AlgorithmConfig(ForkSelection(rho=0.05, scope="rollout")), rollout(seed, updates=4)[0])
        of_updates = [report.scalars.get("fork/kept_share", 0.0) for report, _ in found]
        assert max(of_updates) > 0
        assert all(math.isfinite(value) for report, _ in found for value in report.scalars.values())
        shares += of_updates
    assert min(shares) == 0
