"""What is judged of the media server by its own configuration: whom it asks, and what it lets happen. Pure."""

import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from streamorch import mediamtx_config, signing
from streamorch.doctor.facts import Absent, Facts, Verdict
from streamorch.doctor.own import clock as judged_clock
from streamorch.doctor.verdicts import (
    either,
    is_loopback,
    media_server_of,
    ok,
    place,
    right_lines,
    run,
    setting,
    settings_of,
    shown,
    unknown,
    version_of,
    warning,
    worst,
    wrong,
    yml,
)
from streamorch.mediamtx import PathOptions
from streamorch.repositories import NODE
from streamorch.settings import Settings

# The newest that streamorch was tried with.
NEWEST: mediamtx_config.Version = (1, 20, 1)
# From here on readTimeout bounds the question to /auth, whose answer may take nearly 3 s.
_TIMED: mediamtx_config.Version = (1, 16, 1)
_ANSWER_SECONDS, _LONG_SECONDS = 3.0, 60.0

_CATCH_ALL = ("all", "all_others")


def control_api(facts: Facts) -> Verdict:
    """Does it answer, and does it accept our credential?"""
    ours, found = settings_of(facts), facts.media_server
    where = shown(ours.mediamtx_api_url)
    if not isinstance(found, Absent):
        return ok(f"{where} lets us in")
    elsewhere = setting("MEDIAMTX_API_URL=http://HOST:9997 of the Control API")
    if found.kind == "refused":
        return wrong(
            f"nobody listens at MEDIAMTX_API_URL ({where}): without it nobody can be cut off",
            either([right_lines(facts, "api", "apiAddress"), run("mediamtx mediamtx.yml"), elsewhere]),
        )
    if found.kind == "unauthorized":
        return _refused_us(facts, where)
    if found.kind == "silent":
        return unknown(
            f"{where} does not answer in time; it may be waiting for the one that it asks whether we may",
            either([right_lines(facts, "authHTTPAddress"), elsewhere]),
        )
    return unknown(f"{where} cannot be asked: {found.reason}", elsewhere)


def _refused_us(facts: Facts, where: str) -> Verdict:
    """It asks somebody whether we may; who is it?"""
    if isinstance(facts.callback, Absent):
        return wrong(
            f"{where} does not let us in: it asks streamorch whether we may, and that does not run",
            run("streamorch serve"),
        )
    if not isinstance(facts.question, Absent) and facts.question.status == 200:
        return wrong(
            f"{where} does not let us in, though streamorch would: it asks somebody else, or without the secret",
            right_lines(facts, "authMethod", "authHTTPAddress"),
        )
    return wrong(f"{where} does not let us in, since streamorch does not know our credential", "see callback")


def version(facts: Facts) -> Verdict:
    """Is it one that streamorch knows?"""
    media = media_server_of(facts)
    newest, oldest = mediamtx_config.version_name(NEWEST), mediamtx_config.version_name(mediamtx_config.OLDEST)
    upgrade = f"install MediaMTX {newest}"
    if media.options.authJWTClaimKey is None:
        return wrong(f"it is older than v1.9; streamorch needs {oldest} or newer", upgrade)
    if media.version is None:
        return ok("older than v1.15.2, which does not tell it, and new enough")
    try:
        found = mediamtx_config.parse_version(media.version)
    except ValueError as error:
        return warning(f"{error}", upgrade)
    name = mediamtx_config.version_name(found)
    if found[:2] > NEWEST[:2]:
        return warning(f"{name} is newer than what streamorch was tried with, {newest}", upgrade)
    return ok(name)


def clock(facts: Facts) -> Verdict:
    """Does it agree with this machine on the time?"""
    skew = media_server_of(facts).skew
    return unknown("it does not tell the time") if skew is None else judged_clock(skew, "MediaMTX's")


# --- whom it asks ----------------------------------------------------------------------------------------------


def auth_method(facts: Facts) -> Verdict:
    """Does it ask at all?"""
    found = media_server_of(facts).options.authMethod
    if found == "http":
        return ok("it asks by HTTP")
    return wrong(
        f"authMethod is {found}: MediaMTX decides by itself who may publish, and never asks streamorch",
        right_lines(facts, "authMethod", "authHTTPAddress", "authHTTPExclude"),
    )


def auth_address(facts: Facts) -> Verdict:
    """Does it ask us, at the right place, with the secret?"""
    media, ours = media_server_of(facts), settings_of(facts)
    address = media.options.authHTTPAddress
    if address == mediamtx_config.auth_address(ours, revealed=True):
        return ok(f"authHTTPAddress is {shown(address)}")
    mend = right_lines(facts, "authHTTPAddress")
    if not address:
        return wrong("authHTTPAddress is empty: it asks nobody", mend)
    problems = [
        wrong(f"authHTTPAddress {problem}", mend)
        for problem in differences(address, mediamtx_config.auth_address(ours), ours, known=places(facts))
    ]
    if is_older(password_in(address), ours):
        problems.append(warning(f"authHTTPAddress {OLDER}", mend))
    if is_elsewhere(address, ours):
        base = shown(address).removesuffix("/auth")
        here = setting(f"CALLBACK_URL={base}")
        found = media.asked
        if isinstance(found, Absent) or found is None or found.version is None:
            who = found.reason if isinstance(found, Absent) else "no streamorch answers there"
            problems.append(
                wrong(f"authHTTPAddress goes to {base} and not to CALLBACK_URL: {who}", either([mend, here]))
            )
        else:
            problems.append(
                warning(f"authHTTPAddress goes to {base}, a streamorch, and not to CALLBACK_URL", either([here, mend]))
            )
    return worst(problems, ok(f"authHTTPAddress is {shown(address)}"))


def is_elsewhere(url: str, ours: Settings) -> bool:
    """Does it lead to another host or port than CALLBACK_URL?"""
    try:
        return place(url) != place(ours.callback_url)
    except ValueError:
        return True


def places(facts: Facts) -> list[tuple[str, int]]:
    """Hosts and ports at which MediaMTX reaches streamorch: that of CALLBACK_URL, and where it finds one by itself."""
    media, ours = media_server_of(facts), settings_of(facts)
    found = [place(ours.callback_url)]
    if media.asked is not None and not isinstance(media.asked, Absent) and media.asked.version:
        found.append(place(media.options.authHTTPAddress))
    return found


def differences(
    url: str, right: str, ours: Settings, *, known: Sequence[tuple[str, int]], has_secret: bool = False
) -> list[str]:
    """What is not right about a URL of ours in MediaMTX's configuration, host and port apart; no word of secrets.

    `known` are hosts and ports that are ours; `has_secret`: the secret came by another way.
    """
    try:
        parts, wanted = urlsplit(url), urlsplit(right)
        where = place(url)
    except ValueError:
        return ["is no URL"]
    found = []
    if parts.scheme != wanted.scheme and where in known:
        found.append(f"uses {parts.scheme} where CALLBACK_URL has {wanted.scheme}")
    if parts.path != wanted.path and (
        where == place(right) or not parts.path.endswith(wanted.path[wanted.path.rfind("/") :])
    ):
        found.append(f"asks for {parts.path or '/'} and not for {wanted.path}")
    node = re.search(r"(?:^|&)node=([^&]*)", parts.query)
    if node and unquote(node[1]) != NODE:
        found.append(f"names the node {unquote(node[1])[:40]!r}, which is not configured")
    if ours.callback_secrets and not has_secret:
        given = password_in(url)
        if not given:
            found.append("lacks MEDIAMTX_CALLBACK_SECRET")
        elif not signing.matches(given, ours.callback_secrets):
            found.append("has another secret than MEDIAMTX_CALLBACK_SECRET")
    return found


def password_in(url: str) -> str:
    """The password of a URL; empty where there is none."""
    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:
        return ""


# Of a place where a callback secret stands that works as yet.
OLDER = "has a MEDIAMTX_CALLBACK_SECRET that is not the first any more: change it, then take that one out of the list"


def is_older(given: str, ours: Settings) -> bool:
    """Is it a callback secret that is accepted, and no more the one that a media server is to send?"""
    newest, *older = ours.callback_secrets or ("",)
    return signing.matches(given, older) and not signing.matches(given, (newest,))


def auth_exclude(facts: Facts) -> Verdict:
    """Is anybody let in without a question? (The Control API is judged by api_exposure.)"""
    options, ours = media_server_of(facts).options, settings_of(facts)
    if options.authMethod != "http":
        return Verdict("skipped", "it counts with authMethod http alone")
    mend = right_lines(facts, "authHTTPExclude")
    problems = []
    for excluded in options.authHTTPExclude or ():
        where = f" on {excluded.path}" if excluded.path else ""
        if excluded.action == "publish":
            problems.append(wrong(f"anybody may publish{where}: authHTTPExclude has publish", mend))
        elif excluded.action in ("read", "playback") and ours.read_policy != "public":
            problems.append(
                wrong(
                    f"anybody may watch{where}, whatever READ_POLICY says: authHTTPExclude has {excluded.action}", mend
                )
            )
        elif excluded.action in ("metrics", "pprof"):
            is_on, address = getattr(options, excluded.action), getattr(options, f"{excluded.action}Address")
            if is_on and not is_loopback(_host_of(address)):
                problems.append(warning(f"anybody who reaches {address} may read its {excluded.action}", mend))
    return worst(problems, ok("nobody is let in without a question"))


def api_exposure(facts: Facts) -> Verdict:
    """May anybody use the Control API, by which commands can be run?"""
    options, ours = media_server_of(facts).options, settings_of(facts)
    if options.authMethod != "http":
        return Verdict("skipped", "who may is up to streamorch with authMethod http alone")
    is_public = not is_loopback(_host_of(options.apiAddress))
    is_open = any(excluded.action == "api" for excluded in options.authHTTPExclude or ())
    if is_open and is_public:
        return wrong(
            f"the Control API is open to anybody who reaches {options.apiAddress}, and runs commands for him",
            right_lines(facts, "authHTTPExclude", "apiAddress"),
        )
    if is_open:
        return warning(
            "the Control API is open to every user of its machine: authHTTPExclude has api",
            right_lines(facts, "authHTTPExclude"),
        )
    if is_public and mediamtx_config.api_is_local(ours):
        return warning(
            f"the Control API listens on {options.apiAddress}, though MEDIAMTX_API_URL needs it on this machine alone",
            right_lines(facts, "apiAddress"),
        )
    return ok(f"the Control API is on {options.apiAddress}, for those who may")


def _host_of(address: str) -> str:
    """The host of an address to listen on; empty when it is all of them."""
    return address.rpartition(":")[0].strip("[]")


def read_timeout(facts: Facts) -> Verdict:
    """Is there time for the answer of /auth?"""
    media = media_server_of(facts)
    text, mend = media.options.readTimeout, right_lines(facts, "readTimeout")
    seconds = duration(text)
    if seconds is None:
        return unknown("readTimeout is told in a form that is not known")
    if seconds < _ANSWER_SECONDS and version_of(media) >= _TIMED:
        return wrong(f"readTimeout is {text}: an answer of /auth may take up to {_ANSWER_SECONDS:g} s", mend)
    if seconds < _ANSWER_SECONDS:
        return warning(f"readTimeout is {text}: a network that stalls for so long ends a stream", mend)
    if seconds > _LONG_SECONDS:
        return warning(f"readTimeout is {text}: so long an encoder that is gone is taken for live", mend)
    return ok(f"readTimeout is {text}")


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"([0-9.]+)(d|h|ms|µs|us|ns|m|s)")


def duration(text: str) -> float | None:
    """Seconds of a duration like `1m30s` or `1d`; None when it is none."""
    found = _DURATION.findall(text)
    if "".join(number + unit for number, unit in found) != text or not found:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in found)


# --- paths -----------------------------------------------------------------------------------------------------


def entries(facts: Facts) -> list[PathOptions]:
    """The entries whose paths are published to; those with a source of their own are none of our business."""
    return [entry for entry in media_server_of(facts).entries if entry.source == "publisher"]


def paths(facts: Facts) -> Verdict:
    """Is there a path that anybody could publish to?"""
    names = [entry.name for entry in entries(facts)]
    mend = yml("paths:", "  all_others:")
    if not names:
        return wrong("no entry of paths may be published to: whatever streamorch says, nobody gets in", mend)
    if any(name in _CATCH_ALL for name in names):
        return ok("any path may be published to")
    patterns = [name for name in names if name.startswith("~")]
    listed = ", ".join(name[:40] for name in (patterns or names)[:5])
    if patterns:
        return ok(f"paths may be published to that match {listed}")
    return warning(f"only these paths may be published to, whatever a key allows: {listed}", mend)


def override_publisher(facts: Facts) -> Verdict:
    """May an encoder come back while its old connection is still open?"""
    why = "an encoder that comes back is refused while its old connection is open"
    problems = []
    is_inherited = media_server_of(facts).defaults.overridePublisher
    if not is_inherited:
        problems.append(wrong(f"overridePublisher is off: {why}", right_lines(facts, "overridePublisher")))
    off = [entry.name for entry in entries(facts) if not entry.overridePublisher and is_inherited]
    for name in off:
        mend = yml("paths:", f"  {name}:", "    overridePublisher: yes")
        problems.append(wrong(f"overridePublisher is off for the paths of the entry {name}: {why}", mend))
    return worst(problems, ok("a publisher that comes back takes its path over"))
