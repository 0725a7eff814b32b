"""One world: streamorch under gunicorn, its PostgreSQL, a real MediaMTX, and encoders. All of it on loopback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import requests

from streamorch import keys, signing
from streamorch.mediamtx_config import Version, parse_version
from tests.conftest import API_SECRET
from tests.running import ROOT, Service, free_port

PROTOCOLS = ("rtmp", "rtsp", "srt", "whip")
# Where MediaMTX lists connections.
LISTS = {
    "rtmp": ("rtmpconns",),
    "rtsp": ("rtspconns", "rtspsessions"),
    "srt": ("srtconns",),
    "whip": ("webrtcsessions",),
}
ALL = "?itemsPerPage=100000"

_FORMATS = {
    "rtmp": ["-f", "flv"],
    "rtsp": ["-f", "rtsp", "-rtsp_transport", "tcp"],
    "srt": ["-f", "mpegts"],
}


def until(condition: Callable[[], object], seconds: float, what: str = "") -> float:
    """Wait for it; returns how long that took. AssertionError when it does not come true in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)
    return time.monotonic() - began


def throughout(condition: Callable[[], object], seconds: float, what: str = "") -> None:
    """It must be true all the time. AssertionError when it was not."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        assert condition(), f"no longer after {time.monotonic() - began:.1f} s: {what or condition}"
        time.sleep(0.05)


# --- the media server -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Binary:
    """A MediaMTX program and what it says of its version."""

    path: Path
    version: str

    @property
    def number(self) -> Version:
        return parse_version(self.version)


def binaries() -> list[Binary]:
    """Those of MEDIAMTX_BIN (one path, or several separated as in PATH; `off` is none), else `mediamtx` of PATH."""
    wanted = os.environ.get("MEDIAMTX_BIN", "")
    named = [Path(name) for name in wanted.split(os.pathsep) if name and wanted != "off"]
    if not wanted and (found := shutil.which("mediamtx")):
        named = [Path(found)]
    return [Binary(path.absolute(), _version(path)) for path in named]


def _version(path: Path) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()


class Ports:
    """Free ports, the same for the life of a world."""

    def __init__(self) -> None:
        self.api, self.rtmp, self.rtsp, self.srt, self.webrtc, self.ice, self.hls = (free_port() for _ in range(7))
        self.rtp = _free_pair()

    def settings(self) -> dict[str, str]:
        """What streamorch has to know of them."""
        at = "127.0.0.1"
        return {
            "MEDIAMTX_API_URL": f"http://{at}:{self.api}",
            "MEDIAMTX_PUBLIC_URL": f"http://{at}:{self.webrtc}",
            "MEDIAMTX_RTMP_URL": f"rtmp://{at}:{self.rtmp}",
            "MEDIAMTX_RTSP_URL": f"rtsp://{at}:{self.rtsp}",
            "MEDIAMTX_SRT_URL": f"srt://{at}:{self.srt}",
            "MEDIAMTX_HLS_URL": f"http://{at}:{self.hls}",
        }

    def environ(self, version: Version) -> dict[str, str]:
        """What stands for the addresses in a configuration of MediaMTX."""
        at = "127.0.0.1"
        return {
            "MTX_RTMPADDRESS": f"{at}:{self.rtmp}",
            "MTX_RTSPADDRESS": f"{at}:{self.rtsp}",
            "MTX_SRTADDRESS": f"{at}:{self.srt}",
            "MTX_HLSADDRESS": f"{at}:{self.hls}",
            "MTX_WEBRTCADDRESS": f"{at}:{self.webrtc}",
            "MTX_WEBRTCLOCALUDPADDRESS": f"{at}:{self.ice}",
            "MTX_WEBRTCIPSFROMINTERFACES": "no",
            "MTX_WEBRTCADDITIONALHOSTS": at,
            "MTX_RTPADDRESS": f"{at}:{self.rtp}",
            "MTX_RTCPADDRESS": f"{at}:{self.rtp + 1}",
        } | ({"MTX_MOQ": "no"} if version >= (1, 19, 0) else {})


def _free_pair() -> int:
    """An even UDP port, free like the one after it."""
    while True:
        port = free_port() & ~1
        with socket.socket(type=socket.SOCK_DGRAM) as first, socket.socket(type=socket.SOCK_DGRAM) as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class MediaServer:
    """MediaMTX on ports that stay the same, and what its Control API tells, asked past streamorch."""

    def __init__(self, binary: Binary, folder: Path, ports: Ports):
        self.binary = binary
        self.log = folder / "mediamtx.log"
        self._config = folder / "mediamtx.yml"
        self._url = f"http://127.0.0.1:{ports.api}/v3"
        self._environ = {**os.environ, **ports.environ(binary.number)}
        self._ports = ports
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, config: str | None = None) -> None:
        """With this configuration, else with the last one; returns when every protocol is served."""
        if config is not None:
            self._config.write_text(config)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [self.binary.path, self._config],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._is_up, 20, "MediaMTX is up")

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return requests.get(f"{self._url}/paths/list", auth=self._auth, timeout=5).ok
        except requests.ConnectionError:
            return False

    _auth = ("streamorch", signing.media_server_password(API_SECRET))

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """As an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, way: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(way)
            self.process.wait(20)
            self.process = None

    def _get(self, place: str) -> Any:
        reply = requests.get(f"{self._url}/{place}", auth=self._auth, timeout=5)
        reply.raise_for_status()
        return reply.json()

    def publishers(self) -> dict[str, str]:
        """Who publishes: the id of the source by path."""
        items = self._get(f"paths/list{ALL}")["items"]
        return {item["name"]: item["source"]["id"] for item in items if item["ready"] and item["source"]}

    def connections(self, protocol: str) -> set[str]:
        """The ids of a protocol's connections and sessions, whether they publish or not."""
        return {item["id"] for name in LISTS[protocol] for item in self._get(f"{name}/list{ALL}")["items"]}

    def entries(self) -> list[str]:
        """The names of the configured paths."""
        return [item["name"] for item in self._get(f"config/paths/list{ALL}")["items"]]


# --- encoders ---------------------------------------------------------------------------------------------


class Encoder:
    """A process that publishes a clip again and again, as it would come from a camera."""

    def __init__(self, protocol: str, publish: dict[str, Any], clip: Path, log: Path):
        self.protocol = protocol
        environ = {**os.environ, "WHIP_KEY": publish["whip"]["bearer_token"]}
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                _command(protocol, publish, clip),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def freeze(self) -> None:
        """It sends no more, and its connections stay open: what a lost network looks like."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """As a person would: it takes its leave."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(10)

    def kill(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.wait(10)

    def wait(self, seconds: float) -> int:
        """The exit status, once it gave up. TimeoutExpired."""
        return self.process.wait(seconds)


def _command(protocol: str, publish: dict[str, Any], clip: Path) -> list[str | Path]:
    if protocol == "whip":
        return [sys.executable, ROOT / "tests/real/whip.py", publish["whip"]["url"], clip]
    quiet = ["ffmpeg", "-hide_banner", "-nostats", "-loglevel", "warning"]
    return [*quiet, "-re", "-stream_loop", "-1", "-i", clip, "-c", "copy", *_FORMATS[protocol], publish[protocol]]


def make_clip(folder: Path) -> Path:
    """Four seconds of a test picture; MPEG-TS, whose H.264 every protocol can carry as it is."""
    clip = folder / "clip.ts"
    coded = ["-c:v", "libx264", "-profile:v", "baseline", "-pix_fmt", "yuv420p", "-g", "10"]
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=10:duration=4", *coded, clip],
        check=True,
        timeout=60,
    )
    return clip


# --- callers of streamorch --------------------------------------------------------------------------------


@dataclass
class Key:
    """A stream key as its 201 gave it, and the place that it publishes to."""

    id: str
    publish: dict[str, Any]

    @property
    def value(self) -> str:
        value: str = self.publish["whip"]["bearer_token"]
        return value

    def forged(self) -> "Key":
        """The same place, with a key that nobody minted for it."""
        return Key(self.id, json.loads(json.dumps(self.publish).replace(self.value, keys.mint())))

    @property
    def path(self) -> str:
        path: str = self.publish["path"]
        return path


class Api:
    """A frontend that manages keys and polls the lists."""

    def __init__(self, url: str):
        self.url = url

    def __call__(self, method: str, place: str, **kwargs: Any) -> Any:
        """The JSON of the answer, None when it is empty."""
        headers = {"Authorization": f"Bearer {API_SECRET}"}
        reply = requests.request(method, self.url + place, headers=headers, timeout=10, **kwargs)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def key(self, **members: Any) -> Key:
        """A key of a broadcaster of its own."""
        broadcaster = self("POST", "/broadcasters", json={"display_name": "Team 7"})
        made = self("POST", "/stream-keys", json={"broadcaster_id": broadcaster["id"]} | members)
        return Key(made["id"], made["publish"])

    def change_key(self, key: Key, **members: Any) -> None:
        self("PATCH", f"/stream-keys/{key.id}", json=members)

    def revoke(self, key: Key) -> None:
        self("DELETE", f"/stream-keys/{key.id}")

    def stop(self, stream_id: str) -> None:
        """The default: the key is on hold."""
        self("DELETE", f"/streams/{stream_id}")

    def live(self, key: Key) -> list[dict[str, Any]]:
        """The streams of a key in the live list, the one that every frontend polls."""
        streams: list[dict[str, Any]] = self("GET", "/streams")["streams"]
        return [stream for stream in streams if stream["stream_key_id"] == key.id]

    def live_ids(self, key: Key) -> list[str]:
        return [stream["id"] for stream in self.live(key)]

    def history(self, key: Key, status: str = "all") -> list[dict[str, Any]]:
        """The streams of a key, the newest first."""
        found = self("GET", "/streams", params={"status": status, "stream_key_id": key.id})
        streams: list[dict[str, Any]] = found["streams"]
        return streams

    def stream(self, stream_id: str) -> dict[str, Any]:
        """One stream with what lists leave out."""
        found: dict[str, Any] = self("GET", f"/streams/{stream_id}")
        return found

    def unclaimed(self) -> dict[str, str]:
        """Who publishes without a claim: the id of the source by path."""
        return {
            entry["path"]: entry["source_id"] for node in self("GET", "/nodes")["nodes"] for entry in node["unclaimed"]
        }

    def has_ticked_since(self, moment: datetime) -> bool:
        """Has the reconciler seen everything once more?"""
        ticks = [node["last_tick_at"] for node in self("GET", "/nodes")["nodes"]]
        return any(tick is not None and datetime.fromisoformat(tick) > moment for tick in ticks)

    @contextmanager
    def watching(self, key: Key) -> Iterator[list[list[str]]]:
        """The ids of the key's live streams, asked for as fast as it goes; each that differs from the one before."""
        seen = [self.live_ids(key)]
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.01):
                if (ids := self.live_ids(key)) != seen[-1]:
                    seen.append(ids)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()


def _auth_ids(conn: psycopg.Connection, key: Key) -> list[str]:
    query = "SELECT auth_id FROM streams WHERE stream_key_id = %s AND ended_at IS NULL"
    return [str(auth_id) for (auth_id,) in conn.execute(query, (key.id,))]


# --- all together -----------------------------------------------------------------------------------------


@dataclass
class World:
    """Made once per version of MediaMTX. What a test changes it puts right again; what it left broken, `restore`."""

    binary: Binary
    clip: Path
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="streamorch-real-")))
    encoders: list[Encoder] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ports = Ports()
        self.media = MediaServer(self.binary, self.folder, self.ports)
        self.encoder_log = self.folder / "encoders.log"
        self.encoder_log.touch()
        self.service = Service(self.folder, **self.ports.settings())
        self.api = Api(self.service.url)
        try:
            self.media.start(self.config())
        except BaseException:
            self.close()
            raise

    def config(self, hooks: str = "curl") -> str:
        """What streamorch says how this MediaMTX has to be configured."""
        return subprocess.run(
            [sys.executable, "-m", "streamorch", "mediamtx-config", "--for", self.binary.version, "--hooks", hooks],
            cwd=ROOT,
            env=self.service.environ | {"CALLBACK_URL": self.service.url},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout

    def encoder(self, protocol: str, key: Key) -> Encoder:
        """One that publishes with this key."""
        made = Encoder(protocol, key.publish, self.clip, self.encoder_log)
        self.encoders.append(made)
        return made

    def live(self, protocol: str, **members: Any) -> tuple[Key, Encoder, dict[str, Any]]:
        """A new key, its encoder, and the stream that is live."""
        key = self.api.key(**members)
        encoder = self.encoder(protocol, key)
        until(lambda: self.api.live(key), 15, f"{protocol} is live")
        return key, encoder, self.api.live(key)[0]

    def comes_live(self, key: Key, *, besides: str, seconds: float) -> float:
        """Wait for a stream of the key that is another than this one, alone in the list."""
        return until(
            lambda: (ids := self.api.live_ids(key)) and len(ids) == 1 and ids[0] != besides,
            seconds,
            "another stream of the key is live",
        )

    def media_flows(self, key: Key) -> bool:
        """Did the reconciler see bytes of the one live stream of this key?"""
        (stream,) = self.api.live(key)
        return bool(stream["media"] == "flowing")

    def auth_ids(self, key: Key) -> list[str]:
        """The connections of the key that auth let in and that have not ended."""
        with psycopg.connect(self.service.database_url, autocommit=True) as conn:
            return _auth_ids(conn, key)

    def claim(self, key: Key) -> str:
        """The same, as soon as there is one: some protocols are live a few milliseconds later."""
        began = time.monotonic()
        with psycopg.connect(self.service.database_url, autocommit=True) as conn:
            while time.monotonic() - began < 10:
                if found := _auth_ids(conn, key):
                    return found[0]
                time.sleep(0.001)
        raise AssertionError("nobody claimed")

    def restart_media(self, config: str) -> None:
        """MediaMTX with another configuration; every stream of it ends."""
        self.media.stop()
        self.media.start(config)

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        self.restart_media(self.config("none"))
        try:
            yield
        finally:
            self.restart_media(self.config())

    @contextmanager
    def admitting_all_at(self, path: str) -> Iterator[None]:
        """MediaMTX does not ask who publishes to this path."""
        config = self.config()
        open_config, count = re.subn(
            "^authHTTPExclude: .*$", f"authHTTPExclude: [{{action: publish, path: {path}}}]", config, flags=re.MULTILINE
        )
        assert count == 1
        self.restart_media(open_config)
        try:
            yield
        finally:
            self.restart_media(config)

    @contextmanager
    def setting(self, **environ: str) -> Iterator[None]:
        """streamorch with other settings; its reconciler has begun."""
        before = self.service.environ
        self.service.stop()
        self.service.environ = before | environ
        stopped_at = datetime.now(UTC)
        self.service.start()
        try:
            until(lambda: self.api.has_ticked_since(stopped_at), 10, "the reconciler has begun")
            yield
        finally:
            self.service.stop()
            self.service.environ = before
            self.service.start()

    def end_encoders(self) -> None:
        """All that a test started."""
        for encoder in self.encoders:
            encoder.kill()
        self.encoders.clear()

    def restore(self) -> bool:
        """After a test: nobody publishes, and all three programs run. Did MediaMTX, or did it crash?"""
        self.end_encoders()
        self.service.start_database()
        if self.service.process.poll() is not None:
            self.service.start()
        was_running = self.media.is_running
        if not was_running:
            self.media.start()
        return was_running

    def logs(self) -> dict[str, str]:
        """What everybody wrote."""
        logs = {"streamorch": self.service.log, "MediaMTX": self.media.log, "encoders": self.encoder_log}
        return {name: log.read_text(errors="replace") if log.exists() else "" for name, log in logs.items()}

    def close(self) -> None:
        """End all of it, and leave nothing."""
        self.end_encoders()
        try:
            self.media.stop()
        finally:
            self.service.close()
            shutil.rmtree(self.folder, ignore_errors=True)
