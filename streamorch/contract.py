"""What each operation of the HTTP API takes and gives, said beside its view; `openapi.py` makes the document of it.

Said here is only what the code around a view cannot tell: its guard, its path and its docstring speak for themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from streamorch.callers import Scope

View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"


@dataclass(frozen=True)
class Link:
    """What a client may do next with an answer: an operation, and where in this exchange its input stands.

    `parameters` and members of `body` are runtime expressions of OpenAPI, or values.
    """

    to: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Answer:
    """One status of an operation: the type of its body, a tuple for one of several, None for none, in one of `media`.

    `headers` that are not in every such answer end in `?`.
    """

    says: str
    body: Any = None
    media: tuple[str, ...] = (JSON,)
    headers: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def bodies(self) -> tuple[Any, ...]:
        """The types that its body may have."""
        if isinstance(self.body, tuple):
            return self.body
        return () if self.body is None else (self.body,)


@dataclass(frozen=True)
class Operation:
    """What a view takes and gives; as a decorator it declares the view.

    `takes` is the Struct of its body, `asks` that of its query; `problems` are slugs of its own, and `statuses` the
    statuses of those that have another one here than in the table. `reads` names request headers. `scope` is what an
    API client needs for it; left out, `read` for a GET and `operate` for the others.
    """

    id: str
    answers: Mapping[int, Answer]
    takes: type[msgspec.Struct] | None = None
    asks: type[msgspec.Struct] | None = None
    reads: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    statuses: Mapping[str, int] = field(default_factory=dict)
    scope: Scope | None = None

    def needs(self, method: str) -> Scope:
        """The scope that an API client needs to ask it by this method."""
        return self.scope or ("read" if method in ("GET", "HEAD", "OPTIONS") else "operate")

    def __call__(self, view: View) -> View:
        _OPERATIONS[view] = self
        return view


_OPERATIONS: dict[Callable[..., Any], Operation] = {}
_ASIDE: set[Callable[..., Any]] = set()


def aside(view: View) -> View:
    """Declares a view as none of the contract: the files of a page."""
    _ASIDE.add(view)
    return view


def declared(view: Callable[..., Any]) -> Operation | None:
    """The operation of a view; None of one that stands aside. LookupError of one that says nothing."""
    return None if view in _ASIDE else _OPERATIONS[view]
