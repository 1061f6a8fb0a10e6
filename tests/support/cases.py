"""Cases of a training update: what the choices of a config can be together, and how an update is run in a test."""

import copy
import functools
import itertools
import random
from dataclasses import dataclass, replace
from typing import get_args

import tiny
import torch
from oracle import expected_update

from forklight.algo import objectives
from forklight.algo.batch import Metrics
from forklight.algo.config import AlgorithmConfig
from forklight.algo.kl import KLConfig
from forklight.algo.noise import hash_bits
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection
from forklight.algo.selection.spec import Keep
from forklight.models import PolicyConfig, Reference
from forklight.models.heads import HeadName, all_stats
from forklight.training.update import Learner

HEADS = get_args(HeadName)
SEED, ROLLOUT = 7, 3
NOISE_SEED = int(hash_bits(SEED, ROLLOUT))
NARROW = ClipRange(low=0.05, high=0.08)
LIMIT = 8
TAU = 3.5
"""Nats; the toy policy has tokens above and below."""


@dataclass(frozen=True)
class Case:
    """A selection, an objective and what else decides about passes."""

    updates: int = 1
    keep: str = "top"
    scope: str = "update"
    eligible: str = "contributing"
    entropy_of: str = "old"
    rule: str = "count"
    balance: str = "none"
    keep_eos: bool = False
    relative_to: str = "none"
    denominator: str = "selected"
    masked_terms: tuple = ("policy",)
    select_truncated: bool = True
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
    def config(self):
        names = (
            "rho",
            "keep",
            "scope",
            "entropy_of",
            "rule",
            "balance",
            "keep_eos",
            "relative_to",
            "eligible",
            "denominator",
            "masked_terms",
            "select_truncated",
        )
        tau = TAU if self.rule == "absolute" else None
        selection = ForkSelection(**{name: getattr(self, name) for name in names}, temperature=self.at, tau=tau)
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
        kl = KLConfig(coef=self.kl_coef)
        return AlgorithmConfig(selection, objective, kl, self.entropy_coef, old_logp_from=self.old_logp_from)

    @property
    def valid(self):
        try:
            self.config.schedule(self.updates, 1)
        except ValueError:
            return False
        return self.dual is None or self.objective in WITH_DUAL

    @property
    def depends_on_micro_batches(self):
        return self.scope in ("micro_batch", "micro_batch_rank") or self.denominator == "micro_batch"

    def learner(self, **settings):
        return Learner(self.config, temperature=self.temperature, length_limit=LIMIT, seed=SEED, **settings)

    def expected(self, x, update, policy, old, reference=None, **settings):
        return expected_update(
            x,
            update,
            self.config,
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
    "keep": get_args(Keep),
    "scope": ("update", "rollout", "sequence", "micro_batch", "micro_batch_rank"),
    "eligible": ("contributing", "answers"),
    "entropy_of": ("old", "current"),
    "rule": ("count", "threshold", "absolute"),
    "balance": ("none", "outcome"),
    "keep_eos": (False, True),
    "relative_to": ("none", "position", "type"),
    "denominator": ("selected", "answer", "micro_batch"),
    "masked_terms": (("policy",), ("policy", "kl"), ("policy", "entropy"), ("policy", "kl", "entropy")),
    "select_truncated": (True, False),
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
        ("masked_terms", "kl_coef"): lambda terms, coef: "kl" in terms and not coef,
        ("denominator", "objective"): lambda by, name: (
            by
            not in {
                "Grpo": ("selected", "answer"),
                "DrGrpo": ("selected", "answer"),
                "Gspo": ("selected",),
                "Archer": ("answer",),
            }.get(name, CHOICES["denominator"])
        ),
        ("keep", "scope"): lambda keep, scope: keep in ("covariance", "abs_advantage") and scope == "sequence",
        ("keep", "rule"): lambda keep, rule: rule == "absolute" and keep != "top",
        ("keep", "balance"): lambda keep, by: by == "outcome" and keep in ("random", "all", "covariance"),
        ("keep", "keep_eos"): lambda keep, eos: eos and keep == "all",
        ("keep", "relative_to"): lambda keep, to: to != "none" and keep not in ("top", "bottom", "band"),
        ("scope", "balance"): lambda scope, by: (scope, by) == ("sequence", "outcome"),
        ("rule", "balance"): lambda rule, by: (rule, by) == ("absolute", "outcome"),
        ("rule", "relative_to"): lambda rule, to: rule == "absolute" and to != "none",
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


def default_sample(cases):
    """Every fourth case, and those that bring a value of a choice that no case of the sample before them has."""
    sample = cases[::4]
    for case in cases:
        if any(getattr(case, name) not in {getattr(one, name) for one in sample} for name in CHOICES):
            sample.append(case)
    return sample


CASES = covering_cases()
"""They hold every possible pair of values of two choices."""


_read = functools.cache(tiny.load)


def load(path, dtype="float64", **settings):
    """The policy in a folder that no test writes into: a copy of what was read once, in a fifth of the time."""
    return copy.deepcopy(_read(path, dtype, **settings))


@functools.cache
def moved_reference(path):
    """A reference near the policy, so that the KL is neither 0 nor cut; all tests share it."""
    reference = Reference(PolicyConfig(path=path, dtype="float64"))
    noise = torch.Generator().manual_seed(1)
    for parameter in reference.policy.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return reference


def parameters(policy):
    return list(policy.model.parameters())


def begin(learner, x, case, micro_batches, tokens=None):
    return learner.begin(x, rollout=ROLLOUT, updates=case.updates, micro_batches=micro_batches, tokens=tokens)


def run_update(learner, state, update, policy, reference=None):
    """Prepares an update and runs its micro-batches as Lightning does: gradients and loss add up, each divided by A."""
    learner.prepare_update(state, update, policy, reference)
    policy.zero_grad()
    total, combined = 0.0, Metrics({}, {})
    for number in state.plan.micro_batches_of(update):
        loss, metrics = learner.loss(state, number, policy)
        (loss / state.plan.micro_batches).backward()
        total += loss.item() / state.plan.micro_batches
        combined = combined.and_also(metrics)
    return total, [parameter.grad.clone() for parameter in parameters(policy)], tiny.flat(combined)


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


def with_sampler_logp(x, case, policy):
    """Where the case asks for it, log-probabilities of a sampler that does not quite agree with the policy."""
    if case.old_logp_from == "trainer":
        return x
    micro_batch, nan = x.micro_batch(torch.arange(len(x.problem_index))), torch.full(x.answer_mask.shape, torch.nan)
    found = policy(micro_batch, all_stats, temperature=case.temperature).logp
    noise = 0.1 * torch.randn(len(found), generator=torch.Generator().manual_seed(2))
    return replace(x, sampler_logp=micro_batch.write(nan, found + noise).float())


def autocast():
    """The precision context of `bf16-mixed`."""
    return torch.autocast("cpu", torch.bfloat16)
