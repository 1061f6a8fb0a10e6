"""What several test folders need."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# No deadlines: a busy machine is no failure. In CI the examples are the same every time.
settings.register_profile("forklight", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("forklight")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a file of the shared test data: `shared_data("verifier_cases.jsonl")`; skips the test where there is none.

    The files are not in the repository. They are looked for in `$FORKLIGHT_TEST_DATA`, else in `shared/data` beside it.
    """
    folder = Path(os.environ.get("FORKLIGHT_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

    def find(name: str) -> Path:
        path = folder / name
        if not path.is_file():
            pytest.skip(f"no {name} in {folder} (set FORKLIGHT_TEST_DATA to the folder of the shared data)")
        return path

    return find
