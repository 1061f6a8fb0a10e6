"""The key `preset` of a `selection:`: a name that stands for all keys of the selection.

It is replaced while arguments and files are read: parsed, saved and printed configs have the keys only.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from forklight.algo.selection.spec import ForkSelection

MODE = "forklight"
"""The parser mode of the command line: YAML as jsonargparse reads it, without presets."""

_OPTION = re.compile(r"(?P<selection>--\w[\w.]*\.selection)(?P<preset>\.preset)?(=(?P<value>.*))?", re.DOTALL)


def add_parser_mode() -> None:
    """Registers `parser_mode=MODE` with jsonargparse; may be called more than once."""
    read = get_loader("yaml")
    set_loader(MODE, lambda text: expand(read(text)), exceptions=(yaml.YAMLError,))


def expand(config: Any) -> Any:
    """Replaces every `preset` in a mapping under a key `selection` by the keys of that preset.

    Args:
        config: nested mappings, lists and values; not changed.

    Returns:
        The same without presets; keys next to a `preset` override it.

    Raises:
        ValueError: there is no preset of that name.
    """
    if isinstance(config, list):
        return [expand(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {key: _resolved(value) if key == "selection" else expand(value) for key, value in config.items()}


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Replaces presets by their keys in `--X.selection.preset NAME` and `--X.selection '{preset: NAME}'`.

    Args:
        arguments: of a command line; `--key value` and `--key=value` are both read.

    Returns:
        The arguments in their order, so that keys after a preset override it, and a preset overrides keys before it.

    Raises:
        ValueError: there is no preset of that name.
    """
    return list(_expanded(iter(arguments)))


def _expanded(arguments: Iterator[str]) -> Iterator[str]:
    for argument in arguments:
        option = _OPTION.fullmatch(argument)
        if option is None:
            yield argument
            continue
        value = option["value"] if option["value"] is not None else next(arguments, "")
        if option["preset"]:
            yield f"{option['selection']}={json.dumps(_resolved({'preset': value}))}"
        else:
            yield f"{option['selection']}={_inline(value)}"


def _inline(text: str) -> str:
    """The text of a selection without its preset; text that is no YAML is left to the parser, which refuses it."""
    try:
        selection = get_loader("yaml")(text)
    except yaml.YAMLError:
        return text
    return json.dumps(_resolved(selection)) if _has_preset(selection) else text


def _resolved(selection: Any) -> Any:
    if not _has_preset(selection):
        return expand(selection)
    beside = {key: value for key, value in selection.items() if key != "preset"}
    preset = asdict(ForkSelection.preset(str(selection["preset"])))
    return {**preset, "masked_terms": list(preset["masked_terms"]), **beside}  # as a file has it


def _has_preset(selection: Any) -> bool:
    return isinstance(selection, dict) and "preset" in selection
