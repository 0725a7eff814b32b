"""The document against the running service: schemathesis, with every check on."""

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import requests

from streamorch import examples as documented
from tests.conftest import API_SECRET
from tests.running import ROOT, Service

CALLBACK_SECRET = "callback-secret"
HERE = Path(__file__).parent
_LIVE, _ENDED = 12, 6


@dataclass
class Outcome:
    """How a run ended: is all as described, and what was said.

    `answers` counts the statuses of each operation ("GET /streams"), `followed` holds the links that led to a 2xx, and
    `checks` what was looked at.
    """

    passed: bool = True
    told: str = ""
    answers: dict[str, Counter[int]] = field(default_factory=dict)
    followed: set[str] = field(default_factory=set)
    checks: set[str] = field(default_factory=set)


def run(folder: Path, *, examples: int, chains: int, seed: int) -> Outcome:
    """Ask a service of our own what the document lets one ask: `examples` of each operation, and `chains` of links."""
    (folder / "service").mkdir()
    service = Service(
        folder / "service",
        MEDIAMTX_CALLBACK_SECRET=CALLBACK_SECRET,
        LOG_LEVEL="error",
        # All of it comes from one address and has one credential.
        REFUSALS_PER_MINUTE="0",
        API_WRITES_PER_MINUTE="0",
    )
    outcome = Outcome()
    try:
        for name, phases, times in (("alone", "examples,coverage,fuzzing", examples), ("linked", "stateful", chains)):
            with psycopg.connect(service.database_url, autocommit=True) as conn:
                _populate(service.url, conn)
            _ask(service.url, folder / name, phases, times, seed, outcome)
        outcome.told += service.log.read_text()
    finally:
        service.close()
    return outcome


def _populate(url: str, conn: psycopg.Connection) -> None:
    """A world to ask about: what the examples of the document speak of, and streams that are live or have ended."""
    ours, theirs = ({"Authorization": f"Bearer {secret}"} for secret in (API_SECRET, CALLBACK_SECRET))

    def tell(path: str, body: dict[str, Any], headers: dict[str, str]) -> requests.Response:
        return requests.post(f"{url}{path}", json=body, headers=headers, timeout=30)

    tell("/broadcasters", documented.OF["NewBroadcaster"] | {"id": documented.IDS["broadcaster_id"]}, ours)
    tell("/stream-keys", documented.OF["NewStreamKey"] | {"id": documented.IDS["stream_key_id"]}, ours)
    tell("/api-clients", documented.OF["NewAPIClient"] | {"id": documented.IDS["api_client_id"]}, ours)
    # They are of a broadcaster that no example names, or the first DELETE would end them all.
    other = tell("/broadcasters", {"display_name": "Boat 4"}, ours).json()["id"]
    for number in range(_LIVE + _ENDED):
        key = tell("/stream-keys", {"broadcaster_id": other}, ours).json()
        connection, path = str(uuid.uuid4()), key["publish"]["path"]
        question = {
            "action": "publish",
            "password": key["key_value"],
            "path": path,
            "protocol": "rtmp",
            "id": connection,
        }
        assert tell("/auth", question, theirs).status_code == 200
        if number == 0:  # the stream of the examples; nobody can ask for an id of his own
            conn.execute(
                """
                UPDATE streams SET id = %(id)s
                WHERE auth_id = %(auth_id)s AND NOT EXISTS (SELECT 1 FROM streams WHERE id = %(id)s)
                """,
                {"id": documented.IDS["stream_id"], "auth_id": connection},
            )
        event = {"path": path, "source_type": "rtmpConn", "source_id": connection}
        assert tell("/webhook/ready", event, theirs).status_code == 204
        if number >= _LIVE:
            assert tell("/webhook/not-ready", event, theirs).status_code == 204


def _ask(url: str, report: Path, phases: str, examples: int, seed: int, outcome: Outcome) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", HERE / "schemathesis.toml"),
            *("run", f"{url}/openapi.json", "--url", url, "--no-color"),
            *("--phases", phases, "--max-examples", str(examples), "--seed", str(seed)),
            *("--report-ndjson-path", report),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.contract.hooks",
            "STREAMORCH_TEST_API_SECRET": API_SECRET,
            "STREAMORCH_TEST_CALLBACK_SECRET": CALLBACK_SECRET,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    outcome.passed = outcome.passed and done.returncode == 0
    outcome.told += done.stdout
    with report.open(encoding="utf-8") as events:
        for event in map(json.loads, events):
            if "ScenarioFinished" in event:
                _note(event["ScenarioFinished"]["recorder"], outcome)


def _note(recorder: dict[str, Any], outcome: Outcome) -> None:
    for name, case in recorder.get("cases", {}).items():
        response = recorder["interactions"].get(name, {}).get("response")
        if response is None:
            continue
        status = response["status_code"]
        label = f"{case['value']['method']} {case['value']['path']}"
        outcome.answers.setdefault(label, Counter())[status] += 1
        if case.get("is_transition_applied") and status < 300:
            outcome.followed.add(case["transition"]["id"])
        outcome.checks |= {check["name"] for check in recorder["checks"].get(name, ())}
