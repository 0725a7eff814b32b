"""`python -m tests.proof`: everything that is proven by doing it very often, one part after the other, with a report.

`make test` does the same in short. What each part printed stands in `.proof/`, its last line in the report.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".proof"


class Part(NamedTuple):
    """A command of this Python, what is put into its environment, and what it proves."""

    command: tuple[str, ...]
    proves: str
    environ: Mapping[str, str] = {}


_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
PARTS = {
    "mutants": Part(("-m", "tests.mutants"), "each promise has a test that fails when the code breaks it"),
    "races": Part(("-m", "tests.races"), "10,000 races of each kind have no two winners"),
    "world": Part(("-m", "tests.world", "--examples", "3000"), "no order of events breaks an invariant"),
    "faults": Part(
        (*_PYTEST, "-s", "tests/faults"),
        "nothing is lost when something fails",
        {"PROOF_SECONDS": "10"},
    ),
    "fuzz": Part(
        (*_PYTEST, "tests/fuzz"),
        "no input is an unhandled exception",
        {"HYPOTHESIS_PROFILE": "proof"},
    ),
    "contract": Part(
        ("-m", "tests.contract", "--examples", "100", "--chains", "500"), "every answer is one that is described"
    ),
}


def main() -> int:
    """Run the parts that the command line names; 0 when all of them hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, metavar="NAME", help=", ".join(PARTS))
    asked = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    print(f"{'part':<10}{'holds':<7}{'seconds':>8}  said last")
    broken = []
    for name in asked.part or PARTS:
        holds, seconds, said = _run(name, PARTS[name])
        print(f"{name:<10}{'yes' if holds else 'NO':<7}{seconds:>8.0f}  {said}", flush=True)
        broken += [] if holds else [name]
    print("all of it holds" if not broken else f"does not hold: {', '.join(broken)}; see {FOLDER.name}/")
    return 1 if broken else 0


def _run(name: str, part: Part) -> tuple[bool, float, str]:
    """Does it hold, how long did it take, and the last line that it printed?"""
    began = time.monotonic()
    log = FOLDER / f"{name}.log"
    with log.open("wb") as output:
        code = subprocess.run(
            [sys.executable, *part.command],
            cwd=ROOT,
            env={**os.environ, **part.environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return code == 0, time.monotonic() - began, lines[-1].strip("= ") if lines else ""


if __name__ == "__main__":
    sys.exit(main())
