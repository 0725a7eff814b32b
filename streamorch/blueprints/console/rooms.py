"""The rooms of the console, for the application."""

from streamorch.blueprints.console import broadcasters, door, keys, wall

ROOMS = (door.bp, keys.bp, broadcasters.bp, wall.bp)
