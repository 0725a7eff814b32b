"""Refusals on their way to the database: a request leaves them here, and a thread of its own writes them.

So a refusal costs its request no statement. Everything here is bounded: of each source a few are written, then one now
and then with the number of those that were left out; of very many sources at once only so many. The refusals of keys
that exist do not compete with strangers', so no scanner hides them.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from contextlib import suppress

import msgspec
import psycopg

from streamorch.limits import Bucket, source
from streamorch.repositories import PatientConnection, connect, decisions
from streamorch.repositories.decisions import REFUSED, Refusal

log = logging.getLogger(__name__)

# Of one source, which is an address and a key if that exists: so many at once, then one every half a minute.
_BURST = 10
_PER_SECOND = 1 / 30
_SOURCES = 4096
# Of all sources together: strangers, and those with a key of ours.
_STRANGERS_BURST = 2000
_STRANGERS_PER_SECOND = 1.0
_KNOWN_BURST = 5000
_KNOWN_PER_SECOND = 5.0

_QUEUE = 8000
_BATCH = 500
_GATHER_SECONDS = 0.2
_RETRY_SECONDS = 1.0
# What was left out of a source that has been silent for so long is written, too.
_QUIET_SECONDS = 10.0
_OTHERS_SECONDS = 10.0
_SWEEP_SECONDS = 2.0
_STOP_SECONDS = 2.0


class _Source(Bucket):
    """What is written of one source, and what is not."""

    __slots__ = ("last", "left_out", "seen_at")

    def __init__(self, now: float):
        super().__init__(_BURST, now)
        self.seen_at = now
        self.left_out = 0
        self.last: Refusal | None = None


class Refusals:
    """The refusals of one worker. A database that is away keeps them waiting; when there are too many they go."""

    def __init__(self, database_url: str):
        self._database_url = database_url
        self._sources: OrderedDict[tuple[str, object], _Source] = OrderedDict()
        now = time.monotonic()
        self._strangers = Bucket(_STRANGERS_BURST, now)
        self._known = Bucket(_KNOWN_BURST, now)
        self._queue: deque[tuple[float, Refusal]] = deque()
        self._others = 0
        self._others_at = now
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._conn: PatientConnection | None = None

    def note(self, refusal: Refusal) -> int | None:
        """Keep a refusal to be written within a second.

        Returns how many of its source were left out since the one before; None when this is left out, too.
        """
        now = time.monotonic()
        whose = (source(refusal.remote_address or ""), refusal.stream_key_id)
        with self._changed:
            of = self._sources.get(whose)
            if of is None:
                of = self._sources[whose] = _Source(now)
                if len(self._sources) > _SOURCES:
                    self._others += self._sources.popitem(last=False)[1].left_out
            else:
                self._sources.move_to_end(whose)
            of.seen_at = now
            if of.take(now, per_second=_PER_SECOND, burst=_BURST) or not self._has_room(refusal, now):
                of.left_out += 1
                of.last = refusal
                return None
            left_out, of.left_out, of.last = of.left_out, 0, None
            self._queue.append((now, msgspec.structs.replace(refusal, left_out=left_out)))
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="refusals", daemon=True)
                self._thread.start()
            self._changed.notify()
        return left_out

    def close(self) -> None:
        """Write what is left, within two seconds, and end."""
        with self._changed:
            self._stopping.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _has_room(self, refusal: Refusal, now: float) -> bool:
        """Is there room for one more of all sources together?"""
        if len(self._queue) >= _QUEUE:
            return False
        if refusal.stream_key_id is None:
            return not self._strangers.take(now, per_second=_STRANGERS_PER_SECOND, burst=_STRANGERS_BURST)
        return not self._known.take(now, per_second=_KNOWN_PER_SECOND, burst=_KNOWN_BURST)

    # --- the thread ---

    def _run(self) -> None:
        swept_at = time.monotonic()
        while not self._stopping.is_set():
            with self._changed:
                if not self._queue:
                    self._changed.wait(_SWEEP_SECONDS)
            self._stopping.wait(_GATHER_SECONDS)  # one statement for those that come together
            now = time.monotonic()
            if now - swept_at >= _SWEEP_SECONDS:
                swept_at = now
                self._sweep(now)
            if not self._write():
                self._stopping.wait(_RETRY_SECONDS)
        self._sweep(time.monotonic(), everything=True)
        if not self._write():
            log.error("refusals are lost: the database is away", extra={"count": len(self._queue)})
        if self._conn is not None:
            self._conn.close()

    def _sweep(self, now: float, *, everything: bool = False) -> None:
        """Keep a row for each source that fell silent with some left out, and one for what else was left out."""
        with self._changed:
            for of in self._sources.values():
                if not everything and now - of.seen_at < _QUIET_SECONDS:
                    break  # the rest was seen later
                if of.last is None:
                    continue
                if not everything and self._has_room(of.last, now):
                    self._queue.append((of.seen_at, msgspec.structs.replace(of.last, left_out=of.left_out - 1)))
                else:
                    self._others += of.left_out
                of.left_out, of.last = 0, None
            is_time = now - self._others_at >= _OTHERS_SECONDS and len(self._queue) < _QUEUE
            if self._others and (everything or is_time):
                self._others_at = now
                self._queue.append((now, Refusal(REFUSED, left_out=self._others)))
                self._others = 0

    def _write(self) -> bool:
        """Write all that waits. False when the database is away: it waits on."""
        while True:
            with self._changed:
                batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            if not batch:
                return True
            try:
                if self._conn is None or self._conn.closed:
                    self._conn = connect(self._database_url)
                now = time.monotonic()
                decisions.note(
                    self._conn, [msgspec.structs.replace(refusal, age=now - noted_at) for noted_at, refusal in batch]
                )
            except psycopg.OperationalError:
                with self._changed:
                    self._queue.extendleft(reversed(batch))
                if self._conn is not None:
                    with suppress(psycopg.Error):
                        self._conn.close()
                return False
            except Exception:  # what cannot be stored would come back for ever
                log.exception("refusals cannot be written", extra={"count": len(batch)})
                with self._changed:
                    self._others += len(batch)
