"""Load by wrk, which takes less of the machine than a client in Python: clients that never pause."""

import json
import shutil
import subprocess
import tempfile
from collections import Counter

from bench.figures import PERCENTILES, Sample
from bench.messages import DIGITS, SCATTER, TAG, Message, Numbers

_GRACE_SECONDS = 30  # for what is under way at the end, and for wrk itself

_HEAD_BYTES = 1000  # of an answer, at most

# The request is cut at its digits; `response` counts statuses, but only where bodies are small: it copies them.
_SCRIPT = """\
local parts = {%(parts)s}
local first, count, again = %(first)d, %(count)d, %(again)s
local asked = 0
statuses = {}
ran_out = 0

function request()
    if asked >= count then
        asked = 0
        if not again then ran_out = 1 end
    end
    local n = first + asked
    asked = asked + 1
    return table.concat(parts, string.format("%%0%(digits)d.0f", n * %(scatter)d %% 1e%(digits)d))
end

%(response)s
local worker
function setup(thread) worker = thread end

function done(summary, latency, requests)
    local microseconds, counted, errors = {}, {}, summary.errors
    for _, percent in ipairs({%(percents)s}) do
        local value = percent < 100 and latency:percentile(percent) or latency.max
        table.insert(microseconds, string.format('"%%s": %%.0f', percent, value))
    end
    for status, times in pairs(worker:get("statuses")) do
        table.insert(counted, string.format('"%%s": %%d', status, times))
    end
    print("RESULT " .. string.format(
        '{"requests": %%d, "microseconds": %%d, "bytes": %%d, "above_399": %%d, "connect": %%d, "read": %%d, ' ..
        '"write": %%d, "timeout": %%d, "ran_out": %%d, "percentiles": {%%s}, "statuses": {%%s}}',
        summary.requests, summary.duration, summary.bytes, errors.status, errors.connect, errors.read,
        errors.write, errors.timeout, worker:get("ran_out"),
        table.concat(microseconds, ", "), table.concat(counted, ", ")))
end
"""
_COUNT_STATUSES = "function response(status) statuses[status] = (statuses[status] or 0) + 1 end\n"


class WrkError(Exception):
    """wrk did not do what it was asked for; its text is what it said."""


def is_installed() -> bool:
    """Is there a wrk on PATH?"""
    return shutil.which("wrk") is not None


def run(
    port: int,
    message: Message,
    numbers: Numbers,
    *,
    connections: int,
    seconds: int,
    kept: bool,
    body_bytes: int | None = None,
) -> Sample:
    """Let so many clients ask for so many seconds, on kept connections or on a new one for each request.

    `body_bytes`, in every answer, is given where bodies are too large to look at the answers one by one: their sum is
    checked then, and each status otherwise. Latencies leave the TCP handshake out, and wrk adds to them what a slow
    answer kept from being asked. WrkError.
    """
    sent = message if kept else message.closing()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_script(sent, numbers, counts_statuses=body_bytes is None))
        script.flush()
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script.name]
        done = subprocess.run(
            ["wrk", *options, f"http://127.0.0.1:{port}"],  # noqa: S607  # where PATH has it
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + _GRACE_SECONDS,
        )
    return parsed(done.stdout + done.stderr, message.status, connections=connections, body_bytes=body_bytes)


def parsed(output: str, status: int, *, connections: int, body_bytes: int | None) -> Sample:
    """The sample that the script's RESULT line tells of; `status` is the right one. WrkError."""
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise WrkError(f"wrk gave no result: {output.strip()}")
    told = json.loads(line.removeprefix("RESULT "))
    if told["ran_out"]:
        raise WrkError("wrk was given too few numbers")
    wrong: Counter[str] = Counter({name: told[name] for name in ("connect", "read", "write", "timeout") if told[name]})
    if body_bytes is None:
        count = told["statuses"].pop(str(status), 0)
        wrong.update({f"{other} instead of {status}": times for other, times in told["statuses"].items()})
    else:
        count = told["requests"] - told["above_399"]
        if told["above_399"]:
            wrong["a status above 399"] = told["above_399"]
        # Beside what is complete wrk counts the bytes of what was under way at the end.
        most = (body_bytes + _HEAD_BYTES) * (told["requests"] + connections)
        if not body_bytes * count <= told["bytes"] <= most:
            wrong[f"{told['bytes']} bytes in {told['requests']} answers of {body_bytes}"] = told["requests"]
    microseconds = {float(percent): value for percent, value in told["percentiles"].items()}
    return Sample(
        count,
        told["microseconds"] / 1e6,
        wrong,
        percentiles={percent: value / 1e6 for percent, value in microseconds.items()} if count else {},
    )


def _script(message: Message, numbers: Numbers, *, counts_statuses: bool) -> str:
    # A JSON string of ASCII is a Lua string, too.
    parts = [json.dumps(part) for part in message.template.decode().split(TAG)]
    return _SCRIPT % {
        "parts": ", ".join(parts),
        "first": numbers.first,
        "count": numbers.count,
        "again": "true" if numbers.again else "false",
        "digits": DIGITS,
        "scatter": SCATTER,
        "response": _COUNT_STATUSES if counts_statuses else "",
        "percents": ", ".join(f"{percent:g}" for percent in PERCENTILES),
    }
