"""The scorers of reasoning-gym, in processes that can be killed."""

import base64
import json
import math
import pickle
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

from forklight.types import Outcome, Problem, Verdict
from forklight.verify.math.extract import after_thought, extract_box
from forklight.verify.workers.messages import Serve, Service
from forklight.verify.workers.pool import Reply, UsesWorkers

_NEEDED = ("task", "options", "question", "answer", "metadata")
"""Fields of a problem that its scorer reads."""

Part = Literal["tag", "box"]
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


class ReasoningGymVerifier(UsesWorkers):
    r"""Judges answers to problems of `ReasoningGym` by the scorer of their task.

    Scorers may read an answer as a formula, a program or a move, so they run under limits: what hangs or fails is
    unjudged. The reward is the score, 0 to 1. Reasons: the task's name; "thought not ended", "no answer tag", and those
    of a missing box; "time limit 10.0 s" and the like, "the scorer failed (ValueError: ..)".

    Args:
        part: What is judged after the thought: `tag`, the last `<answer>` ... `</answer>`, as reasoning-gym asks for;
            `box`, the last `\boxed{}`.
        right_from: The smallest score with which an answer counts as right, in scores and dynamic sampling.
        timeout: Wall-clock limit for one answer in seconds.
        memory_limit: Limit on a worker's memory in GiB.
        workers: Worker processes; one per processor if null, at most 8.

    Raises:
        ValueError: If `part` is something else, or a limit is not positive.
    """

    def __init__(
        self,
        part: Part = "tag",
        right_from: float = 1.0,
        timeout: float = 10.0,
        memory_limit: float = 2.0,
        workers: int | None = None,
    ) -> None:
        if part not in get_args(Part):
            raise ValueError(f"part must be one of {', '.join(get_args(Part))}, got {part!r}")
        if not math.isfinite(right_from):
            raise ValueError(f"right_from must be a finite number, got {right_from!r}")
        self.part = part
        self.right_from = right_from
        super().__init__(
            "forklight.verify.reasoning_gym:service", timeout=timeout, memory_limit=memory_limit, workers=workers
        )

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Refuses: a gold alone does not say which task it is of.

        Raises:
            ValueError: always, if there are pairs.
        """
        if pairs:
            raise ValueError("ReasoningGymVerifier judges problems of the source ReasoningGym, not pairs of texts")
        return []

    def verify_answers(self, answers: list[tuple[str, Problem]]) -> list[Verdict]:
        """Judges (answer text, problem) pairs, in order.

        Raises:
            ValueError: If a problem is of another source.
        """
        requests: list[dict[str, Any]] = []
        extracted = [self._extracted(text) for text, _ in answers]
        for (answer, _), (_, problem) in zip(extracted, answers, strict=True):
            if not all(name in problem.fields for name in _NEEDED):
                raise ValueError(f"ReasoningGymVerifier: the problem {problem.uid} of {problem.source} is of no task")
            if answer is not None:
                requests.append({"answer": answer, "entry": _packed({n: problem.fields[n] for n in _NEEDED})})
        replies = iter(self._pool.run(requests, self.timeout))
        return [
            Verdict("wrong", reason) if answer is None else self._verdict(next(replies), answer, problem.source)
            for (answer, reason), (_, problem) in zip(extracted, answers, strict=True)
        ]

    def _extracted(self, text: str) -> tuple[str | None, str]:
        """The part that is judged; None, and why, if there is none."""
        if self.part == "box":
            found = extract_box(text)
            return found.answer, found.reason
        final = after_thought(text)
        if final is None:
            return None, "thought not ended"
        tags = _TAG.findall(final)
        return (tags[-1].strip(), "") if tags else (None, "no answer tag")

    def _verdict(self, reply: Reply, answer: str, task: str) -> Verdict:
        failure = reply.failure if reply.value is None else reply.value["failure"]
        if reply.value is None or failure:
            return Verdict("unjudged", failure, answer, reply.seconds)
        score = reply.value["score"]
        outcome: Outcome = "right" if score >= self.right_from else "wrong"
        return Verdict(outcome, task, answer, reply.seconds, score=score)


def dataset_of(task: str, options: Mapping[str, Any], *, seed: int = 0, size: int = 1) -> Any:
    """The task's generator.

    Args:
        task: its name.
        options: its own settings.
        seed: which problems.
        size: number of problems.

    Raises:
        ValueError: reasoning-gym is not installed, or there is no such task or option.
    """
    try:
        import reasoning_gym  # an extra
    except ImportError as error:
        raise ValueError(
            f"reasoning-gym cannot be imported ({error}): pip install 'forklight[reasoning-gym]'"
        ) from error
    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"the task {task!r} of reasoning-gym with {options}: {error}") from error


def service() -> Service:
    """What a worker begins with: reasoning-gym is imported once, in the nursery."""
    import reasoning_gym  # noqa: F401

    return Service(lambda: _serve_with(cache(_dataset)))


def _serve_with(dataset: Any) -> Serve:
    return lambda request: _serve(dataset, request)


def _dataset(task: str, options: str) -> Any:
    return dataset_of(task, json.loads(options))


def _packed(entry: dict[str, Any]) -> str:
    """A problem's entry for a message: scorers tell tuples from lists, which JSON does not."""
    return base64.b64encode(pickle.dumps(entry)).decode()


def _serve(dataset: Any, request: dict[str, Any]) -> dict[str, Any]:
    entry = pickle.loads(base64.b64decode(request["entry"]))  # of the parent's own making
    try:
        scorer = dataset(entry["task"], json.dumps(entry["options"], sort_keys=True))
        score = float(scorer.score_answer(request["answer"], entry))
    except MemoryError:
        return {"failure": "memory limit"}
    except Exception as error:  # whatever a scorer raises
        return {"failure": f"the scorer failed ({type(error).__name__}: {str(error)[:200]})"}
    return {"failure": "", "score": score} if math.isfinite(score) else {"failure": f"not a number ({score})"}
