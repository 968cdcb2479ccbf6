"""What the tests of the command line share."""

from collections.abc import Iterator

import pytest

from tests.cli.mill import Mill, new_mill


@pytest.fixture
def mill(tmp_path, monkeypatch) -> Iterator[Mill]:
    """An empty folder, and nothing of ours in the environment but a key."""
    with new_mill(tmp_path, monkeypatch) as made:
        yield made
