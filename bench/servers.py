"""The service and the floors as processes of gunicorn, and what they take of the machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench import load, messages
from streamorch.local import service_command
from streamorch.settings import Settings

NO_MEDIA_SERVER = "http://127.0.0.1:9"  # the port of discard: refused at once

_ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 30
_STOP_SECONDS = 20
_QUIET_SECONDS = 0.2
# Of the environment nothing else counts, so that two runs are alike.
_SETTINGS = ("WEB_CONCURRENCY", "API_THREADS")
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", *_SETTINGS)


class ServerError(Exception):
    """A server did not start or did not last; the text says which."""


class Gunicorn:
    """A running gunicorn on a port of its own."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.name = name
        self.port = port
        self.workers: list[int] = []
        self._process = process
        self._log = log

    def await_answer(self, request: bytes) -> None:
        """Return when it answers this with 200 and all its workers are there and have nothing left to load."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            self.workers = self._children()
            try:
                if len(self.workers) == workers() and load.ask(self.port, request).status == 200 and self._is_quiet():
                    return
            except OSError:  # nobody listens yet
                pass
            time.sleep(0.05)
        raise ServerError(f"{self.name} did not start: {self._last_lines()}")

    def _is_quiet(self) -> bool:
        began = self.cpu_seconds()
        time.sleep(_QUIET_SECONDS)
        return self.cpu_seconds() - began < _QUIET_SECONDS / 10

    def cpu_seconds(self) -> float:
        """User and system time that its workers have taken since they started. ServerError: one is gone."""
        self.check()
        return sum(process_cpu_seconds(pid) for pid in self.workers)

    def resident_megabytes(self) -> list[float]:
        """Resident memory of each worker."""
        self.check()
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers]
        return [count * os.sysconf("SC_PAGE_SIZE") / 1e6 for count in pages]

    def check(self) -> None:
        """ServerError when a worker has ended since the start, and another stands in its place."""
        if self._children() != self.workers:
            raise ServerError(f"{self.name} lost a worker: {self._last_lines()}")

    def _last_lines(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def _children(self) -> list[int]:
        pid = self._process.pid
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def process_cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process: what /proc/PID/stat tells in hundredths, exactly."""
    return time.clock_gettime(~pid << 3 | 2)  # its CPU clock, as clock_getcpuclockid(3) names it


def workers() -> int:
    """How many workers each server has: WEB_CONCURRENCY, two if it is not set."""
    return int(os.environ.get("WEB_CONCURRENCY", "2"))


def threads() -> int:
    """How many threads each worker has: API_THREADS, else as many as the service has by itself."""
    environ = {"API_SECRET": messages.SECRET, "DATABASE_URL": "postgresql:///none"}
    return Settings.from_env(environ | {name: os.environ[name] for name in _SETTINGS if name in os.environ}).threads


@contextmanager
def service(
    folder: Path,
    database_url: str,
    *,
    log_level: str = "warning",
    media_server_url: str = NO_MEDIA_SERVER,
    **settings: str,
) -> Iterator[Gunicorn]:
    """The service as `make run` starts it, with these settings beside. Its log goes into a file of the folder."""
    environ = {
        "DATABASE_URL": database_url,
        "LOG_LEVEL": log_level,
        "MEDIAMTX_API_URL": media_server_url,
        # All of the load comes from one address and has one credential.
        "REFUSALS_PER_MINUTE": "0",
        "API_WRITES_PER_MINUTE": "0",
        **settings,
    }
    with _gunicorn("service", service_command(), environ, folder, signal.SIGTERM) as found:
        found.await_answer(messages.get("/readyz").of(0))
        yield found


@contextmanager
def floor(folder: Path, application: str) -> Iterator[Gunicorn]:
    """An application of bench.floor (`app`, `no_op`) in the place of the service, under the same gunicorn."""
    # Its hooks look for parts of the service when a worker ends: SIGQUIT asks nothing of them.
    command = [*service_command(), f"bench.floor:{application}"]
    environ = {"DATABASE_URL": "postgresql:///none", "LOG_LEVEL": "warning"}
    with _gunicorn(application, command, environ, folder, signal.SIGQUIT) as found:
        found.await_answer(messages.filling(0).of(0))
        yield found


@contextmanager
def stock(folder: Path) -> Iterator[Gunicorn]:
    """The empty Flask view under gunicorn's own gthread, with as many workers and threads and nothing else set."""
    # devnull: it would read the service's configuration from this folder.
    own = ["--config", os.devnull, "--no-control-socket", "--worker-class", "gthread"]
    size = ["--workers", str(workers()), "--threads", str(threads())]
    command = [sys.executable, "-m", "gunicorn", *own, *size, "bench.floor:app"]
    with _gunicorn("stock", command, {}, folder, signal.SIGTERM) as found:
        found.await_answer(messages.filling(0).of(0))
        yield found


@contextmanager
def _gunicorn(
    name: str, command: list[str], environ: Mapping[str, str], folder: Path, end: signal.Signals
) -> Iterator[Gunicorn]:
    port = _free_port()
    own = {
        "API_PORT": str(port),
        "API_SECRET": messages.SECRET,
        "WEB_CONCURRENCY": str(workers()),
        "PYTHONPATH": str(_ROOT),
        **{key: os.environ[key] for key in _KEPT if key in os.environ},
        **environ,
    }
    if "DATABASE_URL" not in environ:
        command = [*command, "--bind", f"127.0.0.1:{port}"]
    log = folder / f"{name}-{port}.log"
    with log.open("wb") as lines:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            start_new_session=True,  # a Ctrl-C is for the bench, which stops it in order
        )
    try:
        yield Gunicorn(name, process, port, log)
    finally:
        process.send_signal(end)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
