"""Every case by its name, in the order in which they are measured."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from bench import auth, beside, lists, mixed, observed, reconcile, scale
from bench.stage import Stage


class Group(NamedTuple):
    """Cases that are measured in turns with each other; one that `is_long` runs only when it is asked for."""

    names: Sequence[str]
    measure: Callable[[Stage, Sequence[str]], None]
    is_long: bool = False


GROUPS = (
    Group(auth.SERIAL, auth.serial),
    Group(auth.SERIAL_KEPT, partial(auth.serial, kept=True)),
    Group(auth.BURST, auth.burst),
    Group(lists.BURST, lists.burst),
    Group(auth.THROUGHPUT, auth.throughput),
    Group(auth.THROUGHPUT_KEPT, partial(auth.throughput, kept=True)),
    *(
        Group(lists.throughput_names(count, kept=kept), partial(lists.throughput, count=count, kept=kept))
        for count in lists.COUNTS
        for kept in (False, True)
    ),
    Group(auth.PAUSELESS, auth.pauseless),
    Group(lists.PAUSELESS, lists.pauseless),
    Group(lists.CHANGE, lists.change),
    Group(mixed.OPEN_LOOP, mixed.open_loop),
    Group(beside.NAMES, beside.measure),
    Group(observed.NAMES, observed.measure),
    Group(reconcile.NAMES, reconcile.measure),
    Group(lists.HISTORY, lists.history),
    Group(scale.NAMES, scale.measure, is_long=True),
    Group(mixed.MEMORY, mixed.memory),
)


def selected(wanted: str, *, full: bool) -> list[tuple[Group, list[str]]]:
    """The groups with those of their cases whose name holds one of the comma-separated parts of `wanted`; all of
    them if it is empty. Long ones need to be `wanted` by the first word of their name, or `full`.
    """
    parts = [part.strip() for part in wanted.split(",") if part.strip()]
    found = []
    for group in GROUPS:
        names = [name for name in group.names if not parts or any(part in name for part in parts)]
        if group.is_long and not full:
            names = [name for name in names if any(part.startswith(name.split()[0]) for part in parts)]
        if names:
            found.append((group, names))
    return found
