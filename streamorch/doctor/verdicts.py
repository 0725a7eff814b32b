"""What all checks say alike: verdicts, the lines that mend, and places without the secrets in them. Pure."""

import re
from collections.abc import Iterable, Sequence
from typing import cast
from urllib.parse import quote, unquote, urlsplit

from streamorch import mediamtx_config
from streamorch.doctor.facts import Absent, Database, Facts, MediaServer, Verdict
from streamorch.settings import Settings

OLDEST_POSTGRES = 140000
# Of URLs that name none.
PORTS = {"http": 80, "https": 443, "rtmp": 1935, "rtmps": 443, "rtsp": 554, "rtsps": 322, "srt": 8890}

_PATH_KEYS = ("overridePublisher", "runOn")


def ok(text: str) -> Verdict:
    return Verdict("ok", text)


def warning(text: str, mend: str = "") -> Verdict:
    return Verdict("warning", text, mend)


def wrong(text: str, mend: str = "") -> Verdict:
    return Verdict("wrong", text, mend)


def unknown(text: str, mend: str = "") -> Verdict:
    return Verdict("unknown", text, mend)


def worst(verdicts: Iterable[Verdict], otherwise: Verdict) -> Verdict:
    """All of them as one: the worst state, what is said, and what mends, each once."""
    found = sorted(verdicts, key=lambda verdict: ("wrong", "unknown", "warning").index(verdict.state))
    if not found:
        return otherwise
    texts = "; ".join(verdict.text for verdict in found)
    return Verdict(found[0].state, texts, "\n".join(dict.fromkeys(verdict.mend for verdict in found if verdict.mend)))


# --- facts that a check may take for granted, since it is skipped without them ---------------------------------


def settings_of(facts: Facts) -> Settings:
    return cast(Settings, facts.settings)


def database_of(facts: Facts) -> Database:
    return cast(Database, facts.database)


def media_server_of(facts: Facts) -> MediaServer:
    return cast(MediaServer, facts.media_server)


def version_of(media: MediaServer) -> mediamtx_config.Version:
    """The version whose configuration it understands; one that it does not tell is an old one."""
    try:
        return mediamtx_config.parse_version(media.version or "")
    except ValueError:
        has_new_names = media.defaults.runOnOnline is not None
        return mediamtx_config.CURRENT if has_new_names else mediamtx_config.OLDEST


# --- what mends ------------------------------------------------------------------------------------------------


def right_lines(facts: Facts, *names: str, hooks: str = "curl", entry: str = "pathDefaults") -> str:
    """These keys with their right values, where they belong in mediamtx.yml; those of a path below `entry`."""
    media = facts.media_server
    version = mediamtx_config.CURRENT if isinstance(media, Absent) else version_of(media)
    right = mediamtx_config.lines(settings_of(facts), hooks=hooks, version=version)
    lines = []
    for name in names:
        if name.startswith(_PATH_KEYS):
            lines += [] if f"{entry}:" in lines else [f"{entry}:"]
            lines += ["  " + line for line in right[name].splitlines()]
        else:
            lines += right[name].splitlines()
    return yml(*lines)


def yml(*lines: str) -> str:
    """Lines of mediamtx.yml."""
    return "\n  ".join(("in mediamtx.yml:", *lines))


def run(command: str) -> str:
    return f"run: {command}"


def setting(line: str) -> str:
    return f"in the environment: {line}"


def either(mends: Sequence[str]) -> str:
    return "\nor ".join(mends)


# --- places ----------------------------------------------------------------------------------------------------


def shown(url: str) -> str:
    """A URL as far as it can hold no secret."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return "something that is no URL"


def place(url: str) -> tuple[str, int]:
    """Host and port of a URL, so that they can be compared. ValueError when it has a port that is none."""
    parts = urlsplit(url)
    return (parts.hostname or "").replace("localhost", "127.0.0.1"), parts.port or PORTS.get(parts.scheme, 0)


def port_of(address: str) -> int | None:
    """The port of an address that MediaMTX listens on, like `:8554`; None when there is none."""
    found = re.search(r":(\d+)$", address)
    return int(found[1]) if found else None


def is_loopback(host: str) -> bool:
    """Does this name the machine itself, and nothing that others reach?"""
    return host == "localhost" or host == "::1" or host.startswith("127.")


# --- secrets ---------------------------------------------------------------------------------------------------


def secrets_of(facts: Facts) -> list[str]:
    """Every secret of ours, in the forms in which it may stand in a text; the longest first."""
    if isinstance(facts.settings, Absent):
        return []
    ours = facts.settings
    known = [
        *ours.api_secrets,
        *ours.mediamtx_api_passwords,
        *ours.callback_secrets,
        ours.metrics_secret,
        ours.read_secret,
        _password_of(ours.database_url),
    ]
    forms = {form for secret in known if secret for form in (secret, unquote(secret), quote(secret, safe=""))}
    return sorted(forms, key=len, reverse=True)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """The text with SECRET in the place of each, where it stands as a word of its own."""
    for secret in secrets:
        text = re.sub(rf"(?<![\w-]){re.escape(secret)}(?![\w-])", "SECRET", text)
    return text


def _password_of(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None
