"""Imports within the package point one way."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "eva_utils"


def imports(file: Path) -> set[str]:
    """The package's modules that ``file`` imports anywhere, "plots" as one."""
    text, own = file.read_text(encoding="utf8"), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == (2 if file.parent.name == "plots" else 1):
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    # By their dots, so that they are seen here; the command line, which stands on all, uses the public names as well.
    assert file.stem == "cli" or not re.search(r"^\s*(from|import) (eva_utils|benchmarks|tests|tools)", text, re.M), (
        file
    )
    return own - {"__version__"}


GRAPH: dict[str, set[str]] = {}
for module in PACKAGE.rglob("*.py"):
    GRAPH.setdefault("plots" if module.parent.name == "plots" else module.stem, set()).update(imports(module))


def test_there_is_no_circle_and_there_are_eight_floors():
    floors, placed = 0, set()
    while len(placed) < len(GRAPH):
        ready = {name for name, needs in GRAPH.items() if name not in placed and needs <= placed}
        assert ready, {name: needs - placed for name, needs in GRAPH.items() if name not in placed}
        placed |= ready
        floors += 1
    assert floors <= 8


def test_the_network_knows_errors_only_and_files_know_no_training():
    assert GRAPH["model"] == GRAPH["run"] == {"errors"}
    assert {name for name, needs in GRAPH.items() if "cli" in needs} == {"__main__"}
