"""The floor of what PostgreSQL takes: the service's own statement, by pgbench, or by psycopg where that is missing."""

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from bench import load, messages
from bench.data import UNKNOWN, Database, connection_of, key_hash_of, path_of
from bench.figures import Sample
from bench.messages import ADDRESS, AGENT, Numbers
from streamorch.repositories import NODE

# So many at the beginning of each session: it plans, and plans anew until it trusts its plans.
UNCOUNTED = 60
_SECONDS = 120.0  # for a run, whatever it is asked for

# Stands in a statement where the number of a key belongs.
NUMBER = "@n@"
# What the claim is told, by the names of the function's parameters.
_CLAIM = {
    "p_key_hash": key_hash_of(NUMBER),
    "p_node": f"'{NODE}'",
    "p_path": path_of(NUMBER),
    "p_connection_id": connection_of(NUMBER),
    "p_protocol": "'rtmp'",
    "p_remote_address": f"'{ADDRESS}'",
    "p_user_agent": f"'{AGENT}'",
    "p_lease_seconds": "20",
    "p_judged_gone": "NULL",
}


class StatementError(Exception):
    """The statement is not to be had, or came to something else than it should; the text says what."""


class Asker:
    """Asks the claim's statement: each session one after another, without a pause, prepared."""

    def __init__(self, port: int, database: Database, programs: Path | None) -> None:
        """The statement is the one that the service at this port, on the same database, sends when it is asked."""
        beside = programs / "pgbench" if programs else None
        self._pgbench = str(beside) if beside and beside.exists() else shutil.which("pgbench")
        self.name = "the statement alone" + ("" if self._pgbench else " (psycopg, no pgbench)")
        self._database = database
        load.ask(port, messages.claim().of(UNKNOWN.first))
        self._statement = sent_claim(database.conn)

    def ask(self, numbers: Numbers, count: int, *, sessions: int) -> Sample:
        """`count` answers, those that warm the sessions not counted. Each session has its own part of the numbers.

        Those that are not to be asked `again` must all claim their path. StatementError.
        """
        each = count // sessions + UNCOUNTED
        span = numbers.count // sessions
        if not numbers.again and span < each:
            raise StatementError(f"{numbers.count} keys are not enough for {sessions} sessions of {each} claims")
        ask = self._by_pgbench if self._pgbench else self._by_psycopg
        counted = [
            (ended, latency) for place, ended, latency in ask(numbers.first, span, each, sessions) if place > UNCOUNTED
        ]
        if not numbers.again:
            parts = (Numbers(numbers.first + session * span, each) for session in range(sessions))
            claimed = sum(map(self._database.count_claims, parts))
            if claimed != each * sessions:
                raise StatementError(f"{claimed} of {each * sessions} keys claimed their path")
        ends = [ended for ended, _ in counted]
        return Sample(
            len(counted), max(ends) - min(ends) + counted[0][1], latencies=[latency for _, latency in counted]
        )

    def _by_pgbench(self, first: int, span: int, each: int, sessions: int) -> list[tuple[int, float, float]]:
        """Of each statement: its place in its session from 1 on, when it ended, and its latency, both in seconds."""
        script = (
            "\\set i :i + 1\n"  # a variable lasts as long as the session
            f"\\set n {first} + :client_id * {span} + :i % {span}\n"
            f"{self._statement.replace(NUMBER, ':n::bigint')};\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "statement.sql")
            file.write_text(script)
            options = ["--no-vacuum", "--protocol=prepared", f"--client={sessions}", f"--transactions={each}"]
            logging = [f"--file={file}", "--define=i=-1", "--log", f"--log-prefix={folder}/log"]
            where = conninfo_to_dict(self._database.url)
            password = {"PGPASSWORD": str(where.pop("password"))} if "password" in where else {}  # not for `ps`
            done = subprocess.run(
                [str(self._pgbench), *options, *logging, make_conninfo("", **where)],
                env=os.environ | password,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
            if done.returncode:
                raise StatementError(f"pgbench: {done.stderr.strip()}")
            lines = [line.split() for log in Path(folder).glob("log.*") for line in log.read_text().splitlines()]
        # Session, place, latency in microseconds, script, and when it ended: seconds, and microseconds beside.
        return [(int(place), int(end) + int(micro) / 1e6, int(us) / 1e6) for _, place, us, _, end, micro in lines]

    def _by_psycopg(self, first: int, span: int, each: int, sessions: int) -> list[tuple[int, float, float]]:
        """The same in threads of this process, which takes more of the machine."""
        found: list[tuple[int, float, float]] = []
        statement = self._statement.replace(NUMBER, "%(n)s::bigint").encode()

        def session(start: int) -> None:
            with psycopg.connect(self._database.url, autocommit=True, prepare_threshold=0) as conn:
                for place in range(each):
                    began = time.perf_counter()
                    conn.execute(statement, {"n": start + place % span})
                    ended = time.perf_counter()
                    found.append((place + 1, ended, ended - began))

        threads = [threading.Thread(target=session, args=(first + number * span,)) for number in range(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def sent_claim(conn: psycopg.Connection[TupleRow]) -> str:
    """The claim as some session of this database sent it last, NUMBER in the place of its key. StatementError.

    It must be the call of one function whose parameters have the names that are known here.
    """
    row = conn.execute(
        "SELECT query FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%/* streams.claim */%' LIMIT 1"
    ).fetchone()
    call = re.fullmatch(r"(.*\bFROM\s+(\w+)\s*\()([^()]*)(\)\s*)", row[0], re.DOTALL) if row else None
    if call is None:
        raise StatementError(f"no session of the service has claimed by the call of one function: {row}")
    found = conn.execute("SELECT proargnames[:pronargs] FROM pg_proc WHERE proname = %s", [call[2]]).fetchone()
    names, given = found[0] if found else [], call[3].split(",")
    if len(given) != len(names) or not set(names) <= _CLAIM.keys():
        raise StatementError(f"{call[2]} has other parameters than are known here: {names}")
    values = (re.sub(r"\$\d+", _CLAIM[name], argument) for name, argument in zip(names, given, strict=True))
    return f"{call[1]}{','.join(values)}{call[4]}".strip()
