"""The three heads give the same numbers, whatever a loss asks for."""

import copy
import itertools
from dataclasses import replace
from typing import get_args

import pytest
import torch
from tiny import VOCABULARY, flat, load, rollout_batch, write_model

from forklight.algo import objectives
from forklight.algo.config import AlgorithmConfig
from forklight.algo.correction import CorrectionConfig
from forklight.algo.kl import KLConfig
from forklight.algo.logprobs import tiles
from forklight.algo.objectives.base import Objective
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection
from forklight.models import PolicyConfig, Reference
from forklight.models.heads import HEADS, HeadName, all_stats
from forklight.training.update import Learner

OTHERS = ("selected", "gathered")


def apart(found, expected):
    """Largest difference over the largest expected number."""
    scale = max(tensor.abs().max().item() for tensor in expected)
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)) / scale


def test_there_are_three_heads():
    assert set(HEADS) == {*OTHERS, "full"} == set(get_args(HeadName))


# -- a loss of few lines -----------------------------------------------------------------------------------------------

N, COLUMNS = 12, 40


class Toy:
    """Weighted squares of the log-probabilities of some tokens, of all, or of those with the highest entropies."""

    def __init__(self, rows, wants_all, separable):
        self.wants_all = wants_all
        self.separable = separable
        self.chosen = {"some": torch.arange(1, N, 3), "all": torch.arange(N), "none": torch.arange(0)}.get(rows)
        self.observed, self.tiles = 0, []

    def __call__(self, head):
        """The loss, and the number of tokens whose statistics it has."""
        known = None
        if head.covers_all or self.chosen is None or (self.wants_all and len(self.chosen) < len(head)):
            known = head.all_stats()
            self.observe(known)
        if known is None and self.separable and head.fuses:
            loss, stats = head.fused_loss(self.chosen, self.token_loss)
        else:
            stats = head.stats(self.chosen, known)
            loss = self.loss_of(stats, head.entropy_grad)
        if known is None and self.wants_all:
            self.observe(stats)
        return loss, stats.logp.isfinite().sum()

    def observe(self, stats):
        assert stats.logp.isfinite().all()
        self.observed += 1
        if self.chosen is None:
            self.chosen = stats.entropy.detach().topk(N // 3).indices

    def token_loss(self, stats, part):
        self.tiles.append(len(stats.logp))
        return torch.linspace(-1, 2, N)[self.chosen[part]] * stats.logp.square() + stats.entropy

    def loss_of(self, stats, entropy_grad):
        rows = self.chosen
        entropy = stats.entropy[rows] if entropy_grad else stats.entropy[rows].detach()
        values = torch.linspace(-1, 2, N)[rows] * stats.logp[rows].square() + entropy
        return values.sum() if self.separable else values.sum().square()


def toy_head(name, entropy_grad=False, entropy_temperature=0.7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(COLUMNS, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(COLUMNS, (N,), generator=generator)
    return HEADS[name](hidden, weight, targets, 0.7, entropy_temperature, entropy_grad)


TOYS = [
    (rows, wants_all, separable, entropy_grad, entropy_temperature)
    for rows, wants_all, separable, entropy_grad, entropy_temperature in itertools.product(
        ("some", "all", "none", "chosen by entropy"), (False, True), (False, True), (False, True), (0.7, 1.3)
    )
    if wants_all or rows != "chosen by entropy"
]


@pytest.mark.parametrize(("rows", "wants_all", "separable", "entropy_grad", "entropy_temperature"), TOYS)
def test_heads_agree_on_any_loss(monkeypatch, rows, wants_all, separable, entropy_grad, entropy_temperature):
    monkeypatch.setitem(tiles.ELEMENTS_PER_BLOCK, "cpu", 2 * COLUMNS)
    results = {}
    for name in HEADS:
        loss_fn, head = Toy(rows, wants_all, separable), toy_head(name, entropy_grad, entropy_temperature)
        loss, ranked_rows = loss_fn(head)
        gradients = torch.autograd.grad(loss, (head.hidden, head.weight))
        results[name] = loss.item(), gradients, ranked_rows.item(), loss_fn
    loss, gradients, ranked_rows, full = results.pop("full")
    assert (ranked_rows, full.observed, full.tiles) == (N, 1, [])
    for same, same_gradients, ranked_rows, loss_fn in results.values():
        assert torch.equal(loss_fn.chosen, full.chosen)
        assert same == pytest.approx(loss, rel=1e-12, abs=1e-14)
        assert rows == "none" or apart(same_gradients, gradients) < 1e-12
        assert rows != "none" or not any(gradient.any() for gradient in same_gradients)
        assert ranked_rows == (N if wants_all else len(full.chosen))
        assert loss_fn.observed == int(wants_all)
    fused = separable and not entropy_grad and entropy_temperature == 0.7
    fused &= rows == "all" or (rows != "chosen by entropy" and not wants_all)
    assert (results["selected"][3].tiles != []) == fused
    assert max(results["selected"][3].tiles, default=0) <= 2
    assert results["gathered"][3].tiles == []


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("entropy_temperature", [0.7, 1.3])
def test_every_way_knows_the_square_of_the_gradient(name, entropy_grad, entropy_temperature):
    head, rows = toy_head(name, entropy_grad, entropy_temperature), torch.arange(1, N, 3)
    logits = (head.hidden @ head.weight.T).detach().requires_grad_()
    logp = (logits / 0.7).log_softmax(-1)[torch.arange(N), head.targets]
    (gradient,) = torch.autograd.grad(logp.sum(), logits)
    expected = 0.7**2 * gradient.square().sum(-1)
    known = head.all_stats()
    torch.testing.assert_close(known.grad_square, expected, rtol=1e-12, atol=0)
    found = [head.stats(rows), *([head.fused_loss(rows, lambda s, _: s.logp)[1]] if head.fuses else [])]
    for stats in found:
        torch.testing.assert_close(stats.grad_square[rows], expected[rows], rtol=1e-12, atol=0)
        assert head.covers_all or int(stats.grad_square.isfinite().sum()) == len(rows)
    assert torch.equal(head.stats(rows, known).grad_square, known.grad_square)
    assert not any(stats.grad_square.requires_grad for stats in (known, *found))


@pytest.mark.parametrize("rows", ["some", "all"])
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("entropy_temperature", [0.7, 1.3])
@pytest.mark.parametrize("name", HEADS)
def test_a_loss_that_wants_all_statistics_is_shown_them_once(name, rows, separable, entropy_temperature):
    loss_fn = Toy(rows, wants_all=True, separable=separable)
    loss_fn(toy_head(name, entropy_temperature=entropy_temperature))
    assert loss_fn.observed == 1


@pytest.mark.parametrize("rows", ["some", "all", "chosen by entropy"])
@pytest.mark.parametrize("separable", [False, True])
def test_heads_agree_under_autocast(rows, separable):
    """A pass without gradients in the same context leaves no cast of the weight behind."""
    results = []
    for name in HEADS:
        head = toy_head(name, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = Toy(rows, rows == "chosen by entropy", separable)(head)
        results.append((loss.item(), torch.autograd.grad(loss, (head.hidden, head.weight))))
    loss, gradients = results.pop()
    assert all(gradient.any() for gradient in gradients)
    for same, same_gradients in results:
        assert same == pytest.approx(loss, rel=2e-2)
        assert apart(same_gradients, gradients) < 2e-2
        assert {gradient.dtype for gradient in same_gradients} == {torch.float32}


@pytest.mark.parametrize("name", OTHERS)
def test_a_head_counts_its_products(name):
    """Rows times products: one forward and two backward; with a pass before it, `selected` does not repeat forward."""
    rows = torch.arange(1, N, 3)
    alone, after_all = toy_head(name), toy_head(name)
    alone.stats(rows)
    after_all.stats(rows, after_all.all_stats())
    assert alone.products == (4 if name == "selected" else 3) * len(rows)
    assert after_all.products == N + 3 * len(rows)


def test_only_the_selected_head_fuses_a_loss():
    assert toy_head("selected").fuses
    assert not toy_head("selected", entropy_temperature=1.3).fuses
    for name in ("gathered", "full"):
        assert not toy_head(name).fuses
        with pytest.raises(NotImplementedError, match="cannot fuse"):
            toy_head(name).fused_loss(torch.arange(N), None)


# -- every objective ---------------------------------------------------------------------------------------------------

NARROW, WIDE = ClipRange(0.05, 0.08), ClipRange(0.9, 0.9)
OBJECTIVES = {
    "Dapo": lambda: objectives.Dapo(replace(NARROW, dual=1.1)),
    "Grpo": lambda: objectives.Grpo(NARROW),
    "DrGrpo": lambda: objectives.DrGrpo(NARROW),
    "Gspo": lambda: objectives.Gspo(WIDE),
    "GspoToken": lambda: objectives.GspoToken(WIDE),
    "Cispo": lambda: objectives.Cispo(NARROW),
    "ClipCov": lambda: objectives.ClipCov(NARROW, share=0.3, low=0.01, high=9.0),
    "KlCov": lambda: objectives.KlCov(0.3),
    "EntropyShaped": lambda: objectives.EntropyShaped(NARROW),
    "Archer": lambda: objectives.Archer(WIDE, NARROW, fork_kl=0.05, other_kl=0.1),
    "Stare": lambda: objectives.Stare(NARROW, 0.3, positive_weight=1.5, negative_weight=0.5, target_entropy=100.0),
}
NOT_SEPARABLE = {"Gspo", "GspoToken", "Stare"}
NEEDED = {"Archer": {"denominator": "answer"}, "Stare": {"scope": "micro_batch_rank"}}
"""What an objective asks of the selection."""
TRUNCATE = CorrectionConfig("token_truncate", high=1.2)


def test_every_shipped_objective_is_tested():
    shipped = {
        name: cls for name, cls in vars(objectives).items() if isinstance(cls, type) and not name.startswith("_")
    }
    shipped = {name for name, cls in shipped.items() if issubclass(cls, Objective) and cls is not Objective}
    assert shipped == set(OBJECTIVES)
    assert {name for name, make in OBJECTIVES.items() if not make().separable} == NOT_SEPARABLE


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def with_head(path):
    """The same policy with any head."""
    policy = load(path)

    def make(head):
        made = copy.deepcopy(policy)
        made.head = head
        return made

    return make


def move(policy, size=0.03):
    """Another policy nearby, always the same one."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += size * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)


@pytest.fixture(scope="module")
def reference(path):
    found = Reference(PolicyConfig(path=path, dtype="float64"))
    move(found.policy)
    return found


@pytest.fixture(scope="module")
def sampled(with_head):
    """Answers with advantages, and log-probabilities of a sampler that does not quite agree."""

    def make(updates):
        x = rollout_batch(5, problems=3, updates=updates, shares=(0.0, 0.0, 1.0))
        micro_batch = x.micro_batch(torch.arange(len(x.problem_index)))
        nan = torch.full(x.answer_mask.shape, torch.nan, dtype=torch.float64)
        noise = torch.randn(len(micro_batch.row), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        logp = with_head("full")(micro_batch, all_stats).logp
        return replace(x, sampler_logp=micro_batch.write(nan, logp + 0.3 * noise))

    return make


def spied(objective):
    """The objective, and the numbers of tokens that it is asked about at a time where a gradient is wanted."""
    sizes, token_loss = [], objective.token_loss

    def counted(tokens):
        if tokens.logp.requires_grad:
            sizes.append(len(tokens.logp))
        return token_loss(tokens)

    objective.token_loss = counted
    return objective, sizes


def prepared(learner, x, update, policy, reference=None, updates=3):
    """The state before the micro-batch of an update; between two updates the policy moves."""
    state = learner.begin(x, rollout=0, updates=updates, micro_batches=1)
    for number in range(update + 1):
        if number:
            move(policy)
        learner.prepare_update(state, number, policy, reference)
    return state


def results_of(learner, state, update, policy):
    """Loss, gradients and metrics of a micro-batch."""
    loss, metrics = learner.loss(state, update, policy)
    gradients = torch.autograd.grad(loss, list(policy.parameters()))
    return loss.item(), gradients, {name: value.item() for name, value in flat(metrics).items()}


def one_update(learner, x, update, policy, updates=3):
    """The results of an update's micro-batch, and the state."""
    state = prepared(learner, x, update, policy, updates=updates)
    return (*results_of(learner, state, update, policy), state)


def settings_of(name, **choices):
    selection = ForkSelection(rho=0.4, **NEEDED.get(name, {}), **choices)
    return AlgorithmConfig(selection, OBJECTIVES[name](), KLConfig(0.1), 0, TRUNCATE)


@pytest.mark.parametrize(
    "masked_terms", [("policy",), ("policy", "kl")], ids=["kl of all tokens", "kl of the kept ones"]
)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_heads_agree_on_every_objective(name, masked_terms, with_head, reference, sampled, monkeypatch):
    monkeypatch.setitem(tiles.ELEMENTS_PER_BLOCK, "cpu", 3 * VOCABULARY)
    settings = settings_of(name, masked_terms=masked_terms)
    _, sizes = spied(settings.objective)
    policy, learner = with_head("full"), Learner(settings, length_limit=8)
    state = prepared(learner, sampled(3), 1, policy, reference)
    loss, gradients, sums = results_of(learner, state, 1, policy)
    assert sums["kept_approx_kl_sum"] > 1e-3
    assert sums["kept_mismatch_ratio_max"] > TRUNCATE.high
    assert sums["dropped_tokens"] > 0
    for policy.head in OTHERS:
        sizes.clear()
        same, same_gradients, same_sums = results_of(learner, state, 1, policy)
        assert same == pytest.approx(loss, rel=1e-12)
        assert apart(same_gradients, gradients) < 1e-12
        assert same_sums.keys() == sums.keys()
        # Archer trains the dropped tokens too
        everything = masked_terms == ("policy",) or name == "Archer"
        for key, value in sums.items():
            nobody_looked = key.startswith("dropped_") and "mismatch" not in key and not everything
            assert same_sums[key] == pytest.approx(0 if nobody_looked else value, rel=1e-11, abs=1e-13), key
        tiled = policy.head == "selected" and name not in NOT_SEPARABLE
        assert (min(sizes) <= 3) == tiled


@pytest.mark.parametrize(
    "settings",
    [
        AlgorithmConfig(ForkSelection(rho=0.4)),
        AlgorithmConfig(ForkSelection(rho=0.4), objectives.Gspo(WIDE)),
        AlgorithmConfig(ForkSelection(rho=0.4, temperature=0.5), objectives.EntropyShaped(NARROW)),
        AlgorithmConfig(ForkSelection(rho=0.4, keep="random")),
        AlgorithmConfig(
            ForkSelection(rho=0.4, keep="random"), correction=CorrectionConfig("sequence_truncate", high=1.2)
        ),
        AlgorithmConfig(ForkSelection(rho=0.4), entropy_coef=0.1, correction=TRUNCATE),
        AlgorithmConfig(ForkSelection(rho=0.4, masked_terms=("policy", "entropy"), temperature=0.5), entropy_coef=0.1),
        AlgorithmConfig(ForkSelection(keep="all")),
        AlgorithmConfig(ForkSelection(keep="all"), correction=TRUNCATE),
        AlgorithmConfig(ForkSelection(keep="all"), objectives.Gspo(WIDE)),
        AlgorithmConfig(ForkSelection(keep="all"), entropy_coef=0.1),
        AlgorithmConfig(ForkSelection(keep="all", temperature=0.5)),
        AlgorithmConfig(ForkSelection(rho=0.4), old_logp_from="sampler"),
        AlgorithmConfig(ForkSelection(keep="all"), old_logp_from="sampler"),
    ],
    ids=lambda s: (
        f"{s.selection.keep}-{type(s.objective).__name__}-{s.selection.temperature}-{s.correction.method}-"
        f"{s.old_logp_from}"
    ),
)
def test_statistics_made_in_the_forward_pass_are_those_of_the_full_head(settings, with_head, sampled):
    """With one update per rollout all tokens are looked at, kept and dropped ones."""
    results = []
    for head in ("full", *OTHERS):
        learner = Learner(settings, length_limit=8)
        results.append(one_update(learner, sampled(1), 0, with_head(head), updates=1))
    (loss, gradients, sums, state), *others = results
    assert (sums["dropped_tokens"] > 0) == (settings.selection.keep != "all")
    for same, same_gradients, same_sums, other in others:
        assert torch.equal(other.tokens.fork_mask, state.tokens.fork_mask)
        assert same == pytest.approx(loss, rel=1e-12)
        assert apart(same_gradients, gradients) < 1e-12
        assert same_sums == pytest.approx(sums, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("objective", ["Dapo", "Gspo"])
@pytest.mark.parametrize("keep", ["all", "random"])
@pytest.mark.parametrize("head", HEADS)
def test_entropies_of_all_tokens_are_kept(head, keep, objective, with_head, sampled):
    """Where no pass before has found them."""
    learner = Learner(AlgorithmConfig(ForkSelection(keep=keep), OBJECTIVES[objective]()))
    policy, x = with_head(head), sampled(1)
    found = one_update(learner, x, 0, policy, updates=1)[3].tokens
    entropy = policy(x.micro_batch(torch.arange(len(x.problem_index))), all_stats).entropy
    torch.testing.assert_close(found.entropy[x.answer_mask], entropy, rtol=1e-12, atol=1e-12)


class Centred(objectives.Dapo):
    """Reads the log-probabilities of the dropped tokens."""

    separable = False

    def token_loss(self, tokens):
        found = super().token_loss(tokens)
        return replace(found, loss=found.loss + torch.where(tokens.fork_mask, tokens.logp - tokens.logp.mean(), 0))


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("head", HEADS)
def test_an_objective_that_reads_dropped_tokens_is_seen(head, updates, with_head, sampled):
    """Their log-probabilities are NaN where nobody has looked: the count of such tokens stops the run."""
    x, learner = sampled(updates), Learner(AlgorithmConfig(objective=Centred()))
    _, _, sums, _ = one_update(learner, x, updates // 2, with_head(head), updates=updates)
    assert sums["leaked"] > 0


def test_what_was_not_looked_at_is_not_counted(with_head, sampled):
    """K > 1 and no term of all tokens."""
    for head, dropped in (("full", True), ("selected", False), ("gathered", False)):
        _, _, sums, state = one_update(Learner(AlgorithmConfig()), sampled(3), 1, with_head(head))
        assert sums["kept_tokens"] == state.tokens.fork_mask[state.batch.update == 1].sum() > 0
        assert sums["leaked"] == 0
        assert {
            name: value != 0 for name, value in sums.items() if name in ("dropped_tokens", "dropped_ratio_sum")
        } == {
            "dropped_tokens": dropped,
            "dropped_ratio_sum": dropped,
        }
        # what sampler and trainer disagree on was found before
        assert sums["dropped_mismatch_tokens"] > 0
