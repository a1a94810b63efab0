"""A run that is killed at any moment goes on from its last epoch and ends as if nothing had happened, bit by bit."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eva_utils import load_model
from eva_utils.run import read_csv, read_json, read_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no SIGKILL and no fork here")

TESTS = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
TIMES = {"seconds", "seconds_train", "seconds_total", "seconds_lr_finder", "images_per_second"}


def untimed(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in TIMES}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """``session(work, kill, **options)`` -> (exit status, what it printed); see killed.py."""
    log = tmp_path_factory.mktemp("log") / "log"
    with subprocess.Popen(
        [sys.executable, str(TESTS / "killed.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as driver:  # fmt: skip

        def run(work: str, kill: tuple = (), **options) -> tuple[int, str]:
            order = {"log": str(log), "work": work, "kill": kill, **options}
            print(json.dumps(order), file=driver.stdin, flush=True)
            return int(driver.stdout.readline()), log.read_text(encoding="utf8")

        yield run
        driver.stdin.close()


# fit


# In which call of a phase, for which file, it is killed, and how many epochs the folder holds then.
KILLS = [
    (("step", 3), 0), (("step", 8), 1), (("evaluation", 2), 1), (("write", 1, "checkpoint.pt"), 1),
    (("renamed", 1, "checkpoint.pt"), 2), (("rename", 1, "checkpoint.pt"), 2), (("sync", 2), 2),
    (("renamed", 1, "history.csv"), 3),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "workers"), [("batch", 0), ("albumentations", 2)])
def test_killed_again_and_again_it_ends_like_an_undisturbed_run(session, tmp_path, engine, workers):
    folder, undisturbed, done = tmp_path / "killed", tmp_path / "undisturbed", 0
    options = {"folder": str(folder), "engine": engine, "workers": workers}
    for kill, then in KILLS:
        status, printed = session("train", kill, **options)
        assert status == -signal.SIGKILL, f"{kill}: {printed}"
        assert (f"going on after epoch {done}" in printed) == (done > 0), f"{kill}: {printed}"
        done = then
        checkpoint = folder / "checkpoint.pt"
        assert checkpoint.exists() == (done > 0)
        assert not done or len(read_tensors(checkpoint)["history"]) == done, kill
    status, printed = session("train", **options)
    assert status == 0, printed
    assert f"going on after epoch {done}" in printed

    # The number of workers decides nothing.
    status, printed = session("train", folder=str(undisturbed), engine=engine, workers=0)
    assert status == 0, printed
    end, expected = (torch.load(path / "end.pt", weights_only=True) for path in (folder, undisturbed))
    for part in ("model", "ema"):
        assert [key for key, value in expected[part].items() if not value.equal(end[part][key])] == []
    assert end["steps"] == expected["steps"]
    assert list(map(untimed, end["history"])) == list(map(untimed, expected["history"]))
    # Nothing is left of the files whose writing was broken off.
    assert not list(folder.glob(".*.part"))


# The command


def command(photos: Path, out: Path, *flags: str) -> list[str]:
    return [
        "train", "--data", str(photos), "--size", "8", "--out", str(out), "--width", "2", "--epochs", "3",
        "--peak-epoch", "1", "--batch-size", "8", "--padding", "1", "--cutout", "2", "--precision", "fp32",
        "--device", "cpu", *flags,
    ]  # fmt: skip


def test_killed_between_its_files_the_command_ends_with_the_same_results(session, photos, tmp_path):
    folders = out, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    argv = command(photos, out)
    kills = [
        ("step", 40), ("rename", 1, "lr_range.json"), ("renamed", 1, "config.json"), ("renamed", 2, "checkpoint.pt"),
        ("write", 1, ".model.pt."), ("rename", 1, "results.json"), ("renamed", 1, "results.json"),
    ]  # fmt: skip
    for kill in kills:
        status, printed = session("command", kill, argv=argv)
        assert status == -signal.SIGKILL, f"{kill}: {printed}"
    status, printed = session("command", argv=argv)
    assert status == 0, printed
    assert "range test done before" in printed and "finished, nothing to compute" in printed
    status, printed = session("command", argv=command(photos, undisturbed))
    assert status == 0, printed

    weights, expected = (load_model(folder).state_dict() for folder in folders)
    assert [key for key, value in expected.items() if not value.equal(weights[key])] == []
    for table in ("lr.csv", "history.csv"):
        rows, expected = (list(map(untimed, read_csv(folder / table))) for folder in folders)
        assert rows == expected
    results, expected = (untimed(read_json(folder / "results.json")) for folder in folders)
    assert results == expected
    files, expected = ({f.relative_to(folder).as_posix() for f in folder.rglob("*")} for folder in folders)
    assert files == expected


# Signals from outside

START = """
import itertools, os, signal, sys
from eva_utils import cli, keeper

keeper.SAVE_SECONDS = 0
forks = itertools.count()

def before():
    if next(forks) == {fork}:
        signal.raise_signal(signal.{sent})

os.register_at_fork(before=before)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("sent", "status", "workers", "fork"), [("SIGTERM", 143, 0, -1), ("SIGINT", 130, 2, -1), ("SIGINT", 130, 2, 4)]
)
def test_a_stop_tells_how_to_go_on(sent, status, workers, fork, photos, tmp_path):
    """fork: the stop comes within this call of os.fork, where Python ignores what is raised; -1: from outside."""
    rest = ["--epochs", "9999", "--lr-min", "0.01", "--lr-max", "0.02", "--workers", str(workers)]
    argv = command(photos, tmp_path, *rest, "--engine", "albumentations" if workers else "batch")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", START.format(sent=sent, fork=fork), *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    ) as process:  # fmt: skip
        if fork < 0:
            next(line for line in process.stdout if line.startswith("    3 "))
            # A terminal's Ctrl-C and a queue's SIGTERM reach the workers as well.
            os.killpg(process.pid, signal.Signals[sent])
        out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in out + err and "ignored" not in err
    told = re.search(r"stopped in epoch (\d+) of 9999; the same call goes on after epoch (\d+)", out)
    assert told and int(told[1]) == int(told[2]) + 1, out
    assert fork < 0 or told[1] == "3"
    assert len(read_tensors(tmp_path / "checkpoint.pt")["history"]) == int(told[2])
