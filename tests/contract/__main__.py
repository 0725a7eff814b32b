"""`python -m tests.contract --examples 1000`: the document against the running service, for as long as you like."""

import random
import sys
import tempfile
from pathlib import Path

import click

from tests.contract import run


@click.command()
@click.option("--examples", default=1000, show_default=True, help="How often each operation is asked.")
@click.option("--chains", default=1000, show_default=True, help="How many chains of links are followed.")
@click.option("--seed", type=int, help="Any, and told, unless it is given.")
def main(examples: int, chains: int, seed: int | None) -> None:
    """Exit code 1 when an answer is not as described."""
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    with tempfile.TemporaryDirectory(prefix="streamorch-contract-") as folder:
        outcome = run(Path(folder), examples=examples, chains=chains, seed=seed)
    click.echo(outcome.told)
    for label, counted in sorted(outcome.answers.items()):
        click.echo(f"  {label:40}" + " ".join(f"{status}: {times}" for status, times in sorted(counted.items())))
    click.echo(f"seed {seed}, {sum(counted.total() for counted in outcome.answers.values())} answers")
    sys.exit(not outcome.passed)


if __name__ == "__main__":
    main()
