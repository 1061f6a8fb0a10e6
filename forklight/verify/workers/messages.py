"""What the parent, the nursery and its workers say to each other."""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

PID = struct.Struct("i")
"""How the parent and the nursery write a process id, or an exit code."""

Serve = Callable[[dict[str, Any]], dict[str, Any]]
"""What serves a request in a worker: from one JSON object to another."""


class Service(NamedTuple):
    """What a nursery makes workers of."""

    begin: Callable[[], Serve]
    """Called in every new worker."""
    warm_ups: tuple[Callable[[], object], ...] = ()
    """Called in the nursery one by one, while there is nothing else to do: later workers find caches filled."""
    imports_apart: bool = False
    """Whether imports while a request is served are left out of its time."""


IMPORTS = b"imports"
"""A worker's word that what serves the request begins to import something."""

IMPORTED = b"imported"
"""Its word that the import has ended."""

IMPORT_LIMIT = 120.0
"""Seconds that imports may take in a worker, before it serves and meanwhile. Not part of any answer's time."""
