"""Both notebooks run from top to bottom in a fresh kernel, and a second run goes on from the first one's checkpoint."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
# The client's own, about how it talks to the kernel.
pytestmark = pytest.mark.filterwarnings("default")


def run_all(name: str, folder: Path, **parameters) -> str:
    """Run a notebook in ``folder``, with ``parameters`` instead of those in its cell; returns what it printed."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    given = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))
    return "".join(output.get("text", "") for output in outputs)


def figures(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def test_cycle_lr(tmp_path):
    run_all("CycleLR", tmp_path)
    assert figures(tmp_path / "assets") == {"zigzag", "cycle", "policies", "parity", "annihilation"}


def test_super_convergence_quickly_and_again(tmp_path):
    (tmp_path / "notebooks").mkdir()  # started there, it works in the folder above, like in a clone
    printed = run_all("SuperConvergence", tmp_path / "notebooks", QUICK=True, RUN="runs/q", ASSETS="assets/q")
    assert "going on" not in printed
    names = "samples augmented lr_finder schedule lr_schedule history confusion misclassified gradcam"
    assert figures(tmp_path / "assets" / "q") == set(names.split())
    assert {p.name for p in (tmp_path / "runs" / "q").iterdir()} >= {
        "results.json",
        "model.pt",
        "lr.csv",
        "history.csv",
    }

    shutil.rmtree(tmp_path / "assets")
    printed = run_all("SuperConvergence", tmp_path / "notebooks", QUICK=True, RUN="runs/q", ASSETS="assets/q")
    assert "range test done before" in printed
    assert "finished, nothing to compute" in printed
    assert figures(tmp_path / "assets" / "q") == set(names.split())
