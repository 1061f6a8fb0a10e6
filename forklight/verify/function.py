"""A reward function of one's own, in processes that can be killed."""

import math
import pkgutil
from collections.abc import Callable
from typing import Any

from forklight.types import Outcome, Verdict
from forklight.verify.workers.messages import Serve, Service
from forklight.verify.workers.pool import Reply, UsesWorkers

RewardFunction = Callable[[str, str], float | bool]
"""From (answer text, gold) to the reward: a number, or whether the answer is right."""


class FunctionVerifier(UsesWorkers):
    """Judges answers by a function of your own, which may hang, grow or raise: such an answer is unjudged.

    The function runs in worker processes and is found there by its name, so it must stand in a module that can be
    imported: no lambda, nothing in the script that was started. Reasons: the function's name; "time limit 3.0 s",
    "memory limit 2.0 GiB", "worker died (exit code ..)", "the function failed (ValueError: ..)", "not a number (..)".

    Args:
        function: Takes (answer text, gold), returns True or False, or a finite number: the reward.
        right_from: The smallest reward with which an answer counts as right, in scores and dynamic sampling.
        timeout: Wall-clock limit for one answer in seconds.
        memory_limit: Limit on a worker's memory in GiB.
        workers: Worker processes; one per processor if null, at most 8.

    Raises:
        ValueError: If the function cannot be imported by its name, or a limit is not positive.

    Example:
        >>> import operator
        >>> with FunctionVerifier(operator.eq, workers=1) as verifier:
        ...     verdicts = verifier.verify_many([("5", "5"), ("6", "5")])
        >>> [verdict.reward for verdict in verdicts]
        [1.0, 0.0]
    """

    def __init__(
        self,
        function: RewardFunction,
        right_from: float = 1.0,
        timeout: float = 3.0,
        memory_limit: float = 2.0,
        workers: int | None = None,
    ) -> None:
        if not math.isfinite(right_from):
            raise ValueError(f"right_from must be a finite number, got {right_from!r}")
        self.path = f"{function.__module__}:{getattr(function, '__qualname__', function)}"
        if function.__module__ == "__main__" or not _is_found(self.path, function):
            raise ValueError(f"the function {self.path} must be importable by this name from its module")
        self.right_from = right_from
        super().__init__(
            "forklight.verify.function:service", self.path, timeout=timeout, memory_limit=memory_limit, workers=workers
        )

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order."""
        requests = [{"answer": text, "gold": gold} for text, gold in pairs]
        return [self._verdict(reply) for reply in self._pool.run(requests, self.timeout)]

    def _verdict(self, reply: Reply) -> Verdict:
        failure = reply.failure if reply.value is None else reply.value["failure"]
        if reply.value is None or failure:
            return Verdict("unjudged", failure, seconds=reply.seconds)
        reward = reply.value["reward"]
        outcome: Outcome = "right" if reward >= self.right_from else "wrong"
        name = self.path.partition(":")[2]
        return Verdict(outcome, name, seconds=reply.seconds, score=reward, parts=((name, reward),))


def _is_found(path: str, function: RewardFunction) -> bool:
    try:
        return pkgutil.resolve_name(path) is function
    except (ImportError, AttributeError, ValueError):
        return False


def service(path: str) -> Service:
    """What a worker begins with: the import of the function's module, in every worker anew.

    Args:
        path: `module:name` of the user's function.
    """

    def begin() -> Serve:
        function: RewardFunction = pkgutil.resolve_name(path)
        return lambda request: _serve(function, request)

    return Service(begin)


def _serve(function: RewardFunction, request: dict[str, Any]) -> dict[str, Any]:
    try:
        reward = function(request["answer"], request["gold"])
    except MemoryError:
        return {"failure": "memory limit"}
    except Exception as error:  # whatever the user's function raises
        return {"failure": f"the function failed ({type(error).__name__}: {str(error)[:200]})"}
    try:
        value = math.nan if isinstance(reward, str | bytes) else float(reward)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        return {"failure": f"not a number ({type(reward).__name__})"}
    return {"failure": "", "reward": value}
