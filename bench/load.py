"""Load in plain Python sockets: one by one, all at once, by the clock, and in a closed loop where wrk is not installed.

Each is one thread with prepared bytes, so that it takes as little as can be of the machine that it measures on. What
they return is a Sample: latencies in seconds, to the last byte of the answer.
"""

import gc
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import NamedTuple, Self

from bench.figures import Sample
from bench.messages import Message

_SECONDS = 10.0  # for an answer
_CHUNK = 1 << 18


class UnknownLength(OSError):
    """An answer without Content-Length: its end cannot be told from the connection's."""


class Answer:
    """An answer as it arrives: status and head are there when the head is, the body only if it is to be kept."""

    __slots__ = ("_is_kept", "_missing", "body", "head", "status")

    def __init__(self, *, keep_body: bool = False) -> None:
        self.status = 0
        self.head = b""
        self.body = b""
        self._missing: int | None = None
        self._is_kept = keep_body

    def feed(self, data: bytes) -> bool:
        """Take what was received; is the answer complete? OSError: it never will be, or does not say its length."""
        if not data:
            raise ConnectionResetError("closed before the end of the answer")
        if self._missing is None:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return False
            data, self.head = self.head[end + 4 :], self.head[:end]
            self.status = int(self.head[9:12])
            self._missing = self._length()
        self._missing -= len(data)
        if self._is_kept:
            self.body += data
        return self._missing <= 0

    def header(self, name: str) -> str | None:
        """The value of a header, None without it."""
        for line in self.head.split(b"\r\n")[1:]:
            given, _, value = line.decode("latin-1").partition(":")
            if given.lower() == name.lower():
                return value.strip()
        return None

    def _length(self) -> int:
        if self.status in (204, 304):
            return 0
        length = self.header("Content-Length")
        if length is None:
            raise UnknownLength
        return int(length)


def ask(port: int, request: bytes) -> Answer:
    """The answer to one request on a connection of its own, with its body."""
    answer = Answer(keep_body=True)
    with _connected(port) as client:
        client.sendall(request)
        while not answer.feed(client.recv(_CHUNK)):
            pass
    return answer


def one_by_one(port: int, message: Message, numbers: Iterable[int], *, kept: bool = False) -> Sample:
    """As one media server asks: a question, its answer, the next. Each on a new connection, or all on one `kept`.

    A new connection is part of the latency; its end is not, since nobody waits for that.
    """
    requests = [message.of(number) for number in numbers]
    latencies: list[float] = []
    wrong: Counter[str] = Counter()
    client: socket.socket | None = None
    with _undisturbed():
        began = time.perf_counter()
        for request in requests:
            answer = Answer()
            asked = time.perf_counter()
            try:
                if client is None:
                    client = _connected(port)
                client.sendall(request)
                while not answer.feed(client.recv(_CHUNK)):
                    pass
                answered = time.perf_counter()
            except OSError as error:
                wrong[type(error).__name__] += 1
                if client is not None:
                    client.close()
                    client = None
                continue
            if not kept:
                client.close()
                client = None
            if answer.status == message.status:
                latencies.append(answered - asked)
            else:
                wrong[_instead(answer.status, message.status)] += 1
        seconds = time.perf_counter() - began
    if client is not None:
        client.close()
    return Sample(len(latencies), seconds, wrong, latencies)


def burst(port: int, message: Message, numbers: Iterable[int]) -> Sample:
    """All at once, each on a new connection: latencies count from the start of the burst."""
    requests = [message.of(number) for number in numbers]
    finished: list[_Call] = []
    with _undisturbed(), _Crowd(port) as crowd:
        began = time.perf_counter()
        for request in requests:
            crowd.start(request, message.status, began)
        while crowd.calls and (left := began + _SECONDS - time.perf_counter()) > 0:
            finished += _closed(crowd.wait(left))
        finished += crowd.give_up()
        seconds = time.perf_counter() - began
    return _sample(finished, seconds)


def closed_loop(
    port: int, message: Message, numbers: Iterable[int], *, connections: int, seconds: float, kept: bool = True
) -> Sample:
    """Clients that never pause, each on a connection that is kept, or on a new one for each request.

    Ends with the time or the numbers, whichever is over first.
    """
    left = iter(numbers)
    finished: list[_Call] = []
    with _undisturbed(), _Crowd(port) as crowd:
        began = time.perf_counter()
        for number in islice(left, connections):
            crowd.start(message.of(number), message.status, time.perf_counter())
        while crowd.calls and time.perf_counter() - began < seconds + _SECONDS:
            for ended in crowd.wait(_SECONDS):
                finished.append(ended)
                is_over = time.perf_counter() - began >= seconds
                following = None if is_over else next(left, None)
                client = ended.client if kept and following is not None and not ended.failed else None
                if client is None:
                    ended.client.close()
                if following is not None:
                    crowd.start(message.of(following), message.status, time.perf_counter(), client=client)
        finished += crowd.give_up()
        seconds = time.perf_counter() - began
    return _sample(finished, seconds)


class Planned(NamedTuple):
    """A request of an open loop: when it is due, in seconds from the start, and the group that it is counted in."""

    due: float
    group: str
    request: bytes
    status: int


class Clocked(NamedTuple):
    """A Sample for each group, and by how many seconds requests were sent later than planned."""

    groups: dict[str, Sample]
    late: list[float]


def by_the_clock(port: int, plan: Sequence[Planned]) -> Clocked:
    """Requests on new connections, each when it is due, whatever became of those before.

    Latencies count from the moment that was planned: a client that is late charges that, too.
    """
    finished: list[_Call] = []
    late: list[float] = []
    with _undisturbed(), _Crowd(port) as crowd:
        began = time.perf_counter() + 0.01
        for planned in plan:
            due = began + planned.due
            while (wait := due - time.perf_counter()) > 0:
                finished += _closed(crowd.wait(wait))
            late.append(-wait)
            crowd.start(planned.request, planned.status, due, planned.group)
        end = time.perf_counter() + _SECONDS
        while crowd.calls and (left := end - time.perf_counter()) > 0:
            finished += _closed(crowd.wait(left))
        finished += crowd.give_up()
        seconds = time.perf_counter() - began
    groups: dict[str, list[_Call]] = {planned.group: [] for planned in plan}
    for call in finished:
        groups[call.group].append(call)
    return Clocked({group: _sample(calls, seconds) for group, calls in groups.items()}, late)


def random_times(count: int, seconds: float, seed: int) -> list[float]:
    """So many moments within so many seconds as independent callers choose them (a Poisson process), in order."""
    chosen = random.Random(seed)  # noqa: S311  # the same for the service and for its floors
    return sorted(chosen.uniform(0, seconds) for _ in range(count))


class _Call:
    """One request under way; when it has `ended`, its connection is still open unless it `failed`."""

    __slots__ = ("answer", "asked", "client", "ended", "failed", "group", "is_sent", "request", "status")

    def __init__(self, client: socket.socket, request: bytes, status: int, asked: float, group: str) -> None:
        self.client = client
        self.request = request
        self.status = status
        self.asked = asked
        self.group = group
        self.ended = 0.0
        self.failed = ""
        self.is_sent = False
        self.answer = Answer()


class _Crowd:
    """Requests under way at the same time, on sockets that do not block, in one thread."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._epoll = select.epoll()
        self.calls: dict[int, _Call] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()
        self._epoll.close()

    def start(
        self, request: bytes, status: int, asked: float, group: str = "", client: socket.socket | None = None
    ) -> None:
        """Send it, on a connection that is there or a new one; `asked` is when its latency begins."""
        if client is None:
            client = socket.socket()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setblocking(False)
            client.connect_ex(self._address)
        call = self.calls[client.fileno()] = _Call(client, request, status, asked, group)
        try:
            self._send(call)
        except OSError as error:  # for `wait` to tell of
            call.failed = type(error).__name__
        self._epoll.register(client, select.EPOLLIN if call.is_sent else select.EPOLLIN | select.EPOLLOUT)

    def wait(self, seconds: float) -> list[_Call]:
        """What has ended with the next news, which are waited for so long."""
        # By the microsecond, where epoll itself rounds up to a millisecond.
        select.select([self._epoll], [], [], seconds)
        return [call for descriptor, _ in self._epoll.poll(0) if (call := self._advance(descriptor)) is not None]

    def give_up(self) -> list[_Call]:
        """End what is still under way."""
        return [self._end(descriptor, "no answer in time") for descriptor in list(self.calls)]

    def _send(self, call: _Call) -> None:
        # Loopback connects at once; where it does not, the connection is not writable yet.
        with suppress(BlockingIOError):
            call.client.sendall(call.request)
            call.is_sent = True

    def _advance(self, descriptor: int) -> _Call | None:
        """Go on with a call whose connection has news; the call if that was its end."""
        call = self.calls[descriptor]
        if call.failed:
            return self._end(descriptor, call.failed)
        try:
            if not call.is_sent:
                self._send(call)
                if call.is_sent:
                    self._epoll.modify(descriptor, select.EPOLLIN)
            while not call.answer.feed(call.client.recv(_CHUNK)):
                pass
        except BlockingIOError:
            return None
        except OSError as error:
            return self._end(descriptor, type(error).__name__)
        return self._end(descriptor)

    def _end(self, descriptor: int, failed: str = "") -> _Call:
        call = self.calls.pop(descriptor)
        call.ended = time.perf_counter()
        call.failed = failed
        self._epoll.unregister(descriptor)
        if failed:
            call.client.close()
        return call


def _closed(calls: list[_Call]) -> list[_Call]:
    """The same calls; nobody asks anything else on their connections."""
    for call in calls:
        call.client.close()
    return calls


def _connected(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.settimeout(_SECONDS)
    try:
        client.connect(("127.0.0.1", port))
    except OSError:
        client.close()
        raise
    return client


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection of the client's in the middle of somebody's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _sample(calls: Sequence[_Call], seconds: float) -> Sample:
    right = [call.ended - call.asked for call in calls if not call.failed and call.answer.status == call.status]
    wrong = Counter(
        call.failed or _instead(call.answer.status, call.status)
        for call in calls
        if call.failed or call.answer.status != call.status
    )
    return Sample(len(right), seconds, wrong, right)


def _instead(status: int, expected: int) -> str:
    return f"{status} instead of {expected}"
