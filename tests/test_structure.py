"""Imports within the package point one way."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import eva_utils

PACKAGE = Path(eva_utils.__file__).parent


def imports(file: Path) -> set[str]:
    """The package's modules that ``file`` imports anywhere, "plots" as one."""
    text, own = file.read_text(encoding="utf8"), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == (2 if file.parent.name == "plots" else 1):
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    if file.stem == "cli":  # it uses the public names as well
        return own | {eva_utils._MODULE_OF.get(name, name) for name in re.findall(r"\beva\.([a-zA-Z]\w+)", text)}
    unseen = re.search(r"^\s*(from|import) (eva_utils|benchmarks|tests|tools)", text, re.M)
    assert not unseen, file
    return own - {"__version__"}


GRAPH: dict[str, set[str]] = {}
for module in PACKAGE.rglob("*.py"):
    if not module.stem.startswith("__"):
        GRAPH.setdefault("plots" if module.parent.name == "plots" else module.stem, set()).update(imports(module))


def test_there_is_no_circle_and_there_are_eight_floors():
    floors, sorter = 0, TopologicalSorter(GRAPH)
    sorter.prepare()  # its error names a circle
    while sorter:
        sorter.done(*sorter.get_ready())
        floors += 1
    assert floors <= 8


def test_who_knows_whom():
    assert GRAPH["model"] == GRAPH["run"] == GRAPH["device"] == GRAPH["processes"] == {"errors"}
    assert [name for name, needs in GRAPH.items() if "cli" in needs] == []
    assert GRAPH.keys() & set(eva_utils.__all__) == {"plots"}  # a module named like a function would hide it
