"""What faces the network, against what is nearly right: recorded bodies and requests, changed in a place or two.

Bytes by chance find nothing, since the first of them is refused. How often: see `budget`.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

RECORDED = Path(__file__).parents[1] / "recorded"
RECORDED_API = Path(__file__).parents[1] / "recorded_api"

# A key that nobody has; what comes back, is logged or is stored may not hold it.
KEY = "sk_" + "FuzzedKeyThatMayAppearNowhereAtAll0123456789"[:43]

PART = KEY[:20]  # neither may what is left of it when it is cut


def budget(examples: int) -> settings:
    """So many examples in CI; by the profile `proof` (see tests/conftest.py) a hundred times as many."""
    profile = settings.get_profile(settings.get_current_profile_name())
    return settings(
        max_examples=examples * profile.max_examples // 100,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# --- what was recorded ---


def _events(kind: str) -> Iterator[dict[str, Any]]:
    for file in sorted(RECORDED.glob("*/*.json")):
        yield from (event for event in json.loads(file.read_text())["events"] if event["kind"] == kind)


@cache
def questions() -> list[dict[str, Any]]:
    """The bodies of POST /auth, each form once, with the key as KEY."""
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    for event in _events("auth"):
        if event.get("raw"):
            body = json.loads(event["raw"].replace("sk_7Hj2kL9mN4pQ8rS1tU6vW3xY5zA0bC2dE4fG6hI8jK0", KEY))
            form = (body["action"], body["protocol"], body.get("id") is None, bool(body["query"]), len(body))
            found.setdefault(form, body)
    return list(found.values())


@cache
def hooks() -> list[dict[str, Any]]:
    """The bodies of hooks, as the hook lines of mediamtx.yml make them of what was recorded."""
    found: dict[str, dict[str, Any]] = {}
    for event in _events("hook"):
        env = event.get("env", {})
        if "MTX_PATH" in env:
            body = {
                "path": env["MTX_PATH"],
                "source_type": env.get("MTX_SOURCE_TYPE", ""),
                "source_id": env.get("MTX_SOURCE_ID", ""),
            }
            found.setdefault(body["source_type"], body)
    return [*found.values(), {"path": "live/cam7"}]


@cache
def control_api() -> dict[str, list[Any]]:
    """What Control APIs answered, by what was asked: bodies of every version."""
    every = [json.loads(file.read_text()) for file in sorted(RECORDED_API.glob("v*.json"))]
    return {
        "info": [version["info"] for version in every if version["info"]],
        "paths": [{"itemCount": 1, "pageCount": 1, "items": list(version["paths"].values())} for version in every],
        "connections": [
            {"itemCount": 1, "pageCount": 1, "items": list(kinds.values())}
            for version in every
            for kinds in version["lists"].values()
        ],
        "connection": [item for version in every for kinds in version["lists"].values() for item in kinds.values()],
        "entry": [version["entry"] for version in every],
    }


# --- values that are nearly right ---

TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "\x00", "a\x00b", KEY, f"live/{KEY}", "live/cam7", "default", "null", "0", "\ufeff", "\uffff"]
    ),
    st.sampled_from(["x" * 255, "x" * 256, "\U0001f3a5" * 256, "../..", "%00", "a/" * 200, "\u202e", "é", "\r\nX: y"]),
    st.text(max_size=20),
)
NUMBERS = st.one_of(
    st.sampled_from(
        [0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -1e-308, 0.5, -0.0]
    ),
    st.integers(),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands inside of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield (*at, name)
        yield from _places(each, (*at, name))


@st.composite
def changed(draw: st.DrawFn, of: Any) -> Any:
    """The value with a thing or two replaced, removed, added, renamed or nested."""
    value = json.loads(json.dumps(of))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(value))
        if not places:
            return draw(VALUES)
        *way, name = draw(st.sampled_from(places))
        holder = value
        for step in way:
            holder = holder[step]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename", "nest", "repeat"]))
        if what == "replace":
            holder[name] = draw(VALUES)
        elif what == "remove":
            del holder[name]
        elif what == "nest":
            holder[name] = [holder[name]] if draw(st.booleans()) else {"": holder[name]}
        elif isinstance(holder, list):
            holder.append(holder[name] if what == "repeat" else draw(VALUES))
        else:
            holder[draw(TEXTS) if what == "add" else str(name).swapcase()] = holder[name]
    return value


@st.composite
def written(draw: st.DrawFn, value: Any) -> bytes:
    """The value as JSON, as a rule; sometimes with a flaw that no encoder would make."""
    raw = json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    flaw = draw(st.sampled_from(["none"] * 6 + ["cut", "put", "twice", "deep", "surrogate"]))
    at = draw(st.integers(0, len(raw)))
    if flaw == "cut":
        return raw[:at]
    if flaw == "put":
        bits = [
            b"\x00",
            b"\xff",
            b"\xed\xa0\x80",
            b"\\",
            b'"',
            b",",
            b"{",
            b"]",
            b"1e999",
            b"\\ud800",
            b"NaN",
            b"\xc0\x80",
        ]
        return raw[:at] + draw(st.sampled_from(bits)) + raw[at:]
    if flaw == "twice" and raw[:1] == b"{" and len(raw) > 2:
        return raw[:-1] + b", " + raw[1:]
    if flaw == "deep":
        depth = draw(st.sampled_from([33, 200, 990, 1100, 20_000]))
        return b'{"metadata": ' + b"[" * depth + raw + b"]" * depth + b"}"
    if flaw == "surrogate":
        return raw.replace(b"live", b"\\udfff")
    return raw


def nearly(bodies: list[Any]) -> st.SearchStrategy[bytes]:
    """One of these bodies, changed, as bytes."""
    return st.sampled_from(bodies).flatmap(changed).flatmap(written)
