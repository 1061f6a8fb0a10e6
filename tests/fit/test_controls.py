"""The controls of the shipped Countdown config: five selections on the same answers, and what tells their curves apart.

`pytest -s` prints a table of them.
"""

import json
import math
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
from toy_runs import curves, run

from forklight.algo.selection.spec import ForkSelection

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
PROBLEMS = {"class_path": "forklight.data.countdown_sets.CountdownProblems", "init_args": {"size": 1000}}
UPDATES, RHO, LONGEST = 30, 0.2, 16
CONTROLS = {
    "top": (),
    "random": ("--model.selection.preset", "random-20"),
    "bottom": ("--model.selection.keep", "bottom"),
    "all": ("--model.selection.preset", "all-tokens"),
    "sequence": ("--config", CONFIGS / "overlay" / "select-sequence.yaml"),
}
OF_A_MASK = "kept_share threshold entropy_kept entropy_dropped kept_share_min kept_share_max types types_share"
SHOWN = [
    *(f"fork/{name}" for name in [*OF_A_MASK.split(), "overlap_random", "overlap_previous"]),
    "train/ratio",
    "train/grad_norm",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Values by run and tag: the shipped policy, trained on few problems a rollout and one seed."""
    values = {}
    for name, more in CONTROLS.items():
        folder = tmp_path_factory.mktemp("controls") / name
        small = ("--trainer.max_steps", UPDATES, "--data.prompts_per_rollout", 6, "--data.val", "null")
        small = (*small, "--data.train", json.dumps([PROBLEMS]))
        quiet = ("--trainer.enable_progress_bar", "false")
        run("fit", folder, *small, *quiet, *more, config=CONFIGS / "countdown" / "grpo.yaml")
        values[name] = {tag: [value for _, value in points] for tag, points in curves(folder).items()}
    print("\n" + table(values))
    return values


def table(values):
    """Means over all updates, and the share of right answers in the last five."""
    lines = [f"{'':22}" + "".join(f"{name:>10}" for name in values)]
    for tag in SHOWN:
        row = (f"{fmean(v[tag]):10.4f}" if tag in v else f"{'-':>10}" for v in values.values())
        lines.append(f"{tag:22}" + "".join(row))
    right = (f"{fmean(v['rollout/right'][-5:]):10.4f}" for v in values.values())
    return "\n".join([*lines, f"{'rollout/right, last 5':22}" + "".join(right)])


def test_all_numbers_are_finite_and_all_updates_have_tokens(found):
    for name, values in found.items():
        assert all(math.isfinite(value) for points in values.values() for value in points), name
        assert values["rollout/empty_updates"] == [0.0] * UPDATES
        assert len(values["train/policy_loss"]) == UPDATES
        assert values["train/ratio"] == [1.0] * UPDATES, name  # on-policy: the old log-prob is the new one


def test_all_runs_start_from_the_same_answers_and_part(found):
    for tag in ("rollout/right", "rollout/answer_tokens", "fork/entropy_mean"):
        assert len({values[tag][0] for values in found.values()}) == 1, tag
    for one, other in combinations(found, 2):
        norms = [found[name]["train/grad_norm"][0] for name in (one, other)]
        assert abs(norms[0] - norms[1]) > 1e-3, (one, other)  # the same answers and advantages, other tokens
        a, b = found[one]["train/policy_loss"], found[other]["train/policy_loss"]
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-2, (one, other)
        assert found[one]["fork/entropy_mean"][1] != found[other]["fork/entropy_mean"][1], (one, other)


@pytest.mark.parametrize("name", ["top", "random", "bottom"])
def test_exactly_the_wanted_number_of_tokens_is_kept(name, found):
    kept = ForkSelection(rho=RHO).kept
    for tokens, share in zip(found[name]["train/tokens"], found[name]["fork/kept_share"], strict=True):
        assert tokens == kept(round(tokens / share))
        assert -1e-6 < share - RHO < share / tokens  # rounded up to a whole token


def test_all_keeps_every_token(found):
    values = found["all"]
    for tag in ("kept_share", "kept_share_min", "kept_share_max", "types_share", "overlap_random"):
        assert values[f"fork/{tag}"] == [1.0] * UPDATES, tag
    assert "fork/entropy_dropped" not in values
    assert values["fork/overlap_previous"] == [1.0] * (UPDATES - 1)
    assert fmean(values["train/tokens"]) == pytest.approx(5 * fmean(found["top"]["train/tokens"]), rel=0.05)


def test_a_sequence_keeps_its_own_share(found):
    kept = ForkSelection(rho=RHO).kept
    shares = {n: kept(n) / n for n in range(1, LONGEST + 1)}
    values = {tag: found["sequence"][f"fork/kept_share{tag}"] for tag in ("", "_min", "_max")}
    for share, low, high in zip(values[""], values["_min"], values["_max"], strict=True):
        assert any(low == pytest.approx(possible, abs=1e-6) for possible in shares.values())
        assert any(high == pytest.approx(possible, abs=1e-6) for possible in shares.values())
        assert RHO <= low <= share <= high
    spread = {name: fmean(v["fork/kept_share_max"]) - fmean(v["fork/kept_share_min"]) for name, v in found.items()}
    assert spread["sequence"] < 0.1
    # ranked over the whole update, some answers keep half of their tokens and others nothing
    for name in ("top", "random", "bottom"):
        assert spread[name] > spread["sequence"] + 0.1, name


def test_thresholds_are_those_of_entropies(found):
    for name in ("random", "all"):
        assert "fork/threshold" not in found[name]
    for name in ("top", "bottom", "sequence"):
        assert len(found[name]["fork/threshold"]) == UPDATES
    for top, bottom in zip(found["top"]["fork/threshold"], found["bottom"]["fork/threshold"], strict=True):
        assert top > bottom >= 0
    for name, sign in (("top", 1), ("bottom", -1)):
        kept, dropped = (found[name][f"fork/entropy_{of}"] for of in ("kept", "dropped"))
        for inside, threshold, outside in zip(kept, found[name]["fork/threshold"], dropped, strict=True):
            assert sign * inside >= sign * threshold >= sign * outside, name


def test_entropies_of_the_kept_tokens(found):
    for name, sign in (("top", 1), ("sequence", 1), ("bottom", -1)):
        kept, mean = found[name]["fork/entropy_kept"], found[name]["fork/entropy_mean"]
        assert all(sign * inside > sign * every for inside, every in zip(kept, mean, strict=True)), name
    whole = found["all"]
    assert whole["fork/entropy_kept"] == whole["fork/entropy_mean"]
    assert fmean(found["top"]["fork/entropy_kept"]) > fmean(found["sequence"]["fork/entropy_kept"])
    chance = found["random"]
    assert fmean(chance["fork/entropy_kept"]) == pytest.approx(fmean(chance["fork/entropy_mean"]), rel=0.1)
    assert fmean(chance["fork/entropy_dropped"]) == pytest.approx(fmean(chance["fork/entropy_mean"]), rel=0.1)


def test_overlaps_with_a_random_mask_are_chance(found):
    for name, values in found.items():
        assert fmean(values["fork/overlap_random"]) == pytest.approx(fmean(values["fork/kept_share"]), abs=0.03), name


def test_rules_are_more_stable_than_chance(found):
    chance = RHO / (2 - RHO)  # Jaccard index of two random masks
    assert fmean(found["random"]["fork/overlap_previous"]) == pytest.approx(chance, abs=0.03)
    for name in ("top", "bottom", "sequence"):
        assert fmean(found[name]["fork/overlap_previous"]) > 3 * chance, name


def test_types_are_a_part_of_all_types(found):
    for name in ("top", "bottom", "random", "sequence"):
        shares = found[name]["fork/types_share"]
        assert all(0 < share < 1 for share in shares), name
        for types, share in zip(found[name]["fork/types"], shares, strict=True):
            assert types / share == pytest.approx(round(types / share), abs=1e-3)
