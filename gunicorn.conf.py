"""How gunicorn runs the service: few threads in few workers, everything else from the settings.

No preload: each worker makes its own app, and with it its own connection pool, after the fork.
"""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import Any

from gunicorn import glogging

from streamorch import in_force, logs, tally

if sys.platform == "linux":
    from streamorch.worker import Worker as BaseWorker
else:
    from gunicorn.workers.gthread import ThreadWorker as BaseWorker

# A reload reads this file again; what is raised here ends the master, and with it the service.
settings = in_force.read(os.environ)
logs.configure(settings.log_level)
# Made before the fork, so that every worker has it. A reload makes another: counters begin anew, as after a start.
memory = tally.Memory() if settings.metrics_enabled else None


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


class Worker(BaseWorker):
    """One that stops what else goes on in its process, too."""

    slot: tally.Slot | None = None

    def handle_exit(self, sig: int, frame: object) -> None:
        """SIGTERM: what reconciles here stops with the rest, and lets another worker or instance lead."""
        app = getattr(self, "wsgi", None)
        if app is not None:
            app.extensions["streamorch.reconciler"].begin_to_stop()
        super().handle_exit(sig, frame)


def when_ready(server: object) -> None:
    """Say once, not in each worker, what the settings leave open."""
    for line in settings.advice():
        logging.getLogger("streamorch").warning(line)


def pre_fork(server: Any, worker: Worker) -> None:
    """A place to count in. What the dead have counted is kept, also of those whose end the master did not see."""
    if memory is not None:
        memory.retire_all_but([other.slot for other in server.WORKERS.values() if other.slot is not None])
        worker.slot = memory.take()


def post_fork(server: object, worker: Worker) -> None:
    """This process counts there."""
    if worker.slot is not None:
        tally.give(worker.slot)


def child_exit(server: object, worker: Worker) -> None:
    """The master sees the end of a worker, however it came: it leads no more, and has no connections."""
    if worker.slot is not None:
        worker.slot.memory.retire(worker.slot)


def post_worker_init(worker: Worker) -> None:
    """What is loaded stays: no collection of garbage has to look through it again."""
    gc.collect()
    gc.freeze()


def worker_exit(server: object, worker: Worker) -> None:
    """End the reconciler, so that another worker leads at once, and PostgreSQL sees its sessions end and not vanish."""
    app = getattr(worker, "wsgi", None)  # missing in a worker that could not load it
    if app is not None:
        service = app.extensions["streamorch"]
        app.extensions["streamorch.reconciler"].stop()
        service.kicker.close()
        service.refusals.close()
        service.callers.close()
        service.database.close()
        if "streamorch.tracing" in app.extensions:
            app.extensions["streamorch.tracing"].stop()


wsgi_app = "streamorch.app:application()"
host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
bind = [f"{host}:{settings.api_port}"]
if settings.metrics_enabled and settings.metrics_port is not None:
    bind.append(f"{host}:{settings.metrics_port}")

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
