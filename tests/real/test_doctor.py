"""What the doctor finds in a real MediaMTX: nothing when it is configured as we print it, and what is planted."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from streamorch import doctor, mediamtx_config
from streamorch.doctor.facts import Finding
from streamorch.settings import Settings
from tests.real.world import Binary, MediaServer, Ports
from tests.running import Service, free_port

pytestmark = [pytest.mark.mediamtx, pytest.mark.slow]

SECRET = "hush-hush 1/2"


class Server(MediaServer):
    """One that may refuse the Control API to everybody: it is up when it listens for it, which comes last."""

    def _is_up(self) -> bool:
        assert self.is_running, self.log.read_text()[-2000:]
        try:
            socket.create_connection(("127.0.0.1", self._ports.api), timeout=5).close()
        except OSError:
            return False
        return True


class Practice(NamedTuple):
    """A service, and a media server that can be started with a configuration."""

    environ: dict[str, str]
    media: Server
    config: str

    def findings(self, *changes: tuple[str, str], **environ: str) -> dict[str, Finding]:
        """What is found after these replacements in the configuration that we print, by name of the check."""
        config = self.config
        for old, new in changes:
            assert old in config, old
            config = config.replace(old, new)
        self.media.start(config)
        try:
            return {finding.name: finding for finding in doctor.examine(self.environ | environ)}
        finally:
            self.media.stop()


@pytest.fixture(scope="module")
def practice(binary: Binary) -> Iterator[Practice]:
    folder = Path(tempfile.mkdtemp(prefix="streamorch-doctor-"))
    ports = Ports()
    service = Service(folder, MEDIAMTX_CALLBACK_SECRET=SECRET, **ports.settings())
    settings = Settings.from_env(service.environ)
    config = mediamtx_config.config(settings, version=min(binary.number, mediamtx_config.CURRENT))
    yield Practice(service.environ, Server(binary, folder, ports), config)
    service.close()


def not_well(findings: dict[str, Finding]) -> dict[str, str]:
    """Without what the service heard, which may not have looked since the server was started, and what is slow here."""
    passing = ("heard", "database-latency")
    return {name: found.state for name, found in findings.items() if found.state != "ok" and name not in passing}


def test_what_we_print_is_right(practice):
    findings = practice.findings()
    assert not_well(findings) == {}
    told = practice.media.binary.number >= (1, 15, 2)
    assert findings["mediamtx-version"].text.startswith("v" if told else "older than v1.15.2")


# What is planted, and every check that then says something, with a part of what mends it.
PLANTED = {
    "it decides by itself": (
        [("authMethod: http", "authMethod: internal")],
        {"auth-method": "authMethod: http", "auth-exclude": "", "api-exposure": ""},
    ),
    "another secret": (
        [("hush-hush%201%2F2@", "old-secret@"), ("authHTTPExclude: []", "authHTTPExclude: [{action: api}]")],
        {
            "auth-address": "authHTTPAddress: http://mediamtx:SECRET@",
            "hooks": "http://mediamtx:SECRET@",
            "api-exposure": "authHTTPExclude: []",
        },
    ),
    "who publishes, watches and commands is not asked": (
        [("authHTTPExclude: []", "authHTTPExclude: [{action: publish}, {action: read}, {action: api}]")],
        {"auth-exclude": "authHTTPExclude: []", "api-exposure": "authHTTPExclude: []"},
    ),
    "the Control API listens to all": (
        [("apiAddress: 127.0.0.1:", "apiAddress: :")],
        {"api-exposure": "apiAddress: 127."},
    ),
    "hooks have another place": ([("/webhook/", "/hook/")], {"hooks": "/webhook/ready"}),
    "nobody takes over": (
        [("overridePublisher: yes", "overridePublisher: no")],
        {"override-publisher": "overridePublisher: yes"},
    ),
    "a path has no takeover": (
        [("  all_others:", "  all_others:\n  cam:\n    overridePublisher: no")],
        {"override-publisher": "cam:"},
    ),
    "no paths": ([("paths:\n", "paths: {}\n#"), ("  all_others:", "#")], {"paths": "all_others:"}),
    "no patience": ([("readTimeout: 10s", "readTimeout: 2m")], {"read-timeout": "readTimeout: 10s"}),
    "rtsp and srt are off": (
        [("authMethod: http", "authMethod: http\nrtsp: no\nsrt: no")],
        {"url-rtsp": "rtsp: yes", "url-srt": "srt: yes"},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(practice, name):
    changes, mends = PLANTED[name]
    findings = practice.findings(*changes)
    assert not_well(findings).keys() == mends.keys(), findings
    assert [check for check, mend in mends.items() if mend not in findings[check].mend] == []
    assert "hush" not in str(findings)
    assert "old-secret" not in str(findings)


def test_a_server_that_has_another_secret_lets_nobody_look(practice):
    findings = practice.findings(("hush-hush%201%2F2@", "old-secret@"))
    assert findings["control-api"].state == "wrong"
    assert "authHTTPAddress: http://mediamtx:SECRET@" in findings["control-api"].mend
    assert findings["auth-address"].state == "skipped"


def test_urls_with_wrong_ports(practice):
    nobody = {f"MEDIAMTX_{name}_URL": f"{name.lower()}://127.0.0.1:{free_port()}" for name in ("RTMP", "RTSP", "SRT")}
    findings = practice.findings(**nobody)
    assert not_well(findings) == {"url-rtmp": "wrong", "url-rtsp": "wrong", "url-srt": "wrong"}
    assert practice.environ["MEDIAMTX_SRT_URL"] in findings["url-srt"].mend


def test_without_a_media_server(practice):
    findings = {finding.name: finding for finding in doctor.examine(practice.environ)}
    assert findings["control-api"].state == "wrong"
    assert {findings[f"url-{name}"].state for name in ("hls", "rtmp", "srt")} == {"skipped"}
