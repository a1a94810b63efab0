"""The notebooks run from top to bottom in a fresh kernel, and a second run goes on from the first one's checkpoint."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
# The client's own, about how it talks to the kernel.
pytestmark = pytest.mark.filterwarnings("default")
FIGURES = {
    *("samples", "augmented", "lr_finder", "schedule", "lr_schedule"),
    *("history", "confusion", "misclassified", "gradcam"),
}


def run_all(name: str, folder: Path, kernel: str = "python3", source: Path | None = None, **parameters) -> str:
    """Run a notebook in ``folder``, with ``parameters`` instead of those in its cell; returns what it printed.

    source: what the install cell installs instead of the repository on GitHub.
    """
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    if source:
        cell = next(cell for cell in notebook.cells if "%pip install" in cell.source)
        cell.source, count = re.subn(r"git\+https://github\.com/[\w.-]+/[\w.-]+", str(source), cell.source)
        assert count == 1
    if parameters:
        place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
        given = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    NotebookClient(notebook, timeout=300, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))  # GitHub shows none
    return "".join(output.get("text", "") for output in outputs)


def figures(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def test_cycle_lr(tmp_path):
    run_all("CycleLR", tmp_path)
    assert figures(tmp_path / "assets") == {"zigzag", "cycle", "policies", "parity", "annihilation"}


def test_super_convergence_quickly_and_again(tmp_path):
    (tmp_path / "notebooks").mkdir()  # started there, it works in the folder above, like in a clone
    printed = run_all("SuperConvergence", tmp_path / "notebooks", QUICK=True, RUN="runs/q", ASSETS="assets/q")
    assert "going on" not in printed and "EMA, their average: the result" in printed
    assert figures(tmp_path / "assets" / "q-quick") == FIGURES
    left = {path.name for path in (tmp_path / "runs" / "q-quick").iterdir()}
    assert left >= {"results.json", "model.pt", "lr.csv", "history.csv", "config.json"}

    shutil.rmtree(tmp_path / "assets")
    again = {"QUICK": True, "RUN": "runs/q", "ASSETS": "assets/q", "COMPARE": True}
    printed = run_all("SuperConvergence", tmp_path / "notebooks", **again)
    assert "range test done before" in printed
    assert "finished, nothing to compute" in printed
    assert "step-decay: StepDecay(epochs=4, lr=" in printed
    assert figures(tmp_path / "assets" / "q-quick") == FIGURES | {"compared"}


def test_the_folders_do_not_change_when_a_cell_runs_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    mounted = SimpleNamespace(drive=SimpleNamespace(mount=lambda point: None))
    monkeypatch.setitem(sys.modules, "google.colab", mounted)
    cells = nbformat.read(ROOT / "notebooks" / "SuperConvergence.ipynb", as_version=4).cells
    place = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    names = {"os": os, "torch": torch}
    exec(cells[place].source, names)
    names |= {"QUICK": True, "USE_DRIVE": True, "RUN": "runs/q"}
    for _ in range(2):
        exec(cells[place + 1].source, names)
        assert names["RUN"] == str(tmp_path / "drive/MyDrive/eva_utils/runs/q-quick")
        assert names["ASSETS"] == str(tmp_path / "drive/MyDrive/eva_utils/assets/superconvergence-quick")


def python_without_the_package(folder: Path) -> Path:
    """A fresh virtual environment that sees all that is installed here, apart from eva_utils; returns its python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # Python 3.11 brings an old setuptools, which would stand before the one that is installed here.
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "setuptools"], check=True)
    others = folder / "preinstalled"
    others.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"(__editable__.*)?eva_utils|.*\.pth$", entry.name):
            (others / entry.name).symlink_to(entry)
    site = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    (Path(site) / "preinstalled.pth").write_text(str(others))
    colab = Path(site) / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").touch()
    (colab / "drive.py").write_text("import os\n\n\ndef mount(point):\n    os.makedirs(point + '/MyDrive')\n")
    return python


def test_in_a_fresh_colab(tmp_path, monkeypatch):
    """Nothing but the install cell puts the package there, and it changes no other; checkpoints go to the Drive."""
    source = tmp_path / "clone"
    shutil.copytree(ROOT / "eva_utils", source / "eva_utils")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    python = python_without_the_package(tmp_path / "venv")
    freeze = [python, "-m", "pip", "list", "--format", "json"]
    before = {row["name"]: row["version"] for row in json.loads(subprocess.check_output(freeze))}
    assert "eva_utils" not in before and "torch" in before
    spec = tmp_path / "jupyter" / "kernels" / "colab" / "kernel.json"
    spec.parent.mkdir(parents=True)
    start = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": start, "display_name": "colab", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20261101")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say yes: build with the setuptools that is here
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    content = tmp_path / "content"
    (content / "eva_utils" / "eva_utils").mkdir(parents=True)  # a clone that nobody installed: python can import it

    # Without a GPU it is quick by itself.
    printed = run_all("SuperConvergence", content, "colab", source, USE_DRIVE=True, RUN="q", ASSETS="figures")
    assert "Runtime > Change runtime type" in printed
    kept = content / "drive" / "MyDrive" / "eva_utils"
    assert (kept / "q-quick" / "results.json").is_file()
    assert "gradcam" in figures(kept / "figures-quick")
    after = {row["name"]: row["version"] for row in json.loads(subprocess.check_output(freeze))}
    assert after.pop("eva_utils")
    assert after == before
