"""The training loop itself: the state between two epochs, and how an epoch changes it. ``train.fit`` is its door."""

from __future__ import annotations

import copy
import itertools
import math
import time
from pathlib import Path

import torch
from torch import nn

from . import __version__, checkpoint, distributed, progress
from .batches import seed_for
from .errors import InputError, check, differences
from .evaluation import evaluate
from .images import Images
from .precision import autocast, describe, forget_failed_step, seeded

EMA_EVERY = 5  # steps between two updates of the average: as good as every step, at a fifth of the cost


class Trainer:
    """Model, average, optimizer and records. ``settings`` says what they depend on, in plain numbers and strings."""

    def __init__(self, model: nn.Module, batches, schedule, settings: dict, precision: str) -> None:
        self.batches, self.schedule, self.settings, self.precision = batches, schedule, settings, precision
        self.device = batches.device
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.network = distributed.parallel(self.model)  # the model itself, or DDP around it
        self.epochs = int(schedule.epochs)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=schedule(0.0),
            momentum=settings["momentum"],
            nesterov=settings["momentum"] > 0,
            weight_decay=settings["weight_decay"],
            fused=True,
        )
        if settings["momentum"]:
            # Fused SGD makes its buffers without filling them, and leaves that if a scaler skips the very first step.
            for p in self.model.parameters():
                self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.scale = self.scaler.get_scale()
        self.history: list[dict] = []
        self.steps: list[dict] = []
        self.taken = 0  # optimizer steps: where the schedule stands
        self.seconds = {"total": 0.0, "train": 0.0}
        self.where = {"device": describe(self.device), "precision": precision}  # the last epoch was computed

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    def run(self, test: Images, file: Path | None, fresh: bool = False) -> None:
        """All epochs that are left, with an evaluation, a line and a checkpoint after each.

        ``fresh`` is that of ``fit``, for the words to somebody who stops it.
        """
        lines = [progress.line(row, self.epochs) for row in self.history]
        print(f"{describe(self.device)}, {self.precision}", progress.HEADER, *lines, sep="\n", flush=True)
        first = None if self.epoch else copy.deepcopy(self.model.state_dict())
        saved = self.epoch
        while self.epoch < self.epochs:
            try:
                with forget_failed_step():
                    self._epoch(test)
                if file:
                    distributed.on_first(checkpoint.save)(file, self.state_dict())
                    saved = self.epoch  # this many epochs are in the file
                print(progress.line(self.history[-1], self.epochs), flush=True)
            except BaseException as error:
                kept = saved if file else self.epoch
                if not kept:
                    # A notebook's next call starts over with the same object: not from half-trained weights.
                    self.model.load_state_dict(first)
                if isinstance(error, KeyboardInterrupt):
                    rest = f"goes on after epoch {saved}" if saved else "starts over"
                    again = f"the same call{' without fresh' if fresh and saved else ''} {rest}"
                    rest = "the model keeps its weights" if kept and not file else again
                    print(f"\nstopped in epoch {kept + 1} of {self.epochs}; {rest}", flush=True)
                raise

    def _epoch(self, test: Images) -> None:
        start = time.perf_counter()
        row = self.train_epoch(self.epoch)
        if self.taken < EMA_EVERY:  # too few steps so far for a first update
            self._average()
        distributed.average_buffers(self.model)
        row |= self._test(test)
        self.seconds["total"] += time.perf_counter() - start
        self.history.append(row | {"seconds": self.seconds["total"]})

    def train_epoch(self, epoch: int) -> dict:
        """One pass over the training images; the row it leaves for the history."""
        start = time.perf_counter()
        criterion = nn.CrossEntropyLoss(label_smoothing=self.settings["label_smoothing"])
        losses, rows = [], []
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.network.train()
        n, sizes, processes = len(self.batches.images), self.batches.sizes, distributed.world_size()
        bar = progress.bar(n, f"epoch {epoch + 1}/{self.epochs}")
        # Dropout and the like in a user's network: a function of (seed, epoch) too, and the caller's RNG stays put.
        with seeded(self.device, seed_for(self.settings["seed"], epoch, 1 + distributed.rank())), bar:
            for size, (x, y) in zip(sizes, self.batches.epoch(epoch), strict=True):
                with autocast(self.device, self.precision):
                    logits = self.network(x)
                # DDP takes the plain mean over processes; a shard counts by its images. Exactly 1 in a single process.
                loss = criterion(logits.float(), y) * (len(y) * processes / size)
                rows.append(self._step(loss))
                losses.append(loss.detach())
                correct += (logits.detach().argmax(1) == y).sum()
                if self.device.type == "cpu":  # looking is free here; a GPU would have to be waited for
                    self._note_losses(rows[-1:], losses[-1][None])
                bar.update(size)
            self._note_losses(rows, distributed.total(torch.stack(losses)) / processes)
        self.steps += rows
        seconds = time.perf_counter() - start
        self.seconds["train"] += seconds
        return {
            "epoch": epoch + 1,
            "lr": rows[-1]["applied"],
            "train_loss": sum(row["loss"] * size for row, size in zip(rows, sizes, strict=True)) / n,
            "train_accuracy": 100 * int(distributed.total(correct)) / n,
            "skipped": sum(row["skipped"] for row in rows),
            "images_per_second": n / seconds,
            "seconds_train": self.seconds["train"],
        }

    def _step(self, loss: torch.Tensor) -> dict:
        """Backward pass and optimizer step at the planned rate; the row it leaves in ``steps``."""
        epoch = self.taken / len(self.batches)
        planned = float(self.schedule(epoch))
        check(f"schedule({epoch:g})", planned, 0 <= planned < math.inf, "a rate, 0 or more")
        for group in self.optimizer.param_groups:
            group["lr"] = planned
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # The scaler left the step out if a gradient had overflowed; the schedule then waits, so that it cannot drift.
        before, self.scale = self.scale, self.scaler.get_scale()
        skipped = self.scale < before
        # Read back from the optimizer, so that it is evidence and not the plan once more.
        row = {"step": self.taken, "epoch": epoch, "planned": planned, "applied": self.optimizer.param_groups[0]["lr"]}
        if not skipped:
            self.taken += 1
            if self.taken % EMA_EVERY == 0:
                self._average()
        return row | {"skipped": int(skipped)}

    def _average(self) -> None:
        distributed.average_buffers(self.model)
        first = self.taken <= EMA_EVERY
        # Over a share of the steps so far, so that the first ones, far from anything good, do not linger in it.
        weight = 1.0 if first else 1 - math.exp(-EMA_EVERY / (self.settings["ema"] * self.taken))
        pairs = zip(*(itertools.chain(m.parameters(), m.buffers()) for m in (self.ema, self.model)), strict=True)
        average, new = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, new, weight)  # not AveragedModel, which makes a GPU wait

    def _note_losses(self, rows: list[dict], losses: torch.Tensor) -> None:
        for row, value in zip(rows, losses.tolist(), strict=True):
            row["loss"] = value
            if not math.isfinite(value):
                where = f"step {row['step']} (epoch {row['epoch']:.2f}, rate {row['applied']:.4g})"
                raise InputError(
                    f"the loss became {value} at {where}: "
                    "the rate is too high for this network; lower lr_max. The last checkpoint, if any, is kept"
                )

    def _test(self, test: Images) -> dict:
        smoothing = self.settings["label_smoothing"]
        row = {}
        for suffix, model in (("", self.model), ("_ema", self.ema)):
            metrics = evaluate(model, test, label_smoothing=smoothing, precision=self.precision, sharded=True)
            row |= {f"test_loss{suffix}": metrics.loss, f"test_accuracy{suffix}": metrics.accuracy}
        return row

    def state_dict(self) -> dict:
        return {
            "version": __version__,
            "settings": self.settings,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "steps": self.steps,
            "seconds": self.seconds,
            "where": self.where,
            "processes": distributed.world_size(),
        }

    def load_state_dict(self, state: dict, file: Path) -> None:
        """Go on from ``state``. Raises ``InputError`` if it belongs to another configuration or network."""
        if changed := differences(state["settings"], self.settings):
            raise InputError(
                f"checkpoint {str(file)!r} belongs to another configuration:\n{changed}\n"
                "choose another folder, or start over with fresh=True (--fresh)"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
        except RuntimeError as error:
            raise InputError(f"checkpoint {str(file)!r} belongs to another network: {error}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty when it was written in another precision, on another device
            self.scaler.load_state_dict(state["scaler"])
            self.scale = self.scaler.get_scale()
        self.history, self.steps, self.seconds = state["history"], state["steps"], state["seconds"]
        if self.epoch == self.epochs:
            self.where = state["where"]
        self.taken = sum(not row["skipped"] for row in self.steps)
