"""The last line of defence of broadcasters, and what their functions tell."""

import uuid
from typing import Any

import psycopg
import pytest

from streamorch.repositories import broadcasters
from tests.blueprints import PAST, text_of


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"display_name": ""}, "broadcasters_display_name_length"),
        ({"display_name": "x" * 256}, "broadcasters_display_name_length"),
        ({"metadata": "[]"}, "broadcasters_metadata_is_object"),
        ({"metadata": '"x"'}, "broadcasters_metadata_is_object"),
    ],
)
def test_a_row_that_cannot_be_is_refused(columns, constraint, make_broadcaster):
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        make_broadcaster(**columns)
    assert caught.value.diag.constraint_name == constraint


def test_functions_tell_what_they_found(conn, make_broadcaster):
    known, deleted, unknown = make_broadcaster(), make_broadcaster(deleted_at=PAST), uuid.uuid4()
    columns: dict[str, Any] = {"display_name": "x", "metadata": {}, "disabled": False}
    assert broadcasters.create(conn, broadcaster_id=known, **columns) is False
    assert broadcasters.create(conn, broadcaster_id=deleted, **columns) is False
    assert broadcasters.create(conn, broadcaster_id=unknown, **columns) is True
    assert [broadcasters.update(conn, one, {}) for one in (known, deleted)] == ["updated", "not-found"]
    assert broadcasters.get(conn, deleted) is None
    assert {found.id for found in broadcasters.page(conn, limit=9, after=None)} == {known, unknown}
    assert [broadcasters.delete(conn, known) for _ in range(2)] == ["deleted", "already"]
    assert [broadcasters.delete(conn, one) for one in (deleted, uuid.uuid4())] == ["already", "not-found"]


def test_what_was_deleted_is_told_with_its_name_and_when(conn, make_broadcaster):
    here, gone = make_broadcaster(), make_broadcaster(display_name="Gone", deleted_at=PAST)
    found = broadcasters.deleted(conn, [here, gone, uuid.uuid4()])
    assert found == {gone: ("Gone", text_of(PAST))}
    assert broadcasters.deleted(conn, []) == {}
