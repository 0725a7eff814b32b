"""The results of a run: each beside its floors, as lines of one table and as JSON."""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import psycopg

from bench.figures import Figures

_ROOT = Path(__file__).resolve().parent.parent
_SHOWN = (50.0, 95.0, 99.0, 100.0)
_NAME = 48
# What the last columns mean.
LEGEND = """\
To the floor: how many times its p50 and p95, and what share of its requests per second. The floor of a claim, of its
refusal and of its replay is the empty Flask view and the statement alone, one after the other (in bursts: the view);
that of everything else is the empty Flask view, with as many bytes in its answer. CPU: seconds for 1,000 requests."""
_WRK = {True: "wrk", False: "no wrk: the clients that never pause are Python's"}


@dataclass(frozen=True)
class Floor:
    """What a case is held against: milliseconds of p50 and p95 and requests per second; None is no floor of it."""

    name: str
    p50: float | None = None
    p95: float | None = None
    per_second: float | None = None

    @classmethod
    def of(cls, *, latency: Sequence[tuple[str, Figures]] = (), rate: Sequence[tuple[str, Figures]] = ()) -> "Floor":
        """From its named parts, which follow one another: latencies add up, and so do the reciprocals of rates.

        (Two p95 together are more than the p95 of both: that ratio flatters a little.)
        """
        parts = [figures.milliseconds for _, figures in latency]
        known = bool(parts) and all(50.0 in each and 95.0 in each for each in parts)
        return cls(
            " + ".join(name for name, _ in latency or rate),
            p50=sum(each[50.0] for each in parts) if known else None,
            p95=sum(each[95.0] for each in parts) if known else None,
            per_second=1 / sum(1 / figures.per_second for _, figures in rate) if rate else None,
        )


@dataclass(frozen=True)
class Ratio:
    """A case over its floor: how many times its p50 and p95, and what share of its rate; None without that floor."""

    p50: float | None
    p95: float | None
    per_second: float | None


def ratio(figures: Figures, floor: Floor) -> Ratio:
    """The case over the floor."""
    over = figures.milliseconds
    return Ratio(
        p50=over[50.0] / floor.p50 if floor.p50 and 50.0 in over else None,
        p95=over[95.0] / floor.p95 if floor.p95 and 95.0 in over else None,
        per_second=figures.per_second / floor.per_second if floor.per_second else None,
    )


@dataclass(frozen=True)
class Result:
    """A case with its floors: what was measured beside it, the floor that this makes, and the no-op."""

    case: str
    figures: Figures
    beside: dict[str, Figures] = field(default_factory=dict)
    floor: Floor | None = None
    no_op: Floor | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Report:
    """The results of a run, shown as they come and saved at the end."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about
        self.results: list[Result] = []
        self.notes: dict[str, Any] = {}
        self._shown: list[tuple[str, Figures]] = []

    @property
    def wrong(self) -> list[str]:
        """The cases that got other answers than they should, be it beside them."""
        return [
            result.case
            for result in self.results
            if result.figures.wrong or any(figures.wrong for figures in result.beside.values())
        ]

    def add(self, result: Result) -> None:
        """Show a result, with what was measured beside it unless that was shown before, and keep it."""
        self.results.append(result)
        news = [part for part in result.beside.items() if part not in self._shown]
        self._shown += news
        for line in lines(result, dict(news)):
            click.echo(line)

    def save(self, file: Path) -> None:
        """Write everything that was measured as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.as_json(), indent=1) + "\n")

    def as_json(self) -> dict[str, Any]:
        """What `save` writes: `about` the run, its `notes`, which cases were `wrong`, and the `results`."""
        results = [
            asdict(result)
            | {
                "ratios": {
                    name: asdict(ratio(result.figures, floor))
                    for name, floor in (("floor", result.floor), ("no_op", result.no_op))
                    if floor is not None
                }
            }
            for result in self.results
        ]
        return {"about": self.about, "notes": self.notes, "wrong": self.wrong, "results": results}


def heading() -> list[str]:
    """The lines above the results."""
    ratios = f"{'p50':>5} {'p95':>5} {'/s':>6}"
    above = (
        f"{'milliseconds':^35} {'requests':>8}  {'CPU s/1000 requests':^19}  {'to the floor':^18}  {'to the no-op':^18}"
    )
    below = f"{'p50':>8} {'p95':>8} {'p99':>8} {'max':>8} {'/s':>8}  {'workers':>9} {'postgres':>9}  {ratios}  {ratios}"
    return [f"{'':{_NAME}} {above}".rstrip(), f"{'case':{_NAME}} {below}"]


def lines(result: Result, beside: dict[str, Figures]) -> list[str]:
    """A line for the case, and one for each of these that were measured beside it."""
    own = _line(result.case, result.figures)
    for floor in (result.floor, result.no_op):
        own += "  " + _ratio(ratio(result.figures, floor) if floor else Ratio(None, None, None))
    shown = [own.rstrip()]
    shown += _wrong(result.figures)
    shown += [f"    {name}: {value}" for name, value in result.notes.items()]
    for name, figures in beside.items():
        shown += [_line(f"    {name}", figures).rstrip(), *_wrong(figures)]
    return shown


def _wrong(figures: Figures) -> list[str]:
    return [f"    WRONG, {times} times: {what}" for what, times in figures.wrong.items()]


def _line(name: str, figures: Figures) -> str:
    latencies = " ".join(_number(figures.milliseconds.get(percent), 8, 2) for percent in _SHOWN)
    cpu = f"{_number(figures.workers_cpu, 9, 3)} {_number(figures.database_cpu, 9, 3)}"
    return f"{name:{_NAME}} {latencies} {_number(figures.per_second or None, 8, 0)}  {cpu}"


def _ratio(found: Ratio) -> str:
    share = "" if found.per_second is None else f"{found.per_second:.0%}"
    return f"{_number(found.p50, 5, 2)} {_number(found.p95, 5, 2)} {share:>6}"


def _number(value: float | None, width: int, digits: int) -> str:
    return " " * width if value is None else f"{value:{width}.{digits}f}"


def about(postgresql: str, *, workers: int, threads: int) -> dict[str, Any]:
    """The machine, the versions of everything, the commit, and how many workers of how many threads serve."""
    names = ("gunicorn", "flask", "psycopg", "msgspec")
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": postgresql,
        **{name: version(name) for name in names},
        "psycopg_implementation": psycopg.pq.__impl__,
        "workers": workers,
        "threads": threads,
        "wrk": shutil.which("wrk") is not None,
    }


def described(about: dict[str, Any]) -> str:
    """The same as three lines."""
    machine = f"{about['cores']} cores of {about['cpu']}, {about['memory_gb']} GB, {about['system']}"
    versions = ", ".join(f"{name} {about[name.lower()]}" for name in ("Python", "PostgreSQL", "gunicorn", "Flask"))
    psycopg_and_wrk = f"psycopg {about['psycopg']} ({about['psycopg_implementation']}), {_WRK[about['wrk']]}"
    size = f"{about['workers']} workers of {about['threads']} threads"
    return f"{machine}\n{versions}, {psycopg_and_wrk}\n{size}, commit {about['commit']}, {about['at']}"


def _commit() -> str:
    """The commit that is checked out, `-dirty` when files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607  # where PATH has it
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
