"""The worker of gunicorn: threads that accept, read, answer and write for themselves.

gunicorn's gthread accepts in one thread and hands each connection to a pool of others and back: a queue, a future, a
pipe, and some fifty waits for Python's lock in each request under load. Here every thread waits on the same epoll, and
the one that wakes does all of it. HTTP itself (parser, environ, reply, limits) stays gunicorn's.

A connection has a thread only while its request is answered. Who is silent, sends slowly or reads slowly waits in the
epoll, with a deadline, and costs nobody else anything.
"""

import ctypes
import logging
import mmap
import os
import re
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable
from typing import Any

from gunicorn import http, util
from gunicorn.http import errors
from gunicorn.workers import gthread
from werkzeug.exceptions import RequestEntityTooLarge

from streamorch import logs, problems
from streamorch.exchange import MAX_BODY_BYTES, STATUS_LINES, Request
from streamorch.problems import FieldError, Problem

log = logging.getLogger(__name__)

# How long a client may take to send its request, and to take its answer.
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
# A client that was refused in the middle of its request may read the answer before the connection is reset.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1024 * 1024
# How long connections that are under way may still arrive when the service stops, and bring a request.
_LAST_CONNECTION_SECONDS = 0.1
_LAST_REQUEST_SECONDS = 0.5
# So long a thread may take from the system's answer to `accept` to its entry in `connections`.
_SETTLE_SECONDS = 0.05
_SWEEP_SECONDS = 1.0
_READ_BYTES = MAX_BODY_BYTES + 8 * 1024
# So many requests of one client in a row; then it is the turn of the others.
_IN_A_ROW = 16
_PIECES = 256  # the system takes 1024 at once

# When a worker last began to serve, by time.monotonic(): one page that all processes of the master share.
_BEGAN = mmap.mmap(-1, 8)

_DIGITS = 20
_CHUNK_HEAD_BYTES = 4096
# A body of so many chunks is no request that anybody makes, and each packet of it would be counted through again.
_CHUNKS = 2000

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_CODED = re.compile(rb"\r\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_CHUNKED = re.compile(
    rb"^(?:\r\n)*[^\r\n]* HTTP/1\.[1-9]\r\n(?:[^\r\n]+\r\n)*?transfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE
)
_ASKS_FIRST = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)
_GO_AHEAD = b"HTTP/1.1 100 Continue\r\n\r\n"


# What gunicorn's parser refuses: status, and what is wrong with which part of it. In our own words, since the parser's
# quote what was sent, and that may be a credential.
_REFUSALS = {
    errors.LimitRequestLine: (414, "request line", "is too long"),
    errors.LimitRequestHeaders: (431, "head", "is too large, or has too many headers"),
    errors.UnsupportedTransferCoding: (501, "Transfer-Encoding", "is not known here"),
    errors.ExpectationFailed: (417, "Expect", "can only be 100-continue"),
    errors.InvalidRequestLine: (400, "request line", "is none of HTTP/1.1"),
    errors.InvalidRequestMethod: (400, "request line", "names no method"),
    errors.InvalidHTTPVersion: (400, "request line", "names no version of HTTP"),
    errors.InvalidHeaderName: (400, "head", "has a header with a name that is none"),
    errors.ObsoleteFolding: (400, "head", "has a header of several lines"),
    errors.InvalidHeader: (400, "head", "has a header that is none, stands there twice or contradicts another"),
    errors.InvalidChunkSize: (400, "body", "has a chunk without a size"),
    errors.InvalidChunkExtension: (400, "body", "has a chunk with an extension that is none"),
    errors.ChunkMissingTerminator: (400, "body", "has a chunk of another size than it says"),
}
_OTHER_VERSION = (505, "request line", "names another version than HTTP/1.0 and HTTP/1.1")
_TOO_LARGE = (414, 431)


def _refusal(error: Exception) -> Problem | None:
    """The problem of a request that the parser refused with this; None when that is no fault of the client."""
    if isinstance(error, errors.InvalidHTTPVersion) and isinstance(error.version, tuple):
        status, part, reason = _OTHER_VERSION
    elif type(error) in _REFUSALS:  # the very class: what an application does wrong is derived from these
        status, part, reason = _REFUSALS[type(error)]
    else:
        return None
    slug = "too-large" if status in _TOO_LARGE else "invalid-request"
    told = [FieldError(part, reason)] if status == 400 else None
    return Problem(slug, f"the {part} {reason}", status=status, errors=told)


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
        self.has_head = False
        self.unsent: list[bytes | memoryview] = []
        self.drained = 0
        self.deadline = time.monotonic() + _REQUEST_SECONDS
        self.is_known = False  # to the epoll
        self.is_whole = False  # the request that is answered
        self.was_told = False  # to go ahead with its body
        self.is_over = False  # for gunicorn
        self.is_lingering = False
        self.keep = False

    # --- what gunicorn does with a socket ---

    def recv(self, size: int) -> bytes:
        """What has arrived. There is no more: a request is answered when it is whole, or too large to be."""
        if self.received:
            received, self.received = self.received[:size], self.received[size:]
            return received
        if self.is_over:
            return b""
        if self.has_head:
            raise http.errors.NoMoreData if self.is_whole else RequestEntityTooLarge
        if self.is_whole:
            raise http.errors.InvalidRequestLine("a line that does not end with CRLF")
        raise http.errors.LimitRequestHeaders("the head of the request is too large")

    def sendall(self, data: bytes) -> None:
        """Keep it until `flush`."""
        self.unsent.append(data)

    def send(self, data: bytes) -> int:
        """Nothing: this is the `100 Continue`, which the worker has sent when it was time."""
        return len(data)

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
        """The same."""
        self.is_over = True

    # --- what the worker does with it ---

    def begin(self, whole: bool | None) -> None:
        """Make it ready for gunicorn's parser; `whole` as `is_whole` has it."""
        self.is_whole = whole is True
        end = self.received.find(b"\r\n\r\n")
        self.has_head = end >= 0
        if whole is None and self.has_head:
            self.received = self.received[: end + 4]  # whoever reads on has RequestEntityTooLarge at once
        self.was_told = False
        if self.parser is None:
            self.parser = http.get_parser(self.cfg, self, self.client)

    def go_ahead(self) -> None:
        """Tell a client that sends its head and waits (RFC 9110, 10.1.1) to send the body, once."""
        end = self.received.find(b"\r\n\r\n")
        if self.was_told or end < 0:
            return
        self.was_told = True
        line, _, fields = self.received[: end + 2].lstrip(b"\r\n").partition(b"\r\n")
        if line.endswith(b"HTTP/1.1") and _ASKS_FIRST.search(b"\r\n" + fields):
            self.socket.send(_GO_AHEAD, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def has_spoken(self) -> bool:
        """Is there something to read?"""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

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
        self.received = b""
        self.deadline = time.monotonic() + _LINGER_SECONDS
        self.socket.shutdown(socket.SHUT_WR)


def is_whole(received: bytes) -> bool | None:
    """Has the whole next request arrived? None: not, and what has is more than a request may be.

    Whether the request is right is for gunicorn's parser to say; of one that is not, True.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        if len(received) > MAX_BODY_BYTES:
            return None
        return received.count(b"\n") != received.count(b"\r\n")
    head = received[: end + 2]
    length = _LENGTH.search(head)
    if _CODED.search(head):
        # With a length beside it, twice or in HTTP/1.0 it is refused: no chunk needs to come.
        is_right = length is None and len(_CODED.findall(head)) == 1 and _CHUNKED.search(head)
        return _has_last_chunk(received, end + 4) if is_right else True
    if length is None:
        return True
    if len(length[1]) > _DIGITS or int(length[1]) > MAX_BODY_BYTES:
        return None
    return len(received) >= end + 4 + int(length[1])


def _has_last_chunk(received: bytes, begin: int) -> bool | None:
    """The same of a chunked body that begins there (RFC 9112, 7.1)."""
    at = begin
    for _ in range(_CHUNKS):
        if at > begin + 2 * MAX_BODY_BYTES:
            return None
        line = received.find(b"\r\n", at)
        if line < 0:
            return None if len(received) - at > _CHUNK_HEAD_BYTES else False
        try:
            size = int(received[at:line].partition(b";")[0], 16)
        except ValueError:
            return True  # refused by the parser
        if size <= 0:
            # The trailer ends with an empty line.
            over = received.startswith(b"\r\n", line + 2) or received.find(b"\r\n\r\n", line + 2) >= 0
            return True if over else (None if len(received) - line > MAX_BODY_BYTES else False)
        at = line + 2 + size + 2
    return None


def _has_open(pid: int, listener: socket.socket) -> bool:
    """Has that process this socket open? True when that cannot be seen."""
    mine = os.fstat(listener.fileno()).st_ino
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                if entry.stat().st_ino == mine:
                    return True
            except FileNotFoundError:
                pass
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


# Drops what begins a connection (SYN without ACK) and nothing else: a classic BPF program of four-part instructions.
_NO_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_SO_ATTACH_FILTER = 26


def _turn_away_newcomers(listener: socket.socket) -> None:
    """Nobody connects any more; whoever is about to be connected is. They try again, and are refused at the end."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
    wanted = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, wanted)


def _has_connections(listener: socket.socket) -> bool:
    """Does somebody wait to be accepted?"""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


class Worker(gthread.ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's ThreadWorker with the threads above. Linux alone has epoll; elsewhere gthread serves as it is."""

    alive: bool

    def init_process(self) -> None:
        if self.cfg.is_ssl:
            raise RuntimeError("TLS is for a reverse proxy in front of the service")
        # gunicorn looks settings up in a dictionary of objects, dozens of times in each request.
        self.cfg.set("sendfile", False)  # a Connection keeps what it is given
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        self.epoll = select.epoll()
        self.listeners = {listener.fileno(): (listener, listener.getsockname()) for listener in self.sockets}
        self.connections: set[Connection] = set()
        self.is_told_to_end = False
        # Who waits for the epoll, longest first. Whoever takes a connection out of here has it for himself.
        self.waiting: dict[int, Connection] = {}
        super().init_process()

    def run(self) -> None:
        """Serve until told to stop; then finish what has begun."""
        for fd, (listener, _) in self.listeners.items():
            listener.setblocking(False)
            self.epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        for number in range(self.cfg.threads):
            threading.Thread(target=self._serve, name=f"serve-{number}", daemon=True).start()

        _BEGAN[:] = struct.pack("d", time.monotonic())
        while self.alive and self.is_parent_alive():
            self.notify()
            self.wait_for_and_dispatch_events(_SWEEP_SECONDS)
            self._let_go_of(self._late())
            self._look_for_the_forgotten()
        self.alive = False
        self._stop()

    def handle_exit(self, sig: int, frame: object) -> None:
        """SIGTERM."""
        self.is_told_to_end = True
        super().handle_exit(sig, frame)

    def _stop(self) -> None:
        now = time.monotonic()
        self._serve_until_others_do(now)
        # New callers go to another worker, or are refused: one who connects to a listener that nobody serves hangs.
        for fd in list(self.listeners):
            self.epoll.unregister(fd)  # closing is not enough: the master has the listener open, too
            listener, server = self.listeners[fd]
            # Whom the kernel has announced to us it announces to no other worker.
            while conn := self._accept(listener, server):
                self._wait_for(conn)
            del self.listeners[fd]  # afterwards: without listeners and connections the threads end
            listener.close()
        time.sleep(_SETTLE_SECONDS)
        for conn in list(self.waiting.values()):
            self._hurry(conn)
        # Less than the master waits before it kills: this process has to end in order, too.
        while self.connections and time.monotonic() < now + 0.8 * self.cfg.graceful_timeout:
            self.notify()
            time.sleep(0.02)
            self._let_go_of(self._late())

    def _serve_until_others_do(self, now: float) -> None:
        """Accept as long as nobody else would: until a worker that comes in our place serves, or nobody waits any more.

        The master ends workers before those in their place have loaded. And the kernel connects before anybody accepts:
        it resets who waits when the last process closes the listener. That is the master while workers are replaced; it
        is one of us when the service stops, or the master was killed.
        """
        listeners = [listener for listener, _ in self.listeners.values()]
        shut: set[socket.socket] = set()
        while time.monotonic() < now + 0.5 * self.cfg.graceful_timeout:
            for listener in listeners:
                if listener not in shut and not _has_open(self.ppid, listener):
                    shut.add(listener)
                    _turn_away_newcomers(listener)
            self.notify()
            time.sleep(0.02)
            # A moment in any case: for who is about to be connected, and for a master that is told to stop after us.
            if time.monotonic() < now + _LAST_CONNECTION_SECONDS:
                continue
            if shut:
                if not any(map(_has_connections, shut)):
                    return
            elif not self.is_told_to_end or struct.unpack("d", _BEGAN)[0] > now:
                return

    def _look_for_the_forgotten(self) -> None:
        """Have whoever still waits to be accepted announced to us.

        The kernel announces a newcomer to one worker (EPOLLEXCLUSIVE), once. When that one is stopped, or killed before
        it accepts, the newcomer would wait until another comes.
        """
        for fd, (listener, _) in self.listeners.items():
            if _has_connections(listener):
                self.epoll.unregister(fd)
                self.epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _late(self) -> list[Connection]:
        now = time.monotonic()
        return [conn for conn in list(self.waiting.values()) if conn.deadline < now]

    def _hurry(self, conn: Connection) -> None:
        """The worker stops: a last request may come, but soon. What is due to a client it may take as ever."""
        if not conn.unsent:
            conn.deadline = min(conn.deadline, time.monotonic() + _LAST_REQUEST_SECONDS)

    def _let_go_of(self, connections: Iterable[Connection]) -> None:
        for conn in connections:
            fd = conn.socket.fileno()
            found = self.waiting.pop(fd, None)
            if found is not conn:
                if found is not None:  # its number has gone to another connection in this very moment
                    self.waiting[fd] = found
            elif conn.unsent or conn.is_lingering:
                self._give_up(conn)
            elif conn.received and is_whole(conn.received) is not False:
                self._wait_for(conn, select.EPOLLOUT)  # for its turn
            elif conn.has_spoken():
                # It waits for a thread, and not we for it.
                if not conn.received:
                    conn.deadline = time.monotonic() + _REQUEST_SECONDS
                self._wait_for(conn)
            else:
                self._give_up(conn)

    def _give_up(self, conn: Connection) -> None:
        if conn.received or conn.unsent:
            log.info("a client was too slow and was let go", extra={"client": conn.client})
        self._close(conn)

    def handle_request(self, request: Any, conn: Connection) -> bool:
        """Of a request that did not come whole nobody knows where the next one begins: its answer is the last."""
        if not conn.is_whole:
            request.force_close()
        return bool(super().handle_request(request, conn))

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        """The rest of a body that the application did not read is here already."""
        try:
            return bool(keepalive and conn.parser.finish_body())
        except Exception:  # a malformed chunk: the answer is given, and a second one to the same request would be wrong
            conn.is_whole = False
            return False

    def handle_error(self, request: Any, client: Connection, address: Any, error: Exception) -> None:
        """A problem, as for every error. A refused client may go on sending, and must be able to read why."""
        client.is_whole = False
        asked = Request(
            {
                "REQUEST_METHOD": getattr(request, "method", ""),
                "PATH_INFO": getattr(request, "path", ""),
                "HTTP_X_REQUEST_ID": dict(getattr(request, "headers", ())).get("X-REQUEST-ID", ""),
            }
        )
        logs.REQUEST_ID.set(asked.request_id)
        refused = _refusal(error)
        if refused is not None:
            log.info(
                "no request of HTTP", extra={"status": refused.status, "reason": refused.detail, "client": address}
            )
        reply = problems.reply(refused or error, asked)
        logs.REQUEST_ID.set(None)
        head = [
            f"HTTP/1.1 {STATUS_LINES[reply.status]}",
            f"Date: {util.http_date()}",
            *(f"{name}: {value}" for name, value in reply.headers),
            f"X-Request-ID: {asked.request_id}",
            f"Content-Length: {len(reply.body)}",
            "Connection: close",
        ]
        client.sendall("\r\n".join([*head, "", ""]).encode() + reply.body)

    # --- one thread of several ---

    def _serve(self) -> None:
        while self.alive or self.listeners or self.connections:
            try:
                for fd, _ in self.epoll.poll(_SWEEP_SECONDS, 1):
                    listener = self.listeners.get(fd)
                    conn = self._accept(*listener) if listener else self.waiting.pop(fd, None)
                    if conn:
                        self._go_on(conn)
            except BaseException:  # a thread that ends here is missed for ever
                log.exception("a connection failed")

    def _accept(self, listener: socket.socket, server: Any) -> Connection | None:
        """Who waits to be accepted; None when nobody does, or it could not be done."""
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None  # another thread was faster, or the client has gone
        except OSError as error:
            if self.alive:
                log.error("a connection cannot be accepted", extra={"reason": error.strerror})
                if not self._make_room():
                    time.sleep(0.1)  # out of files or memory, and the epoll would tell of it again at once
            return None
        if len(self.connections) >= self.worker_connections:
            self._make_room()
        conn = Connection(self.cfg, client, address, server)
        self.connections.add(conn)
        return conn

    def _make_room(self) -> bool:
        """Let go of who has waited longest: a crowd of silent connections must not keep a media server out.

        False when there is nobody.
        """
        longest = list(self.waiting.values())[:16]
        chosen = next(([conn] for conn in longest if not conn.has_spoken()), longest[:1])
        self._let_go_of(chosen)
        return bool(chosen)

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
            elif (conn.received and is_whole(conn.received) is not False) or conn.fill():
                self._answer(conn)
            else:
                self._close(conn)
        except (OSError, ValueError):
            self._close(conn)  # reset by the client, or closed already
        except BaseException:
            self._close(conn)
            raise

    def _answer(self, conn: Connection) -> None:
        """Every request that is there, for as long as it is this client's turn."""
        for _ in range(_IN_A_ROW):
            whole = is_whole(conn.received)
            if whole is False:
                conn.go_ahead()
                self._wait_for(conn)
                return
            conn.begin(whole)
            conn.keep = self.handle(conn)
            conn.deadline = time.monotonic() + _ANSWER_SECONDS
            if not self._send(conn):
                return
        self._wait_for(conn, select.EPOLLOUT)  # which comes at once, behind the others

    def _send(self, conn: Connection) -> bool:
        """What is due. True when it has gone, and something has come meanwhile."""
        if not conn.flush():
            self._wait_for(conn, select.EPOLLOUT)
            return False
        if conn.parser is not None:
            conn.received = conn.parser.unreader.take_buffered() + conn.received
        if conn.keep:
            conn.deadline = time.monotonic() + (_REQUEST_SECONDS if conn.received else self.cfg.keepalive)
            if conn.received:
                return True
            self._wait_for(conn)
        elif conn.is_whole and not conn.received and not conn.has_spoken():
            self._close(conn)
        else:
            # To close with something unread would reset the connection, and the answer with it (RFC 9112, 9.6).
            conn.linger()
            self._wait_for(conn)
        return False

    def _wait_for(self, conn: Connection, event: int = select.EPOLLIN) -> None:
        if not self.alive:
            self._hurry(conn)
        fd = conn.socket.fileno()
        self.waiting[fd] = conn
        if conn.is_known:
            self.epoll.modify(conn.socket, event | select.EPOLLONESHOT)
        else:
            conn.is_known = True
            self.epoll.register(conn.socket, event | select.EPOLLONESHOT)

    def _close(self, conn: Connection) -> None:
        fd = conn.socket.fileno()
        if self.waiting.get(fd) is conn:
            self.waiting.pop(fd, None)
        self.connections.discard(conn)
        conn.socket.close()
