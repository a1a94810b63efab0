"""The command line: one command does the whole job, and a mistake costs a line and nothing else."""

import contextlib
import csv
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import eva_utils
from eva_utils import Augment, InputError, OneCycle, ResNet9, checkpoint, cli, job
from eva_utils.checkpoint import write_tensors

TRAIN = [
    "train", "--data", "digits", "--width", "4", "--epochs", "2", "--peak-epoch", "1", "--batch-size", "128",
    "--no-flip", "--precision", "fp32", "--device", "cpu",
]  # fmt: skip
RATES = ["--lr-min", "0.02", "--lr-max", "0.2"]
KEYS = {
    "data", "n_train", "n_test", "seed", "epochs", "peak_epoch", "batch_size", "lr_min", "lr_max", "lr_reasons",
    "params", "test_accuracy", "test_accuracy_ema", "test_accuracy_ema_tta", "train_accuracy", "seconds_total",
    "seconds_train", "images_per_second", "device", "precision", "torch", "version",
}  # fmt: skip
FLAGS = [
    "--data", "--out", "--root", "--config", "--fresh", "--epochs", "--peak-epoch", "--batch-size", "--lr-min",
    "--lr-max", "--width", "--seed", "--padding", "--flip", "--no-flip", "--cutout", "--label-smoothing",
    "--weight-decay", "--ema", "--precision", "--device", "--engine", "--workers",
]  # fmt: skip
STEPS = 12  # an epoch: 1,437 images in batches of 128


@pytest.fixture(autouse=True)
def own_signals():
    """``main`` takes SIGTERM over for the rest of the process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*args) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([str(arg) for arg in args])
        except SystemExit as end:  # argparse
            status = end.code
    return status, out.getvalue(), err.getvalue()


def files(folder) -> dict:
    """{relative path: (time of change, content)} of every file below, but for the lock."""
    return {
        file.relative_to(folder).as_posix(): (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def results(folder) -> dict:
    """results.json without what the clock decides."""
    values = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in values.items() if not key.startswith(("seconds", "images_per"))}


def rows(file) -> list[dict]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run on digits; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    status, out, err = run(*TRAIN, "--out", folder)
    assert status == 0, err
    assert str(folder) in out
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


# The whole job


def test_the_files_that_a_run_leaves(finished):
    accuracy = json.loads((finished / "results.json").read_text())["test_accuracy_ema"]
    wrong = min(25, round(360 * (1 - accuracy / 100)))
    figures = ["samples", "augmented", "lr_finder", "lr_schedule", "history", "confusion", "misclassified", "gradcam"]
    figures += [f"gradcam/{i + 1:02}" for i in range(wrong)]
    text = {"config.json", "lr_range.json", "lr.csv", "history.csv", "results.json", "model.pt", "checkpoint.pt"}
    left = files(finished)
    assert left.keys() == text | {f"figures/{name}.png" for name in figures}
    for name, (_, content) in left.items():
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n"), name
            assert len(content) < 200_000, name


def test_results(finished):
    found = json.loads((finished / "results.json").read_text())
    assert found.keys() >= KEYS
    assert (found["data"], found["n_train"], found["n_test"]) == ("digits", 1437, 360)
    assert (found["epochs"], found["peak_epoch"], found["batch_size"], found["seed"]) == (2, 1, 128, 0)
    assert found["params"] == sum(p.numel() for p in ResNet9(10, 4).parameters())
    assert (found["precision"], found["version"], found["torch"]) == ("fp32", eva_utils.__version__, torch.__version__)
    assert 0 < found["lr_min"] < found["lr_max"]
    assert found["lr_reasons"].keys() == {"lr_min", "lr_max"}
    last = rows(finished / "history.csv")[-1]
    for key in ("test_accuracy", "test_accuracy_ema", "train_accuracy"):
        assert float(last[key]) == found[key]  # the last epoch is the result
    assert 0 < found["seconds_train"] <= found["seconds_total"]


def test_every_applied_rate_is_the_planned_one(finished):
    found, steps = results(finished), rows(finished / "lr.csv")
    assert len(steps) == 2 * STEPS
    assert [int(row["step"]) for row in steps] == list(range(2 * STEPS))
    assert all(row["applied"] == row["planned"] for row in steps)
    rates = [float(row["applied"]) for row in steps]
    assert rates[0] == min(rates) == found["lr_min"]
    assert rates[STEPS] == max(rates) == found["lr_max"]
    assert float(steps[STEPS]["epoch"]) == 1


def test_history_has_a_row_an_epoch(finished):
    assert [row["epoch"] for row in rows(finished / "history.csv")] == ["1", "2"]


def test_the_model_that_is_left_has_the_averaged_weights(finished):
    model, (_, test) = eva_utils.load_model(finished), eva_utils.digits()
    assert eva_utils.evaluate(model, test, precision="fp32").accuracy == results(finished)["test_accuracy_ema"]


def test_config_runs_it_again(finished, tmp_path):
    status, _, err = run("train", "--config", finished / "config.json", "--out", tmp_path / "again")
    assert status == 0, err
    assert results(tmp_path / "again") == results(finished)
    assert (tmp_path / "again" / "config.json").read_text() == (finished / "config.json").read_text()


def test_the_same_command_again_changes_nothing(finished):
    before = files(finished)
    status, out, _ = run(*TRAIN, "--out", finished)
    assert status == 0
    assert "finished" in out
    assert files(finished) == before


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--seed", "1"], "seed: 0 there, 1 here"),
        (["--cutout", "4"], "cutout: 8 there, 4 here"),
        (["--lr-max", "0.5"], "lr_max: 'find' there, 0.5 here"),
        (["--flip"], "flip: False there, True here"),
    ],
)
def test_another_configuration_is_refused(finished, flags, difference):
    before = files(finished)
    status, _, err = run(*TRAIN, *flags, "--out", finished)
    assert status == 2
    assert difference in err
    assert "--fresh" in err
    assert files(finished) == before


def test_a_rate_that_the_range_test_contradicts_can_be_mended(tmp_path):
    status, _, err = run(*TRAIN, "--lr-max", "0.001", "--out", tmp_path)
    assert status == 2 and "lr_max is 0.001; it has to be above lr_min" in err
    tested = (tmp_path / "lr_range.json").read_bytes()
    status, out, err = run(*TRAIN, "--lr-max", "0.5", "--out", tmp_path)
    assert status == 0, err
    assert "range test done before" in out and (tmp_path / "lr_range.json").read_bytes() == tested
    assert results(tmp_path)["lr_max"] == json.loads((tmp_path / "config.json").read_text())["lr_max"] == 0.5


def test_the_peak_moves_with_the_epochs(monkeypatch):
    monkeypatch.setattr(job, "_finished", lambda out, config, fresh: config)
    options = dict.fromkeys(inspect.signature(job._train).parameters) | {"data": "digits"}
    for epochs, peak in ((24, 5), (12, 2.5), (1, 5 / 24)):
        assert job._train(**options | {"epochs": epochs})["peak_epoch"] == peak
    assert job._train(**options | {"epochs": 24, "peak_epoch": 12.0})["peak_epoch"] == 12


def test_a_folder_with_a_slash_at_its_end_is_the_same_folder(monkeypatch):
    monkeypatch.setattr(job, "_finished", lambda out, config, fresh: config)
    options = dict.fromkeys(inspect.signature(job._train).parameters)

    def known_as(data: str) -> str:
        return job._train(**options | {"data": data, "peak_epoch": 5})["data"]

    assert {known_as(data) for data in ("photos", "photos/", "./photos")} == {"photos"}
    assert known_as("a/../photos") == "a/../photos"  # a may be a link
    assert known_as("digits") == "digits"
    for folder in ("./digits", "digits/", "./cifar10"):  # and not what is built in
        assert known_as(folder) not in job.BUILT_IN


def test_where_it_is_computed_is_no_other_configuration(finished):
    status, out, _ = run(*TRAIN, "--workers", "0", "--device", "cuda:7", "--out", finished)
    assert status == 0
    assert "finished" in out


def test_fresh_starts_over(copied):
    status, _, err = run(*TRAIN, *RATES, "--epochs", "1", "--peak-epoch", "0.5", "--fresh", "--out", copied)
    assert status == 0, err
    found = results(copied)
    assert (found["epochs"], found["lr_min"], found["lr_max"]) == (1, 0.02, 0.2)
    assert found["lr_reasons"] == {"lr_min": "given", "lr_max": "given"}
    assert len(rows(copied / "history.csv")) == 1
    # Nothing of the old run is left: it had a range test, this one has none.
    assert not (copied / "lr_range.json").exists()
    assert not (copied / "figures" / "lr_finder.png").exists()


@pytest.mark.parametrize(
    "bad", [["--epochs", "0"], ["--batch-size", "5000"], ["--cutout", "40"], ["--data", "nowhere"], ["--width", "0"]]
)
def test_fresh_with_bad_input_loses_nothing(copied, bad):
    before = files(copied)
    assert run(*TRAIN, "--fresh", *bad, "--out", copied)[0] == 2
    assert files(copied) == before


def test_a_corrected_command_is_not_refused(monkeypatch, tmp_path):
    def reached(*args, **options):
        raise InputError("reached")

    assert run(*TRAIN, "--batch-size", "5000", "--out", tmp_path / "run")[0] == 2
    monkeypatch.setattr(job, "find_lr", reached)
    assert "reached" in run(*TRAIN, "--out", tmp_path / "run")[2]


@pytest.mark.parametrize(("how", "status"), [("ctrl-c", 130), ("sigterm", 143)])
def test_a_stop_is_no_traceback(monkeypatch, tmp_path, how, status):
    def stop(*args, **options):
        if how == "ctrl-c":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(job, "fit", stop)
    ended, _, err = run(*TRAIN, *RATES, "--out", tmp_path / "run")
    assert ended == status
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(("width", "height"), [(16, 16), (48, 32)])
def test_ones_own_images(tmp_path, width, height):
    random = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 4)):
        for i, name in enumerate(("blue", "green", "red")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for k in range(n):
                pixels = random.integers(0, 200, (height, width, 3), np.uint8)
                pixels[..., 2 - i] += 50
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{k}.png")
    out = tmp_path / "run"
    options = ["--data", tmp_path / "photos", "--batch-size", "8", "--out", out]
    status, printed, err = run(*TRAIN, *RATES, *options)
    assert status == 0, err
    assert f"images of {width} x {height}" in printed
    found = results(out)
    assert (found["data"], found["n_train"], found["n_test"]) == ("photos", 24, 12)
    assert (out / "figures" / "confusion.png").exists()


def test_a_test_set_without_mistakes(tiny, tmp_path):
    train, test = tiny
    accuracy = {f"{split}_accuracy{ema}": 100.0 for split in ("train", "test") for ema in ("", "_ema")}
    loss = {f"{split}_loss{ema}": 0.1 for split in ("train", "test") for ema in ("", "_ema")}
    steps = [{"epoch": epoch, "applied": 0.1, "skipped": 0} for epoch in (0.0, 0.5)]
    right = torch.nn.functional.one_hot(test.labels, 3).float()
    history = [{"epoch": 1, **accuracy, **loss}]
    folder = tmp_path / "figures"
    (folder / "gradcam").mkdir(parents=True)
    (folder / "gradcam" / "01.png").touch()  # from a worse run before
    (folder / "lr_finder.png").touch()
    (folder / "mine.tex").touch()  # and what is none of ours
    plan = OneCycle(1, 0.5, 0.05, 0.1)
    job.draw(folder, history, steps, plan, None, train, test, Augment(2, False, 4), ResNet9(3, 4), right)
    names = ("samples", "augmented", "lr_schedule", "history", "confusion", "misclassified", "gradcam")
    assert files(folder).keys() == {"mine.tex", *(f"{name}.png" for name in names)}


# explain and cycle


def test_explain_draws_the_same_figures_again(finished, copied):
    shutil.rmtree(copied / "figures")
    status, out, err = run("explain", copied)
    assert status == 0, err
    assert str(copied / "figures") in out
    assert files(copied).keys() == files(finished).keys()
    for file in (finished / "figures").rglob("*.png"):
        before, after = (
            np.asarray(Image.open(f).convert("RGB"), int)
            for f in (file, copied / "figures" / file.relative_to(finished / "figures"))
        )
        # Not to the last bit: the weights lie differently in memory, sums round differently, and palettes follow.
        assert before.shape == after.shape
        assert abs(before - after).mean() < 2, file.name


def test_explain_needs_no_gpu_for_a_run_from_one(monkeypatch, copied):
    monkeypatch.setattr(job, "draw", lambda *args: None)
    values = json.loads((copied / "results.json").read_text())
    (copied / "results.json").write_text(json.dumps(values | {"precision": "fp16", "device": "Tesla T4"}))
    assert run("explain", copied)[0] == 0


def test_a_run_finished_on_a_gpu_is_completed_without_one(monkeypatch, copied):
    monkeypatch.setattr(job, "draw", lambda *args: None)
    (copied / "results.json").unlink()
    state = checkpoint.load(copied / "checkpoint.pt")
    checkpoint.save(copied / "checkpoint.pt", state | {"where": {"device": "Tesla T4", "precision": "fp16"}})
    status, out, _ = run("train", "--config", copied / "config.json", "--out", copied)
    assert status == 0 and "finished, nothing to compute" in out
    assert json.loads((copied / "results.json").read_text())["precision"] == "fp16"


@pytest.mark.parametrize("name", ["config.json", "results.json", "model.pt", "history.csv", "lr.csv"])
def test_explain_names_what_is_missing(copied, name):
    (copied / name).unlink()
    status, _, err = run("explain", copied)
    assert status == 2
    assert name in err
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize("name", ["config.json", "results.json", "model.pt", "lr_range.json"])
def test_explain_names_what_is_damaged(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes()[:100])
    status, _, err = run("explain", copied)
    assert status == 2
    assert name in err
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize("how", ["emptied", "a bit flipped"])
def test_a_model_that_was_changed_on_the_disk_is_refused(copied, how):
    file = copied / "model.pt"
    content = bytearray(file.read_bytes())
    if how == "emptied":
        content = b""
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(eva_utils.InputError, match=r"model\.pt' cannot be read as a model"):
        eva_utils.load_model(copied)


def test_a_model_of_another_network_is_named(tmp_path):
    write_tensors(tmp_path / "model.pt", torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(eva_utils.InputError, match="of another network than ResNet9"):
        eva_utils.load_model(tmp_path)
    assert torch.load(tmp_path / "model.pt").keys() == {"weight", "bias"}  # what the message advises


@pytest.mark.parametrize("command", ["explain", "train"])
@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "{"])
def test_a_finished_run_with_spoilt_records_is_named(copied, command, name, content):
    (copied / name).write_text(content)
    status, out, err = run("explain", copied) if command == "explain" else run(*TRAIN, "--out", copied)
    if (command, name, content) == ("train", "results.json", "{}"):  # nothing of it is needed here
        assert (status, "finished" in out) == (0, True)
    elif (command, name, content) == ("train", "config.json", "{}"):
        assert (status, "data: None there, 'digits' here" in err) == (2, True)
    else:
        assert status == 2
        assert name in err
        assert err.strip().count("\n") == 0


def test_cycle_draws_three_pictures(tmp_path):
    status, out, _ = run("cycle", "--out", tmp_path / "new", "--cycles", "2")
    assert status == 0
    assert files(tmp_path / "new").keys() == {"zigzag.png", "cycle.png", "policies.png"}
    for name in ("zigzag.png", "cycle.png", "policies.png"):
        assert str(tmp_path / "new" / name) in out
        with Image.open(tmp_path / "new" / name) as picture:
            assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--cycles", "0"], "cycles is 0"),
        (["--lr-min", "0.2"], "lr_max is 0.1"),
        (["--lr-min", "nan"], "lr_min is nan"),
        (["--step-size", "0"], "step_size is 0"),
    ],
)
def test_cycle_with_bad_input(tmp_path, flags, named):
    status, _, err = run("cycle", "--out", tmp_path, *flags)
    assert status == 2
    assert named in err
    assert files(tmp_path) == {}


# Bad input


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data", "cifar11"], "data is 'cifar11'"),
        (["--batch-size", "1438"], "batch_size is 1438"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--epochs", "0"], "epochs is 0"),
        (["--epochs", "2.5"], "2.5"),
        (["--peak-epoch", "0"], "peak_epoch is 0"),
        (["--peak-epoch", "2"], "peak_epoch is 2"),
        (["--lr-min", "0.2", "--lr-max", "0.1"], "lr_max is 0.1"),
        (["--lr-min", "0.1", "--lr-max", "0.1"], "lr_max is 0.1"),
        (["--lr-min", "-0.1", "--lr-max", "0.1"], "lr_min is -0.1"),
        (["--lr-min", "0", "--lr-max", "0.1"], "lr_min is 0.0"),
        (["--lr-min", "nan", "--lr-max", "0.1"], "lr_min is nan"),
        (["--lr-min", "0.1", "--lr-max", "nan"], "lr_max is nan"),
        (["--lr-max", "-1"], "lr_max is -1.0"),
        (["--lr-min", "much"], "'much'"),
        (["--padding", "-1"], "padding is -1"),
        (["--padding", "32"], "padding is 32"),
        (["--cutout", "33"], "cutout is 33"),
        (["--width", "0"], "width is 0"),
        (["--weight-decay", "-1"], "weight_decay is -1"),
        (["--label-smoothing", "3"], "label_smoothing is 3"),
        (["--workers", "-1"], "workers is -1"),
        (["--precision", "fp8"], "'fp8'"),
        (["--precision", "fp16"], "precision is 'fp16'"),
        (["--device", "abacus"], "device is 'abacus'"),
        (["--engine", "steam"], "'steam'"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_named_in_a_line(tmp_path, flags, named):
    status, _, err = run(*TRAIN, *flags, "--out", tmp_path / "run")
    *usage, message = err.strip().splitlines()
    assert status == 2
    assert named in message
    assert not usage or usage[0].startswith("usage:")  # argparse's own
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_folder_without_both_splits(tmp_path, missing):
    there = tmp_path / "photos" / {"train": "test", "test": "train"}[missing]
    for name in ("green", "red"):
        (there / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), name).save(there / name / "1.png")
    status, _, err = run(*TRAIN, "--data", tmp_path / "photos", "--out", tmp_path / "run")
    assert status == 2
    assert f"photos' has no folder {missing}/" in err
    assert files(tmp_path / "run") == {}


def test_out_is_a_file(tmp_path):
    (tmp_path / "run").write_text("precious")
    for out in (tmp_path / "run", tmp_path / "run" / "below"):
        status, _, err = run(*TRAIN, *RATES, "--out", out)
        assert status == 2
        assert re.match(f"eva-utils: error: cannot write .*'{out}", err)
    assert (tmp_path / "run").read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "cannot be read"),
        ("[1]", "no settings"),
        ('{"colour": 1}', "unknown settings colour"),
        ('{"out": "elsewhere"}', "unknown settings out"),
        ('{"data": 5}', "data is 5"),
        ('{"data": "digits", "epochs": "many"}', "epochs is 'many'"),
        ('{"data": "digits", "epochs": 2.5}', "epochs is 2.5"),
        ('{"data": "digits", "epochs": null}', "epochs is None"),
        ('{"data": "digits", "lr_max": []}', "lr_max is []"),
        ('{"data": "digits", "flip": "no"}', "flip is 'no'"),
        ('{"data": "digits", "precision": "fp8"}', "precision is 'fp8'"),
        ('{"data": "cifar10", "root": "a\\u0000b"}', r"root is 'a\x00b'"),
    ],
)
def test_a_config_with_mistakes(tmp_path, text, named):
    (tmp_path / "config.json").write_text(text)
    status, _, err = run("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run")
    assert status == 2
    assert named in err
    assert err.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_config_that_is_not_there(tmp_path):
    status, _, err = run("train", "--config", tmp_path / "none.json", "--out", tmp_path / "run")
    assert status == 2
    assert "none.json" in err


def test_flags_win_over_config(finished, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(job, "train", seen.update)
    run("train", "--config", finished / "config.json", "--seed", "7", "--out", tmp_path / "run")
    config = json.loads((finished / "config.json").read_text())
    assert {key: seen[key] for key in config} == config | {"seed": 7}


def test_data_has_to_be_given(tmp_path):
    status, _, err = run("train", "--out", tmp_path / "run")
    assert status == 2
    assert "needs --data" in err


# Help, and what an import does


def test_help_teaches():
    status, out, _ = run("--help")
    assert status == 0
    for word in ("train", "explain", "cycle", "examples:", "Exit status"):
        assert word in out
    status, out, _ = run("train", "--help")
    assert status == 0
    assert [flag for flag in FLAGS if not re.search(rf"(?<![\w-]){flag}(?![\w-])", out)] == []
    for command, flags in (
        ("explain", ["run"]),
        ("cycle", ["--out", "--lr-min", "--lr-max", "--step-size", "--cycles"]),
    ):
        status, out, _ = run(command, "--help")
        assert status == 0
        assert [flag for flag in flags if flag not in out] == []


def test_version():
    assert run("--version")[:2] == (0, eva_utils.__version__ + "\n")


def test_a_command_is_needed():
    status, _, err = run()
    assert status == 2
    assert "train | explain | cycle" in err


def test_help_does_not_wait_for_torch():
    command = [sys.executable, "-X", "importtime", "-m", "eva_utils", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "examples:" in ended.stdout
    imported = set(re.findall(r"\|\s+(\S+)$", ended.stderr, re.MULTILINE))
    assert "argparse" in imported
    assert imported & {"torch", "numpy", "matplotlib"} == set()


def test_a_mistake_on_the_real_command_line(tmp_path):
    command = [sys.executable, "-m", "eva_utils", "explain", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("eva-utils: error: ")
    assert "nowhere" in ended.stderr
    assert ended.stderr.strip().count("\n") == 0


def test_import_is_light_and_needs_no_network():
    code = """
import socket, sys

class Refused(socket.socket):
    def __init__(self, *args, **options):
        raise AssertionError("a connection was asked for")

def refused(*args, **options):
    raise AssertionError("a name was looked up")

socket.socket, socket.create_connection, socket.getaddrinfo = Refused, refused, refused
import eva_utils
heavy = {"torch", "numpy", "matplotlib", "seaborn", "albumentations", "pytorch_grad_cam", "torch_lr_finder", "sklearn"}
print(sorted(heavy & set(sys.modules)))
for name in eva_utils.__all__:
    getattr(eva_utils, name)
print(sorted({"albumentations", "pytorch_grad_cam", "torch_lr_finder", "sklearn"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    # First nothing heavy at all, then, with every public name in use, only what the names themselves need.
    assert ended.stdout.splitlines() == ["[]", "[]"]


def test_public_names():
    assert dir(eva_utils) == sorted(eva_utils.__all__)
    assert len(set(eva_utils.__all__)) == len(eva_utils.__all__)
    for name in eva_utils.__all__:
        assert getattr(eva_utils, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        eva_utils.nonsense  # noqa: B018
