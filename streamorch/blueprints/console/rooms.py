"""The rooms of the console, for the application."""

from streamorch.blueprints.console import door, wall

ROOMS = (door.bp, wall.bp)
