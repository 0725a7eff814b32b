"""The parts of the bench that need no clock: figures, lines, what wrk says, the requests, and the clients in Python."""

import hashlib
import json
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import msgspec
import psycopg
import pytest

from bench import cases, data, floor, load, messages, statements, table, wrk
from bench.figures import PERCENTILES, Figures, Sample, joined, middle, percentile, percentiles, pooled
from bench.load import Planned
from bench.messages import Numbers
from streamorch import paths

# --- figures ------------------------------------------------------------------------------------------------


def test_a_percentile_is_the_nearest_rank():
    ordered = [float(value) for value in range(1, 101)]
    assert [percentile(ordered, percent) for percent in (1, 50, 95, 99.9, 100)] == [1, 50, 95, 100, 100]
    assert percentile([7.0], 1) == percentile([7.0], 99) == 7
    assert percentiles([]) == {}


def test_pooled_counts_every_turn_as_one():
    turns = [Sample(2, 1.0, latencies=[0.001, 0.003]), Sample(1, 1.0, Counter({"503": 1}), [0.002])]
    figures = pooled(turns)
    assert figures.milliseconds[50.0] == pytest.approx(2)
    assert (figures.count, figures.per_second, figures.wrong) == (3, 1.5, {"503": 1})


def test_the_middle_is_the_median_of_each_percentile():
    turns = [Sample(1, 1.0, latencies=[seconds]) for seconds in (0.001, 0.009, 0.002)]
    assert middle(turns).milliseconds == {percent: pytest.approx(2) for percent in PERCENTILES}
    assert middle(turns).per_second == 1


def test_a_turn_without_a_right_answer_has_no_percentiles():
    figures = middle([Sample(0, 1.0, Counter({"timeout": 3}))])
    assert (figures.milliseconds, figures.per_second, figures.wrong) == ({}, 0, {"timeout": 3})


def test_cpu_time_is_for_a_thousand_requests():
    turns = [Sample(100, 1.0, workers_cpu=0.1), Sample(300, 1.0, workers_cpu=0.3)]
    assert pooled(turns).workers_cpu == pytest.approx(1)
    assert pooled([*turns, Sample(1, 1.0)]).workers_cpu is None


def test_samples_are_joined_without_what_lay_between_them():
    one = joined([Sample(1, 0.5, latencies=[0.5]), Sample(1, 0.25, Counter(a=1), [0.25])])
    assert (one.count, one.seconds, one.wrong, one.percentiles[100.0]) == (2, 0.75, Counter(a=1), 0.5)


# --- table and JSON -----------------------------------------------------------------------------------------


def figures_of(p50, p95, per_second=1000.0, **more):
    return Figures({50.0: p50, 95.0: p95, 99.0: p95, 100.0: p95}, per_second, 10, more.pop("wrong", {}), **more)


VIEW = ("Flask view", figures_of(1.0, 2.0, 1000.0))
STATEMENT = ("statement", figures_of(0.5, 1.0, 1000.0))


def test_the_latencies_of_a_floor_add_up_and_so_do_the_times_of_its_rates():
    made = table.Floor.of(latency=[VIEW, STATEMENT], rate=[VIEW, STATEMENT])
    assert made == table.Floor("Flask view + statement", 1.5, 3.0, 500.0)
    assert table.Floor.of(rate=[VIEW]) == table.Floor("Flask view", None, None, 1000.0)


def test_a_ratio_is_given_where_there_is_a_floor():
    own = figures_of(3.0, 3.0, 250.0)
    assert table.ratio(own, table.Floor.of(latency=[VIEW, STATEMENT])) == table.Ratio(2.0, 1.0, None)
    assert table.ratio(own, table.Floor.of(rate=[VIEW])) == table.Ratio(None, None, 0.25)


def result(**more):
    floors = {"floor": table.Floor.of(latency=[VIEW, STATEMENT], rate=[VIEW]), "no_op": table.Floor.of(latency=[VIEW])}
    own = figures_of(3.0, 6.0, 250.0, workers_cpu=1.25, **more)
    return table.Result("serial claim", own, dict([VIEW, STATEMENT]), **floors, notes={"keys": 7})


def test_the_columns_of_all_lines_stand_below_each_other():
    above, names = table.heading()
    case, note, view, statement = table.lines(result(), result().beside)
    assert case.split()[2:] == ["3.00", "6.00", "6.00", "6.00", "250", "1.250", "2.00", "2.00", "25%", "3.00", "3.00"]
    assert note == "    keys: 7"
    for line in (case, view, statement):
        assert line[line.index(".") :].startswith(".")
        assert line.index(".") + 3 == names.index("p50") + 3
    assert len(case) <= len(names)
    assert above.index("CPU") > names.index("max")


def test_wrong_answers_are_shown_and_told(capsys):
    report = table.Report({"commit": "1234"})
    report.add(result())
    assert report.wrong == []
    report.add(result(wrong={"503 instead of 200": 3}))
    assert report.wrong == ["serial claim"]
    shown = capsys.readouterr().out
    assert "    WRONG, 3 times: 503 instead of 200" in shown
    assert shown.count("    Flask view") == 1  # measured once, shown once


def test_the_json_holds_everything(tmp_path):
    report = table.Report({"commit": "1234"})
    report.add(result())
    report.save(tmp_path / "new" / "results.json")
    saved = json.loads((tmp_path / "new" / "results.json").read_text())
    assert (saved["about"], saved["notes"], saved["wrong"]) == ({"commit": "1234"}, {}, [])
    [case] = saved["results"]
    assert case["case"] == "serial claim"
    assert case["figures"]["milliseconds"] == {"50.0": 3.0, "95.0": 6.0, "99.0": 6.0, "100.0": 6.0}
    assert case["beside"]["statement"]["per_second"] == 1000.0
    assert case["floor"]["name"] == "Flask view + statement"
    assert case["ratios"]["floor"] == {"p50": 2.0, "p95": 2.0, "per_second": 0.25}
    assert case["ratios"]["no_op"] == {"p50": 3.0, "p95": 3.0, "per_second": None}


def test_the_run_tells_of_the_machine():
    told = table.described(table.about("18.6", workers=2, threads=4))
    assert "cores of" in told
    assert "PostgreSQL 18.6" in told
    assert "2 workers of 4 threads" in told


# --- cases --------------------------------------------------------------------------------------------------


def names_of(wanted, *, full=False):
    return [name for _, names in cases.selected(wanted, full=full) for name in names]


def test_every_case_has_a_name_of_its_own_that_can_be_asked_for():
    names = names_of("", full=True)
    assert len(names) == len(set(names))
    assert all(name in names_of(name) for name in names)


def test_cases_are_chosen_by_parts_of_their_names():
    assert names_of("serial read, burst of 100 claim") == [
        "serial read",
        "serial read on a kept connection",
        "burst of 100 claim",
    ]
    assert names_of("nothing of the kind") == []


def test_what_takes_minutes_is_asked_for_by_name():
    assert not [name for name in names_of("") + names_of("claim") if name.startswith("scale")]
    assert names_of("scale") == [name for name in names_of("", full=True) if name.startswith("scale")]


# --- messages -----------------------------------------------------------------------------------------------


def body_of(request):
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    return msgspec.json.decode(body)


def test_key_path_and_connection_follow_from_the_number():
    first, second = (body_of(messages.claim().of(number)) for number in (7, 8))
    assert len(first["password"]) == 46
    assert paths.refusal(first["path"]) is None
    for name in ("password", "path", "id"):
        assert first[name] != second[name]
        assert first[name].endswith(messages.tag(7))
    hook = body_of(messages.ready().of(7))
    assert (hook["path"], hook["source_id"]) == (first["path"], first["id"])


def test_no_two_numbers_have_the_same_digits():
    numbers = [*range(20_000), *range(50_000_000, 50_020_000)]
    assert len({messages.tag(number) for number in numbers}) == len(numbers)


def test_numbers_are_asked_once_or_again():
    assert list(Numbers(3, 2)) == [3, 4]
    assert list(islice(Numbers(3, 2, again=True), 5)) == [3, 4, 3, 4, 3]


def test_a_closing_message_says_so_in_its_head():
    head, _, body = messages.claim().closing().of(1).partition(b"\r\n\r\n")
    assert head.endswith(b"\r\nConnection: close")
    assert body.startswith(b"{")


# --- rows, and the statement that names them ----------------------------------------------------------------


@pytest.fixture
def database(database_url):
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield data.Database(database_url, conn)


def test_the_keys_of_the_database_are_those_of_the_messages(database):
    taken = database.take(3)
    for number in taken:
        value = body_of(messages.claim().of(number))["password"]
        key_hash = hashlib.sha256(value.encode()).digest()
        assert database.conn.execute("SELECT hint FROM stream_keys WHERE key_hash = %s", [key_hash]).fetchone() == (
            value[-4:],
        )
    assert set(database.take(2)).isdisjoint(taken)


def test_live_streams_are_those_of_the_messages_and_no_others(database):
    database.make_live(5)
    live = database.make_live(3)
    found = database.conn.execute("SELECT path, source_id FROM streams WHERE ended_at IS NULL").fetchall()
    asked = [body_of(messages.claim().of(number)) for number in islice(live, 3)]
    assert sorted(found) == sorted((question["path"], question["id"]) for question in asked)
    assert database.count_live() == 3


def test_the_statement_is_the_one_that_a_session_sent(database, database_url):
    sent = "/* streams.claim */ SELECT outcome FROM claim_v1($1, $2, $3, $4, $5, $6, $7, $8, $9)"
    with psycopg.connect(database_url, autocommit=True) as session:
        session.pgconn.prepare(b"claim", sent.encode())
        session.pgconn.exec_prepared(b"claim", [b"\\x00", *[b"a"] * 6, b"20", b"00000000-0000-0000-0000-000000000000"])
        found = statements.sent_claim(database.conn)
    assert found.startswith("/* streams.claim */ SELECT outcome FROM claim_v1(")
    assert "$" not in found
    number = database.take(1).first
    outcome = database.conn.execute(found.replace(statements.NUMBER, f"{number}::bigint").encode()).fetchone()
    assert outcome == ("claimed",)
    assert database.count_claims(Numbers(number, 1)) == 1


def test_a_statement_that_nobody_sent_is_no_floor(database):
    with pytest.raises(statements.StatementError):
        statements.sent_claim(database.conn)


# --- wrk ----------------------------------------------------------------------------------------------------


def said(**told):
    known = {
        "requests": 10, "microseconds": 2_000_000, "bytes": 0, "above_399": 0, "connect": 0, "read": 0, "write": 0,
        "timeout": 0, "ran_out": 0, "percentiles": {"50": 1500, "100": 2500}, "statuses": {},
    }  # fmt: skip
    return "Running 1s test\nRESULT " + json.dumps(known | told) + "\n"


def test_what_wrk_says_is_a_sample():
    sample = wrk.parsed(said(statuses={"401": 10}), 401, connections=1, body_bytes=None)
    assert (sample.count, sample.seconds, sample.wrong) == (10, 2.0, Counter())
    assert sample.percentiles == {50.0: 0.0015, 100.0: 0.0025}


def test_other_statuses_and_broken_connections_are_wrong():
    sample = wrk.parsed(said(statuses={"200": 8, "503": 2}, read=3), 200, connections=1, body_bytes=None)
    assert sample.count == 8
    assert sample.wrong == {"503 instead of 200": 2, "read": 3}


@pytest.mark.parametrize(
    ("received", "is_right"),
    [(10 * 5_000 - 1, False), (10 * 5_100, True), (10 * 5_100 + 2 * 5_000, True), (90_000, False)],
)
def test_large_answers_are_checked_by_their_sum(received, is_right):
    sample = wrk.parsed(said(bytes=received), 200, connections=2, body_bytes=5_000)
    assert bool(sample.wrong) is not is_right


@pytest.mark.parametrize("output", ["unable to connect to 127.0.0.1:9", said(ran_out=1)])
def test_wrk_without_a_result_is_an_error(output):
    with pytest.raises(wrk.WrkError):
        wrk.parsed(output, 200, connections=1, body_bytes=None)


# --- the clients in Python, and wrk where it is -------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """It counts its connections."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.connections = set()

    def handle_error(self, *_):
        """A client has gone."""


class Answers(BaseHTTPRequestHandler):
    """401 to paths that end in 0 or 5, a large body to GET /large, half of one to GET /broken."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = msgspec.json.decode(body)["path"][-1]
        self._say(401 if number in "05" else 200, b"")

    def do_GET(self):
        if self.path == "/broken":
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.")
            return
        self._say(200, b"x" * 1_000_000 if self.path == "/large" else b"small")

    def _say(self, status, body):
        self.server.connections.add(self.client_address)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def digits_of(numbers):
    """How many of these numbers are refused."""
    return sum(messages.tag(number)[-1] in "05" for number in numbers)


CLIENTS = {
    "one by one": lambda port, message, count: load.one_by_one(port, message, range(count)),
    "one by one, kept": lambda port, message, count: load.one_by_one(port, message, range(count), kept=True),
    "burst": lambda port, message, count: load.burst(port, message, range(count)),
    "closed loop": lambda port, message, count: load.closed_loop(
        port, message, range(count), connections=4, seconds=60, kept=False
    ),
    "closed loop, kept": lambda port, message, count: load.closed_loop(
        port, message, range(count), connections=4, seconds=60
    ),
    "by the clock": lambda port, message, count: load.by_the_clock(
        port, [Planned(number / 1000, "all", message.of(number), message.status) for number in range(count)]
    ).groups["all"],
}


@pytest.mark.parametrize("name", CLIENTS)
def test_every_question_is_asked_once_and_its_status_checked(server, name):
    sample = CLIENTS[name](server.server_port, messages.claim(), 50)
    refused = digits_of(range(50))
    assert sample.count == len(sample.latencies) == 50 - refused
    assert sample.wrong == ({"401 instead of 200": refused} if refused else {})
    assert len(server.connections) == {"one by one, kept": 1, "closed loop, kept": 4}.get(name, 50)


@pytest.mark.parametrize("name", CLIENTS)
def test_an_answer_counts_when_all_of_it_is_there(server, name):
    sample = CLIENTS[name](server.server_port, messages.get("/large"), 3)
    assert (sample.count, sample.wrong) == (3, Counter())
    broken = CLIENTS[name](server.server_port, messages.get("/broken"), 3)
    assert (broken.count, broken.wrong) == (0, {"ConnectionResetError": 3})


@pytest.mark.parametrize("name", CLIENTS)
def test_a_server_that_is_not_there_is_wrong(name):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sample = CLIENTS[name](port, messages.read(), 3)
    assert (sample.count, sample.wrong) == (0, {"ConnectionRefusedError": 3})


def test_a_single_question_has_its_body(server):
    answer = load.ask(server.server_port, messages.get("/small").of(0))
    assert (answer.status, answer.body, answer.header("content-length")) == (200, b"small", "5")
    assert answer.header("ETag") is None


def test_latencies_by_the_clock_count_from_the_plan(server):
    clocked = load.by_the_clock(server.server_port, [Planned(0.05, "all", messages.get("/small").of(0), 200)])
    assert clocked.groups["all"].latencies[0] < 0.05 < clocked.groups["all"].seconds
    assert clocked.late[0] >= 0


def test_random_moments_are_the_same_each_time():
    moments = load.random_times(100, 2.0, seed=1)
    assert moments == sorted(moments) == load.random_times(100, 2.0, seed=1)
    assert 0 <= moments[0] <= moments[-1] <= 2


@pytest.mark.skipif(not wrk.is_installed(), reason="no wrk")
def test_wrk_asks_what_the_other_clients_ask(server):
    def ask(message, numbers, body_bytes=None):
        return wrk.run(
            server.server_port, message, numbers, connections=2, seconds=1, kept=False, body_bytes=body_bytes
        )

    sample = ask(messages.claim(), Numbers(1, 10, again=True))
    assert sample.count > 10
    share = sample.wrong["401 instead of 200"] / (sample.count + sample.wrong.total())
    assert share == pytest.approx(digits_of(range(1, 11)) / 10, abs=0.05)
    large = ask(messages.get("/large"), Numbers(0, 1, again=True), body_bytes=1_000_000)
    assert large.count > 0
    assert large.wrong == {}
    with pytest.raises(wrk.WrkError):
        ask(messages.claim(), Numbers(1, 4))


# --- the floors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("application", [floor.app, floor.no_op])
def test_floors_answer_everything_with_200(application):
    from werkzeug.test import Client

    client = Client(application)
    answers = [
        client.post("/auth"), client.post("/webhook/ready"), client.post("/webhook/not-ready"), client.get("/streams")
    ]  # fmt: skip
    assert [(answer.status_code, answer.data) for answer in answers] == [(200, b"")] * 4
    filled = client.get("/bytes/1234")
    assert (filled.status_code, len(filled.data)) == (200, 1234)
