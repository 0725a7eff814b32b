"""The files that pages load: scripts, styles and icons of `static/console`, under an address that changes with them."""

import hashlib
import importlib.resources
from functools import cache
from typing import NamedTuple

_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class Assets(NamedTuple):
    """The files by name, and their edition: a hash of them all."""

    edition: str
    files: dict[str, bytes]


@cache
def assets() -> Assets:
    """All of them."""
    folder = importlib.resources.files("streamorch") / "static" / "console"
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}
    files = dict(sorted(found.items()))
    return Assets(hashlib.sha256(b"".join(files.values())).hexdigest()[:16], files)


def content_type(name: str) -> str:
    """The type of the file of this name."""
    return _TYPES[name.rpartition(".")[2]]
