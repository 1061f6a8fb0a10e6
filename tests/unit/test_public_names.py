"""The names that other people's code relies on keep their signatures."""

import dataclasses
import inspect

import pytest

from forklight import cli, metrics, verify
from forklight.algo import advantages, logprobs, selection
from forklight.algo.logprobs.transform import PLAIN

SIGNATURES = {
    cli.main: "(args: collections.abc.Sequence[str] | None = None) -> None",
    selection.ForkSelection.preset: "(name)",
    selection.select: (
        "(entropy, answer_mask, spec, *, logp=None, advantages=None, sequence_id=None, seed=0, reduce=None, "
        "always=None)"
    ),
    logprobs.token_stats: (
        f"(hidden, weight, targets, temperature=1.0, entropy_temperature=None, entropy_grad=False, transform={PLAIN!r})"
    ),
    logprobs.selected_logprob: f"(hidden, weight, targets, rows, temperature=1.0, known=None, transform={PLAIN!r})",
    logprobs.selected_policy_loss: f"(hidden, weight, targets, rows, token_loss, temperature=1.0, transform={PLAIN!r})",
    advantages.group_advantages: "(rewards, *, scale='std', eps=1e-06)",
    verify.MathVerifier: "(extraction='box', timeout=3.0, memory_limit=2.0, workers=None)",
    verify.CountdownVerifier: "()",
    verify.IntegerVerifier: "(low=0, high=999, extraction='box')",
    verify.ChoiceVerifier: "(choices='ABCDE', extraction='box')",
    verify.FormatVerifier: "(box=True, thought=False, most_after_box=20)",
    verify.WeightedVerifier: "(parts)",
    verify.FunctionVerifier: (
        "(function, right_from=1.0, timeout=3.0, memory_limit=2.0, workers=None, completions=None)"
    ),
    verify.ReasoningGymVerifier: "(part='tag', right_from=1.0, timeout=10.0, memory_limit=2.0, workers=None)",
    metrics.pass_at_k: "(n, c, k)",
    metrics.PassAtK: "(k)",
    metrics.AvgAtK: "()",
    metrics.MajAtK: "(k=None)",
    metrics.paired_difference: "(a, b, *, confidence=0.95, resamples=10000, seed=0)",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__name__)
def test_signature(function):
    found = inspect.signature(function)
    bare = found.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert SIGNATURES[function] in (str(found), str(bare))


def test_selection_fields():
    fields = {field.name: field.default for field in dataclasses.fields(selection.ForkSelection)}
    assert fields == {
        "rho": 0.2,
        "keep": "top",
        "scope": "update",
        "entropy_of": "old",
        "rule": "count",
        "tau": None,
        "balance": "none",
        "keep_eos": False,
        "relative_to": "none",
        "temperature": "sampling",
        "eligible": "contributing",
        "denominator": "selected",
        "masked_terms": ("policy",),
        "select_truncated": True,
    }
