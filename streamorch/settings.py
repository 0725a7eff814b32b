"""Settings from the environment, read once at start. A bad value stops the start with one clear line."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from streamorch import signing

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_CONNECTIONS = 25
_MIN_CONNECTIONS = 5
_SAFE_LENGTH = 12  # characters of a secret: 72 bits when it is minted
_MINTED = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
_TRUTHS = {
    "": None,
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


class SettingError(ValueError):
    """A setting is missing or wrong; its text is the one line for the operator."""


@dataclass(frozen=True)
class MediaURLs:
    """The public base of each protocol, without a trailing slash; None where the protocol is off."""

    hls: str | None
    webrtc: str | None
    rtmp: str | None
    rtsp: str | None
    srt: str | None


@dataclass(frozen=True)
class Settings:
    """Everything that the environment decides. Secrets are left out of its repr."""

    database_url: str
    api_secrets: tuple[str, ...]
    api_host: str
    api_port: int
    callback_url: str
    callback_secrets: tuple[str, ...]
    media_urls: MediaURLs
    mediamtx_bin: str | None
    mediamtx_api_url: str
    mediamtx_api_user: str
    mediamtx_api_passwords: tuple[str, ...]
    metrics_enabled: bool
    metrics_port: int | None
    metrics_secret: str | None
    tracing: bool
    trace_ratio: float
    trace_service: str
    trace_version: str | None
    read_policy: str
    read_secret: str | None
    unknown_publishers: str
    reconcile_seconds: float
    lease_seconds: int
    decision_days: int
    decision_rows: int
    audit_days: int
    history_days: int
    refusals_per_minute: int
    api_writes_per_minute: int
    trusted_proxies: tuple[IPNetwork, ...]
    cors_origins: tuple[str, ...]
    workers: int
    threads: int
    log_level: str
    home: Path

    def __repr__(self) -> str:
        return f"<Settings {self.api_host}:{self.api_port}>"

    @property
    def callback_secret(self) -> str | None:
        """What a media server is told to send; those after it in the list are taken from it as well."""
        return next(iter(self.callback_secrets), None)

    @property
    def pool_max_size(self) -> int:
        """Connections of one worker at most: 25 for one instance, shared among its workers."""
        return max(1, min(self.threads + 1, _MAX_CONNECTIONS // self.workers))

    @property
    def pool_min_size(self) -> int:
        """Connections that one worker keeps open."""
        return min(self.pool_max_size, -(-_MIN_CONNECTIONS // self.workers))

    @property
    def short_secrets(self) -> list[str]:
        """The names of the settings with a secret that is short enough to be guessed."""
        of = {
            "API_SECRET": self.api_secrets,
            "MEDIAMTX_CALLBACK_SECRET": self.callback_secrets,
            "METRICS_SECRET": (self.metrics_secret,),
            "READ_SECRET": (self.read_secret,),
        }
        return [name for name, values in of.items() if any(value and len(value) < _SAFE_LENGTH for value in values)]

    def advice(self) -> list[str]:
        """What an operator should know about these settings, a line each, said once at start."""
        lines = [
            f"{name} is shorter than {_SAFE_LENGTH} characters: it can be guessed; {_MINTED}"
            for name in self.short_secrets
        ]
        if self.callback_secret is None:
            lines.append("MEDIAMTX_CALLBACK_SECRET is not set: whoever reaches this port may play the media server")
        if self.read_policy == "public":
            lines.append("READ_POLICY is public: whoever reaches MediaMTX may watch every stream")
        if self.metrics_enabled and self.metrics_port is not None and self.metrics_secret is None:
            lines.append("METRICS_SECRET is not set: whoever reaches METRICS_PORT may read the metrics")
        return lines

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and check everything; raises SettingError with the name of what is wrong."""
        env = _Reader(environ)
        api_port = env.integer("API_PORT", 8080, 1, 65535)
        metrics_port = env.integer("METRICS_PORT", 0, 0, 65535) or None
        if metrics_port == api_port:
            raise SettingError("METRICS_PORT is API_PORT; leave it out, and the metrics are there")
        api_secrets = env.secrets("API_SECRET")
        if not api_secrets:
            raise SettingError(f"API_SECRET is not set; {_MINTED}")
        read_policy = env.choice("READ_POLICY", "public", ("public", "secret", "deny"))
        read_secret = env.secret("READ_SECRET")
        if read_policy == "secret" and not read_secret:
            raise SettingError("READ_POLICY=secret needs READ_SECRET")
        password = env.secret("MEDIAMTX_API_PASSWORD")
        return cls(
            database_url=env.database_url(),
            api_secrets=api_secrets,
            api_host=env.text("API_HOST", "127.0.0.1"),
            api_port=api_port,
            callback_url=env.url("CALLBACK_URL", f"http://127.0.0.1:{api_port}", ("http", "https")).rstrip("/"),
            callback_secrets=env.secrets("MEDIAMTX_CALLBACK_SECRET"),
            media_urls=_media_urls(env),
            mediamtx_bin=env.unless_off("MEDIAMTX_BIN", "mediamtx"),
            mediamtx_api_url=env.url("MEDIAMTX_API_URL", "http://localhost:9997", ("http", "https")).rstrip("/"),
            mediamtx_api_user=env.text("MEDIAMTX_API_USER", "streamorch"),
            mediamtx_api_passwords=(password,)
            if password
            else tuple(signing.media_server_password(secret) for secret in api_secrets),
            metrics_enabled=env.truth("METRICS_ENABLED", default=True),
            metrics_port=metrics_port,
            metrics_secret=env.secret("METRICS_SECRET"),
            tracing=_traces(env),
            trace_ratio=env.number("TRACING_SAMPLERATE", 0.01, 0.0, 1.0),
            trace_service=env.text("TRACING_SERVICE", "streamorch"),
            trace_version=env.text("TRACING_VERSION", "") or None,
            read_policy=read_policy,
            read_secret=read_secret,
            unknown_publishers=env.choice("UNKNOWN_PUBLISHERS", "report", ("report", "kick")),
            reconcile_seconds=env.number("RECONCILE_SECONDS", 2.0, 0.2, 60.0),
            decision_days=env.integer("DECISION_DAYS", 30, 1, 3650),
            decision_rows=env.integer("DECISION_ROWS", 200_000, 1000, 100_000_000),
            audit_days=env.integer("AUDIT_DAYS", 365, 0, 36500),
            history_days=env.integer("HISTORY_DAYS", 0, 0, 36500),
            refusals_per_minute=env.integer("REFUSALS_PER_MINUTE", 600, 0, 1_000_000),
            api_writes_per_minute=env.integer("API_WRITES_PER_MINUTE", 6000, 0, 1_000_000),
            # RTMP needs two seconds to go live (MediaMTX v1.20.1): a shorter lease would end rightful publishers.
            lease_seconds=env.integer("LEASE_SECONDS", 20, 5, 600),
            trusted_proxies=tuple(env.network("TRUSTED_PROXIES", text) for text in env.listed("TRUSTED_PROXIES")),
            cors_origins=tuple(env.origin("CORS_ORIGINS", text) for text in env.listed("CORS_ORIGINS")),
            workers=env.integer("WEB_CONCURRENCY", 2, 1, _MAX_CONNECTIONS),
            threads=env.integer("API_THREADS", 4, 1, 100),
            log_level=env.choice("LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
            home=Path(env.text("STREAMORCH_HOME", ".streamorch")),
        )


class _Reader:
    """Reads one variable at a time; `NAME_FILE` names a file that holds the value of NAME."""

    def __init__(self, environ: Mapping[str, str]):
        self.environ = environ

    def _raw(self, name: str) -> str:
        value = self.environ.get(name, "").strip()
        file_name = self.environ.get(f"{name}_FILE", "").strip()
        if not file_name:
            return value
        if value:
            raise SettingError(f"{name} and {name}_FILE are both set; keep one")
        try:
            return Path(file_name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not text"
            raise SettingError(f"{name}_FILE: {file_name}: {reason}") from None

    def text(self, name: str, default: str) -> str:
        return self._raw(name) or default

    def unless_off(self, name: str, default: str) -> str | None:
        value = self.text(name, default)
        return None if value.lower() == "off" else value

    def secret(self, name: str) -> str | None:
        value = self._raw(name)
        # Headers arrive as Latin-1: a secret of other letters would never match.
        if not value.isprintable() or (
            name in ("API_SECRET", "MEDIAMTX_CALLBACK_SECRET", "METRICS_SECRET") and not value.isascii()
        ):
            raise SettingError(f"{name} holds a character that cannot stand in a header; use letters and digits")
        return value or None

    def secrets(self, name: str) -> tuple[str, ...]:
        """A comma-separated list of secrets, the newest first, so that one can be changed without a gap."""
        text = self.secret(name) or ""
        values = tuple(part.strip() for part in text.split(",") if part.strip())
        if text and not values:
            # Not as if nothing were set, which leaves a door open.
            raise SettingError(f"{name} has commas and no secret")
        return values

    def listed(self, name: str) -> list[str]:
        return [part.strip() for part in self._raw(name).split(",") if part.strip()]

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.number(name, default, low, high)
        if value != int(value):
            raise SettingError(f"{name} must be a whole number, not {self._raw(name)!r}")
        return int(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        raw = self._raw(name)
        try:
            value = float(raw) if raw else default
        except ValueError:
            raise SettingError(f"{name} must be a number, not {raw!r}") from None
        if not low <= value <= high:
            raise SettingError(f"{name} must be from {low} to {high}, not {raw}")
        return value

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self._raw(name).lower() or default
        if value not in choices:
            raise SettingError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value

    def truth(self, name: str, *, default: bool) -> bool:
        value = self._raw(name).lower()
        if value not in _TRUTHS:
            raise SettingError(f"{name} must be true or false, not {value!r}")
        found = _TRUTHS[value]
        return default if found is None else found

    def url(self, name: str, default: str, schemes: tuple[str, ...]) -> str:
        value = self._raw(name) or default
        try:
            parts = urlsplit(value)
            usable = parts.scheme in schemes and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable or re.search(r"[\s'\"<>\\]", value):
            raise SettingError(f"{name} must be a URL that begins with {' or '.join(s + '://' for s in schemes)}")
        return value

    def media_url(self, name: str, default: str, schemes: tuple[str, ...]) -> str | None:
        """A base URL of one protocol; None when it is `off`."""
        return None if self._raw(name).lower() == "off" else self.url(name, default, schemes).rstrip("/")

    def database_url(self) -> str:
        value = self._raw("DATABASE_URL")
        if not value:
            raise SettingError("DATABASE_URL is not set; `streamorch run` brings a PostgreSQL of its own")
        if not value.startswith(("postgresql://", "postgres://")) and "=" not in value:
            raise SettingError("DATABASE_URL must begin with postgresql://")
        return value

    def network(self, name: str, text: str) -> IPNetwork:
        try:
            return ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise SettingError(f"{name}: {text!r} is no IP address or network") from None

    def origin(self, name: str, text: str) -> str:
        if text != "*" and not re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:\d+)?", text):
            raise SettingError(f"{name}: {text!r} is no origin like https://viewer.example.org")
        return text


def _traces(env: _Reader) -> bool:
    """Is tracing on? By TRACING_ENABLED; without it, when OpenTelemetry's own variables name a collector."""
    named = env.text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "") or env.text("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    exporter = env.text("OTEL_TRACES_EXPORTER", "otlp")
    is_disabled = env.text("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none"
    if not env.truth("TRACING_ENABLED", default=bool(named)) or is_disabled:
        return False
    if exporter != "otlp":
        raise SettingError(f"OTEL_TRACES_EXPORTER must be otlp or none, not {exporter!r}")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if env.text(name, "http/protobuf") != "http/protobuf":
            raise SettingError(f"{name} must be http/protobuf, which collectors take on port 4318")
    return True


def _media_urls(env: _Reader) -> MediaURLs:
    """The base of each protocol: MEDIAMTX_PUBLIC_URL is that of WebRTC, the others follow from it."""
    public = env.url("MEDIAMTX_PUBLIC_URL", "http://localhost:8889", ("http", "https")).rstrip("/")
    parts = urlsplit(public)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    # MediaMTX's own ports: WebRTC 8889, HLS 8888. Any other port is a reverse proxy that serves both.
    hls = _with_port(parts, f"{host}:8888") if parts.port == 8889 else public
    return MediaURLs(
        hls=env.media_url("MEDIAMTX_HLS_URL", hls, ("http", "https")),
        webrtc=env.media_url("MEDIAMTX_WEBRTC_URL", public, ("http", "https")),
        rtmp=env.media_url("MEDIAMTX_RTMP_URL", f"rtmp://{host}", ("rtmp", "rtmps")),
        rtsp=env.media_url("MEDIAMTX_RTSP_URL", f"rtsp://{host}:8554", ("rtsp", "rtsps")),
        srt=env.media_url("MEDIAMTX_SRT_URL", f"srt://{host}:8890", ("srt",)),
    )


def _with_port(parts: SplitResult, netloc: str) -> str:
    return parts._replace(netloc=netloc).geturl()
