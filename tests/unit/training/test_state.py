"""What is known of a rollout's tokens: nothing is written into a state or a batch, and both survive a checkpoint."""

from dataclasses import fields, replace

import pytest
import torch
from cases import HEADS, Case, begin, load, moved_reference, run_update, take_step, with_sampler_logp
from oracle import stats_of
from tiny import rollout_batch, rows_of
from torch import Tensor

from forklight.algo.batch import RolloutBatch
from forklight.algo.denominators import Denominators
from forklight.training.state import TokenState

TOKEN_VALUES = ("entropy", "grad_square", "logp", "old_logp", "ref_logp")
TOKEN_MASKS = ("fork_mask", "cov_mask")


def bits(tensor):
    """Type, shape and bytes: equal also where both are NaN."""
    return tensor.dtype, tensor.shape, tensor.detach().numpy().tobytes()


class Snapshot:
    """The tensors of a dataclass as they are, to find out later whether anything has written into them."""

    def __init__(self, owner):
        values = {f.name: getattr(owner, f.name) for f in fields(owner)}
        self.owner = owner
        self.tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        self.others = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        self.versions = {name: tensor._version for name, tensor in self.tensors.items()}
        self.copies = {name: bits(tensor) for name, tensor in self.tensors.items()}

    def assert_unchanged(self):
        for name, tensor in self.tensors.items():
            assert getattr(self.owner, name) is tensor, name
            assert tensor._version == self.versions[name], name
            assert bits(tensor) == self.copies[name], name
        for name, value in self.others.items():
            assert getattr(self.owner, name) is value, name


def assert_same(one, other):
    """All fields are equal, tensors bit for bit."""
    for f in fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, Tensor):
            assert bits(a) == bits(b), f.name
        else:
            assert a == b, f.name


# -- nothing is written in place ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("entropy_of", ["old", "current"])
def test_no_step_writes_into_the_batch(entropy_of, head, path):
    case = Case(updates=3, entropy_of=entropy_of, kl_coef=0.1, old_logp_from="sampler")
    policy, reference = load(path, head=head), moved_reference(path)
    x = with_sampler_logp(rollout_batch(3, updates=3, shares=(0.2, 0.4, 0.4)), case, policy)
    x = replace(x, uids=tuple(f"uid {index}" for index in x.problem_index.tolist()))
    for each in (case, replace(case, old_logp_from="trainer")):
        before, learner = Snapshot(x), each.learner()
        assert len(before.tensors) == len(fields(RolloutBatch)) - 1  # all but the uids
        state = begin(learner, x, each, 2)
        for update in range(3):
            _, gradients, sums = run_update(learner, state, update, policy, reference)
            assert sums["kept_tokens"] > 0
            take_step(policy, gradients)
        assert state.batch is x
        before.assert_unchanged()


@pytest.mark.parametrize(
    ("case", "micro_batches", "head"),
    [
        *((Case(updates=3, kl_coef=0.1), 2, head) for head in HEADS),
        (Case(updates=3, kl_coef=0.1, entropy_of="current"), 2, "selected"),
        (Case(updates=3, entropy_of="current", scope="micro_batch_rank", eligible="answers"), 2, "gathered"),
        (Case(updates=3, objective="ClipCov", keep="covariance"), 2, "selected"),
        (Case(updates=3, scope="rollout", rule="threshold"), 2, "full"),
        *((Case(kl_coef=0.1), 1, head) for head in HEADS),
        (Case(objective="KlCov", eligible="answers"), 1, "selected"),
    ],
    ids=str,
)
def test_no_step_writes_into_an_earlier_state(case, micro_batches, head, path):
    x = rollout_batch(3, updates=case.updates, shares=(0.2, 0.4, 0.4))
    policy, reference = load(path, head=head), moved_reference(path)
    learner = case.learner()
    state = begin(learner, x, case, micro_batches)
    taken = [Snapshot(state.tokens)]
    for update in range(case.updates):
        learner.prepare_update(state, update, policy, reference)
        taken.append(Snapshot(state.tokens))
        for number in state.plan.micro_batches_of(update):
            learner.loss(state, number, policy)[0].backward()
            taken.append(Snapshot(state.tokens))
    assert len({id(snapshot.owner) for snapshot in taken}) > 1
    for snapshot in taken:
        snapshot.assert_unchanged()


def test_a_write_in_place_is_seen():
    """The negative control of the tests above."""
    for write in (lambda mask: mask.logical_not_(), lambda mask: mask.copy_(mask.clone())):
        x = rollout_batch(0)
        before = Snapshot(x)
        write(x.contributing)
        with pytest.raises(AssertionError, match="contributing"):
            before.assert_unchanged()


# -- what passes find --------------------------------------------------------------------------------------------------


def spread(x, found):
    """Values by row, `[S,T]`, NaN elsewhere."""
    values = torch.full(x.answer_mask.shape, torch.nan, dtype=torch.float64)
    for row, of_row in found.items():
        values[row, : len(of_row)] = of_row.detach()
    return values


def assert_found(tokens, x, **expected):
    """The named fields are those of the oracle; NaN marks what nobody has looked at."""
    for name, found in expected.items():
        torch.testing.assert_close(
            getattr(tokens, name).double(), spread(x, found), rtol=1e-10, atol=1e-12, equal_nan=True
        )


def test_the_passes_before_a_rollout_return_a_new_state_with_what_they_find(path):
    case, policy, reference = Case(updates=3, kl_coef=0.1, keep="covariance"), load(path), moved_reference(path)
    x, learner = rollout_batch(3, updates=3, shares=(0.2, 0.4, 0.4)), case.learner()
    state = begin(learner, x, case, 2)
    unknown = Snapshot(state.tokens)
    every = range(len(x.update))
    now, ref = (stats_of(model, x, every, 1.0, 1.0) for model in (policy.model, reference.policy.model))

    with_ref = Snapshot(learner.passes.reference_pass(state, reference))
    assert state.tokens is unknown.owner
    assert_found(with_ref.owner, x, ref_logp=ref.logp, entropy={}, logp={}, old_logp={})

    state.tokens = with_ref.owner
    with_stats = Snapshot(learner.passes.policy_pass(state, 0, range(len(state.plan.train)), policy))
    assert state.tokens is with_ref.owner
    expected = {"ref_logp": ref.logp, "entropy": now.entropy, "logp": now.logp, "old_logp": now.logp}
    assert_found(with_stats.owner, x, **expected)
    assert not with_stats.owner.fork_mask.any()

    state.tokens = with_stats.owner
    selected = learner.selector.select_updates(state, range(3))
    assert state.tokens is with_stats.owner
    assert_found(selected, x, **expected)
    kept = torch.stack([selected.fork_mask[x.update == update].sum() for update in range(3)])
    assert torch.equal(kept.double(), selected.denominator)
    assert kept.all()
    assert not (selected.fork_mask & ~x.answer_mask).any()
    for snapshot in (unknown, with_ref, with_stats):
        snapshot.assert_unchanged()


def test_a_pass_before_a_later_update_finds_the_entropies_of_its_policy(path):
    case, policy, old = Case(updates=3, entropy_of="current"), load(path), load(path)
    x, learner = rollout_batch(3, updates=3, shares=(0.0, 0.0, 1.0)), case.learner()
    state = begin(learner, x, case, 2)
    take_step(policy, run_update(learner, state, 0, policy)[1])
    before = Snapshot(state.tokens)
    learner.prepare_update(state, 1, policy, None)
    assert state.tokens is not before.owner
    before.assert_unchanged()
    first, then = (stats_of(model, x, range(len(x.update)), 1.0, 1.0) for model in (old.model, policy.model))
    own = x.update == 1
    entropy = {row: (then if own[row] else first).entropy[row] for row in first.entropy}
    assert_found(state.tokens, x, entropy=entropy, old_logp=first.logp)
    assert torch.equal(state.tokens.fork_mask[~own], before.owner.fork_mask[~own])
    assert not before.owner.fork_mask[own].any()
    assert state.tokens.fork_mask[own].sum() == state.tokens.denominator[1] > 0


def test_a_training_forward_that_selects_returns_what_it_and_the_forward_only_pass_find(path):
    case, policy = Case(eligible="answers"), load(path)
    x, learner = rollout_batch(0), case.learner()
    state = begin(learner, x, case, 1)
    assert len(state.plan.forward_only[0]) > 0
    before = Snapshot(state.tokens)
    observed = Snapshot(learner.passes.forward_only_pass(state, 0, policy))
    assert state.tokens is before.owner
    now = stats_of(policy.model, x, range(len(x.update)), 1.0, 1.0)
    idle = {row: now.entropy[row] for row in state.plan.forward_only[0].tolist()}
    assert_found(observed.owner, x, entropy=idle, old_logp={}, logp={})
    learner.prepare_update(state, 0, policy, None)
    assert state.tokens is before.owner  # no pass and no selection before the forward
    learner.loss(state, 0, policy)[0].backward()
    assert_found(state.tokens, x, entropy=now.entropy, old_logp={}, logp={})
    assert state.tokens.fork_mask.sum() == state.tokens.denominator
    assert state.tokens.fork_mask.any()
    for snapshot in (before, observed):
        snapshot.assert_unchanged()


# -- the state before any pass, and checkpoints ------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    def through_file(state):
        torch.save(state, tmp_path / "state.pt")
        return torch.load(tmp_path / "state.pt", weights_only=True)

    return through_file


def unknown(x):
    denominators = torch.tensor([3.0, torch.nan], dtype=torch.float64), torch.tensor([5.0, 7.0], dtype=torch.float64)
    return TokenState.unknown(x, Denominators(*denominators)), denominators


def assert_unknown(tokens, x, denominators):
    """All is NaN or False and takes one element, the numbers that lengths give excepted."""
    shape = (len(x.update), x.width)
    for name in TOKEN_VALUES:
        assert getattr(tokens, name).shape == shape
        assert getattr(tokens, name).isnan().all()
    for name in TOKEN_MASKS:
        assert getattr(tokens, name).shape == shape
        assert getattr(tokens, name).dtype == torch.bool
        assert not getattr(tokens, name).any()
    assert tokens.threshold.shape == shape[:1]
    assert tokens.threshold.isnan().all()
    for same_kind in (TOKEN_VALUES, TOKEN_MASKS, ("threshold",)):
        storages = [getattr(tokens, name).untyped_storage() for name in same_kind]
        assert [storage.nbytes() for storage in storages] == [getattr(tokens, name).itemsize for name in same_kind]
        assert len({storage.data_ptr() for storage in storages}) == 1
    for found, expected in zip((tokens.denominator, tokens.unmasked_denominator), denominators, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_an_unknown_state_takes_no_memory_per_token_also_in_a_checkpoint(saved):
    x = rollout_batch(0, updates=2)
    tokens, denominators = unknown(x)
    assert_unknown(tokens, x, denominators)
    assert_unknown(TokenState(**tokens.state_dict()), x, denominators)
    assert_unknown(TokenState(**saved(tokens.state_dict())), x, denominators)


def test_an_unknown_state_of_a_rank_without_sequences():
    tokens, _ = unknown(rows_of(rollout_batch(0), torch.arange(0)))
    assert tokens.entropy.shape == tokens.fork_mask.shape == (0, 0)
    assert tokens.threshold.shape == (0,)


def test_a_state_survives_a_checkpoint_bit_for_bit(path, saved):
    case, policy = Case(updates=3, kl_coef=0.1, objective="ClipCov", keep="covariance"), load(path)
    x, learner = rollout_batch(3, updates=3, shares=(0.2, 0.4, 0.4)), case.learner()
    state = begin(learner, x, case, 2)
    run_update(learner, state, 0, policy, moved_reference(path))
    assert state.tokens.fork_mask.any()
    assert list(state.tokens.state_dict()) == [f.name for f in fields(TokenState)]
    assert_same(state.tokens, TokenState(**state.tokens.state_dict()))
    assert_same(state.tokens, TokenState(**saved(state.tokens.state_dict())))
    assert_same(state.tokens, state.tokens.to(torch.device("cpu")))


@pytest.mark.parametrize("sampler", [False, True])
@pytest.mark.parametrize("uids", [False, True])
def test_a_batch_survives_a_checkpoint_bit_for_bit(uids, sampler, path, saved):
    x = rollout_batch(3)
    if sampler:
        x = with_sampler_logp(x, Case(old_logp_from="sampler"), load(path))
    if uids:
        x = replace(x, uids=tuple(f"uid {index}" for index in x.problem_index.tolist()))
    missing = set() if sampler else {"sampler_logp"}
    assert set(x.state_dict()) == {f.name for f in fields(RolloutBatch)} - missing
    assert_same(x, RolloutBatch(**x.state_dict()))
    assert_same(x, RolloutBatch(**saved(x.state_dict())))
    assert_same(x, x.to(torch.device("cpu")))


def test_a_problem_is_named_by_its_uid_or_else_by_its_number():
    x = rollout_batch(0, problems=3, answers=2)
    assert [x.problem(row) for row in (0, 1, 5)] == [f"number {number} of the rollout" for number in (0, 0, 2)]
    named = replace(x, uids=("a", "a", "b", "b", "c", "c"))
    assert [named.problem(row) for row in (0, 1, 5)] == ["a", "a", "c"]
