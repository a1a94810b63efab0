"""What the repository shows is true and complete: the committed run, README, notebooks, metadata."""

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from eva_utils import OneCycle, ResNet9
from eva_utils.lr_curve import choose_rates

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
PAGES = ["README.md", "docs/torchrun.md", "docs/speed.md", "docs/rates.md", "docs/accuracy.md"]  # with tables
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


# The committed run


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((RUN / "results.json").read_text(encoding="utf8"))


def test_the_run_is_the_assignments(results):
    config = json.loads((RUN / "config.json").read_text(encoding="utf8"))
    expected = {"epochs": 24, "peak_epoch": 5, "batch_size": 512, "width": 64, "seed": 0, "padding": 4, "flip": True}
    assert config.items() >= (expected | {"cutout": 8, "lr_min": "find", "lr_max": "find"}).items()
    assert (results["n_train"], results["n_test"], results["params"]) == (50_000, 10_000, 6_573_120)
    assert results["test_accuracy_ema"] >= 90.5  # two runs so far ended at 91.0 and 91.2


def test_the_applied_rate_is_the_planned_one_at_every_step(results):
    steps = rows("lr.csv")
    policy = OneCycle(24, 5, results["lr_min"], results["lr_max"])
    assert len(steps) == 24 * 98
    for i, row in enumerate(steps):
        assert row["step"] == i
        assert row["applied"] == row["planned"] == policy(i / 98)
        assert row["epoch"] == i / 98
    applied = [row["applied"] for row in steps]
    assert applied[0] == min(applied) == results["lr_min"]
    assert max(applied) == results["lr_max"]
    assert steps[applied.index(results["lr_max"])]["epoch"] == 5.0


def test_the_rates_were_found_not_typed_in(results):
    found = json.loads((RUN / "lr_range.json").read_text(encoding="utf8"))
    assert (found["lr_min"], found["lr_max"]) == (results["lr_min"], results["lr_max"])
    assert found["reasons"] == results["lr_reasons"]
    lr, loss = (np.array(found["curve"][key]) for key in ("lr", "loss"))
    assert lr[0] < found["lr_min"] < found["lr_max"] < lr[-1]
    assert choose_rates(lr, loss)[:2] == pytest.approx((found["lr_min"], found["lr_max"]))  # read as it is read now


def test_the_result_is_the_last_epochs(results):
    history = rows("history.csv")
    assert [row["epoch"] for row in history] == list(range(1, 25))
    for key in ("test_accuracy", "test_accuracy_ema", "train_accuracy"):
        assert results[key] == history[-1][key]
    assert results["seconds_train"] == history[-1]["seconds_train"] < results["seconds_total"]


def test_the_runs_figures_are_there_and_small():
    names = ["lr_finder", "lr_schedule", "history", "confusion", "misclassified", "gradcam", "samples", "augmented"]
    names += [f"gradcam/{i:02}" for i in range(1, 26)]
    assert {str(p.relative_to(RUN / "figures"))[:-4] for p in (RUN / "figures").rglob("*.png")} == set(names)


def test_pictures_are_small_enough_to_look_at():
    pictures = list((ROOT / "assets").rglob("*.png"))
    assert pictures
    for path in pictures:
        assert path.stat().st_size < 200_000, path
        with Image.open(path) as image:
            assert image.width <= 1200, path


# README


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_what_was_measured(page):
    text = (ROOT / page).read_text(encoding="utf8")
    assert "<!-- end of " in text
    assert tool("update_tables").updated(text) == text


def test_a_table_that_is_out_of_date_is_noticed():
    old = re.sub(r"\| 24 \| 0\.\d+ to ", "| 24 | 0.123 to ", README)
    assert old != README
    assert tool("update_tables").updated(old) == README


def test_a_scaling_table_is_calculated_right():
    rows = [
        {"processes": 1, "images_per_second": 1000.0, "all_reduce_seconds": 0.0},
        {"processes": 4, "images_per_second": 2000.0, "all_reduce_seconds": 0.02},
    ]
    measured = {"device": "CPU: slow", "precision": "fp32", "torch": "9", "batch_size": 500, "params": 7, "rows": rows}
    *_, first, last = tool("update_tables").scaling_table(measured).splitlines()
    assert first == "| 1 | 1,000 | 1.00 | 100% | 500 ms | 0.0 ms | 500 ms |"
    assert last == "| 4 | 2,000 | 2.00 | 50% | 250 ms | 20.0 ms | 145 ms |"


def test_the_calculation_about_torchrun():
    """What docs/torchrun.md calculates with: the gradients' size, and MB a second for each image a second."""
    gradients = 4 * sum(p.numel() for p in ResNet9().parameters()) / 1e6
    assert f"{gradients:.1f} MB" in TORCHRUN
    assert f"{2 * gradients:.1f} MB" in TORCHRUN
    assert f"{2 * gradients / 512:.3f} MB/s" in TORCHRUN
    for link, bandwidth in (("1 Gbit/s Ethernet", 125), ("10 Gbit/s Ethernet", 1250), ("PCIe 3.0 x16", 10_000)):
        line = next(line for line in TORCHRUN.splitlines() if line.startswith(f"| {link}"))
        cost, rate = 2 * gradients / bandwidth, 512 * bandwidth / (2 * gradients)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:] == [f"{bandwidth:,} MB/s", f"{1e3 * cost:,.0f} ms", f"{float(f'{rate:.2g}'):,.0f}"]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text(encoding="utf8"))
    assert page != "README.md" or len(links) > 10
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_readmes_tour_uses_names_that_exist():
    import eva_utils

    tour = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    compile(tour, "README.md", "exec")
    for name in re.findall(r"\beva\.(\w+(?:\.\w+)?)", tour):
        thing = eva_utils
        for part in name.split("."):
            thing = getattr(thing, part)


def test_ci_takes_its_command_from_readme():
    pattern = re.search(r'grep -E "(\^.*?)" README', (ROOT / ".ci" / "run").read_text(encoding="utf8"))[1]
    assert len(re.findall(pattern, README, re.MULTILINE)) == 1


# One OWNER/REPO


def test_one_slug_everywhere(tmp_path):
    slug = tool("set_repo").current()
    owner, name = slug.split("/")
    address = re.compile(r"(?:github\.com/|google\.com/github/)([\w-]+/[\w.-]+?)(?=[/\"')\\\s]|$)", re.MULTILINE)
    for path in [ROOT / "README.md", *NOTEBOOKS]:
        assert set(address.findall(path.read_text(encoding="utf8"))) == {slug}, path

    # In a copy: the script changes them all, and nothing else.
    for part in ("README.md", "notebooks", "tools"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    script = [sys.executable, str(tmp_path / "tools" / "set_repo.py")]
    subprocess.run([*script, "some-body/my.fork"], check=True)
    for path in [ROOT / "README.md", *NOTEBOOKS]:
        changed = (tmp_path / path.relative_to(ROOT)).read_text(encoding="utf8")
        assert set(address.findall(changed)) == {"some-body/my.fork"}
        assert changed.replace("some-body/my.fork", f"{owner}/{name}") == path.read_text(encoding="utf8")
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
    notebook = json.loads(text)
    assert len(text.encode()) < 1_000_000
    assert "widgets" not in notebook["metadata"] and "widget-view" not in text
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))  # one fresh run, top to bottom
    for cell in code:
        source = "".join(cell["source"])
        assert not re.search(r"^\s*(def|class) ", source, re.MULTILINE)
        assert len([line for line in source.splitlines() if line.strip()]) <= 15
        assert all(output["output_type"] != "error" for output in cell["outputs"])
    assert "colab-badge.svg" in "".join(notebook["cells"][0]["source"])
    assert "pip install" in "".join(code[0]["source"])
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])


def test_the_notebooks_words_on_ordinary_schedules_are_what_was_measured():
    cells = json.loads(NOTEBOOKS[1].read_text(encoding="utf8"))["cells"]
    section = next(text for cell in cells if (text := "".join(cell["source"])).startswith("## Beside ordinary"))
    rows = json.loads((ROOT / "assets/benchmarks/superconvergence.json").read_text(encoding="utf8"))
    best = {}
    for row in rows:
        key = row["policy"].split()[0], row["epochs"]
        if key not in best or row["test_accuracy_ema"][-1] > best[key]["test_accuracy_ema"][-1]:
            best[key] = row

    def ends(which: str, *keys: tuple[str, int]) -> list[str]:
        return [f"{best[key][which][-1]:.1f}" for key in keys]

    short = [("one-cycle", 24), ("steps", 24), ("constant", 24)]
    said = ends("test_accuracy", *short) + ends("test_accuracy_ema", *short) + ends("test_accuracy", ("steps", 72))
    said += ends("test_accuracy_ema", ("steps", 72), ("constant", 72), ("one-cycle", 72))
    assert re.findall(r"\d\d\.\d", section) == said
    assert f"{rows[0]['images']:,} training images" in section and {row["width"] for row in rows} == {64}

    def passed(policy: str, which: str) -> str:
        """The epoch in which the longer run first comes up to where one-cycle ended after 24."""
        goal = best["one-cycle", 24][which][-1]
        return str(1 + next(i for i, value in enumerate(best[policy, 72][which]) if value >= goal))

    epochs = [passed("steps", "test_accuracy"), passed("steps", "test_accuracy_ema")]
    assert re.findall(r"in epoch (\d+)", section) == epochs
    assert passed("constant", "test_accuracy_ema") == epochs[1]


def test_both_notebooks_are_there_and_open_alike():
    assert [path.stem for path in NOTEBOOKS] == ["CycleLR", "SuperConvergence"]
    opening = [
        [
            cell["source"]
            for cell in json.loads(path.read_text(encoding="utf8"))["cells"]
            if cell["cell_type"] == "code"
        ][:2]
        for path in NOTEBOOKS
    ]
    assert opening[0] == opening[1]
    assert json.loads(NOTEBOOKS[1].read_text(encoding="utf8"))["metadata"]["accelerator"] == "GPU"
