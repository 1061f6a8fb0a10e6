"""Rewards for the form of an answer, whatever it says."""

import re

from forklight.types import Verdict
from forklight.verify.base import Verifier
from forklight.verify.math.extract import after_thought, find_boxes

_THOUGHT = re.compile(r"</?think>")


class FormatVerifier(Verifier):
    r"""Judges the form of an answer; the gold is not read. A part of a `WeightedVerifier`, never a reward by itself.

    Reasons: "form kept"; else the first fault: "thought not ended", "no thought", "nothing after the thought", "more
    than one thought", "no box", "box not closed", "empty box", "more than one box", "text after the box (..
    characters)".

    Args:
        box: The answer ends in exactly one `\boxed{}` with something in it (after the thought, if there is one).
        thought: The answer begins with `<think>`, and has one `</think>` with something behind it.
        most_after_box: Characters that may follow the box.

    Raises:
        ValueError: If neither form is asked for, or the number is negative.

    Example:
        >>> FormatVerifier().verify_many([(r"So \boxed{5}.", ""), (r"\boxed{5} or \boxed{6}", "")])[1].reason
        'more than one box'
    """

    def __init__(self, box: bool = True, thought: bool = False, most_after_box: int = 20) -> None:
        if not (box or thought):
            raise ValueError("ask for a form: box, thought or both")
        if most_after_box < 0:
            raise ValueError(f"most_after_box = {most_after_box} must not be negative")
        self.box = box
        self.thought = thought
        self.most_after_box = most_after_box

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges the texts of (answer text, gold) pairs, in order."""
        faults = [self._fault(text) for text, _ in pairs]
        return [Verdict("wrong", fault) if fault else Verdict("right", "form kept") for fault in faults]

    def _fault(self, text: str) -> str | None:
        final = after_thought(text)
        if final is None:
            return "thought not ended"
        fault = _fault_of_thought(text, final) if self.thought else None
        return fault or (self._fault_of_box(final) if self.box else None)

    def _fault_of_box(self, final: str) -> str | None:
        boxes = find_boxes(final)
        if not boxes.total:
            return "no box"
        if boxes.last is None:
            return "box not closed"
        if not boxes.last.strip():
            return "empty box"
        if boxes.total > 1:
            return "more than one box"
        after = len(final[boxes.end :].strip())
        return f"text after the box ({after} characters)" if after > self.most_after_box else None


def _fault_of_thought(text: str, final: str) -> str | None:
    marks = _THOUGHT.findall(text)
    if not text.lstrip().startswith("<think>") or "</think>" not in marks:
        return "no thought"
    if not final.strip():
        return "nothing after the thought"
    return "more than one thought" if len(marks) != 2 else None
