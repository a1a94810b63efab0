"""What the repository shows is true and complete: the committed run, README, recipes, links, metadata."""

import inspect
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from statistics import mean, stdev

import nbformat
import pytest
import torch
import torchvision
from packaging.requirements import Requirement
from PIL import Image

import common as benchmark
import eva_utils as eva
import lr_finder
import update_tables
from eva_utils import OneCycle, ResNet9
from eva_utils.lr_curve import Curve, LRRange, read_curve
from eva_utils.run import read_csv, read_json
from eva_utils.train import step

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf8")
RUN = ROOT / "assets" / "runs" / "cifar10-24"
RESULTS, HISTORY, STEPS = read_json(RUN / "results.json"), read_csv(RUN / "history.csv"), read_csv(RUN / "lr.csv")
RATES = LRRange.load(RUN / "lr_range.json")


def notebook(name: str) -> list:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells


# The committed run


def test_the_run_is_the_assignments_and_applied_what_was_planned():
    expected = {"n_train": 50_000, "n_test": 10_000, "params": 6_573_120, "epochs": 24, "peak_epoch": 5}
    assert RESULTS.items() >= (expected | {"batch_size": 512}).items()
    assert RESULTS["test_accuracy_ema"] >= 93.5
    assert (RATES.lr_min, RATES.lr_max) == (RESULTS["lr_min"], RESULTS["lr_max"])  # found, not typed in
    assert [row["epoch"] for row in HISTORY] == list(range(1, 25))
    for key in ("test_accuracy", "test_accuracy_ema", "train_accuracy"):  # the last epoch is the result
        assert RESULTS[key] == HISTORY[-1][key]

    policy = eva.OneCycle(24, 5, RATES.lr_min, RATES.lr_max)
    assert len(STEPS) == 24 * 98
    for i, row in enumerate(STEPS):
        assert (row["step"], row["epoch"]) == (i, i / 98)
        assert row["applied"] == row["planned"] == policy(i / 98)


def test_pictures_are_small_enough_to_look_at():
    for path in (ROOT / "assets").rglob("*.png"):
        with Image.open(path) as image:
            assert path.stat().st_size < 300_000 and image.width <= 1900, path


# Pages


def ema(width: int, recipe: str = "ours", weights: str = "ema") -> list[float]:
    key, rows = ("cifar10-pixels", recipe, "test", width), benchmark.Rows(ROOT / "assets/benchmarks/accuracy.json").rows
    return [r[weights] for r in rows if (r["data"], r["recipe"], r["tested_on"], r["width"]) == key]


def test_the_numbers_on_readmes_first_screen_are_the_measured_ones():
    schedules = benchmark.Rows(ROOT / "assets/benchmarks/superconvergence.json").rows
    longer = {r["policy"]: r["test_accuracy_ema"] for r in schedules if r["epochs"] == 36}
    full, small, fast = ema(64), ema(16), ema(64, "cifar10-fast")
    ends = [
        [r["test_accuracy_ema"][-1] for r in schedules if r["policy"] == policy and r["data"] == "cifar10-pixels"
         and not r["tested_on"] and r["epochs"] == 12]
        for policy in ("one-cycle", "steps from 0.5", "constant 0.1")
    ]  # fmt: skip
    ahead, error = mean(ends[0]) - mean(ends[1]), math.hypot(*(stdev(end) / len(end) ** 0.5 for end in ends[:2]))
    reached = [1 + next(i for i, a in enumerate(some) if a >= mean(ends[0])) for some in list(longer.values())[1:]]
    leads = [longer["one-cycle"][-1] - some[-1] for some in list(longer.values())[1:]]
    behind = [mean(ema(w, "cifar10-fast", "raw")) - mean(ema(w, "ours", "raw")) for w in (64, 16)]
    title, _, *table = lr_finder.summary(benchmark.Rows(ROOT / "assets/benchmarks/lr_study.json")).splitlines()
    ours, *others = ([line.split(" | ")[i] for i in (1, 5)] for line in table[2:6])
    lowest, steepest, valley = map(" and ".join, others)
    for said in (
        *(f"**{benchmark.spread(some)} %** (n = {len(some)})" for some in (full, small)),
        f"reaches {benchmark.spread(fast)} % (n = {len(fast)}) and {benchmark.spread(ema(16, 'cifar10-fast'))} %",
        f"costs {ours[0]} points (SGD) and {ours[1]} (AdamW) against the best rate tried",
        f"steepest point {steepest}, a tenth of the lowest {lowest}, fastai's *valley* {valley}",
        f"[{title.split(' of')[0]} settings]",
        f"{ahead:.1f} ± {error:.1f} points ahead ([n = {len(ends[0])}]",
        f"36 epochs: {leads[0]:.1f} (n = 1)",
        f"over 36 epochs needs {reached[0]} for",
        f"is closer: {mean(ends[0]) - mean(ends[2]):.1f} and {leads[1]:.1f} behind",
        f"last weights that recipe is {behind[0]:.1f} and {behind[1]:.1f} points ahead",
        f"[{RESULTS['seconds_total'] / 60:.0f} minutes](",
    ):
        assert said in README, said
    said = f"those two need {reached[0]} and {reached[1]} epochs"
    assert any(said in cell.source for cell in notebook("SuperConvergence"))


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_a_pages_tables_and_links_are_true(page):
    text = (ROOT / page).read_text(encoding="utf8")
    assert update_tables.updated(text) == text  # what stands in assets/
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_every_table_is_on_a_page_and_one_that_is_out_of_date_is_noticed():
    assert update_tables.updated(README.replace("| ours |", "| theirs |")) == README
    pages = [(ROOT / page).read_text(encoding="utf8") for page in update_tables.PAGES]
    assert {match[2] for page in pages for match in update_tables.MARKERS.finditer(page)} == set(update_tables.TABLES)


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def small(code: str) -> str:
    """The same code with one epoch of a small network, in one process."""
    code = re.sub(r"epochs=\d+, peak_epoch=\d+", "epochs=1, peak_epoch=0.5", code)
    code = re.sub(r"workers=\d", "workers=0", code)
    code = code.replace("batch_size=512", "batch_size=64").replace("ResNet9()", "ResNet9(width=8)")
    return code.replace("len(train.classes))\nrates", "len(train.classes), 8)\nrates")


def test_readmes_tour_runs(batches, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eva, "cifar10", lambda root: eva.digits())
    names = {}
    tour, loop = blocks(README)
    exec(small(tour), names)
    assert len(names["wrong"]) == 25
    assert (tmp_path / "runs" / "tour" / "results.json").is_file()
    names["dataloader"] = batches(names["test"], 32, shuffle=True)
    names["network"] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    exec(loop, names)
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(names["rates"].lr_min)
    assert len(torch.load("loop.pt")) == 3


SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", RECIPES, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_recipe_runs(title, photos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    resnet18 = torchvision.models.resnet18
    monkeypatch.setattr(torchvision.models, "resnet18", lambda weights: resnet18())  # without the download
    if title == "Photos":
        shutil.copytree(photos, tmp_path / "photos")
        shutil.copy(photos / "red" / "0.png", tmp_path / "new.jpg")
    if "ONNX" in title and torch.__version__.startswith("2.6."):
        pytest.skip("its exporter does not go with today's onnxscript")
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


# Notebooks


def test_what_the_notebook_says_of_its_run_is_true():
    curve = RATES.curve
    keys = ("test_accuracy_ema", "test_accuracy", "test_loss_ema")
    averaged, last, losses = ([row[key] for row in HISTORY] for key in keys)
    assert losses == sorted(losses, reverse=True)
    jump = max((i for i in range(1, 24) if last[i] < last[i - 1]), key=lambda i: averaged[i] - last[i])
    best = max(range(24), key=lambda i: averaged[i])
    said = [
        f"ends at **{averaged[-1]:.2f} %**",
        f"the mean of three is {mean(ema(64)):.2f} %",
        f"last weights are at {last[-1]:.2f} %",
        f"starts at {curve.smooth[0]:.2f}",
        f"falls to {curve.smooth[curve.valley()[0]]:.2f}",
        f"at a rate of {curve.half():.3g}",
        f"LR_MAX = {RATES.lr_max:.3g}",
        f"LR_MIN = {RATES.lr_min:.3g}",
        f"Of {len(STEPS):,} steps none",
        f"passes 90 % in epoch {1 + next(i for i, accuracy in enumerate(averaged) if accuracy >= 90)}",
        f"in epoch {jump + 1} they fall to {last[jump]:.1f} %, {averaged[jump] - last[jump]:.0f} points below",
        f"the EMA was at {averaged[best]:.2f} % one epoch before",
        f"Epoch {best + 1}, by {averaged[best] - averaged[-1]:.2f} points",
        f"falls in every epoch, to {losses[-1]:.3f}",
        f"the two are {averaged[-1] - last[-1]:.1f} points apart",
        f"above, at {RESULTS['train_accuracy']:.2f} %",
        *(f"{words} {10_000 - round(100 * averaged[-1])} mistakes" for words in ("of all", "25 of")),
        f"EMA is at {averaged[11]:.1f} % after epoch 12",
    ]
    text = " ".join(
        " ".join(cell.source for cell in notebook("SuperConvergence") if cell.cell_type == "markdown").split()
    )
    assert [words for words in said if words not in text] == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [("FindLR", [Curve.rate_at, read_curve]), ("SuperConvergence", [Curve, OneCycle, ResNet9, step])],
)
def test_the_code_that_a_notebook_shows_is_todays(name, shown):
    outputs = [output for cell in notebook(name) for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert [thing for thing in shown if inspect.getsource(thing) not in printed] == []


def test_one_slug_everywhere(tmp_path):
    """And the workflow that points a fork to itself finds all of them."""
    slug = re.search(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/", README)[1]
    address = re.compile(r"(?:github\.com/|google\.com/github/)([\w-]+/[\w.-]+?)(?=[/\"')\\\s]|$)", re.MULTILINE)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for name in ("README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    workflow = (ROOT / ".github" / "workflows" / "set-repo.yml").read_text(encoding="utf8")
    lines = re.search(r"run: \|\n(.*?)\n      - run", workflow, re.DOTALL)[1]
    environment = os.environ | {"GITHUB_REPOSITORY": "0some/my.fork"}
    subprocess.run(["bash", "-ec", lines], cwd=tmp_path, env=environment, check=True)
    for changed in (*tmp_path.glob("*.*"), *tmp_path.glob("*/*.ipynb")):
        text = (ROOT / changed.relative_to(tmp_path)).read_text(encoding="utf8")
        assert set(address.findall(text)) == {slug}, changed
        assert changed.read_text(encoding="utf8") == text.replace(slug, "0some/my.fork") != text


def test_dependencies_have_lower_bounds_that_colab_meets():
    text = (ROOT / "setup.py").read_text(encoding="utf8")
    required = re.search(r"install_requires=\[(.*?)\]", text, re.DOTALL)[1]
    required = {r.name: r.specifier for r in map(Requirement, re.findall(r'"(.+?)"', required))}
    assert {str(s)[:1] for name, s in required.items() if name != "albumentations"} == {">"}
    there = {"torch": "2.11", "torchvision": "0.26", "numpy": "2.0", "matplotlib": "3.10", "seaborn": "0.13"}
    assert all(required[name].contains(version) for name, version in there.items())
