"""``fit``: train a network by a recipe and a schedule, into a folder, and go on there where it was stopped."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import progress
from .batches import loader, to_device
from .data import Images
from .device import choose_device, choose_precision, describe, forget_failed_step, keep_memory
from .identity import check_agreement, check_network, check_pair, identity
from .keeper import Keeper
from .processes import on_first, rank, stoppable
from .recipe import Recipe
from .run import (
    exclusive,
    folder_of,
)  # fmt: skip
from .train import Trainer


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training.

    model: the network with its last weights (the very object given to ``fit``). ema: a copy with the averaged weights
    and BatchNorm statistics; it is the result. Both are in eval mode. history: a dict an epoch (loss in nats, accuracy
    in per cent, seconds). steps: a dict a batch (step, epoch, planned, applied, skipped, loss). results: what
    results.json holds; ``print(run)`` says the most important of it.
    """

    model: nn.Module
    ema: nn.Module
    schedule: object
    history: list[dict]
    steps: list[dict]
    results: dict

    def __repr__(self) -> str:
        r = self.results
        lines = [f"Accuracy on {r['n_test']:,} test images after epoch {r['epochs']:g}, in per cent:"]
        for key, words in (
            ("test_accuracy", "last weights"),
            ("test_accuracy_ema", "EMA, their average: the result"),
            ("test_accuracy_ema_tta", "EMA with the mirror image asked, too (TTA)"),
        ):
            lines += [f"  {r[key]:6.2f}  {words}"] if r[key] is not None else []
        if r["recall"]:
            low = sorted(r["recall"].items(), key=lambda item: item[1])[:3]
            lines.append("Lowest recall (EMA): " + ", ".join(f"{name} {value:.1f}" for name, value in low))
        minutes = r["seconds_total"] > 100
        spent = [f"{r[key] / (60 if minutes else 1):.1f}" for key in ("seconds_train", "seconds_total")]
        unit = "minutes" if minutes else "seconds"
        more = "the range test, " * (r["seconds_lr_finder"] > 0) + "evaluations and checkpoints"
        return "\n".join([*lines, f"{spent[0]} {unit} of training, {spent[1]} with {more}"])


def fit(
    model: nn.Module,
    train,
    test,
    schedule,
    recipe: Recipe = Recipe(),  # noqa: B008 - it is frozen
    *,
    folder: str | Path | None = None,
    fresh: bool = False,
    on_epoch=None,
) -> Run:
    """Train ``model`` in place; the rate follows ``schedule`` step by step.

    model: gives logits (n, classes) for (n, 3, h, w). What is frozen (``requires_grad_(False)``, layers in eval mode)
    stays so. train, test: ``Images``, or iterables of (x, y) batches with a length, such as a ``DataLoader``; a test
    loader has to give the same images each time. schedule: called with the epoch (a float) before every step; its
    ``epochs`` is a whole number.
    folder: the run's. History, checkpoints, weights and results are written there, and a later call with the same
    arguments goes on after the last checkpoint; it ends as if nothing had happened. A training that was stopped leaves
    the model as that checkpoint, or as it came, so the same call can be made again. fresh: forget what the folder
    holds, and start from the weights that ``model`` has.
    on_epoch: called with each epoch's row of the history, a dict.

    Under torchrun, within ``processes.process_group()``, all processes call this together: each takes its shard of
    every batch, rank 0 alone uses ``folder``, and all get the same ``Run``.

    Raises ``InputError`` for arguments that do not fit together, for a folder that holds another run, and if the loss
    stops being finite (the last checkpoint is kept).
    """
    start = time.perf_counter()
    device = choose_device(recipe.device)
    precision = choose_precision(device, recipe.precision)
    if device.type == "cpu":
        keep_memory()
    with (
        exclusive(folder_of(folder)) if folder is not None and rank() == 0 else contextlib.nullcontext(),
        stoppable(between_steps=True),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        check_pair(train, test, schedule)
        batches = loader(train, recipe, device)
        check_network(model, test, recipe)
        settings = identity(model, train, recipe, test, schedule)
        check_agreement({**settings, "precision": precision, "device": device.type})
        trainer = Trainer(model, batches, schedule, recipe, precision)
        keeper = Keeper(trainer, settings, None if folder is None else folder_of(folder), start)
        keeper.begin(fresh, test)
        print(f"{describe(device)}, {precision}", progress.HEADER, sep="\n")
        print(
            *(progress.line(row, trainer.epochs) for row in trainer.history), sep="\n", end="\n" * bool(trainer.history)
        )
        on_device = to_device(test, device) if isinstance(test, Images) else test
        try:
            while len(trainer.history) < trainer.epochs:
                with forget_failed_step():
                    row = trainer.epoch() | trainer.test(on_device)
                trainer.history.append(row | {"seconds": keeper.seconds()})
                keeper.after_epoch(test)
                print(progress.line(trainer.history[-1], trainer.epochs), flush=True)
                if on_epoch and rank() == 0:
                    on_epoch(trainer.history[-1])
        except BaseException as error:
            keeper.put_back()
            if isinstance(error, KeyboardInterrupt):
                done = f"goes on after epoch {keeper.saved}" if keeper.saved else "starts over"
                epoch = min(len(trainer.history) + 1, trainer.epochs)
                print(f"\nstopped in epoch {epoch} of {trainer.epochs}; the same call {done}", flush=True)
            raise
        model.eval(), trainer.ema.eval()
        found = on_first(keeper.finish)(train, on_device)
        return Run(model, trainer.ema, schedule, trainer.history, trainer.steps, found)
