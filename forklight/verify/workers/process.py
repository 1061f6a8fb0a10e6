"""Worker processes under a time limit and a memory limit, seen from the parent. Knows nothing of mathematics."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import Pipe
from typing import Any

from forklight.verify.workers.messages import IMPORT_LIMIT, IMPORTED, IMPORTS, PID

LOOK_EVERY = 0.02
"""Seconds between two looks at a worker's memory."""

GIB = 2**30


class Nursery:
    """The process that workers are forked from, so that they need not import anything. Does not wait for its start.

    It is a fresh interpreter (`python -m forklight.verify.workers.worker`), not a fork: it imports neither the parent's
    `__main__` nor torch, and holds none of its memory, files or CUDA contexts. The parent uses no signal handlers.

    Args:
        service: what workers serve with: `module:function`, then that function's arguments.
        memory: limit on each worker's resident memory in bytes.
    """

    def __init__(self, service: tuple[str, ...], memory: int) -> None:
        self.memory = memory
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # what this process can import
            "PYTHONHASHSEED": "0",  # SymPy's order of sets, so that the same pair gets the same verdict in every run
        }
        arguments = [str(theirs.fileno()), str(memory), *service]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "forklight.verify.workers.worker", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        self._socket.settimeout(IMPORT_LIMIT)
        self._ready = False
        self._killed: list[int] = []  # workers that the nursery has not heard of

    @property
    def foreign(self) -> bool:
        """True after a fork: the process belongs to the parent of this one."""
        return self._owner != os.getpid()

    @property
    def alive(self) -> bool:
        """False if the process ended."""
        return self.foreign or self.process.poll() is None

    def fork(self) -> "Worker":
        """A new worker; the first one waits until the nursery has imported what workers need.

        Raises:
            ChildProcessError: the nursery did not start, or is gone.
        """
        if not self._ready:
            self._receive()
            self._ready = True
        while self._killed:
            self.reap(self._killed.pop())
        ours, theirs = Pipe()
        with theirs:
            socket.send_fds(self._socket, [PID.pack(0)], [theirs.fileno()])
            return Worker(self, self._receive(), ours)

    def kill(self, pid: int) -> None:
        """Kills a worker. Does not wait for the nursery, which may be warming up, to hear of it."""
        if not self.foreign:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # until it is reaped, the number cannot be another process's
            self._killed.append(pid)

    def reap(self, pid: int) -> int | None:
        """The exit code of a worker that ended by itself; None if the nursery is gone."""
        if self.foreign:
            return None
        with contextlib.suppress(OSError):
            self._socket.sendall(PID.pack(pid))
            return self._receive()
        return None

    def stop(self) -> None:
        """Kills the process."""
        self._socket.close()
        if self.foreign:
            self.process.returncode = 0  # not a child of this process, which so has nothing to wait for
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _receive(self) -> int:
        """The nursery's next word: a process id or an exit code."""
        message = self._socket.recv(PID.size, socket.MSG_WAITALL)
        if len(message) < PID.size:
            raise ChildProcessError(
                "the verifier's worker processes did not start; their own message is on stderr. "
                "Is math-verify installed?"
            )
        number: int = PID.unpack(message)[0]
        return number


class Worker:
    """A process that serves one request at a time; busy from the start until it says that it is ready.

    Args:
        nursery: where it comes from.
        pid: its process id.
        connection: the way to it.
    """

    def __init__(self, nursery: Nursery, pid: int, connection: Any) -> None:
        self.pid = pid
        self.connection = connection
        self.busy = True
        self._nursery = nursery
        self._started = False
        self._limit = IMPORT_LIMIT
        self._since = self._looked = time.monotonic()
        self._importing: float | None = None  # since when it imports what the request needs

    @property
    def seconds(self) -> float:
        """Wall time since the present request was sent, without that of imports."""
        return (time.monotonic() if self._importing is None else self._importing) - self._since

    @property
    def remaining(self) -> float:
        """Seconds until the limit of the present request, or of an import."""
        if self._importing is not None:
            return self._importing + IMPORT_LIMIT - time.monotonic()
        return self._limit - self.seconds

    def send(self, request: dict[str, Any], timeout: float) -> None:
        """Hands over a request; its wall-clock limit counts from here. What JSON does not have arrives as text.

        Raises:
            OSError: the process is gone.
        """
        self.busy, self._limit, self._importing = True, timeout, None
        self._since = self._looked = time.monotonic()
        self.connection.send_bytes(json.dumps({**request, "timeout": timeout}, default=str).encode())

    def receive(self) -> dict[str, Any] | None:
        """The reply, when the connection has something to read; None for a word: that it is ready, or imports.

        Raises:
            EOFError: the process is gone. Also OSError.
        """
        message = self.connection.recv_bytes()
        if message == IMPORTS:
            self._importing = time.monotonic()
            return None
        if message == IMPORTED:
            self._since += time.monotonic() - (self._importing or time.monotonic())
            self._importing = None
            return None
        self.busy = False
        if not self._started:
            self._started = True
            return None
        reply: dict[str, Any] = json.loads(message)
        return reply

    def over_limit(self) -> str | None:
        """Which limit the present request has passed, in the words of `Verdict.reason`; None if none."""
        if time.monotonic() - self._looked >= LOOK_EVERY:
            self._looked = time.monotonic()
            if self._resident() > self._nursery.memory:
                return f"memory limit {self._nursery.memory / GIB:.1f} GiB"
        if self.remaining > 0:
            return None
        return self.time_over if self._importing is None else f"time limit {IMPORT_LIMIT:.1f} s of imports"

    @property
    def time_over(self) -> str:
        """What is said of a request that passed its time limit."""
        return f"time limit {self._limit:.1f} s"

    def _resident(self) -> int:
        """Resident memory in bytes; 0 where the system does not show it (the worker's own limit stands there)."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (FileNotFoundError, IndexError):
            return 0

    def kill(self) -> None:
        """Ends the process at once."""
        self.connection.close()
        self._nursery.kill(self.pid)

    def exit_code(self) -> int | None:
        """Why the process is gone, after `receive` or `send` said so; None if nobody knows."""
        self.connection.close()
        return self._nursery.reap(self.pid)
