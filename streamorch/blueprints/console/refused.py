"""What the console says of a decision: why an encoder was refused, as a sentence to be read out on the phone, and what
to do about it on the pages of the console. Pure.
"""

from typing import NamedTuple

from streamorch import problems
from streamorch.repositories.decisions import Decision
from streamorch.repositories.stream_keys import StreamKey


class Why(NamedTuple):
    """A sentence; `moment`, if there is one, belongs where it has {}."""

    sentence: str
    moment: str | None = None


class ToDo(NamedTuple):
    """What the operator does about a refusal, and the caller.

    In {} stand the places that refusals.py leads to; in quotes what a page calls its buttons and fields, in backticks
    code. Without a `caller`, that is as the problem tells it.
    """

    operator: str
    caller: str = ""


# In the order in which they are asked for most.
REASONS = (
    *("invalid-stream-key", "stream-key-revoked", "stream-key-expired", "stream-key-disabled", "broadcaster-disabled"),
    *("stream-stopped", "stream-key-in-use", "path-in-use", "path-not-allowed", "unauthorized", "rate-limited"),
    "database-unavailable",
)
_WATCHING = ("read", "playback")


# By reason, or by what the reason comes to with this key or question. The problem's own words for operators are about
# the API.
TO_DO: dict[str, ToDo] = {
    "invalid-stream-key": ToDo(
        "Look for its last four characters among the {keys}. A key that is there was entered wrongly: give it a"
        ' "New value" on its page, and the encoder what is shown then, whole. One that is not there needs a {new_key}.'
    ),
    "stream-key-revoked": ToDo("It stays revoked. Make a {new_key}, and give the encoder what is shown then, whole."),
    "value-replaced": ToDo(
        "The key is not revoked. Give the encoder the newer value; if nobody has it any more, make another by"
        ' "New value" on {key}.'
    ),
    "stream-key-expired": ToDo(
        'Choose a later moment under "Expires" on {key}, or empty the field for a key that does not expire, and "Save".'
    ),
    "stream-key-disabled": ToDo('Press "Enable" on {key}, if it is to publish again.'),
    "broadcaster-disabled": ToDo('Press "Let it publish again" on {broadcaster}: that holds for all of its keys.'),
    "stream-stopped": ToDo(
        'An operator stopped it. "Lift the hold" on {key} lets it in at its next try; else it comes in when the hold is'
        " over."
    ),
    "stream-key-in-use": ToDo(
        'Look at {rival}. If the wrong encoder is live, "Stop" it there, and "Lift the hold" on {key}: who tries next'
        ' is let in. For a spare encoder choose "take its place at once (a hot spare)" on {key}. While the media server'
        " does not answer, which {system} tells, nobody can see that an encoder is gone.",
        "Stop the other encoder, or ask the operator which of the two is to be live.",
    ),
    "path-in-use": ToDo(
        'Look at {path}, and "Stop" it if it is the wrong one; or let this encoder use another path. If nothing is live'
        " there, another one of the {keys} is bound to the path."
    ),
    "path-not-allowed": ToDo(
        'Tell the caller the path that stands on {key}, or change "Path" there: empty, it may publish to any.'
    ),
    "path-of-nobody": ToDo(
        "Choose another path: this one holds a word or a character that the media server keeps for itself, or a key. A"
        ' key that stood in a path may have been seen: give it a "New value" on its page, among the {keys}.',
        "Use another path, and enter the key apart from it.",
    ),
    "unauthorized": ToDo(
        "Tell the caller what belongs into the encoder: all of it is shown with a {new_key}, and once more with a"
        ' "New value" on the page of one of the {keys}.',
        "Enter all of what was handed out: the key was missing.",
    ),
    "watching": ToDo(
        "Whoever watches needs `READ_SECRET`, and with `READ_POLICY=deny` nobody may. {system} tells what is set;"
        " whoever runs the service can change it.",
        "Ask the operator for the secret that viewers need.",
    ),
    "no-encoder": ToDo(
        'It was a program, and no encoder. If it is one of yours, "Have the doctor look" on {system}; if not, somebody'
        " tries passwords: see {address}.",
        "Nothing: it was no encoder.",
    ),
    "rate-limited": ToDo(
        "Find out whose encoder it is, by {address}, and give it the right key: with that it is let in at once.",
        "Stop the encoder, and enter the right key: with that it is let in at once.",
    ),
    "database-unavailable": ToDo(
        "{system} tells whether the database answers again. Streams that were live stayed live.",
        "Try again in a moment, if the encoder does not do so by itself.",
    ),
    "over": ToDo("Nothing: that is over, and the encoder is let in when it tries again.", "Try again."),
}


def why(decision: Decision, key: StreamKey | None) -> Why:
    """Why it was decided so, by what its key is now; None of one that is unknown, or whose broadcaster is deleted."""
    match decision.outcome:
        case "claimed":
            return Why("It was let in.")
        case "refused":
            return Why("Refusals from very many addresses, which have no line of their own.")
        case "invalid-stream-key":
            return Why("There is no such key.")
        case "stream-key-revoked":
            if key is None:
                return Why("The key was revoked.")
            if key.revoked_at is None:
                return Why("The encoder has a value of the key that was replaced at {}.", key.rotated_at)
            return Why("The key was revoked at {}.", key.revoked_at)
        case "stream-key-expired":
            return _expired(key)
        case "stream-key-disabled":
            return Why(_then_and_now("The key was disabled", key is not None and not key.disabled, "it is enabled now"))
        case "broadcaster-disabled":
            return Why("The broadcaster of the key was disabled.")
        case "stream-stopped":
            if key is not None and key.hold_until:
                return Why("An operator stopped its stream. The key is on hold until {}.", key.hold_until)
            over = key is not None
            return Why(_then_and_now("An operator stopped its stream, and the key was on hold", over, "that is over"))
        case "stream-key-in-use":
            return Why("Another stream of the same key was live, or about to be.")
        case "path-in-use":
            return Why("The path belongs to another key, or a stream of another key was live on it.")
        case "path-not-allowed":
            if key is not None and key.path is not None and key.path != decision.path:
                return Why(f"The key is bound to the path {key.path}.")
            return Why("Nobody may publish to this path, or not with this key.")
        case "unauthorized":
            return _unauthorized(decision)
        case "rate-limited":
            return Why("It went on and on with keys that do not exist, and has to wait.")
        case "database-unavailable":
            return Why("The database did not answer, so nobody could be let in.")
        case _:
            kind = problems.TABLE.get(decision.outcome)
            return Why(kind.meaning if kind else decision.outcome)


def to_do(decision: Decision, key: StreamKey | None) -> ToDo | None:
    """What operator and caller do about it, by what its key is now; None of what is none of REASONS."""
    if decision.outcome not in REASONS:
        return None
    case = _case(decision, key)
    found = TO_DO[case]
    if found.caller:
        return found
    return found._replace(caller=problems.TABLE[case if case in problems.TABLE else decision.outcome].mend)


def _case(decision: Decision, key: StreamKey | None) -> str:
    """The entry of TO_DO."""
    match decision.outcome:
        case "unauthorized" if decision.action != "publish":
            return "watching" if decision.action in _WATCHING else "no-encoder"
        case "path-not-allowed" if decision.stream_key_id is None:
            return "path-of-nobody"
    if decision.stream_key_id is None:
        return decision.outcome
    # Of a key that is not there any more the broadcaster was deleted, and the key revoked.
    if key is None or key.revoked_at is not None:
        return "stream-key-revoked"
    match decision.outcome:
        case "stream-key-revoked":
            return "value-replaced"
        case "stream-key-disabled" if not key.disabled:
            return "over"
        case "stream-key-expired" if key.status != "expired":
            return "over"
        case "stream-stopped" if not key.hold_until:
            return "over"
        case "path-not-allowed" if key.path in (None, decision.path):
            return "over"
    return decision.outcome


def _expired(key: StreamKey | None) -> Why:
    if key is None or (key.status != "expired" and key.expires_at is None):
        return Why(_then_and_now("The key had expired", key is not None, "it does not expire any more"))
    if key.status == "expired":
        return Why("The key expired at {}.", key.expires_at)
    return Why("The key had expired; it was extended until {}.", key.expires_at)


def _unauthorized(decision: Decision) -> Why:
    if decision.action == "publish":
        return Why("It sent no stream key.")
    if decision.action in _WATCHING:
        return Why("It wanted to watch, and READ_POLICY does not let it.")
    return Why(f"It wanted what only we may, with a credential that is not right ({decision.action}).")


def _then_and_now(then: str, is_other: bool, now: str) -> str:
    return f"{then}; {now}." if is_other else f"{then}."
