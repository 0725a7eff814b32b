"""Settings: of whatever stands in the environment, a service or one line that names what is wrong."""

from hypothesis import given
from hypothesis import strategies as st

from streamorch.settings import SettingError, Settings
from tests.fuzz import TEXTS, budget

NAMES = [
    "API_HOST",
    "API_PORT",
    "API_SECRET",
    "API_THREADS",
    "CALLBACK_URL",
    "CORS_ORIGINS",
    "DATABASE_URL",
    "LEASE_SECONDS",
    "LOG_LEVEL",
    "MEDIAMTX_API_PASSWORD",
    "MEDIAMTX_API_URL",
    "MEDIAMTX_CALLBACK_SECRET",
    "MEDIAMTX_HLS_URL",
    "MEDIAMTX_PUBLIC_URL",
    "MEDIAMTX_SRT_URL",
    "METRICS_SECRET",
    "READ_POLICY",
    "READ_SECRET",
    "RECONCILE_SECONDS",
    "STREAMORCH_HOME",
    "TRUSTED_PROXIES",
    "UNKNOWN_PUBLISHERS",
    "WEB_CONCURRENCY",
]
NEARLY = st.sampled_from(
    [
        *(
            "0",
            "1",
            "-1",
            "8080",
            "65536",
            "1e3",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "0x10",
            "1_0",
            "\u0661",
            "²",
            "2.0",
            "2.5",
        ),
        *(
            "http://",
            "http://x",
            "http://[",
            "http://[::1",
            "http://x:99999",
            "http://x:y",
            "http://x:-1",
            "http://x\\y",
        ),
        *(
            "HTTP://X",
            "https://a@b:1/c?d#e",
            "rtmp://x",
            "srt://x:1",
            "postgresql://",
            "postgresql://u:p@[::1/x",
            "a=b",
        ),
        *("off", "OFF", "*", "10.0.0.0/8", "10.0.0.0/33", "::1", "1.2.3.4.5", ",", ",,", "http://a,http://b", " 2 "),
        *("public", "secret", "debug", "kick"),
    ]
)


@budget(600)
@given(st.dictionaries(st.sampled_from([*NAMES, *(f"{name}_FILE" for name in NAMES)]), NEARLY | TEXTS, max_size=6))
def test_any_environment(given_values):
    # What an environment can hold: no NUL, and bytes that are no UTF-8 as surrogates.
    environ = {name: value.replace("\x00", "") for name, value in given_values.items()}
    refusal = ""
    try:
        settings = Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "planted-secret"} | environ)
    except SettingError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert any(name in refusal for name in (*environ, "DATABASE_URL", "API_SECRET", "READ_SECRET"))
        assert "planted-secret" not in refusal
        return
    assert "planted-secret" not in repr(settings)
    assert settings.pool_max_size >= settings.pool_min_size >= 1
    assert isinstance(settings.advice(), list)
