"""What the console says of a decision: why an encoder was refused, as a sentence to be read out on the phone. Pure."""

from typing import NamedTuple

from streamorch import problems
from streamorch.repositories.decisions import GRANTED, REFUSED, Decision
from streamorch.repositories.stream_keys import StreamKey


class Why(NamedTuple):
    """A sentence; `moment`, if there is one, belongs where it has {}."""

    sentence: str
    moment: str | None = None


# In the order in which they are asked for most.
REASONS = (
    *("invalid-stream-key", "stream-key-revoked", "stream-key-expired", "stream-key-disabled", "broadcaster-disabled"),
    *("stream-stopped", "stream-key-in-use", "path-in-use", "path-not-allowed", "unauthorized", "rate-limited"),
    "database-unavailable",
)
_WATCHING = ("read", "playback")


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


def advice(decision: Decision) -> problems.Kind | None:
    """What the caller, and the operator, do about it; None where nobody needs to."""
    return None if decision.outcome in (GRANTED, REFUSED) else problems.TABLE.get(decision.outcome)


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
