"""Log lines: one JSON object each, never a key."""

import json
import logging
import re
import uuid

import pytest

from streamorch import keys, logs


@pytest.fixture
def said():
    """What a record becomes, as the line and as the object in it."""

    def say(message, *args, level=logging.INFO, exc_info=None, **extra):
        record = logging.getLogger("streamorch.test").makeRecord(
            "streamorch.test", level, "file.py", 7, message, args, exc_info, "function", extra
        )
        line = logs.JSONFormatter().format(record)
        assert "\n" not in line
        return line, json.loads(line)

    return say


@pytest.fixture
def configured():
    """Logging as the service sets it up, and as it was afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    names = ("psycopg.pool", "werkzeug")
    levels = [logging.getLogger(name).level for name in names]
    yield logs.configure
    root.handlers, root.level = before
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def test_a_record_is_one_object(said):
    _, line = said("granted %s of %d", "a", 7)
    assert list(line) == ["time", "level", "logger", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert (line["level"], line["logger"], line["message"]) == ("info", "streamorch.test", "granted a of 7")


def test_what_is_extra_stands_beside_it(said):
    an_id = uuid.uuid4()
    _, line = said("x", stream_id=an_id, outcome=None, count=3, odd=object(), error=ValueError("bad"), many=["ü", 1.5])
    assert (line["stream_id"], line["outcome"], line["count"]) == (str(an_id), None, 3)
    assert (line["error"], line["many"]) == ("bad", ["ü", 1.5])
    assert line["odd"].startswith("<object")


def test_a_line_break_is_escaped(said):
    text = 'a\nb\r\n\x1b[31m"\\\u2028'
    assert said(text, path=text)[1]["message"] == text


def test_an_error_carries_its_traceback(said):
    try:
        raise ValueError("über")
    except ValueError as error:
        _, line = said("failed", level=logging.ERROR, exc_info=(type(error), error, error.__traceback__))
    assert line["level"] == "error"
    assert line["traceback"].startswith("Traceback (most recent call last)")
    assert line["traceback"].endswith("ValueError: über")


def test_a_key_is_blotted_out_wherever_it_stands(said):
    value = keys.mint()
    try:
        raise ValueError(value)
    except ValueError as error:
        text, line = said(
            f"got {value}",
            exc_info=(type(error), error, error.__traceback__),
            path=f"live/{value}",
            many=[{value: value}],
        )
    assert value not in text
    assert (line["message"], line["path"]) == ("got sk_[redacted]", "live/sk_[redacted]")


def test_inside_a_request_its_id_is_told(said):
    assert "request_id" not in said("x")[1]
    token = logs.REQUEST_ID.set("request-7")
    assert said("x")[1]["request_id"] == "request-7"
    logs.REQUEST_ID.reset(token)
    assert "request_id" not in said("x")[1]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_lines_from_a_level_on_go_to_standard_error(level, configured, capsys):
    configured(level)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("streamorch.test"), name)("said at %s", name)
    out, err = capsys.readouterr()
    told = [json.loads(line)["level"] for line in err.splitlines()]
    levels = ["debug", "info", "warning", "error"]
    assert (out, told) == ("", levels[levels.index(level) :])


def test_the_pool_tells_of_attempts_to_who_debugs_alone(configured, capsys):
    for level, lines in (("info", 0), ("debug", 1)):
        configured(level)
        logging.getLogger("psycopg.pool").warning("error connecting")
        assert len(capsys.readouterr().err.splitlines()) == lines
