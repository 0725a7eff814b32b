"""What is judged of the URLs that are shown to encoders and viewers: is there a media server behind each? Pure."""

from typing import NamedTuple
from urllib.parse import urlsplit

from streamorch.doctor.facts import Absent, Answer, Facts, Verdict
from streamorch.doctor.verdicts import (
    PORTS,
    either,
    is_loopback,
    ok,
    port_of,
    setting,
    settings_of,
    shown,
    warning,
    wrong,
    yml,
)
from streamorch.mediamtx import Options

PROTOCOLS = ("hls", "webrtc", "rtmp", "rtsp", "srt")
_SECURE = ("https", "rtmps", "rtsps")
_NO_BACKEND = (502, 503, 504)


class Listener(NamedTuple):
    """Where a protocol of MediaMTX listens: the port of each form, None where it has none."""

    is_on: bool
    plain: int | None
    secure: int | None


def listener(protocol: str, options: Options) -> Listener:
    """What the configuration says of a protocol."""
    is_on: bool = getattr(options, protocol)
    plain = port_of(getattr(options, f"{protocol}Address"))
    if protocol in ("hls", "webrtc"):
        is_encrypted: bool = getattr(options, f"{protocol}Encryption")
        return Listener(is_on, None if is_encrypted else plain, plain if is_encrypted else None)
    if protocol == "srt":
        return Listener(is_on, plain, None)
    encryption = options.rtmpEncryption if protocol == "rtmp" else options.rtspEncryption or options.encryption or "no"
    secure = port_of(options.rtmpsAddress if protocol == "rtmp" else options.rtspsAddress)
    return Listener(
        is_on, None if encryption == "strict" else plain, secure if encryption in ("optional", "strict") else None
    )


def url(protocol: str, facts: Facts) -> Verdict:
    """Is the protocol on, on the port of the URL, and does somebody answer there?"""
    base: str | None = getattr(settings_of(facts).media_urls, protocol)
    if base is None:
        return ok("off: no URL of it is shown")
    where, found = shown(base), facts.public.get(protocol, Absent("not asked", "unasked"))
    media = facts.media_server
    if isinstance(media, Absent):
        if isinstance(found, Absent):
            return Verdict("skipped", f"{where} does not answer, and neither does MediaMTX")
        return _judged_answer(where, found)
    there = listener(protocol, media.options)
    name = f"MEDIAMTX_{protocol.upper()}_URL"
    if not there.is_on:
        mend = either([yml(f"{protocol}: yes"), setting(f"{name}=off")])
        return wrong(f"{where} is shown, and MediaMTX has {protocol} off", mend)
    is_secure = urlsplit(base).scheme in _SECURE
    port = urlsplit(base).port or PORTS[urlsplit(base).scheme]
    wanted = there.secure if is_secure else there.plain
    if port == wanted:
        return _judged_direct(where, found)
    return _judged_other_port(protocol, base, port, there, found, media.options)


def _judged_direct(where: str, found: Answer | Absent) -> Verdict:
    """The port is MediaMTX's own."""
    if not isinstance(found, Absent):
        return _judged_answer(where, found)
    if is_loopback(urlsplit(where).hostname or ""):
        return wrong(
            f"{where} does not answer: {found.reason}", "restart MediaMTX, and see in its log what it listens on"
        )
    return warning(
        f"{where} does not answer from this machine: {found.reason}", "try it from outside; let the firewall admit it"
    )


def _judged_answer(where: str, found: Answer) -> Verdict:
    if found.status in _NO_BACKEND:
        return wrong(
            f"{where} is answered with status {found.status}: a proxy that does not reach MediaMTX",
            "mend the proxy: its upstream is MediaMTX's port",
        )
    return ok(f"{where} answers")


def _judged_other_port(
    protocol: str, base: str, port: int, there: Listener, found: Answer | Absent, options: Options
) -> Verdict:
    """A proxy, or a mistake."""
    where, name = shown(base), f"MEDIAMTX_{protocol.upper()}_URL"
    parts = urlsplit(base)
    is_secure = parts.scheme in _SECURE
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    mends = []
    told = f"MediaMTX has {protocol} on port {there.plain or there.secure}"
    if (right := there.secure if is_secure else there.plain) is not None:
        mends.append(setting(f"{name}={parts.scheme}://{host}:{right}{parts.path}"))
        if not isinstance(found, Absent) or port not in _ports(options):
            address = f"{protocol}{'s' if is_secure and protocol in ('rtmp', 'rtsp') else ''}Address"
            mends.append(yml(f"{address}: :{port}"))
    elif is_secure:
        told = f"MediaMTX has {protocol} without encryption"
        mends += [setting(f"{name}={_other_scheme(parts.scheme)}://{host}:{there.plain}{parts.path}")]
        mends += [yml(f"{protocol}Encryption: {'yes' if protocol in ('hls', 'webrtc') else 'optional'}")]
    else:
        told = f"MediaMTX has {protocol} with encryption only"
        mends += [setting(f"{name}={_other_scheme(parts.scheme)}://{host}:{there.secure}{parts.path}")]
    if not isinstance(found, Absent) and port not in _ports(options):
        proxied = _judged_answer(where, found)
        return proxied if proxied.state != "ok" else ok(f"{where} answers; a proxy, since {told}")
    return wrong(f"{where} is shown, and {told}", either(mends))


def _ports(options: Options) -> set[int]:
    """The TCP and UDP ports that MediaMTX itself listens on."""
    found = [listener(protocol, options) for protocol in PROTOCOLS]
    return {port for each in found if each.is_on for port in (each.plain, each.secure) if port is not None}


def _other_scheme(scheme: str) -> str:
    return scheme.removesuffix("s") if scheme in _SECURE else f"{scheme}s"
