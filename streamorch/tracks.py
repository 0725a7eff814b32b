"""The tracks of a stream, in one form whatever version of MediaMTX told of them, and in words."""

from typing import Any, TypedDict

import msgspec


class Track(TypedDict):
    """A track, and what is known of it; `properties` depends on the codec."""

    codec: str | None
    properties: dict[str, Any]


def in_words(found: list[Track]) -> str:
    """Codecs, and the size of the picture, as a line: `H264 1920×1080, Opus`."""  # noqa: RUF002
    return ", ".join(" ".join(filter(None, (track["codec"], _size(track["properties"])))) for track in found)


def _size(properties: dict[str, Any]) -> str | None:
    width, height = properties.get("width"), properties.get("height")
    return f"{width}×{height}" if isinstance(width, int) and isinstance(height, int) else None  # noqa: RUF001


def in_one_form(described: bytes | str | None) -> list[Track]:
    """Tracks of whatever version in one form: codec, and what is known of it (codecProps of MediaMTX)."""
    found = msgspec.json.decode(described) if described else []
    return [
        {"codec": track, "properties": {}}
        if isinstance(track, str)
        else {"codec": track.get("codec"), "properties": track.get("codecProps") or {}}
        for track in (found if isinstance(found, list) else ())
        if isinstance(track, (str, dict))
    ]
