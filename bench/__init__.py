"""Measurements of the real service, beside an empty Flask view under the same gunicorn: `make bench`."""
