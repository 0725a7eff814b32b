"""`streamorch run`: everything that one machine needs to try the service.

A PostgreSQL of its own when DATABASE_URL names none, a generated API secret, gunicorn, and MediaMTX when it is
installed: children that end with this process. It knows nothing of HTTP routes beyond /livez and the commands that
it shows.
"""

import errno
import fcntl
import http.client
import os
import re
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

import click

from streamorch import mediamtx_config
from streamorch.postgres import Postgres as Postgres  # for the others that start one
from streamorch.postgres import StartError as StartError
from streamorch.postgres import rotate, say
from streamorch.repositories import migrate
from streamorch.settings import SettingError, Settings

_PACKAGE = Path(__file__).resolve().parent

_CONFIG = "gunicorn.conf.py"
_TRACED = ("flask", "psycopg")
_SECRET_FILE = "api_secret"  # noqa: S105  # its name

_START_SECONDS = 30
# A little more than gunicorn's graceful_timeout, after which it ends its workers itself.
_STOP_SECONDS = 15
_KILL_SECONDS = 5
_POSTGRES_TRIES = 10
# MediaMTX is started again after pauses that double from the first to the second of these, as long as it ends within
# a minute each time.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
# SIGTERM ends it on the spot, without its end hooks, before v1.14.
_MEDIA_STOP = signal.SIGINT
# How much of its log is searched for the reason.
_READ_BYTES = 100_000


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
    with interrupts.heeded():
        # While the service is still there for its end hooks.
        media_lock = end_leftover(home, "mediamtx", "MediaMTX", _MEDIA_STOP)
        service_lock = end_leftover(home, "service", "service", signal.SIGTERM)

    brings_postgres = not _given(environ, "DATABASE_URL")
    if brings_postgres:
        environ["DATABASE_URL"] = "postgresql:///not-known-yet"
    if not _given(environ, "API_SECRET"):
        environ["API_SECRET_FILE"] = str(api_secret_file(home).resolve())
    settings = Settings.from_env(environ)
    check_port(settings)
    check_tracing(settings)
    media = media_server(settings, environ, home, media_lock)

    postgres = None
    if brings_postgres:
        postgres = Postgres(home / "postgres")
        started.callback(postgres.stop)
        postgres.start()
        environ["DATABASE_URL"] = postgres.url
    with interrupts.heeded():
        for name in migrate.apply(environ["DATABASE_URL"]):
            say(f"migrated {name}")

    service = start_service(environ, service_lock)
    started.callback(stop, service)
    await_answer(settings, service, interrupts)
    # After the service, which it asks from its first moment on.
    if media:
        started.callback(media.stop)
        media.start()
        media.await_start(interrupts)
    click.echo(greeting(settings, environ, home, media))
    watch(service, postgres, media, interrupts)


def running_database_url(environ: Mapping[str, str]) -> str:
    """Where the PostgreSQL of a `streamorch run` is reached that runs from this home; StartError when none does."""
    postgres = Postgres(_home(environ) / "postgres")
    if not postgres.answers():
        raise StartError("DATABASE_URL is not set, and no `streamorch run` is going on here")
    return postgres.url


def completed(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with what a `streamorch run` from this home adds to it, as far as it is there and not given."""
    added = {}
    secret = _home(environ) / _SECRET_FILE
    if not _given(environ, "API_SECRET") and secret.exists():
        added["API_SECRET_FILE"] = str(secret)
    if not _given(environ, "DATABASE_URL"):
        with suppress(StartError):
            added["DATABASE_URL"] = running_database_url(environ)
    return {**environ, **added}


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("STREAMORCH_HOME", "").strip() or ".streamorch")


def _given(environ: Mapping[str, str], name: str) -> bool:
    return bool(environ.get(name, "").strip() or environ.get(f"{name}_FILE", "").strip())


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP become one KeyboardInterrupt, where it is heeded; the next ones do not disturb the
    stopping.

    Raised anywhere, it would leave things half started; and what subprocess has locked while it looks after a child it
    would leave locked for ever, so that nobody could wait for the end of that child any more.
    """

    def __init__(self) -> None:
        self._asked = False
        self._heeding = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup ignores SIGHUP on purpose.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        first, self._asked = not self._asked, True
        if first and self._heeding:
            raise KeyboardInterrupt

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """What is done in here may be left between any two steps. One that came before is heeded at once."""
        self._heeding = True
        try:
            if self._asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._heeding = False

    def pause(self, seconds: float) -> None:
        """Sleep so long, unless interrupted."""
        with self.heeded():
            time.sleep(seconds)


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


def end_leftover(home: Path, name: str, what: str, number: signal.Signals) -> int:
    """The descriptor of a lock that a child holds as long as it lives.

    When this process is killed the child outlives it, and would keep its ports: the next run ends it first, with
    this signal.
    """
    lock = os.open(home / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    if _locks(lock):
        return lock
    pid = int(os.pread(lock, 20, 0))
    say(f"stopping the {what} that an earlier run left behind (process {pid})")
    # When it is gone, its workers are about to notice.
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    if not _locks_within(_STOP_SECONDS, lock):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if not _locks_within(_KILL_SECONDS, lock):
            raise StartError(f"the {what} of an earlier run does not stop (process {pid})")
    return lock


def _locks_within(seconds: float, lock: int) -> bool:
    deadline = time.monotonic() + seconds
    while not _locks(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _hold(lock: int, child: "subprocess.Popen[bytes]") -> None:
    """Write down who holds the lock from now on."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(child.pid).encode(), 0)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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


# --- the service ---------------------------------------------------------------------------------------------


def check_port(settings: Settings) -> None:
    """StartError when gunicorn could not listen: better said before the slow steps than after them."""
    _check_port(settings.api_host, settings.api_port, "API_PORT")
    if settings.metrics_enabled and settings.metrics_port is not None:
        _check_port(settings.api_host, settings.metrics_port, "METRICS_PORT")


def _check_port(host: str, port: int, name: str) -> None:
    try:
        where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = where[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gunicorn does: connections of a run before, which the kernel still remembers, are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # A socket that is bound alone does not hinder the first bind, it hinders listening.
            probe.listen(1)
    except OSError as error:
        reason = f"the port is already in use; set {name}" if error.errno == errno.EADDRINUSE else error.strerror
        raise StartError(f"cannot listen on {host}:{port}: {reason}") from None


def check_tracing(settings: Settings) -> None:
    """StartError when tracing is on and what it needs is not installed."""
    needed = ("opentelemetry.exporter.otlp.proto.http", *(f"opentelemetry.instrumentation.{of}" for of in _TRACED))
    if settings.tracing and not all(map(_is_installed, needed)):
        raise StartError("tracing is on, and its packages are missing: pip install 'streamorch[tracing]'")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False


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
    _hold(lock, service)
    return service


def stop(child: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGTERM) -> None:
    """Let it finish what it has begun, with this signal; whatever of it is then left is killed."""
    child.send_signal(number)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def await_answer(settings: Settings, service: "subprocess.Popen[bytes]", interrupts: Interrupts) -> None:
    """Return when /livez answers; StartError when it never does."""
    deadline = time.monotonic() + _START_SECONDS
    while not _is_live(_reachable_host(settings), settings.api_port):
        _check_alive(service)
        if time.monotonic() > deadline:
            raise StartError(f"the service does not answer on {own_url(settings)} within {_START_SECONDS} s")
        interrupts.pause(0.05)


def _is_live(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def watch(
    service: "subprocess.Popen[bytes]", postgres: Postgres | None, media: "MediaMTX | None", interrupts: Interrupts
) -> None:
    """Look after all of them until the service ends, which is a StartError, or something interrupts."""
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
        if media:
            media.look_after()
        interrupts.pause(1)


def _check_alive(service: "subprocess.Popen[bytes]") -> None:
    status = service.poll()
    if status is not None:
        raise StartError(f"the service has stopped by itself ({_how(status)})")


def _how(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


# --- MediaMTX ------------------------------------------------------------------------------------------------


def media_server(settings: Settings, environ: Mapping[str, str], home: Path, lock: int) -> "MediaMTX | None":
    """The MediaMTX that is to run beside the service, not started yet. None: there is none, or a line says why not.

    SettingError when MEDIAMTX_BIN names no program, or MediaMTX cannot use CALLBACK_URL.
    """
    if settings.mediamtx_bin is None:
        return None
    program = shutil.which(settings.mediamtx_bin)
    if not program:
        if settings.mediamtx_bin == "mediamtx":  # the default, which need not be there
            return None
        raise SettingError(f"MEDIAMTX_BIN: {settings.mediamtx_bin} is no program")
    try:
        return MediaMTX(Path(program).absolute(), settings, environ, home, lock)
    except StartError as error:
        say(f"MediaMTX is not started: {error}")
        return None


class MediaMTX:
    """A MediaMTX with a configuration for these settings. Its end is told and mended, and never ends the service."""

    def __init__(self, program: Path, settings: Settings, environ: Mapping[str, str], home: Path, lock: int) -> None:
        """StartError when this program, or a MediaMTX on this machine, is not the right one."""
        if not mediamtx_config.api_is_local(settings):
            raise StartError("MEDIAMTX_API_URL names another machine")
        if settings.mediamtx_api_url.startswith("https:"):
            raise StartError("MEDIAMTX_API_URL is https, for which it would need a certificate")
        version = _media_version(program)
        self.name = f"MediaMTX {mediamtx_config.version_name(version)}"
        self.hooks = next((tool for tool in ("curl", "wget") if shutil.which(tool)), "none")
        self.config = home / "mediamtx.yml"
        self.log = home / "mediamtx.log"
        self._text = mediamtx_config.config(settings, hooks=self.hooks, version=version)
        self._command = [str(program), str(self.config.resolve())]
        self._environ = _media_environ(environ)
        self._api = mediamtx_config.api_address(settings)
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0
        self._started_at = 0.0
        self._pause = 0.0
        self._again_at: float | None = None

    def start(self) -> None:
        """Start it, unless its place is taken, which is said."""
        if _listens(*self._api):
            say(f"{self.name} is not started: something answers on MEDIAMTX_API_URL already")
            return
        _write_privately(self.config, self._text)
        rotate(self.log)
        try:
            self._spawn()
        except OSError as error:
            say(f"{self.name} is not started: {error.strerror}")

    def await_start(self, interrupts: Interrupts) -> None:
        """Return when it listens, or after a while. When it ends at once a line says why, and that was all of it."""
        deadline = time.monotonic() + _START_SECONDS
        while self.runs and not _listens(*self._api) and time.monotonic() < deadline:
            interrupts.pause(0.05)
        if self.runs:
            brings = f"{self.hooks} brings its hooks" if self.hooks != "none" else "without hooks"
            say(f"{self.name} is running ({brings}; its log is {self.log})")
        elif self._process:
            say(f"{self.name} is not started: {self._reason()}")
            self._process = None

    @property
    def runs(self) -> bool:
        """Is it there?"""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop it, with time for its end hooks."""
        if self._process and self.runs:
            stop(self._process, _MEDIA_STOP)

    def look_after(self) -> None:
        """Start it again when it has ended by itself, after a pause. It returns at once; call it every second."""
        if self._process is None or self.runs:
            return
        now = time.monotonic()
        if self._again_at is None:
            self._pause = min(max(_SHORTEST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
            if now - self._started_at > _LONGEST_PAUSE:
                self._pause = _SHORTEST_PAUSE
            self._again_at = now + self._pause
            why = f"{_how(self._process.returncode)}, {self._reason()}"
            say(f"{self.name} has stopped by itself ({why}) and is started again in {self._pause:g} s")
        elif now >= self._again_at:
            self._again_at = None
            # A program that cannot be started any more has ended again.
            with suppress(OSError):
                self._spawn()

    def _spawn(self) -> None:
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self._log_begin = log.tell()
            self._started_at = time.monotonic()
            self._process = subprocess.Popen(
                self._command,
                # The lock as its input: the only descriptor that it does not hand on to its hooks, which outlive it.
                stdin=self._lock,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
                env=self._environ,
                start_new_session=True,
            )
        _hold(self._lock, self._process)

    def _reason(self) -> str:
        """The last error in its log since its start, or where to look for one."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_begin, log.seek(0, os.SEEK_END) - _READ_BYTES))
            said = log.read().decode(errors="replace")
        errors = re.findall(r"(?m)^(?:[\d/]+ [\d:]+ )?(?:ERR|panic|fatal error):? (.+)$", said)
        return errors[-1] if errors else f"see {self.log}"


def _media_version(program: Path) -> mediamtx_config.Version:
    """What `--version` says. StartError when it says nothing that is a version, or one that is too old."""
    try:
        done = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
        return mediamtx_config.parse_version(done.stdout.decode(errors="replace"))
    except (OSError, subprocess.TimeoutExpired):
        raise StartError(f"{program} --version does not answer") from None
    except ValueError as error:
        raise StartError(f"{program}: {error}") from None


def _media_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for MediaMTX and its hooks.

    Without our secrets, and without proxies: curl would look for 127.0.0.1 behind them, too.
    """
    ours = re.compile(r"(?!MTX_).*(SECRET|PASSWORD|DATABASE_URL|_PROXY$)|PG", re.IGNORECASE)
    return {name: value for name, value in environ.items() if not ours.match(name)}


def _write_privately(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
        new.write(text)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


# --- the greeting --------------------------------------------------------------------------------------------

_GREETING = """
streamorch is ready: {url}
The API secret is {secret}; Ctrl-C stops everything, the data stays.
The console, in a browser: {url}/console; sign in with the API secret.

A first broadcaster, stream key and stream, from another terminal in this folder:

  SECRET={read_secret}
  BROADCASTER=$(curl -sS {url}/broadcasters -H "Authorization: Bearer $SECRET" \\
    -H 'Content-Type: application/json' -d '{{"display_name": "First broadcaster"}}' \\
    | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
  RTMP_URL=$(curl -sS {url}/stream-keys -H "Authorization: Bearer $SECRET" \\
    -H 'Content-Type: application/json' -d '{{"broadcaster_id": "'$BROADCASTER'"}}' \\
    | python3 -c 'import json, sys; print(json.load(sys.stdin)["publish"]["rtmp"])')
  ffmpeg -re -f lavfi -i testsrc2=size=1280x720:rate=30 -f lavfi -i sine=frequency=440 \\
    -c:v libx264 -preset veryfast -bf 0 -pix_fmt yuv420p -g 60 -c:a aac -f flv "$RTMP_URL"

What is live: curl -sS {url}/streams -H "Authorization: Bearer $SECRET"

{media}
"""

_MEDIA_RUNS = """\
{name} is running, and asks streamorch: its configuration is {config}, its log {log}."""

_MEDIA_IS_ELSEWHERE = """\
MediaMTX must ask streamorch first; on a running server, changing its authentication cuts all streams that are live.
A configuration for these settings, from the same environment:

  {command} mediamtx-config > mediamtx.yml
  mediamtx mediamtx.yml

For a MediaMTX of your own, mediamtx-config --snippet prints the keys to merge, and --for VERSION suits an older one."""


def greeting(settings: Settings, environ: Mapping[str, str], home: Path, media: MediaMTX | None) -> str:
    """Where it is, and the commands to a first live stream, ready to paste. It holds no secret."""
    place, command = _api_secret(environ, home)
    if media and media.runs:
        about_media = _MEDIA_RUNS.format(name=media.name, config=media.config, log=media.log)
    else:
        about_media = _MEDIA_IS_ELSEWHERE.format(command=_own_command())
    return _GREETING.format(url=own_url(settings), secret=place, read_secret=command, media=about_media)


def _own_command() -> str:
    """This program, for a shell in the same folder."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), "-m", "streamorch"])


def _api_secret(environ: Mapping[str, str], home: Path) -> tuple[str, str]:
    """Where the API secret is, in words, and as the shell reads it: of several, the first."""
    file = environ.get("API_SECRET_FILE", "").strip()
    if not file:
        return "the one in API_SECRET", "${API_SECRET%%,*}"
    made = home / _SECRET_FILE
    if made.exists() and made.samefile(file):
        return f"in {made}", f"$(cat {shlex.quote(str(made))})"
    return f"in {file}", f"$(cut -d, -f1 {shlex.quote(file)})"


def own_url(settings: Settings) -> str:
    """Where this machine reaches the service."""
    host = _reachable_host(settings)
    return f"http://[{host}]:{settings.api_port}" if ":" in host else f"http://{host}:{settings.api_port}"


def _reachable_host(settings: Settings) -> str:
    """Where this machine reaches the service: a wildcard address is none to connect to."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104  # compared
