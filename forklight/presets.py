"""The key `preset` of a `selection:`: a name that stands for all keys of the selection, where it is written.

It exists while arguments and files are read, and nowhere after: what is parsed, kept and printed are the keys.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from forklight.algo.spec import ForkSelection

MODE = "forklight"
"""The parser mode of the command line: YAML as jsonargparse reads it, without presets."""

_OPTION = re.compile(r"(?P<selection>--\w[\w.]*\.selection)(?P<preset>\.preset)?(=(?P<value>.*))?", re.DOTALL)


def add_parser_mode() -> None:
    """Makes `parser_mode=MODE` known to jsonargparse; again is no harm."""
    read = get_loader("yaml")
    set_loader(MODE, lambda text: expand(read(text)), exceptions=(yaml.YAMLError,))


def expand(config: Any) -> Any:
    """Puts the keys of the preset in place of every `preset` in a mapping under a key `selection`.

    Args:
        config: of mappings, lists and values; not changed.

    Returns:
        The same without presets; keys beside a `preset` have their own values.

    Raises:
        ValueError: there is no preset of that name.
    """
    if isinstance(config, list):
        return [expand(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {key: _resolved(value) if key == "selection" else expand(value) for key, value in config.items()}


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Puts the keys of the preset in place of it, in `--X.selection.preset NAME` and `--X.selection '{preset: NAME}'`.

    Args:
        arguments: of a command line; `--key value` and `--key=value` are alike.

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
    """The text of a selection without preset; what is no YAML is left to the parser, which says so."""
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
    return {**preset, "terms": list(preset["terms"]), **beside}  # as a file has it


def _has_preset(selection: Any) -> bool:
    return isinstance(selection, dict) and "preset" in selection
