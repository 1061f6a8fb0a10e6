"""A rule that a random policy meets half of the time, for runs that last a second."""

from forklight.types import Verdict


class LengthParity:
    """Right if the answer has an even number of bytes."""

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        return [
            Verdict("wrong" if len(answer.encode()) % 2 else "right", "parity", extracted=answer) for answer, _ in pairs
        ]
