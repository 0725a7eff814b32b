"""`streamorch nodes`."""

import click

from streamorch import objects
from streamorch.commands import as_json, database, show_json, show_table
from streamorch.repositories import NODE, nodes
from streamorch.tables import clean, moment


@click.command("nodes")
@as_json
def command(as_json: bool) -> None:
    """The media servers: does the Control API answer, when did a hook come, who publishes without a claim.

    \b
    Examples:
      streamorch nodes
      streamorch nodes --json | jq -e 'all(.nodes[]; .api == "ok")'
    """
    with database() as conn:
        found = [objects.media_server(row) for row in nodes.every(conn, default=NODE)]
    if as_json:
        show_json({"nodes": found, "count": len(found)})
        return
    rows = [
        (
            node.name,
            node.version,
            node.api,
            moment(node.started_at),
            moment(node.last_tick_at),
            moment(node.last_hook_at),
            node.active,
            len(node.unclaimed),
        )
        for node in found
    ]
    show_table(("NODE", "VERSION", "API", "STARTED", "LAST TICK", "LAST HOOK", "LIVE", "UNCLAIMED"), rows)
    for node in found:
        if node.problem:
            click.echo(f"{clean(node.name)}: {node.problem}")
        for entry in node.unclaimed:
            told = f"{entry.path} by {entry.source_type} {entry.source_id} since {moment(entry.since)}"
            click.echo(f"{clean(node.name)}: unclaimed: {clean(told)}")
