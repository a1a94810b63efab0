"""Imports within the package point one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "eva_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> tuple[set[str], set[str]]:
    """(own, others): the package's modules that ``file`` imports anywhere, "plots" as one, and everybody else's."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == (2 if file.parent.name == "plots" else 1):
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return own - {"__version__"}, others


GRAPH: dict[str, set[str]] = {}
OTHERS: set[str] = set()
for module in MODULES:
    own, others = imports(module)
    GRAPH.setdefault("plots" if module.parent.name == "plots" else module.stem, set()).update(own)
    OTHERS |= others


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


def test_nothing_comes_from_outside_the_package():
    """And the package's own modules are imported by their dots, so that the other tests here see all of them."""
    assert {"torch", "numpy"} <= OTHERS
    assert not OTHERS & {"eva_utils", "tests", "benchmarks", "notebooks", "tools"}
