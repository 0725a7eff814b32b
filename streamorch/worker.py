"""The worker of gunicorn: threads that accept, read, answer and write for themselves.

gunicorn's gthread accepts in one thread and hands each connection to a pool of others and back: a queue, a future, a
pipe, and some fifty waits for Python's lock in each request under load. Here every thread waits on the same epoll, and
the one that wakes does all of it. HTTP itself (parser, environ, reply, limits) stays gunicorn's.

A connection has a thread only while its request is answered. Who is silent, sends slowly or reads slowly waits in the
epoll, with a deadline, and costs nobody else anything.
"""

import logging
import re
import select
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

from gunicorn import http
from gunicorn.workers import gthread

from streamorch.exchange import MAX_BODY_BYTES

log = logging.getLogger(__name__)

# How long a client may take to send its request, and to take its answer.
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
# A client that was refused in the middle of its request may read the answer before the connection is reset.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1024 * 1024
# How long a connection may still bring a request when the worker stops.
_LAST_REQUEST_SECONDS = 0.5
_SWEEP_SECONDS = 1.0
_READ_BYTES = 128 * 1024
_PIECES = 256  # the system takes 1024 at once

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:", re.IGNORECASE)


class Connection(gthread.TConn):  # type: ignore[misc]  # gunicorn ships no types
    """A client: its socket, what came and is not read yet, what is due to it, and until when it may take.

    For gunicorn's parser and replies it is the socket, too: they read what has arrived, and what they write is kept
    until the answer is whole. Head and body leave in one packet.
    """

    def __init__(self, cfg: Any, client: socket.socket, address: Any, server: Any):
        # Not TConn's own: that makes system calls which nobody needs here.
        self.cfg = cfg
        self.socket = client
        self.sock = self
        self.client = address
        self.server = server
        self.parser: Any = None
        self.initialized = True
        self.data_ready = True
        self.is_http2 = False
        self.received = b""
        self.unsent: list[bytes | memoryview] = []
        self.drained = 0
        self.deadline = time.monotonic() + _REQUEST_SECONDS
        self.is_known = False  # to the epoll
        self.is_whole = False  # the request
        self.is_over = False  # for gunicorn
        self.is_slow = False  # in taking its answer
        self.is_lingering = False
        self.keep = False

    # --- what gunicorn does with a socket ---

    def recv(self, size: int) -> bytes:
        """What has arrived; else waits for more of this request, until its deadline. TimeoutError then."""
        if self.received:
            received, self.received = self.received, b""
            return received
        if self.is_over:
            return b""
        self.socket.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            return self.socket.recv(size)
        finally:
            self.socket.settimeout(None)

    def sendall(self, data: bytes) -> None:
        """Keep it until `flush`."""
        self.unsent.append(data)

    def send(self, data: bytes) -> int:
        """At once: the `100 Continue` that a client waits for."""
        return self.socket.send(data)

    def setblocking(self, flag: bool) -> None:
        """Nothing: whether a call waits is decided call by call."""

    def gettimeout(self) -> float:
        """0: nothing that gunicorn does here waits."""
        return 0.0

    def settimeout(self, seconds: float | None) -> None:
        """Nothing: there is one deadline for the whole request."""

    def shutdown(self, how: int) -> None:
        """gunicorn gave up in the middle of an answer: nothing more is read for it. The worker ends connections."""
        self.is_over = True

    def close(self, graceful: bool = False) -> None:
        """Close the socket."""
        self.socket.close()

    # --- what the worker does with it ---

    def begin(self) -> None:
        """Make it ready for gunicorn's parser."""
        if self.parser is None:
            self.parser = http.get_parser(self.cfg, self, self.client)

    def fill(self) -> bool:
        """Take what has arrived, without waiting. False when the client has gone."""
        try:
            arrived = self.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        if arrived and not self.received:
            self.deadline = time.monotonic() + _REQUEST_SECONDS
        self.received += arrived
        return bool(arrived)

    def flush(self) -> bool:
        """Send what is due, without waiting. True when all of it has gone."""
        while self.unsent:
            try:
                sent = self.socket.sendmsg(self.unsent[:_PIECES], (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            while self.unsent and sent >= len(self.unsent[0]):
                sent -= len(self.unsent.pop(0))
            if self.unsent:
                self.unsent[0] = memoryview(self.unsent[0])[sent:]
        return True

    def drain(self) -> bool:
        """Throw away what still arrives. False when the client has closed its side, or has sent too much."""
        try:
            arrived = len(self.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        self.drained += arrived
        return arrived > 0 and self.drained < _LINGER_BYTES

    def linger(self) -> None:
        """Say that nothing more will come, and leave the client the time to read it."""
        self.is_lingering = True
        self.deadline = time.monotonic() + _LINGER_SECONDS
        self.socket.shutdown(socket.SHUT_WR)


def is_whole(received: bytes) -> bool | None:
    """Has the whole request arrived? None: not, and a thread has to read the rest.

    That is so of what is larger than any request may be, and of a client that waits for `100 Continue`. Whether the
    request is right is for gunicorn's parser to say.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None if len(received) > MAX_BODY_BYTES else False
    head = received[: end + 2]
    if _EXPECTS.search(head):
        return None
    if _CHUNKED.search(head):
        body = received[end + 2 :]
        if body.endswith(b"\r\n\r\n") and b"\r\n0\r\n" in body:
            return True
        return None if len(body) > 2 * MAX_BODY_BYTES else False
    length = _LENGTH.search(head)
    if length is None:
        return True
    if int(length[1]) > MAX_BODY_BYTES:
        return None
    return len(received) >= end + 4 + int(length[1])


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's ThreadWorker with the threads above. Linux alone has epoll; elsewhere gthread serves as it is."""

    alive: bool

    def init_process(self) -> None:
        if self.cfg.is_ssl:
            raise RuntimeError("TLS is for a reverse proxy in front of the service")
        # gunicorn looks settings up in a dictionary of objects, dozens of times in each request.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        self.epoll = select.epoll()
        self.listeners = {listener.fileno(): (listener, listener.getsockname()) for listener in self.sockets}
        self.connections: set[Connection] = set()
        # Who waits for the epoll, longest first. Whoever takes a connection out of here has it for himself.
        self.waiting: dict[int, Connection] = {}
        super().init_process()

    def run(self) -> None:
        """Serve until told to stop; then finish what has begun."""
        for fd, (listener, _) in self.listeners.items():
            listener.setblocking(False)
            self.epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self.poller.register(self.method_queue.fileno(), 1, self.method_queue.run_callbacks)
        for number in range(self.cfg.threads):
            threading.Thread(target=self._serve, name=f"serve-{number}", daemon=True).start()

        while self.alive and self.is_parent_alive():
            self.notify()
            self.wait_for_and_dispatch_events(_SWEEP_SECONDS)
            self._let_go_of(self._late())
        self.alive = False
        self._stop()

    def _stop(self) -> None:
        # New callers go to another worker, or are refused: one who connects to a listener that nobody serves hangs.
        for fd, (listener, _) in self.listeners.items():
            self.epoll.unregister(fd)  # closing is not enough: the master has the listener open, too
            listener.close()
        now = time.monotonic()
        for conn in list(self.waiting.values()):
            if not conn.unsent:
                conn.deadline = min(conn.deadline, now + _LAST_REQUEST_SECONDS)
        while self.connections and time.monotonic() < now + self.cfg.graceful_timeout:
            self.notify()
            time.sleep(0.02)
            self._let_go_of(self._late())

    def _late(self) -> list[Connection]:
        now = time.monotonic()
        return [conn for conn in list(self.waiting.values()) if conn.deadline < now]

    def _let_go_of(self, connections: Iterable[Connection]) -> None:
        for conn in connections:
            fd = conn.socket.fileno()
            found = self.waiting.pop(fd, None)
            if found is conn:
                if conn.received or conn.unsent:
                    log.info("a client was too slow and was let go", extra={"client": conn.client})
                self._close(conn)
            elif found is not None:  # its number has gone to another connection in this very moment
                self.waiting[fd] = found

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        """Of a request that did not come whole nobody knows where the next one begins."""
        return conn.is_whole and bool(super()._keepalive_after(conn, keepalive))

    # --- one thread of several ---

    def _serve(self) -> None:
        while self.alive or self.connections:
            for fd, _ in self.epoll.poll(_SWEEP_SECONDS, 1):
                try:
                    if fd in self.listeners:
                        self._accept(*self.listeners[fd])
                    elif conn := self.waiting.pop(fd, None):
                        self._go_on(conn)
                except Exception:
                    log.exception("a connection failed")

    def _accept(self, listener: socket.socket, server: Any) -> None:
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another thread was faster, or the client has gone
        except OSError as error:
            if self.alive:
                log.error("a connection cannot be accepted", extra={"reason": error.strerror})
                time.sleep(0.1)  # out of files or memory: the epoll would tell of it again at once
            return
        if len(self.connections) >= self.worker_connections:
            self._make_room()
        conn = Connection(self.cfg, client, address, server)
        self.connections.add(conn)
        self._go_on(conn)

    def _make_room(self) -> None:
        """Let go of who has waited longest: a crowd of silent connections must not keep a media server out."""
        for conn in list(self.waiting.values())[:1]:
            self._let_go_of([conn])

    def _go_on(self, conn: Connection) -> None:
        """The next step with a connection that has something to say, or room for what is due to it."""
        try:
            if conn.is_lingering:
                if conn.drain():
                    self._wait_for(conn)
                else:
                    self._close(conn)
            elif conn.unsent:
                if self._send(conn):
                    self._answer(conn)
            elif conn.fill():
                self._answer(conn)
            else:
                self._close(conn)
        except OSError:
            self._close(conn)  # reset by the client
        except BaseException:
            self._close(conn)
            raise

    def _answer(self, conn: Connection) -> None:
        """Every request that is there."""
        while True:
            whole = is_whole(conn.received)
            if whole is False:
                self._wait_for(conn)
                return
            conn.is_whole = whole is True
            conn.begin()
            conn.keep = self.handle(conn)
            if not self._send(conn):
                return

    def _send(self, conn: Connection) -> bool:
        """What is due. True when it has gone, and something has come meanwhile."""
        if not conn.flush():
            if not conn.is_slow:
                conn.is_slow = True
                conn.deadline = time.monotonic() + _ANSWER_SECONDS
            self._wait_for(conn, select.EPOLLOUT)
            return False
        conn.is_slow = False
        if conn.keep:
            conn.received = conn.parser.unreader.take_buffered() + conn.received
            conn.deadline = time.monotonic() + (_REQUEST_SECONDS if conn.received else self.cfg.keepalive)
            if conn.received:
                return True
            self._wait_for(conn)
        elif conn.is_whole:
            self._close(conn)
        else:
            conn.linger()
            self._wait_for(conn)
        return False

    def _wait_for(self, conn: Connection, event: int = select.EPOLLIN) -> None:
        fd = conn.socket.fileno()
        self.waiting[fd] = conn
        if conn.is_known:
            self.epoll.modify(fd, event | select.EPOLLONESHOT)
        else:
            conn.is_known = True
            self.epoll.register(fd, event | select.EPOLLONESHOT)

    def _close(self, conn: Connection) -> None:
        self.connections.discard(conn)
        conn.close()
