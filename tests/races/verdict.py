"""A race from the first preparation to the verdict."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from tests.races.broken import break_schema
from tests.races.crew import Crew
from tests.races.kinds import KINDS
from tests.races.rounds import complaints, prepare, read


@dataclass
class Verdict:
    """What came of all rounds of one kind; complaints has one line for each round that is wrong."""

    kind: str
    rounds: int
    seconds: float
    winners: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    complaints: list[str] = field(default_factory=list)


def hold(
    crew: Crew, kind_name: str, database_url: str, rounds: int, *, patient: bool = False, broken: str | None = None
) -> Verdict:
    """Hold the race in an empty database with the current schema, and judge it. `broken` names one of BREAKS.

    Locks are held until the commit is on the disk, which is when most rivals meet. When `patient`, commits do not wait
    for the disk and locks are waited for longer: for a busy machine, where slow is not wrong.
    """
    kind = KINDS[kind_name]
    began = time.monotonic()
    with psycopg.connect(database_url, autocommit=True) as conn:
        if broken:
            break_schema(conn, broken)
        _set_up(conn, patient)
        prepare(conn, kind, rounds)
        told = crew.race(kind_name, database_url, rounds)
        verdict = Verdict(kind_name, rounds, time.monotonic() - began)
        for of in read(conn, kind, told):
            verdict.winners[of.count(kind.prize)] += 1
            for role, _, outcome in of.told:
                if outcome in role.outcomes:
                    verdict.outcomes[outcome] += 1
                else:
                    verdict.errors += 1
            if wrong := list(complaints(kind, of)):
                verdict.complaints.append(f"{'; '.join(wrong)}: {of}")
    return verdict


_WAIT_LONGER: LiteralString = """
    DO $do$
    DECLARE
        impatient regprocedure;
    BEGIN
        FOR impatient IN SELECT p.oid FROM pg_proc AS p WHERE p.proname LIKE '%_v1' AND p.prokind = 'f' LOOP
            EXECUTE replace(pg_get_functiondef(impatient), $$'300ms'$$, $$'5s'$$);
        END LOOP;
    END
    $do$
"""


def _set_up(conn: psycopg.Connection[TupleRow], patient: bool) -> None:
    """For the connections to come: a deadlock is found, and named, before lock_timeout (300 ms) does away with it."""
    database = sql.Identifier(conn.info.dbname)
    for setting in ("deadlock_timeout = '10ms'", f"synchronous_commit = {'off' if patient else 'on'}"):
        conn.execute(sql.SQL("ALTER DATABASE {} SET {}").format(database, sql.SQL(setting)))
    if patient:
        conn.execute(_WAIT_LONGER)
