"""docs/architecture.md says what is so: no import goes where its table does not allow."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ragjax"
ALL = ("all", "all below, and each other")
ENTRIES = {"__init__", "__main__"}
"""Where users come in: they name what is elsewhere."""


def rows():
    """Each row of the table: what it is of, and what that may import, as after `ragjax.`."""
    lines = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    start = lines.index("| folder | holds | may import |") + 2
    for line in lines[start:]:
        if not line.startswith("|"):
            return
        owners, _, allowed = (cell.strip() for cell in line.strip("|").split("|"))
        yield [name.removesuffix("/").removesuffix(".py") for name in names(owners)], allowed


def names(cell):
    return re.findall(r"`([\w./]+)`", cell)


ROWS = list(rows())
EVERYONES = ROWS[-1][0]
ALLOWED = {
    owner: None if allowed in ALL else {*names(allowed), *EVERYONES, owner}
    for owners, allowed in ROWS
    for owner in owners
}
"""By folder or file; none: what stands in its row or below."""


def imported(source):
    """What of ragjax a file imports, anywhere in it, as after `ragjax.`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole way"
            # `from ragjax.a import b` may name a module b.
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("ragjax.") for name in found if name.startswith("ragjax."))


def allows(owner, target):
    if ALLOWED[owner] is None:
        order = [name for owners, _ in ROWS for name in owners]
        row = next(owners for owners, _ in ROWS if owner in owners)
        return target.split(".")[0] in order[order.index(row[0]) :]
    return any(target == name or target.startswith(f"{name}.") for name in ALLOWED[owner])


def owner_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files_of(owner):
    return [file for file in PACKAGE.rglob("*.py") if owner_of(file) == owner]


def test_every_folder_and_file_stands_in_the_table_once():
    there = {owner_of(file) for file in PACKAGE.rglob("*.py")} - ENTRIES
    listed = [name for owners, _ in ROWS for name in owners]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("owner", ALLOWED)
def test_no_import_goes_where_the_table_does_not_allow(owner):
    astray = [
        f"{file.relative_to(PACKAGE)}: ragjax.{target}"
        for file in files_of(owner)
        for target in imported(file.read_text())
        if not allows(owner, target)
    ]
    assert astray == []


@pytest.mark.parametrize("owner", [name for name, allowed in ALLOWED.items() if allowed])
def test_what_the_table_allows_is_there_and_used(owner):
    used = [target for file in files_of(owner) for target in imported(file.read_text())]
    for name in ALLOWED[owner] - {*EVERYONES, owner}:
        assert any(target == name or target.startswith(f"{name}.") for target in used), name


@pytest.mark.parametrize("owner", EVERYONES)
def test_what_everyone_imports_needs_no_jax(owner):
    nodes = [node for file in files_of(owner) for node in ast.walk(ast.parse(file.read_text()))]
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert not [module for module in modules if module.split(".")[0] in ("jax", "flax", "optax")]
