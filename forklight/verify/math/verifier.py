r"""Verifier for answers that are mathematical expressions."""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

from forklight.types import Outcome, Problem, Verdict
from forklight.verify.base import Verifier
from forklight.verify.math.classes import answer_classes
from forklight.verify.math.copied import copied, copied_terms
from forklight.verify.math.extract import WINDOW, after_thought, extract_box
from forklight.verify.math.latex import clean
from forklight.verify.math.limits import too_large
from forklight.verify.math.numbers import read_number
from forklight.verify.math.prose import marked_answer
from forklight.verify.math.quick import is_plain, quick
from forklight.verify.workers.pool import Reply, UsesWorkers

# A gold of words around a formula: a worked solution without a box.
_PROSE = re.compile(r"[a-z]{2,}\s+[A-Za-z]+[^$\\]*(?:\$|\\[(\[])[^$]*(?:\$|\\[)\]])")


_PROBE = r"\boxed{\sqrt{7919}+x}"
"""An answer that equals no gold, and is compared with each as an expression."""

FIRST_PARSED = 100
"""Formulas among golds that are parsed first: each takes a worker some milliseconds, and most sets have no fault."""


class _Judgement(NamedTuple):
    outcome: Outcome
    reason: str
    extracted: str | None


class _Gold(NamedTuple):
    text: str
    """In the common spelling, unless it is prose."""
    prose: bool
    """Whether it is a worked solution without a box, in which the answer has to be found."""


class _Question(NamedTuple):
    """What only a worker can decide."""

    gold: str
    answer: str
    search: bool = False
    """Whether `answer` is a whole text, in which the final answer has to be found."""
    search_gold: bool = False
    """Whether `gold` is such a text."""


class MathVerifier(UsesWorkers, Verifier):
    r"""Judges whether the final answer of a text equals the gold, with Math-Verify in processes that can be killed.

    The path of an answer: the last box (`extract`), caps on its size (`limits`), one common spelling (`latex`), then
    equal texts, numbers and words at once (`quick`), the rest in a worker process (`compare`, `expression`).

    Reasons of a right answer say what decided: "equal text", "equal number", "equal ratio", "equal words", "equal
    choice", "equal expression". Wrong: "not equal"; without a comparison "no box", "box not closed", "empty box",
    "thought not ended", "box in doubt", "no answer found", "too large to be an answer (..)"; where the problem is
    known, "copied from the problem". Unjudged: "time limit 3.0 s", "memory limit 2.0 GiB", "worker died (exit code
    ..)", "comparison failed (..)", "gold not understood".

    Conventions, where tastes differ: a list without brackets may come in any order; 2/4 is 1/2; 50% is 50 as well as
    0.5; a unit or a number base counts only if both sides have one; degree and dollar signs are not read; `x = 5`
    answers the gold 5, `6 = 5` does not; round, square and curly brackets differ; letters differ in case, words do not;
    a decimal has to be within 1e-6 of the gold, all else is exact.

    Args:
        extraction: `box` takes the last `\boxed{}` or `\fbox{}` only. `any` looks further where there is no box at all:
            at a number behind "The answer is", "Answer:", "A:" or "####" on the last line, else wherever Math-Verify
            finds one. For scoring what base models write; as a reward it pays for numbers found in prose.
        timeout: Wall-clock limit for one answer in seconds, from when a worker has it. An answer that takes longer is
            `unjudged`, and its worker is replaced.
        memory_limit: Limit on a worker's memory in GiB.
        workers: Worker processes; as many as the processors that this process may use if null, at most 8. They start
            when an answer first needs one.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> with MathVerifier() as verifier:
        ...     verdict = verifier.verify_many([(r"So \boxed{(x+1)^2}", "x^2+2x+1")])[0]
        >>> verdict.outcome
        'right'
    """

    def __init__(
        self,
        extraction: Literal["box", "any"] = "box",
        timeout: float = 3.0,
        memory_limit: float = 2.0,
        workers: int | None = None,
    ) -> None:
        if extraction not in ("box", "any"):
            raise ValueError(f"extraction must be 'box' or 'any', got {extraction!r}")
        super().__init__(
            "forklight.verify.math.service:math_service", timeout=timeout, memory_limit=memory_limit, workers=workers
        )
        self.extraction = extraction

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order. Equal comparisons within one call are made once."""
        looks: list[_Judgement | _Question] = []
        seconds: list[float] = []
        for text, gold in pairs:
            start = time.perf_counter()
            looks.append(self._look(text, gold))
            seconds.append(time.perf_counter() - start)
        askers: dict[_Question, int] = {}
        for number, look in enumerate(looks):
            if isinstance(look, _Question):
                askers.setdefault(look, number)
        replies = dict(zip(askers, self._ask(list(askers)), strict=True))
        for question, first in askers.items():
            seconds[first] += replies[question].seconds
        judgements = (_read(look, replies[look]) if isinstance(look, _Question) else look for look in looks)
        return [Verdict(*judgement, seconds=spent) for judgement, spent in zip(judgements, seconds, strict=True)]

    def verify_answers(self, answers: list[tuple[str, Problem]]) -> list[Verdict]:
        """Judges (answer text, problem) pairs, in order; an answer copied from its problem is wrong."""
        verdicts = self.verify_many([(text, problem.answer) for text, problem in answers])
        copies = self._copies([verdict.extracted if verdict.right else None for verdict in verdicts], answers)
        return [
            replace(verdict, outcome="wrong", reason="copied from the problem") if copy else verdict
            for verdict, copy in zip(verdicts, copies, strict=True)
        ]

    def _copies(self, extracted: list[str | None], answers: list[tuple[str, Problem]]) -> list[bool]:
        """Which right answers are copied from their problem, or hold a copied term that equals the gold by itself."""
        found = [False] * len(extracted)
        asked: list[tuple[int, _Question]] = []
        for number, (answer, (_, problem)) in enumerate(zip(extracted, answers, strict=True)):
            wanted = _read_gold(problem.answer, False) if answer else None
            if not answer or wanted is None:
                continue
            found[number] = copied(answer, wanted.text, problem.prompt)
            for term in () if found[number] else copied_terms(answer, problem.prompt):
                decided = quick(wanted.text, term)
                if decided is None:
                    asked.append((number, _Question(wanted.text, term)))
                elif decided.equal:
                    found[number] = True
        asked = [(number, question) for number, question in asked if not found[number]]
        for (number, question), reply in zip(asked, self._ask([question for _, question in asked]), strict=True):
            found[number] = found[number] or _read(question, reply).outcome == "right"
        return found

    def classes(self, answers: Sequence[Sequence[str]]) -> list[list[int]]:
        """Numbers mathematically equal answers of each list alike; see `answer_classes`. What is unjudged differs."""

        def compare(pairs: list[tuple[str, str]]) -> list[bool]:
            questions = [_Question(one, other) for one, other in pairs]
            return [_read(*pair).outcome == "right" for pair in zip(questions, self._ask(questions), strict=True)]

        return answer_classes(answers, compare)

    def gold_faults(self, golds: Sequence[str]) -> list[str]:
        """Which golds cannot be compared with answers: sentences, worked solutions without a box, broken formulas.

        The workers parse formulas: of many different ones `FIRST_PARSED`, evenly spread, and the others if there is a
        fault among these.
        """
        faults = {gold: self._gold_fault(gold) for gold in golds}
        formulas = [gold for gold, fault in faults.items() if fault is None]
        step = max(1, len(formulas) // FIRST_PARSED)
        faults |= self._parse_faults(formulas[::step])
        if any(faults[gold] for gold in formulas):
            faults |= self._parse_faults([gold for gold in formulas if faults[gold] is None])
        return [faults[gold] or "" for gold in golds]

    def _parse_faults(self, golds: list[str]) -> dict[str, str | None]:
        """Which formulas the workers do not understand, by gold; one that takes too long may yet be understood."""
        verdicts = self.verify_many([(_PROBE, gold) for gold in golds])
        unknown = "gold not understood"
        return {gold: unknown if v.reason == unknown else "" for gold, v in zip(golds, verdicts, strict=True)}

    def _gold_fault(self, gold: str) -> str | None:
        """What a look at the gold says; None where only a comparison can tell."""
        wanted = _read_gold(gold, self.extraction == "any")
        if wanted is None:
            return "nothing in it, or more than fits an answer"
        if wanted.prose:
            return None
        if "boxed" not in gold and "fbox" not in gold and marked_answer(gold) is not None:
            return "a sentence with an answer in it"
        return "" if is_plain(wanted.text) else None

    def _look(self, text: str, gold: str) -> _Judgement | _Question:
        """What the texts alone decide, or what is left to ask."""
        wanted = _read_gold(gold, self.extraction == "any")
        if wanted is None:
            return _Judgement("unjudged", "gold not understood", None)
        answer, reason = extract_box(text)
        if self.extraction == "any" and reason == "no box":
            final = (after_thought(text) or "")[-WINDOW:]
            answer = _marked_number(final)
            if answer is None:
                return _Question(wanted.text, final, search=True, search_gold=wanted.prose)
        if answer is None:
            return _Judgement("wrong", reason, None)
        large = too_large(answer) or too_large(
            clean(answer)
        )  # Unicode may hide powers and digits until it is spelled out
        if large:
            return _Judgement("wrong", f"too large to be an answer ({large})", answer[:100])
        decided = None if wanted.prose else quick(wanted.text, clean(answer))
        if decided is None:
            return _Question(wanted.text, answer, search_gold=wanted.prose)
        if decided.equal:
            return _Judgement("right", f"equal {decided.by}", answer)
        return _Judgement("wrong", "not equal", answer)

    def _ask(self, questions: list[_Question]) -> list[Reply]:
        return self._pool.run([question._asdict() for question in questions], self.timeout)


def _read(question: _Question, reply: Reply) -> _Judgement:
    """The judgement in a worker's reply."""
    if reply.value is None:
        return _Judgement("unjudged", reply.failure, None if question.search else question.answer)
    return _Judgement(reply.value["outcome"], reply.value["reason"], reply.value["extracted"])


def _marked_number(text: str) -> str | None:
    """A plain number that the last line says is the answer."""
    answer = marked_answer(text)
    if answer is None or too_large(answer):
        return None
    return answer if read_number(clean(answer)) else None


@lru_cache(maxsize=4096)
def _read_gold(gold: str, search: bool) -> _Gold | None:
    """A gold: its last box if it has one (a worked solution), else all of it.

    Args:
        gold: as the data set has it.
        search: whether a gold of prose without a box may be searched for its answer.

    Returns:
        None if there is nothing in it, or more than fits an answer.
    """
    answer, reason = extract_box(gold)
    if reason == "no box":
        if search and _PROSE.search(gold[:2000]):
            return _Gold(gold, prose=True)
        answer = gold
    if answer is None or not answer.strip() or too_large(answer):
        return None
    return _Gold(clean(answer), prose=False)
