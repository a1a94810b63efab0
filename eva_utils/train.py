"""The training itself, top to bottom: one step, which the range test takes as well; an epoch of steps; its test."""

import copy
import math
import sys
import time

import torch
from torch import nn
from tqdm.std import tqdm

from .batches import seed_for
from .device import autocast, describe, seeded
from .errors import InputError, check, kind
from .look import evaluate
from .processes import average_buffers, parallel, raise_if_stopped, rank, total, world_size
from .recipe import Recipe
from .schedule import ratios

EMA_EVERY = 5  # steps between two updates of the average, at most: as good as every step, at a fifth of the cost
FINITE = "finite: lower lr_max, or look for nan in your own loader (the last checkpoint, if any, is kept)"


def step(network, optimizer, scaler, recipe: Recipe, x, y, precision: str, share: float = 1.0):
    """One training step, of ``fit`` and of the range test, at the optimizer's rate: (loss, logits).

    share: of several processes, what this one's images weigh in the mean over all.
    """
    with autocast(x.device, precision):
        logits = network(x)
    if not isinstance(logits, torch.Tensor):
        raise InputError(f"the model gives {kind(logits)} in train mode; switch auxiliary outputs off")
    loss = recipe.loss(logits.float(), y) * share
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)  # leaves the step out if a gradient has overflowed
    scaler.update()
    return loss.detach(), logits.detach()


def set_rate(optimizer, rate: float, shares: list[float]) -> None:
    for group, share in zip(optimizer.param_groups, shares, strict=True):
        group["lr"] = rate * share


def set_train_mode(model: nn.Module) -> None:
    """Train mode, but for what the caller has frozen: BatchNorm that learns nothing, and single layers in eval mode."""
    single = [module for module in model.modules() if model.training and not module.training]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
    model.train()
    for module in (*single, *(m for m in norms if not m.weight.requires_grad | m.bias.requires_grad)):
        module.eval()


class Trainer:
    """The state between two epochs, and how an epoch changes it.

    history, steps: as ``Run`` has them. facts: what results.json says of where and on what the last epoch ran.
    """

    STATE, RECORDS = ("model", "ema", "optimizer", "scaler"), ("history", "steps", "facts")

    def __init__(self, model: nn.Module, batches, schedule, recipe: Recipe, precision: str) -> None:
        self.batches, self.schedule, self.recipe, self.precision = batches, schedule, recipe, precision
        self.device, self.epochs = batches.device, int(schedule.epochs)
        self.model = model.to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        set_train_mode(self.model)
        self.network = parallel(self.model)  # the model itself, or DDP around it or a copy in the same modes
        self.modes = [(module, module.training) for module in self.network.modules()]
        self.optimizer = recipe.make_optimizer(self.model.parameters())
        self.shares = ratios(self.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.taken = self.averaged = 0  # optimizer steps: where the schedule stands, and those that the EMA knows of
        self.history, self.steps, self.facts = [], [], {}

    @property
    def done(self) -> bool:
        return len(self.history) == self.epochs

    def epoch(self) -> dict:
        """One pass over the training images; its part of the history's row."""
        begun, number, whole = time.perf_counter(), len(self.history), self.batches.sizes
        for module, training in self.modes:  # as in the first epoch, whatever on_epoch has done
            module.training = training
        rows, losses, sizes, scale = [], [], [], self.scaler.get_scale()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        # In a log or a notebook, where each update of the bar stays, only if the epoch is long.
        wait = 0.5 if sys.stderr.isatty() else 30
        bar = tqdm(total=whole and sum(whole), desc=f"epoch {number + 1}/{self.epochs}", unit="img", leave=False,
                   mininterval=wait, delay=wait, disable=rank() > 0)  # fmt: skip
        # Dropout and the like in a user's network: a function of (seed, epoch), too.
        with seeded(self.device, seed_for(self.recipe.seed, number, 1 + rank())), bar:
            for i, (x, y) in enumerate(self.batches.epoch(number)):
                raise_if_stopped()
                sizes.append(whole[i] if whole else len(y))
                epoch = self.taken / len(self.batches)
                planned = float(self.schedule(epoch))
                check(f"schedule({epoch:g})", planned, 0 <= planned < math.inf, "a rate, 0 or more")
                set_rate(self.optimizer, planned, self.shares)
                # DDP takes the plain mean over processes; a shard counts by its images.
                share = len(y) * world_size() / sizes[-1]
                loss, logits = step(self.network, self.optimizer, self.scaler, self.recipe, x, y, self.precision, share)
                losses.append(loss)
                correct += (logits.argmax(1) == y).sum()
                # Read back from the optimizer, so that it is evidence and not the plan once more.
                applied = max(group["lr"] for group in self.optimizer.param_groups)
                before, scale = scale, self.scaler.get_scale()
                skipped = scale < before  # then the schedule waits, so that it cannot drift
                rows.append({"step": self.taken, "epoch": epoch, "planned": planned, "applied": applied,
                             "skipped": int(skipped)})  # fmt: skip
                self.taken += not skipped
                if self.taken - self.averaged == EMA_EVERY:
                    self.average()
                bar.update(sizes[-1])
        check("number of batches", len(rows), len(rows) == len(self.batches), f"{len(self.batches)}, as len() says")
        for row, loss in zip(rows, (total(torch.stack(losses)) / world_size()).tolist(), strict=True):
            step_of = f"step {row['step']} (epoch {row['epoch']:.2f}, rate {row['applied']:.4g})"
            check(f"the loss at {step_of}", loss, math.isfinite(loss), FINITE)
            row["loss"] = loss
        self.steps += rows
        n, seconds = sum(sizes), time.perf_counter() - begun
        self.facts |= {"n_train": n, "device": describe(self.device, world_size()), "precision": self.precision}
        return {
            "epoch": number + 1,
            "lr": rows[-1]["applied"],
            "train_loss": sum(row["loss"] * size for row, size in zip(rows, sizes, strict=True)) / n,
            "train_accuracy": 100 * int(total(correct)) / n,
            "skipped": sum(row["skipped"] for row in rows),
            "images_per_second": n / seconds,
            "seconds_train": seconds + (self.history[-1]["seconds_train"] if self.history else 0),
        }

    def average(self) -> None:
        """Move the EMA: parameters and BatchNorm statistics are averaged, other buffers copied."""
        average_buffers(self.model)
        # Over a share of the steps so far, so that the first ones, far from anything good, do not linger in it.
        since, self.averaged = self.taken - self.averaged, self.taken
        weight = 1.0 if since == self.taken else 1 - math.exp(-since / (self.recipe.ema * self.taken))
        mean, new = ([p for p in m.parameters() if p.is_floating_point()] for m in (self.ema, self.model))
        for (name, kept), buffer in zip(self.ema.named_buffers(), self.model.buffers(), strict=True):
            if name.rpartition(".")[2] in ("running_mean", "running_var"):
                mean.append(kept), new.append(buffer)
            else:
                kept.copy_(buffer)
        with torch.no_grad():
            torch._foreach_lerp_(mean, new, weight)  # not AveragedModel, which makes a GPU wait

    def test(self, images) -> dict:
        """The test's part of the history's row."""
        self.average()  # the last steps, too
        row, options = {}, {"label_smoothing": self.recipe.label_smoothing, "precision": self.precision}
        for suffix, model in (("", self.model), ("_ema", self.ema)):
            found = evaluate(model, images, **options, sharded=True)
            check(f"the test loss after epoch {len(self.history) + 1}", found.loss, math.isfinite(found.loss), FINITE)
            row |= {f"test_loss{suffix}": found.loss, f"test_accuracy{suffix}": found.accuracy}
            self.facts["n_test"] = found.n
        return row

    def state_dict(self) -> dict:
        state = {name: getattr(self, name).state_dict() for name in self.STATE}
        return state | {name: getattr(self, name) for name in self.RECORDS}

    def load_state_dict(self, state: dict) -> None:
        for name in self.STATE:
            if state[name]:  # the scaler's is empty when it was written in another precision
                getattr(self, name).load_state_dict(state[name])
        for name in self.RECORDS:
            setattr(self, name, state[name])
        self.taken = self.averaged = sum(not row["skipped"] for row in self.steps)
