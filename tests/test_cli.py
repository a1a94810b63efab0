"""The command line: one command does the whole job, and a mistake costs a line and nothing else."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eva_utils
from eva_utils import cli, plots, predict
from eva_utils.run import read_csv, read_json

TRAIN = [
    "train", "--data", "digits", "--width", "2", "--epochs", "2", "--batch-size", "128", "--no-flip",
    "--precision", "fp32", "--device", "cpu",
]  # fmt: skip
RATES = ["--lr-min", "0.02", "--lr-max", "0.2"]
FILES = {"config.json", "lr_range.json", "lr.csv", "history.csv", "results.json", "model.pt", "checkpoint.pt"}
FIGURES = {"samples", "augmented", "lr_finder", "lr_schedule", "history", "confusion", "misclassified", "gradcam"}
COMMITTED = Path(__file__).resolve().parent.parent / "assets/runs/cifar10-24"


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
    """{relative path: content} of every file below, but for the lock."""
    every = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in every}


def results(folder) -> dict:
    """results.json without what the clock decides."""
    values = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in values.items() if not key.startswith(("seconds", "images_per"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run on digits; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    status, out, err = run(*TRAIN, "--out", folder)
    assert status == 0, err
    assert str(folder) in out and "Traceback" not in err
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


# train


def test_what_a_run_leaves(finished):
    left = files(finished)
    assert left.keys() == FILES | {f"figures/{name}.png" for name in FIGURES}
    found = json.loads(left["results.json"])
    assert found.keys() == read_json(COMMITTED / "results.json").keys()
    assert (found["data"], found["n_train"], found["n_test"], found["image_size"]) == ("digits", 1437, 360, [32, 32])
    assert found["test_accuracy_ema_tta"] is None  # no mirror images were trained on
    assert len(found["recall"]) == 10 and found["lr_min"] < found["lr_max"]
    rates = [row["applied"] for row in read_csv(finished / "lr.csv")]
    assert len(rates) == 2 * 12 and rates[0] == min(rates) == found["lr_min"]
    assert rates[5] == max(rates) == found["lr_max"]  # the peak is at 5/24
    assert json.loads(left["config.json"]).keys() == {"recipe", "policy", "data", "root", "size", "width"}


def test_the_same_command_again_changes_nothing_and_a_figure_that_fails_costs_no_other(copied, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("no font")

    before, expected = files(copied), results(copied)
    shutil.rmtree(copied / "figures")
    monkeypatch.setattr(plots, "history", fails)
    status, out, err = run(*TRAIN, "--workers", "0", "--out", copied)
    assert status == 0 and "finished, nothing to compute" in out and "range test done before" in out
    assert [line for line in err.splitlines() if "figure" in line] == ["figure history: no font"]
    after = files(copied)
    assert after.keys() == FILES | {f"figures/{name}.png" for name in FIGURES - {"history"}}
    same = FILES - {"results.json", "config.json"}  # the latter says where it was computed last
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert results(copied) == expected


@pytest.mark.parametrize(
    ("flags", "words"), [(["--seed", "1"], "seed"), (RATES, "policy"), (["--epochs", "3"], "be prolonged")]
)
def test_other_flags_are_refused(finished, flags, words):
    before = files(finished)
    status, _, err = run(*TRAIN, *flags, "--out", finished)
    assert status == 2 and words in err and "--fresh" in err
    assert files(finished) == before


def test_fresh_starts_over(copied):
    status, _, err = run(*TRAIN, *RATES, "--epochs", "1", "--peak-epoch", "0.5", "--fresh", "--out", copied)
    assert status == 0, err
    found = results(copied)
    assert (found["epochs"], found["lr_min"], found["lr_max"]) == (1, 0.02, 0.2)
    assert found["lr_reasons"] == {"lr_min": "given", "lr_max": "given"}
    # Nothing of the old run is left: it had a range test, this one has none.
    assert files(copied).keys() == FILES - {"lr_range.json"} | {f"figures/{n}.png" for n in FIGURES - {"lr_finder"}}


def test_a_found_rate_that_does_not_go_with_the_given_one_is_called_found(tmp_path):
    status, _, err = run(*TRAIN, "--lr-max", "1e-4", "--out", tmp_path)
    assert status == 2 and "not below LR_MAX, 0.0001; LR_MIN was found by the range test" in err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_full_memory_is_told_with_its_cure(error, monkeypatch, tmp_path):
    def full(*args):
        raise error

    monkeypatch.setattr(eva_utils, "load_data", full)
    status, _, err = run(*TRAIN, "--out", tmp_path)
    assert status == 1 and err.startswith("eva-utils: out of memory; take a smaller --batch-size")


# predict, explain, cycle


def test_photos_are_trained_on_predicted_and_explained(photos, tmp_path):
    out = tmp_path / "run"
    options = ["--data", photos, "--size", "8", "--cutout", "2", "--batch-size", "8", "--epochs", "2", "--out", out]
    status, printed, err = run(*TRAIN, *RATES, *options)
    assert status == 0, err
    assert "blue 8 + 2, green 8 + 2, red 8 + 2" in printed and "images of 8 x 8" in printed
    assert results(out)["classes"] == ["blue", "green", "red"]

    new = photos / "red" / "0.png"
    status, printed, err = run("predict", out, new, photos / "blue" / "1.png")
    assert status == 0, err
    assert re.fullmatch(rf"{new}: \w+ [\d.]+ %, \w+ [\d.]+ %, \w+ [\d.]+ %", printed.splitlines()[0])
    assert len(printed.splitlines()) == 2
    answer = json.loads(run("predict", out, new, "--json")[1])[str(new)]
    assert answer.keys() == {"blue", "green", "red"} and sum(answer.values()) == pytest.approx(1)

    left = files(out)
    shutil.rmtree(out / "figures")
    status, printed, err = run("explain", out)
    assert status == 0, err
    assert f"The figures are in {out / 'figures'}" in printed and files(out).keys() == left.keys()


def test_the_range_test_is_drawn_with_the_rates_that_were_used(copied, monkeypatch):
    drawn, precisions, found = [], [], json.loads((copied / "results.json").read_text())
    found |= {"lr_max": 9.0, "lr_reasons": found["lr_reasons"] | {"lr_max": "given"}}
    (copied / "results.json").write_text(json.dumps(found))
    monkeypatch.setattr(plots, "lr_range", lambda rates, about: drawn.append(rates))
    spy = lambda *args, precision: precisions.append(precision) or predict(*args)  # noqa: E731
    monkeypatch.setattr("eva_utils.explain.predict", spy)
    assert run("explain", copied)[0] == 0 and precisions == ["fp32"]
    assert [(rates.lr_min, rates.lr_max, rates.reasons) for rates in drawn] == [
        (found["lr_min"], 9.0, found["lr_reasons"])
    ]


@pytest.mark.parametrize("name", ["config.json", "results.json", "model.pt", "history.csv"])
def test_explain_names_what_is_missing_or_damaged(copied, name):
    content = (copied / name).read_bytes()
    for damage in (lambda file: file.write_bytes(content[:150]), lambda file: file.unlink()):
        damage(copied / name)
        status, _, err = run("explain", copied)
        assert status == 2 and name in err and err.strip().count("\n") == 0


def test_cycle_draws_three_pictures(tmp_path):
    assert run("cycle", "--out", tmp_path, "--cycles", "2")[0] == 0
    assert files(tmp_path).keys() == {"zigzag.png", "cycle.png", "policies.png"}
    status, _, err = run("cycle", "--out", tmp_path / "none", "--lr-min", "nan")
    assert status == 2 and "lr_min is nan" in err and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data", "cifar11"], "data is 'cifar11'"),
        (["--epochs", "0"], "epochs is 0"),
        (["--epochs", "9" * 400], "epochs is 999"),
        (["--width", "0"], "width is 0"),
        (["--batch-size", "1438"], "batch_size is 1438; it has to be between 1 and the 1,437 training images"),
        (["--padding", "32"], "padding is 32; it has to be below the images' side, 32 pixels"),
        (["--peak-epoch", "2"], "peak_epoch is 2"),
        (["--lr-min", "0.2", "--lr-max", "0.1"], "lr_max is 0.1"),
        (["--seed", "9" * 30], "seed is 999"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_named_in_a_line_and_fresh_with_it_loses_nothing(finished, flags, named):
    before = files(finished)
    status, _, err = run(*TRAIN, *flags, "--fresh", "--out", finished)
    *usage, message = err.strip().splitlines()
    assert status == 2 and named in message
    assert not usage or usage[0].startswith("usage:")  # argparse's own
    assert files(finished) == before


# Help, and what an import does


def test_help_has_every_flag():
    status, out, _ = run("train", "--help")
    names = [f.name for kind in (eva_utils.Recipe, eva_utils.Augment) for f in dataclasses.fields(kind)]
    flags = {f"--{name.replace('_', '-')}" for name in names} - {"--augment", "--criterion"}
    flags |= {"--data", "--out", "--root", "--size", "--fresh", "--epochs", "--lr-min", "--width"}
    assert status == 0 and [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", out)] == []
    assert run("--version")[:2] == (0, eva_utils.__version__ + "\n")


def test_help_needs_no_torch_and_an_import_neither_the_network_nor_heavy_libraries():
    code = """
import socket, sys

def refused(*args, **options):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
import eva_utils.cli
for words in ["--help"], ["predict", "--help"], ["explain", "--help"], ["cycle", "--help"], ["cycle"]:
    try:
        eva_utils.cli.main(words)
    except SystemExit as end:
        assert end.code == (2 if words == ["cycle"] else 0)
print(sorted({"torch", "numpy", "matplotlib"} & set(sys.modules)))
for name in eva_utils.__all__:
    assert getattr(eva_utils, name) is not None
assert dir(eva_utils) == sorted(eva_utils.__all__)
print(sorted({"albumentations", "pytorch_grad_cam", "torch_lr_finder", "sklearn"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.splitlines().count("[]") == 2, ended.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        eva_utils.nonsense  # noqa: B018
