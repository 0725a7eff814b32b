"""The files in ops/ name what there is: settings that are read, files that exist, ports and paths of this service."""

import configparser
import re
from pathlib import Path

import pytest

from streamorch import mediamtx_config
from streamorch.settings import Settings

TOP = Path(__file__).resolve().parent.parent
OPS = TOP / "ops"
PROXIES = ("nginx.conf", "Caddyfile")
# Not ours: Python's, PostgreSQL's image's, MediaMTX's, and what the compose file itself is told.
OTHERS = {
    "PYTHONUNBUFFERED",
    "PATH",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD_FILE",
    "MTX_WEBRTCADDITIONALHOSTS",
    "PUBLIC_HOST",
}


def text(name: str) -> str:
    return (OPS / name).read_text()


@pytest.mark.parametrize("name", ["streamorch.service", "Dockerfile", "compose.yml", *PROXIES])
def test_every_setting_is_one_that_is_read(name):
    known = set(re.findall(r'"([A-Z_]{4,})"', (TOP / "streamorch/settings.py").read_text()))
    named = set(re.findall(r"\b([A-Z]+(?:_[A-Z]+)+)(?:=|:)", text(name))) - OTHERS
    assert named
    assert {setting.removesuffix("_FILE") for setting in named} <= known


def test_the_image_has_all_that_the_wheel_needs():
    copied = set(
        re.findall(r"(\S+)/? ", " ".join(re.findall(r"^COPY (?!--)(.+) \S+$", text("Dockerfile"), re.MULTILINE)) + " ")
    )
    wanted = {name.strip("/") for name in copied}
    assert wanted == {line[1:] for line in text("Dockerfile.dockerignore").splitlines() if line.startswith("!")}
    assert wanted == {
        "setup.cfg", "setup.py", "constraints.txt", "README.rst", "gunicorn.conf.py", "streamorch", "sql", "mediamtx",
    }  # fmt: skip
    assert all((TOP / name).exists() for name in wanted)


def test_images_are_pinned_by_version():
    images = re.findall(r"^FROM (\S+)|^\s+image: (\S+:\S+)$", text("Dockerfile") + text("compose.yml"), re.MULTILINE)
    assert len(images) == 4
    assert all(re.search(r":\d+\.\d+", one or other) for one, other in images)


def test_the_compose_file_starts_mediamtx_with_hooks_that_its_image_can_run():
    compose = text("compose.yml")
    hooks = re.search(r"--hooks (\w+)", compose)
    assert hooks
    assert hooks[1] in mediamtx_config.HOOKS
    assert re.search(r"bluenviron/mediamtx:[\d.]+-ffmpeg", compose)
    told = dict(re.findall(r"^    ((?:CALLBACK|MEDIAMTX)\w+URL): (\S+)$", compose, re.MULTILINE))
    told["MEDIAMTX_PUBLIC_URL"] = "http://media.example.org:8889"
    settings = Settings.from_env({"API_SECRET": "x", "DATABASE_URL": "postgresql:///x"} | told)
    made = mediamtx_config.config(settings, hooks=hooks[1], version=mediamtx_config.CURRENT)
    assert "authHTTPAddress: http://streamorch:8080/auth" in made
    assert "apiAddress: :9997" in made


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_hands_nobody_what_mediamtx_calls_and_believes_no_client(name):
    conf = text(name)
    assert "/auth" in conf
    assert "/webhook/" in conf
    assert "X-Forwarded-Prefix" in conf
    assert {"8080", "8888", "8889"} <= set(re.findall(r"127\.0\.0\.1:(\d+)", conf))
    webrtc = re.search(r"/\(whep\|whip\)\S+\$", conf)
    assert webrtc
    for path, is_webrtc in {
        "/live/a/whep": True,
        "/live/a/whip": True,
        "/live/a/whep/0c-1": True,
        "/live/a/index.m3u8": False,
        "/live/a/": False,
        "/live/whepper/seg1.m4s": False,
    }.items():
        assert bool(re.search(webrtc[0], path)) == is_webrtc, path


def test_pgbouncer_keeps_prepared_statements():
    ini = configparser.ConfigParser(comment_prefixes=(";",))
    ini.read(OPS / "pgbouncer.ini")
    assert ini["pgbouncer"]["pool_mode"] == "transaction"
    assert int(ini["pgbouncer"]["max_prepared_statements"]) >= 100
