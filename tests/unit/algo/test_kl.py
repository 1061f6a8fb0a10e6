import json
import math
from pathlib import Path

import pytest
import torch

from forklight.algo.kl import KLConfig, kl_estimate

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "losses.json").read_text())["kl"]
ESTIMATORS = ("k1", "k2", "k3")
ONE = torch.ones(1).bool()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_hand_worked(case, estimator):
    logp = torch.tensor([case["policy"]], dtype=torch.float64).log().requires_grad_()
    kl = kl_estimate(logp, torch.tensor([case["reference"]], dtype=torch.float64).log(), ONE, estimator)
    kl.sum().backward()
    assert kl.item() == pytest.approx(case[estimator], abs=1e-15)
    assert logp.grad.item() == pytest.approx(case[f"{estimator}_grad"], abs=1e-15)


def test_k3_resolves_small_differences_in_float32():
    logp, ref_logp = torch.tensor([-1.0]), torch.tensor([-1.0 + 2**-14])
    assert kl_estimate(logp, ref_logp, ONE, "k3").item() == pytest.approx(2**-29, rel=1e-3)


def test_mean_gradients_are_what_the_documentation_says():
    """The exact expectation over a vocabulary of 7, tokens weighted by the policy that samples them."""
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    logp, ref_logp = logits.log_softmax(0), ref_logits.log_softmax(0)
    policy = logp.detach().exp()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    reverse = gradient((logp.exp() * (logp - ref_logp)).sum())
    forward = gradient((ref_logp.exp() * (ref_logp - logp)).sum())
    expected = {"k1": torch.zeros(7, dtype=torch.float64), "k2": reverse, "k3": forward}
    for estimator in ESTIMATORS:
        estimates = kl_estimate(logp, ref_logp, torch.ones(7).bool(), estimator)
        torch.testing.assert_close(gradient(policy @ estimates), expected[estimator], rtol=1e-12, atol=1e-12)
        if estimator != "k2":
            torch.testing.assert_close(policy @ estimates, policy @ (logp - ref_logp), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("junk", [math.inf, -math.inf, math.nan])
def test_tokens_outside_the_mask_have_no_influence(estimator, junk):
    logp = torch.tensor([-1.0, junk, -2.0]).requires_grad_()
    kl = kl_estimate(logp, torch.tensor([-1.5, -1.0, junk]), torch.tensor([True, False, False]), estimator)
    kl.sum().backward()
    assert kl[1:].tolist() == logp.grad[1:].tolist() == [0, 0]
    assert kl[0].isfinite()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [0, 3])
def test_empty_mask_gives_connected_zeros(estimator, n):
    logp = torch.ones(n).requires_grad_()
    kl_estimate(logp, torch.zeros(n), torch.zeros(n).bool(), estimator).sum().backward()
    assert torch.equal(logp.grad, torch.zeros(n))


def test_extreme_ratios_stay_finite():
    logp = torch.tensor([-1000.0]).requires_grad_()
    kl = kl_estimate(logp, torch.tensor([-5.0]), ONE, "k3")
    kl.sum().backward()
    assert kl.isfinite().all()
    assert logp.grad.isfinite().all()


def test_wrong_arguments_are_refused():
    row, mask = torch.zeros(3), torch.ones(3).bool()
    with pytest.raises(TypeError, match="bool"):
        kl_estimate(row, row, mask.long(), "k3")
    with pytest.raises(ValueError, match="one shape"):
        kl_estimate(row, row[:2], mask, "k3")
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(row, row, mask, "k4")


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"coef": -0.1}, "coef"),
        ({"coef": math.inf}, "coef"),
        ({"coef": math.nan}, "coef"),
        ({"estimator": "k4"}, "estimator"),
        ({"placement": "advantage"}, "placement"),
        ({"refresh_every_rollouts": -1}, "refresh_every_rollouts"),
    ],
)
def test_wrong_terms_are_refused_by_name(kwargs, name):
    with pytest.raises(ValueError, match=rf"model\.kl\.{name}"):
        KLConfig(**kwargs)


def test_there_is_no_term_by_default():
    assert KLConfig() == KLConfig(coef=0.0, estimator="k3", placement="loss", refresh_every_rollouts=0)
