"""URLs ready to paste: where to watch, where to publish."""

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamorch import keys, urls
from streamorch.settings import MediaURLs, SettingError, Settings

KEY = "sk_KEY"


def bases(**environ):
    return Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "x", **environ}).media_urls


def playback(path="live/cam7", **environ):
    return urls.playback(bases(**environ), path)


def publish(path="live/cam7", **environ):
    return urls.publish(bases(**environ), path, KEY)


DEFAULTS = {
    "hls": "http://localhost:8888/live/cam7/index.m3u8",
    "webrtc": "http://localhost:8889/live/cam7/whep",
    "rtmp": "rtmp://localhost/live/cam7",
    "rtsp": "rtsp://localhost:8554/live/cam7",
    "srt": "srt://localhost:8890?streamid=read:live/cam7",
    "thumbnail": None,
}


def test_playback_by_default():
    assert playback() == DEFAULTS


@pytest.mark.parametrize(
    ("public", "hls", "webrtc", "host"),
    [
        ("http://m.example.org:8889", "http://m.example.org:8888", "http://m.example.org:8889", "m.example.org"),
        ("https://m.example.org:8889/", "https://m.example.org:8888", "https://m.example.org:8889", "m.example.org"),
        ("https://m.example.org", "https://m.example.org", "https://m.example.org", "m.example.org"),
        ("https://m.example.org:443", "https://m.example.org:443", "https://m.example.org:443", "m.example.org"),
        ("https://m.example.org/video/", "https://m.example.org/video", "https://m.example.org/video", "m.example.org"),
        ("http://192.0.2.1:8889", "http://192.0.2.1:8888", "http://192.0.2.1:8889", "192.0.2.1"),
        ("http://[2001:db8::1]:8889", "http://[2001:db8::1]:8888", "http://[2001:db8::1]:8889", "[2001:db8::1]"),
        ("https://[2001:db8::1]", "https://[2001:db8::1]", "https://[2001:db8::1]", "[2001:db8::1]"),
    ],
)
def test_all_follow_from_the_public_url(public, hls, webrtc, host):
    assert playback(MEDIAMTX_PUBLIC_URL=public) == {
        "hls": f"{hls}/live/cam7/index.m3u8",
        "webrtc": f"{webrtc}/live/cam7/whep",
        "rtmp": f"rtmp://{host}/live/cam7",
        "rtsp": f"rtsp://{host}:8554/live/cam7",
        "srt": f"srt://{host}:8890?streamid=read:live/cam7",
        "thumbnail": None,
    }


def test_the_user_info_of_the_public_url_is_told_nobody():
    shown = playback(MEDIAMTX_PUBLIC_URL="http://user:hush@m.example.org:8889")
    assert [shown[name] for name in ("rtmp", "rtsp", "srt", "hls")] == [
        "rtmp://m.example.org/live/cam7",
        "rtsp://m.example.org:8554/live/cam7",
        "srt://m.example.org:8890?streamid=read:live/cam7",
        "http://m.example.org:8888/live/cam7/index.m3u8",
    ]


@pytest.mark.parametrize(
    ("name", "base", "expected"),
    [
        ("hls", "https://cdn.example.org/hls", "https://cdn.example.org/hls/live/cam7/index.m3u8"),
        ("hls", "https://cdn.example.org/hls/?t=1", "https://cdn.example.org/hls/live/cam7/index.m3u8?t=1"),
        ("webrtc", "https://rtc.example.org", "https://rtc.example.org/live/cam7/whep"),
        ("webrtc", "https://rtc.example.org/a?b=c&d", "https://rtc.example.org/a/live/cam7/whep?b=c&d"),
        ("rtmp", "rtmps://in.example.org:443/app", "rtmps://in.example.org:443/app/live/cam7"),
        ("rtmp", "rtmp://in.example.org/app/?x=y", "rtmp://in.example.org/app/live/cam7?x=y"),
        ("rtsp", "rtsps://in.example.org:8322", "rtsps://in.example.org:8322/live/cam7"),
        ("srt", "srt://in.example.org:9000", "srt://in.example.org:9000?streamid=read:live/cam7"),
        (
            "srt",
            "srt://in.example.org:9000?latency=200",
            "srt://in.example.org:9000?streamid=read:live/cam7&latency=200",
        ),
    ],
)
def test_one_base_each_can_be_set(name, base, expected):
    assert playback(**{f"MEDIAMTX_{name.upper()}_URL": base}) == DEFAULTS | {name: expected}


@pytest.mark.parametrize(
    ("name", "shown"), [("hls", ""), ("webrtc", ""), ("rtmp", None), ("rtsp", None), ("srt", None)]
)
@pytest.mark.parametrize("off", ["off", "OFF", " Off "])
def test_a_protocol_can_be_off(name, shown, off):
    assert playback(**{f"MEDIAMTX_{name.upper()}_URL": off}) == DEFAULTS | {name: shown}


def test_segments_are_percent_encoded_and_slashes_not():
    shown = playback("a b/ü?#%")
    assert shown["hls"] == "http://localhost:8888/a%20b/%C3%BC%3F%23%25/index.m3u8"
    assert shown["srt"] == "srt://localhost:8890?streamid=read:a%20b/%C3%BC%3F%23%25"


@given(
    st.from_regex(r"[A-Za-z0-9_.-]{1,20}(/[A-Za-z0-9_.-]{1,20}){0,3}", fullmatch=True)
    | st.text(min_size=1).map("x".__add__)
)
def test_a_path_survives_in_each_url(path):
    shown = urls.playback(MediaURLs("http://h:1/p", "http://h:2", "rtmp://h", "rtsp://h:3", "srt://h:4"), path)
    assert unquote(urlsplit(shown["hls"] or "").path) == f"/p/{path}/index.m3u8".replace("//", "/") or "//" in path
    if not path.endswith("/") and "//" not in path:
        assert unquote(urlsplit(shown["rtmp"] or "").path) == f"/{path}"
        assert unquote(urlsplit(shown["rtsp"] or "").path) == f"/{path}"
        assert unquote(urlsplit(shown["webrtc"] or "").path) == f"/{path}/whep"
        assert (
            parse_qs(urlsplit(shown["srt"] or "").query) == {"streamid": [f"read:{path}"]} or "&" in path or "+" in path
        )


# --- publish ---


@pytest.mark.parametrize(
    ("path", "server", "name"),
    [
        ("cam7", "rtmp://localhost:1935", "cam7"),
        ("live/cam7", "rtmp://localhost:1935/live", "cam7"),
        ("a/b/c", "rtmp://localhost:1935/a/b", "c"),
    ],
)
def test_publish_by_default(path, server, name):
    assert publish(path) == {
        "path": path,
        "obs": {"server": server, "stream_key": f"{name}?pass={KEY}"},
        "rtmp": f"rtmp://localhost:1935/{path}?pass={KEY}",
        "srt": f"srt://localhost:8890?streamid=publish:{path}:key:{KEY}&pkt_size=1316",
        "rtsp": f"rtsp://key:{KEY}@localhost:8554/{path}",
        "whip": {"url": f"http://localhost:8889/{path}/whip", "bearer_token": KEY},
    }


@pytest.mark.parametrize(
    ("base", "server", "rtmp"),
    [
        ("rtmp://h", "rtmp://h:1935/live", "rtmp://h:1935/live/cam7"),
        ("rtmp://h:1936", "rtmp://h:1936/live", "rtmp://h:1936/live/cam7"),
        ("rtmp://[2001:db8::1]", "rtmp://[2001:db8::1]:1935/live", "rtmp://[2001:db8::1]:1935/live/cam7"),
        ("rtmps://h", "rtmps://h/live", "rtmps://h/live/cam7"),
        ("rtmps://h:1936", "rtmps://h:1936/live", "rtmps://h:1936/live/cam7"),
        ("rtmp://h/app/", "rtmp://h:1935/app/live", "rtmp://h:1935/app/live/cam7"),
    ],
)
def test_publish_over_another_rtmp(base, server, rtmp):
    shown = publish(MEDIAMTX_RTMP_URL=base)
    assert shown["obs"] == {"server": server, "stream_key": f"cam7?pass={KEY}"}
    assert shown["rtmp"] == f"{rtmp}?pass={KEY}"


def test_a_query_of_the_rtmp_base_never_stands_in_the_server_of_obs():
    shown = publish(MEDIAMTX_RTMP_URL="rtmp://h/app?x=y")
    assert shown["obs"]["server"] == "rtmp://h:1935/app/live"
    assert shown["obs"]["stream_key"] == f"cam7?pass={KEY}&x=y"
    assert shown["rtmp"] == f"rtmp://h:1935/app/live/cam7?pass={KEY}&x=y"


def test_publish_over_other_bases():
    shown = publish(
        MEDIAMTX_SRT_URL="srt://h:9000?latency=200",
        MEDIAMTX_RTSP_URL="rtsps://h:8322/p",
        MEDIAMTX_WEBRTC_URL="https://h/rtc?a=b",
        MEDIAMTX_HLS_URL="off",
    )
    assert shown["srt"] == f"srt://h:9000?streamid=publish:live/cam7:key:{KEY}&pkt_size=1316&latency=200"
    assert shown["rtsp"] == f"rtsps://key:{KEY}@h:8322/p/live/cam7"
    assert shown["whip"] == {"url": "https://h/rtc/live/cam7/whip?a=b", "bearer_token": KEY}


@pytest.mark.parametrize(
    ("name", "nulls"),
    [("rtmp", {"rtmp", "obs"}), ("srt", {"srt"}), ("rtsp", {"rtsp"}), ("webrtc", {"whip"}), ("hls", set())],
)
def test_what_is_off_is_null(name, nulls):
    shown = publish(**{f"MEDIAMTX_{name.upper()}_URL": "off"})
    assert {member for member, value in shown.items() if value is None} == nulls


@pytest.mark.parametrize("path", ["cam7", "live/cam7"])
def test_no_playback_url_holds_the_key_and_no_publish_url_needs_quotes_inside_single_ones(path):
    key = keys.mint()
    assert key not in str(urls.playback(bases(), path))
    shown = urls.publish(bases(), path, key)
    assert "'" not in "".join(str(shown[name]) for name in ("rtmp", "srt", "rtsp"))


def test_a_path_is_suggested_from_the_id():
    assert urls.suggested_path("0123456789abcdef") == "live/01234567"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUBLIC", "media.example.org"),
        ("PUBLIC", "rtmp://h"),
        ("HLS", "rtmp://h"),
        ("RTMP", "http://h"),
        ("RTSP", "rtmp://h"),
        ("SRT", "srt:"),
        ("WEBRTC", "http://"),
        ("HLS", "http://h:99999"),
        ("HLS", "http://h/'x"),
    ],
)
def test_a_base_that_is_no_url_of_its_protocol_is_refused(name, value):
    with pytest.raises(SettingError, match=f"MEDIAMTX_{name}_URL must be a URL that begins with "):
        bases(**{f"MEDIAMTX_{name}_URL": value})
