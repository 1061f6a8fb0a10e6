r"""Verifier for answers that are mathematical expressions."""

import math
import time
from typing import Any, Literal, NamedTuple, Self

from forklight.types import Outcome, Verdict
from forklight.verify.extract import WINDOW, after_thought, extract_box
from forklight.verify.latex import clean
from forklight.verify.limits import too_large
from forklight.verify.process import WorkerFailed, WorkerProcess
from forklight.verify.quick import quick


class _Judgement(NamedTuple):
    outcome: Outcome
    reason: str
    extracted: str | None


class MathVerifier:
    r"""Judges whether the final answer of a text equals the gold, with Math-Verify in a process that can be killed.

    The path of an answer: the last box (`extract`), caps on its size (`limits`), one common spelling (`latex`), then
    equal texts, numbers and words at once (`quick`), the rest in the worker process (`compare`, `expression`).

    Reasons: "equal", "not equal"; wrong without a comparison: "no box", "box not closed", "empty box", "thought not
    ended", "no answer found", "too large to be an answer (..)"; unjudged: "time limit 3.0 s", "memory limit 2.0 GiB",
    "worker died (exit code ..)", "comparison failed (..)", "gold not understood".

    Conventions, where tastes differ: a list without brackets may come in any order; 2/4 is 1/2; 50% is 50 as well as
    0.5; a unit or a number base counts only if both sides have one; `x = 5` answers the gold 5, `6 = 5` does not;
    round, square and curly brackets differ; letters differ in case, words do not; a decimal has to be within 1e-6 of
    the gold, all else is exact.

    Args:
        extraction: `box` takes the last `\boxed{}` or `\fbox{}` only. `any` lets Math-Verify search the text where
            there is no box at all: for scoring what base models write. As a reward it pays for numbers found in prose.
        timeout: Wall-clock limit for one answer in seconds. An answer that takes longer is `unjudged`.
        memory_limit: Limit on the worker's memory in GiB.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> with MathVerifier() as verifier:
        ...     verdict = verifier.verify_many([(r"So \boxed{(x+1)^2}", "x^2+2x+1")])[0]
        >>> verdict.outcome
        'right'
    """

    def __init__(
        self, extraction: Literal["box", "any"] = "box", timeout: float = 3.0, memory_limit: float = 2.0
    ) -> None:
        if extraction not in ("box", "any"):
            raise ValueError(f"extraction must be 'box' or 'any', got {extraction!r}")
        for name, value in (("timeout", timeout), ("memory_limit", memory_limit)):
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not (math.isfinite(value) and value > 0)
            ):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        self.extraction = extraction
        self.timeout = float(timeout)
        self.memory_limit = float(memory_limit)
        self._worker = WorkerProcess(memory=int(memory_limit * 2**30))

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order. Equal comparisons within one call are made once."""
        known: dict[tuple[str, str], _Judgement] = {}
        return [self._verify(answer, gold, known) for answer, gold in pairs]

    def close(self) -> None:
        """Ends the worker process. The verifier stays usable: the next comparison starts another."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"extraction": self.extraction, "timeout": self.timeout, "memory_limit": self.memory_limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the copy gets a worker of its own, on first use

    def _verify(self, text: str, gold: str, known: dict[tuple[str, str], _Judgement]) -> Verdict:
        start = time.perf_counter()
        judgement = self._judge(text, gold, known)
        return Verdict(*judgement, seconds=time.perf_counter() - start)

    def _judge(self, text: str, gold: str, known: dict[tuple[str, str], _Judgement]) -> _Judgement:
        wanted = _read_gold(gold)
        if wanted is None:
            return _Judgement("unjudged", "gold not understood", None)
        answer, reason = extract_box(text)
        search = self.extraction == "any" and reason == "no box"
        if search:
            answer = (after_thought(text) or "")[-WINDOW:]
        if answer is None:
            return _Judgement("wrong", reason, None)
        if not search:
            large = too_large(answer)
            if large:
                return _Judgement("wrong", f"too large to be an answer ({large})", answer[:100])
            decided = quick(wanted, clean(answer))
            if decided is not None:
                return _Judgement("right" if decided else "wrong", "equal" if decided else "not equal", answer)
        key = (wanted, answer)
        if key not in known:
            known[key] = self._ask(wanted, answer, search)
        return known[key]

    def _ask(self, gold: str, answer: str, search: bool) -> _Judgement:
        try:
            reply = self._worker.ask({"gold": gold, "answer": answer, "search": search}, self.timeout)
        except WorkerFailed as failure:
            return _Judgement("unjudged", str(failure), None if search else answer)
        return _Judgement(reply["outcome"], reply["reason"], reply["extracted"])


def _read_gold(gold: str) -> str | None:
    r"""The gold in the common spelling: its last box if it has one (a worked solution), else all of it."""
    answer, reason = extract_box(gold)
    if reason == "no box":
        answer = gold
    if answer is None or not answer.strip() or too_large(answer):
        return None
    return clean(answer)
