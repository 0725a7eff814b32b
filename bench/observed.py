"""What metrics and tracing cost: a service that counts, or traces one request of a hundred, and one that does not."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing.connection import Connection

from bench import data, load, messages, servers
from bench.children import child
from bench.figures import Figures, Sample, pooled
from bench.messages import Message, Numbers
from bench.servers import Gunicorn
from bench.stage import WARMING, Stage, Subject, busy, in_turns, warm, watched
from bench.table import Floor, Result

_WAYS = ("metrics", "tracing at 1 %")
_KINDS = ("one by one, claim", "one by one, read", "without a pause, read", "without a pause, list")
NAMES = tuple(f"{way}: {kind}" for way in _WAYS for kind in _KINDS)

_NEITHER = "neither"
_BUSY = 32


def measure(stage: Stage, wanted: Sequence[str]) -> None:
    """Every kind of question in turns; the floor is the service without metrics and tracing."""
    database = stage.database
    with ExitStack() as stack:
        collector = stack.enter_context(child(_collect))
        settings = {
            _NEITHER: {"METRICS_ENABLED": "false"},
            "metrics": {},
            "tracing at 1 %": {
                "METRICS_ENABLED": "false",
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.hear(),
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0.01",
            },
        }
        running: dict[str, Gunicorn] = {}
        for way, own in settings.items():
            if way == _NEITHER or any(name.startswith(way) for name in wanted):
                running[way] = stack.enter_context(servers.service(stage.folder, database.url, **own))
                warm(running[way], database, WARMING)
        kinds = [kind for kind in _KINDS if any(name.endswith(kind) for name in wanted)]
        subjects = [
            Subject(f"{way}: {kind}", partial(watched, server, database, partial(_questions(stage, kind), server)))
            for kind in kinds
            for way, server in running.items()
        ]
        turns = stage.effort.serial_turns
        found = {name: pooled(samples) for name, samples in in_turns(subjects, turns).items()}
    for name in wanted:
        kind = name.partition(": ")[2]
        stage.report.add(_result(name, found[name], found[f"{_NEITHER}: {kind}"]))


def _result(name: str, figures: Figures, neither: Figures) -> Result:
    beside = [("without", neither)]
    notes = {}
    if figures.workers_cpu and neither.workers_cpu:
        more = (figures.workers_cpu - neither.workers_cpu) * 1000
        notes["CPU of the workers"] = f"{figures.workers_cpu / neither.workers_cpu:.2f} times, {more:+.0f} µs a request"
    return Result(name, figures, dict(beside), Floor.of(latency=beside, rate=beside), notes=notes)


def _questions(stage: Stage, kind: str) -> Callable[[Gunicorn], Sample]:
    """What asks a server questions of this kind for one turn."""
    count, seconds = stage.effort.serial, stage.effort.busy_seconds
    if kind == "one by one, claim":
        return lambda server: load.one_by_one(server.port, messages.claim(), stage.database.take(count))
    if kind == "one by one, read":
        strangers = Numbers(data.UNKNOWN.first, count)
        return lambda server: load.one_by_one(server.port, messages.read(), islice(strangers, count))
    message: Message = messages.read() if kind == "without a pause, read" else messages.live_list()

    def ask(server: Gunicorn) -> Sample:
        return busy(server, message, data.UNKNOWN, connections=_BUSY, seconds=seconds, kept=False)

    return ask


def _collect(pipe: Connection) -> None:
    """A collector that takes all spans and throws them away; says where it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        pipe.send(f"http://127.0.0.1:{server.server_port}")
        server.serve_forever()
