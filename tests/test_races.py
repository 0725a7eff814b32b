"""The races of `python -m tests.races` in short, and that they notice when a lock is missing."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.races.broken import BREAKS, break_schema
from tests.races.crew import Crew
from tests.races.kinds import KINDS
from tests.races.verdict import hold

pytestmark = pytest.mark.own_database

ROUNDS = 200
ROUNDS_TO_NOTICE = 400

# These rivals meet once in hundreds of rounds: it takes `python -m tests.races --break NAME` to see them.
RARELY_NOTICED = {"claim-without-order", "not-ready-without-path-lock"}


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew(processes=2) as crew:
        yield crew


@pytest.mark.parametrize("kind_name", KINDS)
def test_no_race_has_another_end_than_it_must(crew, database_url, kind_name):
    wrong = hold(crew, kind_name, database_url, ROUNDS, patient=True).complaints
    assert wrong == [], wrong[0]


@pytest.mark.parametrize("broken", sorted(BREAKS.keys() - RARELY_NOTICED))
def test_a_race_notices_what_is_broken(crew, database_url, broken):
    assert hold(crew, BREAKS[broken].kind, database_url, ROUNDS_TO_NOTICE, patient=True, broken=broken).complaints


@pytest.mark.parametrize("broken", BREAKS)
def test_a_break_that_finds_nothing_to_break_is_an_error(conn, broken):
    break_schema(conn, broken)
    with pytest.raises(psycopg.ProgrammingError, match=r"not exactly one line|does not exist"):
        break_schema(conn, broken)
