"""ops/: every expression names metrics, labels and values that the service has, and Prometheus can read it."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import connect
from tests.conftest import API_SECRET, MediaServer
from tests.scraping import names

OPS = Path(__file__).resolve().parent.parent / "ops"
RULES = OPS / "prometheus-alerts.yml"
# What Prometheus itself adds.
ADDED = {"instance", "job"}

_METRIC = re.compile(r"\b(streamorch_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=|!=|=~|!~)"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring) \(([\w, ]+)\)")

promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not on PATH")


def of_rules() -> list[str]:
    return re.findall(r"^ +expr: (.+)$", RULES.read_text(), re.MULTILINE)


def of_dashboard() -> list[str]:
    dashboard = json.loads((OPS / "grafana-dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.fixture
def told(app, make_settings, database_url, fake, make_key) -> dict[str, set[str]]:
    """What is exported when everything has happened once: the names of all samples, with those of their labels."""
    client = app.test_client()
    media_server = MediaServer(client)
    source_id = media_server.go_live(make_key())
    fake.publish("live/cam7", connection_id=source_id)
    client.get("/streams", headers={"Authorization": f"Bearer {API_SECRET}"})
    api = ControlAPI(fake.url, user="streamorch", password="secret")
    reconciler = Reconciler(make_settings(MEDIAMTX_API_URL=fake.url), api, app.extensions["streamorch"].metrics)
    with connect(database_url) as conn:
        assert reconciler.tick(conn, force=True)
        reconciler.resign(conn)
    return names(client.get("/metrics", headers={"Authorization": f"Bearer {API_SECRET}"}).text)


@pytest.mark.parametrize("expressions", [of_rules, of_dashboard])
def test_every_expression_names_what_is_exported(expressions, told, app):
    found = expressions()
    assert len(found) > 10
    values: dict[str, set[str]] = defaultdict(set)
    for each in app.extensions["streamorch"].metrics._all:
        for label, all_values in zip(each.family.labels, each._values, strict=True):
            values[label] |= set(map(str, all_values))
    values["state"] = {"pending", "active"}
    for expression in found:
        known = set(ADDED)
        metrics = _METRIC.findall(expression)
        for name, matchers in metrics:
            assert name in told, (name, expression)
            known |= told[name]
            for label, how, value in _MATCHER.findall(matchers):
                assert label in told[name] | ADDED, (label, expression)
                if label in ADDED:
                    continue
                for part in value.split("|") if "~" in how else [value]:
                    assert any(re.fullmatch(part, own) for own in values[label]), (part, expression)
        for grouping in _GROUPING.findall(expression):
            assert {label.strip() for label in grouping.split(",")} <= known, (grouping, expression)
        assert metrics or expression.startswith("up{")


def test_every_metric_is_in_the_rules_or_on_the_dashboard(app):
    shown = " ".join(of_rules() + of_dashboard())
    missing = [family.name for family in app.extensions["streamorch"].metrics.families if family.name not in shown]
    assert missing == []


def test_every_alert_says_how_grave_it_is_and_what_it_means():
    text = RULES.read_text()
    alerts = text.split("      - alert: ")[1:]
    assert len(alerts) == len(of_rules())
    for alert in alerts:
        assert re.search(r"labels: \{severity: (critical|warning)\}", alert), alert
        assert re.search(r'summary: ".+"', alert), alert


@promtool
@pytest.mark.parametrize(
    "arguments", [("check", RULES.name), ("test", "prometheus-alerts.test.yml")], ids=lambda a: a[0]
)
def test_prometheus_reads_the_rules_and_they_speak_when_they_should(arguments):
    what, file = arguments
    done = subprocess.run(["promtool", what, "rules", file], cwd=OPS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_reads_every_expression_of_the_dashboard(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(of_dashboard())
    ]
    file = tmp_path / "rules.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
