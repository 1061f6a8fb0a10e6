"""The worker process of `MathVerifier`: `python -m forklight.verify.worker FD MEMORY`. Imports math-verify and SymPy.

Requests and replies are JSON objects over the socket FD, each a length-prefixed message. The parent kills the worker
when an answer takes too long or too much memory. Should the parent itself be gone by then, the alarm of the request
ends the worker; an idle worker ends when the socket closes.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Any

from math_verify import parse  # type: ignore[import-untyped]

from forklight.verify.compare import equal
from forklight.verify.expression import GoldNotUnderstood
from forklight.verify.latex import clean
from forklight.verify.limits import too_large

ALARM_AFTER = 1.0
"""Seconds after the time limit at which a worker without a parent ends itself."""


def main() -> None:
    """Serves requests until the socket closes."""
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default action ends the process even inside a long C call
    _limit_memory(2 * memory)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    equal(r"\sqrt{4}+x", "x+2")  # builds the parser's tables, so that no answer pays for them
    _silence()
    connection.send_bytes(b"ready")
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            request = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, request["timeout"] + ALARM_AFTER)
            reply = answer(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(reply).encode())


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Judges one request: `{"gold": .., "answer": .., "search": bool}`, gold and answer in the common spelling.

    With `search` the answer is a whole text, in which Math-Verify looks for the final answer first.
    """
    gold, text = request["gold"], request["answer"]
    if request["search"]:
        found = parse(text, parsing_timeout=None)
        if not found or not isinstance(found[-1], str):
            return {"outcome": "wrong", "reason": "no answer found", "extracted": None}
        text = found[-1]
    large = too_large(text)
    if large:
        return {"outcome": "wrong", "reason": f"too large to be an answer ({large})", "extracted": text[:100]}
    try:
        right = equal(gold, clean(text))
    except GoldNotUnderstood:
        return {"outcome": "unjudged", "reason": "gold not understood", "extracted": text}
    except MemoryError:
        return {"outcome": "unjudged", "reason": "memory limit", "extracted": text}
    except Exception as error:  # SymPy raises almost any type on what it cannot handle
        return {"outcome": "unjudged", "reason": f"comparison failed ({type(error).__name__})", "extracted": text}
    return {"outcome": "right" if right else "wrong", "reason": "equal" if right else "not equal", "extracted": text}


def _limit_memory(size: int) -> None:
    """A backstop for growth between two looks of the parent, which keeps the limit proper."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _silence() -> None:
    """Sends what the parser prints to nowhere. Until here stderr is the parent's, to show why a start failed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


if __name__ == "__main__":
    main()
