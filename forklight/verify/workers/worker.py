"""The nursery of workers: `python -m forklight.verify.workers.worker FD MEMORY MODULE:FUNCTION [ARGUMENT ...]`.

It imports what workers need once, by calling the function with the arguments, which returns a `Service`; then it forks
a worker for every socket that it is sent over the socket FD. So a worker that was killed is replaced in milliseconds.

The parent kills the worker when an answer takes too long or too much memory. Should the parent itself be gone by then,
the alarm of the request ends the worker; an idle worker, and the nursery, end when their socket closes.
"""

import contextlib
import gc
import json
import logging
import os
import pkgutil
import resource
import select
import signal
import socket
import sys
import time
import warnings
from multiprocessing.connection import Connection

from forklight.verify.workers.imports import ImportWatch
from forklight.verify.workers.messages import PID, Service

PAUSE = 0.05
"""Seconds without a request after which the nursery warms up."""

ALARM_AFTER = 1.0
"""Seconds after the time limit at which a worker without a parent ends itself."""


def main() -> None:
    """Nurses workers until the socket closes."""
    descriptor, memory, function, *arguments = sys.argv[1:]
    parent = socket.socket(fileno=int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default action ends the process even inside a long C call
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    gc.disable()  # imports leave no garbage worth the search
    service: Service = pkgutil.resolve_name(function)(*arguments)
    gc.enable()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        parent.sendall(PID.pack(os.getpid()))
        _nurse(parent, service, int(memory))


def _nurse(parent: socket.socket, service: Service, memory: int) -> None:
    """Forks a worker for every socket, and tells how a worker ended for every process id."""
    warm_ups = iter(service.warm_ups)
    while True:
        while not select.select([parent], [], [], PAUSE)[0] and (warm_up := next(warm_ups, None)):
            warm_up()
        message, descriptors, _, _ = socket.recv_fds(parent, PID.size, 1)
        if not message:
            return
        if descriptors:
            gc.collect()
            gc.freeze()  # what a worker shares with the nursery stays shared
            answer = os.fork()
            if answer == 0:
                parent.close()
                _work(Connection(descriptors[0]), service, memory)
                os._exit(0)
            os.close(descriptors[0])
        else:
            answer = _reap(*PID.unpack(message))
        parent.sendall(PID.pack(answer))


def _reap(pid: int) -> int:
    """The exit code of a worker that has been killed, or ends by itself; one that does not is killed."""
    for _ in range(20):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _work(connection: Connection, service: Service, memory: int) -> None:
    """Serves requests until the socket closes."""
    _limit_memory(2 * memory)
    serve = service.begin()
    _silence()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send_bytes(b"ready")
        if service.imports_apart:
            ImportWatch(connection).install()
        while True:
            request = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, request["timeout"] + ALARM_AFTER)
            reply = serve(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(reply).encode())


def _limit_memory(size: int) -> None:
    """A backstop for growth between two looks of the parent, which keeps the limit proper."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _silence() -> None:
    """Sends what is printed to nowhere. Until here stderr is the parent's, to show why a start failed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


if __name__ == "__main__":
    main()
