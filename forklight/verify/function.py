"""A reward function of one's own, in processes that can be killed."""

import math
import pkgutil
from typing import Any

from forklight.types import Outcome, Problem, Verdict
from forklight.verify.base import Verifier
from forklight.verify.calling import Calling, CannotCall, Completions, RewardFunction
from forklight.verify.signature import calling_of
from forklight.verify.workers.messages import Serve, Service
from forklight.verify.workers.pool import Reply, UsesWorkers


class FunctionVerifier(UsesWorkers, Verifier):
    """Judges answers by a function of your own, which may hang, grow or raise: such an answer is unjudged.

    The function runs in worker processes and is found there by its name, so it must stand in a module that can be
    imported: no lambda, nothing in the script that was started. Its parameters tell how it is called; see `calling_of`.
    Reasons: the function's name; "time limit 3.0 s", "memory limit 2.0 GiB", "worker died (exit code ..)", "the
    function failed (ValueError: ..)", "not a number (..)", "no field for the parameter `level` (..)". What the function
    imports while it runs does not count towards the time limit.

    Args:
        function: Takes (answer text, gold), or by name `answer` (or `completion`, `response`), `gold` (or
            `ground_truth`, `solution`), `prompt` and fields of the problem; or is written for TRL
            (`completions, **kwargs`) or verl (`data_source, solution_str, ground_truth, extra_info`). Returns True or
            False, or a finite number: the reward; in a list for TRL, also as `score` of a mapping for verl.
        right_from: The smallest reward with which an answer counts as right, in scores and dynamic sampling.
        timeout: Wall-clock limit for one answer in seconds.
        memory_limit: Limit on a worker's memory in GiB.
        workers: Worker processes; one per processor if null, at most 8.
        completions: How a function written for TRL gets prompts and answers: `text`, or `messages`, as chats are there;
            if null `messages` where its code reads `["content"]`.

    Raises:
        ValueError: If the function cannot be imported by its name, none of its parameters can take the answer, or a
            limit is not positive.

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
        completions: Completions | None = None,
    ) -> None:
        if not math.isfinite(right_from):
            raise ValueError(f"right_from must be a finite number, got {right_from!r}")
        self.path = f"{function.__module__}:{getattr(function, '__qualname__', function)}"
        if function.__module__ == "__main__" or not _is_found(self.path, function):
            raise ValueError(f"the function {self.path} must be importable by this name from its module")
        self.right_from = right_from
        self.calling = calling_of(function, completions)
        super().__init__(
            "forklight.verify.function:service",
            self.path,
            completions or "",
            timeout=timeout,
            memory_limit=memory_limit,
            workers=workers,
        )

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order; nothing is known of their problems."""
        return self._judge([{"answer": text, "gold": gold} for text, gold in pairs])

    def verify_answers(self, answers: list[tuple[str, Problem]]) -> list[Verdict]:
        """Judges (answer text, problem) pairs, in order."""
        return self._judge([self.request(text, problem) for text, problem in answers])

    def request(self, text: str, problem: Problem) -> dict[str, Any]:
        """What the function may be told of an answer."""
        request: dict[str, Any] = {"answer": text, "gold": problem.answer}
        if self.calling.reads_problems:
            request |= {"prompt": problem.prompt, "source": problem.source, "fields": dict(problem.fields)}
        return request

    def describe(self) -> str:
        """The function, and how it is called."""
        return f"{self.path.partition(':')[0]}.{self.calling.describe()}"

    def _judge(self, requests: list[dict[str, Any]]) -> list[Verdict]:
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


def service(path: str, completions: str) -> Service:
    """What a worker begins with: the import of the function's module, in every worker anew.

    Args:
        path: `module:name` of the user's function.
        completions: of `FunctionVerifier`; empty for None.
    """

    def begin() -> Serve:
        function: RewardFunction = pkgutil.resolve_name(path)
        calling = calling_of(function, completions or None)  # type: ignore[arg-type]
        return lambda request: _serve(function, calling, request)

    return Service(begin, imports_apart=True)


def _serve(function: RewardFunction, calling: Calling, request: dict[str, Any]) -> dict[str, Any]:
    try:
        positional, named = calling.arguments(request)
        returned = function(*positional, **named)
    except CannotCall as fault:
        return {"failure": str(fault)[:300]}
    except MemoryError:
        return {"failure": "memory limit"}
    except Exception as error:  # whatever the user's function raises
        return {"failure": f"the function failed ({type(error).__name__}: {str(error)[:200]})"}
    try:
        reward = calling.reward(returned)
    except Exception as error:  # of what the user's function returned
        return {"failure": str(error)[:200]}
    try:
        value = math.nan if isinstance(reward, str | bytes) else float(reward)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        what = str(reward) if isinstance(reward, float) else type(reward).__name__
        return {"failure": f"not a number ({what})"}
    return {"failure": "", "reward": value}
