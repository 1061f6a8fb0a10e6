"""A worker process under a time limit and a memory limit, seen from the parent. Knows nothing of mathematics."""

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from multiprocessing import Pipe
from typing import Any

START_LIMIT = 120.0
"""Seconds a worker may take to import its libraries. Not part of any answer's time."""

_LOOK_EVERY = 0.02  # seconds between two looks at the worker's memory
_GIB = 2**30


class WorkerFailed(Exception):
    """The worker gave no reply to a request. The message says why, in the words of `Verdict.reason`."""


class WorkerProcess:
    """One worker process, started on first use and again after it had to be killed. Safe to use from any thread.

    The process is a fresh interpreter (`python -m MODULE FD MEMORY`), not a fork: it imports neither the parent's
    `__main__` nor torch, and holds none of its memory, files or CUDA contexts. No signal is used in the parent.

    Args:
        module: The module to run.
        memory: Limit on the worker's resident memory in bytes.
    """

    def __init__(self, module: str = "forklight.verify.worker", memory: int = 2 * _GIB) -> None:
        self.module = module
        self.memory = memory
        self._lock = threading.Lock()
        self._running: _Running | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return None if self._running is None else self._running.process.pid

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Sends a request and waits for the reply.

        Args:
            request: JSON object.
            timeout: Wall-clock limit in seconds, counted from the request, not from the start of the process.

        Raises:
            WorkerFailed: If the limit passed, the memory limit was exceeded or the process died. It is gone then.
            RuntimeError: If the process cannot be started: a fault of the installation, not of a request.
        """
        with self._lock:
            running = self._start()
            try:
                running.connection.send_bytes(json.dumps({**request, "timeout": timeout}).encode())
                self._wait(running, timeout)
                reply: dict[str, Any] = json.loads(running.connection.recv_bytes())
            except (EOFError, OSError):
                raise WorkerFailed(f"worker died (exit code {self._stop()})") from None
            except BaseException:
                self._stop()  # a late reply must not answer the next request
                raise
            return reply

    def close(self) -> None:
        """Ends the process. The next request starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> "_Running":
        if self._running is not None and self._running.owner != os.getpid():
            self._running = None  # after a fork: the process belongs to the parent
        if self._running is None:
            self._running = running = _Running(self.module, self.memory)
            running.finalizer = weakref.finalize(self, running.stop)
        return self._running

    def _stop(self) -> int | None:
        running, self._running = self._running, None
        if running is None:
            return None
        running.finalizer.detach()
        return running.stop()

    def _wait(self, running: "_Running", timeout: float) -> None:
        end = time.monotonic() + timeout
        while not running.connection.poll(max(0.0, min(_LOOK_EVERY, end - time.monotonic()))):
            if running.resident() > self.memory:
                raise WorkerFailed(f"memory limit {self.memory / _GIB:.1f} GiB")
            if time.monotonic() >= end:
                raise WorkerFailed(f"time limit {timeout:.1f} s")


class _Running:
    """A started process and its socket."""

    finalizer: "weakref.finalize[..., WorkerProcess]"
    """Ends the process with its `WorkerProcess`, or at exit."""

    def __init__(self, module: str, memory: int) -> None:
        self.owner = os.getpid()
        self.connection, theirs = Pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # what this process can import
            "PYTHONHASHSEED": "0",  # SymPy's order of sets, so that the same pair gets the same verdict in every run
        }
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(memory)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        self._await_ready()

    def _await_ready(self) -> None:
        try:
            ready = self.connection.poll(START_LIMIT) and self.connection.recv_bytes() == b"ready"
        except (EOFError, OSError):
            ready = False
        except BaseException:
            self.stop()
            raise
        if not ready:
            raise RuntimeError(
                f"the verifier's worker did not start (exit code {self.stop()}); its own message is on stderr. "
                "Is math-verify installed?"
            )

    def resident(self) -> int:
        """Resident memory in bytes; 0 where the system does not show it (the worker's own limit stands there)."""
        try:
            with open(f"/proc/{self.process.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (FileNotFoundError, IndexError):
            return 0

    def stop(self) -> int | None:
        """Kills the process and returns its exit code."""
        if self.owner != os.getpid():
            return None
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()
