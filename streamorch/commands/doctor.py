"""`streamorch doctor`."""

import os
import sys

import click

from streamorch import doctor


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def command(as_json: bool) -> None:
    """Find what is wrong with settings, database, service and MediaMTX, and the line that mends it.

    Exit code 0: all is well, be it with warnings. 1: something is wrong. 2: something could not be judged.

    \b
    Examples:
      streamorch doctor
      streamorch doctor --json | jq -r '.findings[] | select(.state == "wrong").name'
    """
    findings = doctor.examine(os.environ)
    click.echo(doctor.as_json(findings) if as_json else doctor.as_text(findings))
    sys.exit(doctor.exit_code(findings))
