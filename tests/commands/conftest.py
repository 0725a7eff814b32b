"""A shell on the database of the test."""

import pytest

from tests.commands import Shell


@pytest.fixture
def shell(database_url: str) -> Shell:
    return Shell(database_url)
