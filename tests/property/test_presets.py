"""`preset` in a selection, as a function of configs and arguments."""

import copy
import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.selection.spec import PRESETS
from forklight.presets import expand, expand_arguments

PRESET = st.sampled_from(sorted(PRESETS))
BESIDE = st.fixed_dictionaries(
    {},
    optional={
        "rho": st.floats(0.01, 1),
        "scope": st.sampled_from(["update", "sequence"]),
        "temperature": st.sampled_from(["sampling", 1.0]),
        "masked_terms": st.just(["policy", "kl"]),
        "keep": st.just({"class_path": "my_scores.Surprise"}),
    },
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(PRESET, BESIDE, VALUES, st.booleans())
def test_keys_beside_a_preset_win_in_any_order(preset, beside, around, first):
    selection = {"preset": preset, **beside} if first else {**beside, "preset": preset}
    config = {"a": [around, {"b": {"selection": selection}}]}
    before = copy.deepcopy(config)
    found = expand(config)
    assert config == before
    assert found["a"][0] == around
    resolved = found["a"][1]["b"]["selection"]
    assert resolved == {
        **dataclasses.asdict(PRESETS[preset]),
        "masked_terms": list(PRESETS[preset].masked_terms),
        **beside,
    }
    assert expand(found) == found


@given(VALUES, BESIDE)
def test_a_config_without_presets_stays_as_it_is(around, beside):
    config = {"preset": around, "x": {"selection": beside}, "selection": "sampling"}
    assert expand(config) == config


@given(st.lists(st.text(max_size=12) | st.sampled_from(["--model.selection.rho", "--trainer.max_steps=3", "fit"])))
def test_other_arguments_stay_as_they_are(arguments):
    assert expand_arguments(arguments) == arguments
