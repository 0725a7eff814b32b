"""Measurements of the real service, beside the floors that it stands on: `make bench`."""
