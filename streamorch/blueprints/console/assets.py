"""The files that the pages of the console load: scripts, styles and icons of `static/console`."""

import importlib.resources
from functools import cache

from streamorch import assets


@cache
def own() -> assets.Assets:
    """All of them."""
    folder = importlib.resources.files("streamorch") / "static" / "console"
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in assets.TYPES}
    return assets.of(dict(sorted(found.items())))
