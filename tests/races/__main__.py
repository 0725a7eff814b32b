"""`python -m tests.races`: every kind of race, 10,000 rounds each; exit code 1 when a single round went wrong."""

import argparse
import signal
import sys
import time
from collections import Counter
from typing import NoReturn

from tests.databases import database, server
from tests.races.broken import BREAKS
from tests.races.crew import THREADS, Crew
from tests.races.kinds import KINDS
from tests.races.verdict import Verdict, hold

_EXAMPLES = 3


def main() -> int:
    """Hold the races that the command line asks for; 0 when all of them went right."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, _leave)
    began = time.monotonic()
    wrong = []
    print(f"{asked.processes} processes, {THREADS} threads each" + (f", {asked.broken}" if asked.broken else ""))
    print(f"{'kind':<30}{'rounds':>7}{'wrong':>7}{'errors':>7}{'seconds':>9}  {'winners: rounds':<22}  outcomes")
    with server(asked.database_url) as server_url, Crew(asked.processes) as crew:
        for kind_name in asked.kind or KINDS:
            with database(server_url) as database_url:
                verdict = hold(crew, kind_name, database_url, asked.rounds, broken=asked.broken)
            _show(verdict)
            wrong += [kind_name] if verdict.complaints else []
    print(f"{time.monotonic() - began:.0f} s, " + (f"wrong: {', '.join(wrong)}" if wrong else "all as it must be"))
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.races", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000, metavar="N", help="of each kind (default 10000)")
    parser.add_argument(
        "--processes", type=int, default=2, metavar="P", help=f"with {THREADS} threads each (default 2)"
    )
    parser.add_argument("--kind", action="append", choices=KINDS, metavar="NAME", help=", ".join(KINDS))
    parser.add_argument(
        "--database-url", metavar="URL", help="a server, as its superuser; databases are made there and dropped"
    )
    parser.add_argument(
        "--break", dest="broken", choices=BREAKS, metavar="NAME", help="see that it is noticed: " + ", ".join(BREAKS)
    )
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not 2 <= asked.processes <= 16:
        parser.error("--processes must be from 2 to 16: a round needs three workers")
    return asked


def _leave(*_: object) -> NoReturn:
    """SIGTERM ends as Ctrl-C does: with everything stopped."""
    raise KeyboardInterrupt


def _show(verdict: Verdict) -> None:
    print(
        f"{verdict.kind:<30}{verdict.rounds:>7}{len(verdict.complaints):>7}{verdict.errors:>7}{verdict.seconds:>9.1f}"
        f"  {_counts(verdict.winners):<22}  {_counts(verdict.outcomes)}",
        flush=True,
    )
    for line in verdict.complaints[:_EXAMPLES]:
        print(f"    {line}")


def _counts(counted: "Counter[int] | Counter[str]") -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(counted.items(), key=str))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
