"""Moments as they are given to the API and to the commands: RFC 3339, with an offset. Pure."""

import datetime

import msgspec


def moment(text: str) -> datetime.datetime:
    """An RFC 3339 time with an offset, in UTC; ValueError otherwise."""
    found = msgspec.convert(text, datetime.datetime)
    if reason := refusal(found):
        raise ValueError(reason)
    return in_utc(found)


def refusal(given: datetime.datetime) -> str | None:
    """Why PostgreSQL or a reader could not take this moment; None when it can be stored."""
    if given.tzinfo is None:
        return "needs an offset, like 2026-01-31T12:00:00Z"
    try:
        in_utc(given)
    except OverflowError:
        return "is not of the years 1 to 9999 in UTC"
    return None


def in_utc(given: datetime.datetime) -> datetime.datetime:
    """The same moment, by an offset that PostgreSQL knows; OverflowError when it is of no year from 1 to 9999 there."""
    return given.astimezone(datetime.UTC)
