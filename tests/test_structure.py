"""Imports within the package point one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "eva_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """The package's own modules that ``file`` imports, "plots" as one."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom) and node.level == (2 if file.parent.name == "plots" else 1):
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found - {"__version__"}


GRAPH: dict[str, set[str]] = {}
for module in MODULES:
    name = "plots" if module.parent.name == "plots" else module.stem
    GRAPH.setdefault(name, set()).update(imports(module))


def test_there_is_no_circle():
    placed: set[str] = set()
    while len(placed) < len(GRAPH):
        ready = {name for name, needs in GRAPH.items() if name not in placed and needs <= placed}
        assert ready, {name: needs - placed for name, needs in GRAPH.items() if name not in placed}
        placed |= ready


@pytest.mark.parametrize("top", ["cli", "job"])
def test_the_top_is_known_to_nobody_below(top):
    assert {name for name, needs in GRAPH.items() if top in needs} <= {"cli", "__main__"}


def test_the_network_knows_errors_only_and_files_know_no_training():
    assert GRAPH["model"] == GRAPH["run"] == {"errors"}
