"""Settings: each default, each value, and one clear line for each that is wrong."""

import ipaddress

import pytest

from streamorch import signing
from streamorch.settings import SettingError, Settings

NEEDED = {"DATABASE_URL": "postgresql://u:hush@h/db", "API_SECRET": "this-is-the-secret"}
DEFAULTS = {
    "api_host": "127.0.0.1",
    "api_port": 8080,
    "callback_url": "http://127.0.0.1:8080",
    "callback_secrets": (),
    "mediamtx_bin": "mediamtx",
    "mediamtx_api_url": "http://localhost:9997",
    "mediamtx_api_user": "streamorch",
    "metrics_secret": None,
    "read_policy": "public",
    "read_secret": None,
    "unknown_publishers": "report",
    "reconcile_seconds": 2.0,
    "lease_seconds": 20,
    "history_days": 0,
    "trusted_proxies": (),
    "cors_origins": (),
    "log_level": "info",
    "metrics_enabled": True,
    "metrics_port": None,
    "tracing": False,
    "trace_ratio": 0.01,
    "trace_service": "streamorch",
    "trace_version": None,
}


def read(**environ):
    return Settings.from_env(NEEDED | environ)


def refusal(**environ):
    with pytest.raises(SettingError) as caught:
        read(**environ)
    line = str(caught.value)
    assert line
    assert "\n" not in line
    return line


def test_two_settings_are_needed_and_the_others_have_defaults():
    settings = read()
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS
    assert (settings.database_url, settings.api_secrets) == (NEEDED["DATABASE_URL"], (NEEDED["API_SECRET"],))
    assert settings.mediamtx_api_passwords == (signing.media_server_password(NEEDED["API_SECRET"]),)
    assert str(settings.home) == ".streamorch"


def test_an_empty_value_is_none_at_all():
    assert (
        read(**dict.fromkeys(("API_PORT", "READ_POLICY", "LOG_LEVEL", "CORS_ORIGINS", "CALLBACK_URL"), " ")) == read()
    )
    assert "API_SECRET is not set" in refusal(API_SECRET="  ")
    assert "DATABASE_URL is not set" in refusal(DATABASE_URL="")


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("API_HOST", "0.0.0.0", "api_host", "0.0.0.0"),  # noqa: S104
        ("API_HOST", "::", "api_host", "::"),
        ("API_PORT", " 9000 ", "api_port", 9000),
        ("API_SECRET", "new, old ,", "api_secrets", ("new", "old")),
        ("DATABASE_URL", "postgres://h/db", "database_url", "postgres://h/db"),
        ("DATABASE_URL", "host=/run dbname=x", "database_url", "host=/run dbname=x"),
        ("CALLBACK_URL", "https://s.example.org/x/", "callback_url", "https://s.example.org/x"),
        ("MEDIAMTX_CALLBACK_SECRET", "hush hush", "callback_secrets", ("hush hush",)),
        ("MEDIAMTX_CALLBACK_SECRET", "new, old ,", "callback_secrets", ("new", "old")),
        ("MEDIAMTX_CALLBACK_SECRET", "new, old ,", "callback_secret", "new"),
        ("MEDIAMTX_CALLBACK_SECRET", "", "callback_secret", None),
        ("MEDIAMTX_BIN", "/opt/mediamtx", "mediamtx_bin", "/opt/mediamtx"),
        ("MEDIAMTX_BIN", "Off", "mediamtx_bin", None),
        ("MEDIAMTX_API_URL", "http://m:9997/", "mediamtx_api_url", "http://m:9997"),
        ("MEDIAMTX_API_USER", "boss", "mediamtx_api_user", "boss"),
        ("MEDIAMTX_API_PASSWORD", "pw", "mediamtx_api_passwords", ("pw",)),
        ("METRICS_ENABLED", "False", "metrics_enabled", False),
        ("METRICS_ENABLED", "on", "metrics_enabled", True),
        ("METRICS_PORT", "9464", "metrics_port", 9464),
        ("METRICS_SECRET", "scrape", "metrics_secret", "scrape"),
        ("TRACING_SAMPLERATE", "0.25", "trace_ratio", 0.25),
        ("TRACING_SERVICE", "gate", "trace_service", "gate"),
        ("TRACING_VERSION", "7", "trace_version", "7"),
        ("READ_POLICY", "DENY", "read_policy", "deny"),
        ("READ_SECRET", "hush", "read_secret", "hush"),
        ("UNKNOWN_PUBLISHERS", "kick", "unknown_publishers", "kick"),
        ("RECONCILE_SECONDS", "0.5", "reconcile_seconds", 0.5),
        ("LEASE_SECONDS", "7", "lease_seconds", 7),
        ("HISTORY_DAYS", "90", "history_days", 90),
        ("CORS_ORIGINS", "https://a.b, http://c:1", "cors_origins", ("https://a.b", "http://c:1")),
        ("CORS_ORIGINS", "*", "cors_origins", ("*",)),
        ("CORS_ORIGINS", "http://[::1]:3000", "cors_origins", ("http://[::1]:3000",)),
        ("WEB_CONCURRENCY", "4", "workers", 4),
        ("LOG_LEVEL", "Debug", "log_level", "debug"),
        (
            "TRUSTED_PROXIES",
            "10.0.0.0/8, 192.0.2.1,fd00::/8, 10.1.2.3/16",
            "trusted_proxies",
            tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "192.0.2.1", "fd00::/8", "10.1.0.0/16"))),
        ),
    ],
)
def test_a_value_is_read(name, value, field, expected):
    assert getattr(read(**{name: value}), field) == expected


def test_the_credentials_of_all_secrets_are_accepted_and_the_first_is_used():
    derived = tuple(map(signing.media_server_password, ("new", "old")))
    assert read(API_SECRET="new,old").mediamtx_api_passwords == derived


def test_the_callback_url_follows_the_port():
    assert read(API_PORT="9000").callback_url == "http://127.0.0.1:9000"


@pytest.mark.parametrize("policy", ["secret", " SECRET "])
def test_a_read_policy_of_a_secret_needs_one(policy):
    assert refusal(READ_POLICY=policy) == "READ_POLICY=secret needs READ_SECRET"
    assert read(READ_POLICY=policy, READ_SECRET="x").read_policy == "secret"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_SECRET", ""),
        ("API_SECRET", " , ,"),
        ("API_SECRET", "a\x07b"),
        ("API_SECRET", "a\nb"),
        ("MEDIAMTX_CALLBACK_SECRET", "a\nb"),
        ("MEDIAMTX_CALLBACK_SECRET", "new,ü"),
        ("MEDIAMTX_CALLBACK_SECRET", " , ,"),
        ("API_PORT", "0"),
        ("API_PORT", "65536"),
        ("API_PORT", "80.5"),
        ("API_PORT", "http"),
        ("API_PORT", "nan"),
        ("API_PORT", "inf"),
        ("DATABASE_URL", "mysql://h/db"),
        ("DATABASE_URL", "somewhere"),
        ("CALLBACK_URL", "127.0.0.1:8080"),
        ("CALLBACK_URL", "ftp://h"),
        ("CALLBACK_URL", "http://h h"),
        ("CALLBACK_URL", "http://[::1"),
        ("MEDIAMTX_API_URL", "localhost:9997"),
        ("MEDIAMTX_API_URL", "http://h:port"),
        ("READ_POLICY", "private"),
        ("READ_POLICY", "token"),
        ("UNKNOWN_PUBLISHERS", "ignore"),
        ("RECONCILE_SECONDS", "0"),
        ("RECONCILE_SECONDS", "fast"),
        ("LEASE_SECONDS", "4"),
        ("LEASE_SECONDS", "1.5"),
        ("LEASE_SECONDS", "-20"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "10.0.0.1, proxy.example.org"),
        ("CORS_ORIGINS", "viewer.example.org"),
        ("CORS_ORIGINS", "https://viewer.example.org/"),
        ("CORS_ORIGINS", "https://a.b, ftp://c.d"),
        ("CORS_ORIGINS", "https://"),
        ("CORS_ORIGINS", "https://[::1"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_CONCURRENCY", "26"),
        ("WEB_CONCURRENCY", "two"),
        ("API_THREADS", "0"),
        ("LOG_LEVEL", "verbose"),
        ("METRICS_ENABLED", "perhaps"),
        ("METRICS_PORT", "65536"),
        ("METRICS_PORT", "8080"),
        ("METRICS_SECRET", "ü"),
    ],
)
def test_a_bad_value_is_one_clear_line(name, value):
    assert name in refusal(**{name: value})


def test_a_line_tells_no_secret():
    assert "hush" not in refusal(DATABASE_URL="mysql://u:hush@h/db")
    assert "hush" not in refusal(API_SECRET="hush\x07")
    assert "hush" not in refusal(MEDIAMTX_PUBLIC_URL="ftp://u:hush@h")


def test_settings_show_no_secret():
    secrets = {
        "API_SECRET": "hush-1",
        "MEDIAMTX_CALLBACK_SECRET": "hush-2",
        "MEDIAMTX_API_PASSWORD": "hush-3",
        "READ_SECRET": "hush-4",
        "METRICS_SECRET": "hush-5",
    }
    settings = read(**secrets)
    assert "hush" not in repr(settings)
    assert "hush" not in f"{settings}"


# --- NAME_FILE ---

SECRETS = {
    "API_SECRET": "api_secrets",
    "DATABASE_URL": "database_url",
    "MEDIAMTX_CALLBACK_SECRET": "callback_secrets",
    "MEDIAMTX_API_PASSWORD": "mediamtx_api_passwords",
    "READ_SECRET": "read_secret",
    "METRICS_SECRET": "metrics_secret",
}


@pytest.mark.parametrize(("name", "field"), SECRETS.items())
def test_a_secret_may_be_in_a_file(name, field, tmp_path):
    file = tmp_path / "secret"
    file.write_text("postgresql://of/a-file\n", encoding="utf-8")
    environ = {key: value for key, value in NEEDED.items() if key != name} | {f"{name}_FILE": f" {file} "}
    assert "postgresql://of/a-file" in str(getattr(Settings.from_env(environ), field))


def test_a_value_and_a_file_are_one_too_many(tmp_path):
    file = tmp_path / "secret"
    file.write_text("x")
    assert refusal(API_SECRET_FILE=str(file)) == "API_SECRET and API_SECRET_FILE are both set; keep one"


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path):
    garbled = tmp_path / "garbled"
    garbled.write_bytes(b"\xff\xfe")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for file, reason in ((tmp_path / "absent", "No such file"), (tmp_path, "directory"), (garbled, "is not text")):
        line = refusal(API_SECRET="", API_SECRET_FILE=str(file))
        assert "API_SECRET_FILE" in line
        assert str(file) in line
        assert reason in line
    assert "API_SECRET is not set" in refusal(API_SECRET="", API_SECRET_FILE=str(empty))


# --- the pool ---


@pytest.mark.parametrize(
    ("workers", "threads", "min_size", "max_size"),
    [
        (1, 4, 5, 5),
        (1, 1, 2, 2),
        (1, 100, 5, 25),
        (2, 4, 3, 5),
        (2, 100, 3, 12),
        (3, 10, 2, 8),
        (4, 4, 2, 5),
        (5, 4, 1, 5),
        (6, 4, 1, 4),
        (25, 4, 1, 1),
    ],
)
def test_the_workers_share_the_connections(workers, threads, min_size, max_size):
    settings = read(WEB_CONCURRENCY=str(workers), API_THREADS=str(threads))
    assert (settings.pool_min_size, settings.pool_max_size) == (min_size, max_size)


def test_there_are_never_more_connections_than_the_instance_may_have():
    for workers in range(1, 26):
        for threads in (1, 2, 4, 8, 100):
            settings = read(WEB_CONCURRENCY=str(workers), API_THREADS=str(threads))
            assert 1 <= settings.pool_min_size <= settings.pool_max_size
            assert workers * settings.pool_max_size <= 25


# --- advice ---


def test_an_open_door_is_told_at_start():
    callback, policy = read().advice()
    assert "MEDIAMTX_CALLBACK_SECRET" in callback
    assert "READ_POLICY" in policy
    closed = {"MEDIAMTX_CALLBACK_SECRET": "x" * 12, "READ_POLICY": "deny"}
    assert read(**closed).advice() == []
    (metrics,) = read(**closed, METRICS_PORT="9464").advice()
    assert "METRICS_SECRET is not set" in metrics
    quiet = {"METRICS_SECRET": "x" * 12}, {"METRICS_ENABLED": "false"}
    for more in quiet:
        assert read(**closed, METRICS_PORT="9464", **more).advice() == []


@pytest.mark.parametrize("name", ["API_SECRET", "MEDIAMTX_CALLBACK_SECRET", "METRICS_SECRET", "READ_SECRET"])
def test_a_secret_that_can_be_guessed_is_told_at_start_and_not_shown(name):
    closed = {"MEDIAMTX_CALLBACK_SECRET": "x" * 12, "READ_POLICY": "deny"}
    (line,) = read(**closed | {name: "hush-hush-1"}).advice()
    assert line.startswith(f"{name} is shorter than 12 characters")
    assert "hush" not in line
    assert read(**closed | {name: "hush-hush-12"}).advice() == []


def test_each_of_several_secrets_must_be_long():
    assert read(API_SECRET=f"{'x' * 12},short").short_secrets == ["API_SECRET"]


def test_a_secret_that_no_header_can_carry_stops_the_start():
    with pytest.raises(SettingError, match="API_SECRET holds a character"):
        Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "schlüssel"})
