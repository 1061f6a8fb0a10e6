"""The examples in docstrings say what is true: they are the first thing that a user copies."""

import doctest
import importlib
from pathlib import Path

import pytest

import forklight

PACKAGE = Path(forklight.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
