"""What all objectives have in common, and how a config chooses one."""

import pytest
import torch
from jsonargparse import ArgumentParser
from loss_cases import FACTS, facts, random_tokens

from forklight.algo import objectives
from forklight.algo.batch import TokenLoss
from forklight.algo.config import AlgorithmConfig
from forklight.algo.objectives import Dapo, DrGrpo, Grpo, Objective
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection

SHIPPED = [getattr(objectives, name) for name in objectives.__all__ if name != "Objective"]


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


@pytest.mark.parametrize("kind", SHIPPED, ids=lambda kind: kind.__name__)
def test_exactly_the_trained_tokens_count(kind):
    tokens, objective = random_tokens(), kind()
    found = objective.token_loss(tokens)
    (gradient,) = torch.autograd.grad(found.loss.sum(), tokens.logp)
    trained = tokens.eligible if objective.trains == "eligible" else tokens.fork_mask
    assert torch.equal(objective.trained(tokens), trained)
    assert not found.loss[~trained].any()
    assert not gradient[~trained].any()
    assert found.loss[trained].any()
    assert {found.clip_low.dtype, found.clip_high.dtype, found.clip_dual.dtype} == {torch.bool}
    assert found.loss.shape == found.clip_low.shape == found.clip_high.shape == found.clip_dual.shape == (40,)


@pytest.mark.parametrize("kind", SHIPPED, ids=lambda kind: kind.__name__)
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


class Reinforce(Objective):
    """An objective of a user's own, which says nothing but its loss."""

    def token_loss(self, tokens):
        nothing = torch.zeros_like(tokens.fork_mask)
        loss = torch.where(self.trained(tokens), -tokens.advantages * tokens.logp, 0.0)
        return TokenLoss(loss, nothing, nothing, nothing)


def test_an_objective_of_ones_own():
    own = Reinforce()
    assert facts(own) == FACTS
    assert own.token_loss(random_tokens()).loss.any()
    for denominator in ("selected", "answer", "micro_batch"):
        own.check_selection(ForkSelection(denominator=denominator))
    with pytest.raises(TypeError, match="abstract"):
        Objective()


@pytest.mark.parametrize("kind", [Grpo, DrGrpo])
def test_a_mean_of_tokens_and_one_of_sequences_are_refused(kind):
    kind().check_selection(ForkSelection(denominator="answer"))
    with pytest.raises(ValueError, match=rf"selection\.denominator: micro_batch .* {kind.__name__} by sequences"):
        kind().check_selection(ForkSelection(denominator="micro_batch"))


@pytest.mark.parametrize("scope", ["update", "rollout", "sequence", "micro_batch"])
def test_a_scope_that_hides_the_batch_split_is_refused(scope):
    class Standardised(Reinforce):
        within_micro_batch = True

    Standardised().check_selection(ForkSelection(scope="micro_batch_rank"))
    message = rf"Standardised compares .* selection\.scope must be micro_batch_rank, not {scope}$"
    with pytest.raises(ValueError, match=message):
        Standardised().check_selection(ForkSelection(scope=scope))


def test_an_objective_of_ones_own_refuses_a_selection():
    class Whole(Reinforce):
        def check_selection(self, selection):
            super().check_selection(selection)
            if selection.keep != "all":
                raise ValueError(f"Whole reads all tokens: selection.keep must be all, not {selection.keep}")

    assert AlgorithmConfig(ForkSelection(keep="all"), Whole()).objective.aggregate == "token"
    with pytest.raises(ValueError, match="must be all, not top"):
        AlgorithmConfig(ForkSelection(), Whole())
