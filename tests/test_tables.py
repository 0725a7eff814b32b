"""Tables for a terminal, and what stands in them."""

import datetime
import time

import pytest
import wcwidth

from streamorch import tables


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_columns_line_up_whatever_the_letters():
    rows = [("a", "plain", 5), ("b", "日本語テレビ", 50), ("c", "👩\u200d👩\u200d👧 e\u0301", None), ("d", "", 500)]
    lines = tables.lines(("ID", "NAME", "COUNT"), rows, width=None)
    assert [wcwidth.width(line) for line in lines] == [wcwidth.width(lines[0])] * 5
    assert lines[0] == "ID  NAME          COUNT"
    assert lines[1] == "a   plain             5"
    assert lines[2] == "b   日本語テレビ     50"
    assert lines[4] == "d   -               500"


def test_no_rows_are_their_headings():
    assert tables.lines(("ID", "NAME"), [], width=80) == ["ID  NAME"]


def test_what_may_give_way_does_until_the_table_fits():
    rows = [("x" * 36, "live/" + "p" * 40, "日本語テレビ放送局", "rtmp")]
    lines = tables.lines(("ID", "PATH", "NAME", "VIA"), rows, width=80, elastic=("PATH", "NAME"))
    assert max(map(wcwidth.width, lines)) <= 80
    assert "x" * 36 in lines[1]
    assert lines[1].count("…") == 2
    # Nothing is cut to less than it can be told by, however narrow the terminal.
    narrow = tables.lines(("ID", "PATH", "NAME", "VIA"), rows, width=20, elastic=("PATH", "NAME"))
    assert narrow[1].split()[1] == "live/pp…"


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\rb", "a\nb", "a\x07b", "a\x9bb", "a\u202eb", "a\u2066b", "a\u2028b"])
def test_nothing_in_a_row_moves_the_cursor_or_turns_the_text(text):
    (_, line) = tables.lines(("NAME",), [(text,)], width=None)
    assert not set(line) & set("\x1b\r\n\x07\x9b\u202e\u2066\u2028")
    assert line.startswith("a\ufffd")


def test_a_moment_is_told_by_the_clock_of_the_machine(berlin):
    assert tables.moment("2020-07-01T12:34:56.789000Z") == "2020-07-01 14:34"
    now = datetime.datetime.now(datetime.UTC)
    local = now.astimezone(datetime.timezone(datetime.timedelta(hours=time.localtime().tm_gmtoff / 3600)))
    assert tables.moment(now.isoformat()) == f"{local:%H:%M:%S}"
    assert tables.moment(None) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (185, "3:05"), (3600, "1:00:00"), (90061, "1d 1:01:01"), (86400, "1d 0:00:00")]
)
def test_a_duration(seconds, text):
    assert tables.duration(seconds) == text
