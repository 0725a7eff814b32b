"""Rows as text for a terminal: columns that line up whatever the letters, moments in local time."""

import datetime
import unicodedata
from collections.abc import Container, Iterable, Sequence

import wcwidth

_GAP = "  "
_SHORTEST = 8


def lines(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    width: int | None,
    elastic: Container[str] = (),
) -> list[str]:
    """A table, a line for the headings and one for each row. None is `-`, numbers stand at the right.

    `width` is that of the terminal in cells: if it is short, the columns with these headings give way, the widest
    first. None: as wide as it comes.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    at_right = [any(isinstance(value, int) for value in column) for column in zip(*rows, strict=True)]
    at_right = at_right or [False] * len(headings)
    widths = [max(wcwidth.width(cell) for cell in column) for column in zip(headings, *cells, strict=True)]
    if width is not None:
        _shrink(widths, width, [number for number, heading in enumerate(headings) if heading in elastic])
    aligned = [
        _GAP.join(
            wcwidth.rjust(cell, cells_wide) if right else wcwidth.ljust(_cut(cell, cells_wide), cells_wide)
            for cell, cells_wide, right in zip(row, widths, at_right, strict=True)
        )
        for row in [list(headings), *cells]
    ]
    return [line.rstrip() for line in aligned]


def clean(text: str) -> str:
    """The text without what would move the cursor, colour the terminal or turn the direction of writing."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(letter) else letter for letter in text)


def moment(text: str | None) -> str:
    """A moment of the API by the clock of this machine: the time of a moment of today, else the date as well."""
    if text is None:
        return "-"
    local = datetime.datetime.fromisoformat(text).astimezone()
    is_today = local.date() == datetime.datetime.now().astimezone().date()
    return f"{local:%H:%M:%S}" if is_today else f"{local:%Y-%m-%d %H:%M}"


def duration(seconds: int) -> str:
    """3:05, 1:00:00, or with days 2d 1:00:00."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if days or hours else f"{minutes}:{seconds:02}"
    return f"{days}d {clock}" if days else clock


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else clean(str(value))


def _is_control(letter: str) -> bool:
    # Cf has the joiners that emoji and some scripts are written with; what turns the direction is told by bidi.
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in (
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    )  # fmt: skip


def _shrink(widths: list[int], width: int, elastic: list[int]) -> None:
    while elastic and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        widest = max(elastic, key=lambda number: widths[number])
        if widths[widest] <= _SHORTEST:
            return
        widths[widest] -= 1


def _cut(text: str, cells: int) -> str:
    return text if wcwidth.width(text) <= cells else wcwidth.clip(text, 0, cells - 1).rstrip() + "…"
