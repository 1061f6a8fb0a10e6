import pytest
from tiny import write_model


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    """A folder with a small random policy."""
    return write_model(tmp_path_factory.mktemp("policy"))
