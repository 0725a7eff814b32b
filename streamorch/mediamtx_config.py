"""MediaMTX's configuration for these settings: whom it asks, what it tells, where its Control API listens. Pure.

A hook line is read three times: as YAML, by MediaMTX's splitting into words, and by its filling in of $NAME, which
also happens inside quotes. So a secret stands there percent-encoded or in Base64, and a URL holds nothing that means
something to one of the three. The files in mediamtx/ are what `config` gives for the default settings.
"""

import base64
import ipaddress
import re
from dataclasses import asdict, replace
from urllib.parse import quote, urlsplit

from streamorch.settings import SettingError, Settings

Version = tuple[int, int, int]

HOOKS = ("curl", "wget", "none")
OLDEST: Version = (1, 9, 3)
# The first that knows runOnOnline and runOnOffline: a key that MediaMTX does not know stops its start.
CURRENT: Version = (1, 19, 3)
_LAST_BEFORE: Version = (1, 19, 2)

# MediaMTX needs a user beside the password; streamorch does not look at it.
_USER = "mediamtx"
_EVENT = '{"path":"$MTX_PATH","source_type":"$MTX_SOURCE_TYPE","source_id":"$MTX_SOURCE_ID"}'
_PLAIN_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d+)?(/[A-Za-z0-9._~%/+=:@-]*)?")
# A key with its value, which may go on for some lines.
_KEY = re.compile(r"(?m)^ *(?P<name>\w+): (?:>-\n(?: {4}.*\n)+|.*\n)")
# What a Bearer header can carry (RFC 6750).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def parse_version(text: str) -> Version:
    """The version that a text like `v1.20.1` begins with. ValueError, with one line: it is none, or too old."""
    found = re.match(r"\s*v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        raise ValueError(f"{text.strip()[:40]!r} is no version of MediaMTX, like {version_name(CURRENT)}")
    version = int(found[1]), int(found[2]), int(found[3] or 0)
    if version < OLDEST:
        raise ValueError(f"{version_name(version)} is too old: it takes {version_name(OLDEST)} or newer")
    return version


def version_name(version: Version) -> str:
    """A version as MediaMTX writes it."""
    return f"v{'.'.join(map(str, version))}"


def config(settings: Settings, *, hooks: str = "curl", version: Version = CURRENT) -> str:
    """A complete mediamtx.yml for this version of MediaMTX, with the callback secret in it.

    `hooks` names the program that brings them, or is `none`. SettingError when MediaMTX cannot use CALLBACK_URL.
    """
    parts = [
        _head(settings, version),
        _title("who may publish, read, or call the Control API"),
        _authentication(settings),
        _title("the Control API"),
        _control_api(settings),
        _protocols(settings),
        _title("what tells streamorch that a stream is live, and that it is over"),
        _path_defaults(settings, hooks, version),
        _PATHS,
    ]
    return "\n".join(part for part in parts if part)


def snippet(settings: Settings, *, hooks: str = "curl", version: Version = CURRENT) -> str:
    """The keys of `config` to merge into a mediamtx.yml that is there, with comments that say where."""
    parts = [
        _SNIPPET_HEAD,
        _title("at the top level, in the place of keys of the same name"),
        _authentication(settings),
        _control_api(settings),
        _title("inside the pathDefaults that is there: a key that stands twice is an error"),
        _path_defaults(settings, hooks, version),
    ]
    return "\n".join(parts)


def lines(settings: Settings, *, hooks: str = "curl", version: Version = CURRENT) -> dict[str, str]:
    """What `config` says of each key that has a value, as it stands in the file from the key on, with the word SECRET.

    Lines after the first are indented by two spaces.
    """
    hidden = replace(settings, callback_secrets=("SECRET",) if settings.callback_secrets else ())
    found = _KEY.finditer(config(hidden, hooks=hooks, version=version))
    return {key["name"]: re.sub(r"\n +", "\n  ", key[0].strip()) for key in found}


def auth_address(settings: Settings, *, revealed: bool = False) -> str:
    """The value of authHTTPAddress, with the word SECRET for the callback secret unless it is to be revealed."""
    return _url(settings, "/auth", _secret(settings, revealed))


def hook_lines(settings: Settings, *, hooks: str = "curl", revealed: bool = False) -> tuple[str, str]:
    """The commands at the start and at the end of a stream, with the word SECRET unless it is to be revealed."""
    secret = _secret(settings, revealed)
    start, end = (_command(settings, hooks, place, secret) for place in ("ready", "not-ready"))
    return " ".join(start), " ".join(end)


def hook_names(version: Version) -> tuple[str, str]:
    """What this version calls the hooks at the start and at the end of a stream."""
    return ("runOnOnline", "runOnOffline") if version >= CURRENT else ("runOnReady", "runOnNotReady")


def api_address(settings: Settings) -> tuple[str, int]:
    """Host and port of MEDIAMTX_API_URL."""
    parts = urlsplit(settings.mediamtx_api_url)
    return parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]


def api_is_local(settings: Settings) -> bool:
    """Does MEDIAMTX_API_URL name this very machine?"""
    host, _ = api_address(settings)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- the parts of the file -----------------------------------------------------------------------------------


def _title(text: str) -> str:
    return f"# --- {text} ".ljust(108, "-") + "\n"


def _head(settings: Settings, version: Version) -> str:
    suits, option = f"{version_name(CURRENT)} and newer", ""
    if version < CURRENT:
        suits, option = f"{version_name(OLDEST)} to {version_name(_LAST_BEFORE)}", f" --for {version_name(version)}"
    warning = (
        "# It holds MEDIAMTX_CALLBACK_SECRET: let nobody but MediaMTX read it.\n" if settings.callback_secret else ""
    )
    return f"""\
# MediaMTX under streamorch, for MediaMTX {suits}. Start it with: mediamtx THIS_FILE
{warning}#
# `streamorch mediamtx-config{option}` prints it with your settings filled in; with --snippet, the keys
# to merge into a configuration of your own. What does not stand here has MediaMTX's own default.
"""


_SNIPPET_HEAD = """\
# The keys with which a MediaMTX of your own works under streamorch. On a running server a change of them restarts
# its listeners: every live stream is cut once. Under `paths` it needs an entry that admits the paths, like all_others.
"""

_PATHS = """\
paths:
  # Any path may be published to; streamorch decides by the key.
  all_others:
"""


def _authentication(settings: Settings) -> str:
    if settings.callback_secret:
        remark = "# streamorch as MediaMTX reaches it (CALLBACK_URL), with MEDIAMTX_CALLBACK_SECRET as the password."
    else:
        remark = f"""\
# streamorch as MediaMTX reaches it (CALLBACK_URL). With MEDIAMTX_CALLBACK_SECRET set, that is the password:
#   {_url(settings, "/auth", "SECRET")}"""
    return f"""\
authMethod: http
{remark}
authHTTPAddress: {auth_address(settings, revealed=True)}
# Nothing is excluded, whatever this version's default is: an open Control API lets anybody who reaches it run
# commands. streamorch knows its own credential for it.
authHTTPExclude: []
# From v1.16.1 on also the time limit of the call to streamorch, which answers within three seconds, be it with 503.
readTimeout: 10s
"""


def _control_api(settings: Settings) -> str:
    host, port = api_address(settings)
    if not api_is_local(settings):
        remark = "# MEDIAMTX_API_URL is reached through the network: let a firewall admit streamorch alone.\n"
        address = f":{port}"
    else:
        remark = "# On this machine alone, where MEDIAMTX_API_URL looks for it.\n"
        address = f"'[{host}]:{port}'" if ":" in host else f"{host.replace('localhost', '127.0.0.1')}:{port}"
    if settings.mediamtx_api_url.startswith("https:"):
        remark += _API_ENCRYPTION
    return f"api: yes\n{remark}apiAddress: {address}\n"


_API_ENCRYPTION = """\
# MEDIAMTX_API_URL is https: either a proxy in front has the certificate, or MediaMTX itself with these keys.
# apiEncryption: yes
# apiServerKey: server.key
# apiServerCert: server.crt
"""


def _protocols(settings: Settings) -> str:
    off = [name for name, base in asdict(settings.media_urls).items() if base is None]
    if not off:
        return ""
    return f"{_title('what is off in streamorch: MEDIAMTX_..._URL=off')}\n" + "".join(f"{name}: no\n" for name in off)


def _path_defaults(settings: Settings, hooks: str, version: Version) -> str:
    return f"""\
pathDefaults:
  # A publisher that comes back while its old connection is still open takes the path over. streamorch lets
  # only the owner of the key do that.
  overridePublisher: yes

{_NO_HOOKS if hooks == "none" else _hooks(settings, hooks, version)}"""


_NO_HOOKS = """\
  # No hooks: streamorch learns within seconds what is live, as long as it reaches the Control API.
"""


def _hooks(settings: Settings, hooks: str, version: Version) -> str:
    start, end = hook_names(version)
    return (
        (_WHY_ONLINE if version >= CURRENT else "")
        + _HOOK_REMARKS[hooks]
        + _folded(start, _command(settings, hooks, "ready", settings.callback_secret))
        + _folded(end, _command(settings, hooks, "not-ready", settings.callback_secret))
    )


def _folded(name: str, lines: list[str]) -> str:
    return f"  {name}: >-\n" + "".join(f"    {line}\n" for line in lines)


_WHY_ONLINE = """\
  # Online and offline, not available and unavailable: an always-available path is available without a publisher.
"""

_HOOK_REMARKS = {
    "curl": """\
  # Hooks run without a shell; MediaMTX fills in the variables, also inside quotes. curl must be installed (the
  # container images have none); it repeats what was refused or answered with 5xx, and gives up after 20 s.
""",
    "wget": """\
  # Hooks run without a shell; MediaMTX fills in the variables, also inside quotes. This is busybox's wget, as in the
  # -ffmpeg images, and GNU's. What is refused is not repeated: streamorch learns it through the Control API.
""",
}


# --- the commands --------------------------------------------------------------------------------------------


def _command(settings: Settings, hooks: str, place: str, secret: str | None) -> list[str]:
    """A hook's command, cut into lines."""
    if hooks == "curl":
        return [
            "curl -sS -o /dev/null --max-time 5 --retry 4 --retry-connrefused --retry-max-time 15",
            "-H 'Content-Type: application/json'",
            f"-d '{_EVENT}'",
            _url(settings, f"/webhook/{place}", secret),
        ]
    # GNU's wget keeps the password of a URL until it is asked for it: so it is a header here.
    header = [f"--header 'Authorization: {_credential(secret)}'"] if secret else []
    return [
        "wget -q -T 5 -t 3 -O /dev/null --header 'Content-Type: application/json'",
        *header,
        f"--post-data '{_EVENT}'",
        _url(settings, f"/webhook/{place}", None),
    ]


def _secret(settings: Settings, revealed: bool) -> str | None:
    return "SECRET" if settings.callback_secret and not revealed else settings.callback_secret


def _url(settings: Settings, place: str, secret: str | None) -> str:
    """A place under CALLBACK_URL, with this password. SettingError when the URL is not plain."""
    url = settings.callback_url
    if not _PLAIN_URL.fullmatch(url):
        allowed = "host, port and a path of letters, digits and ._~%/+=:@-"
        raise SettingError(f"CALLBACK_URL cannot stand in a configuration of MediaMTX: it may have {allowed}")
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{_USER}:{quote(secret, safe='')}@{rest}{place}" if secret else f"{url}{place}"


def _credential(secret: str) -> str:
    """What stands in an Authorization header, without a character that a quote or a $ would spoil."""
    if _TOKEN.fullmatch(secret):
        return f"Bearer {secret}"
    return f"Basic {base64.b64encode(f'{_USER}:{secret}'.encode()).decode()}"
