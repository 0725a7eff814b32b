"""The rooms of the console, for the application."""

from streamorch.blueprints.console import broadcasters, door, keys, streams, wall

ROOMS = (door.bp, keys.bp, broadcasters.bp, streams.bp, wall.bp)
