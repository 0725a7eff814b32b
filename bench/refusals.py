"""Does the time of a refusal tell which keys exist? Unknown, revoked, expired, disabled and bound keys, in turns.

`python -m bench.refusals`: each class is asked about in each turn, the unknown keys twice, as two classes of their own:
what lies between those two is the noise. Of every other class the difference of its median to the unknown ones', with
an interval by bootstrap over turns. What differs by design is the answer: its slug tells that a key was revoked.
"""

import random
import signal
import statistics
import tempfile
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import LiteralString

import click

from bench import data, load, messages, servers
from bench.__main__ import leave

_KEYS = 200
_ROUNDS = 2000  # of the bootstrap
_UNKNOWN, _AGAIN = "unknown", "unknown, again"
_STATES: dict[str, LiteralString] = {
    "revoked": "revoked_at = clock_timestamp()",
    "expired": "expires_at = clock_timestamp() - interval '1 hour'",
    "disabled": "disabled_at = clock_timestamp()",
    "bound elsewhere": "path = 'bound/' || id",
}


@click.command()
@click.option("--turns", default=60, show_default=True, help="How often each class is asked about.")
@click.option("--count", default=100, show_default=True, help="Questions of a class in a turn.")
@click.option("--kept", is_flag=True, help="All questions of a turn on one connection.")
def main(turns: int, count: int, kept: bool) -> None:
    """Measure, and print a line for each class."""
    signal.signal(signal.SIGTERM, leave)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamorch-bench-")))
        folder.chmod(0o711)
        server = stack.enter_context(data.server(None, folder))
        database = stack.enter_context(server.database())
        service = stack.enter_context(servers.service(folder, database.url, log_level="warning"))
        classes = {_UNKNOWN: data.UNKNOWN, _AGAIN: data.UNKNOWN}
        classes |= {name: database.take_changed(_KEYS, change) for name, change in _STATES.items()}
        database.settle()
        message = messages.claim().with_status(401)
        found: dict[str, list[list[float]]] = {name: [] for name in classes}
        order = list(classes)
        for turn in range(-2, turns):
            random.shuffle(order)  # nobody has to be unable to guess it
            for name in order:
                sample = load.one_by_one(service.port, message, islice(classes[name], count), kept=kept)
                if sample.wrong:
                    raise click.ClickException(f"{name}: {dict(sample.wrong)}")
                if turn >= 0:  # the first two warm it
                    found[name].append(list(sample.latencies))
    click.echo(f"{turns} turns of {count} questions of each class; microseconds")
    click.echo(f"{'':18}{'median':>9}{'p95':>9}   median beside the unknown ones', 95 % interval")
    for name, each in found.items():
        every = sorted(latency for turn in each for latency in turn)
        low, middle, high = _difference(each, found[_UNKNOWN])
        told = "" if name == _UNKNOWN else f"   {middle:+7.1f}  [{low:+.1f}, {high:+.1f}]"
        click.echo(f"{name:18}{1e6 * statistics.median(every):9.1f}{1e6 * every[len(every) * 95 // 100]:9.1f}{told}")


def _difference(one: list[list[float]], other: list[list[float]]) -> tuple[float, float, float]:
    """Median of one minus median of the other in microseconds: 2.5 %, 50 % and 97.5 % of resampled turns.

    Turns are drawn in pairs: both classes were asked about at nearly the same time.
    """
    # The median of each turn stands for it: a slow moment of the machine is one turn, not a hundred questions.
    pairs = [1e6 * (statistics.median(a) - statistics.median(b)) for a, b in zip(one, other, strict=True)]
    draw = random.Random(1)  # noqa: S311
    drawn = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(_ROUNDS))
    return drawn[_ROUNDS * 25 // 1000], statistics.median(pairs), drawn[_ROUNDS * 975 // 1000]


if __name__ == "__main__":
    main(prog_name="python -m bench.refusals")
