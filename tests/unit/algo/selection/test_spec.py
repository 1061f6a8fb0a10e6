import json
import math
from pathlib import Path

import pytest

from forklight.algo.selection import ForkSelection
from forklight.algo.selection.spec import PRESETS, TokenScore

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "selection.json").read_text())
FIELDS = ("rho", "keep", "scope", "entropy_of", "rule", "eligible", "denominator", "masked_terms")
SCHEDULE = {"from": 1.0, "to": 0.2, "over_rollouts": 20}
TABLE = {
    "forklight": (SCHEDULE, "top", "update", "old", "count", "contributing", "selected", ("policy",)),
    "top-20": (0.2, "top", "update", "old", "count", "contributing", "selected", ("policy",)),
    "paper": (0.2, "top", "update", "current", "threshold", "contributing", "selected", ("policy",)),
    "paper-code": (0.2, "top", "micro_batch_rank", "current", "count", "answers", "micro_batch", ("policy",)),
    "trl": (0.2, "top", "micro_batch", "current", "threshold", "answers", "answer", ("policy", "entropy")),
    "all-tokens": (1.0, "all", "update", "old", "count", "contributing", "selected", ("policy",)),
    "random-20": (0.2, "random", "update", "old", "count", "contributing", "selected", ("policy",)),
    "bottom-80": (0.8, "bottom", "update", "old", "count", "contributing", "selected", ("policy",)),
}


class Own:
    def scores(self, entropy, logp, advantages, eligible):
        return entropy


@pytest.mark.parametrize("name", TABLE)
def test_preset(name):
    spec = ForkSelection.preset(name)
    assert tuple(getattr(spec, field) for field in FIELDS) == TABLE[name]
    assert spec.temperature == "sampling"
    assert spec.select_truncated


def test_there_are_no_other_presets_and_the_default_has_a_name():
    assert set(PRESETS) == set(TABLE)
    assert ForkSelection.preset("top-20") == ForkSelection()
    assert ForkSelection.preset("forklight") == ForkSelection(rho=SCHEDULE)
    with pytest.raises(ValueError, match=r"selection.preset must be one of forklight, top-20, .*, got 'papers'"):
        ForkSelection.preset("papers")


@pytest.mark.parametrize(
    ("keep", "entropy", "logp", "own"),
    [
        ("top", True, False, False),
        ("bottom", True, False, False),
        ("band", True, False, False),
        ("low_probability", False, True, False),
        ("covariance", False, True, False),
        ("entropy_times_advantage", True, False, False),
        ("abs_advantage", False, False, False),
        ("random", False, False, False),
        ("all", False, False, False),
        (Own(), True, True, True),
    ],
)
def test_what_a_score_needs(keep, entropy, logp, own):
    spec = ForkSelection(keep=keep)
    assert (spec.needs_entropy, spec.needs_logp, spec.own_score) == (entropy, logp, own)
    assert spec.needs_ranking == (entropy or logp)


def test_temperature_of_the_entropy():
    assert ForkSelection().entropy_temperature(0.6) == 0.6
    assert ForkSelection(temperature=1).entropy_temperature(0.6) == 1.0


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"rho": 0.0}, "selection.rho"),
        ({"rho": 1.01}, "selection.rho"),
        ({"rho": math.nan}, "selection.rho"),
        ({"keep": "most"}, "selection.keep"),
        ({"keep": 3}, "selection.keep"),
        ({"keep": ["top"]}, "selection.keep"),
        ({"scope": "batch"}, "selection.scope"),
        ({"entropy_of": "new"}, "selection.entropy_of"),
        ({"rule": "quantile"}, "selection.rule"),
        ({"temperature": 0}, "selection.temperature"),
        ({"temperature": math.inf}, "selection.temperature"),
        ({"temperature": math.nan}, "selection.temperature"),
        ({"temperature": "same"}, "selection.temperature"),
        ({"eligible": "prompts"}, "selection.eligible"),
        ({"denominator": "none"}, "selection.denominator"),
        ({"masked_terms": ()}, "selection.masked_terms"),
        ({"masked_terms": ("kl",)}, "selection.masked_terms"),
        ({"masked_terms": ("policy", "policy")}, "selection.masked_terms"),
        ({"masked_terms": ("policy", "loss")}, "selection.masked_terms"),
    ],
)
def test_wrong_specifications_are_refused_by_name(kwargs, name):
    with pytest.raises(ValueError, match=name):
        ForkSelection(**kwargs)


def test_own_score_is_a_protocol():
    assert isinstance(Own(), TokenScore)
    assert not isinstance("top", TokenScore)


@pytest.mark.parametrize("case", GOLDEN["kept"], ids=str)
def test_number_kept(case):
    assert ForkSelection(rho=case["rho"]).kept(case["n"]) == case["k"]
    assert ForkSelection(rho=case["rho"], keep="all").kept(case["n"]) == case["n"]
