"""Spans of what the service does, in the words of no library: `tracing.py` makes them, loaded only when it is on."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from streamorch.exchange import Request


class Span(Protocol):
    """Something that takes a while, and what is known of it."""

    def tell(self, **facts: object) -> None:
        """Add what has come up meanwhile; None is nothing."""


class Tracer(Protocol):
    """Whoever makes spans."""

    def span(self, name: str, **facts: object) -> AbstractContextManager[Span]:
        """A span around a block; one inside another is its child."""

    def asked(self, request: Request, route: str) -> AbstractContextManager[object]:
        """The span of a request that Flask does not see."""

    def answered(self, request: Request, status: int) -> None:
        """What came of the request whose span this is in, Flask's or the one above."""


class _Nothing:
    def tell(self, **facts: object) -> None:
        """Nobody listens."""


_NOTHING = nullcontext(_Nothing())


def span(tracer: Tracer | None, name: str, **facts: object) -> AbstractContextManager[Span]:
    """A span, or nothing when nobody traces."""
    return _NOTHING if tracer is None else tracer.span(name, **facts)
