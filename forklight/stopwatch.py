"""Wall time by phase, for the curves under `time/`."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the time of each phase of a run; readers take differences."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Seconds since the start, by phase."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the code inside, also if it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
