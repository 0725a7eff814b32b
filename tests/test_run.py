"""`make`, `streamorch run`, `serve` and `migrate` as an operator meets them: real processes, signals and wheels."""

import ast
import configparser
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import psycopg
import pytest
import requests
from psycopg import sql

from streamorch import mediamtx_config
from streamorch.local import Interrupts, watch
from streamorch.repositories import migrate
from streamorch.settings import Settings
from tests.test_mediamtx_config import Publisher, free_ports, places

TOP = Path(__file__).resolve().parent.parent
PATIENCE = 60
AWAY = "postgresql://team:hunter2@127.0.0.1:9/none"


# As much of MediaMTX as `run` sees.
FAKE_MEDIAMTX = f"""#!{sys.executable}
import os, pathlib, re, signal, socket, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("v1.18.2"))
signal.signal(signal.SIGINT, lambda *_: sys.exit(print("INF closing", flush=True)))
print("INF", *sorted(os.environ), flush=True)
if "FAKE_ERROR" in os.environ:
    print("2026/01/01 00:00:00 ERR", os.environ["FAKE_ERROR"], flush=True)
    sys.exit(1)
host, port = re.search(r"apiAddress: (\\S+):(\\d+)", pathlib.Path(sys.argv[1]).read_text()).groups()
with socket.create_server((host, int(port))) as server:
    while True:
        server.accept()[0].close()
"""


def free_port() -> int:
    return free_ports(1)[0]


class Program:
    """`python -m streamorch ...` in a session of its own, as a terminal starts it. Its lines are read as they come."""

    def __init__(self, *arguments: str, cwd: Path = TOP, **environ: str):
        ours = ("API_", "DATABASE_", "STREAMORCH_", "MEDIAMTX_", "MTX_", "PG")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        # Only the tests of it start a MediaMTX, be there one on PATH or not.
        inherited["MEDIAMTX_BIN"] = "off"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamorch", *arguments],
            cwd=cwd,
            env=inherited | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.error_lines: list[str] = []
        self._news: Queue[str] = Queue()
        self._readers = [
            threading.Thread(target=self._read, args=[self.process.stdout, self.lines], daemon=True),
            threading.Thread(target=self._read, args=[self.process.stderr, self.error_lines], daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))
                self._news.put(line)

    def wait_for(self, text: str) -> str:
        """The line that holds this text; a failure when the program ends without it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in [*self.lines, *self.error_lines]:
                if text in line:
                    return line
            if self.process.poll() is not None and self._news.empty() and not any(r.is_alive() for r in self._readers):
                break
            try:
                self._news.get(timeout=0.1)
            except Empty:
                continue
        return pytest.fail(f"never said {text!r}: {self.lines[-5:]} {self.error_lines[-5:]}")

    def press_ctrl_c(self) -> None:
        """What a terminal does: SIGINT to all processes in the foreground."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal this process alone; returns the exit code."""
        self.process.send_signal(number)
        return self.exit_code()

    def exit_code(self) -> int:
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    @property
    def complaints(self) -> list[str]:
        """What it wrote on standard error beside its JSON log."""
        return [line for line in self.error_lines if not line.startswith("{")]


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Start a Program; what is left of it at the end of the test is killed."""
    started: list[Program] = []

    def start_one(*arguments: str, **options: Any) -> Program:
        started.append(Program(*arguments, **options))
        return started[-1]

    yield start_one
    for program in started:
        if program.process.poll() is None:
            try:
                program.end()
            finally:
                program.process.kill()


@pytest.fixture
def home() -> Iterator[Path]:
    """A STREAMORCH_HOME in a place which PostgreSQL's own user reaches, too."""
    folder = Path(tempfile.mkdtemp(prefix="streamorch-home-"))
    yield folder / "home"
    shutil.rmtree(folder)


@pytest.fixture
def bare_url(postgresql: psycopg.Connection[Any]) -> str:
    """A database without any table."""
    postgresql.autocommit = True
    postgresql.execute("DROP SCHEMA public CASCADE")
    postgresql.execute("CREATE SCHEMA public")
    info = postgresql.info
    return f"postgresql://{info.user}@/{info.dbname}?host={info.host}&port={info.port}"


def is_over(home: Path) -> bool:
    """Have the service and MediaMTX let go of their locks, and PostgreSQL of its data?"""
    for name in ("service.lock", "mediamtx.lock"):
        with (home / name).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return not (home / "postgres" / "postmaster.pid").exists()


def one_line(program: Program) -> str:
    """The only complaint of a program that failed as it should."""
    assert program.exit_code() == 1
    assert len(program.error_lines) == 1, program.error_lines
    return program.error_lines[0]


def found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    assert match, pattern
    return match


def shell(script: str, **environ: str) -> str:
    return subprocess.run(
        ["sh", "-ec", script],
        cwd=TOP,
        env=os.environ | environ,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    ).stdout.strip()


class Child:
    """A process as `watch` looks after it; the signal comes while subprocess has locked what it knows of it."""

    def __init__(self) -> None:
        self.looks = 0

    def poll(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self.looks += 1


def test_a_signal_never_interrupts_the_look_after_a_child():
    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    child: Any = Child()
    try:
        with pytest.raises(KeyboardInterrupt):
            watch(child, None, None, Interrupts())
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
    assert child.looks == 1


@pytest.mark.slow
class TestRun:
    @pytest.fixture
    def run(self, start: Callable[..., Program], home: Path) -> Callable[..., Program]:
        return lambda **environ: start("run", **{"STREAMORCH_HOME": str(home), "API_PORT": str(free_port())} | environ)

    def test_the_commands_it_shows_lead_to_a_live_stream_and_the_data_stays(self, run, home):
        first = run()
        url = first.wait_for("is ready").split()[-1]
        first.wait_for("mediamtx mediamtx.yml")
        shown = "\n".join(first.lines)
        secret = (home / "api_secret").read_text().strip()
        assert secret not in shown
        assert str(home / "api_secret") in first.wait_for("The API secret is in")
        assert (home / "api_secret").stat().st_mode & 0o777 == 0o600
        # As printed, up to the encoder.
        commands = shown[shown.index("  SECRET=") : shown.index("  ffmpeg")]
        rtmp_url = shell(f'{commands}\necho "$RTMP_URL"')
        path, key = found(r"^rtmp://localhost:1935/(\S+)\?pass=(\S+)$", rtmp_url).groups()
        asked = {
            "action": "publish",
            "path": path,
            "protocol": "rtmp",
            "id": "c1",
            "query": f"pass={key}",
            "password": "",
        }
        assert requests.post(f"{url}/auth", json=asked, timeout=5).status_code == 200
        config = shell(found(r"\S+ -m streamorch mediamtx-config", shown).group(), API_PORT=url.rpartition(":")[2])
        assert f"authHTTPAddress: {url}/auth" in config
        hook = found(r"curl -sS .*?webhook/ready", re.sub(r"\s+", " ", config)).group()
        shell(hook.replace("$MTX_PATH", path).replace("$MTX_SOURCE_TYPE", "rtmpConn").replace("$MTX_SOURCE_ID", "c1"))
        api = {"Authorization": f"Bearer {secret}"}
        assert [s["path"] for s in requests.get(f"{url}/streams", headers=api, timeout=5).json()["streams"]] == [path]

        first.press_ctrl_c()
        assert first.exit_code() == 0
        assert first.complaints == []
        assert is_over(home)

        os.truncate(home / "postgres" / "server.log", 6_000_000)
        again = run()
        url = again.wait_for("is ready").split()[-1]
        assert (home / "postgres" / "server.log.1").stat().st_size == 6_000_000
        assert (home / "postgres" / "server.log").stat().st_size < 10_000
        assert requests.get(f"{url}/broadcasters", headers=api, timeout=5).json()["count"] == 1
        assert again.end() == 0
        assert is_over(home)

    def test_what_a_killed_run_leaves_behind_is_taken_over(self, run, home):
        killed = run()
        killed.wait_for("is ready")
        port = killed.wait_for("is ready").rpartition(":")[2]
        killed.process.kill()
        killed.process.wait()
        again = run(API_PORT=port)
        again.wait_for("stopping the service that an earlier run left behind")
        again.wait_for("is ready")
        assert killed.exit_code() == -signal.SIGKILL
        assert again.end() == 0
        assert is_over(home)

    def test_a_second_run_from_the_same_home_is_refused(self, run, home):
        first = run()
        first.wait_for("is ready")
        assert f"already runs from {home} (process {first.process.pid})" in one_line(run())
        assert first.end() == 0

    def test_postgres_is_started_again_when_it_dies(self, run, home):
        program = run()
        url = program.wait_for("is ready").split()[-1]
        os.kill(int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        program.wait_for("PostgreSQL has stopped by itself")
        deadline = time.monotonic() + PATIENCE
        while requests.get(f"{url}/readyz", timeout=5).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert program.end() == 0
        assert is_over(home)

    def test_a_service_that_dies_ends_it_in_one_line(self, run, home):
        program = run()
        program.wait_for("is ready")
        os.kill(int((home / "service.lock").read_text()), signal.SIGKILL)
        assert program.exit_code() == 1
        assert program.complaints == ["streamorch: the service has stopped by itself (SIGKILL)"]
        assert is_over(home)

    @pytest.mark.parametrize("delay", [0.3, 0.8])
    def test_an_impatient_ctrl_c_leaves_nothing(self, delay, run, home):
        program = run()
        program.wait_for("streamorch: ")
        time.sleep(delay)
        program.press_ctrl_c()
        program.press_ctrl_c()
        assert program.exit_code() == 0
        assert program.complaints == []
        assert is_over(home)
        assert run().wait_for("is ready")

    def test_a_home_too_deep_for_a_socket_works(self, run, home):
        deep = home.parent / ("d" * 60) / ("e e" * 30)
        program = run(STREAMORCH_HOME=str(deep))
        program.wait_for("is ready")
        folder = Path((deep / "postgres" / "postmaster.pid").read_text().splitlines()[4])
        assert folder.stat().st_mode & 0o777 == 0o700
        assert program.end() == 0
        assert not folder.exists()

    def test_a_database_of_ones_own_is_used(self, run, home, bare_url):
        program = run(DATABASE_URL=bare_url, API_SECRET="one, two")
        assert program.wait_for("  SECRET=").strip() == "SECRET=${API_SECRET%%,*}"
        assert program.end() == 0
        migrate.check(bare_url)
        assert not (home / "postgres").exists()
        assert not (home / "api_secret").exists()


@pytest.mark.slow
class TestRunWithMediaMTX:
    @pytest.fixture
    def api_url(self) -> str:
        return f"http://localhost:{free_port()}"

    @pytest.fixture
    def fake(self, tmp_path: Path) -> str:
        program = tmp_path / "a fake"
        program.write_text(FAKE_MEDIAMTX)
        program.chmod(0o700)
        return str(program)

    @pytest.fixture
    def run(self, start: Callable[..., Program], home: Path, bare_url: str, api_url: str, fake: str) -> Any:
        """`streamorch run` with the fake, from a home that has a database elsewhere."""
        given = {"DATABASE_URL": bare_url, "API_SECRET": "s3cret", "STREAMORCH_HOME": str(home), "MEDIAMTX_BIN": fake}
        given |= {"API_PORT": str(free_port()), "MEDIAMTX_API_URL": api_url}
        return lambda **environ: start("run", **given | environ)

    def test_it_runs_with_a_configuration_for_these_settings(self, run, home, api_url):
        program = run(MEDIAMTX_CALLBACK_SECRET="hush $1", http_proxy="http://127.0.0.1:9", MTX_SRTADDRESS=":1")
        line = program.wait_for("MediaMTX v1.18.2 is running (")
        url = program.wait_for("is ready").split()[-1]
        program.wait_for("MediaMTX v1.18.2 is running, and asks streamorch")
        assert str(home / "mediamtx.log") in line
        assert not any("mediamtx-config" in line or "hush" in line for line in program.lines)
        settings = Settings.from_env(
            {
                "DATABASE_URL": "postgresql:///x",
                "API_SECRET": "s3cret",
                "CALLBACK_URL": url,
                "MEDIAMTX_API_URL": api_url,
                "MEDIAMTX_CALLBACK_SECRET": "hush $1",
            }
        )
        hooks = next((tool for tool in ("curl", "wget") if shutil.which(tool)), "none")
        file = home / "mediamtx.yml"
        assert file.read_text() == mediamtx_config.config(settings, hooks=hooks, version=(1, 18, 2))
        assert file.stat().st_mode & 0o777 == 0o600
        names = (home / "mediamtx.log").read_text().split()
        assert "MTX_SRTADDRESS" in names
        assert not [name for name in names if "SECRET" in name or "DATABASE" in name or "proxy" in name]
        program.press_ctrl_c()
        assert program.exit_code() == 0
        assert program.complaints == []
        assert "INF closing" in (home / "mediamtx.log").read_text()
        assert is_over(home)

    def test_it_is_started_again_when_it_dies_and_the_service_goes_on(self, run, home):
        program = run()
        url = program.wait_for("is ready").split()[-1]
        for pause in (1, 2):
            pid = int((home / "mediamtx.lock").read_text())
            os.kill(pid, signal.SIGKILL)
            log = home / "mediamtx.log"
            program.wait_for(
                f"MediaMTX v1.18.2 has stopped by itself (SIGKILL, see {log}) and is started again in {pause} s"
            )
            deadline = time.monotonic() + PATIENCE
            while (home / "mediamtx.lock").read_text() in ("", str(pid)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert requests.get(f"{url}/livez", timeout=5).status_code == 200
        assert program.end() == 0
        assert is_over(home)

    def test_one_that_cannot_start_is_let_be_and_the_greeting_tells_how(self, run, home):
        program = run(FAKE_ERROR="listen tcp :1935: bind: address already in use")
        program.wait_for("MediaMTX v1.18.2 is not started: listen tcp :1935: bind: address already in use")
        program.wait_for("-m streamorch mediamtx-config")
        time.sleep(2.5)
        assert not any("started again" in line for line in program.lines)
        assert program.end() == 0
        assert is_over(home)

    def test_one_that_is_there_already_is_left_alone(self, run, home, api_url):
        with socket.create_server(("127.0.0.1", int(api_url.rpartition(":")[2]))):
            program = run()
            program.wait_for("MediaMTX v1.18.2 is not started: something answers on MEDIAMTX_API_URL already")
            program.wait_for("-m streamorch mediamtx-config")
            assert program.end() == 0
        assert not (home / "mediamtx.yml").exists()

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("MEDIAMTX_API_URL", "http://192.0.2.1:9997", "MEDIAMTX_API_URL names another machine"),
            ("MEDIAMTX_API_URL", "https://localhost", "MEDIAMTX_API_URL is https, for which it would need"),
            ("MEDIAMTX_BIN", sys.executable, f"{sys.executable}: 'Python 3"),
        ],
    )
    def test_where_it_would_not_help_a_line_says_why(self, name, value, reason, run):
        program = run(**{name: value})
        program.wait_for(f"MediaMTX is not started: {reason}")
        program.wait_for("is ready")
        assert program.end() == 0

    def test_a_program_that_is_not_there_stops_the_start(self, run):
        assert one_line(run(MEDIAMTX_BIN="/no/mediamtx")) == "streamorch: MEDIAMTX_BIN: /no/mediamtx is no program"

    def test_what_a_killed_run_leaves_behind_is_ended(self, run, home):
        killed = run()
        killed.wait_for("is ready")
        killed.process.kill()
        killed.process.wait()
        left = (home / "mediamtx.lock").read_text()
        again = run()
        again.wait_for(f"stopping the MediaMTX that an earlier run left behind (process {left})")
        again.wait_for("MediaMTX v1.18.2 is running, and")
        assert "INF closing" in (home / "mediamtx.log").read_text()
        assert again.end() == 0
        assert is_over(home)

    @pytest.mark.mediamtx
    def test_a_real_one_takes_a_stream_and_its_end_is_told_before_the_service_stops(self, run):
        binary = shutil.which(os.environ.get("MEDIAMTX_BIN") or "mediamtx")
        if not binary:
            pytest.skip("no MediaMTX on PATH, and none named by MEDIAMTX_BIN")
        rtsp = free_port()
        environ = {"MEDIAMTX_BIN": binary, "MEDIAMTX_CALLBACK_SECRET": "a $b", **places(rtsp)}
        program = run(**environ)
        url = program.wait_for("is ready").split()[-1]
        program.wait_for("is running, and asks streamorch")
        with requests.Session() as api:
            api.headers["Authorization"] = "Bearer s3cret"
            broadcaster = api.post(f"{url}/broadcasters", json={"display_name": "B"}, timeout=5).json()["id"]
            key = api.post(
                f"{url}/stream-keys", json={"broadcaster_id": broadcaster, "path": "live/a"}, timeout=5
            ).json()
            publisher = Publisher(f"rtsp://127.0.0.1:{rtsp}/live/a?key={key['key_value']}")
            deadline = time.monotonic() + PATIENCE
            while api.get(f"{url}/streams", timeout=5).json()["count"] != 1:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert program.end() == 0
            publisher.leave()
            again = run(**environ)
            url = again.wait_for("is ready").split()[-1]
            (stream,) = api.get(f"{url}/streams?status=ended", timeout=5).json()["streams"]
            assert (stream["path"], stream["end_reason"]) == ("live/a", "disconnected")
            assert again.end() == 0


def test_a_ctrl_c_while_it_is_still_loading_shows_no_traceback(start, tmp_path):
    (tmp_path / "click.py").write_text("import time; print('loading', flush=True); time.sleep(60)")
    program = start("run", PYTHONPATH=f"{tmp_path}{os.pathsep}{TOP}")
    program.wait_for("loading")
    program.press_ctrl_c()
    assert program.exit_code() == -signal.SIGINT
    assert program.error_lines == []


class TestFailures:
    """Each is one line, exit code 1, and nothing is left running."""

    @pytest.fixture(params=["run", "serve"])
    def fail(self, request, start: Callable[..., Program], home: Path) -> Callable[..., str]:
        def fail_so(**environ: str) -> str:
            given = {"STREAMORCH_HOME": str(home), "API_SECRET": "s3cret", "API_PORT": str(free_port())}
            return one_line(start(request.param, **given | environ))

        return fail_so

    def test_a_port_in_use(self, fail):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            line = fail(API_PORT=str(port), DATABASE_URL=AWAY)
            other = fail(METRICS_PORT=str(port), DATABASE_URL=AWAY)
        assert line == f"streamorch: cannot listen on 127.0.0.1:{port}: the port is already in use; set API_PORT"
        assert other == line.replace("API_PORT", "METRICS_PORT")

    @pytest.mark.parametrize(
        ("name", "value"),
        [("API_PORT", "http"), ("WEB_CONCURRENCY", "0"), ("READ_POLICY", "maybe"), ("API_SECRET", ",")],
    )
    def test_a_bad_setting_is_named(self, name, value, fail):
        assert name in fail(**{"DATABASE_URL": AWAY, name: value})

    def test_a_host_that_is_not_ours(self, fail):
        assert "cannot listen on 192.0.2.1:" in fail(API_HOST="192.0.2.1", DATABASE_URL=AWAY)

    def test_a_database_that_is_away(self, fail):
        line = fail(DATABASE_URL=AWAY)
        assert "the database does not answer" in line
        assert "hunter2" not in line

    @pytest.mark.parametrize("url", ["postgres://team:hunter2@h/x?y=z", "postgresqls://team:hunter2@h/x", "x=hunter2"])
    def test_a_url_that_is_none_is_not_repeated(self, url, fail):
        line = fail(DATABASE_URL=url)
        assert "DATABASE_URL" in line
        assert "hunter2" not in line

    def test_a_database_of_another_program_is_left_alone(self, fail, bare_url):
        with psycopg.connect(bare_url) as conn:
            conn.execute("CREATE TABLE stream_keys (key_value text)")
        assert "left untouched" in fail(DATABASE_URL=bare_url)
        with psycopg.connect(bare_url) as conn:
            tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert tables == [("stream_keys",)]

    @pytest.mark.own_database
    @pytest.mark.parametrize("fail", ["run"], indirect=True)  # what `serve` makes of it: see test_upgrade.py
    def test_a_newer_schema(self, fail, database_url):
        with psycopg.connect(database_url) as conn:
            conn.execute("INSERT INTO streamorch_migrations (name, checksum) VALUES ('9999_later', 'x')")
        assert "newer than this release: it has 9999_later" in fail(DATABASE_URL=database_url)

    @pytest.mark.own_database
    def test_an_edited_migration(self, fail, database_url):
        with psycopg.connect(database_url) as conn:
            conn.execute("UPDATE streamorch_migrations SET checksum = 'x' WHERE name = '0001_tables'")
        assert "0001_tables was edited" in fail(DATABASE_URL=database_url)

    def test_a_database_that_may_not_be_read(self, fail, database_url):
        role = sql.Identifier(f"stranger_{os.getpid()}")
        with psycopg.connect(database_url) as conn:
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        line = fail(DATABASE_URL=database_url.replace("postgres@", f"stranger_{os.getpid()}@"))
        with psycopg.connect(database_url) as conn:
            conn.execute(sql.SQL("DROP ROLE {}").format(role))
        assert line == "streamorch: the database refuses: permission denied for table streamorch_migrations"

    def test_serve_does_not_migrate(self, start, bare_url):
        line = one_line(start("serve", DATABASE_URL=bare_url, API_SECRET="s3cret", API_PORT=str(free_port())))
        assert line.endswith("run: streamorch migrate")

    @pytest.mark.parametrize("name", ["DATABASE_URL", "API_SECRET"])
    def test_serve_needs_what_run_brings(self, name, start):
        given = {"DATABASE_URL": AWAY, "API_SECRET": "s3cret"}
        del given[name]
        assert f"{name} is not set" in one_line(start("serve", **given))


class TestServe:
    @pytest.fixture
    def service(self, start: Callable[..., Program], database_url: str) -> tuple[Program, int]:
        port = free_port()
        program = start("serve", DATABASE_URL=database_url, API_SECRET="s3cret", API_PORT=str(port))
        program.wait_for("Booting worker")
        return program, port

    def test_it_becomes_the_server_and_stops_in_order(self, service):
        program, port = service
        answer = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10)
        assert answer.status_code == 200
        assert f"({program.process.pid})" in program.wait_for("Listening at")
        assert program.end() == 0
        assert program.complaints == []
        assert program.lines == []

    def test_it_says_once_what_its_settings_leave_open(self, service):
        program, _ = service
        assert program.end() == 0
        for name in ("MEDIAMTX_CALLBACK_SECRET is not set", "READ_POLICY is public"):
            (line,) = [line for line in program.error_lines if name in line]
            assert '"level":"warning"' in line

    def test_silent_clients_take_no_thread(self, service):
        """More than all threads together; gunicorn alone would answer after five seconds."""
        _, port = service
        requests.get(f"http://127.0.0.1:{port}/livez", timeout=10)
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        begun = time.monotonic()
        for _ in range(10):
            assert requests.get(f"http://127.0.0.1:{port}/livez", timeout=10).status_code == 200
        assert time.monotonic() - begun < 3
        for client in silent:
            client.close()

    @pytest.mark.slow
    def test_half_a_request_is_let_go(self, service):
        program, port = service
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"GET /livez HT")
            assert client.recv(100) == b""
        assert '"level":"info"' in program.wait_for("a client was too slow")
        assert not any("traceback" in line for line in program.error_lines)


class TestMigrate:
    def test_it_prints_what_it_applies_and_needs_no_api_secret(self, start, bare_url):
        first, second = (start("migrate", DATABASE_URL=bare_url) for _ in range(2))
        codes = first.exit_code(), second.exit_code()
        assert codes == (0, 0)
        names = [migration.name for migration in migrate.available()]
        # Started at once, they took turns.
        assert sorted([first.lines, second.lines]) == sorted([names, ["schema is current"]])

    def test_a_database_that_is_away(self, start):
        assert "the database does not answer" in one_line(start("migrate", DATABASE_URL=AWAY))


class TestPackage:
    def test_make_alone_lists_every_target(self):
        listed = subprocess.run(["make"], cwd=TOP, check=True, capture_output=True, text=True).stdout
        targets = found(r"(?m)^\.PHONY: help (.*)$", (TOP / "Makefile").read_text()).group(1).split()
        assert re.findall(r"^  make (\w+) +\S", listed, re.MULTILINE) == targets

    def test_every_dependency_is_pinned(self):
        config = configparser.ConfigParser()
        config.read(TOP / "setup.cfg")
        wanted = config["options"]["install_requires"] + "".join(config["options.extras_require"].values())
        lines = [line for line in wanted.splitlines() if line and not line.startswith("#")]
        pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (TOP / "constraints.txt").read_text(), re.MULTILINE))
        assert {re.split(r"[\[ ]", line)[0] for line in lines} <= set(pins)
        assert pins["psycopg"] == pins["psycopg-c"] == pins["psycopg-binary"]

    def test_an_old_python_can_read_that_it_is_too_old(self):
        ast.parse((TOP / ".ci" / "install").read_text(), feature_version=(3, 6))

    @pytest.mark.slow
    def test_a_wheel_holds_all_that_the_service_needs(self, tmp_path, start, bare_url):
        source, wheels, site = (tmp_path / name for name in ("source", "wheels", "site"))
        ignored = shutil.ignore_patterns(
            ".git", ".venv", ".streamorch", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"
        )
        shutil.copytree(TOP, source, ignore=ignored)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        offline = ["--no-deps", "--no-index", "--no-build-isolation"]
        subprocess.run([*pip, "wheel", *offline, "--wheel-dir", wheels, source], check=True)
        subprocess.run([*pip, "install", *offline, "--target", site, *wheels.glob("*.whl")], check=True)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        port = str(free_port())
        environ = {"PYTHONPATH": str(site), "DATABASE_URL": bare_url, "API_SECRET": "s3cret", "API_PORT": port}

        migrated = start("migrate", cwd=elsewhere, **environ)
        assert migrated.exit_code() == 0
        assert migrated.lines == [migration.name for migration in migrate.available()]
        service = start("serve", cwd=elsewhere, **environ)
        service.wait_for("Booting worker")
        assert requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
        assert service.end() == 0
        assert list(elsewhere.iterdir()) == []
        assert (site / "streamorch" / "mediamtx" / "mediamtx.yml").read_text() == (
            TOP / "mediamtx" / "mediamtx.yml"
        ).read_text()
