"""What the console says in sentences of a stream: its state, its end, and what befell it. Pure."""

from typing import Any

import msgspec

from streamorch import keys, problems
from streamorch.repositories.streams import EndReason
from streamorch.repositories.timeline import Event

ENDED: dict[EndReason, str] = {
    "never_started": "It never went live: its encoder was let in, and no media came.",
    "disconnected": "Its encoder disconnected.",
    "superseded": "Another connection with the same key took its place.",
    "revoked": "Its stream key was revoked.",
    "expired": "Its stream key expired.",
    "disabled": "Its stream key or its broadcaster was disabled.",
    "stopped": "An operator stopped it.",
    "server_restarted": "The media server was restarted.",
    "server_lost": "The media server was lost: it did not answer any more.",
}

_EVENTS = {
    "claimed": "Its encoder was let in",
    "live": "It went live",
    "interrupted": "Its connection ended, and another of the same key was on its way to take its place",
    "replaced": "Another stream took its place",
    "kick": "Its connection is to be closed",
    "kicked": "Its connection is closed",
}
_SUBJECTS = {"broadcaster": "Its broadcaster", "stream_key": "Its stream key", "stream": "The stream"}
_ACTIONS = {
    "create": "was made",
    "update": "was changed",
    "delete": "was deleted",
    "revoke": "was revoked",
    "rotate": "got a new value",
    "stop": "was stopped",
}


def ended(reason: str | None) -> str:
    """Why a stream ended, as a sentence."""
    return next((told for known, told in ENDED.items() if known == reason), f"It ended: {reason}.")


def happened(event: Event) -> str:
    """What an event of a timeline was, as a sentence."""
    if event.event == "ended":
        return f"It ended. {ended(event.reason)}"
    if event.event == "refused":
        kind = problems.TABLE.get(event.reason or "")
        more = f", and {event.left_out} more like it" if event.left_out else ""
        return f"Somebody was refused: {kind.title.lower() if kind else event.reason}{more}."
    subject, _, action = event.event.partition(".")
    if action:
        by = f" by {event.who}" if event.who else ""
        return f"{_SUBJECTS.get(subject, subject)} {_ACTIONS.get(action, action)}{by}."
    return f"{_EVENTS.get(event.event, event.event)}."


def changes(event: Event) -> list[tuple[str, str, str]]:
    """The members that an event changed, each with what it was and what it is; of what was made, nothing."""
    before, after = _members(event.before), _members(event.after)
    return [(name, shown(before.get(name)), shown(value)) for name, value in after.items() if name in before]


def _members(raw: msgspec.Raw | None) -> dict[str, Any]:
    return {} if raw is None else msgspec.json.decode(raw)


def shown(value: Any) -> str:
    """A member of what was changed, before or after; what looks like a key or a secret is blotted out."""
    if value is None:
        return "nothing"
    return keys.redact(value if isinstance(value, str) else msgspec.json.encode(value).decode())
