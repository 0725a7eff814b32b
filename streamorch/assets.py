"""The files that pages load, under an address that changes with them, so that a browser keeps them for ever. Pure."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from streamorch.exchange import Reply
from streamorch.problems import Problem

TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class Assets(NamedTuple):
    """The files by name, and their edition, a hash of them all, which is part of their addresses."""

    edition: str
    files: dict[str, bytes]


def of(files: dict[str, bytes]) -> Assets:
    """These files, in this order, with their edition."""
    return Assets(hashlib.sha256(b"".join(files.values())).hexdigest()[:16], files)


def answer(assets: Assets, edition: str, name: str, headers: Mapping[str, str]) -> Reply:
    """A file of this edition, which never changes; Problem `not-found` of any other."""
    if edition != assets.edition or name not in assets.files:
        raise Problem("not-found", "no such file")
    own = {"Content-Type": TYPES[name.rpartition(".")[2]], "Cache-Control": "public, max-age=31536000, immutable"}
    return Reply(200, assets.files[name], tuple((own | dict(headers)).items()))
