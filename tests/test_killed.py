"""A run that is killed at any moment goes on from its last epoch and ends as if nothing had happened, bit by bit."""

import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eva_utils import cli, keeper, look
from eva_utils.run import read_csv, read_json, read_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no SIGKILL and no fork here")

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
TIMES = {"seconds", "seconds_train", "seconds_total", "seconds_lr_finder", "images_per_second"}


def command(photos: Path, out: Path, *flags: str) -> list[str]:
    return [
        "train", "--data", str(photos), "--size", "8", "--out", str(out), "--width", "2", "--epochs", "6",
        "--peak-epoch", "2", "--batch-size", "7", "--padding", "1", "--cutout", "2", "--precision", "fp32",
        "--device", "cpu", *flags,
    ]  # fmt: skip


def untimed(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in TIMES}


def die(*args) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# phase: (whose, which function, what happens instead of its n-th call)
PHASES = {
    "step": (torch.optim.SGD, "step", lambda real, *args: (real(*args), die())),  # moved, but not yet written down
    "evaluation": (look, "autocast", die),
    "write": (Path, "write_bytes", lambda real, path, data: (real(path, data[: len(data) // 2]), die())),
    "sync": (os, "fsync", die),
    "rename": (os, "replace", die),  # between temporary file and rename
    "renamed": (os, "replace", lambda real, *args: (real(*args), die())),
}


def arm(phase: str, n: int, name: str = "") -> None:
    """Die in the ``n``-th call (from 1) of that phase; only calls for files with ``name`` in their path count."""
    owner, function, act = PHASES[phase]
    real, calls = getattr(owner, function), itertools.count(1)

    def armed(*args, **kwargs):
        if (not name or any(name in str(arg) for arg in args)) and next(calls) == n:
            return act(real, *args)
        return real(*args, **kwargs)

    setattr(owner, function, armed)


def session(log: Path, kill: tuple, argv: list[str]) -> None:
    """The command, in a process of its own."""
    torch.set_num_threads(1)
    keeper.SAVE_SECONDS = 0
    multiprocessing.set_start_method("fork", force=True)  # of its own workers
    with log.open("w", buffering=1, encoding="utf8") as sys.stdout:
        if kill:
            arm(*kill)
        sys.exit(cli.main(argv))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``run(argv, *kill)`` -> (exit status, what it printed)."""
    log = tmp_path_factory.mktemp("log") / "log"
    # Forked from a process that has done nothing but import: that saves the seconds of starting.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eva_utils.explain", "eva_utils.plots", "albumentations.pytorch"])

    def ended(argv: list[str], *kill) -> tuple[int, str]:
        process = context.Process(target=session, args=(log, kill, argv))
        process.start()
        process.join()
        return process.exitcode, log.read_text(encoding="utf8")

    return ended


# In which call of a phase, for which file, it is killed, and how many epochs the folder holds then.
KILLS = [
    (("step", 40), 0),  # of the range test
    (("rename", 1, "lr_range.json"), 0), (("renamed", 1, "config.json"), 0), (("step", 3), 0), (("step", 6), 1),
    (("evaluation", 2), 1), (("write", 1, "checkpoint.pt"), 1), (("renamed", 1, "checkpoint.pt"), 2),
    (("rename", 1, "checkpoint.pt"), 2), (("sync", 2), 2), (("renamed", 1, "history.csv"), 3),
    (("write", 1, ".model.pt."), 6), (("rename", 1, "results.json"), 6), (("renamed", 1, "results.json"), 6),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "workers"), [("batch", "0"), ("albumentations", "2")])
def test_killed_again_and_again_it_ends_like_an_undisturbed_run(engine, workers, run, photos, tmp_path):
    folders, done = (tmp_path / "killed", tmp_path / "undisturbed"), 0
    out, checkpoint = folders[0], folders[0] / "checkpoint.pt"
    argv = command(photos, out, "--engine", engine, "--workers", workers)
    for kill, then in KILLS:
        status, printed = run(argv, *kill)
        assert status == -signal.SIGKILL, f"{kill}: {printed}"
        rest = "finished, nothing to compute" if done == 6 else f"going on after epoch {done}"
        assert (rest in printed) == (done > 0), f"{kill}: {printed}"
        done = then
        assert checkpoint.exists() == (done > 0)
        assert not done or len(read_tensors(checkpoint)["history"]) == done, kill
    status, printed = run(argv)
    assert status == 0, printed
    assert "range test done before" in printed and "finished, nothing to compute" in printed
    # The number of workers decides nothing.
    status, printed = run(command(photos, folders[1], "--engine", engine, "--workers", "0"))
    assert status == 0, printed

    for file, parts in (("checkpoint.pt", ("model", "ema")), ("model.pt", ("weights",))):
        end, expected = (read_tensors(folder / file) for folder in folders)
        for part in parts:
            assert [key for key, value in expected[part].items() if not value.equal(end[part][key])] == []
    for table in ("lr.csv", "history.csv"):
        rows, expected = (list(map(untimed, read_csv(folder / table))) for folder in folders)
        assert rows == expected
    results, expected = (untimed(read_json(folder / "results.json")) for folder in folders)
    assert results == expected
    # Nothing is missing, or left of the files whose writing was broken off.
    files, expected = ({f.relative_to(folder).as_posix() for f in folder.rglob("*")} for folder in folders)
    assert files == expected


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
