"""What schemathesis cannot know of this API: each excuse is for one answer that the contract demands, and no other."""

import re
from collections.abc import Callable
from typing import Any

import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.generation.case import Case
from schemathesis.hooks import HookContext
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

# Bodies and queries that every schema allows and that are 400 all the same: by field, what the answer says of it.
_BEYOND_SCHEMAS = {
    # A cursor is opaque: only the API knows which ones it gave, and for which filters.
    "cursor": r"is not one that this API gave|belongs to other filters|is for history",
    # It has to be there, and not only to be of the form.
    "broadcaster_id": r"is no broadcaster",
    # JSON Schema has no words for bytes and depth, nor for a NUL or a number anywhere inside.
    "metadata": r"is larger than \d+ KiB|is nested more than \d+ deep|holds a NUL character|holds a number beyond",
    "label": r"holds a NUL character",
    "display_name": r"holds a NUL character",
    "recording_ref": r"holds a NUL character",
    "name": r"holds a NUL character",
    # It goes by the clock.
    "previous_works_until": r"is more than 30 days from now",
    # Of a publish alone, or of what the publisher is told to put elsewhere.
    "id": r"is empty; null means|holds a NUL|holds a stream key",
    "protocol": r"holds a NUL",
    "ip": r"holds a NUL",
}
# What remains to be seen after a DELETE, by contract: history does, and a key does as revoked.
_SHOWN_AFTERWARDS: dict[str, Callable[[Any], bool]] = {
    "getStreamKey": lambda key: key["status"] == "revoked",
    "getApiClient": lambda client: client["status"] == "revoked",
    "getStream": lambda stream: stream["status"] == "ended",
    "changeStream": lambda stream: stream["status"] == "ended",
    # Of a page that may be any.
    "listEvents": lambda page: page["count"] == len(page["events"]),
}


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """The callback secret is set here, so that nobody may do without: `ignored_auth` sees to it."""
    for of_path in raw_schema["paths"].values():
        for operation in of_path.values():
            if isinstance(operation, dict) and len(operation["security"]) > 1:
                operation["security"] = [one for one in operation["security"] if one]


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """False for what is no failure here."""
    if isinstance(failure, RejectedPositiveData):
        return not _is_beyond_schemas(case, response)
    if isinstance(failure, UseAfterFree):
        operation = case.operation.definition.raw["operationId"].removesuffix("Head")
        shown = _SHOWN_AFTERWARDS.get(operation)
        return shown is None or (case.method != "HEAD" and not shown(response.json()))
    return True


def _is_beyond_schemas(case: Case[Any], response: Response) -> bool:
    if response.status_code != 400:
        return False
    if case.method == "HEAD":  # it has no body to say so
        return bool((case.query or {}).get("cursor"))
    return all(
        re.search(_BEYOND_SCHEMAS.get(error["field"], "$^"), error["reason"]) for error in response.json()["errors"]
    )
