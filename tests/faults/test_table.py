"""docs/faults.rst names every test of a fault, and no other."""

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TABLE = FOLDER.parents[1] / "docs" / "faults.rst"


def test_the_table_names_every_test_and_no_other() -> None:
    files = [file for file in FOLDER.glob("test_*.py") if file != Path(__file__).resolve()]
    defined = [name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)]
    named = re.findall(r"``(test_\w+)``", TABLE.read_text(encoding="utf-8"))
    assert sorted(named) == sorted(defined)
    assert len(files) == 7
