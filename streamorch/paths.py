"""Which path names a publisher may use. Pure."""

import re

from streamorch import keys

_FORM = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_MAX_LENGTH = 255
_SEGMENTS = {".", "..", "whip", "whep", "publish"}
_ENDINGS = (".m3u8", ".mp4", ".mp", ".ts")
_NAMES = {"all", "all_others"}
# The same as a schema: what a client can know before it asks.
SCHEMA = {
    "pattern": f"^{_FORM.pattern}$",
    "maxLength": _MAX_LENGTH,
    "not": {
        "anyOf": [
            {"pattern": rf"(^|/)({'|'.join(map(re.escape, sorted(_SEGMENTS)))})(/|$)"},
            {"pattern": rf"({'|'.join(map(re.escape, _ENDINGS))})$"},
            {"enum": sorted(_NAMES)},
            {"pattern": keys.FORM.pattern},
        ]
    },
}

KEY_IN_PATH = (
    "the path holds a stream key, and every viewer would see it: put the key into ?pass=KEY and name the path freely"
)


def refusal(path: str) -> str | None:
    """Why this path may not be published to or bound to a key, as one sentence; None when it may.

    The names refused are those that MediaMTX serves itself or cleans away (mediamtx.md 3.5).
    """
    if keys.has_form(path):
        return KEY_IN_PATH
    if len(path) > _MAX_LENGTH:
        return f"a path has at most {_MAX_LENGTH} characters"
    if not _FORM.fullmatch(path):
        return "a path is made of letters, digits, '_', '.', '-', with single '/' between its parts"
    segments = path.split("/")
    if taken := _SEGMENTS.intersection(segments):
        return f"a path may not have the part '{min(taken)}'"
    if segments[-1].endswith(_ENDINGS):
        return f"a path may not end in {', '.join(_ENDINGS)}"
    if path in _NAMES:
        return f"the name '{path}' belongs to MediaMTX's configuration"
    return None
