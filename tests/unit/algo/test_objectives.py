import math
from dataclasses import replace

import pytest
import torch
from jsonargparse import ArgumentParser

from forklight.algo.covariance import CovarianceTokens
from forklight.algo.losses import ClipRange
from forklight.algo.objectives import (
    Archer,
    Cispo,
    ClipCov,
    Dapo,
    DrGrpo,
    EntropyShaped,
    Grpo,
    Gspo,
    GspoToken,
    KlCov,
    Objective,
)
from forklight.algo.types import TokenBatch, TokenLoss

NAMED = {
    Dapo: "token",
    Grpo: "sequence",
    DrGrpo: "constant",
    Gspo: "sequence",
    GspoToken: "sequence",
    Cispo: "token",
    ClipCov: "token",
    KlCov: "token",
    EntropyShaped: "token",
    Archer: "token",
}


def batch(n=40, rows=5):
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(n, generator=generator, dtype=torch.float64)

    eligible = torch.rand(n, generator=generator) < 0.7
    old_logp = -noise().abs()
    return TokenBatch(
        logp=(old_logp + noise() / 4).requires_grad_(),
        old_logp=old_logp,
        advantages=noise(),
        fork_mask=eligible & (torch.rand(n, generator=generator) < 0.4),
        eligible=eligible,
        row=torch.arange(n) * rows // n,
        rows=rows,
        entropy=noise().abs(),
        ref_logp=old_logp + noise() / 4,
        cov_mask=torch.rand(n, generator=generator) < 0.2,
    )


def without_default(objective: Objective) -> Objective:
    return objective


def with_default(objective: Objective = Dapo()) -> Objective:  # noqa: B008  what a module may have
    return objective


def parse(*arguments, owner=without_default):
    """The objective that a command line makes, as an argument of `owner`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(owner)
    return parser.instantiate_classes(parser.parse_args(list(arguments))).objective


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_exactly_the_trained_tokens_count(kind):
    tokens, objective = batch(), kind()
    found = objective.token_loss(tokens)
    (gradient,) = torch.autograd.grad(found.loss.sum(), tokens.logp)
    trained = tokens.eligible if kind is Archer else tokens.fork_mask
    assert torch.equal(objective.trained(tokens), trained)
    assert not found.loss[~trained].any()
    assert not gradient[~trained].any()
    assert found.loss[trained].any()
    assert objective.aggregate == NAMED[kind]
    assert {found.clip_low.dtype, found.clip_high.dtype, found.clip_dual.dtype} == {torch.bool}
    assert found.loss.shape == found.clip_low.shape == found.clip_high.shape == found.clip_dual.shape == (40,)


def test_what_an_objective_needs():
    needs = {kind: (kind().needs_reference, kind().covariance) for kind in NAMED}
    special = {
        Archer: (True, None),
        ClipCov: (False, CovarianceTokens(0.0002, 1.0, 5.0)),
        KlCov: (False, CovarianceTokens(0.002)),
    }
    assert needs == dict.fromkeys(NAMED, (False, None)) | special
    assert not Archer(other_kl=0.0).needs_reference
    assert Archer(fork_kl=0.1, other_kl=0.0).needs_reference


@pytest.mark.parametrize(
    ("objective", "name"),
    [(EntropyShaped(), "entropy"), (ClipCov(), "cov_mask"), (KlCov(), "cov_mask"), (Archer(), "ref_logp")],
)
def test_what_is_missing_is_named(objective, name):
    with pytest.raises(ValueError, match=f"{type(objective).__name__} needs {name}"):
        objective.token_loss(replace(batch(), **{name: None}))


def test_archer_without_a_divergence_needs_no_reference():
    tokens = replace(batch(), ref_logp=None)
    assert Archer(other_kl=0.0).token_loss(tokens).loss.isfinite().all()


def test_shaping_raises_only_the_advantages():
    tokens = batch()
    flat = replace(tokens, entropy=torch.zeros_like(tokens.entropy))
    assert torch.equal(EntropyShaped().token_loss(flat).loss, Dapo().token_loss(tokens).loss)
    assert not torch.equal(EntropyShaped().token_loss(tokens).loss, Dapo().token_loss(tokens).loss)


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_a_config_chooses_by_short_name_or_path(kind):
    expected = vars(kind())
    for name in (kind.__name__, f"forklight.algo.objectives.{kind.__name__}"):
        found = parse("--objective", name)
        assert type(found) is kind
        assert vars(found) == expected


def test_one_key_of_a_range_leaves_the_others_alone():
    assert parse("--objective", "Dapo", "--objective.clip.dual", "10").clip == ClipRange(0.2, 0.28, 10.0)
    assert parse("--objective", "Grpo", "--objective.clip.high", "0.3").clip == ClipRange(0.2, 0.3)
    assert parse("--objective", "Gspo", "--objective.sequence_clip.high", "5e-4").sequence_clip == ClipRange(3e-4, 5e-4)
    assert parse("--objective", "Cispo", "--objective.weight_clip.high", "7").weight_clip == ClipRange(1.0, 7.0)
    archer = parse("--objective", "Archer", "--objective.fork_clip.high", "0.6", "--objective.fork_kl", "0.01")
    assert (archer.fork_clip, archer.other_clip) == (ClipRange(0.5, 0.6), ClipRange(0.2, 0.2))


def test_a_nested_key_in_a_file_leaves_the_others_alone(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("objective:\n  class_path: Gspo\n  init_args:\n    sequence_clip:\n      high: 0.0005\n")
    assert parse("--config", str(file)).sequence_clip == ClipRange(3e-4, 5e-4)


@pytest.mark.parametrize("owner", [without_default, with_default])
def test_another_objective_does_not_inherit_the_range_of_another_ratio(tmp_path, owner):
    file = tmp_path / "config.yaml"
    file.write_text("objective:\n  class_path: Dapo\n  init_args:\n    clip:\n      high: 0.3\n")
    gspo = parse("--config", str(file), "--objective", "Gspo", owner=owner)
    assert gspo.sequence_clip == ClipRange(3e-4, 4e-4)
    cispo = parse("--config", str(file), "--objective", "Cispo", owner=owner)
    assert cispo.weight_clip == ClipRange(1.0, 4.0)
    assert parse("--objective", "Archer", owner=owner).other_clip == ClipRange(0.2, 0.2)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Cispo(ClipRange(dual=10.0)), "weight_clip.dual"),
        (lambda: ClipCov(share=0.0), "share"),
        (lambda: ClipCov(share=1.1), "share"),
        (lambda: ClipCov(low=5.0, high=5.0), "low"),
        (lambda: ClipCov(low=-math.inf), "low"),
        (lambda: ClipCov(high=math.nan), "low"),
        (lambda: KlCov(penalised_share=-0.1), "penalised_share"),
        (lambda: KlCov(coef=-1.0), "coef"),
        (lambda: KlCov(coef=math.inf), "coef"),
        (lambda: EntropyShaped(alpha=-0.1), "alpha"),
        (lambda: EntropyShaped(kappa=1.0), "kappa"),
        (lambda: EntropyShaped(kappa=math.inf), "kappa"),
        (lambda: Archer(fork_kl=-1.0), "fork_kl"),
        (lambda: Archer(other_kl=math.nan), "other_kl"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=rf"model\.objective\.{name}"):
        make()


def test_an_objective_of_ones_own():
    class Reinforce(Objective):
        def token_loss(self, tokens):
            nothing = torch.zeros_like(tokens.fork_mask)
            loss = torch.where(self.trained(tokens), -tokens.advantages * tokens.logp, 0.0)
            return TokenLoss(loss, nothing, nothing, nothing)

    own = Reinforce()
    assert (own.aggregate, own.trains, own.needs_reference, own.covariance) == ("token", "forks", False, None)
    assert own.token_loss(batch()).loss.any()
    with pytest.raises(TypeError, match="abstract"):
        Objective()
