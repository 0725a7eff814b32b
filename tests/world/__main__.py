"""`python -m tests.world`: thousands of examples of the model of the world; exit code 1 when one went wrong.

The seed is printed first: `--seed` plays the same examples again.
"""

import argparse
import logging
import random
import signal
import sys
import time
import traceback
from collections import Counter
from typing import NoReturn

from hypothesis.stateful import run_state_machine_as_test

from streamorch.app import create_app
from streamorch.settings import Settings
from tests.conftest import API_SECRET
from tests.databases import database, server
from tests.fake_mediamtx import FakeMediaMTX
from tests.world.actors import run
from tests.world.machine import VERSIONS, Machine, machine, settings_of

_FRAMES = 3


def main() -> int:
    """Play as many examples as the command line asks for; 0 when all of them went right."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, _leave)
    began = time.monotonic()
    print(f"seed {asked.seed}, {asked.examples} examples: {', '.join(asked.version or VERSIONS)}", flush=True)
    wrong = []
    with server(asked.database_url) as server_url:
        for version in asked.version or VERSIONS:
            with database(server_url, durable=False) as database_url:
                examples = max(1, asked.examples // len(asked.version or VERSIONS))
                if not _play(version, database_url, examples, asked):
                    wrong.append(version)
    print(f"{time.monotonic() - began:.0f} s, " + (f"wrong: {', '.join(wrong)}" if wrong else "all as it must be"))
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.world", description=__doc__)
    parser.add_argument("--examples", type=int, default=3000, metavar="N", help="of all versions (default 3000)")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="that of an earlier run")
    parser.add_argument("--shrink", action="store_true", help="look for a shorter story of what went wrong: minutes")
    parser.add_argument("--version", action="append", choices=VERSIONS, help="of the media server (default: all)")
    parser.add_argument(
        "--database-url", metavar="URL", help="a server, as its superuser; databases are made there and dropped"
    )
    asked = parser.parse_args()
    if asked.examples < 1:
        parser.error("--examples must be at least 1")
    if asked.seed is None:
        asked.seed = random.randrange(2**32)  # noqa: S311  # no secret
    return asked


def _leave(*_: object) -> NoReturn:
    """SIGTERM ends as Ctrl-C does: with everything stopped."""
    raise KeyboardInterrupt


def _play(version: str, database_url: str, examples: int, asked: argparse.Namespace) -> bool:
    """Play the examples of one version, and tell of them; did all go right?"""
    began = time.monotonic()
    with FakeMediaMTX(version) as fake:
        environ = {"DATABASE_URL": database_url, "API_SECRET": API_SECRET, "MEDIAMTX_API_URL": fake.url}
        app = create_app(Settings.from_env(environ | {"LOG_LEVEL": "error"}))
        service = app.extensions["streamorch"]
        service.database.await_connection(10)
        logging.disable(logging.ERROR)  # much goes wrong here, as it should
        try:
            with run(app, fake, database_url) as world:
                played = machine(world, seed=asked.seed)
                try:
                    run_state_machine_as_test(played, settings=settings_of(examples, shrink=asked.shrink))
                    failure = None
                except Exception as error:  # whatever it is, it is told, and the other versions are played
                    failure = error
        finally:
            service.kicker.close()
            service.database.close()
    _report(version, played, time.monotonic() - began)
    if failure is not None:
        print("\n".join(traceback.format_exception(failure, limit=-_FRAMES)), flush=True)
        print(f"again: python -m tests.world --seed {asked.seed} --version {version} --examples {examples}")
    return failure is None


def _report(version: str, played: type[Machine], seconds: float) -> None:
    print(f"{version}: {played.examples} examples, {sum(played.played.values())} steps, {seconds:.1f} s")
    for what, counted in (("steps", played.played), ("answers", played.answers), ("ends", played.ends)):
        print(f"    {what}: {_counts(counted)}", flush=True)


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
