"""Tells the parent when the code that serves a request imports something: that time is not the request's."""

import builtins
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from forklight.verify.workers.messages import IMPORT_LIMIT, IMPORTED, IMPORTS


class ImportWatch:
    """Stands in for `__import__` in a worker.

    All imports of a worker together are let out of the time of its requests for `IMPORT_LIMIT` seconds; those after
    that count.

    Args:
        connection: to the parent.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._import = builtins.__import__
        self._thread = threading.get_ident()
        self._depth = 0
        self._left = IMPORT_LIMIT

    def install(self) -> None:
        """From here on every `import` of this process is watched."""
        builtins.__import__ = self

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """Imports as `__import__` does; what is loaded already, and what an import itself imports, says nothing."""
        ours = threading.get_ident() == self._thread  # another thread may go on after the reply
        if not ours or self._depth or self._left <= 0 or (level == 0 and _is_loaded(name, fromlist)):
            return self._import(name, globals, locals, fromlist, level)
        self._depth += 1
        alarm, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        start = time.monotonic()
        self._connection.send_bytes(IMPORTS)
        signal.setitimer(signal.ITIMER_REAL, alarm and alarm + self._left)
        try:
            return self._import(name, globals, locals, fromlist, level)
        finally:
            self._left -= time.monotonic() - start
            self._connection.send_bytes(IMPORTED)
            signal.setitimer(signal.ITIMER_REAL, alarm)
            self._depth -= 1


def _is_loaded(name: str, fromlist: Sequence[str] | None) -> bool:
    """Whether the import finds all in what is loaded, and so takes no time."""
    module = sys.modules.get(name)
    return module is not None and all(each in vars(module) for each in fromlist or ())
