"""The `streamorch` command: each of its commands is a file of `commands/`, imported when it is asked for."""

import signal
import sys

if (__name__ == "__main__" or sys.argv[0].endswith("/streamorch")) and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # A Ctrl-C while the rest is imported ends the command without a traceback; `run` catches it later.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from importlib import import_module

import click

from streamorch import __version__


class Commands(click.Group):
    """A group whose commands are found by name: no command waits until the imports of all the others are done."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_FILES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _FILES:
            return None
        command: click.Command = import_module(f"streamorch.commands.{_FILES[cmd_name]}").command
        return command


# In the order in which they are met.
_FILES = {
    "run": "run",
    "serve": "serve",
    "migrate": "migrate",
    "mediamtx-config": "mediamtx_config",
    "doctor": "doctor",
    "broadcasters": "broadcasters",
    "keys": "keys",
    "clients": "clients",
    "streams": "streams",
    "tail": "tail",
    "nodes": "nodes",
    "reconcile": "reconcile",
    "import-rescuestream": "import_rescuestream",
    "openapi": "openapi",
}


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="streamorch", message="%(prog)s %(version)s")
def main() -> None:
    """Decides who may publish to a MediaMTX server, and knows what is live."""


if __name__ == "__main__":
    main(prog_name="streamorch")
