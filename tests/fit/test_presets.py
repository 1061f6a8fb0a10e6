"""`preset:` in a selection: a name for all keys, left to right like every other setting, and gone once it is read."""

import dataclasses
import re

import pytest
import toy_runs
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
from lightning.pytorch import LightningModule
from toy_runs import TOY, contents, fit, run

from forklight.algo.selection.spec import PRESETS, ForkSelection
from forklight.callbacks.startup import describe
from forklight.cli import innermost, main
from forklight.presets import MODE, add_parser_mode, expand_arguments

KEYS = [field.name for field in dataclasses.fields(ForkSelection)]
SCORE = """
from torch import Tensor


class Surprise:
    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def scores(self, entropy: Tensor, logp: Tensor, advantages: Tensor, eligible: Tensor) -> Tensor:
        return (-logp) ** self.power
"""


@pytest.fixture
def own_score(tmp_path, monkeypatch):
    """Where Python looks for modules there is a score of the user's own."""
    (tmp_path / "my_scores.py").write_text(SCORE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_scores.Surprise"


@pytest.fixture
def overlay(tmp_path):
    """Writes a config file with a selection in it, and gives the arguments that name it."""
    names = iter(range(10))

    def write(selection, short=False):
        file = tmp_path / f"overlay-{next(names)}.yaml"
        inside = {"selection": selection}
        file.write_text(yaml.safe_dump({"model": inside if short else {"init_args": inside}}))
        return "--config", str(file)

    return write


@pytest.fixture(scope="module")
def parser():
    """Reads what the command line reads of a model, and no more."""
    add_parser_mode()
    parser = ArgumentParser(parser_mode=MODE, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False)
    return parser


@pytest.fixture
def read(parser):
    """The resolved model, read from arguments to the right of its class."""

    def read(*args):
        config = parser.parse_args(expand_arguments(["--model", "forklight.module.ForkGRPOModule", *args]))
        return yaml.safe_load(parser.dump(config, skip_none=False))["model"]["init_args"]

    return read


@pytest.fixture
def parsed(read):
    """The resolved selection, by key."""

    def selection(*args):
        found = read(*args)["selection"]
        assert list(found) == KEYS
        return found

    return selection


def printed(capsys, *args, config=TOY):
    """The config that the command line prints."""
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", str(config), *args, "--print_config"])
    out, err = capsys.readouterr()
    assert done.value.code == 0, err
    return out


def plain(name, **changes):
    """A preset's keys as a config has them."""
    keys = dataclasses.asdict(dataclasses.replace(PRESETS[name], **changes))
    return keys | {"masked_terms": list(keys["masked_terms"])}


# -- where a preset may stand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_stands_for_all_keys(name, parsed):
    assert parsed("--model.selection.preset", name) == plain(name)


@pytest.mark.parametrize("short", [False, True])
def test_a_preset_in_a_file(short, overlay, parsed):
    assert parsed(*overlay({"preset": "trl"}, short)) == plain("trl")
    assert parsed(*overlay({"rho": 0.1, "preset": "trl"}, short)) == plain("trl", rho=0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.selection.preset=trl", "--model.selection.rho=1.0e-3"],
        ["--model.init_args.selection.preset", "trl", "--model.init_args.selection.rho", "1e-3"],
        ["--model.selection", '{"preset": "trl", "rho": 0.001}'],
        ["--model.selection={rho: 1.0e-3, preset: trl}"],
        ["--model", '{"init_args": {"selection": {"preset": "trl", "rho": 1.0e-3}}}'],
    ],
)
def test_a_preset_among_the_arguments(arguments, parsed):
    assert parsed(*arguments) == plain("trl", rho=0.001)


def test_the_last_word_counts(overlay, parsed):
    base, change = overlay({"rho": 0.3, "rule": "threshold"}), overlay({"preset": "all-tokens"})
    scope, rho = ("--model.selection.scope", "sequence"), ("--model.selection.rho", "0.5")
    assert parsed(*base, *change, *scope) == plain("all-tokens", scope="sequence")
    assert parsed(*change, *base) == plain("all-tokens", rho=0.3, rule="threshold")
    assert parsed(*rho, "--model.selection.preset", "trl", *scope) == plain("trl", scope="sequence")
    assert parsed("--model.selection.preset", "trl", *rho, *change) == plain("all-tokens")


def test_a_printed_config_has_no_preset_and_reads_back_the_same(tmp_path, capsys):
    first = printed(capsys, "--model.selection.preset", "paper-code", "--model.selection.masked_terms", "[policy,kl]")
    assert "preset" not in first
    file = tmp_path / "printed.yaml"
    file.write_text(first)
    assert printed(capsys, config=file) == first


def test_without_a_preset_nothing_changes(parsed):
    assert parsed() == plain("forklight")
    assert parsed("--model.selection", '{"rho": 0.5, "keep": "random"}') == plain("random-20", rho=0.5)


# -- all keys, and a score of one's own --------------------------------------------------------------------------------


def test_terms_and_rule_are_overridden(parsed):
    more = ("--model.selection.masked_terms", "[policy,kl]", "--model.selection.rule", "count")
    assert parsed("--model.selection.preset", "trl", *more) == plain("trl", masked_terms=("policy", "kl"), rule="count")


def test_temperature_is_a_word_or_a_number(parsed):
    assert parsed("--model.selection.temperature", "1")["temperature"] == 1.0
    again = ("--model.selection.temperature", "1", "--model.selection.temperature", "sampling")
    assert parsed(*again)["temperature"] == "sampling"


def test_a_score_of_ones_own_beside_and_after_a_preset(own_score, overlay, parsed):
    keep = {"class_path": own_score, "init_args": {"power": 2.0}}
    beside = overlay({"preset": "trl", "keep": keep})
    assert parsed(*beside) == plain("trl") | {"keep": keep}
    more = ("--model.selection.keep.power", "3")
    assert parsed(*beside, *more)["keep"]["init_args"] == {"power": 3.0}
    after = ("--model.selection.preset", "trl", "--model.selection.keep", own_score)
    assert parsed(*after)["keep"] == {"class_path": own_score, "init_args": {"power": 1.0}}
    assert parsed(*beside, "--model.selection.preset", "random-20") == plain("random-20")


def test_a_score_of_ones_own_trains(own_score, tmp_path, capsys):
    keep = ("--model.selection.keep", own_score, "--model.selection.keep.power", 2)
    run("fit", tmp_path / "run", "--trainer.fast_dev_run", "true", *keep)
    assert "top-20 but keep Surprise:" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_names_every_key_and_the_presets(capsys):
    with pytest.raises(SystemExit) as done:
        main(["fit", "--model.help", "forklight.module.ForkGRPOModule"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert [key for key in KEYS if f"--model.selection.{key} " not in text] == []
    words = re.findall(r"[\w`-]+", text)
    assert [name for name in ("`preset`", *PRESETS) if name not in words] == []


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(read):
    """The one line that a model is refused with."""

    def fails(*args):
        with pytest.raises((ArgumentError, ValueError)) as error:
            read(*args)
        message = innermost(str(error.value))
        assert "\n" not in message
        return message

    return fails


@pytest.mark.parametrize("where", ["arguments", "file"])
def test_the_command_line_refuses_an_unknown_preset_and_leaves_the_folder_alone(where, overlay, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    more = overlay({"preset": "tlr"}) if where == "file" else ("--model.selection.preset", "tlr")
    error = toy_runs.refused(capsys, run, "fit", folder, "--ckpt_path", "last", *more)
    assert "selection.preset must be one of " + ", ".join(PRESETS) in error
    assert "'tlr'" in error
    assert contents(folder) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.selection.preset", "tlr"],
        ["--model.selection.preset=tlr"],
        ["--model.selection", '{"preset": "tlr"}'],
        ["--model", '{"init_args": {"selection": {"preset": "tlr"}}}'],
        ["--model.selection.preset", "trl", "--model.selection.preset", "tlr"],
    ],
)
def test_an_unknown_preset_is_refused(arguments, refused):
    error = refused(*arguments)
    assert "selection.preset must be one of " + ", ".join(PRESETS) in error
    assert "'tlr'" in error


@pytest.mark.parametrize("value", ["tlr", None, ["trl"], {"trl": 1}, 3])
def test_an_unknown_preset_in_a_file_is_refused(value, refused, overlay):
    assert "selection.preset must be one of " + ", ".join(PRESETS) in refused(*overlay({"preset": value}))


@pytest.mark.parametrize("arguments", [["--model.selection.preset"], ["--model.selection.preset="]])
def test_a_preset_without_a_name_is_refused(arguments, refused):
    assert "selection.preset must be one of" in refused(*arguments)


def test_a_wrong_key_beside_a_preset_is_refused(refused, parsed, overlay):
    assert "roh" in refused(*overlay({"preset": "trl", "roh": 0.1}))
    assert "roh" in refused("--model.selection", '{"preset": "trl", "roh": 0.1}')
    assert "selection.rho" in refused("--model.selection", '{"preset": "trl", "rho": "x"}')
    keys = parsed("--model.selection.preset", "trl", "--model.selection.rho", "0")
    with pytest.raises(ValueError, match=r"selection\.rho must be above 0"):
        ForkSelection(**keys)


def test_what_is_no_yaml_is_refused(refused):
    assert "selection" in refused("--model.selection", '{"preset": ')


def test_a_preset_outside_of_a_selection_is_an_unknown_key(refused, tmp_path):
    assert "preset" in refused("--model.preset", "trl")
    assert "preset" in refused("--selection.preset", "trl")
    file = tmp_path / "wrong.yaml"
    file.write_text("model: {init_args: {policy: {preset: trl}}}")
    assert "preset" in refused("--config", str(file))


# -- a run, and its continuation ---------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_preset_and_not_with_another(tmp_path, capsys):
    folder = tmp_path / "run"
    fit(folder, "--model.selection.preset", "random-20", "--model.selection.rho", 0.1, steps=1)
    table = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert describe(ForkSelection(keep="random", rho=0.1)) in table
    kept = yaml.safe_load((folder / "config-0.yaml").read_text())["model"]["init_args"]["selection"]
    assert kept == {key: value for key, value in plain("random-20", rho=0.1).items() if value is not None}

    resume = ("--ckpt_path", "last")
    before = contents(folder)
    with pytest.raises(SystemExit):
        fit(folder, "--model.selection.preset", "bottom-80", *resume)
    error = capsys.readouterr().err
    assert "selection.keep: 'random' -> 'bottom'" in error
    assert "selection.rho: 0.1 -> 0.8" in error
    assert contents(folder) == before
    fit(folder, "--model.selection", '{"preset": "random-20", "rho": 0.1}', *resume)
    assert (folder / "checkpoints" / "update-00000002.ckpt").is_file()
    assert contents(folder)["config-1.yaml"] != b""
