"""How gunicorn runs the service: few threads in few workers, everything else from the settings.

No preload: each worker makes its own app, and with it its own connection pool, after the fork.
"""

import logging
import os
import selectors
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn import glogging
from gunicorn.workers import gthread

from streamorch import logs
from streamorch.settings import Settings

settings = Settings.from_env(os.environ)
logs.configure(settings.log_level)

# How long a client may keep a thread waiting in the middle of a request or an answer.
SLOW_CLIENT_SECONDS = 5
# How long a kept connection may still bring a request when the worker stops.
LAST_REQUEST_SECONDS = 0.5


class JSONLogger(glogging.Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's own lines, in the form of all others: handed on to the root logger."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.propagate = True

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        if isinstance(sys.exception(), TimeoutError):
            self.info("a client was too slow and was let go")
        else:
            super().exception(msg, *args, **kwargs)


class Connection(gthread.TConn):  # type: ignore[misc]
    """A connection that keeps no thread for ever: gunicorn 27.0.1 waits without limit for the rest of a request."""

    def init(self) -> None:
        super().init()
        self.sock.settimeout(SLOW_CLIENT_SECONDS)


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """gthread which gives a thread only to a connection that has something to say.

    gunicorn 27.0.1 lets each new connection hold a thread for up to five seconds. Eight silent ones (the spare
    connections of a browser, a port scan) stopped two workers of four threads for that long, and MediaMTX with them.
    """

    def accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another worker was faster, or the client has gone
        self.nr_conns += 1
        conn = Connection(self.cfg, client, address, listener.getsockname())
        conn.data_ready = has_spoken(client)
        if conn.data_ready:
            self.enqueue_req(conn)
        else:
            conn.set_timeout()
            self.pending_conns.append(conn)
            self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def handle_exit(self, sig: int, frame: object) -> None:
        """SIGTERM: what reconciles here stops with the rest, and lets another worker or instance lead."""
        app = getattr(self, "wsgi", None)
        if app is not None:
            app.extensions["streamorch.reconciler"].begin_to_stop()
        super().handle_exit(sig, frame)

    def _cap_keepalive(self, deadline: float) -> None:
        """The worker begins to stop. New callers are refused at once: whoever connects to a listener that is open but
        served no more hangs, and MediaMTX with it. Silent connections are let go; kept ones have half a second.
        """
        for listener in self.sockets:
            listener.close()
        now = time.monotonic()
        for conn in self.pending_conns:
            conn.timeout = now
        super()._cap_keepalive(min(deadline, now + LAST_REQUEST_SECONDS))


def has_spoken(client: socket.socket) -> bool:
    """Is there something to read, be it the end?"""
    try:
        client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True  # what is wrong shows when it is read
    return True


def when_ready(server: object) -> None:
    """Say once, not in each worker, what the settings leave open."""
    for line in settings.advice():
        logging.getLogger("streamorch").warning(line)


def worker_exit(server: object, worker: Worker) -> None:
    """End the reconciler, so that another worker leads at once, and PostgreSQL sees its sessions end and not vanish."""
    app = getattr(worker, "wsgi", None)  # missing in a worker that could not load it
    if app is not None:
        service = app.extensions["streamorch"]
        app.extensions["streamorch.reconciler"].stop()
        service.kicker.close()
        service.database.close()


wsgi_app = "streamorch.__main__:application()"
host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
bind = f"{host}:{settings.api_port}"

worker_class = Worker
workers = settings.workers
threads = settings.threads
backlog = 1024
keepalive = 5
graceful_timeout = 10
# The heartbeat file of a worker: a slow disk under /tmp would make a healthy worker look dead.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # gunicorn makes the file safely

logger_class = JSONLogger
loglevel = settings.log_level
errorlog = None
accesslog = None

# X-Forwarded-* is judged by the app alone, see TRUSTED_PROXIES.
forwarded_allow_ips = ""
# A socket in the home folder, through which workers can be changed: nobody here asks for it.
control_socket_disable = True
