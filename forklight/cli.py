"""The command line: `forklight VERB ...`. The first word decides what is imported."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from forklight.errors import EngineError, WeightSyncError

LIGHTNING_VERBS = {
    "fit": "Trains a policy.",
    "validate": "Evaluates a policy on the sets of `data.val`.",
    "test": "Evaluates a policy on the sets of `data.test`, or of `data.val` if there are none.",
    "predict": "Writes a policy's answers to a file.",
}
"""They share one parser, for the components that a config chooses by `class_path`."""

COMMANDS = {
    "compare": "Compares the scores of two evaluations, problem by problem.",
    "export": "Writes the policy of a checkpoint in transformers' format.",
}
"""The other verbs; each is a function in the file of the same name in `forklight.commands`."""

VERBS = LIGHTNING_VERBS | COMMANDS

_WRAPPING = re.compile(
    r"(- )?(Does not validate against any of the Union subtypes|Subtypes: |Errors:$|Given value type: |Given value: "
    r"|Expected a <class 'NoneType'>$|Expected a path but .* either not accessible or invalid$)"
)
"""Lines that jsonargparse adds to a reason: the types it tried, and the component's value."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: the arguments, such as `["fit", "--config", "configs/countdown/grpo.yaml"]`; those of the process if None.

    Raises:
        SystemExit: bad input, with a message on standard error and a non-zero exit code.
    """
    try:
        _run(list(sys.argv[1:] if args is None else args))
    except (ValueError, OSError, argparse.ArgumentError, EngineError, WeightSyncError) as error:
        if os.environ.get("FORKLIGHT_TRACEBACK"):
            raise
        print(f"forklight: error: {innermost(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error


def innermost(message: str) -> str:
    """The reason inside jsonargparse's report on a value of a key, on one line.

    Every component of a config may also be null, so a mistake inside one is reported as a failure of all alternatives,
    level by level. The result names the keys and classes that lead to the mistake, and the mistake.

    Args:
        message: an error's message; returned unchanged if it is no such report.
    """
    if "Union subtypes" not in message and not message.startswith("Parser key "):
        return message
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not _WRAPPING.match(line)]
    return " ".join(kept) or message


def _run(arguments: list[str]) -> None:
    if not arguments:
        raise ValueError(f'expected "subcommand" to be one of {{{",".join(VERBS)}}}, but it was not provided.')
    first = arguments[0]
    if first in ("-h", "--help"):
        _overview().print_help()
        raise SystemExit(0)
    if first in COMMANDS:
        from jsonargparse import auto_cli

        command = getattr(import_module(f"forklight.commands.{first}"), first)
        auto_cli(command, args=arguments[1:], exit_on_error=False, prog=f"forklight {first}")
    elif first in LIGHTNING_VERBS or first.startswith("-"):  # options may come before the verb
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last: modules here are found, and hide no other
        from forklight.commands.lightning_cli import run

        run(arguments)
    else:
        raise ValueError(f"argument subcommand: invalid choice: {first!r} (choose from {', '.join(map(repr, VERBS))})")


def _overview() -> argparse.ArgumentParser:
    """A parser for the help text alone: it knows the verbs but not their arguments."""
    parser = argparse.ArgumentParser(
        prog="forklight",
        description="RLVR on forking tokens.",
        epilog="`forklight VERB --help` lists the arguments of a verb.",
    )
    parser.add_argument("-c", "--config", help="YAML file with a section per verb; after the verb, a file for that one")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for verb, text in VERBS.items():
        verbs.add_parser(verb, help=text)
    return parser
