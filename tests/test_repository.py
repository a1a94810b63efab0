"""What the repository shows is true and complete: the committed run, README, recipes, notebooks, metadata."""

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from packaging.requirements import Requirement
from PIL import Image

import eva_utils as eva

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf8")
TORCHRUN = (ROOT / "docs" / "torchrun.md").read_text(encoding="utf8")
RUN = ROOT / "assets" / "runs" / "cifar10-jpeg-24"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def tool(name: str):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> list[dict]:
    with (RUN / name).open(newline="", encoding="utf8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def cells(path: Path, kind: str) -> list[dict]:
    return [c for c in json.loads(path.read_text(encoding="utf8"))["cells"] if c["cell_type"] == kind]


# The committed run


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((RUN / "results.json").read_text(encoding="utf8"))


def test_the_run_is_the_assignments(results):
    expected = {"n_train": 50_000, "n_test": 10_000, "params": 6_573_120, "epochs": 24, "peak_epoch": 5}
    assert results.items() >= (expected | {"batch_size": 512}).items()
    assert results["test_accuracy_ema"] >= 90.5
    found = json.loads((RUN / "lr_range.json").read_text(encoding="utf8"))
    assert (found["lr_min"], found["lr_max"]) == (results["lr_min"], results["lr_max"])  # found, not typed in
    history = rows("history.csv")
    assert [row["epoch"] for row in history] == list(range(1, 25))
    for key in ("test_accuracy", "test_accuracy_ema", "train_accuracy"):  # the last epoch is the result
        assert results[key] == history[-1][key]


def test_the_applied_rate_is_the_planned_one_at_every_step(results):
    steps = rows("lr.csv")
    policy = eva.OneCycle(24, 5, results["lr_min"], results["lr_max"])
    assert len(steps) == 24 * 98
    for i, row in enumerate(steps):
        assert (row["step"], row["epoch"]) == (i, i / 98)
        assert row["applied"] == row["planned"] == policy(i / 98)
    applied = [row["applied"] for row in steps]
    assert applied[0] == min(applied) == results["lr_min"]  # no annihilation
    assert steps[applied.index(results["lr_max"])]["epoch"] == 5.0


def test_pictures_are_small_enough_to_look_at():
    pictures = list((ROOT / "assets").rglob("*.png"))
    assert len(list((RUN / "figures" / "gradcam").glob("*.png"))) == 25
    for path in pictures:
        assert path.stat().st_size < 200_000, path
        with Image.open(path) as image:
            assert image.width <= 1900, path


# Pages


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_a_pages_tables_and_links_are_true(page):
    text = (ROOT / page).read_text(encoding="utf8")
    assert tool("update_tables").updated(text) == text  # what stands in assets/
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_a_table_that_is_out_of_date_is_noticed():
    old = re.sub(r"\| 24 \| 0\.\d+ to ", "| 24 | 0.123 to ", README)
    assert old != README
    assert tool("update_tables").updated(old) == README


def test_the_calculation_about_torchrun():
    """What docs/torchrun.md calculates with: the gradients' size, and MB a second for each image a second."""
    gradients = 4 * sum(p.numel() for p in eva.ResNet9().parameters()) / 1e6
    assert f"{gradients:.1f} MB" in TORCHRUN
    assert f"{2 * gradients:.1f} MB" in TORCHRUN
    assert f"{2 * gradients / 512:.3f} MB/s" in TORCHRUN
    for link, bandwidth in (("1 Gbit/s Ethernet", 125), ("10 Gbit/s Ethernet", 1250), ("PCIe 3.0 x16", 10_000)):
        line = next(line for line in TORCHRUN.splitlines() if line.startswith(f"| {link}"))
        cost, rate = 2 * gradients / bandwidth, 512 * bandwidth / (2 * gradients)
        columns = [column.strip() for column in line.strip("|").split("|")]
        assert columns[1:] == [f"{bandwidth:,} MB/s", f"{1e3 * cost:,.0f} ms", f"{float(f'{rate:.2g}'):,.0f}"]


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def small(code: str) -> str:
    """The same code with one epoch of a small network, in one process."""
    code = re.sub(r"epochs=\d+, peak_epoch=\d+", "epochs=1, peak_epoch=0.5", code)
    code = re.sub(r"workers=\d", "workers=0", code)
    code = code.replace("batch_size=512", "batch_size=64").replace("ResNet9()", "ResNet9(width=8)")
    return code.replace("len(train.classes))\nrates", "len(train.classes), 8)\nrates")


def test_readmes_tour_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eva, "cifar10", lambda root: eva.digits())
    names = {}
    exec(small(blocks(README)[0]), names)
    assert len(names["wrong"]) == 25
    assert (tmp_path / "runs" / "tour" / "results.json").is_file()


SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", RECIPES, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_recipe_runs(title, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    resnet18 = torchvision.models.resnet18
    monkeypatch.setattr(torchvision.models, "resnet18", lambda weights: resnet18())  # without the download
    if title == "Photos":
        images, _ = eva.digits()
        for i, label in enumerate(images.labels[:240].tolist()):
            if label < 3:
                folder = tmp_path / "photos" / "abc"[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images.pixels[i].numpy()).resize((80, 70)).save(folder / f"{i}.png")
        shutil.copy(next((tmp_path / "photos" / "a").iterdir()), tmp_path / "new.jpg")
    names = {}
    code = [blocks(RECIPES)[0], *blocks(SECTIONS[title])]
    assert len(code) > 1
    for block in code:
        exec(small(block), names)
    if title == "A loop of your own":
        exec(small(code[-1]), names)  # again: it goes on from what it has saved, and there is nothing left to do
        assert names["done"] == 1
        assert names["optimizer"].param_groups[0]["lr"] == 0.03
    if title == "A trained network with frozen layers":
        torch.manual_seed(0)
        assert torch.equal(names["run"].model.conv1.weight, resnet18().conv1.weight)


def test_ci_takes_its_command_from_readme():
    pattern = re.search(r'grep -E "(\^.*?)" README', (ROOT / ".ci" / "run").read_text(encoding="utf8"))[1]
    assert len(re.findall(pattern, README, re.MULTILINE)) == 1


# One OWNER/REPO


def test_one_slug_everywhere(tmp_path):
    slug = tool("set_repo").current()
    address = re.compile(r"(?:github\.com/|google\.com/github/)([\w-]+/[\w.-]+?)(?=[/\"')\\\s]|$)", re.MULTILINE)
    for part in ("README.md", "notebooks", "tools"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    script = [sys.executable, str(tmp_path / "tools" / "set_repo.py")]
    subprocess.run([*script, "some-body/my.fork"], check=True)
    for path in [ROOT / "README.md", *NOTEBOOKS]:
        text, changed = (p.read_text(encoding="utf8") for p in (path, tmp_path / path.relative_to(ROOT)))
        assert set(address.findall(text)) == {slug}, path
        assert set(address.findall(changed)) == {"some-body/my.fork"}
        assert changed.replace("some-body/my.fork", slug) == text  # and nothing else
    assert subprocess.run([*script, "nonsense"], capture_output=True).returncode == 2


# Metadata


def test_dependencies_have_lower_bounds_that_colab_meets():
    text = (ROOT / "setup.py").read_text(encoding="utf8")
    required = re.search(r"install_requires=\[(.*?)\]", text, re.DOTALL)[1]
    required = {r.name: r.specifier for r in map(Requirement, re.findall(r'"(.+?)"', required))}
    assert str(required.pop("albumentations")) in ("<3,>=2.0.8", ">=2.0.8,<3")
    assert all(spec.operator == ">=" for specifier in required.values() for spec in specifier)
    there = {"torch": "2.11", "torchvision": "0.26", "numpy": "2.0", "matplotlib": "3.10", "seaborn": "0.13"}
    for name, version in there.items():
        assert required[name].contains(version), name


# Notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_that_github_shows(path):
    text = path.read_text(encoding="utf8")
    assert len(text.encode()) < 1_000_000
    assert "widget-view" not in text and "widgets" not in json.loads(text)["metadata"]
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))  # one fresh run, top to bottom
    for cell in code:
        source = "".join(cell["source"])
        assert not re.search(r"^\s*(def|class) ", source, re.MULTILINE)  # calls, no definitions
        assert len([line for line in source.splitlines() if line.strip()]) <= 15
        assert all(output["output_type"] != "error" for output in cell["outputs"])
    assert "colab-badge.svg" in "".join(cells(path, "markdown")[0]["source"])
    assert code[0]["source"] == cells(NOTEBOOKS[0], "code")[0]["source"]  # all install alike
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])


def test_the_notebooks_words_on_ordinary_schedules_are_what_was_measured():
    texts = ["".join(cell["source"]) for cell in cells(ROOT / "notebooks" / "SuperConvergence.ipynb", "markdown")]
    section = next(text for text in texts if text.startswith("## Beside ordinary"))
    measured = json.loads((ROOT / "assets/benchmarks/superconvergence.json").read_text(encoding="utf8"))
    best = {}
    for row in measured:
        key = row["policy"].split()[0], row["epochs"]
        if key not in best or row["test_accuracy_ema"][-1] > best[key]["test_accuracy_ema"][-1]:
            best[key] = row

    def ends(which: str, *keys: tuple[str, int]) -> list[str]:
        return [f"{best[key][which][-1]:.1f}" for key in keys]

    short = [("one-cycle", 24), ("steps", 24), ("constant", 24)]
    said = ends("test_accuracy", *short) + ends("test_accuracy_ema", *short) + ends("test_accuracy", ("steps", 72))
    said += ends("test_accuracy_ema", ("steps", 72), ("constant", 72), ("one-cycle", 72))
    assert re.findall(r"\d\d\.\d", section) == said
