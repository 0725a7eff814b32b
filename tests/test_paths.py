"""Which path names may be published to or bound to a key."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamorch import keys, paths

LETTERS = set(string.ascii_letters + string.digits + "_.-")
PARTS = st.text(st.sampled_from(sorted(LETTERS)), min_size=1, max_size=12)
LIKELY = st.lists(
    PARTS
    | st.sampled_from([".", "..", "whip", "whep", "publish", "all", "all_others", "a.m3u8", "b.ts", "c.mp4", "d.mp"]),
    min_size=1,
    max_size=4,
).map("/".join)


def may(path):
    """The rule of the contract, said once more in other words."""
    parts = path.split("/")
    return (
        len(path) <= 255
        and all(part and set(part) <= LETTERS for part in parts)
        and not {".", "..", "whip", "whep", "publish"} & set(parts)
        and not any(parts[-1].endswith(ending) for ending in (".m3u8", ".mp4", ".mp", ".ts"))
        and path not in ("all", "all_others")
        and not keys.has_form(path)
    )


@given(LIKELY | st.text(max_size=300) | st.from_regex(r"[a-z./]{1,20}", fullmatch=True))
def test_a_path_is_refused_by_rule_and_with_a_sentence(path):
    refusal = paths.refusal(path)
    assert (refusal is None) == may(path)
    assert refusal is None or (refusal.strip() and "\n" not in refusal)


@pytest.mark.parametrize(
    "path", ["a", "live/cam7", "x" * 255, "a/b/c/d", "A-Z_0.9", "whips", "all/a", "a.ts/b", ".a", "a..", "..."]
)
def test_a_path_is_taken(path):
    assert paths.refusal(path) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "letters"),
        ("/a", "single '/'"),
        ("a/", "single '/'"),
        ("a//b", "single '/'"),
        ("a b", "letters"),
        ("a\n", "letters"),
        ("ä", "letters"),
        ("x" * 256, "255"),
        (".", "'.'"),
        ("a/..", "'..'"),
        ("whip", "'whip'"),
        ("a/whep/b", "'whep'"),
        ("publish", "'publish'"),
        ("a.m3u8", ".m3u8"),
        ("a/b.mp4", ".mp4"),
        ("a.mp", ".mp"),
        ("a.ts", ".ts"),
        ("all", "'all'"),
        ("all_others", "'all_others'"),
    ],
)
def test_a_refusal_says_what_is_wrong(path, reason):
    assert reason in (paths.refusal(path) or "")


@given(st.text(max_size=300), st.text(max_size=20))
def test_a_path_with_a_key_is_told_where_the_key_belongs_and_not_repeated(before, after):
    key = keys.mint()
    assert paths.refusal(before + key + after) == paths.KEY_IN_PATH
    assert "?pass=KEY" in paths.KEY_IN_PATH
