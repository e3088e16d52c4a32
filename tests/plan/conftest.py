from pathlib import Path

import pytest

from tests.helpers.jobs import write_tokens


@pytest.fixture(scope="session")
def tokens(tmp_path_factory) -> Path:
    """Prefix of a tiny data set without a manifest."""
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tiny")
