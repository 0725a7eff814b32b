"""The rooms of the console, for the application."""

from streamorch.blueprints.console import broadcasters, clients, door, history, keys, refusals, streams, system, wall

ROOMS = (door.bp, keys.bp, broadcasters.bp, streams.bp, history.bp, refusals.bp, clients.bp, system.bp, wall.bp)
