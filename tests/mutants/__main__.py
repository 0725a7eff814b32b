"""`python -m tests.mutants`: every mutant, or those named; exit code 1 when one survives or cannot be judged."""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]

_COPIED = ("streamorch", "sql", "mediamtx", "tests", "bench", "setup.cfg", "setup.py", "gunicorn.conf.py", "README.rst")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "results")
_JUDGE_SECONDS = 300.0
# What pytest's exit code says of the mutant that it ran on.
_VERDICTS = {0: "SURVIVED", 1: "noticed"}
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class Judged(NamedTuple):
    """What became of a mutant; `said` has pytest's words where the verdict is not 'noticed'."""

    mutant: Mutant
    verdict: str
    seconds: float
    said: str


def main() -> int:
    """Judge what the command line names; 0 when all of it is noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--mutant", action="append", choices=MUTANTS, metavar="NAME", help=", ".join(MUTANTS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="how many at a time")
    asked = parser.parse_args()
    wanted = [MUTANTS[name] for name in asked.mutant or MUTANTS]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamorch-mutants-") as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(max(1, asked.jobs)):
            copies.put(_copy(Path(folder, str(number))))
        copy = copies.get()
        tests = sorted({test for mutant in wanted for test in mutant.tests})
        passed, said = _run(copy, tests)
        copies.put(copy)
        if passed != 0:
            print(f"without any mutant {', '.join(tests)} should pass:\n{said}")
            return 1
        print(f"{'mutant':<44}{'verdict':<12}{'seconds':>7}  noticed by")
        with ThreadPoolExecutor(asked.jobs) as pool:
            judged = list(pool.map(lambda mutant: _judge(mutant, copies), wanted))
    bad = [each.mutant.name for each in judged if each.verdict != "noticed"]
    print(
        f"{len(judged)} mutants, {time.monotonic() - began:.0f} s, "
        + (f"not noticed: {', '.join(bad)}" if bad else "all noticed")
    )
    return 1 if bad else 0


def _judge(mutant: Mutant, copies: "queue.Queue[Path]") -> Judged:
    copy = copies.get()
    began = time.monotonic()
    file = copy / mutant.file
    right = file.read_text(encoding="utf-8")
    try:
        file.write_text(mutant.applied_to(right), encoding="utf-8")
        code, said = _run(copy, mutant.tests)
    finally:
        file.write_text(right, encoding="utf-8")
        copies.put(copy)
    judged = Judged(mutant, _VERDICTS.get(code, "no verdict"), time.monotonic() - began, said)
    noticed_by = _FAILED.search(said)
    print(
        f"{mutant.name:<44}{judged.verdict:<12}{judged.seconds:>7.1f}  {noticed_by[1] if noticed_by else ''}",
        flush=True,
    )
    if judged.verdict != "noticed":
        print(said, flush=True)
    return judged


def _copy(folder: Path) -> Path:
    folder.mkdir()
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=_LEFT_OUT)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def _run(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code, -1 when it was not done in time, and its last words; the sources are those of the copy."""
    # `-m` puts the folder it runs in first, before an installed streamorch.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *tests]
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=copy, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            output, _ = process.communicate(timeout=_JUDGE_SECONDS * max(1, len(tests)))
        except subprocess.TimeoutExpired:
            process.terminate()
            output, _ = process.communicate()
            return -1, output.decode(errors="replace")[-2000:]
    return process.returncode, output.decode(errors="replace")[-2000:]


if __name__ == "__main__":
    sys.exit(main())
