"""MediaMTX's configuration: what stands in it, that a secret survives it, and that real servers work with it."""

import http.server
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import requests
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamorch import __main__, mediamtx_config, signing
from streamorch.settings import SettingError, Settings

FILES = Path(__file__).resolve().parent.parent / "mediamtx"
FORMS = {"mediamtx.yml": (), "mediamtx-before-1.19.3.yml": ("--for", "1.19.2")}
AWKWARD = "a $HOME ${PATH} $1 'b' \"c\" \\ % %41 # : @/?&;|[x]{y}*` ~=+()"
# But for the comma, which stands between two secrets.
_CHARACTERS = st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=",")
PRINTABLE = st.text(_CHARACTERS, min_size=1).map(str.strip).filter(bool)
PATIENCE = 20


def read(**environ: str) -> Settings:
    return Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "x"} | environ)


def value(text: str, key: str) -> str | None:
    """What stands behind a key, with the lines of a folded block joined as YAML joins them; None: no such key."""
    found = re.search(rf"(?m)^( *){key}: (?:>-\n((?:\1  .*\n)+)|(.*)\n)", text)
    return found and " ".join(line.strip() for line in (found[2] or found[3]).splitlines())


def expand(text: str, **variables: str) -> str:
    """$NAME and ${NAME} as MediaMTX fills them in: a name that is not known becomes nothing."""
    return re.sub(r"\$(\{\w+\}|\w+|[*#$@!?-])", lambda found: variables.get(found[1].strip("{}"), ""), text)


def arguments(line: str, **variables: str) -> list[str]:
    """The words of a hook line, filled in: up to v1.18.0 before they are split, later after it, with one result."""
    words = [expand(word, **variables) for word in shlex.split(line)]
    assert shlex.split(expand(line, **variables)) == words
    return words


def password(url: str) -> str:
    return unquote(urlsplit(url).password or "")


# --- the command ---


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`streamorch mediamtx-config` with these variables alone; gives what it prints."""

    def run_so(*options: str, fails: bool = False, **environ: str) -> str:
        for name in os.environ:
            if name.startswith(("API_", "CALLBACK_", "DATABASE_", "MEDIAMTX_", "READ_")):
                monkeypatch.delenv(name)
        result = CliRunner().invoke(__main__.main, ["mediamtx-config", *options], env=environ)
        assert result.exit_code == fails
        assert bool(result.stderr) == fails
        return result.output

    return run_so


@pytest.mark.parametrize("name", FORMS)
def test_the_files_are_what_it_prints(name, run):
    printed = run(*FORMS[name])
    assert (FILES / name).read_text() == printed, (
        f"make it again: streamorch mediamtx-config {' '.join(FORMS[name])} > mediamtx/{name}"
    )


def test_no_other_file_is_there():
    assert {file.name for file in FILES.iterdir()} == set(FORMS)


@pytest.mark.parametrize("name", ["DATABASE_URL", "API_SECRET", "DATABASE_URL_FILE", "API_SECRET_FILE"])
def test_it_asks_for_no_database_and_no_secret_of_ours(name, run):
    assert run(**{name: "/nowhere"}) == run()


def test_what_is_wrong_is_one_line(run):
    assert run("--for", "1.8.5", fails=True) == "streamorch: --for: v1.8.5 is too old: it takes v1.9.3 or newer\n"
    assert run("--for", "new", fails=True) == "streamorch: --for: 'new' is no version of MediaMTX, like v1.19.3\n"
    assert run(fails=True, MEDIAMTX_API_URL="nonsense").startswith("streamorch: MEDIAMTX_API_URL ")
    assert run(fails=True, CALLBACK_URL="http://h/$HOME").startswith("streamorch: CALLBACK_URL ")


def test_the_options_choose_what_is_printed(run):
    assert run("--hooks", "none", "--snippet", MEDIAMTX_CALLBACK_SECRET="x") == mediamtx_config.snippet(
        read(MEDIAMTX_CALLBACK_SECRET="x"), hooks="none"
    )
    assert run("--hooks", "wget", "--for", "v1.12.3") == mediamtx_config.config(
        read(), hooks="wget", version=(1, 12, 3)
    )


# --- what stands in it ---


@pytest.mark.parametrize(
    ("text", "version"),
    [("v1.20.1", (1, 20, 1)), ("1.18\n", (1, 18, 0)), (" v2.0.0-rc1", (2, 0, 0)), ("v1.9.3", (1, 9, 3))],
)
def test_a_version_is_read(text, version):
    assert mediamtx_config.parse_version(text) == version


@pytest.mark.parametrize(
    ("version", "there", "absent"),
    [
        ((1, 19, 3), ("runOnOnline", "runOnOffline"), ("runOnReady", "runOnNotReady")),
        ((1, 19, 2), ("runOnReady", "runOnNotReady"), ("runOnOnline", "runOnOffline")),
    ],
)
def test_the_hooks_have_the_names_that_a_version_knows(version, there, absent):
    made = mediamtx_config.config(read(), version=version)
    assert tuple(value(made, name) for name in there) == mediamtx_config.hook_lines(read())
    assert [value(made, name) for name in absent] == [None, None]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:9997", "127.0.0.1:9997"),
        ("http://127.0.0.1:1", "127.0.0.1:1"),
        ("http://127.0.0.9", "127.0.0.9:80"),
        ("http://[::1]:9997", "'[::1]:9997'"),
        ("http://mediamtx:9997", ":9997"),
        ("http://192.0.2.7:9000", ":9000"),
        ("http://[2001:db8::7]:9000", ":9000"),
        ("https://mtx.example.org", ":443"),
    ],
)
def test_the_control_api_listens_where_it_is_looked_for(url, address):
    made = mediamtx_config.config(read(MEDIAMTX_API_URL=url))
    assert value(made, "apiAddress") == address
    assert value(made, "authHTTPExclude") == "[]"
    assert ("apiServerCert" in made) == url.startswith("https:")


@pytest.mark.parametrize("name", ["hls", "webrtc", "rtmp", "rtsp", "srt"])
def test_a_protocol_that_is_off_is_off_there_too(name):
    made = mediamtx_config.config(read(**{f"MEDIAMTX_{name.upper()}_URL": "off"}))
    assert re.findall(r"(?m)^(\w+): no$", made) == [name]
    assert value(mediamtx_config.config(read()), name) is None


def test_without_hooks_it_has_none():
    made = mediamtx_config.config(read(), hooks="none")
    assert "runOn" not in made
    assert "webhook" not in made


def test_the_snippet_has_the_keys_that_matter_and_no_more():
    settings = read(MEDIAMTX_RTMP_URL="off")
    whole, part = mediamtx_config.config(settings), mediamtx_config.snippet(settings)
    keys = re.findall(r"(?m)^ *(\w+):", whole)
    assert re.findall(r"(?m)^ *(\w+):", part) == [key for key in keys if key not in ("rtmp", "paths", "all_others")]
    assert {key: value(part, key) for key in keys} == {key: value(whole, key) for key in keys} | {"rtmp": None}


@pytest.mark.parametrize("version", [(1, 9, 3), mediamtx_config.CURRENT])
@pytest.mark.parametrize("hooks", ["curl", "wget"])
def test_its_lines_by_key_have_the_word_secret(hooks, version):
    settings = read(MEDIAMTX_RTMP_URL="off", MEDIAMTX_CALLBACK_SECRET="hush hush")
    lines = mediamtx_config.lines(settings, hooks=hooks, version=version)
    whole = mediamtx_config.config(replace(settings, callback_secrets=("SECRET",)), hooks=hooks, version=version)
    keys = re.findall(r"(?m)^ *(\w+): .", whole)
    assert list(lines) == keys
    assert {key: value(f"{line}\n", key) for key, line in lines.items()} == {key: value(whole, key) for key in keys}
    assert {"authHTTPAddress", "overridePublisher", "rtmp", *mediamtx_config.hook_names(version)} <= set(keys)
    assert "hush" not in str(lines)


def test_the_callback_url_is_where_all_is_sent():
    settings = read(CALLBACK_URL="https://[2001:db8::1]:8443/s-1/~x")
    made = mediamtx_config.config(settings)
    assert value(made, "authHTTPAddress") == "https://[2001:db8::1]:8443/s-1/~x/auth"
    assert arguments(value(made, "runOnOnline") or "")[-1] == "https://[2001:db8::1]:8443/s-1/~x/webhook/ready"


@pytest.mark.parametrize(
    "url", ["http://u:p@h", "http://h/?node=a", "http://h/#x", "http://h/$HOME", "http://h/{a}", "http://h/a;b"]
)
def test_a_callback_url_that_something_on_the_way_would_change_is_refused(url):
    for make in (mediamtx_config.config, mediamtx_config.snippet, mediamtx_config.auth_address):
        with pytest.raises(SettingError, match=r"^CALLBACK_URL .*[^\n]$"):
            make(read(CALLBACK_URL=url))


# --- the secret ---


@given(secret=PRINTABLE)
def test_any_secret_survives(secret):
    settings = read(MEDIAMTX_CALLBACK_SECRET=secret)
    for hooks in ("curl", "wget"):
        made = mediamtx_config.config(settings, hooks=hooks)
        assert password(value(made, "authHTTPAddress") or "") == secret
        for key, place in (("runOnOnline", "ready"), ("runOnOffline", "not-ready")):
            words = arguments(value(made, key) or "", MTX_PATH="live/a", MTX_SOURCE_TYPE="srtConn", MTX_SOURCE_ID="i")
            assert words[0] == hooks
            assert urlsplit(words[-1]).path == f"/webhook/{place}"
            body = words[words.index({"curl": "-d", "wget": "--post-data"}[hooks]) + 1]
            assert json.loads(body) == {"path": "live/a", "source_type": "srtConn", "source_id": "i"}
            if hooks == "curl":
                assert password(words[-1]) == secret
            else:
                header = next(word for word in words if word.startswith("Authorization: "))[15:]
                assert (signing.basic_password(header) or signing.bearer(header)) == secret


def test_what_is_shown_to_others_has_the_word_secret_in_its_place():
    settings = read(MEDIAMTX_CALLBACK_SECRET="hush")
    assert mediamtx_config.auth_address(settings) == "http://mediamtx:SECRET@127.0.0.1:8080/auth"
    start, end = mediamtx_config.hook_lines(settings)
    assert start.endswith(" http://mediamtx:SECRET@127.0.0.1:8080/webhook/ready")
    assert end.endswith(" http://mediamtx:SECRET@127.0.0.1:8080/webhook/not-ready")
    shown = mediamtx_config.hook_lines(settings, hooks="wget")
    assert all("--header 'Authorization: Bearer SECRET'" in line for line in shown)
    assert "hush" not in repr((start, end, shown))
    assert "hush" in mediamtx_config.auth_address(settings, revealed=True)
    assert "hush" in mediamtx_config.hook_lines(settings, revealed=True)[0]


def test_of_several_secrets_the_first_is_printed():
    one, several = (read(MEDIAMTX_CALLBACK_SECRET=text) for text in ("hush", "hush,old,older"))
    for make in (mediamtx_config.config, mediamtx_config.snippet):
        for hooks in mediamtx_config.HOOKS:
            assert make(several, hooks=hooks) == make(one, hooks=hooks)
    assert mediamtx_config.lines(several) == mediamtx_config.lines(one)


def test_without_a_secret_there_is_no_credential():
    assert mediamtx_config.auth_address(read()) == "http://127.0.0.1:8080/auth"
    assert "Authorization" not in mediamtx_config.hook_lines(read(), hooks="wget")[0]


# --- a real MediaMTX ---


class Streamorch(http.server.ThreadingHTTPServer):
    """Lets everybody publish and nobody else do anything; keeps what it was told, with the password of the caller."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Callback)
        self.told: list[tuple[str, str | None, dict[str, Any]]] = []

    def await_call(self, place: str, **members: str) -> str | None:
        """The password of the first call with these members; a failure when there is none in time."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for where, given_password, body in list(self.told):
                if where == place and members.items() <= body.items():
                    return given_password
            time.sleep(0.02)
        return pytest.fail(f"no {place} {members} among {self.told}")


class Callback(http.server.BaseHTTPRequestHandler):
    server: Streamorch

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        authorization = self.headers.get("Authorization", "")
        credential = signing.basic_password(authorization) or signing.bearer(authorization)
        self.server.told.append((self.path, credential, body))
        self.send_response(204 if body.get("action", "publish") == "publish" else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Publisher:
    """An RTSP publisher of a track without a packet: MediaMTX takes it for live."""

    SDP = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:trackID=0\r\n"
    )

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE)
        self.count = 0
        self.ask("ANNOUNCE", url, f"Content-Type: application/sdp\r\nContent-Length: {len(self.SDP)}\r\n", self.SDP)
        transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1;mode=record\r\n"
        session = re.search(r"(?i)session: ([^;\r]+)", self.ask("SETUP", f"{url}/trackID=0", transport))
        assert session
        self.ask("RECORD", url, f"Session: {session[1]}\r\n")

    def ask(self, method: str, url: str, headers: str, body: str = "") -> str:
        self.count += 1
        self.socket.sendall(f"{method} {url} RTSP/1.0\r\nCSeq: {self.count}\r\n{headers}\r\n{body}".encode())
        answer = self.socket.recv(4096).decode()
        assert answer.startswith("RTSP/1.0 200"), answer
        return answer

    def leave(self) -> None:
        self.socket.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def places(rtsp: int) -> dict[str, str]:
    """Variables that put RTSP on this port, and what else MediaMTX listens on wherever there is room."""
    names = ("RTMP", "HLS", "WEBRTC", "WEBRTCLOCALUDP", "SRT")
    own = {f"MTX_{name}ADDRESS": f"127.0.0.1:{port}" for name, port in zip(names, free_ports(5), strict=True)}
    return own | {"MTX_RTSPADDRESS": f"127.0.0.1:{rtsp}", "MTX_RTSPTRANSPORTS": "tcp", "MTX_MOQ": "no"}


@pytest.fixture(scope="module")
def binary() -> str:
    found = shutil.which(os.environ.get("MEDIAMTX_BIN") or "mediamtx")
    if not found:
        pytest.skip("no MediaMTX on PATH, and none named by MEDIAMTX_BIN")
    return found


@pytest.fixture(scope="module")
def version(binary: str) -> mediamtx_config.Version:
    done = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True)
    return mediamtx_config.parse_version(done.stdout)


@pytest.mark.mediamtx
class TestMediaMTX:
    @pytest.fixture
    def streamorch(self) -> Iterator[Streamorch]:
        with Streamorch() as server:
            thread = threading.Thread(target=server.serve_forever, args=[0.05])
            thread.start()
            yield server
            server.shutdown()
            thread.join()

    @pytest.fixture
    def start(self, binary: str, streamorch: Streamorch, tmp_path: Path) -> Iterator[Callable[..., str]]:
        """Start MediaMTX on free ports with what `make` gives for these settings; gives the base of its RTSP."""
        started: list[subprocess.Popen[bytes]] = []

        def start_so(make: Callable[[Settings], str], api_host: str = "127.0.0.1", **environ: str) -> str:
            api, rtsp = free_ports(2)
            settings = read(
                CALLBACK_URL=f"http://127.0.0.1:{streamorch.server_port}",
                MEDIAMTX_API_URL=f"http://{api_host}:{api}",
                **environ,
            )
            file, log = tmp_path / "mediamtx.yml", tmp_path / "log"
            file.write_text(make(settings))
            inherited = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
            environ = inherited | places(rtsp)
            with log.open("wb") as output:
                started.append(subprocess.Popen([binary, str(file)], env=environ, stdout=output, stderr=output))
            deadline = time.monotonic() + PATIENCE
            while not self.answers(f"{settings.mediamtx_api_url}/v3/paths/list"):
                assert started[-1].poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            return f"rtsp://127.0.0.1:{rtsp}"

        yield start_so
        for process in started:
            process.terminate()
            process.wait(PATIENCE)

    @staticmethod
    def answers(url: str) -> bool:
        try:
            # Nobody has a credential for the Control API here, and without one it is closed.
            assert requests.get(url, timeout=PATIENCE).status_code == 401
        except requests.ConnectionError:
            return False
        return True

    @pytest.fixture(params=["curl", "wget", "none"])
    def hooks(self, request: pytest.FixtureRequest) -> str:
        tool: str = request.param
        if tool != "none" and not shutil.which(tool):
            pytest.skip(f"no {tool} on PATH")
        return tool

    @pytest.mark.parametrize("form", [mediamtx_config.CURRENT, (1, 19, 2)], ids=["current", "older"])
    @pytest.mark.parametrize("secret", ["", "plain-Secret_1", AWKWARD], ids=["open", "plain", "awkward"])
    def test_what_is_printed_starts_it_and_its_calls_arrive(self, hooks, form, secret, version, start, streamorch):
        if version < mediamtx_config.CURRENT <= form:
            pytest.skip(f"{mediamtx_config.version_name(version)} does not know these hooks")
        rtsp = start(
            lambda settings: mediamtx_config.config(settings, hooks=hooks, version=form),
            MEDIAMTX_CALLBACK_SECRET=secret,
        )
        assert streamorch.await_call("/auth", action="api") == (secret or None)
        publisher = Publisher(f"{rtsp}/live/a")
        assert streamorch.await_call("/auth", action="publish", path="live/a") == (secret or None)
        if hooks != "none":
            assert streamorch.await_call("/webhook/ready", path="live/a", source_type="rtspSession") == (secret or None)
        publisher.leave()
        if hooks != "none":
            assert streamorch.await_call("/webhook/not-ready", path="live/a") == (secret or None)
            ids = [body["source_id"] for place, _, body in streamorch.told if place.startswith("/webhook/")]
            assert len(ids) == 2
            assert len(set(ids)) == 1

    def test_the_snippet_is_valid_by_itself(self, version, start, streamorch):
        start(lambda settings: mediamtx_config.snippet(settings, version=min(version, mediamtx_config.CURRENT)))
        streamorch.await_call("/auth", action="api")

    @pytest.mark.parametrize("off", [["RTMP", "SRT"], ["HLS", "WEBRTC"]])
    def test_protocols_that_are_off_are_valid(self, off, version, start, streamorch):
        start(
            lambda settings: mediamtx_config.config(settings, version=min(version, mediamtx_config.CURRENT)),
            **{f"MEDIAMTX_{name}_URL": "off" for name in off},
        )
        streamorch.await_call("/auth", action="api")

    def test_the_control_api_may_be_on_another_loopback(self, version, start, streamorch):
        if not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        start(
            lambda settings: mediamtx_config.config(settings, version=min(version, mediamtx_config.CURRENT)),
            api_host="[::1]",
        )
        streamorch.await_call("/auth", action="api")
