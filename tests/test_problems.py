"""The table of problems: complete, consistent, and the same in the README."""

import ast
import re
from pathlib import Path

import pytest

from streamorch import problems

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = {
    400: {"invalid-request"},
    401: {
        "unauthorized",
        "invalid-stream-key",
        "stream-key-revoked",
        "stream-key-expired",
        "stream-key-disabled",
        "broadcaster-disabled",
        "path-not-allowed",
        "stream-stopped",
    },
    403: {"forbidden"},
    404: {"not-found", "stream-not-found"},
    405: {"method-not-allowed"},
    409: {"conflict", "stream-key-in-use", "path-in-use"},
    413: {"too-large"},
    415: {"unsupported-media-type"},
    429: {"rate-limited"},
    500: {"internal-error"},
    502: {"media-server-unavailable"},
    503: {"database-unavailable"},
}


def test_the_table_is_that_of_the_contract():
    assert {slug: kind.status for slug, kind in problems.TABLE.items()} == {
        slug: status for status, slugs in CONTRACT.items() for slug in slugs
    }


@pytest.mark.parametrize(("slug", "kind"), problems.TABLE.items())
def test_each_problem_is_told_in_words(slug, kind):
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", slug)
    assert kind.title[0].isupper()
    assert not kind.title.endswith(".")
    for text in (kind.meaning, kind.mend):
        assert text.endswith(".")
        assert "\n" not in text


def test_titles_are_of_one_problem_each():
    assert len({kind.title for kind in problems.TABLE.values()}) == len(problems.TABLE)


def test_the_readme_has_the_same_table():
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    section = text[text.index("\nProblems\n") :]
    rows = re.findall(r"^(?:\* - )?``([a-z-]+)``\s+(?:- )?(\d{3})\s+(.+)$", section, re.MULTILINE)
    assert {slug: int(status) for slug, status, _ in rows} == {
        slug: kind.status for slug, kind in problems.TABLE.items()
    }
    for slug, _, words in rows:
        kind = problems.TABLE[slug]
        told = re.sub(r"\s+", " ", words)
        assert told == f"{kind.meaning} {kind.mend}".replace("`", "``"), slug


def test_every_problem_that_is_raised_is_in_the_table():
    raised = set()
    for file in (ROOT / "streamorch").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem" and node.args:
                raised |= {
                    constant.value
                    for constant in ast.walk(node.args[0])
                    if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
                }
    assert raised
    assert raised <= problems.TABLE.keys()


def test_every_refusal_of_a_claim_is_in_the_table():
    functions = (ROOT / "sql" / "0002_functions.sql").read_text(encoding="utf-8")
    check = functions[functions.index("FUNCTION claim_check_v1") : functions.index("FUNCTION check_key_v1")]
    outcomes = set(re.findall(r"(?:THEN|outcome :=) '([a-z-]+)'", check))
    assert len(outcomes) > 8
    assert outcomes - {"replay", "claimable", "claimed"} <= problems.TABLE.keys()
