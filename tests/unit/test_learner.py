import contextlib
import copy
import itertools
import random
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from oracle import expected_update, stats_of
from tiny import experience, load, on_ranks, rows_of, write_model

from forklight.algo import objectives
from forklight.algo.correction import Correction
from forklight.algo.kl import KLTerm
from forklight.algo.losses import ClipRange
from forklight.algo.noise import hash_bits
from forklight.algo.plan import update_and_rank
from forklight.algo.selection import ForkSelection
from forklight.algo.terms import Loss
from forklight.algo.types import Experience
from forklight.models import Policy, PolicyConfig, Reference, heads
from forklight.models.heads import HeadName
from forklight.rollout import choose
from forklight.rollout.learn import Learner
from forklight.rollout.lesson import NonFiniteError

HEADS = get_args(HeadName)
MICRO_BATCHES = (1, 2, 4)
SEED, ROLLOUT = 7, 3
NOISE_SEED = int(hash_bits(SEED, ROLLOUT))
NARROW = ClipRange(low=0.05, high=0.08)
LIMIT = 8


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"))


def moved_reference(path):
    """A reference near the policy, so that the KL is neither 0 nor cut."""
    reference = Reference(PolicyConfig(path=path, dtype="float64"))
    noise = torch.Generator().manual_seed(1)
    for parameter in reference.policy.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return reference


@dataclass(frozen=True)
class Case:
    """A selection, an objective and what else decides about passes."""

    updates: int = 1
    keep: str = "top"
    scope: str = "update"
    over: str = "contributing"
    entropy_of: str = "old"
    rule: str = "count"
    denominator: str = "selected"
    terms: tuple = ("policy",)
    truncated: bool = True
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    dual: float | None = None
    temperature: float = 1.0
    at: str | float = "sampling"
    objective: str = "Dapo"
    old_logp_from: str = "trainer"
    rho: float = 0.3

    def __str__(self):
        changed = {name: value for name, value in vars(self).items() if value != getattr(Case, name)}
        return "-".join(f"{name}={value}" for name, value in changed.items()) or "default"

    @property
    def settings(self):
        names = ("rho", "keep", "scope", "entropy_of", "rule", "over", "denominator", "terms", "truncated")
        selection = ForkSelection(**{name: getattr(self, name) for name in names}, temperature=self.at)
        clip = replace(NARROW, dual=self.dual)
        objective = {
            "Dapo": lambda: objectives.Dapo(clip),
            "Grpo": lambda: objectives.Grpo(clip),
            "DrGrpo": lambda: objectives.DrGrpo(clip),
            "Cispo": lambda: objectives.Cispo(clip),
            "Gspo": lambda: objectives.Gspo(NARROW),
            "ClipCov": lambda: objectives.ClipCov(clip, share=0.3, low=0.05, high=9.0),
            "KlCov": lambda: objectives.KlCov(0.3),
            "EntropyShaped": lambda: objectives.EntropyShaped(clip),
            "Archer": lambda: objectives.Archer(ClipRange(0.3, 0.3), NARROW, fork_kl=0.05, other_kl=0.1),
        }[self.objective]()
        kl = KLTerm(coef=self.kl_coef)
        return Loss(selection, objective, kl, self.entropy_coef, old_logp_from=self.old_logp_from)

    @property
    def valid(self):
        try:
            self.settings.passes(self.updates, 1)
        except ValueError:
            return False
        return self.dual is None or self.objective in WITH_DUAL

    @property
    def depends_on_visits(self):
        return self.scope in ("micro_batch", "micro_batch_rank") or self.denominator == "micro_batch"

    def learner(self, **settings):
        return Learner(self.settings, temperature=self.temperature, length_limit=LIMIT, seed=SEED, **settings)

    def expected(self, x, update, policy, old, reference=None, **settings):
        return expected_update(
            x,
            update,
            self.settings,
            model=policy.model,
            old_model=old.model,
            reference=None if reference is None else reference.policy.model,
            temperature=self.temperature,
            noise_seed=NOISE_SEED,
            length_limit=LIMIT,
            **settings,
        )


CHOICES = {
    "updates": (1, 3),
    "keep": ("top", "bottom", "random", "all", "band", "low_probability", "covariance"),
    "scope": ("update", "rollout", "sequence", "micro_batch", "micro_batch_rank"),
    "over": ("contributing", "answers"),
    "entropy_of": ("old", "current"),
    "rule": ("count", "threshold"),
    "denominator": ("selected", "answer", "micro_batch"),
    "terms": (("policy",), ("policy", "kl"), ("policy", "entropy"), ("policy", "kl", "entropy")),
    "truncated": (True, False),
    "kl_coef": (0.0, 0.1),
    "entropy_coef": (0.0, 0.2),
    "dual": (None, 1.1),
    "temperature": (1.0, 0.7),
    "at": ("sampling", 0.5),
    "objective": ("Dapo", "Grpo", "DrGrpo", "Cispo", "Gspo", "ClipCov", "KlCov", "EntropyShaped", "Archer"),
    "old_logp_from": ("trainer", "sampler"),
}
WITH_DUAL = ("Dapo", "Grpo", "DrGrpo", "ClipCov", "EntropyShaped")


def possible_pairs(first, second):
    """All pairs of values of two keys but those that contradict each other."""
    impossible = {
        ("terms", "kl_coef"): lambda terms, coef: "kl" in terms and not coef,
        ("denominator", "objective"): lambda by, name: (
            by
            not in {
                "Grpo": ("selected", "answer"),
                "DrGrpo": ("selected", "answer"),
                "Gspo": ("selected",),
                "Archer": ("answer",),
            }.get(name, CHOICES["denominator"])
        ),
        ("keep", "scope"): lambda keep, scope: (keep, scope) == ("covariance", "sequence"),
        ("dual", "objective"): lambda dual, name: dual is not None and name not in WITH_DUAL,
    }.get((first, second), lambda *_: False)
    return {pair for pair in itertools.product(CHOICES[first], CHOICES[second]) if not impossible(*pair)}


def covering_cases():
    """Random valid cases, each taken if it brings a pair of values that no case before had."""
    rng, cases = random.Random(0), []
    missing = {(*keys, *pair) for keys in itertools.combinations(CHOICES, 2) for pair in possible_pairs(*keys)}
    while missing:
        best, brings = None, set()
        for _ in range(12):
            case = Case(**{name: rng.choice(values) for name, values in CHOICES.items()})
            if case.valid:
                new = {
                    (a, b, getattr(case, a), getattr(case, b)) for a, b in itertools.combinations(CHOICES, 2)
                } & missing
                best, brings = (case, new) if len(new) > len(brings) else (best, brings)
        missing -= brings
        if best is not None:
            cases.append(best)
    return cases


CASES = covering_cases()


def test_cases_hold_every_pair_of_choices():
    assert 60 < len(CASES) < 160
    for first, second in itertools.combinations(CHOICES, 2):
        pairs = {(getattr(case, first), getattr(case, second)) for case in CASES}
        assert pairs == possible_pairs(first, second)


def parameters(policy):
    return list(policy.model.parameters())


def run_update(learner, lesson, update, policy, reference=None):
    """Prepares an update and runs its visits as Lightning does: gradients and loss add up, each divided by A."""
    learner.prepare_update(lesson, update, policy, reference)
    policy.zero_grad()
    total, sums = 0.0, {}
    for visit in lesson.plan.visits_of(update):
        loss, metrics = learner.loss(lesson, visit, policy)
        (loss / lesson.plan.micro_batches).backward()
        total += loss.item() / lesson.plan.micro_batches
        for name, value in metrics.items():
            sums[name] = (
                max(sums.get(name, 0.0), value.item()) if name.endswith("_max") else sums.get(name, 0.0) + value
            )
    return total, [parameter.grad.clone() for parameter in parameters(policy)], sums


def apart(actual, expected):
    """Largest difference over the largest expected number."""
    scale = max(max(tensor.abs().max().item() for tensor in expected), 1e-300)
    return max((a - b).abs().max().item() for a, b in zip(actual, expected, strict=True)) / scale


def take_step(policy, gradients, size=0.2):
    """An SGD step of given length, far enough to clip some ratios."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().clamp(min=1e-12)
    with torch.no_grad():
        for parameter, gradient in zip(parameters(policy), gradients, strict=True):
            parameter -= size / norm * gradient


def turned(number):
    """The heads in an order that changes with the number: a case for every head would take three times as long."""
    return HEADS[number % 3 :] + HEADS[: number % 3]


def told(x, case, policy):
    """Where the case asks for it, log-probabilities of a sampler that does not quite agree with the policy."""
    if case.old_logp_from == "trainer":
        return x
    chunk, logp = x.chunk(torch.arange(len(x.group))), torch.full(x.answer_mask.shape, torch.nan)
    found = policy(chunk, case.temperature).logp
    chunk.write(logp, found + 0.1 * torch.randn(len(found), generator=torch.Generator().manual_seed(2)))
    return replace(x, sampler_logp=logp)


def begin(learner, x, case, micro_batches):
    return learner.begin(x, rollout=ROLLOUT, updates=case.updates, micro_batches=micro_batches)


# -- the table of cases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_is_the_oracle(case, path):
    x = experience(CASES.index(case), updates=case.updates)
    policy, old = load(path), load(path)
    x = told(x, case, old)
    reference = moved_reference(path) if case.settings.needs_reference else None
    learner = case.learner()
    lessons = [begin(learner, x, case, count) for count in MICRO_BATCHES]
    for update in range(case.updates):
        expected = None
        # each number of micro-batches has a head of its own, in every case another one
        for lesson, head in zip(lessons, turned(CASES.index(case)), strict=True):
            policy.head = head
            if expected is None or case.depends_on_visits:
                sets = [lesson.plan.looked_at(visit).tolist() for visit in lesson.plan.visits_of(update)]
                expected = case.expected(x, update, policy, old, reference, sets=sets, visits=sets)
            loss, gradients, sums = run_update(learner, lesson, update, policy, reference)
            assert_same(lesson, update, loss, gradients, expected)
            trained = torch.cat([lesson.plan.train[visit] for visit in lesson.plan.visits_of(update)])
            assert sums["kept_tokens"] == lesson.experience.fork_mask[trained].sum()
        take_step(policy, expected.gradients)


def assert_same(lesson, update, loss, gradients, expected):
    """Masks, loss and gradients are the oracle's."""
    x = lesson.experience
    assert torch.equal(x.fork_mask & (x.update == update)[:, None], expected.mask)
    assert loss == pytest.approx(expected.loss.item(), rel=1e-12, abs=1e-14)
    assert apart(gradients, expected.gradients) < 1e-12


def test_ratios_leave_the_range_and_the_dual_bound_in_these_cases(path):
    """Without this the oracle's cases would say nothing about clipping."""
    case = Case(updates=3, keep="all", dual=1.1)
    x = experience(1, updates=3, shares=(0.0, 0.2, 0.8))
    policy = load(path)
    learner = case.learner()
    lesson = begin(learner, x, case, 1)
    first = run_update(learner, lesson, 0, policy)
    take_step(policy, first[1])
    later = run_update(learner, lesson, 1, policy)[2]
    assert first[2]["kept_clip_low"] == first[2]["kept_clip_high"] == first[2]["kept_clip_dual"] == 0
    assert min(later["kept_clip_low"], later["kept_clip_high"], later["kept_clip_dual"]) > 0


# -- the mask ----------------------------------------------------------------------------------------------------------


def watch_head(monkeypatch, name, change=lambda hidden: hidden):
    """A list that the hidden states of every visit join, `[N,H]`, changed and later with their gradients."""
    states, head = [], heads.HEADS[name]

    def watched(x, loss):
        hidden = change(x.hidden)
        hidden.retain_grad()
        states.append(hidden)
        return head(x._replace(hidden=hidden), loss)

    monkeypatch.setitem(heads.HEADS, name, watched)
    return states


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("case", [Case(), Case(keep="bottom"), Case(updates=3, keep="random")], ids=str)
def test_tokens_outside_the_mask_have_exactly_no_gradient(case, head, path, monkeypatch):
    x = experience(2, updates=case.updates, shares=(0.0, 0.0, 1.0))
    policy, learner = load(path, "float32", head=head), case.learner()
    states = watch_head(monkeypatch, head)
    lesson = begin(learner, x, case, 2)
    learner.prepare_update(lesson, 0, policy, None)
    for visit in lesson.plan.visits_of(0):
        learner.loss(lesson, visit, policy)[0].backward()
        chunk = lesson.experience.chunk(lesson.plan.train[visit])
        kept = chunk.read(lesson.experience.fork_mask)
        assert 0 < kept.sum() < len(kept)
        assert torch.equal(states[-1].grad.any(-1), kept)


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("scope", ["update", "micro_batch_rank"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_rho_1_is_all_tokens_bit_for_bit(updates, scope, micro_batches, path):
    # a group with single zeros has rows that only the ranking reads; cut in two they would move other rows
    x = experience(4, updates=updates, shares=(0.0, 1.0, 0.0) if micro_batches == 1 else (0.0, 0.0, 1.0))
    policy, results = load(path, "float32", head="full"), []
    for keep in ("top", "bottom", "random", "all"):
        case = Case(updates=updates, keep=keep, scope=scope, rho=1.0)
        learner = case.learner()
        lesson = begin(learner, x, case, micro_batches)
        results.append(run_update(learner, lesson, 0, policy)[:2])
    loss, gradients = results.pop()
    assert any(gradient.any() for gradient in gradients)
    for same_loss, same_gradients in results:
        assert same_loss == loss
        assert all(map(torch.equal, same_gradients, gradients))


@pytest.mark.parametrize("head", ["selected", "gathered"])
@pytest.mark.parametrize("updates", [1, 3])
def test_rho_1_is_all_tokens_whatever_the_head(head, updates, path):
    x = experience(4, updates=updates, shares=(0.0, 1.0, 0.0))
    policy, results = load(path, "float32"), []
    for keep in ("all", "top", "random"):
        policy.head = "full" if keep == "all" else head
        case = Case(updates=updates, keep=keep, rho=1.0)
        learner = case.learner()
        results.append(run_update(learner, begin(learner, x, case, 1), 0, policy)[:2])
    (loss, gradients), *others = results
    for same_loss, same_gradients in others:
        assert same_loss == pytest.approx(loss, rel=1e-5)
        assert apart(same_gradients, gradients) < 1e-5


WITHOUT_ADVANTAGE = [
    *(Case(updates=u, keep=k, scope=s) for u in (1, 3) for k in ("top", "all") for s in CHOICES["scope"]),
    Case(keep="random"),
    Case(over="answers"),
    Case(updates=3, entropy_of="current"),
    Case(updates=3, objective="Gspo"),
    Case(entropy_coef=0.1, terms=("policy", "entropy")),
]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("case", WITHOUT_ADVANTAGE, ids=str)
def test_a_rollout_without_any_advantage_has_a_connected_zero_loss(case, micro_batches, path):
    x = experience(0, updates=case.updates, shares=(1.0, 0.0, 0.0))
    policy = load(path, head=turned(WITHOUT_ADVANTAGE.index(case))[micro_batches])
    learner = case.learner()
    lesson = begin(learner, x, case, micro_batches)
    for update in range(case.updates):
        loss, gradients, sums = run_update(learner, lesson, update, policy)
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients)
        assert sums["kept_tokens"] == 0
    if case.over == "contributing":
        assert not lesson.experience.fork_mask.any()
        assert not lesson.experience.denominator.any()


# -- ratios ------------------------------------------------------------------------------------------------------------


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("context", [contextlib.nullcontext, autocast])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", [Case(updates=3), Case(updates=3, keep="all", entropy_of="current")], ids=str)
def test_the_ratio_of_a_policy_to_itself_is_exactly_1_with_the_full_head(
    case, checkpointing, context, micro_batches, path
):
    policy = load(path, "float32", gradient_checkpointing=checkpointing, head="full")
    tokens = 0
    for sums in visits_without_a_step(case, policy, context, micro_batches, update=1):
        tokens += sums["kept_tokens"]
        assert sums["kept_ratio_sum"] == sums["kept_tokens"]
        assert sums["kept_approx_kl_sum"] == 0
    assert tokens > 0


@pytest.mark.parametrize("head", ["selected", "gathered"])
@pytest.mark.parametrize(("context", "tolerance"), [(contextlib.nullcontext, 1e-5), (autocast, 1e-2)])
@pytest.mark.parametrize("case", [Case(updates=3), Case(updates=3, keep="all", entropy_of="current")], ids=str)
def test_the_ratio_of_a_policy_to_itself_is_nearly_1_with_the_other_heads(case, context, tolerance, head, path):
    """Other numbers of rows take other product kernels."""
    tokens = 0
    for sums in visits_without_a_step(case, load(path, "float32", head=head), context, 2, update=1):
        tokens += sums["kept_tokens"]
        assert sums["kept_ratio_sum"].item() == pytest.approx(sums["kept_tokens"].item(), rel=tolerance)
        assert sums["kept_ratio_max"].item() == pytest.approx(1, abs=tolerance)
    assert tokens > 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("context", [contextlib.nullcontext, autocast])
def test_the_first_updates_ratio_is_exactly_1(context, head, path):
    for micro_batches, case in ((1, Case()), (2, Case()), (2, Case(keep="all")), (2, Case(updates=3))):
        for sums in visits_without_a_step(case, load(path, "float32", head=head), context, micro_batches):
            assert sums["kept_ratio_sum"] == sums["kept_tokens"] > 0
            assert sums["kept_approx_kl_sum"] == 0


def visits_without_a_step(case, policy, context, micro_batches, update=0):
    """The metrics of an update's visits while the policy is still the one before the first."""
    learner = case.learner(context=context)
    x = experience(3, updates=case.updates, shares=(0.0, 0.5, 0.5))
    lesson = begin(learner, x, case, micro_batches)
    for number in range(update + 1):
        learner.prepare_update(lesson, number, policy, None)
    for visit in lesson.plan.visits_of(update):
        with context():
            yield learner.loss(lesson, visit, policy)[1]


def test_old_log_probs_outside_of_the_precision_context_are_other_ones(path):
    """The negative control of the tests above."""
    policy, case = load(path, "float32", head="full"), Case(updates=3)
    learner = case.learner()
    lesson = begin(learner, experience(3, updates=3, shares=(0.0, 0.5, 0.5)), case, 1)
    learner.prepare_update(lesson, 0, policy, None)
    with autocast():
        _, sums = learner.loss(lesson, 1, policy)
    assert sums["kept_approx_kl_sum"] > 0


@pytest.mark.parametrize(("head", "tolerance"), [("full", 0), ("gathered", 2e-2), ("selected", 2e-2)])
def test_a_pass_over_watched_rows_leaves_the_gradient_alone_under_autocast(head, tolerance, path):
    """The watched rows run without gradients in the same autocast context, whose cache of weights must not stay."""
    policy, case = load(path, "float32", head=head), Case(over="answers", rho=1.0, denominator="answer")
    x = experience(0)
    watching, alone = case.learner(context=autocast), replace(case, keep="all").learner(context=autocast)
    gradients = []
    for learner in (watching, alone):
        lesson = begin(learner, x, case, 1)
        with autocast():
            gradients.append(run_update(learner, lesson, 0, policy)[1])
    assert all(gradient.any() for gradient in gradients[0])
    assert apart(*gradients) <= tolerance


# -- ranks -------------------------------------------------------------------------------------------------------------

RANK_CASES = [
    Case(),
    Case(over="answers", denominator="answer"),
    Case(keep="random", kl_coef=0.1),
    Case(scope="micro_batch_rank"),
    Case(scope="micro_batch_rank", keep="all", over="answers"),
    Case(updates=3, dual=1.1),
    Case(updates=3, entropy_of="current", keep="bottom"),
    Case(updates=3, entropy_of="current", over="answers", scope="micro_batch_rank", kl_coef=0.1),
    Case(over="answers", scope="micro_batch", rule="threshold", denominator="answer", entropy_coef=0.1),
    Case(updates=3, entropy_of="current", scope="micro_batch_rank", denominator="micro_batch", over="answers"),
    Case(scope="sequence", rule="threshold", objective="Grpo"),
    Case(
        updates=3, scope="rollout", keep="covariance", terms=("policy", "kl", "entropy"), kl_coef=0.1, entropy_coef=0.1
    ),
    Case(updates=3, keep="low_probability", rule="threshold", entropy_of="current", truncated=False),
    Case(keep="band", rule="threshold", objective="DrGrpo", at=0.5),
    Case(updates=3, entropy_of="current", keep="bottom", old_logp_from="sampler"),
]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("case", RANK_CASES, ids=str)
def test_two_ranks_are_the_oracle(case, micro_batches, path):
    x = experience(11, updates=case.updates)
    owner = torch.tensor([rank for _, rank in update_and_rank(6, case.updates, 2)]).repeat_interleave(3)
    shares = [(owner == rank).nonzero().flatten() for rank in (0, 1)]
    old = load(path)
    x = told(x, case, old)
    reference = moved_reference(path) if case.kl_coef else None

    head = turned(RANK_CASES.index(case))[micro_batches]
    policies = [load(path, head=head), load(path, head=head)]

    def train(ranks):
        policy, seen, results = policies[ranks.rank], [], []
        policy.register_forward_pre_hook(lambda _, args: seen.append(len(args[0].rows)))
        learner = case.learner(ranks=ranks)
        lesson = begin(learner, rows_of(x, shares[ranks.rank]), case, micro_batches)
        for update in range(case.updates):
            before = copy.deepcopy(policy)
            loss, gradients, _ = run_update(learner, lesson, update, policy, reference)
            gradients = [ranks.reduce(gradient) / 2 for gradient in gradients]
            results.append((before, sum(ranks.gather(loss)) / 2, gradients))
            take_step(policy, gradients)
        return results, lesson, len(seen)

    (results, one, calls), (_, two, as_many) = on_ranks(2, train)
    assert calls == as_many  # sharded weights are gathered in every forward pass: ranks must run as many
    mask = torch.zeros_like(x.answer_mask)
    for lesson, rows in zip((one, two), shares, strict=True):
        mask[rows, : lesson.experience.answer_mask.shape[1]] = lesson.experience.fork_mask
    joined = replace(one, experience=replace(x, fork_mask=mask))
    for update, (policy, loss, gradients) in enumerate(results):
        visits = one.plan.visits_of(update)
        cut = [
            [rows[le.plan.looked_at(v)].tolist() for v in visits] for le, rows in zip((one, two), shares, strict=True)
        ]
        both = [first + second for first, second in zip(*cut, strict=True)]
        sets = both if case.scope == "micro_batch" else cut[0] + cut[1]
        expected = case.expected(x, update, policy, old, reference, sets=sets, visits=cut[0] + cut[1])
        assert_same(joined, update, loss, gradients, expected)


def test_a_rank_without_advantages_runs_the_same_passes_and_collectives(path):
    with_advantages = experience(1, problems=3, shares=(0.0, 0.5, 0.5))
    without = replace(experience(2, problems=3, shares=(1.0, 0.0, 0.0)), row_key=torch.arange(9) + 9)
    policies = [load(path), load(path)]

    def train(ranks):
        learner = Case().learner(ranks=ranks)
        lesson = begin(learner, (with_advantages, without)[ranks.rank], Case(), 1)
        loss, gradients, _ = run_update(learner, lesson, 0, policies[ranks.rank])
        return loss, gradients, lesson.experience

    (loss, gradients, trained), (no_loss, no_gradients, idle) = on_ranks(2, train)
    assert loss != 0
    assert any(gradient.any() for gradient in gradients)
    assert no_loss == 0
    assert not any(gradient.any() for gradient in no_gradients)
    assert torch.equal(trained.denominator, idle.denominator)
    everywhere = torch.cat([x.threshold[x.contributing] for x in (trained, idle)])
    assert len(everywhere) > 0
    assert len(everywhere.unique()) == 1
    assert not idle.fork_mask.any()


# -- passes ------------------------------------------------------------------------------------------------------------

T, W = "train", "watch"
PASSES = [
    # case, A, rows of the pass at the first update, at later updates, and beside the training forward; `all` updates'
    (Case(updates=3, over="answers"), 2, {"all": (T, W)}, (), ()),
    (Case(updates=3, over="answers", scope="micro_batch_rank"), 2, {"all": (T, W)}, (), ()),
    (Case(updates=3, over="answers", entropy_of="current"), 2, {"all": (T,), "own": (W,)}, (T, W), ()),
    (Case(updates=3, over="answers", entropy_of="current"), 1, {"all": (T,)}, (), (W,)),
    (Case(updates=3, over="answers", entropy_of="current", scope="micro_batch_rank"), 2, {"all": (T,)}, (), (W,)),
    (Case(updates=3, keep="random", over="answers"), 2, {"all": (T,)}, (), ()),
    (Case(updates=3, keep="all", entropy_of="current"), 1, {"all": (T,)}, (), ()),
    (Case(updates=3), 1, {"all": (T, W)}, (), ()),
    (Case(over="answers"), 1, {}, (), (W,)),
    (Case(), 1, {}, (), (W,)),
    (Case(over="answers", scope="micro_batch_rank"), 4, {}, (), (W,)),
    (Case(keep="random", over="answers"), 2, {}, (), ()),
    (Case(keep="all"), 4, {}, (), ()),
    (Case(keep="all", over="answers", scope="micro_batch_rank"), 2, {}, (), ()),
    (Case(over="answers"), 2, {"all": (T, W)}, (), ()),
    (Case(kl_coef=0.1), 2, {"all": (T,)}, (), ()),
    (Case(updates=3, over="answers", old_logp_from="sampler"), 1, {"all": (T, W)}, (), ()),
    (Case(updates=3, over="answers", entropy_of="current", old_logp_from="sampler"), 2, {"own": (T, W)}, (T, W), ()),
    (Case(updates=3, over="answers", entropy_of="current", old_logp_from="sampler"), 1, {}, (), (W,)),
    (Case(updates=3, keep="random", over="answers", old_logp_from="sampler"), 2, {}, (), ()),
    (Case(over="answers", old_logp_from="sampler"), 2, {"all": (T, W)}, (), ()),
    (Case(over="answers", old_logp_from="sampler"), 1, {}, (), (W,)),
]


@pytest.mark.parametrize(("case", "micro_batches", "first", "later", "inside"), PASSES, ids=str)
def test_no_pass_runs_twice(case, micro_batches, first, later, inside, path):
    x = experience(8, updates=case.updates, shares=(0.3, 0.4, 0.3))
    has_gradient = (x.advantages != 0) | bool(case.kl_coef)
    looked_at = has_gradient | (x.contributing if case.over == "contributing" else True)
    assert not x.contributing.all()
    assert (x.contributing & (x.advantages == 0)).any()
    policy = load(path)
    x, seen = told(x, case, policy), {True: [], False: []}
    policy.register_forward_pre_hook(lambda _, args: seen[torch.is_grad_enabled()].extend(args[0].rows.tolist()))
    reference = Reference(PolicyConfig(path=path, dtype="float64")) if case.kl_coef else None
    in_reference = []
    if reference:
        reference.policy.register_forward_pre_hook(lambda _, args: in_reference.extend(args[0].rows.tolist()))

    def rows(kinds, update=None):
        of_update = looked_at if update is None else looked_at & (x.update == update)
        chosen = (of_update & has_gradient if kind == T else of_update & ~has_gradient for kind in kinds)
        return sorted(row for which in chosen for row in which.nonzero().flatten().tolist())

    learner = case.learner()
    lesson = begin(learner, x, case, micro_batches)
    for update in range(case.updates):
        seen[False].clear()
        learner.prepare_update(lesson, update, policy, reference)
        wanted = rows(first.get("all", ())) + rows(first.get("own", ()), 0) if update == 0 else rows(later, update)
        assert sorted(seen[False]) == sorted(wanted)
        assert not seen[True]
        seen[False].clear()
        for visit in lesson.plan.visits_of(update):
            learner.loss(lesson, visit, policy)
        assert sorted(seen[False]) == rows(inside, update)
        assert sorted(seen[True]) == rows((T,), update)
        seen[True].clear()
    assert sorted(in_reference) == (rows((T,)) if reference else [])


@pytest.mark.parametrize(
    ("case", "micro_batches", "head"),
    [
        *((Case(updates=3), 1, head) for head in HEADS),
        *((Case(updates=3, entropy_of="current"), 2, head) for head in HEADS),
        (Case(updates=3), 2, "selected"),
        (Case(updates=3, entropy_of="current"), 1, "selected"),
        (Case(updates=3, old_logp_from="sampler"), 2, "selected"),
    ],
    ids=str,
)
def test_a_saved_rollout_goes_on_bit_for_bit(case, micro_batches, head, path):
    learner = case.learner()
    policy = load(path, "float32", head=head)
    x = told(experience(6, updates=3, shares=(0.0, 0.3, 0.7)), case, policy)
    lesson = begin(learner, x, case, micro_batches)
    take_step(policy, run_update(learner, lesson, 0, policy)[1])
    saved = {name: tensor.clone() for name, tensor in lesson.experience.state_dict().items()}
    resumed = begin(learner, Experience(**saved), case, micro_batches)
    for update in (1, 2):
        loss, gradients, sums = run_update(learner, lesson, update, policy)
        same_loss, same_gradients, same_sums = run_update(learner, resumed, update, policy)
        assert same_loss == loss != 0
        assert all(map(torch.equal, same_gradients, gradients))
        assert same_sums == sums
        take_step(policy, gradients)
    assert torch.equal(lesson.experience.fork_mask, resumed.experience.fork_mask)


# -- every objective ---------------------------------------------------------------------------------------------------

SPREAD = {"selection": ForkSelection(rho=0.5, entropy_of="current")}
WHOLE = {"selection": ForkSelection(rho=0.5, entropy_of="current", denominator="answer")}
WIDE = ClipRange(0.9, 0.9)
OBJECTIVES = {
    "dapo": Loss(objective=objectives.Dapo(NARROW), **SPREAD),
    "grpo": Loss(objective=objectives.Grpo(NARROW), kl=KLTerm(0.1, "k1"), **SPREAD),
    "dr_grpo": Loss(objective=objectives.DrGrpo(NARROW), kl=KLTerm(0.1, "k2"), entropy_coef=0.1, **SPREAD),
    "gspo": Loss(objective=objectives.Gspo(WIDE), **SPREAD),
    "gspo_token": Loss(objective=objectives.GspoToken(WIDE), **SPREAD),
    "cispo": Loss(objective=objectives.Cispo(NARROW), **SPREAD),
    "clip_cov": Loss(objective=objectives.ClipCov(NARROW, share=0.2, low=0.1, high=9.0), **SPREAD),
    "kl_cov": Loss(objective=objectives.KlCov(0.2), **SPREAD),
    "clip_cov by sequence": Loss(
        selection=ForkSelection(rho=0.5, scope="sequence"), objective=objectives.ClipCov(NARROW, 0.2, 0.1, 9.0)
    ),
    "kl_cov of the old policy": Loss(selection=ForkSelection(keep="all"), objective=objectives.KlCov(0.2)),
    "entropy_shaped": Loss(objective=objectives.EntropyShaped(NARROW), **SPREAD),
    "archer": Loss(objective=objectives.Archer(WIDE, NARROW, fork_kl=0.0, other_kl=0.1), **WHOLE),
}


def train(learner, x, micro_batches, policy, reference, updates=3):
    """Losses, gradients and the lesson of a rollout, with a step after every update."""
    lesson = learner.begin(x, rollout=ROLLOUT, updates=updates, micro_batches=micro_batches)
    results = []
    for update in range(updates):
        loss, gradients, sums = run_update(learner, lesson, update, policy, reference)
        gradients = [learner.ranks.reduce(gradient) / learner.ranks.size for gradient in gradients]
        results.append((sum(learner.ranks.gather(loss)) / learner.ranks.size, gradients, sums))
        take_step(policy, gradients)
    return results, lesson


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_depends_on_micro_batches_or_ranks_or_the_head(name, path):
    settings, x = OBJECTIVES[name], experience(5, updates=3, shares=(0.2, 0.3, 0.5))
    reference = moved_reference(path) if settings.needs_reference else None

    def learner(**more):
        return Learner(settings, length_limit=LIMIT, seed=SEED, **more)

    alone, lesson = train(learner(), x, 1, load(path, head="full"), reference)
    whole = lesson.experience
    assert any(gradient.any() for gradient in alone[0][1])
    if settings.objective.covariance is not None:
        assert whole.cov_mask.any()
        assert not (whole.cov_mask & ~whole.fork_mask).any()
    for micro_batches, head in ((2, "gathered"), (3, "selected")):
        results, other = train(learner(), x, micro_batches, load(path, head=head), reference)
        assert_alike(alone, results)
        assert torch.equal(other.experience.fork_mask, whole.fork_mask)
        if settings.objective.covariance is not None:
            assert torch.equal(other.experience.cov_mask, whole.cov_mask)

    owner = torch.tensor([rank for _, rank in update_and_rank(6, 3, 2)]).repeat_interleave(3)
    policies = [load(path), load(path)]

    def on_rank(ranks):
        rows = (owner == ranks.rank).nonzero().flatten()
        return train(learner(ranks=ranks), rows_of(x, rows), 2, policies[ranks.rank], reference)[0]

    assert_alike(alone, on_ranks(2, on_rank)[0])


def assert_alike(expected, results):
    for (loss, gradients, _), (other, others, _) in zip(expected, results, strict=True):
        assert other == pytest.approx(loss, rel=1e-12, abs=1e-14)
        assert apart(others, gradients) < 1e-12


@pytest.mark.parametrize("head", HEADS)
def test_an_objective_for_all_tokens_trains_the_dropped_ones(head, path, monkeypatch):
    settings, x = OBJECTIVES["archer"], experience(5, shares=(0.0, 0.0, 1.0))
    reference = moved_reference(path)
    policy = load(path, head=head)
    states, learner = watch_head(monkeypatch, head), Learner(settings, length_limit=LIMIT)
    lesson = learner.begin(x, rollout=0, updates=1, micro_batches=1)
    learner.prepare_update(lesson, 0, policy, reference)
    loss, sums = learner.loss(lesson, 0, policy)
    loss.backward()
    assert states[-1].grad.any(-1).all()
    assert sums["dropped_tokens"] > 0


def test_a_penalty_is_the_kl_of_every_answer(path):
    x, reference, policy = experience(5), moved_reference(path), load(path)
    learner = Learner(Loss(kl=KLTerm(0.3, "k3", "reward")), temperature=0.7)
    found = learner.statistics.penalty(x, policy, reference, rollout=0, uids={}, passes=4)
    rows = range(len(x.update))
    now, ref = (stats_of(model, x, rows, 0.7, 0.7).logp for model in (policy.model, reference.policy.model))
    gaps = [ref[row] - now[row] for row in rows]
    expected = torch.stack([0.3 * (gap.exp() - gap - 1).sum() for gap in gaps]).detach()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert learner.settings.others == "none"
    assert learner.settings.needs_reference
    assert not learner.settings.reference_in_loss


def test_a_correction_weighs_the_policy_term_alone(path):
    x, policy = experience(5, shares=(0.0, 0.0, 1.0)), load(path)
    gap = torch.where(x.answer_mask, 0.3, torch.nan)
    stats = stats_of(policy.model, x, range(len(x.update)), 1.0, 1.0)
    told = torch.full(x.answer_mask.shape, torch.nan, dtype=torch.float64)
    for row, logp in stats.logp.items():
        told[row, : len(logp)] = logp.detach()
    x = replace(x, sampler_logp=told - gap)
    results = []
    for correction in (Correction(), Correction("token_truncate", high=1.2), Correction("token_mask", 0.5, 1.2)):
        learner = Learner(Loss(correction=correction))
        lesson = learner.begin(x, rollout=0, updates=1, micro_batches=2)
        results.append(run_update(learner, lesson, 0, policy))
    plain, cut, masked = results
    assert cut[0] == pytest.approx(1.2 * plain[0], rel=1e-12)
    # the model's norms are float32 inside: a gradient that comes in 1.2 times as large goes out rounded otherwise
    assert apart(cut[1], [1.2 * gradient for gradient in plain[1]]) < 1e-6
    assert masked[0] == 0
    assert not any(gradient.any() for gradient in masked[1])
    sums = plain[2]
    assert sums["kept_mismatch_ratio_max"] == pytest.approx(1.3498588, rel=1e-6)
    assert sums["kept_mismatch_tokens"] == sums["kept_tokens"]


# -- the sampler's log-probabilities as the old ones -------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("updates", "micro_batches"), [(1, 1), (1, 2), (3, 2)])
def test_the_first_ratio_is_trainer_to_sampler(updates, micro_batches, head, path):
    case = Case(updates=updates, old_logp_from="sampler")
    x, policy = experience(3, updates=updates, shares=(0.0, 0.5, 0.5)), load(path, head=head)
    x = told(x, case, policy)
    chunk = x.chunk(torch.arange(len(x.group)))
    logp = torch.full(x.answer_mask.shape, torch.nan, dtype=torch.float64)
    chunk.write(logp, policy(chunk, 1.0).logp)
    lesson = begin(case.learner(), x, case, micro_batches)
    sums = run_update(case.learner(), lesson, 0, policy)[2]
    kept = lesson.experience.fork_mask & ((x.update == 0) & (x.advantages != 0))[:, None]
    ratio = (logp - x.sampler_logp)[kept].exp()
    assert sums["kept_ratio_sum"] == pytest.approx(ratio.sum().item(), rel=1e-9)
    assert sums["kept_ratio_max"] == pytest.approx(ratio.max().item(), rel=1e-9)
    falls, grows = (x.advantages[:, None].expand_as(kept)[kept] * sign > 0 for sign in (-1, 1))
    assert sums["kept_clip_low"] == (falls & (ratio < 1 - NARROW.low)).sum()
    assert sums["kept_clip_high"] == (grows & (ratio > 1 + NARROW.high)).sum()
    assert sums["kept_clip_low"] + sums["kept_clip_high"] > 0


@pytest.mark.parametrize(
    ("case", "micro_batches"), [(Case(), 1), (Case(updates=3), 2), (Case(updates=3, entropy_of="current"), 2)], ids=str
)
def test_the_mismatch_is_measured_all_the_same(case, micro_batches, path):
    """What trainer and sampler disagree on does not hang on whose log-probabilities are the old ones."""
    shifted = replace(case, old_logp_from="sampler")
    x = told(experience(3, updates=case.updates, shares=(0.0, 0.5, 0.5)), shifted, load(path))
    found = []
    for each in (case, shifted):
        policy, learner = load(path), each.learner()
        lesson = begin(learner, x, each, micro_batches)
        found.append([])
        for update in range(case.updates):
            _, gradients, sums = run_update(learner, lesson, update, policy)
            found[-1].append({name: float(value) for name, value in sums.items() if "mismatch" in name})
            take_step(policy, gradients)
    for update, (expected, sums) in enumerate(zip(*found, strict=True)):
        assert expected["kept_mismatch_tokens"] > 0
        assert expected["dropped_mismatch_tokens"] > 0
        if case.entropy_of == "current" and update:  # no pass has seen these tokens under the policy that sampled
            assert not any(sums.values())
        else:
            assert sums == pytest.approx(expected, rel=1e-9)


def test_a_silent_sampler_has_no_old_log_probabilities():
    case = Case(old_logp_from="sampler")
    with pytest.raises(ValueError, match=r"model.old_logp_from: sampler .* does not tell"):
        begin(case.learner(), experience(3), case, 1)


class Spoilt:
    """A visit's loss that hears of other statistics than the head has found."""

    def __init__(self, visit, spoil):
        self.visit, self.spoil = visit, spoil

    def __getattr__(self, name):
        return getattr(self.visit, name)

    def see(self, stats):
        self.visit.see(self.spoil(stats))

    def total(self, stats):
        return self.visit.total(self.spoil(stats))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("what", ["logp", "entropy"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_number_that_is_not_finite_stops_with_its_place(what, micro_batches, head, path):
    class Broken(Policy):
        def forward(self, chunk, temperature, loss=None, **settings):
            def spoil(stats):
                bad = (chunk.rows[chunk.row] == 4) & (chunk.column == 1)
                value = -torch.inf if what == "logp" else torch.nan
                return replace(stats, **{what: torch.where(bad, value, getattr(stats, what))})

            if loss is None:
                return spoil(super().forward(chunk, temperature, **settings))
            return super().forward(chunk, temperature, Spoilt(loss, spoil), **settings)

    x = experience(5, shares=(0.0, 0.0, 1.0))
    assert x.answer_length[4] > 1
    learner = Learner(Loss())
    lesson = learner.begin(x, rollout=9, updates=1, micro_batches=micro_batches, uids={1: "abc"})
    with pytest.raises(NonFiniteError, match="rollout 9: token 1 of an answer to problem abc has log-probability"):
        run_update(learner, lesson, 0, Broken(PolicyConfig(path=path, dtype="float64", head=head)))


@pytest.mark.parametrize("objective", ["Dapo", "Gspo"])
@pytest.mark.parametrize("head", HEADS)
def test_a_number_that_is_not_finite_stops_where_the_loss_reads_it(head, objective, path, monkeypatch):
    """The full head reads all tokens; the others those of the mask, where the statistics are known."""
    case = Case(updates=3, objective=objective)
    policy, learner = load(path, head=head), case.learner()
    lesson = learner.begin(
        experience(5, updates=3, shares=(0.0, 0.0, 1.0)), rollout=9, updates=3, micro_batches=1, uids={2: "a", 3: "a"}
    )
    learner.prepare_update(lesson, 0, policy, None)
    learner.prepare_update(lesson, 1, policy, None)
    (visit,) = lesson.plan.visits_of(1)
    chunk = lesson.experience.chunk(lesson.plan.train[visit])
    kept = chunk.read(lesson.experience.fork_mask)
    loss, _ = learner.loss(lesson, visit, policy)
    expected = torch.autograd.grad(loss, parameters(policy))
    for token, read in ((int(kept.nonzero()[-1]), True), (int((~kept).nonzero()[-1]), head == "full")):
        bad = (torch.arange(len(kept)) == token)[:, None]
        with monkeypatch.context() as patch:
            watch_head(patch, head, lambda hidden, bad=bad: torch.where(bad, torch.nan, hidden))
            if read:
                with pytest.raises(
                    NonFiniteError, match=rf"token {int(chunk.column[token])} of .* problem a has .* nan"
                ):
                    learner.loss(lesson, visit, policy)
                continue
            found, sums = learner.loss(lesson, visit, policy)
            assert found.item() == pytest.approx(loss.item(), rel=1e-12)
            assert apart(torch.autograd.grad(found, parameters(policy)), expected) < 1e-12
            assert sums["dropped_tokens"] == sums["leaked"] == 0


def test_a_score_of_ones_own_that_fails_on_one_rank_stops_all_of_them(path):
    class Own:
        def scores(self, entropy, logp, advantages, eligible):
            return entropy * torch.where(advantages > 1, torch.nan, 1.0)[:, None]

    shares = [experience(seed, problems=3, shares=(0.0, 0.0, 1.0)) for seed in (1, 2)]
    for share, advantage in zip(shares, (0.5, 1.5), strict=True):
        share.advantages.fill_(advantage)
    policies, failed = [load(path), load(path)], {}

    def train(ranks):
        learner = Learner(Loss(ForkSelection(keep=Own(), scope="micro_batch_rank")), ranks=ranks)
        lesson = learner.begin(shares[ranks.rank], rollout=0, updates=1, micro_batches=1)
        try:
            run_update(learner, lesson, 0, policies[ranks.rank])
        except ValueError as error:
            failed[ranks.rank] = str(error)

    on_ranks(2, train)
    assert "selection.keep: Own failed on another rank" in failed[0]
    assert "scores of Own are NaN or infinite" in failed[1]


def test_a_penalty_of_the_objective_reaches_answers_without_advantage(path):
    """KL-Cov on every token: tokens of zero advantage have a gradient from the second update on."""
    settings = Loss(ForkSelection(keep="all"), objectives.KlCov(1.0))
    x, policy, old = experience(5, updates=2, shares=(0.0, 1.0, 0.0)), load(path), load(path)
    learner = Learner(settings, length_limit=LIMIT, seed=SEED)
    lesson = learner.begin(x, rollout=ROLLOUT, updates=2, micro_batches=1)
    for update in (0, 1):
        expected = expected_update(x, update, settings, model=policy.model, old_model=old.model, noise_seed=NOISE_SEED)
        loss, gradients, sums = run_update(learner, lesson, update, policy)
        assert_same(lesson, update, loss, gradients, expected)
        assert sums["cov_tokens"] == sums["kept_tokens"] > 0
        take_step(policy, gradients)
    assert ((x.advantages == 0) & x.contributing).any()


@pytest.mark.parametrize("keep", ["top", "low_probability", "covariance"])
def test_contexts_are_compared_in_any_blocks(keep, path, monkeypatch):
    case, masks = Case(keep=keep, rho=0.5), []
    for block in (1, 40, 2**20):
        monkeypatch.setattr(choose, "_BLOCK", block)
        learner = case.learner()
        lesson = begin(learner, experience(9, problems=8, shares=(0.0, 0.0, 1.0)), case, 2)
        learner.prepare_update(lesson, 0, load(path), None)
        masks.append(lesson.experience.fork_mask)
    assert masks[0].any()
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


class Deaf(objectives.Dapo):
    """Trains all tokens, whatever the mask; while the ratio is 1 the loss is 0."""

    def __init__(self, separable):
        super().__init__()
        self.separable = separable

    def token_loss(self, tokens):
        found = super().token_loss(tokens)
        return replace(found, loss=-tokens.advantages * (tokens.logp - tokens.old_logp))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("updates", "kl"), [(1, 0.0), (1, 0.1), (3, 0.0), (3, 0.1)])
def test_a_loss_of_value_zero_outside_of_the_mask_is_seen(updates, kl, separable, head, path):
    """Also where a KL term of all tokens makes the head look at the dropped ones."""
    reference = moved_reference(path) if kl else None
    for micro_batches in (1, 2):
        learner = Learner(Loss(objective=Deaf(separable), kl=KLTerm(kl)))
        x = experience(5, updates=updates, shares=(0.0, 0.0, 1.0))
        lesson = learner.begin(x, rollout=0, updates=updates, micro_batches=micro_batches)
        policy = load(path, head=head)
        learner.prepare_update(lesson, 0, policy, reference)
        for visit in lesson.plan.visits_of(0):
            _, sums = learner.loss(lesson, visit, policy)
            chunk = lesson.experience.chunk(lesson.plan.train[visit])
            assert sums["leaked"] == (~chunk.read(lesson.experience.fork_mask)).sum() > 0
