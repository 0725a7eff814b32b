"""`streamorch doctor`: what is wrong between streamorch, its database and its media server, and the line that mends it.

Facts are asked for in asking.py, all at once and within ten seconds; here they are judged, each check by a function
that knows the facts and nothing else.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import msgspec

from streamorch.doctor import asking, hooks, media, own, public
from streamorch.doctor.facts import Absent, Facts, Finding, Health, Verdict
from streamorch.doctor.verdicts import secrets_of, without_secrets, wrong
from streamorch.settings import SettingError, Settings


class Check(NamedTuple):
    """A check by its name, and the facts without which it is skipped."""

    name: str
    judge: Callable[[Facts], Verdict]
    needs: tuple[str, ...] = ("settings",)


_DATABASE = ("settings", "database")
_MEDIA = ("settings", "media_server")

CHECKS = (
    Check("settings", own.settings, ()),
    Check("database", own.database),
    Check("database-schema", own.database_schema, _DATABASE),
    Check("database-writable", own.database_writable, _DATABASE),
    Check("database-connections", own.database_connections, _DATABASE),
    Check("database-latency", own.database_latency, _DATABASE),
    Check("database-clock", own.database_clock, _DATABASE),
    Check("service", own.service),
    Check("callback", own.callback),
    Check("control-api", media.control_api),
    Check("mediamtx-version", media.version, _MEDIA),
    Check("mediamtx-clock", media.clock, _MEDIA),
    Check("auth-method", media.auth_method, _MEDIA),
    Check("auth-address", media.auth_address, _MEDIA),
    Check("auth-exclude", media.auth_exclude, _MEDIA),
    Check("api-exposure", media.api_exposure, _MEDIA),
    Check("read-timeout", media.read_timeout, _MEDIA),
    Check("hooks", hooks.hooks, _MEDIA),
    Check("hooks-of-paths", hooks.hooks_of_paths, _MEDIA),
    Check("heard", own.heard, _DATABASE),
    Check("override-publisher", media.override_publisher, _MEDIA),
    Check("paths", media.paths, _MEDIA),
    *(Check(f"url-{protocol}", partial(public.url, protocol)) for protocol in public.PROTOCOLS),
)
_WORST_FIRST: tuple[Health, ...] = ("wrong", "unknown", "skipped", "warning", "ok")
# What is said of a check that lacks one of these facts.
_LACKS = {
    "settings": "the settings cannot be read",
    "database": "the database does not answer",
    "media_server": "MediaMTX's configuration cannot be read",
}


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Ask everybody, and judge. Returns within ten seconds."""
    return judge(asking.facts(environ))


def examine_running(settings: Settings) -> list[Finding]:
    """The same for a service that runs with these settings."""
    return judge(asking.facts_of(settings))


def judge(facts: Facts) -> list[Finding]:
    """What each check says, in the order of the table; no secret is in it."""
    hidden = secrets_of(facts)
    return [
        Finding(check.name, verdict.state, without_secrets(verdict.text, hidden), without_secrets(verdict.mend, hidden))
        for check in CHECKS
        for verdict in [_verdict(check, facts)]
    ]


def _verdict(check: Check, facts: Facts) -> Verdict:
    missing = next((need for need in check.needs if isinstance(getattr(facts, need), Absent)), None)
    if missing is not None:
        return Verdict("skipped", _LACKS[missing])
    try:
        return check.judge(facts)
    except SettingError as error:  # a setting that MediaMTX's lines cannot be made of
        return wrong(str(error))


def exit_code(findings: Iterable[Finding]) -> int:
    """0: all is well, be it with warnings. 1: something is wrong. 2: something could not be judged."""
    states = {finding.state for finding in findings}
    if "wrong" in states:
        return 1
    return 2 if states & {"unknown", "skipped"} else 0


def as_json(findings: list[Finding]) -> str:
    """For scripts: the findings and the exit code."""
    told = {"findings": [finding._asdict() for finding in findings], "exit_code": exit_code(findings)}
    return msgspec.json.format(msgspec.json.encode(told), indent=2).decode()


def as_text(findings: list[Finding]) -> str:
    """For people: a line for each check, below it what mends it, and a last line that sums up."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8} {finding.name:{width}}  {finding.text}")
        lines += [f"{'':8} {'':{width}}    {line}" for line in finding.mend.splitlines()]
    states = [finding.state for finding in findings]
    lines += ["", ", ".join(f"{states.count(state)} {state}" for state in _WORST_FIRST if state in states)]
    if any("in mediamtx.yml" in finding.mend for finding in findings):
        lines.append(
            "`streamorch mediamtx-config` prints all lines, with the secret. A change of them cuts live streams once."
        )
    return "\n".join(lines)
