"""The floors of the house: who may import whom. Whoever breaks this has a file on the wrong floor."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Package → which of ours it may import, besides itself.
FLOORS = {
    "promptmill": frozenset(),
    "api": frozenset({"promptmill"}),
    "worker": frozenset({"promptmill"}),
    "cli": frozenset({"promptmill", "api", "worker"}),
}
#: Names that say nothing, and so attract everything.
DRAWERS = frozenset({"utils", "util", "common", "helpers", "helper", "misc", "shared"})


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: name the package; relative imports hide the floor"
            yield node.lineno, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", FLOORS)
def test_a_package_imports_only_from_below(package):
    above = (FLOORS.keys() | {"bench", "tests", "examples"}) - FLOORS[package] - {package}
    assert modules(package)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for line, name in imported(path)
        if name in above
    ]
    assert not wrong


def test_nothing_has_a_name_that_says_nothing():
    assert [path for package in FLOORS for path in modules(package) if DRAWERS & {path.stem, path.parent.name}] == []


def test_no_package_of_the_tests_shadows_one_of_ours():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
