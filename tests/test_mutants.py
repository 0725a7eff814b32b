"""The catalogue of mutants: each can be applied to the sources as they are. `python -m tests.mutants` judges them."""

import ast
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_finds_what_it_breaks(mutant):
    right = (ROOT / mutant.file).read_text(encoding="utf-8")
    broken = mutant.applied_to(right)
    assert broken != right
    if mutant.file.endswith(".py"):
        ast.parse(broken)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_test_that_notices_is_there(mutant):
    for name in mutant.tests:
        file, _, rest = name.partition("::")
        function, _, parameter = rest.removesuffix("]").partition("[")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in text
        assert parameter in text


def test_a_mutant_that_finds_nothing_to_break_is_an_error():
    mutant = Mutant("nothing", "setup.py", "no such text", "", ())
    with pytest.raises(ValueError, match="has 0 times"):
        mutant.applied_to("x")
    with pytest.raises(ValueError, match="has 2 times"):
        mutant._replace(old="x").applied_to("xx")
