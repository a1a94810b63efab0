"""A run that is killed at any moment goes on from its last epoch and ends as if nothing had happened, bit by bit."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eva_utils import load_model
from eva_utils.run import read_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no SIGKILL and no fork here")

TESTS = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
TIMES = {"seconds", "seconds_train", "seconds_total", "seconds_lr_finder", "images_per_second"}
STEPS = 5  # an epoch in killed.py: 32 images in batches of 7


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


@pytest.fixture(scope="module")
def undisturbed(session, tmp_path_factory):
    """What a run gives that nobody killed, by engine; the number of workers decides nothing."""
    ends = {}

    def end(engine: str) -> dict:
        if engine not in ends:
            folder = tmp_path_factory.mktemp("undisturbed")
            status, printed = session("train", folder=str(folder), engine=engine, workers=0)
            assert status == 0, printed
            ends[engine] = torch.load(folder / "end.pt", weights_only=True)
        return ends[engine]

    return end


def chain(seed: int) -> list[tuple[str, int]]:
    """Each phase once, in any order, at any of its calls in the next epoch or the one after."""
    pick = random.Random(seed)
    kills = [
        ("step", pick.randint(1, 2 * STEPS)),
        ("evaluation", pick.randint(2, 5)),  # the first is fit's look at the network's outputs, then two an epoch
        ("write", pick.randint(1, 2)),
        (pick.choice(["read back", "rename"]), pick.randint(1, 2)),
        ("renamed", 1),
    ]
    pick.shuffle(kills)
    return kills


@pytest.mark.parametrize(
    ("engine", "workers", "seed"),
    [("batch", 0, 0), ("batch", 0, 1), ("albumentations", 2, 4)],
)
def test_killed_five_times_it_ends_like_an_undisturbed_run(session, undisturbed, tmp_path, engine, workers, seed):
    options = {"folder": str(tmp_path), "engine": engine, "workers": workers}
    done = 0
    for kill in chain(seed):
        told = f"{kill} of {chain(seed)}"
        status, printed = session("train", kill, **options)
        assert status == -signal.SIGKILL, f"{told}: {printed}"
        assert ("going on" in printed) == (done > 0), told + printed
        assert not (tmp_path / "end.pt").exists(), told
        if (tmp_path / "checkpoint.pt").exists():
            done = len(read_tensors(tmp_path / "checkpoint.pt")["history"])
    assert done > 0
    status, printed = session("train", **options)
    assert status == 0, printed
    assert f"going on after epoch {done}" in printed

    end, expected = torch.load(tmp_path / "end.pt", weights_only=True), undisturbed(engine)
    for part in ("model", "ema"):
        assert end[part].keys() == expected[part].keys()
        assert [key for key, value in expected[part].items() if not value.equal(end[part][key])] == []
    assert end["steps"] == expected["steps"]
    assert [row["applied"] for row in end["steps"]] == [row["planned"] for row in end["steps"]]
    assert list(map(untimed, end["history"])) == list(map(untimed, expected["history"]))
    # Nothing is left of the files whose writing was broken off.
    assert not list(tmp_path.glob(".*.part"))


# The command


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of small images in two classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    noise = np.random.default_rng(0)
    for split, n in (("train", 16), ("test", 8)):
        for channel, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = noise.integers(0, 200, (8, 8, 3), np.uint8)
                pixels[..., channel] += 50
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def command(photos: Path, out: Path, *flags: str) -> list[str]:
    return [
        "train", "--data", str(photos), "--out", str(out), "--width", "2", "--epochs", "3", "--peak-epoch", "1",
        "--batch-size", "8", "--padding", "1", "--cutout", "2", "--precision", "fp32", "--device", "cpu", *flags,
    ]  # fmt: skip


def rows(file: Path) -> list[dict]:
    with file.open(newline="") as lines:
        return [untimed(row) for row in csv.DictReader(lines)]


def assert_same_results(out: Path, expected: Path) -> None:
    weights, others = load_model(out).state_dict(), load_model(expected).state_dict()
    assert [key for key, value in others.items() if not value.equal(weights[key])] == []
    assert rows(out / "lr.csv") == rows(expected / "lr.csv")
    assert rows(out / "history.csv") == rows(expected / "history.csv")
    first, second = (untimed(json.loads((folder / "results.json").read_text())) for folder in (out, expected))
    assert first == second
    first, second = ({f.relative_to(g).as_posix() for f in g.rglob("*")} for g in (out, expected))
    assert first == second


@pytest.fixture(scope="module")
def whole(session, photos, tmp_path_factory) -> Path:
    """The folder of a command that nobody killed."""
    out = tmp_path_factory.mktemp("whole")
    status, printed = session("command", argv=command(photos, out))
    assert status == 0, printed
    return out


def test_killed_between_its_files_the_command_ends_with_the_same_results(session, photos, whole, tmp_path):
    argv = command(photos, tmp_path)
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
    assert_same_results(tmp_path, whole)


# Real processes, and signals from outside


SAVING = "import sys; from eva_utils import cli, keeper; keeper.SAVE_SECONDS = 0; "


def start(argv: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", SAVING + "sys.exit(cli.main(sys.argv[1:]))", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **options,
    )  # fmt: skip


def test_killed_from_outside_at_any_moment_it_ends_like_an_undisturbed_run(session, photos, whole, tmp_path):
    delays = [random.Random(0).uniform(a, b) for a, b in ((2, 4),)]  # seconds
    for delay in delays:
        with start(command(photos, tmp_path)) as process:
            time.sleep(delay)
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL or (tmp_path / "results.json").exists(), delays
    status, printed = session("command", argv=command(photos, tmp_path))
    assert status == 0, f"{delays}: {printed}"
    assert_same_results(tmp_path, whole)


@pytest.mark.parametrize(("sent", "status", "workers"), [("SIGTERM", 143, 0), ("SIGTERM", 143, 2), ("SIGINT", 130, 2)])
def test_a_stop_from_outside_tells_how_to_go_on(sent, status, workers, photos, tmp_path):
    argv = command(photos, tmp_path, "--epochs", "9999", "--lr-min", "0.01", "--lr-max", "0.02")
    argv += ["--engine", "albumentations", "--workers", str(workers)] if workers else []
    with start(argv, start_new_session=True) as process:
        for line in process.stdout:
            if line.startswith("    3 "):
                break
        # A terminal's Ctrl-C and a queue's SIGTERM reach the workers as well.
        os.killpg(process.pid, signal.Signals[sent])
        out, err = process.communicate(timeout=20)
    assert process.returncode == status, err
    told = re.search(r"stopped in epoch (\d+) of 9999; the same call goes on after epoch (\d+)", out)
    assert told, out
    assert int(told[1]) == int(told[2]) + 1
    assert len(read_tensors(tmp_path / "checkpoint.pt")["history"]) == int(told[2])
    assert "Traceback" not in out + err


FORKS = """
import itertools, os, signal, sys
from eva_utils import cli, keeper

keeper.SAVE_SECONDS = 0
forks = itertools.count()

def before():
    if next(forks) == 4:
        signal.raise_signal(signal.{sent})

os.register_at_fork(before=before)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stop_while_workers_are_forked(sent, status, photos, tmp_path):
    """Python ignores what is raised within os.fork: the stop waits for its end, and ends the epoch that it came in."""
    rest = ["--epochs", "9999", "--lr-min", "0.01", "--lr-max", "0.02", "--engine", "albumentations", "--workers", "2"]
    ended = subprocess.run(
        [sys.executable, "-c", FORKS.format(sent=sent), *command(photos, tmp_path, *rest)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=60,
    )  # fmt: skip
    assert "ignored" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == status, ended.stderr
    assert "stopped in epoch 3 of 9999; the same call goes on after epoch 2" in ended.stdout
    assert len(read_tensors(tmp_path / "checkpoint.pt")["history"]) == 2
