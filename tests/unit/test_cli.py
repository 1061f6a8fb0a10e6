"""What the command line does before a verb begins: its help, and what it imports for it."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from forklight.cli import COMMANDS, LIGHTNING_VERBS, VERBS, main

HEAVY = {"torch", "torchmetrics", "transformers", "lightning", "datasets", "tensorboard", "vllm"}


def test_the_verbs_are_lightnings_and_one_per_file_of_commands():
    assert LIGHTNING_VERBS.keys() == LightningCLI.subcommands().keys()
    folder = Path(inspect.getfile(main)).parent / "commands"
    assert COMMANDS.keys() == {path.stem for path in folder.glob("*.py")} - {"__init__", "lightning_cli"}
    for name in COMMANDS:
        assert inspect.getdoc(getattr(import_module(f"forklight.commands.{name}"), name))


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_the_help_names_every_verb_and_says_what_it_does(word, capsys):
    with pytest.raises(SystemExit) as done:
        main([word])
    assert done.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f" {verb} {text}" in shown for verb, text in VERBS.items())


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["fti"], []])
def test_what_needs_no_model_loads_nothing_of_one(arguments):
    code = f"""
import sys
from forklight.cli import main
try:
    main({arguments})
finally:
    print("loaded:", sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_one_verb_has_the_keys_that_it_has_beside_the_others(capsys):
    """The parser of a verb is built alone where the verb comes first, beside the others where an option does."""
    shown = []
    for arguments in (["fit", "--print_config"], ["--print_config", "fit"]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 0
        shown.append(yaml.safe_load(capsys.readouterr().out))
    assert "trainer" in shown[0]
    assert shown[1] == {"fit": shown[0]}
