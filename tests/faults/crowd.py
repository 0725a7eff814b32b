"""Clients that ask the service all the time, and hold each answer, and then the table, against what is promised."""

import http.client
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import psycopg

from streamorch import keys
from tests.conftest import API_SECRET
from tests.running import Service

# How long each fault lasts under load: short in `make test`, as long as one likes for a proof.
SECONDS = float(os.environ.get("PROOF_SECONDS", "0.5"))

BEARER = {"Authorization": f"Bearer {API_SECRET}"}
PATIENCE = 30.0
# A claim without a conflict is answered within about a second, also when PostgreSQL is frozen; the rest is for a
# machine that is busy with other things.
DEADLINE_SECONDS = 3.0

# So many questions at most are inside a worker, and lost with it when it is killed.
CLIENTS_OF_A_WORKER = 20

_PAUSE_SECONDS = 0.02
# What is answered to each question when nothing is wrong.
_RIGHT = {
    "claim": {200},
    "ready": {204},
    "not-ready": {204},
    "stranger": {401},
    "list": {200, 304},
    "readyz": {200},
}


class Answer(NamedTuple):
    """One answer, as a client saw it: moments of the monotonic clock.

    Status 0 when there was none; `problem` is then "refused" when the connection was, else what became of it.
    """

    question: str
    asked_at: float
    answered_at: float
    status: int
    problem: str = ""
    is_stale: bool = False

    @property
    def seconds(self) -> float:
        return self.answered_at - self.asked_at

    @property
    def is_right(self) -> bool:
        return self.status in _RIGHT[self.question] and not self.is_stale


class Caller:
    """One client with a connection for each question, as MediaMTX has, or one for many."""

    def __init__(self, url: str, *, keeps: bool = False, timeout: float = 10.0):
        self.address = urlsplit(url)
        self.keeps = keeps
        self.timeout = timeout
        self.connection: http.client.HTTPConnection | None = None

    def ask(
        self, method: str, target: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body. ConnectionRefusedError when it was not let in, another error when it was lost."""
        connection, self.connection = self.connection, None
        if connection is None:
            connection = http.client.HTTPConnection(self.address.hostname or "", self.address.port, self.timeout)
            connection.connect()
        try:
            own = {} if self.keeps else {"Connection": "close"}
            connection.request(method, target, json.dumps(body) if body is not None else None, own | (headers or {}))
            answer = connection.getresponse()
            content = answer.read()
        except BaseException as error:
            connection.close()
            if isinstance(error, ConnectionRefusedError):
                raise http.client.HTTPException("refused after it was let in") from error
            raise
        if self.keeps and not answer.will_close:
            self.connection = connection
        else:
            connection.close()
        return answer.status, answer.headers, content

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()


def make_keys(database_url: str, count: int) -> list[str]:
    """So many keys, by SQL."""
    values = [keys.mint() for _ in range(count)]
    with psycopg.connect(database_url, autocommit=True) as conn, conn.cursor() as cursor:
        broadcaster_id = uuid.uuid4()
        cursor.execute("INSERT INTO broadcasters (id, display_name) VALUES (%s, 'Team 7')", [broadcaster_id])
        cursor.executemany(
            "INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint) VALUES (%s, %s, %s, %s)",
            [(uuid.uuid4(), broadcaster_id, keys.digest(value), keys.hint(value)) for value in values],
        )
    return values


def question(key: str, path: str, connection_id: str | None = None, **members: Any) -> dict[str, Any]:
    """What MediaMTX asks for a publisher."""
    own = {"action": "publish", "path": path, "protocol": "rtmp", "id": connection_id or str(uuid.uuid4())}
    return own | {"password": key} | members


class Asking:
    """One claim, asked beside what else goes on; `status` is 0 when there was no answer."""

    def __init__(self, url: str, body: dict[str, Any]):
        self.status = 0
        self._url = url
        self._body = body
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _ask(self) -> None:
        with closing(Caller(self._url)) as caller, suppress(OSError, http.client.HTTPException):
            self.status, _, _ = caller.ask("POST", "/auth", self._body)


class Crowd:
    """Publishers that claim, start, end and claim again, strangers, and frontends, all asking at once.

    A publisher to whom a 503 is said, or nothing, asks the very same again until it is answered: so every answer is
    known beforehand, and so is what must stand in the table. `flaws` is what was otherwise.
    """

    def __init__(self, service: Service, *, publishers: int = 12, others: int = 8, url: str | None = None):
        self.service = service
        self.url = url or service.url
        self.keys = make_keys(service.database_url, publishers)
        self.prefix = uuid.uuid4().hex[:8]
        self.answers: list[Answer] = []
        self.flaws: list[str] = []
        self.asked: set[str] = set()
        self.done: dict[str, set[str]] = {"claim": set(), "ready": set(), "not-ready": set()}
        self.right: Counter[str] = Counter()
        self.kinds = {*self.done, *("stranger", "list", "list", "readyz")[:others]}
        self.over = threading.Event()
        ways = (self._try_a_key_that_is_none, self._watch, self._watch, self._probe)
        clients = [(self._publish, number) for number in range(publishers)]
        clients += [(ways[number % len(ways)], number // len(ways)) for number in range(others)]
        self.threads = [threading.Thread(target=self._serve, args=client) for client in clients]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def warm_up(self) -> None:
        """Returns when each kind of question was answered some times."""
        wait_until(lambda: all(self.right[kind] >= 5 for kind in self.kinds))

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    # --- the clients ---

    def _serve(self, client: Callable[[Caller, int], None], number: int) -> None:
        with closing(Caller(self.url, keeps=number % 2 == 0)) as caller:
            while not self.over.is_set():
                client(caller, number)

    def _publish(self, caller: Caller, number: int) -> None:
        path = f"live/{self.prefix}-{number}"
        connection_id = str(uuid.uuid4())
        self.asked.add(connection_id)
        event = {"path": path, "source_type": "rtmpConn", "source_id": connection_id}
        for what, target, body in (
            ("claim", "/auth", question(self.keys[number], path, connection_id)),
            ("ready", "/webhook/ready", event),
            ("not-ready", "/webhook/not-ready", event),
        ):
            if not self._insist(caller, what, target, body):
                return
            self.done[what].add(connection_id)

    def _insist(self, caller: Caller, what: str, target: str, body: dict[str, Any]) -> bool:
        """Ask until it is answered; False when it is over before."""
        while not self.over.is_set():
            if self._ask(caller, what, "POST", target, body).is_right:
                return True
        return False

    def _try_a_key_that_is_none(self, caller: Caller, number: int) -> None:
        self._ask(caller, "stranger", "POST", "/auth", question("sk_" + "0" * 43, "live/stranger"))

    def _watch(self, caller: Caller, number: int) -> None:
        self._ask(caller, "list", "GET", "/streams", None, BEARER)

    def _probe(self, caller: Caller, number: int) -> None:
        self._ask(caller, "readyz", "GET", "/readyz", None, BEARER)

    def _ask(
        self,
        caller: Caller,
        what: str,
        method: str,
        target: str,
        body: dict[str, Any] | None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        asked_at = time.monotonic()
        try:
            status, told, content = caller.ask(method, target, body, headers)
        except ConnectionRefusedError:
            answer = Answer(what, asked_at, time.monotonic(), 0, "refused")
        except (OSError, http.client.HTTPException) as error:
            answer = Answer(what, asked_at, time.monotonic(), 0, f"{type(error).__name__}: {error}")
        else:
            answer = self._judged(what, asked_at, status, told, content)
        self.answers.append(answer)
        self.right[what] += answer.is_right
        self.over.wait(_PAUSE_SECONDS)
        return answer

    def _judged(self, what: str, asked_at: float, status: int, told: http.client.HTTPMessage, content: bytes) -> Answer:
        """The answer, and a flaw for whatever of it is not as the contract has it."""
        moment = time.monotonic()
        said: dict[str, Any] = json.loads(content) if content else {}
        problem = str(said.get("type", "")).removeprefix("/errors/") if status >= 400 else ""
        is_problem = told["Content-Type"] == "application/problem+json" and said.get("status") == status
        if status == 503:
            is_as_told = what == "readyz" or (problem == "database-unavailable" and is_problem)
            if not is_as_told or told["Retry-After"] != "1":
                self.flaws.append(f"{what}: 503 {said} {told.items()}")
        elif status not in _RIGHT[what] or (what == "stranger" and problem != "invalid-stream-key"):
            self.flaws.append(f"{what}: {status} {said}")
        return Answer(what, asked_at, moment, status, problem, is_stale=what == "list" and bool(said.get("stale")))

    # --- what is to be said of them ---

    def between(self, start: float, end: float) -> list[Answer]:
        return [answer for answer in self.answers if start <= answer.asked_at < end]

    def lost(self) -> list[Answer]:
        """Who was let in and had no answer."""
        return [answer for answer in self.answers if answer.status == 0 and answer.problem != "refused"]

    def hold_well(self, since: float, *, within: float = 2.0) -> None:
        """Soon after `since` each kind of question is answered as on any other day, and a second later all are."""
        later = [answer for answer in self.answers if answer.asked_at >= since]
        right_at: dict[str, float] = {}
        for answer in later:
            if answer.is_right:
                right_at.setdefault(answer.question, answer.asked_at)
        assert right_at.keys() == {answer.question for answer in self.answers}, (right_at, later[-3:])
        well_at = max(right_at.values())
        print(f"well again {well_at - since:.2f} s after its end")
        assert well_at - since < within
        # The workers find out one after the other.
        assert_few([answer for answer in later if answer.asked_at >= well_at + 1])

    def report(self, name: str, start: float, end: float) -> None:
        """One line for whoever reads along (pytest -s)."""
        during = sorted(answer.seconds for answer in self.between(start, end))
        counts = Counter(f"{a.status}{' stale' if a.is_stale else ''}" for a in self.between(start, end))
        print(
            f"\n{name}: {len(self.answers)} answers, {len(during)} of them in the fault: {dict(counts)},"
            f" p50 {_part(during, 0.5):.3f} s, p95 {_part(during, 0.95):.3f} s, max {_part(during, 1):.3f} s"
        )

    def hold(self, *, within: float = DEADLINE_SECONDS, may_be_lost: int = 0) -> None:
        """Every answer as promised and in time, and in the table what was answered: no more, no less, nothing twice."""
        assert self.flaws == []
        assert len(self.lost()) <= may_be_lost, self.lost()
        late = [answer for answer in self.answers if answer.status and answer.seconds > within]
        assert late == []
        with psycopg.connect(self.service.database_url) as conn:
            rows = conn.execute(
                "SELECT auth_id, started_at, ended_at FROM streams WHERE path LIKE %s", [f"live/{self.prefix}-%"]
            ).fetchall()
        stored = {row[0]: row for row in rows}
        assert len(stored) == len(rows), "stored twice"
        assert self.done["claim"] <= stored.keys() <= self.asked
        assert self.done["ready"] <= {of for of, (_, started_at, _) in stored.items() if started_at}
        assert self.done["not-ready"] <= {of for of, (_, _, ended_at) in stored.items() if ended_at}


def _part(sorted_seconds: list[float], part: float) -> float:
    return sorted_seconds[min(len(sorted_seconds) - 1, int(part * len(sorted_seconds)))] if sorted_seconds else 0.0


def assert_few(answers: list[Answer], part: float = 0.05) -> None:
    """Hardly one of these is other than on any other day.

    (On a machine that is busy with other things somebody waits too long for a connection at times.)
    """
    wrong = [answer for answer in answers if not answer.is_right]
    assert len(wrong) <= max(2, part * len(answers)), wrong


def p95(answers: list[Answer]) -> float:
    return _part(sorted(answer.seconds for answer in answers), 0.95)


def wait_until(is_so: Any, seconds: float = PATIENCE) -> float:
    """How long it took until it was so; AssertionError when it did not become so."""
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < seconds, "it did not come to it"
        time.sleep(0.02)
    return time.monotonic() - begun


def is_gone(pid: int) -> bool:
    """Has this process ended? (Whoever has to may not have taken note of it yet.)"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def hold_log(service: Service) -> None:
    """Nothing unforeseen was logged, and no secret."""
    log = service.log.read_text(errors="replace")
    for unwanted in ("Traceback", "Logging error", "unforeseen", "sk_", API_SECRET):
        assert unwanted not in log, log[max(0, log.index(unwanted) - 500) :][:3000]
