"""The benchmarks' own arithmetic, and that each of them runs, at the size of a toy."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jpeg
import numpy as np
import pytest
import torch
from PIL import Image

import accuracy
import eva_utils as eva
import lr_finder
import lr_rules
import lr_tables
import superconvergence
import throughput
from common import Rows, machine
from eva_utils import cli

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """600 training and 20 test images of 32 x 32 in two classes: enough for one batch of 512."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    generator = np.random.default_rng(0)
    for split, n in (("train", 300), ("test", 10)):
        for name, bright in (("dark", 0), ("light", 120)):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(bright, bright + 130, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def test_rows_are_kept_and_found(tmp_path):
    rows = Rows(tmp_path / "a" / "rows.json")
    assert rows.find(x=1) is None
    rows.add({"x": 1, "y": 2})
    rows.add({"x": 2, "y": 3})
    again = Rows(tmp_path / "a" / "rows.json")
    assert again.find(x=2) == {"x": 2, "y": 3}
    assert again.find(x=2, y=2) is None
    rows.add({"x": 5, "lr": 0.1})
    assert rows.find(lr=0.1 * (1 + 1e-12))["x"] == 5  # another machine's rounding
    assert rows.find(lr=0.1001) is None
    again.add({"x": 3})
    rows.add({"x": 4})
    assert [row["x"] for row in rows.rows] == [1, 2, 5, 3, 4]  # of two processes, none is lost


# The rules that the finder is compared with


def test_smoothings_by_hand():
    loss = np.array([4.0, 2.0, 0.0])
    assert lr_rules.exponential(loss, 0.25) == pytest.approx([4, 3.5, 2.625])
    assert lr_rules.corrected(loss, 0.5) == pytest.approx([4, (1 + 1) / 0.75, (0.5 + 0.5) / 0.875])


def test_the_valley_is_half_way_into_the_longest_fall():
    up = np.linspace(1, 3, 40)
    assert lr_rules.valley(np.r_[3.0, 3.0, np.linspace(2.9, 1, 30), up]) in range(14, 18)
    # Two falls: the longer one counts, not the deeper.
    assert lr_rules.valley(np.r_[np.linspace(10, 0, 6), np.linspace(30, 20, 24)]) in range(15, 20)


def test_the_policies_of_other_recipes():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1, momentum=0.9)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.609, epochs=24, steps_per_epoch=10, pct_start=5 / 24, div_factor=10, final_div_factor=1e4
    )
    cosine = accuracy.Cosine(24, 5, 0.0609, 0.609, 0.0609 / 1e4)
    momentum = accuracy.Cosine(24, 5, 0.95, 0.85, 0.95)
    # torch counts to its last step, we count to the end of the last epoch.
    assert cosine(0.0) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert momentum(0.0) == pytest.approx(optimizer.param_groups[0]["momentum"])
    seen = []
    for _ in range(239):
        optimizer.step()
        torchs.step()
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
    assert cosine(5.0) == pytest.approx(max(lr for lr, _ in seen))
    assert momentum(5.0) == pytest.approx(min(m for _, m in seen))
    assert cosine(24.0) == pytest.approx(seen[-1][0])
    triangle = accuracy.Triangle(24, 5, 0.4)
    assert [triangle(e) for e in (0, 2.5, 5, 14.5, 24)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])


@pytest.fixture(scope="module")
def solution_a():
    """(schedule, options of fit), for noise as images: none of its pixels is of the mean colour."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3)).astype(np.uint8)
    data = pixels, np.arange(400) % 10
    train, _ = eva.from_arrays(data, data, "0123456789")
    return accuracy.solution_a(accuracy.Job(train, 24, 4, 0, None))[1:], train


def test_the_rates_of_solution_a_are_those_of_its_log(solution_a):
    """Epoch, and rate at its start: torch's, which counts to its last step, so that ours differs in the third digit."""
    (schedule, _), _ = solution_a
    log = {2: 0.06204, 3: 0.2139, 4: 0.40134, 5: 0.55249, 6: 0.60939, 13: 0.43393, 22: 0.0594, 23: 0.04006, 24: 0.02828}
    assert [schedule(epoch - 1) for epoch in log] == pytest.approx(list(log.values()), abs=0.0015)


def test_the_holes_of_solution_a(solution_a):
    (_, options), train = solution_a
    ((x, _),) = eva.batches.loader(train, options["augment"], len(train)).epoch(0)
    hidden = (x == 0).all(1).flatten(1).sum(1)
    assert 0.4 < (hidden > 0).float().mean() < 0.6
    some = hidden[hidden > 0]
    assert some.max() <= 4 * 64 and (some % 8 != 0).any()  # a hole beyond a corner leaves any number
    assert (some < 64).sum() < len(some) / 10


def test_the_skip_added_twice():
    block = eva.ResNet9(width=4).layer1.eval()
    x = torch.randn(2, 4, 8, 8)
    inner, (first, second) = block.down(x), block.residual
    block.__class__ = accuracy.SkipTwice
    assert torch.allclose(block(x), inner + (inner + second.bn(second.conv(first(inner)))).clamp(min=0))


def test_pooling_after_relu():
    model = eva.ResNet9(width=4).eval()
    x = torch.randn(2, 4, 8, 8)
    down = model.layer1.down
    expected = torch.nn.functional.max_pool2d(down.bn(down.conv(x)).clamp(min=0), 2)
    changed = accuracy.pool_last(model)
    assert torch.allclose(changed.layer1.down(x), expected)
    for block in (changed.layer2, changed.layer3.down):
        assert [name for name, _ in block.named_children()] == ["conv", "bn", "relu", "pool"]
    assert changed(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_statistics_of_the_weights_own(solution_a):
    """They are the mean over an epoch's batches of what the first convolution gives, and the model keeps its own."""
    _, train = solution_a
    options = {"augment": eva.Augment(), "batch_size": 200}
    model = eva.ResNet9(width=4).to(memory_format=torch.channels_last).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = accuracy.own_statistics(model, accuracy.Job(train, 2, 4, 3, None), options)
    batches = [x for x, _ in eva.batches.loader(train, options["augment"], 200, seed=3).epoch(0)]
    assert len(batches) == 2 and not own.training
    with torch.no_grad():
        outputs = [model.prep.conv(x).transpose(0, 1).flatten(1) for x in batches]
    mean, variance = (torch.stack([f(y, 1) for y in outputs]).mean(0) for f in (torch.mean, torch.var))
    assert torch.allclose(own.prep.bn.running_mean, mean, atol=0.01)  # the model's may be in bf16
    assert torch.allclose(own.prep.bn.running_var, variance, rtol=0.02)
    assert not torch.allclose(before["prep.bn.running_var"], variance, rtol=0.02)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_cyclic_momentum_is_applied(tiny, cnn):
    train, _ = tiny
    settings = {"seed": 0, "momentum": 0.95, "weight_decay": 0.0, "label_smoothing": 0.0, "ema": 0.1}
    batches = eva.batches.loader(train, None, 8)
    trainer = accuracy.CyclicMomentum(cnn(), batches, accuracy.Cosine(2, 1, 0.01, 0.1, 0.001), settings, "fp32")
    group, seen = trainer.optimizer.param_groups[0], []
    take = trainer.optimizer.step
    trainer.optimizer.step = lambda *args, **options: seen.append(group["momentum"]) or take(*args, **options)
    for epoch in range(2):
        trainer.train_epoch(epoch)
    assert seen[0] == 0.95 and min(seen) == seen[4] == pytest.approx(0.85)
    assert group["nesterov"] is False


# Each of them, small


def test_recipes_run_and_are_not_run_again(photos, tmp_path):
    command = [sys.executable, BENCHMARKS / "accuracy.py", "--data", photos, "--out", tmp_path / "rows.json"]
    names = ["solution-a", "cifar10-fast"]
    command += ["--work", tmp_path / "work", "--width", "4", "--epochs", "2", "--recipes", *names]
    first = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["recipe"] for row in rows] == names
    assert [row["lr_first"] for row in rows] == pytest.approx([0.004, 0])
    accuracies = "raw", "raw_tta", "raw_own", "ema", "ema_tta", "ema_own", "train"
    assert all(0 <= row[key] <= 100 for row in rows for key in accuracies)
    assert "going on" not in first
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "images/s" not in again
    assert "Width 4, 2 epochs, 600 training images of photos; " in again
    assert f"| solution-a | {rows[0]['lr_max']:.2g} | {rows[0]['raw']:.2f} | " in again
    assert f"| solution-a | {rows[0]['raw_own']:.2f} | " in again


def test_a_run_of_the_command_is_one_of_ours(photos, tmp_path, monkeypatch):
    out, rows = tmp_path / "run", tmp_path / "rows.json"
    train = ["train", "--data", str(photos), "--width", "4", "--epochs", "2", "--peak-epoch", str(2 * 5 / 24)]
    assert cli.main([*train, "--out", str(out)]) == 0
    command = ["accuracy.py", "--out", str(rows), "--adopt"]
    for _ in range(2):  # a run counts once
        monkeypatch.setattr(sys, "argv", [*command, str(out)])
        accuracy.main()
    (adopted,) = json.loads(rows.read_text())
    images, test = eva.image_folder(photos)
    trained = accuracy.run(accuracy.ours, accuracy.Job(images, 2, 4, 0, tmp_path / "again"), test)
    only_here = "python", "date", "raw_own", "ema_own"
    measured = [key for key in trained if not key.startswith("seconds") and key not in only_here]
    assert {"raw", "ema_tta", "lr_max"} < set(measured)
    assert [adopted[key] for key in measured] == [trained[key] for key in measured]
    assert cli.main([*train, "--weight-decay", "0", "--out", str(tmp_path / "other")]) == 0
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"another recipe:\n  weight_decay: 0.0 there, 0.001 here"):
        accuracy.main()


def test_the_published_runs_are_in_the_table_and_that_of_an_earlier_recipe_is_not(tmp_path):
    runs = BENCHMARKS.parent / "assets" / "runs"
    rows = Rows(BENCHMARKS.parent / "assets" / "benchmarks" / "accuracy.json")
    for name in ("cifar10-jpeg-24", "cifar10-jpeg-24-cpu"):
        assert rows.find(**accuracy.adopt(runs / name)), name
    with pytest.raises(SystemExit, match=r"another recipe:\n  label_smoothing: 0.2 there, 0.0 here"):
        accuracy.adopt(runs / "cifar10-jpeg-24-lr-max-0.33")
    other = shutil.copytree(runs / "cifar10-jpeg-24", tmp_path / "other")
    found = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps(found | {"lr_max": 2 * found["lr_max"]}))
    with pytest.raises(SystemExit, match="found its rates by another rule"):
        accuracy.adopt(other)


def test_jpeg_files_are_quality_75_in_a_folder_that_is_read_again(tmp_path):
    smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(1, 32, 32, 3).astype(np.uint8)
    pixels = torch.from_numpy(np.concatenate([smooth, 255 - smooth, smooth // 2]))
    images = eva.Images(pixels, torch.tensor([1, 0, 1]), ("ant", "bee"), (0, 0, 0), (1, 1, 1))
    for split in ("train", "test"):
        jpeg.write(images, tmp_path / split)
    read, _ = eva.image_folder(tmp_path)
    assert read.classes == images.classes and read.labels.tolist() == [0, 1, 1]
    gap = (read.pixels.float() - images.pixels[[1, 0, 2]].float()).abs()
    assert 0 < gap.mean() < 3
    with Image.open(tmp_path / "train" / "bee" / "0001.jpg") as image:
        assert image.quantization[0][:4] == [8, 6, 5, 8]  # half of the standard's 16, 11, 10, 16
        assert [component[1:3] for component in image.layer] == [(2, 2), (1, 1), (1, 1)]


def test_superconvergence_runs_and_draws(photos, tmp_path):
    command = [sys.executable, BENCHMARKS / "superconvergence.py", "--data", photos, "--out", tmp_path]
    command += ["--work", tmp_path / "work", "--width", "4", "--epochs", "2"]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads((tmp_path / "superconvergence.json").read_text())
    short, longer = ([row for row in rows if row["epochs"] == epochs] for epochs in (2, 6))
    names = ["one-cycle", "constant 0.02", "constant 0.1", "constant 0.5", "steps from 0.1", "steps from 0.5"]
    assert sorted(row["policy"] for row in short) == sorted(names)
    assert longer[0]["policy"] == "one-cycle"
    for row, tried in zip(longer[1:], (names[1:4], names[4:]), strict=True):
        last = {row["policy"]: row["test_accuracy_ema"][-1] for row in short if row["policy"] in tried}
        assert last[row["policy"]] == max(last.values())
        assert len(row["test_accuracy"]) == len(row["test_accuracy_ema"]) == 6
    first, _, _, _, *lines = superconvergence.table(rows).splitlines()
    assert first.startswith("Width 4, 600 training images of photos, seed 0, n = 1; ")
    values = (f"{short[0][key][-1]:.1f}" for key in ("test_accuracy", "test_accuracy_ema"))
    assert lines[0] == f"| one-cycle | {short[0]['lr']:.2g} | 2 | {' | '.join(values)} |"
    assert len(lines) == 9
    others = [{**row, "data": "others"} for row in rows]
    assert superconvergence.table(rows + others) == f"{superconvergence.table(rows)}\n{superconvergence.table(others)}"
    with Image.open(tmp_path / "superconvergence.png") as image:
        assert image.width > 600


# A curve in which every rule finds something: flat, down, up.
CURVES = {
    name: {
        "lr": np.geomspace(test["lr_start"], test["lr_end"], test["steps"]).tolist(),
        "loss": np.interp(np.linspace(0, 1, test["steps"]), [0, 0.3, 0.7, 1], [2.3, 2.2, 1.2, 2.0]).tolist(),
    }
    for name, test in lr_rules.TESTS.items()
}


def test_what_is_still_to_be_run(tmp_path):
    rows = Rows(tmp_path / "rows.json")
    tests = sum(len(lr_finder.seeds(setting)) for setting in lr_finder.SETTINGS + lr_finder.CHOSEN_ON)
    assert len(lr_finder.wanted(rows)) == tests
    setting = lr_finder.LR_MIN_SETTINGS[-1]
    key = {**vars(setting), "seed": 0}
    rows.add({**key, "curves": CURVES})

    def todo(rules: bool) -> list[tuple[float, float]]:
        return [pair for s, seed, pair in lr_finder.wanted(rows, rules) if s == setting and seed == 0]

    assert todo(rules=False) == [(rate / lr_rules.RATIO, rate) for rate in lr_finder.GRID]
    assert (valley := lr_rules.rates(CURVES)["valley"])[1] < lr_finder.GRID[0]
    assert len(todo(rules=True)) == len(lr_finder.GRID) + 1 + 1 + len(lr_finder.RATIOS)
    assert valley in todo(rules=True)  # what the grid says nothing of
    for lr_min, lr_max in dict.fromkeys(todo(rules=True)):
        rows.add({**key, "lr_min": lr_min, "lr_max": lr_max, "raw": 50.0, "ema": 50.0})
    assert not todo(rules=True)


def test_rates_of_other_pictures_do_not_mix(photos, tmp_path, monkeypatch, capsys):
    rows = Rows(tmp_path / "rows.json")
    rows.add({**vars(lr_finder.SETTINGS[2]), "seed": 0, "pictures": "portraits", "curves": CURVES})
    before = rows.path.read_text()
    monkeypatch.setattr(sys, "argv", ["lr_finder.py", "--data", str(photos), "--out", str(rows.path)])
    with pytest.raises(SystemExit):
        lr_finder.main()
    assert "is about portraits, and --data is photos: choose another --out" in capsys.readouterr().err
    assert rows.path.read_text() == before


def test_settings_for_choosing_are_not_those_for_judging():
    assert len(lr_finder.SETTINGS) == 12
    assert not set(lr_finder.SETTINGS) & set(lr_finder.CHOSEN_ON)


def test_a_choice_takes_more_seeds_only_where_it_matters(tmp_path):
    rows = Rows(tmp_path / "rows.json")
    setting = lr_finder.CHOSEN_ON[2]
    key = {**vars(setting)}
    for seed in lr_finder.SEEDS:
        rows.add({**key, "seed": seed, "curves": CURVES})
    for rate, value in zip(lr_finder.GRID, (50, 54, 59, 60, 60, 58, 30, 10, 10), strict=True):
        assert not [seed for s, seed, _ in lr_finder.wanted(rows) if s == setting and seed]
        rows.add({**key, "seed": 0, "lr_min": rate / lr_rules.RATIO, "lr_max": rate, "raw": value, "ema": value})
    todo = [(seed, pair[1]) for s, seed, pair in lr_finder.wanted(rows) if s == setting]
    assert todo == [(seed, rate) for seed in (1, 2) for rate in lr_finder.GRID[1:6]]


def test_a_weak_setting_is_tried_with_more_seeds_near_its_best(tmp_path):
    rows = Rows(tmp_path / "rows.json")
    setting = lr_finder.WEAK[1]
    for seed in lr_finder.seeds(setting):
        rows.add({**vars(setting), "seed": seed, "pictures": "cifar10-jpeg", "curves": CURVES, **machine()})
    accuracy = dict(zip(lr_finder.GRID, (57, 59, 65.76, 59.76, 59.74, 40, 10, 10, 10), strict=True))  # 6 and 6.02 below
    found = lr_rules.ours(CURVES)
    valley = lr_rules.rates(CURVES)["valley"]
    trained = []
    assert lr_tables.weak(rows) == ""
    while todo := [(seed, pair) for s, seed, pair in lr_finder.wanted(rows) if s == setting]:
        seed, pair = todo[0]
        trained.append((seed, pair))
        value = 58 if pair == found else accuracy.get(pair[1], 20) + seed % 3
        rows.add({**vars(setting), "seed": seed, "lr_min": pair[0], "lr_max": pair[1], "raw": value, "ema": value})
    few, many = ([pair for seed, pair in trained if seed == s] for s in (2, 3))
    assert [pair[1] for pair in few] == [*lr_finder.GRID, found[1], valley[1]]
    assert [pair[1] for pair in many] == [*lr_finder.GRID[2:4], found[1]]
    lines = lr_tables.weak(rows).splitlines()
    assert lines[0].startswith("CIFAR-10 (JPEG q75), width 16, batch 128, plain logits, label smoothing 0.2; ")
    assert lines[6] == "| 0.05 | 66.76 ± 0.85 | 66.76 ± 0.85 | 12 |"
    assert lines[8].endswith("| 3 |")
    assert lines[-1] == "| as found, LR_MIN too | 58.00 ± 0.00 | 58.00 ± 0.00 | 12 |"


def test_the_whole_job_is_a_table_of_its_own(tmp_path):
    rows = Rows(tmp_path / "rows.json")
    setting = lr_finder.WHOLE
    assert lr_finder.wanted(rows, whole=True) == [(setting, seed, None) for seed in lr_finder.SEEDS]
    assert setting not in {s for s, _, _ in lr_finder.wanted(rows)}
    for seed in lr_finder.SEEDS:
        rows.add({**vars(setting), "seed": seed, "pictures": "cifar10-jpeg", "curves": CURVES, **machine()})
    # Within a point of the best with the last weights, 0.1 and 0.2; with their average, 0.4 as well.
    raw = dict(zip(lr_finder.GRID, (80, 81, 82, 90.2, 91, 89, 85, 80, 10), strict=True))
    ema = dict(zip(lr_finder.GRID, (80, 81, 82, 89, 91, 91.5, 85, 80, 10), strict=True))
    _, lr_max = lr_rules.ours(CURVES)
    assert lr_tables.whole(rows) == ""
    while todo := lr_finder.wanted(rows, whole=True):
        _, seed, pair = todo[0]
        values = {"raw": raw.get(pair[1], 90.0) + seed, "ema": ema.get(pair[1], 90.0) + seed}
        rows.add({**vars(setting), "seed": seed, "lr_min": pair[0], "lr_max": pair[1], **values})
    pairs = [(row["lr_min"], row["lr_max"]) for row in rows.rows if row["seed"] == 2 and "lr_min" in row]
    trained = [lr_max for lr_min, lr_max in pairs if lr_min == lr_max / lr_rules.RATIO]
    assert trained == [0.1, 0.2, 0.4]
    title, _, _, _, *lines = lr_tables.whole(rows).splitlines()
    assert title.startswith("CIFAR-10 (JPEG q75), width 64, batch 512, scaled logits, no label smoothing, 24 epochs; ")
    assert lines[3] == "| 0.1 | 91.20 ± 1.00 | 90.00 ± 1.00 | 3 |"
    assert lines[-3] == f"| as found, LR_MIN LR_MAX/{lr_finder.WHOLE_RATIOS[-1]} | 91.00 ± 1.00 | 91.00 ± 1.00 | 3 |"
    assert lines[-1].startswith(f"LR_MAX found: *eva_utils* {lr_max:.2g}, {lr_max:.2g}, {lr_max:.2g}; *lowest* ")
    assert lr_tables.devices(rows) == "" != lr_tables.devices(rows, whole=True)
    # A short training of the same network is another setting.
    assert lr_finder.curves_of(rows, dataclasses.replace(setting, epochs=None), 0) is None


def test_regret_is_the_best_of_the_grid_minus_the_rule(tmp_path, monkeypatch):
    setting = lr_finder.SETTINGS[0]
    for module in (lr_finder, lr_tables):
        monkeypatch.setattr(module, "SETTINGS", [setting])
        monkeypatch.setattr(module, "LR_MIN_SETTINGS", [setting])
    rows = Rows(tmp_path / "rows.json")
    pairs = lr_rules.rates(CURVES)
    assert len(set(pairs.values())) == 4
    lr_min, lr_max = pairs["eva_utils"]
    for seed in lr_finder.SEEDS:
        key = {**vars(setting), "seed": seed}
        rows.add({**key, "pictures": "digits", "curves": CURVES})
        for i, rate in enumerate(lr_finder.GRID):
            value = 100 - 10 * abs(i - 5) + seed  # a tent whose tip is at 0.4: straight between the points
            rows.add({**key, "lr_min": rate / lr_rules.RATIO, "lr_max": rate, "raw": value, "ema": value + 1})
        rows.add({**key, "lr_min": lr_min, "lr_max": lr_max, "raw": 98.0, "ema": 99.0})
        rows.add({**key, **dict(zip(("lr_min", "lr_max"), pairs["valley"], strict=True)), "raw": 11.0, "ema": 12.0})
        assert lr_tables.complete(rows) == []  # LR_MIN's study is not there yet
        for ratio in lr_finder.RATIOS:
            rows.add({**key, "lr_min": lr_max / ratio, "lr_max": lr_max, "raw": ratio, "ema": 2 * ratio})
    assert lr_tables.complete(rows) == [setting]
    table = lr_tables.regret(rows)
    lost = [10 * abs(np.log2(pairs[rule][1] / 0.4)) for rule in ("lowest", "steepest")]
    lost.append(101 - 11)  # valley's rate is below the grid, so it is trained with
    cells = " | ".join(f"{x:.1f}" for x in (3, *lost))
    assert "\n| digits, width 16, batch 128, scaled logits, label smoothing 0.2 | " in table
    assert f"| 0.4 | 101.0 | {cells} | {', '.join([f'{lr_max:.2g}'] * 3)} |" in table
    assert f"| **worst** |  |  | **3.0** | {' | '.join(f'**{x:.1f}**' for x in lost)} |  |" in table
    assert "| 5.0 / 10.0 | 10.0 / 20.0 | 20.0 / 40.0 | 40.0 / 80.0 | 100.0 / 200.0 |" in lr_tables.lr_min(rows)
    assert len(lr_tables.draw(rows).axes) == 4


@pytest.mark.parametrize(("which", "limit"), [("raw", 2.5), ("ema", 1.5)])
def test_the_rule_is_as_good_as_measured(which, limit):
    """Against the measurements in the repository, read by the rule as it is now."""
    rows = Rows(BENCHMARKS.parent / "assets/benchmarks/lr_finder.json")
    assert lr_tables.complete(rows) == lr_finder.SETTINGS
    lines = lr_tables.regret(rows, which).splitlines()
    mean, worst = ([float(x) for x in re.findall(r"\*\*(-?[\d.]+)\*\*", line)] for line in lines[-2:])
    assert mean[0] <= 0.7
    assert worst[0] <= limit
    assert mean[0] < min(mean[1:])
    for setting in lr_finder.SETTINGS:
        found = lr_tables.by_rule(rows, setting)["eva_utils"]
        maxima = [lr_max for _, lr_max in found.values()]
        assert max(maxima) < 2 * min(maxima)
        for seed, (lr_min, lr_max) in found.items():
            assert not rows.find(**vars(setting), seed=seed, lr_min=lr_min, lr_max=lr_max)["diverged"]


def test_an_ingredients_worth_is_a_difference_with_its_error():
    row = {"width": 16, "epochs": 12, "data": "cifar10", "images": 45_000, "seconds": 90, "train": 90}
    row |= {"device": "CPU: slow", "precision": "fp32", "torch": "9"}
    runs = {"ours, plain logits": [78, 79, 80], "ours": [80, 81, 82]}
    rows = [{**row, "recipe": name, "raw": x, "ema": x + 1} for name, values in runs.items() for x in values]
    rows += [{**row, "width": 32, "seconds": 150} for row in (rows[-3], rows[0])]
    first, _, _, _, alone, other, _, second, *_, last = accuracy.ablation(rows).splitlines()
    assert first == "Width 32, 12 epochs, 45,000 training images of CIFAR-10; slow, fp32, torch 9:"
    assert alone == "| ours | 80.00 | 81.00 |  |  | 1 |"
    assert other == "| ours, plain logits | 78.00 | 79.00 | 2.00 ± ? | 2.00 ± ? | 1 |"  # one run has no spread
    assert second.startswith("Width 16, ")
    # sqrt(1/3 + 1/3)
    assert last == "| ours, plain logits | 79.00 ± 1.00 | 80.00 ± 1.00 | 2.00 ± 0.82 | 2.00 ± 0.82 | 3 |"


def test_what_statistics_of_their_own_gain():
    row = {"width": 16, "epochs": 12, "data": "cifar10", "images": 45_000, "seconds": 90, "recipe": "ours", "train": 90}
    row |= {"device": "CPU: slow", "precision": "fp32", "torch": "9"}
    rows = [{**row, "raw": 80, "ema": 82, "raw_own": 80 + gain, "ema_own": 83} for gain in (1, 2, 3)]
    unmeasured = {**row, "raw": 10, "ema": 10}
    alone = {**rows[0], "recipe": "cifar10-fast"}
    *_, ours, other = accuracy.statistics([*rows, unmeasured, alone]).splitlines()
    assert ours == "| ours | 82.00 ± 1.00 | 2.00 ± 0.58 | 83.00 ± 0.00 | 1.00 ± 0.00 | 3 |"
    assert other == "| cifar10-fast | 81.00 | 1.00 | 83.00 | 1.00 | 1 |"


def test_a_run_that_learned_nothing_is_counted_apart():
    row = {"width": 16, "epochs": 12, "data": "cifar10", "images": 45_000, "seconds": 90, "lr_max": 0.6}
    row |= {"device": "CPU: slow", "precision": "fp32", "torch": "9"}
    values = dict.fromkeys(("raw", "ema", "ema_tta", "raw_own", "ema_own"), 80) | {"train": 90}
    failed = dict.fromkeys(values, 10)
    ours = [{**row, **values, "recipe": "ours"}] * 2
    others = [{**row, **some, "recipe": "solution-a"} for some in (values, failed, values)]
    for table in (accuracy.table, accuracy.ablation, accuracy.statistics):
        *_, first, second = table(ours + others).splitlines()
        assert first.endswith(" | 2 |") and second.endswith(" | 2, and 1 at chance |")
        assert "80.00 ± 0.00" in second and "10.00" not in second
        assert table(ours + others[1:2]).endswith(" | 1, at chance |\n")  # there is no other to take a mean of


def test_throughputs_ratios():
    best = throughput.choose_precision(throughput.DEVICE)
    names = throughput.parts(1024, 1)
    samples = {
        name: [
            {"tflops": 1.0 * k} if name.startswith("matmul") else {"images_per_second": 100.0 * k} for k in (1, 2, 4)
        ]
        for name in names
    }
    samples["epoch: eva_utils"] = [{"images_per_second": v} for v in (500.0, 800.0, 2000.0)]
    summary = throughput.summarise(samples)
    assert summary["ratios"]["whole epoch, eva_utils over usual"] == 5  # of 5, 4 and 5
    assert summary["ratios"]["share of the matrix product's rate"][best] == pytest.approx(0.227)
    assert summary["measurements"]["epoch: usual"]["images_per_second"] == {
        "median": 200,
        "min": 100,
        "max": 400,
        "n": 3,
    }


def test_throughput_measures_an_epoch():
    measured = throughput.child("data: eva_utils, batch engine", 512, 1)
    assert measured["images_per_second"] > 1000
    assert measured["first_batch_seconds"] > 0
