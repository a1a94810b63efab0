"""The notebooks run from top to bottom in a fresh kernel, and a second run goes on from the first one's checkpoint."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The client's own, about how it talks to the kernel.
pytestmark = pytest.mark.filterwarnings("default")
FIGURES = {
    "samples", "augmented", "lr_finder", "schedule", "lr_schedule", "history", "confusion", "misclassified", "gradcam",
}  # fmt: skip


def run_all(name: str, folder: Path, code: str = "") -> str:
    """Run a notebook in ``folder``, with ``code`` after its parameters or, without any, first; returns its output.

    The cell after the parameters runs twice, as people do: it makes folders of them.
    """
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    place = next((i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])), -1)
    after = notebook.cells[place + 1]
    again = [after.source] * (place >= 0 and after.cell_type == "code")
    notebook.cells[place + 1 : place + 1] = [nbformat.v4.new_code_cell(source) for source in (code, *again)]
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))  # GitHub shows none
    return "".join(output.get("text", "") for output in outputs)


def figures(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def test_cycle_lr(tmp_path):
    differences = re.findall(r"largest difference (\S+)", run_all("CycleLR", tmp_path))
    assert len(differences) == 2 and max(map(float, differences)) < 1e-12  # to torch's schedulers
    assert figures(tmp_path / "assets") == {"zigzag", "cycle", "policies", "annihilation"}


FEWER = """import eva_utils as eva
some, cycle = eva.digits()[0][:620], eva.OneCycle
eva.digits = lambda: (some, None)
eva.OneCycle = lambda epochs, peak_epoch, **rates: cycle(1, 0.2, **rates)
"""


def test_find_lr_on_fewer_images_and_epochs(tmp_path):
    printed = run_all("FindLR", tmp_path, FEWER)
    assert re.findall(r"^(\S+) +LR_MAX \S+: mean", printed, re.MULTILINE) == ["ours", "lowest", "steepest"]
    assert "epoch 2: rate" in printed


def test_super_convergence_quickly_in_colab_and_again(tmp_path, monkeypatch):
    # In Colab without a GPU it is quick by itself, and keeps its files in the Drive.
    colab = tmp_path / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").write_text("class drive:\n    mount = staticmethod(print)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20261101")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "notebooks").mkdir()  # started there, it works in the folder above, like in a clone
    parameters = 'USE_DRIVE, RUN, ASSETS = True, "runs/q", "assets/q"'
    printed = run_all("SuperConvergence", tmp_path / "notebooks", parameters)
    assert "Runtime > Change runtime type" in printed
    assert "done before" not in printed and "EMA, their average: the result" in printed
    kept = tmp_path / "drive" / "MyDrive" / "eva_utils"
    assert figures(kept / "assets" / "q-quick") == FIGURES
    left = {path.name for path in (kept / "runs" / "q-quick").iterdir()}
    assert left >= {"results.json", "model.pt", "lr.csv", "history.csv", "config.json"}

    shutil.rmtree(kept / "assets")
    printed = run_all("SuperConvergence", tmp_path / "notebooks", parameters + "; COMPARE = True")
    assert "range test done before" in printed
    assert "finished, nothing to compute" in printed
    assert "step-decay: StepDecay(epochs=4, lr=" in printed
    assert figures(kept / "assets" / "q-quick") == FIGURES | {"compared"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_install_cell_installs_the_package_where_it_is_missing(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cell = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    code, count = re.subn(r'%pip install -q ("git\+https://github\.com/[^"]+")', r"installed.append(\1)", cell.source)
    assert count == 1
    # Not there; a clone that nobody installed, which python can import all the same; installed.
    for spec, missing in ((None, 1), (SimpleNamespace(origin=None), 1), (SimpleNamespace(origin="here"), 0)):
        installed = []
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        exec(code, {"installed": installed})
        assert len(installed) == missing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_that_github_shows(path):
    text = path.read_text(encoding="utf8")
    assert len(text.encode()) < 1_000_000 and "widget" not in text
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # one fresh run, top to bottom
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE) for cell in code)  # calls, no definitions
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures and all(picture.metadata["image/png"]["alt"] for picture in pictures)
    assert not any("![](" in cell.source for cell in notebook.cells)
    assert "colab-badge.svg" in notebook.cells[0].source
