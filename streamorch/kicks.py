"""Closing connections that may not go on: after the commit that took the right away, and verified.

The order is commit, deny, kick, verify: an encoder reconnects at once, and must find itself refused.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from uuid import UUID

import psycopg

from streamorch.mediamtx import ControlAPI, NoAnswer, Refused, Unauthorized
from streamorch.metrics import Metrics
from streamorch.repositories import NODE, Database, streams
from streamorch.repositories.streams import Kick
from streamorch.spans import Tracer, span

log = logging.getLogger(__name__)

_THREADS = 2
_AT_ONCE = 1000
_CUT_OFF_SECONDS = 3.0
_REQUEST_SECONDS = 0.3
_VERIFY_SECONDS = 0.3
_PAUSE_SECONDS = 0.03


class Kicker:
    """Closes connections whose right a request took away, in threads that are no request's.

    Each call of the Control API comes back as a question to /auth: requests that waited for such calls would keep
    the threads that must answer them.
    """

    def __init__(
        self, database: Database, api: ControlAPI, metrics: Metrics | None = None, tracer: Tracer | None = None
    ):
        self._database = database
        self._api = api
        self._metrics = metrics
        self._tracer = tracer
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kicker")
        self._stopping = threading.Event()

    def cut_off(self, **whose: UUID) -> "Future[None] | None":
        """Close what is to be closed of a stream_id, stream_key_id or broadcaster_id; call it after the commit.

        What cannot be closed within some seconds the reconciler closes at its next tick. None when the worker ends.
        """
        try:
            # With the request's id and span: what is done here is done for it.
            return self._threads.submit(copy_context().run, self._cut_off, whose)
        except RuntimeError:
            return None

    def close(self) -> None:
        """Begin nothing more, and end after the kick that is under way."""
        self._stopping.set()
        self._threads.shutdown(cancel_futures=True)

    def _cut_off(self, whose: Mapping[str, UUID]) -> None:
        until = time.monotonic() + _CUT_OFF_SECONDS
        try:
            with self._database.connection() as conn:
                wanted = streams.kicks(conn, node=NODE, limit=_AT_ONCE, **whose)
            for kick, is_gone in carry_out(self._api, wanted, self._metrics, self._tracer):
                if is_gone:
                    self._database.run(partial(streams.kicked, stream_id=kick.stream_id))
                if self._stopping.is_set() or time.monotonic() > until:
                    break
        except psycopg.OperationalError:
            log.warning("cutting off is left to the reconciler: the database is away")
        except Exception:  # nobody looks at the Future, and it would end unseen
            log.exception("cutting off failed")


def carry_out(
    api: ControlAPI, kicks: Iterable[Kick], metrics: Metrics | None = None, tracer: Tracer | None = None
) -> Iterator[tuple[Kick, bool]]:
    """Close these connections, one by one, each when it is asked for; with each: is it gone?

    What does not answer, or is still there, is left to the reconciler, which asks again at every tick.
    """
    for kick in kicks:
        is_hopeless = False
        with span(tracer, "kick", protocol=kick.protocol, **_facts(kick)) as told:
            try:
                result = "gone" if _close(api, kick) else "still-connected"
                log.info("kicked" if result == "gone" else "still connected", extra=_facts(kick))
            except NoAnswer as error:
                result = "no-answer"
                is_hopeless = isinstance(error, (Refused, Unauthorized))  # the others would fare no better
                log.warning("kick without an answer", extra=_facts(kick) | {"reason": str(error)})
            told.tell(outcome=result)
        if metrics is not None:
            metrics.kicked(kick.protocol, result)
        if is_hopeless:
            return
        yield kick, result == "gone"


def _close(api: ControlAPI, kick: Kick) -> bool:
    """Is it gone now? It may have been gone before."""
    if not api.close(kick.protocol, kick.connection_id, kick.path, seconds=_REQUEST_SECONDS):
        return False
    deadline = time.monotonic() + _VERIFY_SECONDS
    while api.connection(kick.protocol, kick.connection_id, seconds=_REQUEST_SECONDS) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


def _facts(kick: Kick) -> dict[str, object]:
    return {"stream_id": kick.stream_id, "path": kick.path, "connection_id": kick.connection_id}
