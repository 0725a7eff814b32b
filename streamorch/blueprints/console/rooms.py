"""The rooms of the console, for the application."""

from streamorch.blueprints.console import broadcasters, door, keys, refusals, streams, wall

ROOMS = (door.bp, keys.bp, broadcasters.bp, streams.bp, refusals.bp, wall.bp)
