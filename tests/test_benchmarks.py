"""The benchmarks' own arithmetic, and that each of them runs at the size of a toy."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import accuracy
import eva_utils as eva
import lr_finder
import superconvergence
import throughput
from common import Rows
from eva_utils.batches import loader

ROOT = Path(__file__).resolve().parent.parent
# A curve in which every rule finds something: flat, down, up.
CURVES = {
    name: {
        "lr": np.geomspace(test["lr_start"], test["lr_end"], test["steps"]).tolist(),
        "loss": np.interp(np.linspace(0, 1, test["steps"]), [0, 0.3, 0.7, 1], [2.3, 2.2, 1.2, 2.0]).tolist(),
    }
    for name, test in lr_finder.TESTS.items()
}


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script's main() with these arguments, in this process; what it printed."""

    def run(module, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        return module.main() or capsys.readouterr().out

    return run


def test_rows_are_kept_and_found(tmp_path):
    rows, again = Rows(tmp_path / "a" / "rows.json"), Rows(tmp_path / "a" / "rows.json")
    rows.add({"x": 1, "lr": 0.1})
    again.add({"x": 3})
    rows.add({"x": 4})
    assert [row["x"] for row in Rows(rows.path).rows] == [1, 3, 4]  # of two processes, none is lost
    assert len(rows.path.read_text().splitlines()) == 3 + 2  # a line a row
    assert rows.find(lr=0.1 * (1 + 1e-12))["x"] == 1  # another machine's rounding
    assert rows.find(lr=0.1001) is None is rows.find(x=4, lr=0.1)


def test_other_peoples_recipes_are_what_their_logs_and_their_code_say():
    # Noise as images: none of its pixels is of the mean colour.
    data = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3)).astype(np.uint8), np.arange(400) % 10
    train, _ = eva.from_arrays(data, data, "0123456789")
    job = accuracy.Job(train[list(range(400)) * 2], 24, 4, 0, None)
    triangle = accuracy.cifar10_fast(job)[1]
    assert [triangle(epoch) for epoch in (0, 2.5, 5, 14.5, 24)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])

    model, schedule, recipe = accuracy.solution_a(job)
    # Epoch, and rate at its start: torch's, which counts to its last step, so that ours differs in the third digit.
    log = {2: 0.06204, 3: 0.2139, 4: 0.40134, 5: 0.55249, 6: 0.60939, 13: 0.43393, 22: 0.0594, 24: 0.02828}
    assert [schedule(epoch - 1) for epoch in log] == pytest.approx(list(log.values()), abs=0.0015)
    batches = loader(train, recipe.replace(batch_size=400, workers=0), torch.device("cpu"))
    ((x, _),) = batches.epoch(0)
    mean, std = torch.tensor(train.mean), torch.tensor(train.std)
    hidden = (255 * (x.permute(0, 2, 3, 1) * std + mean)).round().eq((255 * mean).round()).all(3).flatten(1).sum(1)
    assert 0.4 < (hidden > 0).float().mean() < 0.6
    assert hidden.max() <= 4 * 64 and (hidden % 8 != 0).any()  # a hole beyond a corner leaves any number
    block, x = model.layer1.eval(), torch.randn(2, 4, 8, 8)
    inner, (first, second) = block.down(x), block.residual
    assert torch.allclose(block(x), inner + (inner + second.bn(second.conv(first(inner)))).clamp(min=0))
    momenta, state = [], None
    for _ in range(24 * 2):  # restarted before each step
        optimizer = recipe.make_optimizer(model.parameters())
        if state:
            optimizer.load_state_dict(state)
        optimizer.step()
        state = optimizer.state_dict()
        momenta.append(optimizer.param_groups[0]["momentum"])
    assert momenta[0] == 0.95 and min(momenta) == momenta[5 * 2] == pytest.approx(0.85)
    assert not optimizer.param_groups[0]["nesterov"]


def test_recipes_run_and_are_not_run_again(tmp_path, call):
    command = ["--data", "digits", "--images", 600, "--width", 4, "--epochs", 2, "--out", tmp_path / "rows.json"]
    command += ["--work", tmp_path / "work", "--recipes", "ours", "solution-a"]
    call(accuracy, *command)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["recipe"] for row in rows] == ["ours", "solution-a"]
    assert rows[0]["lr_first"] < rows[0]["lr_max"] and rows[1]["lr_first"] == pytest.approx(0.004)
    again = call(accuracy, *command)
    assert "images/s" not in again and "Width 4, 2 epochs, 600 training images of digits; " in again
    assert f"| solution-a | {rows[1]['lr_max']:.2g} | {rows[1]['raw']:.2f} | " in again


def test_superconvergence_runs_and_draws(tmp_path, call, monkeypatch):
    kinds = {"one-cycle": ([], ()), "constant": ([0.02, 0.1], ()), "steps from": ([0.1], (0.5, 0.75))}
    monkeypatch.setattr(superconvergence, "POLICIES", kinds)
    command = ["--data", "digits", "--images", 512, "--width", 1, "--epochs", 2, "--seeds", 2, "--out", tmp_path]
    call(superconvergence, *command, "--work", tmp_path / "work")
    rows = json.loads((tmp_path / "superconvergence.json").read_text())
    tried = {row["policy"]: row["test_accuracy_ema"][-1] for row in rows if row["tested_on"]}
    assert list(tried) == ["constant 0.02", "constant 0.1", "steps from 0.1"]
    best = max(list(tried)[:2], key=tried.get)  # chosen on held-out images, shown on the test's
    shown = [(row["policy"], row["epochs"]) for row in rows if not row["tested_on"]]
    assert shown == [(name, epochs) for name in ("one-cycle", best, "steps from 0.1") for epochs in (2, 2, 6)]
    with Image.open(tmp_path / "superconvergence.png") as image:
        assert image.width > 600


def test_the_study_of_rates_widens_its_grid_and_runs_nothing_twice(tmp_path, call, monkeypatch):
    setting = lr_finder.Setting("digits", "MLP", 64, "sgd", 0.0, 1)
    for name in ("SETTINGS", "ALL"):
        monkeypatch.setattr(lr_finder, name, [setting])

    def tent(setting, seed, rule, pair, root) -> dict:
        value = 90 - 10 * abs(math.log2(pair[1] / 1.6)) + seed
        return {"raw": value, "ema": value, "failed": False}

    monkeypatch.setattr(lr_finder, "accuracy", tent)
    monkeypatch.setattr(lr_finder, "curves", lambda *_: CURVES)
    printed = call(lr_finder, "--out", tmp_path / "rows.json")
    rows, found = Rows(tmp_path / "rows.json"), lr_finder.rates(CURVES)
    grid = sorted({row["lr_max"] for row in rows.rows if row["rule"] == "grid"})
    assert grid == pytest.approx([0.1 * 2**k for k in range(round(math.log2(grid[0] / 0.1)), 6)])  # one beyond 1.6
    assert grid[0] < found["ours"][1] / 4 and len(rows.rows) == 3 * (1 + 7 + len(grid))
    with Image.open(tmp_path / "rows.png") as image:
        assert image.width > 600
    assert "'rule'" in printed and "'rule'" not in call(lr_finder, "--out", rows.path)


@pytest.mark.parametrize("rule", ["ours", "Prodigy", "schedule-free"])
def test_the_study_of_rates_trains(tmp_path, rule):
    for module in {"Prodigy": ["prodigyopt"], "schedule-free": ["schedulefree"]}.get(rule, []):
        pytest.importorskip(module)
    setting = lr_finder.Setting("digits", "VGG", 32, "adamw", 0.01, 3)
    row = lr_finder.accuracy(setting, 0, rule, (0.001, 0.01) if rule == "ours" else (1.0, 1.0), "digits")
    assert rule == "Prodigy" or not row["failed"]  # Prodigy begins slowly
    assert rule != "schedule-free" or row["raw"] == row["ema"]


def test_the_study_of_rates_has_networks_for_its_data():
    for setting in lr_finder.ALL:
        if setting.data != "cifar10":  # of the same size as digits
            model, train, held_out, _ = lr_finder.prepared(setting, 0, "")
            logits = model(torch.randn(2, 3, *train.pixels.shape[1:3]))
            assert logits.shape == (2, len(train.classes)) and len(held_out) >= 637
            assert bool(logits.any()) != ("zero head" in setting.network)
    train, _ = lr_finder.images("pairs", "")
    assert train.pixels.shape[1:3] == (16, 32) and {*train.labels.tolist()} == {*range(100)}


def test_throughputs_parts_and_ratios():
    names = throughput.parts(1024, 1)
    assert throughput.child("data: eva_utils, batch engine", 512, 1)["images_per_second"] > 1000
    samples = {name: [{"tflops": k, "images_per_second": 100 * k} for k in (1, 2, 4)] for name in names}
    samples["epoch: eva_utils"] = [{"images_per_second": v} for v in (500, 800, 2000)]
    assert (ratios := throughput.summarise(samples)["ratios"])["whole epoch, eva_utils over usual"] == 5  # of 5, 4, 5
    assert ratios["share of the matrix product's rate"][throughput.BEST] == pytest.approx(0.227)


def test_the_rule_is_the_one_that_was_judged():
    """Every pair that was trained with as ours is what the rule reads today off the curve of that setting and seed."""
    rows, keys = Rows(ROOT / "assets/benchmarks/lr_study.json"), lr_finder.Setting.__dataclass_fields__
    for row in (trained := [row for row in rows.rows if row["rule"] == "ours"]):
        setting = lr_finder.Setting(**{key: row[key] for key in keys})
        assert lr_finder.pairs(rows, setting, row["seed"])["ours"] == pytest.approx((row["lr_min"], row["lr_max"]))
    assert len(trained) > 40
