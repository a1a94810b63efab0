"""What can go wrong, each case provoked for real: what is done, the exit status, what the user is told.

``test_messages.py`` runs them; ``tools/update_messages.py`` writes docs/messages.md from what they really print.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from eva_utils import checkpoint, cli, download, job, plots
from eva_utils.batches import _WholeBatches
from eva_utils.schedule import OneCycle
from eva_utils.trainer import Trainer

DATA, OUT = Path("photos"), Path("runs/demo")  # in the current folder, which each case has to itself
SAVED = OUT / "checkpoint.pt"
COMMAND = [
    "train", "--data", str(DATA), "--out", str(OUT), "--width", "2", "--epochs", "3", "--peak-epoch", "1",
    "--batch-size", "8", "--padding", "1", "--cutout", "2", "--lr-min", "0.01", "--lr-max", "0.1",
    "--precision", "fp32", "--device", "cpu",
]  # fmt: skip
EPOCH_STEPS = 4  # 32 images in batches of 8
Ended = tuple[int, str]  # exit status, all that was printed


@dataclass(frozen=True)
class Case:
    """``act`` provokes it. ``shown``: what to pick from the output, by default the message without its prefix.

    hide: (pattern, replacement) for what differs from machine to machine. again: flags with which the command, with
    its data in place, then has to end as if nothing had happened.
    """

    why: str
    todo: str  # empty if the message says it all
    act: Callable[[], Ended]
    status: int = 2
    shown: str = r"(?s)^eva-utils(?: \w+)?: (?:error: )?(.*)"
    hide: tuple[str, str] = ("$^", "")
    again: tuple[str, ...] | None = None

    def message(self, printed: str) -> str:
        found = re.search(self.shown, printed, re.MULTILINE)
        assert found, printed
        return re.sub(*self.hide, found[1].strip())


# What cases are made of


def write_photos(root: Path = DATA, names: tuple[str, ...] = ("ant", "bee"), side: int = 8) -> None:
    """A folder of small images, 16 for training and 8 for the test in each class, which differ in colour."""
    noise = np.random.default_rng(0)
    for split, n in (("train", 16), ("test", 8)):
        for channel, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = noise.integers(0, 200, (side, side, 3), np.uint8)
                pixels[..., channel] += 50
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def run(*argv) -> Ended:
    """The command line in this process; it draws no figures, which would take seconds."""
    printed, before = io.StringIO(), signal.getsignal(signal.SIGTERM)
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        mock.patch.object(job, "draw"),
        mock.patch.object(plots, "save", lambda figure, path: path),
    ):
        try:
            status = cli.main([str(arg) for arg in argv])
        except SystemExit as end:  # argparse
            status = end.code
        finally:
            signal.signal(signal.SIGTERM, before)
    return status, printed.getvalue()


def flags(*given) -> Callable[[], Ended]:
    """The plain command with these flags, which win over the same ones in it."""
    return lambda: run(*COMMAND, *given)


def after(*deeds: Callable[[], object], then: Callable[[], Ended] = flags()) -> Callable[[], Ended]:  # noqa: B008
    """``deeds`` one after the other, and then the command."""

    def act() -> Ended:
        for deed in deeds:
            deed()
        return then()

    return act


@contextlib.contextmanager
def before_epoch(number: int, deed: Callable[[], object]) -> Iterator[None]:
    """``deed`` is done when that epoch (from 1) begins."""
    real = Trainer.train_epoch

    def train_epoch(self, epoch):
        if epoch == number - 1:
            deed()
        return real(self, epoch)

    with mock.patch.object(Trainer, "train_epoch", train_epoch):
        yield


def while_running(deed: Callable[[], object], *given, epoch: int = 2) -> Callable[[], Ended]:
    def act() -> Ended:
        with before_epoch(epoch, deed):
            return run(*COMMAND, *given)

    return act


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def begin(*given) -> Callable[[], object]:
    """A run that was stopped in its second epoch."""
    return while_running(send(signal.SIGINT), *given)


def cut_the_checkpoint() -> None:
    SAVED.write_bytes(SAVED.read_bytes()[:-1000])


def flip_a_byte() -> None:
    content = bytearray(SAVED.read_bytes())
    values = bytes(checkpoint.load(SAVED)["model"]["prep.bn.running_mean"].numpy())
    content[content.index(values) + 1] ^= 255
    SAVED.write_bytes(content)


def newer() -> None:
    torch.save(checkpoint.load(SAVED) | {"format": checkpoint.FORMAT + 1}, SAVED)


def put(path: Path, content: bytes = b"") -> Callable[[], object]:
    def deed() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return deed


def picture(path: str, *shape: int, dtype=np.uint8) -> Callable[[], object]:
    return lambda: Image.fromarray(np.zeros(shape, dtype)).save(DATA / path)


def cut_short() -> None:
    file = DATA / "test" / "bee" / "3.png"
    file.write_bytes(file.read_bytes()[:100])


def alike() -> None:
    """All pictures are the same, so that there is nothing to tell the classes apart by."""
    for file in DATA.rglob("*.png"):
        Image.new("RGB", (8, 8), "gray").save(file)


def gone(*names: str) -> Callable[[], object]:
    return lambda: [shutil.rmtree(DATA / name) for name in names]


def another_class() -> None:
    for split in ("train", "test"):
        shutil.copytree(DATA / split / "ant", DATA / split / "cat")


def disk_full() -> None:
    """/dev/full, where the system itself says so, in the place of the next temporary file."""
    (OUT / f".checkpoint.pt.{os.getpid()}.part").symlink_to("/dev/full")


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # who may write anywhere
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def into_a_read_only_folder() -> Ended:
    with read_only(OUT):
        return run(*COMMAND)


def read_only_later() -> Ended:
    with contextlib.ExitStack() as stack, before_epoch(2, lambda: stack.enter_context(read_only(OUT))):
        return run(*COMMAND)


def in_use() -> Ended:
    OUT.mkdir(parents=True)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, OUT / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        ended = run(*COMMAND)
        other.communicate(b"\n")
    return ended


def a_worker_is_killed() -> Ended:
    real = _WholeBatches.__getitem__

    def get(self, i):
        if self.seed[1] == 1:  # the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, i)

    with mock.patch.object(_WholeBatches, "__getitem__", get):
        return run(*COMMAND, "--engine", "albumentations", "--workers", "1")


def a_rate_far_too_high() -> Ended:
    real = OneCycle.__call__
    with mock.patch.object(OneCycle, "__call__", lambda self, epoch: 1e38 if epoch == 1.5 else real(self, epoch)):
        return run(*COMMAND)


def fp16_overflow() -> Ended:
    """The real scaler, which works in fp32 as well, and gradients that overflow in two steps."""
    scaler, real, calls = torch.amp.GradScaler, Trainer._step, itertools.count(1)

    def step(self, loss):
        if next(calls) in (2, 4):
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return real(self, loss)

    with (
        mock.patch.object(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=4.0)),
        mock.patch.object(Trainer, "_step", step),
    ):
        return run(*COMMAND)


def out_of_memory() -> Ended:
    real, calls = Trainer._step, itertools.count(1)

    def step(self, loss):
        return real(self, loss) if next(calls) <= EPOCH_STEPS else torch.empty(1 << 50)  # a petabyte

    with mock.patch.object(Trainer, "_step", step):
        return run(*COMMAND)


def cifar10(*deeds: Callable[[], object], url: str = "") -> Callable[[], Ended]:
    def act() -> Ended:
        for deed in deeds:
            deed()
        with (
            mock.patch.dict(os.environ, {"no_proxy": "*", "EVA_CIFAR10_URL": url}),
            mock.patch.object(download, "MIRRORS", ()),
            mock.patch.object(download, "ORIGINAL", "https://127.0.0.1:1/cifar-10-python.tar.gz"),  # nobody listens
        ):
            return run(*COMMAND, "--data", "cifar10")

    return act


def config(text: str) -> Callable[[], Ended]:
    return after(put(Path("my.json"), text.encode()), then=flags("--config", "my.json"))


FRESH = "Put the old setting back; or choose another `--out`; or give up the old run with `--fresh`."
OLDER = "Start over with `--fresh`, or put a copy of an older checkpoint there."
GO_ON = "^(runs/demo/checkpoint.pt: .*)"
AGAIN = "Give the same command again (without `--fresh`): it goes on after the last finished epoch."
CASES = {
    "The command line": [
        Case("no data named", "", lambda: run("train", "--out", OUT)),
        Case("unknown data", "Check the spelling, and that the folder is where the command runs.",
             flags("--data", "cifar11")),
        Case("an empty folder name, `--out \"$RUN\"` without a RUN", "", flags("--out", "")),
        Case("no number", "", flags("--epochs", "2.5")),
        Case("no rate", "", flags("--lr-min", "much")),
        Case("no epochs", "", flags("--epochs", 0)),
        Case("the peak at the end", "", flags("--peak-epoch", 3)),
        Case("LR_MIN above LR_MAX", "", flags("--lr-min", 0.2)),
        Case("a negative rate", "", flags("--lr-min", -0.1)),
        Case("a rate that is not a number", "", flags("--lr-max", "nan")),
        Case("a batch larger than the data", "", flags("--batch-size", 33)),
        Case("no batch", "", flags("--batch-size", 0)),
        Case("a batch of one small image", "", flags("--batch-size", 1)),
        Case("negative padding", "", flags("--padding", -1)),
        Case("padding as wide as the image", "", flags("--padding", 8)),
        Case("a hole that covers the image", "", flags("--cutout", 8)),
        Case("no width", "", flags("--width", 0)),
        Case("a seed below 0", "", flags("--seed", -1)),
        Case("label smoothing of 1", "", flags("--label-smoothing", 1)),
        Case("negative weight decay", "", flags("--weight-decay", -1)),
        Case("too many workers", "", flags("--workers", 10**6)),
        Case("an unknown engine", "", flags("--engine", "steam"), hide=(r"\(choose.*", "...")),
        Case("fp16 without a GPU", "Leave `--precision` out: it is chosen by the device.",
             flags("--precision", "fp16")),
        Case("an unknown device", "", flags("--device", "abacus"), hide=(r"here: .*", "here: ...")),
        Case("an unknown flag", "See `eva-utils train --help`.", flags("--colour", "red")),
        Case("a config that is not there", "", flags("--config", "none.json")),
        Case("a config that is no JSON", "", config("{"), hide=(r"(?s)read: .*", "read: ...")),
        Case("a config with an unknown setting", "Remove that setting.", config('{"colour": 1}')),
        Case("a config with a wrong value", "", config('{"epochs": "many"}')),
        Case("`eva-utils cycle` with no cycle", "", lambda: run("cycle", "--out", OUT, "--cycles", 0)),
        Case("`eva-utils explain` of a run that is not finished", "Finish it: give its `train` command again.",
             after(begin(), then=lambda: run("explain", OUT)), hide=(r"\(\[.*?\)", "(...)")),
    ],
    "Data": [
        Case("a folder without test/", "Make both; they need the same classes.", after(gone("test"))),
        Case("a folder without classes", "Put each class into a folder of its own.",
             after(gone("test/ant", "test/bee"))),
        Case("a class in one split only", "Add it to the other, or remove it.", after(gone("test/bee"))),
        Case("one class only", "Add another.", after(gone("test/bee", "train/bee"))),
        Case("a class folder without images", "Fill it or remove it.", after(lambda: (DATA / "train" / "cat").mkdir())),
        Case("an image that is cut short", "", after(cut_short), hide=(r"image \(.*\)", "image (...)")),
        Case("an empty file", "", after(put(DATA / "train/ant/new.png")), hide=(r"image \(.*\)", "image (...)")),
        Case("an image of another size", "", after(picture("train/ant/x.png", 9, 8, 3))),
        Case("an image of 16 bits", "", after(picture("train/ant/x.png", 8, 8, dtype=np.uint16))),
        Case("images that are too small", "Enlarge them, to 32 x 32 for instance.",
             after(gone("."), lambda: write_photos(side=7))),
        Case("the range test finds no rate with which the loss falls",
             "Look at the pictures and their labels, or give both rates: `--lr-min`, `--lr-max`.",
             after(alike, then=flags("--lr-min", "find", "--lr-max", "find")),
             hide=(r"fell by .*? and \S+;", "fell by ... from ... between rates ... and ...;")),
        Case("the data are gone while a run is under way", "Nothing: the images are in memory.",
             while_running(gone(".")), status=0, shown="^(Numbers and weights are in .*)"),
        Case("the data are gone when a run shall go on", "Put them back; nothing of the run is lost.",
             after(begin(), gone(".")), again=()),
        Case("a class is gone when a run shall go on", "Put it back; nothing of the run is lost.",
             after(begin(), gone("test/bee")), again=()),
        Case("the data have changed, or have another number of classes, when a run shall go on",
             "Put the old data back, or choose another `--out`.", after(begin(), another_class),
             hide=(r"(crc32|network): .*", r"\1: ... there, ... here"), again=()),
        Case("CIFAR-10 cannot be downloaded", "", cifar10(),
             hide=(r"(https://)127.0.0.1:1(/.*?: ).*", r"\1...\2...")),
        Case("CIFAR-10's archive is another file", "",
             cifar10(put(Path("data/cifar-10-python.tar.gz"), b"mine"))),
        Case("an address that could be tampered with", "", cifar10(url="http://example.com/cifar.tar.gz")),
    ],
    "Going on": [
        Case("the same command after a stop, a crash or a kill", "Nothing.", after(begin()),
             status=0, shown=GO_ON, again=()),
        Case("the same command after the end", "Nothing, or start over with `--fresh`.", after(flags()),
             status=0, shown="^(runs/demo holds .*)", again=()),
        Case("another configuration", FRESH, after(begin(), then=flags("--seed", 1, "--cutout", 3)), again=()),
        Case("another width", FRESH, after(begin(), then=flags("--width", 3)), again=()),
        Case("the checkpoint is cut short", OLDER, after(begin(), cut_the_checkpoint)),
        Case("one byte of the checkpoint has changed", OLDER, after(begin(), flip_a_byte),
             hide=(r"record \S+", "record ...")),
        Case("the checkpoint is of a newer version", "", after(begin(), newer)),
        Case("the checkpoint is another file", "Move it away.",
             after(begin(), lambda: torch.save({"weights": 1}, SAVED))),
        Case("config.json is missing", "Put it back, or start over with `--fresh`.",
             after(begin(), (OUT / "config.json").unlink), hide=(r"\(\[.*?\)", "(...)")),
        Case("another process works in the same folder", "", in_use, again=()),
    ],
    "Faults": [
        Case("Ctrl-C", AGAIN, while_running(send(signal.SIGINT)), status=130,
             shown=r"(?s)^(stopped in .*)", again=()),
        Case("Ctrl-C after `--fresh`", AGAIN, while_running(send(signal.SIGINT), "--fresh"), status=130,
             shown=r"(?s)^(stopped in .*)", again=()),
        Case("SIGTERM, from a queue or `kill`", AGAIN, while_running(send(signal.SIGTERM)), status=143,
             shown=r"(?s)^(stopped in .*)", again=()),
        Case("the output folder is a file", "Choose another `--out`.", flags("--out", "photos/train/ant/0.png")),
        Case("the output folder cannot be written", "Choose another `--out`, or see to its rights.",
             into_a_read_only_folder, again=()),
        Case("it cannot be written any more", "See to its rights, then give the same command again.",
             read_only_later, again=()),
        Case("the disk is full", "Make room, then give the same command again.", while_running(disk_full), again=()),
        Case("a worker process dies", AGAIN, a_worker_is_killed, status=1,
             again=("--engine", "albumentations", "--workers", "0")),
        Case("out of memory", "A smaller batch or network is another configuration: start over with `--fresh`.",
             out_of_memory, status=1, hide=(r"\(\[.*", "(...)"), again=()),
        Case("the loss is not a number any more", "Start over with `--fresh` and a lower `--lr-max`.",
             a_rate_far_too_high, hide=(r"became \w+", "became nan"), again=()),
        Case("fp16 overflow", "Nothing: the schedule has waited. Many such steps are a sign of too high a rate.",
             fp16_overflow, status=0, shown=r"^ +1  .*  (\d+ steps skipped \(overflow\))"),
    ],
}  # fmt: skip
