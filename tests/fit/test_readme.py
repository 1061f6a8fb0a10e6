"""The pages of the documentation: their commands are valid, and their tables name what there is."""

import inspect
import re
import shlex
import sys
from dataclasses import fields
from inspect import isabstract, signature
from typing import get_args

import pytest
from pages import CONFIGS, PAGES, README, ROOT, blocks, commands, doc, named_block, table, tables
from toy_runs import curves, fit

from forklight import verify
from forklight.algo import objectives
from forklight.algo.advantages import AdvantageName
from forklight.algo.correction import Method
from forklight.algo.objectives.base import Objective
from forklight.algo.ratios import ClipRange
from forklight.algo.selection.rho import RhoSchedule
from forklight.algo.selection.spec import PRESETS, ForkSelection
from forklight.callbacks.health import HealthGuards
from forklight.callbacks.startup import describe
from forklight.cli import main
from forklight.data.benchmarks import BENCHMARKS
from forklight.data.datamodule import MathDataModule
from forklight.data.problems import ProblemFile
from forklight.data.sets import ProtocolName, protocol
from forklight.rollout.config import RolloutConfig

COMMANDS = sorted({command for page in PAGES if page != CONFIGS for command in commands(page.read_text())})
OBJECTIVES = {
    name: kind
    for name, kind in vars(objectives).items()
    if name[0] != "_" and isinstance(kind, type) and issubclass(kind, Objective) and not isabstract(kind)
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_valid(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.yaml").write_text(named_block("mine.yaml", README.read_text()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main([*shlex.split(command, comments=True)[1:], "--print_config"])
    assert done.value.code == 0, capsys.readouterr().err


def test_there_are_commands():
    assert len(COMMANDS) > 25


def test_every_key_of_the_selection_and_its_default():
    *keys, preset = table("key of `model.selection`", doc("selection"))
    assert preset[0] == "preset"
    yaml = {"None": "null", "True": "true", "False": "false"}
    assert {key: default for key, _, default in keys} == {
        field.name: "[policy]" if field.name == "masked_terms" else yaml.get(str(field.default), str(field.default))
        for field in fields(ForkSelection)
    }


def test_every_preset():
    rows = {name: row for name, *row in table("`preset`", doc("selection"))}
    assert list(rows) == list(PRESETS)
    for name, (ranked_together, kept, entropy_of, eligible, denominator, terms, _) in rows.items():
        spec = PRESETS[name]
        if spec.keep != "all":
            share = spec.share if spec.schedule is None else spec.schedule.to
            first = "" if spec.schedule is None else "all, falling over 20 rollouts to "
            assert kept == first + f"{spec.keep} {share:.0%}, {spec.rule}".replace("%", " %")
            assert ranked_together == {
                "update": "update, all ranks",
                "micro_batch": "micro-batch, all ranks",
                "micro_batch_rank": "micro-batch of a rank",
            }.get(spec.scope)
        assert entropy_of == (spec.entropy_of if spec.needs_entropy else "")
        assert (eligible, denominator, terms) == (spec.eligible, spec.denominator, ", ".join(spec.masked_terms))


def test_the_schedule_of_the_default():
    assert PRESETS["forklight"].schedule == RhoSchedule(start=1.0, to=0.2, over_rollouts=20, shape="linear")


def test_the_row_of_the_startup_table():
    shown = describe(ForkSelection(**{**vars(PRESETS["trl"]), "rho": 0.1}))
    assert shown in doc("selection").replace(",\n", ", ")


def test_every_objective_its_overlay_and_its_defaults():
    rows = {name: row for name, *row in table("class | overlay", doc("objectives"))}
    assert set(rows) == set(OBJECTIVES)
    means = {"token": "mean over tokens", "constant": "sum / (answers * max_new_tokens)"}
    for name, (overlay, _, number, parameters) in rows.items():
        objective = OBJECTIVES[name]()
        assert (ROOT / "configs" / "overlay" / f"{overlay}.yaml").is_file()
        if objective.aggregate == "sequence":
            assert number in ("mean over answers of their mean over tokens", "as Grpo")
        else:
            assert number == means[objective.aggregate]
        given = dict(re.findall(r"(\w+) ([-\de.]+(?:, [-\de.]+)?)", parameters))
        for key, value in given.items():
            values = [float(part) for part in value.split(", ")]
            holder = objective if hasattr(objective, key) else objective.covariance
            default = getattr(holder, key.removeprefix("penalised_"))
            assert values == ([default.low, default.high] if isinstance(default, ClipRange) else [default]), key


def test_every_overlay():
    _, rows = tables("overlay | sets", CONFIGS.read_text())
    names = [row[0].removesuffix(" *") for row in rows]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "configs" / "overlay").glob("*.yaml"))


def test_every_verifier_and_its_defaults():
    for name, _, parameters in table("class in `forklight.verify`", doc("rewards")):
        defaults = {
            key: plain(parameter.default) for key, parameter in signature(getattr(verify, name)).parameters.items()
        }
        given = dict(part.partition(" ")[::2] for part in parameters.split(", ") if part)
        assert {key: value or str(inspect.Parameter.empty) for key, value in given.items()} == defaults, name
    verifiers = {name for name in verify.__all__ if name.endswith("Verifier")} - {"Verifier"}
    assert {row[0] for row in table("class in `forklight.verify`", doc("rewards"))} == verifiers


def test_every_benchmark():
    for name, problems, copy, verifier in table("`name`", doc("evaluation")):
        facts = BENCHMARKS[name]
        assert problems == " or ".join(map(str, facts.sizes))
        assert copy == facts.hub.path
        assert type(facts.verifier()).__name__ == verifier
    assert [row[0] for row in table("`name`", doc("evaluation"))] == list(BENCHMARKS)


def test_every_protocol():
    rows = {name.partition(",")[0]: row for name, *row in table("`protocol`", doc("evaluation"))}
    assert set(rows) == {*get_args(ProtocolName), "none"}
    for name, (answers, temperature, top_p) in rows.items():
        small, large = (protocol(None if name == "none" else name, small) for small in (True, False))
        same = small.answers == large.answers
        assert answers == (
            f"{large.answers}" if same else f"{small.answers} on AIME and AMC, {large.answers} on the others"
        )
        assert (float(temperature), float(top_p), 0) == large[1:] == small[1:]


def plain(value):
    """A default as a page has it."""
    return str(value).replace("None", "null").replace("True", "true").replace("False", "false")


def test_every_key_of_the_rollout_and_its_default():
    rows = [(key, default) for key, _, default in table("key of `model.rollout`", doc("sampling"))]
    pairs = [pair for keys, defaults in rows for pair in zip(keys.split(", "), defaults.split(", "), strict=True)]
    assert dict(pairs) == {field.name: plain(field.default) for field in fields(RolloutConfig)}


def test_every_key_of_the_data_and_its_default():
    named, given = [], {}
    for keys, _, defaults in table("key of `data`", doc("data")):
        named += keys.split(", ")
        if defaults.replace(", ", "").isdigit():
            given |= dict(zip(keys.split(", "), map(int, defaults.split(", ")), strict=True))
    parameters = signature(MathDataModule).parameters
    assert named == list(parameters)
    numbers = {name: parameter.default for name, parameter in parameters.items() if type(parameter.default) is int}
    assert given == numbers


def test_every_field_of_a_file_of_problems():
    named = [key for keys, *_ in table("field | meaning", doc("data")) for key in keys.split(", ")]
    assert sorted(named) == sorted(field.name for field in fields(ProblemFile))


def test_the_reward_function_of_the_page(tmp_path, monkeypatch):
    """Copied out of the page, config and all, it trains."""
    code = named_block("my_rewards.py", doc("rewards"))
    (config,) = blocks("yaml", doc("rewards"))
    (tmp_path / "my_rewards.py").write_text(code)
    (tmp_path / "rewards.yaml").write_text(config)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    assert len(code.splitlines()) + len(config.splitlines()) < 15
    fit(tmp_path / "run", "--config", tmp_path / "rewards.yaml", "--model.rollout.dynamic_sampling", "false", steps=1)
    found = curves(tmp_path / "run")
    assert found["verify/reason/short_and_right"]
    assert [value for _, value in found["verify/unjudged"]] == [0]


def test_every_advantage_and_correction():
    advantages = [row[0].removesuffix(" (default)") for row in table("value | advantage", doc("objectives"))]
    assert sorted(advantages) == sorted(get_args(AdvantageName))
    corrections = [row[0].removesuffix(" (default)") for row in table("`correction.method`", doc("objectives"))]
    assert corrections == list(get_args(Method))


def test_every_guard():
    rows = {name: float(default) for name, _, _, default in table("rule of `guards`", doc("curves"))}
    guards = signature(HealthGuards).parameters.values()
    assert rows == {guard.name: guard.default.threshold for guard in guards}


def test_every_curve_is_in_the_table(tmp_path):
    more = ("--data.updates_per_rollout", 2, "--model.policy.random_init", "false", "--model.entropy_coef", 0.01)
    fit(tmp_path / "run", *more, "--model.kl.coef", 0.1, steps=2)
    held = ("--model.objective", "KlCov")
    fit(tmp_path / "reward", *more, *held, "--model.kl", "{coef: 0.1, placement: reward}", steps=1)
    named = set()
    for tags, *_ in table("tag | what", doc("curves")):
        group, _, names = tags.partition("/")
        named |= {f"{group}/{name}" for name in names.split(", ")}
    falling = ("--model.selection.rho", '{"from": 1.0, "to": 0.2, "over_rollouts": 2}')
    fit(tmp_path / "falling", *falling, steps=1)
    found = {tag for run in ("run", "reward", "falling") for tag in curves(tmp_path / run)}
    found = {re.sub(r"^(verify/(?:reason|rule|reward_length)/).*", r"\1...", tag) for tag in found}
    found = {re.sub(r"^(time/(?:share|passes)_).*", r"\1...", tag) for tag in found}
    found = {re.sub(r"^(signal/(?:gradient|tokens)/).*", r"\1...", tag) for tag in found}
    scores = {tag.removeprefix("val/").removeprefix("<set>/") for tag in named if tag.startswith("val/")}
    assert {tag for tag in found if not tag.startswith("val/")} - named == set()
    found_scores = {tag.removeprefix("val/toy/") for tag in found if tag.startswith("val/toy/")}
    found_scores = {re.sub(r"^(rule|reward_length)/.*", r"\1/...", tag) for tag in found_scores}
    assert {re.sub(r"^(pass|maj)@\d+", r"\1@k", tag).replace("@2", "@n") for tag in found_scores} == scores
    groups = ("train/", "fork/", "signal/", "mismatch/", "verify/", "time/")
    # every answer is cut, and none has a box
    absent = {f"signal/{of}_{part}" for of in ("share", "kept") for part in ("whole", "before_box", "behind_box")}
    assert {tag for tag in named if tag.startswith(groups)} - found == {"fork/entropy", "time/mfu"} | absent
