"""Where to watch a stream and where to publish it, as URLs ready to paste. Pure."""

from functools import cache
from typing import TypedDict
from urllib.parse import quote, urlsplit, urlunsplit

from streamorch.settings import MediaURLs

# MediaMTX's default RTMP port: written out for encoders, which take it from nowhere else.
_RTMP_PORT = 1935


class Playback(TypedDict):
    """The playback URL of each protocol. A protocol that is off: null, or "" for hls and webrtc."""

    hls: str
    webrtc: str
    rtmp: str | None
    rtsp: str | None
    srt: str | None
    thumbnail: str | None


class Obs(TypedDict):
    """What goes into the two fields of OBS."""

    server: str
    stream_key: str


class Whip(TypedDict):
    """Where to publish over WebRTC, and the credential."""

    url: str
    bearer_token: str


class Publish(TypedDict):
    """How an encoder publishes with a key, ready to paste; null where the protocol is off."""

    path: str
    obs: Obs | None
    rtmp: str | None
    srt: str | None
    rtsp: str | None
    whip: Whip | None


def playback(bases: MediaURLs, path: str) -> Playback:
    """The playback URL of each protocol. (hls and webrtc are strings in rescuestream-api's contract.)"""
    return {
        "hls": _at(bases.hls, path, "index.m3u8") or "",
        "webrtc": _at(bases.webrtc, path, "whep") or "",
        "rtmp": _at(bases.rtmp, path),
        "rtsp": _at(bases.rtsp, path),
        "srt": _srt(bases.srt, f"read:{quote(path, safe='/')}"),
        "thumbnail": None,
    }


def publish(bases: MediaURLs, path: str, key: str) -> Publish:
    """How an encoder publishes to this path with this key."""
    folder, _, name = path.rpartition("/")
    rtmp = _rtmp_with_port(bases.rtmp) if bases.rtmp else None
    server, _, more = (_at(rtmp, folder) or "").partition("?")
    whip = _at(bases.webrtc, path, "whip")
    return {
        "path": path,
        # OBS joins server and key with a slash; a query in the server together with a key breaks both.
        "obs": {"server": server, "stream_key": f"{name}?pass={key}" + (more and f"&{more}")} if rtmp else None,
        "rtmp": _at(rtmp, path, query=f"pass={key}"),
        "srt": _srt(bases.srt, f"publish:{path}:key:{key}", more="&pkt_size=1316"),
        "rtsp": _with_user(_at(bases.rtsp, path), f"key:{key}"),
        "whip": {"url": whip, "bearer_token": key} if whip else None,
    }


def suggested_path(key_id: str) -> str:
    """The path proposed for a key that is bound to none: `live/` and the first 8 hex digits of its id."""
    return f"live/{key_id[:8]}"


def _at(base: str | None, path: str, last: str = "", query: str = "") -> str | None:
    """`base/path/last`, with the prefix and query of the base kept and each segment percent-encoded."""
    if base is None:
        return None
    before, own = _parts(base)
    url = "/".join(part for part in (before, quote(path, safe="/"), last) if part).rstrip("/")
    asked = "&".join(part for part in (query, own) if part)
    return f"{url}?{asked}" if asked else url


@cache
def _parts(base: str) -> tuple[str, str]:
    """A base without its query, and the query. (There are as many bases as settings.)"""
    parts = urlsplit(base)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "")), parts.query


def _srt(base: str | None, stream_id: str, more: str = "") -> str | None:
    if base is None:
        return None
    parts = urlsplit(base)
    own = f"&{parts.query}" if parts.query else ""
    return f"srt://{parts.netloc}?streamid={stream_id}{more}{own}"


def _rtmp_with_port(base: str) -> str:
    parts = urlsplit(base)
    if parts.scheme == "rtmps" or parts.port:
        return base
    return parts._replace(netloc=f"{parts.netloc}:{_RTMP_PORT}").geturl()


def _with_user(url: str | None, user: str) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}@{parts.netloc}").geturl()
