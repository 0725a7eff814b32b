"""Limits that hold in this process, in bounded memory: who comes too often waits, and nobody else.

Each worker counts for itself, so what several workers let pass is so many times as much.
"""

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache


class Bucket:
    """Tokens that one takes and time brings back, at most `burst` of them. Not for several threads at once."""

    __slots__ = ("at", "tokens")

    def __init__(self, tokens: float, at: float):
        self.tokens = tokens
        self.at = at

    def take(self, now: float, *, per_second: float, burst: float) -> float:
        """0 when there was one to take, else how many seconds until there is; `now` is monotonic."""
        self.tokens = min(burst, self.tokens + (now - self.at) * per_second)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / per_second


class Allowance:
    """So many a minute of each caller, a minute's worth at once; 0 is no limit.

    Of very many callers those that were silent longest are forgotten: they may come as if for the first time.
    """

    def __init__(self, per_minute: int, *, callers: int = 4096):
        self._per_minute = per_minute
        self._most = callers
        self._lock = threading.Lock()
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def take(self, caller: Hashable) -> int:
        """0 when this one is within the limit, else after how many whole seconds the next one would be."""
        if not self._per_minute:
            return 0
        now = time.monotonic()
        with self._lock:
            bucket = self._buckets.get(caller)
            if bucket is None:
                bucket = self._buckets[caller] = Bucket(self._per_minute, now)
                if len(self._buckets) > self._most:
                    self._buckets.popitem(last=False)
            else:
                self._buckets.move_to_end(caller)
            return math.ceil(bucket.take(now, per_second=self._per_minute / 60, burst=self._per_minute))


@lru_cache(4096)
def source(address: str) -> str:
    """The network that stands for an address: one of IPv6 has 2**64 of its own. What is no address is as it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed) & ~(2**64 - 1), 64)))
    return str(parsed)
