"""One example of each body of the HTTP API, by the name of its Struct: one boat, its key, and one stream of it."""

from typing import Any

_BROADCASTER = "0197f1c2-5d1e-7c3a-9b7e-1f0a52c6d801"
_KEY = "0197f1c3-8a40-7d51-8e2b-6c94d3b7a902"
_CLIENT = "0197f1d0-44c1-7a02-8d15-7be2a06f3c04"
_STREAM = "0197f1c9-02b7-7e6f-a1d4-93c5e8f0b703"
_CONNECTION = "5b1c7d7e-3f0a-4c55-9d0f-2f6a1e9c4b11"
_PATH = "live/boat3"
_VALUE = "sk_..."  # a real one has 43 letters and digits here

_PLAYBACK = {
    "hls": f"https://video.example.org:8888/{_PATH}/index.m3u8",
    "webrtc": f"https://video.example.org:8889/{_PATH}/whep",
    "rtmp": f"rtmp://video.example.org/{_PATH}",
    "rtsp": f"rtsp://video.example.org:8554/{_PATH}",
    "srt": f"srt://video.example.org:8890?streamid=read:{_PATH}",
    "thumbnail": None,
}
_ONE_BROADCASTER = {
    "id": _BROADCASTER,
    "display_name": "Boat 3",
    "metadata": {"team": 7},
    "disabled": False,
    "created_at": "2026-07-03T09:00:00.000000Z",
    "updated_at": "2026-07-03T09:00:00.000000Z",
}
_ONE_KEY = {
    "id": _KEY,
    "broadcaster_id": _BROADCASTER,
    "label": "Mast camera",
    "path": _PATH,
    "takeover": "stalled",
    "status": "active",
    "disabled": False,
    "hold_until": None,
    "in_use": True,
    "hint": "x7Qk",
    "previous_hint": "m2Zb",
    "previous_works_until": "2026-07-05T09:00:00.000000Z",
    "rotated_at": "2026-07-04T09:00:00.000000Z",
    "metadata": {"camera": "mast"},
    "created_at": "2026-07-03T09:01:00.000000Z",
    "expires_at": "2026-07-31T18:00:00.000000Z",
    "revoked_at": None,
    "last_used_at": "2026-07-03T09:07:31.204518Z",
}
_ONE_STREAM = {
    "id": _STREAM,
    "stream_key_id": _KEY,
    "label": "Mast camera",
    "broadcaster": {"id": _BROADCASTER, "display_name": "Boat 3"},
    "node": "default",
    "path": _PATH,
    "status": "active",
    "end_reason": None,
    "claimed_at": "2026-07-03T09:07:31.204518Z",
    "started_at": "2026-07-03T09:07:33.118207Z",
    "ended_at": None,
    "duration_seconds": None,
    "interrupted_at": None,
    "source_type": "rtmpConn",
    "source_id": _CONNECTION,
    "protocol": "rtmp",
    "metadata": {"camera": "mast"},
    "recording_ref": None,
    "viewers": 12,
    "media": "flowing",
    "replaces": None,
    "replaced_by": None,
    "urls": _PLAYBACK,
}
_ONE_CLIENT = {
    "id": _CLIENT,
    "name": "Watch page",
    "scope": "read",
    "status": "active",
    "hint": "p3Vd",
    "created_at": "2026-07-03T09:02:00.000000Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": "2026-07-03T09:41:02.770911Z",
}
_ENDED = {
    "status": "ended",
    "end_reason": "disconnected",
    "ended_at": "2026-07-03T09:58:02.640913Z",
    "duration_seconds": 3029,
    "viewers": None,
    "media": None,
}

_EVENT = dict.fromkeys(
    ("reason", "who", "address", "stream_id", "connection_id", "left_out", "before", "after"),
)

# By the name of a parameter in a path.
IDS = {
    "broadcaster_id": _BROADCASTER,
    "stream_key_id": _KEY,
    "stream_id": _STREAM,
    "api_client_id": _CLIENT,
    "slug": "path-in-use",
}
OF: dict[str, Any] = {
    "NewBroadcaster": {"display_name": "Boat 3", "metadata": {"team": 7}},
    "BroadcasterChanges": {"display_name": "Boat 3, Tern"},
    "Broadcaster": _ONE_BROADCASTER,
    "BroadcasterPage": {"broadcasters": [_ONE_BROADCASTER], "count": 1, "next_cursor": None},
    "NewStreamKey": {
        "broadcaster_id": _BROADCASTER,
        "label": "Mast camera",
        "path": _PATH,
        "expires_at": "2030-07-31T18:00:00Z",
        "metadata": {"camera": "mast"},
    },
    "StreamKeyChanges": {"label": "Stern camera", "expires_at": None},
    "Rotation": {"overlap_seconds": 86400},
    "StreamKey": _ONE_KEY,
    "MintedStreamKey": _ONE_KEY
    | {
        "in_use": False,
        "last_used_at": None,
        "previous_hint": None,
        "previous_works_until": None,
        "rotated_at": None,
        "key_value": _VALUE,
        "publish": {
            "path": _PATH,
            "obs": {"server": "rtmp://video.example.org:1935/live", "stream_key": f"boat3?pass={_VALUE}"},
            "rtmp": f"rtmp://video.example.org:1935/{_PATH}?pass={_VALUE}",
            "srt": f"srt://video.example.org:8890?streamid=publish:{_PATH}:key:{_VALUE}&pkt_size=1316",
            "rtsp": f"rtsp://key:{_VALUE}@video.example.org:8554/{_PATH}",
            "whip": {"url": f"https://video.example.org:8889/{_PATH}/whip", "bearer_token": _VALUE},
        },
    },
    "StreamKeyPage": {"stream_keys": [_ONE_KEY], "count": 1, "next_cursor": None},
    "NewAPIClient": {"name": "Watch page", "scope": "read"},
    "APIClientChanges": {"scope": "operate", "expires_at": "2030-07-31T18:00:00Z"},
    "APIClient": _ONE_CLIENT,
    "MadeAPIClient": _ONE_CLIENT | {"last_used_at": None, "secret": "sc_..."},
    "APIClientPage": {"api_clients": [_ONE_CLIENT], "count": 1, "next_cursor": None},
    "LiveStreams": {"streams": [_ONE_STREAM], "count": 1, "stale": False, "as_of": "2026-07-03T09:41:06.882104Z"},
    "StreamPage": {"streams": [_ONE_STREAM | _ENDED], "count": 1, "next_cursor": None},
    "StreamChanges": {"recording_ref": "s3://recordings/boat3/2026-07-03.mp4"},
    "LoneStream": _ONE_STREAM
    | {
        "remote_address": "192.0.2.7",
        "bytes": 734003200,
        "bitrate": 4200000,
        "tracks": [
            {"codec": "H264", "properties": {"width": 1920, "height": 1080, "profile": "High", "level": "4"}},
            {"codec": "MPEG-4 Audio", "properties": {"sampleRate": 48000, "channelCount": 2}},
        ],
        "kick": None,
    },
    "DecisionPage": {
        "decisions": [
            {
                "id": "0b0f3f1e-4c86-4f0f-9a52-6d1b0c7f2e04",
                "decided_at": "2026-07-03T09:06:58.310276Z",
                "node": "default",
                "action": "publish",
                "outcome": "stream-key-disabled",
                "stream_key_id": _KEY,
                "hint": "x7Qk",
                "stream_id": None,
                "rival_id": None,
                "path": _PATH,
                "protocol": "rtmp",
                "remote_address": "192.0.2.7",
                "user_agent": "FMLE/3.0",
                "connection_id": "c0a1f6de-21f7-4dd2-8f1c-5be0c1b1f711",
                "left_out": 14,
            }
        ],
        "count": 1,
        "next_cursor": None,
    },
    "ChangePage": {
        "changes": [
            {
                "id": "6a1c2f0d-7f33-4be5-8d60-2a9e41c0de05",
                "changed_at": "2026-07-03T09:07:12.902114Z",
                "who": "API_SECRET",
                "address": "198.51.100.4",
                "request_id": "9f3c1b7ad08e4b6c8a55d2f04c1e7a60",
                "action": "update",
                "kind": "stream_key",
                "subject_id": _KEY,
                "before": {"disabled": True},
                "after": {"disabled": False},
            }
        ],
        "count": 1,
        "next_cursor": None,
    },
    "EventPage": {
        "events": [
            _EVENT
            | {
                "id": "00000000-0000-0000-0000-000000000001",
                "at": "2026-07-03T09:07:31.204518Z",
                "event": "claimed",
                "address": "192.0.2.7",
                "connection_id": _CONNECTION,
            },
            _EVENT
            | {
                "id": "00000000-0000-0000-0000-000000000002",
                "at": "2026-07-03T09:07:33.118207Z",
                "event": "live",
                "connection_id": _CONNECTION,
            },
            _EVENT
            | {
                "id": "00000000-0000-0000-0000-000000000004",
                "at": "2026-07-03T09:58:02.640913Z",
                "event": "ended",
                "reason": "disconnected",
            },
        ],
        "count": 3,
        "next_cursor": None,
    },
    "MediaServers": {
        "nodes": [
            {
                "name": "default",
                "version": "v1.20.1",
                "started_at": "2026-07-03T08:55:12.000000Z",
                "api": "ok",
                "last_tick_at": "2026-07-03T09:41:06.120443Z",
                "last_hook_at": "2026-07-03T09:07:33.118207Z",
                "active": 1,
                "unclaimed": [],
                "problem": None,
            }
        ],
        "count": 1,
    },
    "Question": {
        "action": "publish",
        "user": "",
        "password": _VALUE,
        "token": "",
        "ip": "192.0.2.7",
        "path": _PATH,
        "protocol": "rtmp",
        "id": _CONNECTION,
        "query": "",
        "userAgent": "FMLE/3.0",
    },
    "Event": {"path": _PATH, "source_type": "rtmpConn", "source_id": _CONNECTION},
    "Alive": {"status": "ok"},
    "Health": {"status": "ok", "database": "ok", "version": "0.1.0"},
    "Readiness": {
        "status": "ok",
        "database": "ok",
        "schema": "current",
        "media_server": "ok",
        "version": "0.1.0",
    },
}
