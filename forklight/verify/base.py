"""The interface of a verifier."""

from typing import Protocol, runtime_checkable

from forklight.types import Verdict


@runtime_checkable
class Verifier(Protocol):
    """Judges answers against golds. Any object with this one method can be the verifier of a run.

    What a verifier of your own must keep to:

    - It returns one `Verdict` per pair, in the order of the pairs.
    - It judges a pair by its two texts alone: the same pair gets the same outcome in every batch, process and run.
    - It never raises because of an answer, however malformed, and never passes it to `eval`. A gold that cannot be
      right (a fault of the data set) may raise `ValueError`.
    - It returns within a bounded time. What it cannot decide in that time is `unjudged`, never `wrong`.
    - It can be pickled (processes and pipes are started on first use and left out of its state).
    - It says in `Verdict.reason` what decided, in a short phrase that is the same for the same fault.

    Example:
        >>> class Exact:
        ...     def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        ...         same = [answer.strip() == gold for answer, gold in pairs]
        ...         return [Verdict("right", "equal") if s else Verdict("wrong", "not equal") for s in same]
        >>> isinstance(Exact(), Verifier)
        True
    """

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges answers.

        Args:
            pairs: (answer text, gold) pairs. The answer text is all that the model wrote, without special tokens.

        Returns:
            One verdict per pair, in the same order.
        """
        ...
