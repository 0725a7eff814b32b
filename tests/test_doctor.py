"""The doctor: what it judges, by table and for every version; and how it asks, over real sockets."""

import ast
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import flask
import msgspec
import pytest
from click.testing import CliRunner
from werkzeug.serving import make_server

from streamorch import __main__, __version__, doctor, mediamtx_config
from streamorch.doctor import asking, media
from streamorch.doctor.facts import Absent, Answer, Database, Facts, Finding, Instance, MediaServer
from streamorch.doctor.verdicts import without_secrets
from streamorch.mediamtx import Options, PathOptions
from streamorch.repositories.diagnosis import State
from streamorch.repositories.nodes import Node
from streamorch.settings import Settings
from tests.conftest import API_SECRET, NO_MEDIA_SERVER
from tests.fake_mediamtx import VERSIONS, FakeMediaMTX
from tests.running import free_port

ROOT = Path(__file__).resolve().parent.parent
SECRET = "hush-hush 1/2"
ENVIRON = {
    "DATABASE_URL": "postgresql://streamorch:db-password@db.example.org/streamorch",
    "API_SECRET": "api-secret-of-a-test",
    "MEDIAMTX_CALLBACK_SECRET": SECRET,
    "METRICS_SECRET": "metrics-secret",
    "READ_POLICY": "secret",
    "READ_SECRET": "the-read-secret",
}
NOBODY = Absent("nobody listens there", "refused")
# None of these may ever be said.
UNSAYABLE = ("hush", "db-password", "api-secret-of", "metrics-secret", "read-secret", "the-old-secret")


def numbers(version: str) -> mediamtx_config.Version:
    return mediamtx_config.parse_version(version)


def read(**environ: str) -> Settings:
    return Settings.from_env(ENVIRON | environ)


def told_by(fake: FakeMediaMTX) -> MediaServer:
    """What its Control API tells of its configuration, as the doctor reads it."""
    entries = {} if fake.all_others is None else {"all_others": fake.all_others}
    entries |= {name: fake.settings(name) for name in sorted(fake.config_paths)}
    return MediaServer(
        msgspec.convert(fake.options, Options),
        msgspec.convert(fake.path_defaults, PathOptions),
        tuple(msgspec.convert(fake.path_defaults | own | {"name": name}, PathOptions) for name, own in entries.items()),
        fake.version if numbers(fake.version) >= (1, 15, 2) else None,
        0.0,
    )


def well(fake: FakeMediaMTX, settings: Settings) -> Facts:
    """The facts when all is well, but for what this media server tells."""
    state = State("16.4", False, False, 97, 12, 12, 0.0)
    node = Node("default", fake.version, None, "ok", None, "2026-01-31T12:00:00Z", 0, msgspec.Raw(b"[]"), False)
    bases = msgspec.to_builtins(settings.media_urls)
    instance = Instance(200, __version__, "ok", "current", "ok")
    return Facts(
        settings=settings,
        database=Database(160004, 0.001, 0.0, state, node=node),
        service=instance,
        callback=instance,
        question=Answer(200),
        media_server=told_by(fake),
        public={name: answers(base, listening(fake)) for name, base in bases.items() if base},
    )


def listening(fake: FakeMediaMTX) -> set[int]:
    """The ports that a real one would listen on, with this configuration."""
    options = fake.options
    secure = {"rtmp": options["rtmpEncryption"], "rtsp": options.get("rtspEncryption", options.get("encryption"))}
    found = [options[f"{name}Address"] for name in ("hls", "webrtc", "srt") if options[name]]
    for name, encryption in secure.items():
        found += [options[f"{name}Address"]] if options[name] and encryption != "strict" else []
        found += [options[f"{name}sAddress"]] if options[name] and encryption != "no" else []
    return {int(str(address).rpartition(":")[2]) for address in found}


def answers(base: str, ports: set[int]) -> Answer | Absent:
    port = urlsplit(base).port or {"rtmp": 1935, "rtsp": 554, "https": 443}[urlsplit(base).scheme]
    return Answer(404 if base.startswith("http") else 0) if port in ports else NOBODY


def configured(version: str, settings: Settings, **options: Any) -> FakeMediaMTX:
    """A media server with the configuration that we print for it; it does not listen."""
    fake = FakeMediaMTX(version)
    fake.load(mediamtx_config.config(settings, version=numbers(version), **options))
    return fake


def not_well(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings if finding.state != "ok"}


def calm(findings: list[Finding]) -> list[Finding]:
    """Without that which a busy machine alone may cause."""
    return [finding for finding in findings if finding.name != "database-latency"]


def finding(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def said(findings: list[Finding]) -> str:
    return doctor.as_text(findings) + doctor.as_json(findings)


# --- all is well ---


@pytest.mark.parametrize("secret", [SECRET, None], ids=["secret", "no secret"])
@pytest.mark.parametrize("hooks", ["curl", "wget"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_configuration_that_we_print_is_right(version, hooks, secret):
    settings = read(MEDIAMTX_CALLBACK_SECRET=secret or "")
    findings = doctor.judge(well(configured(version, settings, hooks=hooks), settings))
    assert not_well(findings) == {}
    assert doctor.exit_code(findings) == 0
    assert not [finding.mend for finding in findings if finding.mend]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_of_the_project_are_right(version):
    settings = Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "of-some-length"})
    name = "mediamtx.yml" if numbers(version) >= mediamtx_config.CURRENT else "mediamtx-before-1.19.3.yml"
    fake = FakeMediaMTX(version)
    fake.load((ROOT / "mediamtx" / name).read_text())
    assert not_well(doctor.judge(well(fake, settings))) == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_without_hooks_it_works_and_is_told(version):
    settings = read()
    findings = doctor.judge(well(configured(version, settings, hooks="none"), settings))
    assert not_well(findings) == {"hooks": "warning"}
    assert doctor.exit_code(findings) == 0
    for name in mediamtx_config.hook_names(numbers(version)):
        assert f"{name}: >-" in finding(findings, "hooks").mend


def test_what_is_off_in_both_is_right():
    settings = read(MEDIAMTX_RTMP_URL="off", MEDIAMTX_HLS_URL="off")
    findings = doctor.judge(well(configured("v1.20.1", settings), settings))
    assert not_well(findings) == {}


# --- what is planted in MediaMTX's configuration, and found in every version ---


def start_of(fake: FakeMediaMTX) -> str:
    return mediamtx_config.hook_names(numbers(fake.version))[0]


def end_of(fake: FakeMediaMTX) -> str:
    return mediamtx_config.hook_names(numbers(fake.version))[1]


def option(name: str, value: Any) -> Callable[[FakeMediaMTX], None]:
    return lambda fake: fake.options.update({name: value})


def exclude(*actions: str, path: str = "") -> Callable[[FakeMediaMTX], None]:
    return option("authHTTPExclude", [{"action": action, "path": path} for action in actions])


def default(name: Callable[[FakeMediaMTX], str] | str, value: Any) -> Callable[[FakeMediaMTX], None]:
    return lambda fake: fake.path_defaults.update({name if isinstance(name, str) else name(fake): value})


def in_hook(name: Callable[[FakeMediaMTX], str], old: str, new: str) -> Callable[[FakeMediaMTX], None]:
    def change(fake: FakeMediaMTX) -> None:
        line = str(fake.path_defaults[name(fake)])
        assert old in line
        fake.path_defaults[name(fake)] = line.replace(old, new)

    return change


def in_address(old: str, new: str) -> Callable[[FakeMediaMTX], None]:
    def change(fake: FakeMediaMTX) -> None:
        address = str(fake.options["authHTTPAddress"])
        assert old in address
        fake.options["authHTTPAddress"] = address.replace(old, new)

    return change


def entry(name: str, **settings: Any) -> Callable[[FakeMediaMTX], None]:
    def change(fake: FakeMediaMTX) -> None:
        fake.idle_path(name)
        fake._entries[name].settings.update(settings)

    return change


def both(*plants: Callable[[FakeMediaMTX], None]) -> Callable[[FakeMediaMTX], None]:
    def change(fake: FakeMediaMTX) -> None:
        for plant in plants:
            plant(fake)

    return change


def no_catch_all(fake: FakeMediaMTX) -> None:
    fake.all_others = None


AUTH_LINE = "authHTTPAddress: http://mediamtx:SECRET@127.0.0.1:8080/auth"
IN_URL = "mediamtx:hush-hush%201%2F2@"

# What is planted, the check that finds it, how bad it is, what it says, and the line that mends it.
PLANTED: dict[str, tuple[Callable[[FakeMediaMTX], Any], str, str, str, str]] = {
    "it decides by itself": (option("authMethod", "internal"), "auth-method", "wrong", "internal", "authMethod: http"),
    "it trusts tokens": (option("authMethod", "jwt"), "auth-method", "wrong", "jwt", "authMethod: http"),
    "no address": (option("authHTTPAddress", ""), "auth-address", "wrong", "asks nobody", AUTH_LINE),
    "another port": (in_address(":8080", ":8081"), "auth-address", "wrong", "http://127.0.0.1:8081", AUTH_LINE),
    "another host": (in_address("127.0.0.1", "192.0.2.9"), "auth-address", "wrong", "192.0.2.9:8080", AUTH_LINE),
    "another place": (in_address("/auth", "/auth/"), "auth-address", "wrong", "asks for /auth/", AUTH_LINE),
    "https by mistake": (in_address("http:", "https:"), "auth-address", "wrong", "uses https", AUTH_LINE),
    "no secret": (in_address(IN_URL, ""), "auth-address", "wrong", "lacks MEDIAMTX_CALLBACK_SECRET", AUTH_LINE),
    "an old secret": (
        in_address("hush-hush%201%2F2", "the-old-secret"),
        "auth-address",
        "wrong",
        "another s",
        AUTH_LINE,
    ),
    "another node": (in_address("/auth", "/auth?node=b"), "auth-address", "wrong", "the node 'b'", AUTH_LINE),
    "no URL": (option("authHTTPAddress", "http://[::1/auth"), "auth-address", "wrong", "is no URL", AUTH_LINE),
    "anybody may publish": (exclude("publish"), "auth-exclude", "wrong", "may publish", "authHTTPExclude: []"),
    "on one path": (exclude("publish", path="~^x"), "auth-exclude", "wrong", "on ~^x", "authHTTPExclude: []"),
    "anybody may watch": (exclude("read"), "auth-exclude", "wrong", "READ_POLICY", "authHTTPExclude: []"),
    "the API is open": (
        both(exclude("api"), option("apiAddress", ":9997")),
        "api-exposure",
        "wrong",
        "runs commands",
        "authHTTPExclude: []\n  apiAddress: 127.0.0.1:9997",
    ),
    "open on its machine": (exclude("api"), "api-exposure", "warning", "every user of its machine", "Exclude: []"),
    "the API listens to all": (option("apiAddress", ":9997"), "api-exposure", "warning", ":9997", "apiAddress: 127.0."),
    "metrics for all": (
        both(exclude("metrics"), option("metrics", True)),
        "auth-exclude",
        "warning",
        "metrics",
        "authHTTPExclude: []",
    ),
    "no start hook": (default(start_of, ""), "hooks", "wrong", "is missing: nobody tells when a stream starts", ": >-"),
    "no end hook": (default(end_of, ""), "hooks", "wrong", "is missing: nobody tells when a stream ends", "not-ready"),
    "a hook elsewhere": (in_hook(start_of, "127.0.0.1", "192.0.2.9"), "hooks", "wrong", "calls http://192", "/ready"),
    "a hook of another place": (
        in_hook(end_of, "/webhook/not-", "/"),
        "hooks",
        "wrong",
        "asks for",
        "webhook/not-ready",
    ),
    "hooks exchanged": (
        lambda fake: fake.path_defaults.update(
            {start_of(fake): fake.path_defaults[end_of(fake)], end_of(fake): fake.path_defaults[start_of(fake)]}
        ),
        "hooks",
        "wrong",
        "asks for /webhook/not-ready and not for /webhook/ready",
        "webhook/ready",
    ),
    "a hook without the secret": (in_hook(end_of, IN_URL, ""), "hooks", "wrong", "lacks MEDIAMTX_", "mediamtx:SECRET@"),
    "a hook with an old one": (
        in_hook(start_of, "hush-hush%201%2F2", "the-old-secret"),
        "hooks",
        "wrong",
        "another secret",
        "mediamtx:SECRET@",
    ),
    "a hook that names nobody": (
        in_hook(start_of, ',"source_id":"$MTX_SOURCE_ID"', ""),
        "hooks",
        "wrong",
        "does not tell $MTX_SOURCE_ID",
        "$MTX_SOURCE_ID",
    ),
    "an end of nobody": (
        in_hook(end_of, ',"source_type":"$MTX_SOURCE_TYPE","source_id":"$MTX_SOURCE_ID"', ""),
        "hooks",
        "warning",
        "whose end it was",
        "$MTX_SOURCE_ID",
    ),
    "an open quote": (in_hook(start_of, "}'", "}"), "hooks", "wrong", "a quote that does not end", ": >-"),
    "a shell's language": (in_hook(start_of, "curl", "true && curl"), "hooks", "wrong", "without one", ": >-"),
    "a script": (default(start_of, "/usr/local/bin/tell"), "hooks", "warning", "cannot look into", ": >-"),
    "a path without a hook": (
        lambda fake: entry("cam", **{start_of(fake): ""})(fake),
        "hooks-of-paths",
        "wrong",
        "the entry cam:",
        "paths, cam: take out runOn",
    ),
    "a path with another hook": (
        lambda fake: entry("cam", **{end_of(fake): "curl http://192.0.2.9/gone"})(fake),
        "hooks-of-paths",
        "wrong",
        "calls http://192.0.2.9/gone",
        "paths, cam: take out runOn",
    ),
    "nobody takes over": (
        default("overridePublisher", False),
        "override-publisher",
        "wrong",
        "overridePublisher is off",
        "pathDefaults:\n    overridePublisher: yes",
    ),
    "nor on one path": (
        entry("cam", overridePublisher=False),
        "override-publisher",
        "wrong",
        "entry cam",
        "paths:\n    cam:\n      overridePublisher: yes",
    ),
    "no paths": (no_catch_all, "paths", "wrong", "nobody gets in", "paths:\n    all_others:"),
    "only some paths": (
        both(no_catch_all, entry("cam")),
        "paths",
        "warning",
        "only these paths may be published to, whatever a key allows: cam",
        "all_others:",
    ),
    "paths that pull": (
        both(no_catch_all, entry("cam", source="rtsp://192.0.2.1/x")),
        "paths",
        "wrong",
        "nobody gets in",
        "all_others:",
    ),
    "long patience": (option("readTimeout", "2m0s"), "read-timeout", "warning", "2m0s", "readTimeout: 10s"),
    "rtmp is off": (
        option("rtmp", False),
        "url-rtmp",
        "wrong",
        "has rtmp off",
        "rtmp: yes\nor in the environment: MEDIAMTX_RTMP_URL=off",
    ),
    "srt is off": (option("srt", False), "url-srt", "wrong", "has srt off", "MEDIAMTX_SRT_URL=off"),
    "rtmps alone": (
        option("rtmpEncryption", "strict"),
        "url-rtmp",
        "wrong",
        "encryption only",
        "MEDIAMTX_RTMP_URL=rtmps://localhost:1936",
    ),
    "hls has taken webrtc's port": (
        both(option("hlsAddress", ":8889"), option("webrtcAddress", ":8888")),
        "url-webrtc",
        "wrong",
        "webrtc on port 8888",
        "MEDIAMTX_WEBRTC_URL=http://localhost:8888",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_planted_is_found_and_mended(version, name):
    plant, check, state, text, mend = PLANTED[name]
    settings = read()
    fake = configured(version, settings)
    plant(fake)
    findings = doctor.judge(well(fake, settings))
    found = finding(findings, check)
    assert (found.state, text in found.text, mend in found.mend) == (state, True, True), found
    assert doctor.exit_code(findings) == (1 if state == "wrong" else 0)
    others = not_well(findings).keys() - {check}
    assert others <= {"auth-exclude", "api-exposure", "url-hls"}, others
    assert not [secret for secret in UNSAYABLE if secret in said(findings)]


@pytest.mark.parametrize("change", [option("metricsAddress", ":9998"), option("pprof", True)])
def test_what_nobody_reaches_may_be_open(change):
    settings = read()
    fake = configured("v1.20.1", settings)
    exclude("metrics", "pprof")(fake)
    fake.options["pprofAddress"] = "127.0.0.1:9999"
    change(fake)
    assert not_well(doctor.judge(well(fake, settings))) == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_it_says_mends_it(version):
    """Its lines, put into the file, are what it then finds right."""
    settings = read(MEDIAMTX_CALLBACK_SECRET="")
    fake = FakeMediaMTX(version)
    fake.all_others = {}
    first = doctor.judge(well(fake, settings))
    lines: list[str] = []
    for _ in range(2):  # one finding hides behind another
        for found in doctor.judge(well(fake, settings)):
            told = [line for line in found.mend.splitlines() if line.startswith("  ")]
            lines += [line.removeprefix("  ") for line in told]
        fake.load("\n".join(lines) + "\n")
    assert doctor.exit_code(first) == 1
    assert not_well(doctor.judge(well(fake, settings))) == {}


# --- what else may be wrong ---


@pytest.mark.parametrize(
    ("version", "claim_key", "state", "text"),
    [
        ("v1.20.1", "x", "ok", "v1.20.1"),
        ("v1.20.1-12-gabcdef", "x", "ok", "v1.20.1"),
        ("v1.18.2", "x", "ok", "v1.18.2"),
        (None, "x", "ok", "older than v1.15.2"),
        (None, None, "wrong", "older than v1.9"),
        ("v1.9.2", "x", "warning", "too old"),
        ("v1.21.0", "x", "warning", "newer than"),
        ("v2.0.0", "x", "warning", "newer than"),
        ("main", "x", "warning", "no version"),
    ],
)
def test_the_version(version, claim_key, state, text):
    settings = read()
    facts = well(configured("v1.20.1", settings), settings)
    assert isinstance(facts.media_server, MediaServer)
    options = msgspec.structs.replace(facts.media_server.options, authJWTClaimKey=claim_key)
    found = media.version(replace(facts, media_server=replace(facts.media_server, version=version, options=options)))
    assert found.state == state
    assert text in found.text


@pytest.mark.parametrize(
    ("version", "text", "state"),
    [
        ("v1.20.1", "2s", "wrong"),
        ("v1.18.0", "500ms", "wrong"),
        ("v1.15.6", "2s", "warning"),
        ("v1.9.3", "2s", "warning"),
        ("v1.20.1", "1d", "warning"),
        ("v1.20.1", "3s", "ok"),
        ("v1.20.1", "1m0s", "ok"),
        ("v1.20.1", "soon", "unknown"),
    ],
)
def test_the_time_that_it_waits(version, text, state):
    settings = read()
    fake = configured(version, settings)
    fake.options["readTimeout"] = text
    findings = doctor.judge(well(fake, settings))
    assert finding(findings, "read-timeout").state == state
    assert doctor.exit_code(findings) == {"wrong": 1, "unknown": 2}.get(state, 0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1m30s", 90),
        ("1h0m0s", 3600),
        ("1d", 86400),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("", None),
        ("5", None),
    ],
)
def test_a_duration(text, seconds):
    assert media.duration(text) == seconds


@pytest.mark.parametrize("skew", [40.0, -40.0])
def test_clocks_that_disagree(skew):
    settings = read()
    facts = well(configured("v1.20.1", settings), settings)
    assert isinstance(facts.media_server, MediaServer)
    assert isinstance(facts.database, Database)
    facts = replace(
        facts, media_server=replace(facts.media_server, skew=skew), database=replace(facts.database, skew=skew / 10)
    )
    findings = doctor.judge(facts)
    assert not_well(findings) == {"mediamtx-clock": "wrong", "database-clock": "warning"}
    for name in ("mediamtx-clock", "database-clock"):
        assert "timedatectl set-ntp true" in finding(findings, name).mend
        assert ("ahead of" if skew > 0 else "behind") in finding(findings, name).text


@pytest.mark.parametrize(
    ("reading", "resolution", "expected"),
    [(100.0, 0, 0), (100.4, 0, 0), (101.0, 0, 0.5), (99.0, 0, -1), (99.5, 1, 0), (98.0, 1, -1), (100.5, 1, 0)],
)
def test_a_clock_is_read_between_two_moments(reading, resolution, expected):
    assert asking.skew(reading, before=100.0, after=100.5, resolution=resolution) == pytest.approx(expected)


def database(**changes: Any) -> Database:
    state = State("16.4", False, False, 97, 12, 12, 0.0)
    of_state = {name: changes.pop(name) for name in list(changes) if name in State.__struct_fields__}
    return Database(**{"version": 160004, "state": msgspec.structs.replace(state, **of_state), **changes})


NODE = Node("default", None, None, "ok", None, None, 0, msgspec.Raw(b"[]"), False)


@pytest.mark.parametrize(
    ("found", "name", "state", "mend"),
    [
        (Absent("connection refused"), "database", "wrong", "DATABASE_URL="),
        (Database(130012), "database", "wrong", "PostgreSQL 14 or newer"),
        (database(not_applied=("0004_speed",)), "database-schema", "wrong", "run: streamorch migrate"),
        (database(schema_error="it is of another release"), "database-schema", "wrong", "DATABASE_URL="),
        (database(is_standby=True, is_read_only=True), "database-writable", "wrong", "target_session_attrs"),
        (database(is_read_only=True), "database-writable", "wrong", "RESET default_transaction_read_only"),
        (database(most_connections=10), "database-connections", "wrong", "max_connections = 100"),
        (database(open_connections=95, own_connections=5), "database-connections", "warning", "max_connections = 208"),
        (database(round_trip=0.02), "database-latency", "warning", "nearer"),
        (database(round_trip=0.3), "database-latency", "wrong", "nearer"),
        (database(node=msgspec.structs.replace(NODE, is_deaf=True)), "heard", "wrong", "control-api"),
        (database(node=msgspec.structs.replace(NODE, api="silent")), "heard", "warning", "service"),
        (
            database(node=msgspec.structs.replace(NODE, unclaimed=msgspec.Raw(b'[{"path":"x"}]'))),
            "heard",
            "warning",
            "UNKNOWN_PUBLISHERS=kick",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_database(found, name, state, mend):
    settings = read()
    facts = replace(well(configured("v1.20.1", settings), settings), database=found)
    judged = finding(doctor.judge(facts), name)
    assert judged.state == state
    assert mend in judged.mend


HERE = Instance(200, __version__, "ok", "current", "ok")


@pytest.mark.parametrize(
    ("changes", "name", "state", "text", "mend"),
    [
        ({"service": NOBODY, "callback": NOBODY}, "service", "wrong", "127.0.0.1:8080", "run: streamorch serve"),
        ({"service": NOBODY, "callback": NOBODY}, "callback", "wrong", "nobody listens", "run: streamorch serve"),
        ({"service": NOBODY}, "service", "ok", "elsewhere", ""),
        ({"service": Instance(200, None)}, "service", "wrong", "something else", "API_PORT="),
        ({"service": Instance(200, "0.0.9", "ok", "current")}, "service", "wrong", "0.0.9", "restart"),
        (
            {"service": Instance(503, __version__, "ok", "old")},
            "service",
            "wrong",
            "schema is old",
            "streamorch migrate",
        ),
        ({"service": Instance(503, __version__, "unreachable")}, "service", "wrong", "unreachable", "DATABASE_URL="),
        ({"callback": NOBODY}, "callback", "wrong", "nobody listens", "CALLBACK_URL=http://HOST:8080"),
        ({"callback": Absent("unknown", "unknown-host")}, "callback", "warning", "MediaMTX's machine", "CALLBACK_URL="),
        ({"callback": Instance(404, None)}, "callback", "wrong", "something else", "CALLBACK_URL="),
        ({"callback": Instance(200, "0.0.9")}, "callback", "wrong", "0.0.9", "restart"),
        (
            {"callback": Instance(308, None, location="https://streams.example.org/readyz")},
            "callback",
            "wrong",
            "is redirected",
            "CALLBACK_URL=https://streams.example.org,",
        ),
        ({"question": Answer(302, "https://h/auth")}, "callback", "wrong", "is redirected", "CALLBACK_URL=https://h,"),
        ({"question": Answer(401)}, "callback", "wrong", "other secrets", "the same API_SECRET"),
        ({"question": Answer(503)}, "callback", "unknown", "503", ""),
        ({"question": Absent("no answer in time", "silent")}, "callback", "unknown", "in time", ""),
        ({"media_server": NOBODY}, "control-api", "wrong", "nobody can be cut off", "api: yes\n  apiAddress: 127."),
        ({"media_server": Absent("ReadTimeout", "silent")}, "control-api", "unknown", "may be waiting", AUTH_LINE),
        ({"media_server": Absent("status 500")}, "control-api", "unknown", "status 500", "MEDIAMTX_API_URL="),
        ({"media_server": Absent("", "unauthorized")}, "control-api", "wrong", "asks somebody else", AUTH_LINE),
        (
            {"media_server": Absent("", "unauthorized"), "question": Answer(401)},
            "control-api",
            "wrong",
            "our credential",
            "callback",
        ),
        (
            {"media_server": Absent("", "unauthorized"), "callback": NOBODY, "question": NOBODY},
            "control-api",
            "wrong",
            "does not run",
            "run: streamorch serve",
        ),
    ],
)
def test_the_service_and_the_control_api(changes, name, state, text, mend):
    settings = read()
    facts = replace(well(configured("v1.20.1", settings), settings), **changes)
    judged = finding(doctor.judge(facts), name)
    assert (judged.state, text in judged.text, mend in judged.mend) == (state, True, True), judged


@pytest.mark.parametrize(
    ("environ", "found", "state", "mend"),
    [
        ({"MEDIAMTX_RTMP_URL": "rtmp://localhost:1936"}, NOBODY, "wrong", "MEDIAMTX_RTMP_URL=rtmp://localhost:1935"),
        ({"MEDIAMTX_RTMP_URL": "rtmp://localhost:1936"}, NOBODY, "wrong", "rtmpAddress: :1936"),
        ({"MEDIAMTX_RTMP_URL": "rtmp://localhost:8554"}, Answer(), "wrong", "MEDIAMTX_RTMP_URL=rtmp://localhost:1935"),
        ({"MEDIAMTX_RTMP_URL": "rtmp://cdn.example.org:443"}, Answer(), "ok", ""),
        ({"MEDIAMTX_RTMP_URL": "rtmps://localhost:1936"}, NOBODY, "wrong", "rtmpEncryption: optional"),
        ({"MEDIAMTX_RTMP_URL": "rtmps://localhost:1936"}, NOBODY, "wrong", "=rtmp://localhost:1935"),
        ({"MEDIAMTX_RTMP_URL": "rtmp://localhost"}, NOBODY, "wrong", "restart MediaMTX"),
        ({"MEDIAMTX_RTMP_URL": "rtmp://media.example.org"}, NOBODY, "warning", "from outside"),
        ({"MEDIAMTX_HLS_URL": "https://media.example.org/hls"}, Answer(404), "ok", ""),
        ({"MEDIAMTX_HLS_URL": "https://media.example.org/hls"}, Answer(502), "wrong", "upstream"),
        ({"MEDIAMTX_HLS_URL": "https://[2001:db8::1]:444/hls"}, NOBODY, "wrong", "=http://[2001:db8::1]:8888/hls"),
        ({"MEDIAMTX_RTSP_URL": "rtsp://localhost"}, NOBODY, "wrong", "MEDIAMTX_RTSP_URL=rtsp://localhost:8554"),
        ({"MEDIAMTX_SRT_URL": "srt://localhost:8891"}, NOBODY, "wrong", "srtAddress: :8891"),
    ],
)
def test_the_urls_that_are_shown(environ, found, state, mend):
    settings = read(**environ)
    protocol = next(iter(environ)).split("_")[1].lower()
    facts = well(configured("v1.20.1", settings), settings)
    facts = replace(facts, public={**facts.public, protocol: found})
    judged = finding(doctor.judge(facts), f"url-{protocol}")
    assert (judged.state, mend in judged.mend) == (state, True), judged


def test_rtsps_is_where_each_version_has_it():
    for version, name in (("v1.9.3", "encryption"), ("v1.12.3", "rtspEncryption")):
        settings = read(MEDIAMTX_RTSP_URL="rtsps://localhost:8322")
        fake = configured(version, settings)
        assert not_well(doctor.judge(well(fake, settings))) == {"url-rtsp": "wrong"}
        fake.options[name] = "optional"
        findings = doctor.judge(well(fake, settings))
        assert not_well(findings) == {}
        assert finding(findings, "url-rtsp").text == "rtsps://localhost:8322 answers"


@pytest.mark.parametrize(
    ("asked", "state"),
    [(HERE, "warning"), (Instance(404, None), "wrong"), (NOBODY, "wrong")],
)
def test_an_address_that_leads_to_a_streamorch_may_be_right(asked, state):
    settings = read()
    fake = configured("v1.20.1", settings)
    for change in (in_address, *(lambda o, n, h=hook: in_hook(h, o, n) for hook in (start_of, end_of))):
        change("127.0.0.1:8080", "streamorch:8080")(fake)
    facts = well(fake, settings)
    assert isinstance(facts.media_server, MediaServer)
    findings = doctor.judge(replace(facts, media_server=replace(facts.media_server, asked=asked)))
    assert finding(findings, "auth-address").state == state
    assert "CALLBACK_URL=http://streamorch:8080" in finding(findings, "auth-address").mend
    assert finding(findings, "hooks").state == ("ok" if asked is HERE else "wrong")


def test_old_names_of_hooks_are_told():
    settings = read()
    fake = configured("v1.20.1", settings)
    for old, new in (("runOnReady", "runOnOnline"), ("runOnNotReady", "runOnOffline")):
        fake.path_defaults[old] = fake.path_defaults[new]
        fake.path_defaults[new] = ""
    findings = doctor.judge(well(fake, settings))
    assert not_well(findings) == {"hooks": "warning"}
    assert "runOnReady is not for paths" in finding(findings, "hooks").text
    assert "runOnOffline: >-" in finding(findings, "hooks").mend


@pytest.mark.parametrize(
    "header",
    [
        "-H 'Authorization: Bearer hush-hush 1/2'",
        "--header='Authorization: Basic eDpodXNoLWh1c2ggMS8y'",
        "-H 'Authorization: $MINE'",
    ],
)
def test_the_secret_of_a_hook_may_come_in_a_header(header):
    settings = read()
    fake = configured("v1.20.1", settings)
    for name in (start_of, end_of):
        in_hook(name, IN_URL, "")(fake)
        in_hook(name, "-sS", f"-sS {header}")(fake)
    assert not_well(doctor.judge(well(fake, settings))) == {}


@pytest.mark.parametrize("hooks", ["curl", "wget"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_secret_that_is_to_go_works_and_the_lines_to_change_are_told(version, hooks):
    """Before it is taken out of the list; when those lines are changed all is well, and stays so without it."""
    old, both, new = (
        read(MEDIAMTX_CALLBACK_SECRET=text)
        for text in ("hush-hush-old $1", "hush-hush-new,hush-hush-old $1", "hush-hush-new")
    )
    fake = configured(version, old, hooks=hooks)
    findings = doctor.judge(well(fake, both))
    assert not_well(findings) == {"auth-address": "warning", "hooks": "warning"}
    assert doctor.exit_code(findings) == 0
    for name in ("auth-address", "hooks"):
        assert "is not the first any more" in finding(findings, name).text
        assert "SECRET" in finding(findings, name).mend
    assert "hush" not in said(findings)
    assert not_well(doctor.judge(well(fake, new))) == {"auth-address": "wrong", "hooks": "wrong"}
    fake.load(mediamtx_config.config(both, version=numbers(version), hooks=hooks))
    for settings in (both, new):
        assert not_well(doctor.judge(well(fake, settings))) == {}


def test_the_first_of_the_list_is_no_older_one_if_it_stands_there_twice():
    settings = read(MEDIAMTX_CALLBACK_SECRET="hush-hush-01,hush-hush-02,hush-hush-01")
    fake = configured("v1.20.1", settings)
    in_hook(start_of, "-sS", "-sS -m 9")(fake)  # not as we print it, so it is looked into
    assert not_well(doctor.judge(well(fake, settings))) == {}


def test_another_secret_in_a_header_is_none():
    settings = read()
    fake = configured("v1.20.1", settings)
    in_hook(start_of, IN_URL, "")(fake)
    in_hook(start_of, "-sS", "-sS -H 'Authorization: Bearer the-old-secret'")(fake)
    findings = doctor.judge(well(fake, settings))
    assert not_well(findings) == {"hooks": "wrong"}
    assert "lacks MEDIAMTX_CALLBACK_SECRET" in finding(findings, "hooks").text


def test_a_public_read_policy_has_nothing_to_protect():
    settings = read(READ_POLICY="public", READ_SECRET="")
    fake = configured("v1.20.1", settings)
    exclude("read", "playback")(fake)
    assert not_well(doctor.judge(well(fake, settings))) == {}


@pytest.mark.parametrize(
    ("environ", "state", "mend"),
    [
        ({"API_SECRET": ""}, "wrong", "API_SECRET"),
        ({"LOG_LEVEL": "loud"}, "wrong", "LOG_LEVEL"),
        ({"API_HOST": "192.0.2.1", "MEDIAMTX_CALLBACK_SECRET": ""}, "warning", "MEDIAMTX_CALLBACK_SECRET="),
        ({"API_HOST": "192.0.2.1", "METRICS_PORT": "9464", "METRICS_SECRET": ""}, "warning", "METRICS_SECRET="),
        ({"API_SECRET": "short"}, "warning", "API_SECRET=… , a new one before the old: NEW,OLD"),
        ({"READ_SECRET": "short"}, "warning", "READ_SECRET=… , a longer one"),
    ],
)
def test_the_settings(environ, state, mend, tmp_path):
    everything_off = {f"MEDIAMTX_{name}_URL": "off" for name in ("HLS", "WEBRTC", "RTMP", "RTSP", "SRT")}
    nowhere = {"DATABASE_URL": "postgresql:///x?host=/nowhere", "MEDIAMTX_API_URL": NO_MEDIA_SERVER}
    home = {"STREAMORCH_HOME": str(tmp_path), "API_PORT": str(free_port())}
    findings = doctor.examine(ENVIRON | everything_off | nowhere | home | environ)
    assert (findings[0].name, findings[0].state) == ("settings", state)
    assert mend in findings[0].mend
    assert finding(findings, "database").state == ("wrong" if state == "warning" else "skipped")


def test_a_callback_url_that_mediamtx_cannot_use_is_told():
    settings = read(CALLBACK_URL="http://h/$HOME")
    findings = doctor.judge(well(configured("v1.20.1", read()), settings))
    assert finding(findings, "auth-address").state == "wrong"
    assert finding(findings, "auth-address").text.startswith("CALLBACK_URL cannot stand")


def test_a_secret_in_the_words_of_others_is_blotted():
    settings = read()
    reason = 'no entry for user "streamorch", password "db-password"; hush-hush%201%2F2 api-secret-of-a-test'
    facts = replace(well(configured("v1.20.1", settings), settings), database=Absent(reason))
    findings = doctor.judge(facts)
    assert 'password "SECRET"; SECRET SECRET' in finding(findings, "database").text
    assert not [secret for secret in UNSAYABLE if secret in said(findings)]


def test_secrets_are_blotted_as_words():
    assert without_secrets("a pass=abc, abcd, %61 abc.", ["abc"]) == "a pass=SECRET, abcd, %61 SECRET."


def test_each_check_has_a_name_of_its_own():
    names = [check.name for check in doctor.CHECKS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["facts", "verdicts", "own", "media", "hooks", "public"])
def test_who_judges_asks_nobody(name):
    tree = ast.parse((ROOT / "streamorch" / "doctor" / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"socket", "ssl", "http.client", "requests", "psycopg", "threading", "time", "os"}
    assert "streamorch.doctor.asking" not in imported


# --- over the wire ---


@contextmanager
def serving(app: flask.Flask, port: int) -> Iterator[None]:
    """The application on a port, as gunicorn would have it."""
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


@contextmanager
def silence() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def refusing() -> Iterator[int]:
    """A port that refuses TCP and UDP. It is kept, so that no other process listens there meanwhile."""
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        tcp.bind(udp.getsockname())
        udp.connect(("127.0.0.1", 9))  # whoever else sends something is refused
        yield udp.getsockname()[1]


@contextmanager
def srt_listener(answers: bool = True) -> Iterator[int]:
    """Answers the first packet of a handshake as a listener does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))

        def serve() -> None:
            try:
                while True:
                    packet, client = listener.recvfrom(1500)
                    if packet == b"stop":
                        return
                    if answers and len(packet) == 64 and packet[:4] == b"\x80\0\0\0" and packet[36:40] == b"\0\0\0\1":
                        listener.sendto(packet, client)
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ender:
            ender.sendto(b"stop", listener.getsockname())
        thread.join(5)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def place(database_url: str, port: int, tmp_path: Path) -> dict[str, str]:
    """The settings of a service on this port; every protocol is off."""
    return {
        "DATABASE_URL": database_url,
        "API_SECRET": API_SECRET,
        "API_PORT": str(port),
        "MEDIAMTX_CALLBACK_SECRET": SECRET,
        "MEDIAMTX_API_URL": NO_MEDIA_SERVER,
        "STREAMORCH_HOME": str(tmp_path),
        **{f"MEDIAMTX_{name}_URL": "off" for name in ("HLS", "WEBRTC", "RTMP", "RTSP", "SRT")},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_all_is_well_over_the_wire(version, place, port, make_app):
    """The Control API asks the service whether the doctor may look: so all secrets are right, too."""
    with FakeMediaMTX(version, f"http://m:hush-hush%201%2F2@127.0.0.1:{port}", nested_auth=True) as fake:
        place |= {
            "MEDIAMTX_API_URL": fake.url,
            "MEDIAMTX_HLS_URL": f"{fake.url}/hls",
            "MEDIAMTX_RTMP_URL": "rtmp" + fake.url[4:],
        }
        fake.load(mediamtx_config.config(Settings.from_env(place), version=numbers(version)))
        fake.options |= {"hlsAddress": f":{fake.port}", "rtmpAddress": f":{fake.port}"}
        with serving(make_app(**place), port):
            findings = doctor.examine(place)
    assert not_well(calm(findings)) == {}
    told = "v1.15.2" if numbers(version) < (1, 15, 2) else version
    assert told in finding(findings, "mediamtx-version").text
    assert f"{fake.url}/hls answers" in finding(findings, "url-hls").text
    assert all(call.method == "GET" for call in fake.calls)


def test_what_is_wrong_over_the_wire(place, port, make_app):
    with FakeMediaMTX("v1.20.1") as fake, refusing() as nobody:
        place |= {"MEDIAMTX_API_URL": fake.url, "MEDIAMTX_RTMP_URL": f"rtmp://127.0.0.1:{nobody}"}
        fake.load(mediamtx_config.config(Settings.from_env(place)))
        fake.options |= {
            "authMethod": "internal",
            "authHTTPAddress": f"http://x:the-old-secret@127.0.0.1:{nobody}/auth",
        }
        fake.clock_ahead = 100
        with serving(make_app(**place), port):
            findings = doctor.examine(place)
    assert {name for name, state in not_well(calm(findings)).items() if state == "wrong"} == {
        "auth-method",
        "auth-address",
        "mediamtx-clock",
        "url-rtmp",
    }
    assert (
        "is 99 s ahead" in finding(findings, "mediamtx-clock").text
        or "100 s" in finding(findings, "mediamtx-clock").text
    )
    assert not [secret for secret in (*UNSAYABLE, API_SECRET) if secret in said(findings)]


def test_who_answers_at_another_address_is_asked_without_a_credential(place, port, make_app):
    with FakeMediaMTX("v1.20.1") as fake, FakeMediaMTX("v1.20.1") as other:
        place |= {"MEDIAMTX_API_URL": fake.url}
        fake.load(mediamtx_config.config(Settings.from_env(place)))
        fake.options["authHTTPAddress"] = f"{other.url}/some/auth"
        with serving(make_app(**place), port):
            findings = doctor.examine(place)
    assert [(call.method, call.target) for call in other.calls] == [("GET", "/some/readyz")]
    assert "no streamorch answers there" in finding(findings, "auth-address").text


def test_a_credential_of_mediamtx_is_not_sent():
    with FakeMediaMTX("v1.20.1", user="x", password="the-old-secret") as other:
        address = f"{other.url.replace('//', '//x:the-old-secret@')}/auth"
        asked = asking._who_is_asked(address, read())
    assert isinstance(asked, Instance)
    assert asked.status == 401


def test_a_secret_that_the_service_does_not_know(place, port, make_app):
    with FakeMediaMTX("v1.20.1", f"http://m:hush-hush%201%2F2@127.0.0.1:{port}", nested_auth=True) as fake:
        place |= {"MEDIAMTX_API_URL": fake.url}
        with serving(make_app(**place), port):
            findings = doctor.examine(place | {"API_SECRET": "another-secret"})
    assert not_well(calm(findings))["callback"] == "wrong"
    assert "streamorch does not know our credential" in finding(findings, "control-api").text


def test_a_media_server_that_asks_with_the_wrong_secret(place, port, make_app):
    with FakeMediaMTX("v1.20.1", f"http://m:wrong@127.0.0.1:{port}", nested_auth=True) as fake:
        place |= {"MEDIAMTX_API_URL": fake.url}
        with serving(make_app(**place), port):
            findings = doctor.examine(place)
    found = finding(findings, "control-api")
    assert found.state == "wrong"
    assert f"authHTTPAddress: http://mediamtx:SECRET@127.0.0.1:{port}/auth" in found.mend
    assert finding(findings, "auth-method").state == "skipped"


@pytest.mark.own_database
def test_an_old_schema_over_the_wire(place, conn):
    conn.execute("DELETE FROM streamorch_migrations WHERE name LIKE '0004%%'", {})
    findings = doctor.examine(place)
    assert finding(findings, "database-schema").state == "wrong"
    assert "0004_speed not applied yet" in finding(findings, "database-schema").text
    assert finding(findings, "database-schema").mend == "run: streamorch migrate"
    assert finding(findings, "heard").state == "unknown"
    conn.execute("INSERT INTO streamorch_migrations VALUES ('9999_later', 'x')")
    found = finding(doctor.examine(place), "database-schema")
    assert (found.state, "newer than this release" in found.text) == ("wrong", True)


def test_a_database_that_takes_no_writes(place):
    place["DATABASE_URL"] += "&options=-c%20default_transaction_read_only%3Don"
    assert finding(doctor.examine(place), "database-writable").state == "wrong"


def test_the_database_is_told_about(place, conn):
    findings = doctor.examine(place)
    assert {f.name: f.state for f in calm(findings) if f.name.startswith("database")} == {
        name: "ok"
        for name in (
            "database",
            "database-schema",
            "database-writable",
            "database-connections",
            "database-clock",
        )
    }
    assert f"PostgreSQL {conn.info.server_version // 10000}." in finding(findings, "database").text


def test_without_a_database_url_and_a_run_the_rest_is_judged(place):
    del place["DATABASE_URL"]
    findings = doctor.examine(place)
    assert "no `streamorch run` is going on here" in finding(findings, "database").text
    assert finding(findings, "service").state == "wrong"


def test_the_secret_of_a_run_is_found(place, tmp_path):
    del place["API_SECRET"]
    assert finding(doctor.examine(place), "settings").state == "wrong"
    (tmp_path / "api_secret").write_text(API_SECRET)
    assert finding(doctor.examine(place), "settings").state == "ok"


@pytest.mark.slow
def test_it_ends_when_everybody_hangs(place):
    """All in one process, its end included; each of them takes the connection and says nothing."""
    with FakeMediaMTX("v1.20.1") as fake, silence() as database_port, silence() as service_port, silence() as hls_port:
        fake.hang()
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MEDIAMTX_", "API_"))},
            **place,
            "DATABASE_URL": f"postgresql://u:db-password@127.0.0.1:{database_port}/x",
            "API_PORT": str(service_port),
            "MEDIAMTX_API_URL": fake.url,
            "MEDIAMTX_HLS_URL": f"http://127.0.0.1:{hls_port}",
        }
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "streamorch", "doctor", "--json"],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        took = time.monotonic() - began
    assert done.returncode == 1, done.stderr
    assert took < 15  # ten are promised, on a machine that is not busy
    states = {found["name"]: found["state"] for found in json.loads(done.stdout)["findings"]}
    assert states["database"] == states["service"] == states["callback"] == "wrong"
    assert states["control-api"] == "unknown"
    assert states["auth-method"] == states["database-schema"] == "skipped"
    assert "db-password" not in done.stdout + done.stderr


def test_a_question_that_is_late_or_fails_is_told():
    released = threading.Event()

    def fail() -> None:
        raise ValueError("with a secret in it")

    answers = asking.at_once({"late": lambda: released.wait(30), "bad": fail, "good": lambda: 7}, seconds=0.2)
    released.set()
    assert answers["late"].kind == "silent"
    assert answers["bad"] == Absent("asking failed: ValueError")
    assert answers["good"] == 7


def test_a_public_url_of_every_protocol_is_tried(fake):
    with silence() as tcp, srt_listener() as srt, srt_listener(answers=False) as mute:
        assert asking._public(f"rtmp://localhost:{tcp}/live") == Answer()
        assert asking._public(f"rtsp://127.0.0.1:{tcp}") == Answer()
        assert asking._public(f"srt://127.0.0.1:{srt}") == Answer()
        assert asking._public(f"srt://127.0.0.1:{mute}") == Absent("no answer in time", "silent")
    found = asking._public(f"{fake.url}/x")
    assert isinstance(found, Answer)
    assert found.status == 404
    with refusing() as nobody:
        for scheme in ("http", "https", "rtmp", "rtsps", "srt"):
            assert asking._public(f"{scheme}://127.0.0.1:{nobody}") == NOBODY
    assert asking._public(f"https://127.0.0.1:{fake.port}") == Absent("it does not speak TLS", "broken")
    assert asking._public("http://nowhere.invalid") == Absent(
        "its host name is not known to this machine", "unknown-host"
    )


def test_a_redirect_is_told_and_not_followed(fake):
    fake.answer(308, location="https://streams.example.org/readyz")
    assert asking._instance(fake.url) == Instance(308, None, location="https://streams.example.org/readyz")


# --- the command ---


def test_the_command_prints_what_is_found(place, monkeypatch):
    for name in os.environ:
        if name.startswith(("API_", "CALLBACK_", "DATABASE_", "MEDIAMTX_", "READ_")):
            monkeypatch.delenv(name)
    result = CliRunner().invoke(__main__.main, ["doctor"], env=place)
    assert result.exit_code == 1
    assert "ok       database" in result.output
    assert "wrong    control-api" in result.output
    assert "run: streamorch serve" in result.output
    result = CliRunner().invoke(__main__.main, ["doctor", "--json"], env=place)
    told = json.loads(result.output)
    assert (result.exit_code, told["exit_code"]) == (1, 1)
    assert [each["name"] for each in told["findings"]] == [check.name for check in doctor.CHECKS]
    assert set(told["findings"][0]) == {"name", "state", "text", "mend"}


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["ok", "ok"], 0),
        (["ok", "warning"], 0),
        (["ok", "skipped"], 2),
        (["unknown", "warning"], 2),
        (["skipped", "wrong", "unknown"], 1),
    ],
)
def test_the_exit_code(states, code):
    assert doctor.exit_code([Finding("x", state, "") for state in states]) == code


def test_the_service_does_not_load_it():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, streamorch.__main__; print('streamorch.doctor' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "False"
