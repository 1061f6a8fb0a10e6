import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import flat

from forklight.algo.correction import CorrectionConfig, correction_weights, mismatch_metrics

METHODS = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
logps = st.floats(-4, 0)
answers_of = st.lists(st.lists(st.tuples(logps, logps), min_size=1, max_size=6), min_size=1, max_size=5)
specs = st.builds(CorrectionConfig, st.sampled_from(METHODS), low=st.floats(0, 1), high=st.floats(1, 10))


def mismatch(logp, sampler_logp, mask):
    """The metrics by name."""
    return flat(mismatch_metrics(logp, sampler_logp, mask))


def tensors(answers, dtype=torch.float64):
    """Flat log-probabilities and the row of every token."""
    pairs = torch.tensor([pair for answer in answers for pair in answer], dtype=dtype)
    row = torch.tensor([i for i, answer in enumerate(answers) for _ in answer])
    return pairs[:, 0], pairs[:, 1], row


def naive_weights(answers, spec):
    """Token by token with Python floats, products as products."""
    weights = []
    for answer in answers:
        ratios = [math.exp(logp - sampler) for logp, sampler in answer]
        if spec.method.startswith("sequence"):
            ratios = [math.prod(ratios)] * len(ratios)
        for ratio in ratios:
            if spec.method.endswith("truncate"):
                weights.append(min(ratio, spec.high))
            else:
                weights.append(ratio if spec.low <= ratio <= spec.high else 0.0)
    return torch.tensor(weights, dtype=torch.float64)


def off_the_edges(answers, spec):
    """No ratio or product so close to a bound that rounding decides."""
    logs = [[logp - sampler for logp, sampler in answer] for answer in answers]
    values = [sum(log) for log in logs] if spec.method.startswith("sequence") else [x for log in logs for x in log]
    return all(abs(math.exp(v) - bound) > 1e-9 for v in values for bound in (spec.low, spec.high))


@settings(deadline=None, max_examples=150)
@given(answers_of, specs)
def test_naive_twin(answers, spec):
    if not off_the_edges(answers, spec):
        return
    logp, sampler_logp, row = tensors(answers)
    weights = correction_weights(logp, sampler_logp, row, len(answers), spec)
    torch.testing.assert_close(weights, naive_weights(answers, spec), rtol=1e-12, atol=1e-300)


@settings(deadline=None, max_examples=100)
@given(answers_of, specs, st.sampled_from([torch.float32, torch.float64]))
def test_bounds_and_one_weight_per_answer(answers, spec, dtype):
    logp, sampler_logp, row = tensors(answers, dtype)
    weights = correction_weights(logp, sampler_logp, row, len(answers), spec)
    assert weights.dtype == dtype
    rounding = 1 + 1e-6
    assert (weights >= 0).all() and (weights <= spec.high * rounding).all()
    if spec.method.endswith("mask"):
        assert ((weights == 0) | (weights * rounding >= spec.low)).all()
    if spec.method.startswith("sequence"):
        first = torch.stack([weights[row == i][0] for i in range(len(answers))])
        assert torch.equal(weights, first[row])


@settings(deadline=None, max_examples=60)
@given(answers_of, specs, st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_exactly_one_where_the_two_agree(answers, spec, everywhere, dtype):
    logp, sampler_logp, row = tensors(answers, dtype)
    agree = torch.ones_like(row, dtype=torch.bool) if everywhere else row == 0
    weights = correction_weights(torch.where(agree, sampler_logp, logp), sampler_logp, row, len(answers), spec)
    assert (weights[agree] == 1).all()


@settings(deadline=None, max_examples=80)
@given(answers_of, specs, st.randoms(use_true_random=False))
def test_the_order_of_answers_and_tokens_does_not_matter(answers, spec, random):
    if not off_the_edges(answers, spec):
        return
    logp, sampler_logp, row = tensors(answers)
    expected = correction_weights(logp, sampler_logp, row, len(answers), spec)
    order = torch.tensor(random.sample(range(len(row)), len(row)))
    number = torch.tensor(random.sample(range(len(answers)), len(answers)))
    actual = correction_weights(logp[order], sampler_logp[order], number[row][order], len(answers), spec)
    torch.testing.assert_close(actual, expected[order], rtol=1e-12, atol=1e-300)


@settings(deadline=None, max_examples=80)
@given(answers_of, specs)
def test_answers_do_not_see_each_other(answers, spec):
    logp, sampler_logp, row = tensors(answers)
    together = correction_weights(logp, sampler_logp, row, len(answers), spec)
    alone = [correction_weights(*tensors([answer]), 1, spec) for answer in answers]
    assert torch.equal(together, torch.cat(alone))


@settings(deadline=None, max_examples=60)
@given(answers_of, specs)
def test_no_gradient_flows_through_the_weights(answers, spec):
    logp, sampler_logp, row = tensors(answers)
    logp.requires_grad_()
    sampler_logp.requires_grad_()
    weights = correction_weights(logp, sampler_logp, row, len(answers), spec)
    assert not weights.requires_grad
    metrics = mismatch(logp, sampler_logp, torch.ones_like(row, dtype=torch.bool))
    assert not any(value.requires_grad for value in metrics.values())
    (weights * logp).sum().backward()
    assert torch.equal(logp.grad, weights) and sampler_logp.grad is None


@settings(deadline=None, max_examples=100)
@given(answers_of, st.data())
def test_metrics_are_the_naive_sums_and_add_over_micro_batches(answers, data):
    logp, sampler_logp, row = tensors(answers)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))))
    whole = mismatch(logp, sampler_logp, mask)

    w = [math.exp(x) for x in (logp - sampler_logp)[mask].tolist()]
    naive = {
        "tokens": len(w),
        "weight_sum": sum(w),
        "weight_square_sum": sum(x * x for x in w),
        "kl_sum": sum(x - 1 - math.log(x) for x in w),
        "diff_sum": sum(abs(math.log(x)) for x in w),
        "ratio_max": max(w, default=0.0),
        "diff_max": max((abs(math.log(x)) for x in w), default=0.0),
    }
    parts = [mismatch(logp[row == i], sampler_logp[row == i], mask[row == i]) for i in range(len(answers))]
    assert whole["kl_sum"] >= 0
    assert whole.keys() == naive.keys()
    for name, value in whole.items():
        assert math.isclose(value, naive[name], rel_tol=1e-10, abs_tol=1e-12)
        values = [part[name].item() for part in parts]
        combined = max(values) if name.endswith("_max") else sum(values)
        assert math.isclose(value, combined, rel_tol=1e-12, abs_tol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=5), st.lists(st.floats(0.05, 1), min_size=5, max_size=5))
def test_kl_is_that_of_the_sampler_to_the_trainer(p, q):
    # every token of a small vocabulary once, weighted by how often the sampler draws it
    mu = torch.tensor(p, dtype=torch.float64) / sum(p)
    pi = torch.tensor(q[: len(p)], dtype=torch.float64) / sum(q[: len(p)])
    every = [mismatch(a[None], b[None], torch.tensor([True])) for a, b in zip(pi.log(), mu.log(), strict=True)]
    estimate = sum(m * metrics["kl_sum"] for m, metrics in zip(mu, every, strict=True))
    torch.testing.assert_close(estimate, (mu * (mu.log() - pi.log())).sum(), rtol=1e-9, atol=1e-12)
