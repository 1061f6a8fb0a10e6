"""Worker processes side by side: requests in, replies out in the same order, whatever becomes of a worker."""

import math
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Self

from forklight.verify.workers.process import GIB, LOOK_EVERY, Nursery, Worker

MOST_WORKERS = 8
"""Workers of a pool whose size is not given, at most."""


class Reply(NamedTuple):
    """What became of a request."""

    value: dict[str, Any] | None
    """The worker's reply; None if there is none."""
    failure: str
    """Why there is no reply, in the words of `Verdict.reason`; empty if there is one."""
    seconds: float
    """Wall time from the moment when a worker had the request."""


class WorkerPool:
    """Some worker processes, forked from a nursery when there is work for them and again after one had to be killed.

    A worker has one request at a time; the others wait here, so that the time limit of each counts from when a worker
    has it, and one that hangs holds up no other. Safe to use from any thread: calls take turns.

    Args:
        service: what the workers serve with: `module:function`, then that function's arguments.
        size: number of workers; if None as many as the processors that this process may use, at most 8, shared with the
            other ranks on the machine where LOCAL_WORLD_SIZE tells how many there are.
        memory: limit on the resident memory of each worker in bytes.
    """

    def __init__(self, *service: str, size: int | None = None, memory: int = 2 * GIB) -> None:
        self.service = service
        self.size = size or default_size()
        self.memory = memory
        self._lock = threading.Lock()
        self._nurseries: list[Nursery] = []  # one at most
        self._workers: list[Worker] = []
        weakref.finalize(self, _stop, self._workers, self._nurseries)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers there are."""
        return [worker.pid for worker in self._workers]

    def start(self) -> None:
        """Begins to start the processes, and does not wait: what is imported meanwhile need not be waited for later."""
        with self._lock:
            self._drop_dead()
            self._nursery()

    def run(self, requests: Sequence[dict[str, Any]], timeout: float) -> list[Reply]:
        """Serves all requests.

        Args:
            requests: JSON objects.
            timeout: wall-clock limit of each in seconds, counted from when a worker has it.

        Returns:
            One reply per request, in the same order.

        Raises:
            ChildProcessError: the workers cannot be started: a fault of the installation, not of a request.
        """
        with self._lock:
            try:
                return self._run(requests, timeout)
            except BaseException:
                self._end()  # a late reply must not answer a request of the next call
                raise

    def close(self) -> None:
        """Ends the processes. The next request starts others."""
        with self._lock:
            self._end()

    def _run(self, requests: Sequence[dict[str, Any]], timeout: float) -> list[Reply]:
        replies: dict[int, Reply] = {}
        waiting = deque(enumerate(requests))
        serving: dict[Worker, int] = {}

        def finish(worker: Worker, value: dict[str, Any] | None, failure: str = "") -> None:
            if worker not in serving:
                raise ChildProcessError(
                    f"a worker of the verifier did not start ({failure}); see its message on stderr"
                )
            replies[serving.pop(worker)] = Reply(value, failure, worker.seconds)

        self._drop_dead()
        while waiting or serving:
            for _ in range(min(self.size, len(waiting) + len(serving)) - len(self._workers)):
                self._workers.append(self._nursery().fork())
            for worker in [worker for worker in self._workers if not worker.busy][: len(waiting)]:
                serving[worker], request = waiting.popleft()
                try:
                    worker.send(request, timeout)
                except OSError:
                    finish(worker, None, self._drop(worker))
            for worker in self._readable():
                try:
                    value = worker.receive()
                except (EOFError, OSError):
                    finish(worker, None, self._drop(worker))
                else:
                    if value is not None:
                        finish(worker, value)
            for worker in [worker for worker in self._workers if worker.busy]:
                over = worker.over_limit()
                if over:
                    self._workers.remove(worker)
                    worker.kill()
                    finish(worker, None, over)
        return [replies[number] for number in range(len(requests))]

    def _nursery(self) -> Nursery:
        """What workers are forked from; another one if it is gone. Workers at work stay."""
        if self._nurseries and not self._nurseries[0].alive:
            self._nurseries.pop().stop()
        if not self._nurseries:
            self._nurseries.append(Nursery(self.service, self.memory))
        return self._nurseries[0]

    def _drop_dead(self) -> None:
        """Forgets workers that ended since the last call, or belong to another process after a fork."""
        if any(nursery.foreign or not nursery.alive for nursery in self._nurseries):
            self._end()
        for worker in [worker for worker in self._workers if not worker.busy and worker.connection.poll()]:
            self._drop(worker)  # an idle one has nothing to say but that it is gone

    def _end(self) -> None:
        _stop(self._workers, self._nurseries)

    def _readable(self) -> list[Worker]:
        """Busy workers that have said something, after a wait of at most `LOOK_EVERY` or until a limit is reached."""
        busy = {worker.connection: worker for worker in self._workers if worker.busy}
        if not busy:
            return []
        patience = min(LOOK_EVERY, *(worker.remaining for worker in busy.values()))
        return [busy[connection] for connection in wait(list(busy), max(patience, 0.0))]

    def _drop(self, worker: Worker) -> str:
        """Forgets a worker that is gone, and says how it ended."""
        self._workers.remove(worker)
        code = worker.exit_code()
        if code == -signal.SIGALRM:  # its own alarm, where this process was too busy to come first
            return worker.time_over
        return f"worker died (exit code {code})"


class UsesWorkers:
    """Base class of verifiers with a pool: it starts early, is closed by hand or by `with`, and is usable again.

    Copies have the same settings and a pool of their own.

    Args:
        service: what the workers serve with; see `WorkerPool`.
        timeout: wall-clock limit for one answer in seconds.
        memory_limit: limit on a worker's memory in GiB.
        workers: worker processes; see `WorkerPool`.

    Raises:
        ValueError: a limit is no positive number, or the number of workers no whole number above 0.
    """

    def __init__(self, *service: str, timeout: float, memory_limit: float, workers: int | None) -> None:
        for name, value in (("timeout", timeout), ("memory_limit", memory_limit)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
            raise ValueError(f"workers must be at least 1, or null for one per processor, got {workers!r}")
        self.timeout = float(timeout)
        self.memory_limit = float(memory_limit)
        self.workers = workers
        self._service = service
        self._connect()

    def _connect(self) -> None:
        self._pool = WorkerPool(*self._service, size=self.workers, memory=int(self.memory_limit * GIB))

    def start(self) -> None:
        """Begins to start the worker processes, and does not wait: a run does so while it loads its model."""
        self._pool.start()

    def close(self) -> None:
        """Ends the worker processes. The verifier stays usable: the next answer that needs one starts others."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()


def default_size() -> int:
    """Processors that this process may use, over the ranks that share them, at most `MOST_WORKERS`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _stop(workers: list[Worker], nurseries: list[Nursery]) -> None:
    """Ends all processes, and empties the lists."""
    while workers:
        workers.pop().kill()
    while nurseries:
        nurseries.pop().stop()
