"""Sessions of training that end by SIGKILL from within, at a chosen moment; ``test_killed.py`` orders them.

Reads orders from stdin, one a line (JSON), and answers each with the session's exit status (-9: killed). Each session
is a process of its own, forked from this one, which has done nothing but import; that saves the seconds of starting.
"""

import importlib
import itertools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from together import images
from torch import nn

from eva_utils import Augment, OneCycle, Recipe, ResNet9, cli, fit, keeper, look

EPOCHS = 6
for module in ("eva_utils.explain", "eva_utils.plots", "albumentations.pytorch", "pytorch_grad_cam"):
    importlib.import_module(module)


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


def train(folder: str, engine: str, workers: int) -> int:
    """``fit`` on random images; what it gives goes to ``end.pt`` in ``folder``."""
    torch.manual_seed(0)
    model = nn.Sequential(ResNet9(3, width=2), nn.Dropout(0.3))
    torch.manual_seed(os.getpid())  # what was drawn in another process decides nothing
    recipe = Recipe(
        batch_size=7, augment=Augment(2, cutout=4), precision="fp32", device="cpu", engine=engine, workers=workers
    )
    schedule = OneCycle(EPOCHS, 2, 0.01, 0.1)
    run = fit(model, images(32, 1), images(12, 2), schedule, recipe, folder=folder)
    end = {"model": run.model.state_dict(), "ema": run.ema.state_dict(), "history": run.history, "steps": run.steps}
    torch.save(end, Path(folder) / "end.pt")
    return 0


def session(log: str, kill: list, work: str, **options) -> int:
    """One session in a new process; returns its exit status."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 99
    try:
        with open(log, "w", buffering=1, encoding="utf8") as sys.stdout:
            sys.stderr = sys.stdout
            if kill:
                arm(*kill)
            status = {"train": train, "command": cli.main}[work](**options)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        os._exit(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    keeper.SAVE_SECONDS = 0
    for order in sys.stdin:
        print(session(**json.loads(order)), flush=True)
