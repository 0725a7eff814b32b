"""The rooms and their doors: who may import whom, and where SQL and HTTP may stand."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "streamorch"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(ROOT)) for file in FILES]
SQL = re.compile(r"\b(SELECT|INSERT INTO|DELETE FROM|WITH|UPDATE)\s+[a-z%*]|\bSET\s+[a-z_]+ =")


def tree_of(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(file):
    """The modules that a file imports, by their full names."""
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name):
    return sorted((PACKAGE / name).glob("*.py"))


def texts_of(file):
    """The string literals of a file without its docstrings."""
    tree = tree_of(file)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def top(modules):
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("file", room("repositories"), ids=lambda file: file.name)
def test_repositories_know_nothing_of_http(file):
    imports = imports_of(file)
    assert not top(imports) & {"flask", "werkzeug", "requests", "click"}
    own = {module for module in imports if module.startswith("streamorch.")}
    assert not [module for module in own if not module.startswith("streamorch.repositories")]


@pytest.mark.parametrize("file", room("blueprints"), ids=lambda file: file.name)
def test_blueprints_know_psycopg_by_its_errors_alone(file):
    assert not {module for module in imports_of(file) if module.startswith(("psycopg.", "psycopg_pool"))}
    used = {
        node.attr
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "psycopg"
    }
    assert used <= {"OperationalError", "DataError", "IntegrityError", "errors"}


@pytest.mark.parametrize("file", [f for f in FILES if f.parent.name != "repositories"], ids=str)
def test_no_sql_stands_outside_the_repositories(file):
    assert not [text for text in texts_of(file) if SQL.search(text)]


@pytest.mark.parametrize("file", room("blueprints"), ids=lambda file: file.name)
def test_blueprints_do_not_know_each_other(file):
    others = {f"streamorch.blueprints.{other.stem}" for other in room("blueprints") if other.stem != "__init__"}
    assert not imports_of(file) & others


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_nothing_imports_the_application_but_the_command_that_describes_it(file):
    """gunicorn does, too, by its name."""
    assert "streamorch.app" not in imports_of(file) or file == PACKAGE / "commands" / "openapi.py"


@pytest.mark.parametrize("file", room("commands"), ids=lambda file: file.name)
def test_commands_know_nothing_of_http_and_not_each_other(file):
    imports = imports_of(file)
    assert not top(imports) & {"flask", "werkzeug", "requests"}
    others = {f"streamorch.commands.{other.stem}" for other in room("commands") if other.stem != "__init__"}
    assert not imports & (others | {"streamorch.blueprints"})


def test_what_commands_share_has_no_name_of_a_command():
    """A file of a package takes its name there when it is imported, from whatever had it before."""
    tree = tree_of(PACKAGE / "commands" / "__init__.py")
    imported = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert not (defined | {alias.asname or alias.name for alias in imported}) & {file.stem for file in room("commands")}


@pytest.mark.parametrize("file", [f for f in FILES if f.parent.name != "commands"], ids=str)
def test_nothing_knows_the_commands(file):
    assert not [module for module in imports_of(file) if module.startswith("streamorch.commands")]


@pytest.mark.parametrize("name", ["keys", "moments", "paths", "signing", "urls", "settings"])
def test_what_is_pure_knows_neither_http_nor_the_database(name):
    imports = imports_of(PACKAGE / f"{name}.py")
    assert not top(imports) & {"flask", "werkzeug", "psycopg", "psycopg_pool", "requests", "click", "time"}
    own = {module for module in imports if module.startswith("streamorch.")}
    assert all(module.split(".")[1] in ("keys", "signing", "settings") for module in own)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_no_statement_selects_a_star(file):
    assert not [text for text in texts_of(file) if re.search(r"SELECT\s+([a-z]\.)?\*", text, re.IGNORECASE)]


@pytest.mark.parametrize("file", room("repositories"), ids=lambda file: file.name)
def test_every_statement_of_a_request_tells_where_it_stands(file):
    if file.name in ("__init__.py", "migrate.py"):
        return
    marked = {re.search(r"/\* ([a-z_.]+) \*/", text) for text in texts_of(file) if "/*" in text}
    names = {match[1] for match in marked if match}
    assert names
    assert all(name.split(".")[0] == file.stem for name in names)
    assert len(names) == sum("/*" in text for text in texts_of(file))


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_module_opens_with_what_it_is_for(file):
    assert (ast.get_docstring(tree_of(file)) or "").strip()
    assert "*" not in {
        alias.name for node in ast.walk(tree_of(file)) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
