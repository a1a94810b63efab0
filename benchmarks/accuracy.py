"""Recipes side by side, on the same pictures, with the same network, epochs and batch size.

    python benchmarks/accuracy.py --data data/cifar10-jpeg                            # a full run of each
    python benchmarks/accuracy.py --width 16 --epochs 12 --seeds 3                    # small ones
    python benchmarks/accuracy.py --width 32 --seeds 3 --held-out --recipes ablations
    python benchmarks/accuracy.py --adopt runs/cifar10                                # what eva-utils train left

Each recipe is a configuration of the same ``fit``. What is in assets/benchmarks/accuracy.json already is not run again,
and an interrupted run goes on, so that it can be done bit by bit. With --held-out, accuracy is that on 5,000 of the
training images, which are then not trained on: for decisions, since test images choose nothing.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from unittest import mock

import torch
from torch.optim.swa_utils import update_bn

import eva_utils as eva
from common import ASSETS, NAMES, Rows, machine, markdown, spread, where
from eva_utils.batches import loader
from eva_utils.cli import _parsers
from eva_utils.errors import differences
from eva_utils.job import HERE_ONLY
from eva_utils.lr_curve import choose_rates
from eva_utils.lr_finder import LRRange
from eva_utils.model import Residual
from eva_utils.precision import autocast, choose_device, choose_precision
from eva_utils.records import read_csv, read_json
from eva_utils.trainer import Trainer

BATCH = 512
HELD_OUT = 5_000
CHANCE = 15  # per cent of the training images, in ten classes: with fewer, a run has learned nothing
KEY = ("recipe", "data", "width", "epochs", "images", "tested_on", "seed")  # what names a row


# Policies and layers of other people's recipes, which the package has no use for.


@dataclass(frozen=True)
class Triangle:
    """0 -> lr_max at peak_epoch -> end, piecewise linear: cifar10-fast's policy (D. Page, 2018)."""

    epochs: int
    peak_epoch: float
    lr_max: float
    end: float = 0.0
    start: float = 0.0

    def __call__(self, epoch: float) -> float:
        if epoch < self.peak_epoch:
            return self.start + (self.lr_max - self.start) * epoch / self.peak_epoch
        return self.end + (self.lr_max - self.end) * (self.epochs - epoch) / (self.epochs - self.peak_epoch)


@dataclass(frozen=True)
class Cosine:
    """start -> peak at peak_epoch -> end, each way half a cosine: OneCycleLR as torch has it."""

    epochs: int
    peak_epoch: float
    start: float
    peak: float
    end: float

    def __call__(self, epoch: float) -> float:
        if epoch < self.peak_epoch:
            a, b, share = self.start, self.peak, epoch / self.peak_epoch
        else:
            a, b, share = self.peak, self.end, (epoch - self.peak_epoch) / (self.epochs - self.peak_epoch)
        return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


class SkipTwice(Residual):
    """out = X + ReLU(X + R(X)), R without its last ReLU: a skip connection inside the block and another around it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        first, second = self.residual
        return x + second.relu(x + second.bn(second.conv(first(x))))


def pool_last(model: eva.ResNet9) -> eva.ResNet9:
    """Conv - BatchNorm - ReLU - MaxPool wherever there is a pool, as in cifar10-fast's network."""
    for block in (model.layer1.down, model.layer2, model.layer3.down):
        pool = block.pool
        del block.pool
        block.pool = pool  # a Sequential runs its layers in the order in which they were set
    return model


class CyclicMomentum(Trainer):
    """Momentum 0.95 -> 0.85 -> 0.95 against the rate, as OneCycleLR has it; not Nesterov's."""

    def _step(self, loss: torch.Tensor) -> dict:
        policy = Cosine(self.epochs, self.schedule.peak_epoch, 0.95, 0.85, 0.95)
        for group in self.optimizer.param_groups:
            group["momentum"], group["nesterov"] = policy(self.taken / len(self.batches)), False
        return super()._step(loss)


def per_image(images: eva.Images, padding: int, border: str, *cutout):
    """An albumentations pipeline: pad, crop, flip, normalise, ``cutout``."""
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    pad = A.Pad(padding, border_mode={"mirror": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}[border], fill=0)
    crop = A.RandomCrop(*images.pixels.shape[1:3])
    return A.Compose([
        pad, crop, A.HorizontalFlip(p=0.5), A.Normalize(images.mean, images.std), *cutout, ToTensorV2()
    ])  # fmt: skip


def holes(count: int, p: float = 1.0):
    """``count`` Cutout holes of 8 x 8 pixels, all or none of them, with probability ``p``; wholly inside the image."""
    import albumentations as A

    return A.CoarseDropout((count, count), hole_height_range=(8, 8), hole_width_range=(8, 8), fill=0, p=p)


# Recipes. Each gets a Job and returns (model, schedule, options of fit).


@dataclass(frozen=True)
class Job:
    train: eva.Images
    epochs: int
    width: int
    seed: int
    folder: Path

    @property
    def peak(self) -> float:
        return self.epochs * 5 / 24

    def network(self, **options) -> eva.ResNet9:
        torch.manual_seed(self.seed)
        return eva.ResNet9(len(self.train.classes), self.width, **options)


def ours(
    job: Job,
    end: float | None = None,
    logit_scale: float = 0.125,
    augment=eva.Augment(),  # noqa: B008 - it is frozen
    **options,
):
    """Found rates and no annihilation; scaled logits, reflect padding, alternating flip, EMA.

    end: put annihilation back, down to this rate. Other arguments change an ingredient.
    """
    model = job.network(logit_scale=logit_scale)
    if augment == "zero padding":
        augment = per_image(job.train, 4, "black", holes(1))
    shared = {"augment": augment, "batch_size": BATCH, "seed": job.seed, **options}
    rates = eva.find_lr(model, job.train, checkpoint=job.folder, **{k: v for k, v in shared.items() if k != "ema"})
    if end is None:
        schedule = eva.OneCycle(job.epochs, job.peak, rates.lr_min, rates.lr_max)
    else:
        schedule = Triangle(job.epochs, job.peak, rates.lr_max, end, rates.lr_min)
    return model, schedule, shared


def solution_a(job: Job):
    """The assignment's public solution A: S. Ghana's PySodium at commit 82f3eaf, as the log of its notebook has it.

    (github.com/satyajitghana/PySodium; TSAI-DeepVision-EVA4.0, 11_SuperConvergence.) LR_MAX 0.609, where its range test
    of 1,000 steps had its lowest loss (smoothed). OneCycleLR, a cosine each way, from 0.004 and down to LR_MAX/25,
    momentum 0.95 -> 0.85 -> 0.95; plain logits, no label smoothing, the skip added twice. Padding to 36; four holes,
    which may reach beyond the edge, on half of the images. (Left out: its first step was taken at LR_MAX/10.)
    """
    import albumentations as A

    model = job.network(logit_scale=1.0)
    model.layer1.__class__ = model.layer3.__class__ = SkipTwice
    schedule = Cosine(job.epochs, job.peak, 0.004, 0.609, 0.609 / 25)
    # A hole that lies in the image with 4 pixels around it has its centre anywhere in the image.
    beyond = A.Pad(4, fill=0), holes(4, p=0.5), A.CenterCrop(*job.train.pixels.shape[1:3])
    augment = per_image(job.train, 2, "mirror", *beyond)
    options = {"momentum": 0.95, "weight_decay": 5e-4, "trainer": CyclicMomentum}
    return model, schedule, {"augment": augment, "batch_size": BATCH, **options}


def cifar10_fast(job: Job, change: Callable = lambda model: model):
    """D. Page's cifar10-fast: 0 -> 0.4 -> 0, Nesterov 0.9, weight decay 5e-4, logits x 0.125, reflect padding.

    (github.com/davidcpage/cifar10-fast; Cutout of 8 x 8 as there. Its rates are per batch of 512 as ours.)
    """
    options = {"augment": eva.Augment(alternate=False), "weight_decay": 5e-4}
    return change(job.network()), Triangle(job.epochs, job.peak, 0.4), {"batch_size": BATCH, **options}


def variant(**changes) -> Callable:
    return lambda job: ours(job, **changes)


RECIPES = {"ours": ours, "cifar10-fast": cifar10_fast, "solution-a": solution_a}
ABLATIONS = {
    "ours": ours,
    "ours, plain logits": variant(logit_scale=1.0),
    "ours, label smoothing 0.2": variant(label_smoothing=0.2),
    "ours, flip at random": variant(augment=eva.Augment(alternate=False)),
    "ours, zero padding and flip at random": variant(augment="zero padding"),
    "ours, half the weight decay": variant(weight_decay=5e-4),
    "ours, with annihilation": variant(end=1e-5),
    "ours, albumentations engine": variant(engine="albumentations"),
    "ours, label smoothing 0.2, albumentations engine": variant(label_smoothing=0.2, engine="albumentations"),
    "cifar10-fast, BatchNorm before pooling": lambda job: cifar10_fast(job, pool_last),
}
GROUPS = {"recipes": list(RECIPES), "ablations": list(ABLATIONS)}


def split(data: str, held_out: bool) -> tuple[eva.Images, eva.Images]:
    train, test = eva.load_data(data)
    if held_out:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
        train, test = train[order[HELD_OUT:]], train[order[:HELD_OUT]]
    return train, test


def own_statistics(model: torch.nn.Module, job: Job, options: dict) -> torch.nn.Module:
    """A copy whose BatchNorm statistics are those of these very weights, over an epoch of training images.

    Those of a training are a mean over its last steps, and each step had other weights.
    """
    model, device = copy.deepcopy(model), choose_device()
    like_training = {key: options[key] for key in ("augment", "batch_size", "engine") if key in options}
    batches = loader(job.train, seed=job.seed, device=device, **like_training)
    with autocast(device, choose_precision(device)):
        update_bn(batches.epoch(0), model)
    return model


def run(recipe: Callable, job: Job, test: eva.Images) -> dict:
    """Train, and the accuracies (%) after the last epoch: with the last weights, with their average, and with TTA.

    raw_own, ema_own: with BatchNorm statistics of their own.
    """
    model, schedule, options = recipe(job)
    with mock.patch("eva_utils.train.Trainer", options.pop("trainer", Trainer)):
        result = eva.fit(model, job.train, test, schedule, **{"seed": job.seed, "checkpoint": job.folder} | options)
    last = result.history[-1]
    return {
        "raw": last["test_accuracy"],
        "raw_tta": eva.evaluate(result.model, test, tta=True).accuracy,
        "ema": last["test_accuracy_ema"],
        "ema_tta": eva.evaluate(result.ema, test, tta=True).accuracy,
        "raw_own": eva.evaluate(own_statistics(result.model, job, options), test).accuracy,
        "ema_own": eva.evaluate(own_statistics(result.ema, job, options), test).accuracy,
        "train": last["train_accuracy"],
        "lr_first": result.steps[0]["applied"],
        "lr_max": max(step["applied"] for step in result.steps),
        "lr_last": result.steps[-1]["applied"],
        "seconds": result.seconds_total,  # of a run that was interrupted too
        "seconds_train": result.seconds_train,
        **machine(),
    }


def adopt(folder: Path) -> dict:
    """The row of ``ours`` that a finished run of ``eva-utils train`` stands for, whose defaults are this recipe.

    Raises SystemExit if the run in ``folder`` had other settings, or rates that are not read off its curve as now.
    """
    config, results = (read_json(folder / name) for name in ("config.json", "results.json"))
    own = {key: config[key] for key in ("data", "epochs", "width", "seed", *HERE_ONLY)}
    recipe = vars(_parsers()[0].parse_args(["train", "--out", "."])) | own | {"peak_epoch": config["epochs"] * 5 / 24}
    if changed := differences(config, {key: recipe[key] for key in config}):
        raise SystemExit(f"{folder} is of another recipe:\n{changed}")
    curve = LRRange.load(folder / "lr_range.json").curve
    if not math.isclose(choose_rates(curve.lr, curve.loss)[1], results["lr_max"]):
        raise SystemExit(f"{folder} found its rates by another rule")
    key = "ours", results["data"], config["width"], config["epochs"], results["n_train"], "test", config["seed"]
    accuracies = {name: results[f"test_accuracy{end}"] for name, end in
                  {"raw": "", "raw_tta": "_tta", "ema": "_ema", "ema_tta": "_ema_tta"}.items()}  # fmt: skip
    rates = [step["applied"] for step in read_csv(folder / "lr.csv")]
    return {
        **dict(zip(KEY, key, strict=True)),
        **accuracies,
        "train": results["train_accuracy"],
        "lr_first": rates[0],
        "lr_max": max(rates),
        "lr_last": rates[-1],
        "seconds": results["seconds_total"] - results["seconds_lr_finder"],
        "seconds_train": results["seconds_train"],
        **{name: results[name] for name in ("device", "precision", "torch", "version")},
    }


def table(rows: list[dict]) -> str:
    """For each size a table with a line for each recipe: mean and standard deviation over the seeds, in Markdown.

    Runs that learned nothing are counted apart, and are in no mean, here and below.
    """
    head = ["recipe", "LR_MAX", "raw", "EMA", "EMA + TTA", "train", "n"]
    parts = []
    for title, groups in sizes(rows).items():
        lines = []
        for name, group in groups.items():
            rates = dict.fromkeys(f"{bound(row['lr_max'] for row in group):.2g}" for bound in (min, max))
            learned, n = count(group)
            values = [spread([row[key] for row in learned]) for key in ("raw", "ema", "ema_tta", "train")]
            lines.append([name, " to ".join(rates), *values, n])
        parts.append(f"{title}\n\n{markdown(head, lines)}")
    return "\n".join(parts)


def ablation(rows: list[dict]) -> str:
    """What each ingredient is worth: how much more ``ours`` has, and the standard error of that, in Markdown."""
    head = ["recipe", "raw", "EMA", "raw: ours minus this", "EMA: ours minus this", "n"]
    parts = []
    for title, groups in sizes(rows).items():
        if "ours" not in groups:
            continue
        lines = []
        ours, _ = count(groups["ours"])
        for name, group in groups.items():
            group, n = count(group)
            cells = [name, *(spread([row[key] for row in group]) for key in ("raw", "ema"))]
            for key in ("raw", "ema"):
                both = [[row[key] for row in part] for part in (ours, group)]
                error = math.hypot(*(stdev(part) / len(part) ** 0.5 if len(part) > 1 else math.nan for part in both))
                spoken = "?" if math.isnan(error) else f"{error:.2f}"
                cells.append("" if name == "ours" else f"{mean(both[0]) - mean(both[1]):.2f} ± {spoken}")
            lines.append([*cells, n])
        parts.append(f"{title}\n\n{markdown(head, lines)}")
    return "\n".join(parts)


def statistics(rows: list[dict]) -> str:
    """Accuracy with BatchNorm statistics of the weights' own, what that gains and its standard error, in Markdown."""
    head = ["recipe", "raw, own statistics", "gain", "EMA, own statistics", "gain", "n"]
    parts = []
    for title, groups in sizes([row for row in rows if "raw_own" in row]).items():
        lines = []
        for name, group in groups.items():
            group, n = count(group)
            cells = [name]
            for key in ("raw", "ema"):
                gains = [row[f"{key}_own"] - row[key] for row in group]
                error = f" ± {stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
                cells += [spread([row[f"{key}_own"] for row in group]), f"{mean(gains):.2f}{error}"]
            lines.append([*cells, n])
        parts.append(f"{title}\n\n{markdown(head, lines)}")
    return "\n".join(parts)


def count(group: list[dict]) -> tuple[list[dict], str]:
    """The runs that learned something, and how many there are, in words if others did not."""
    learned = [row for row in group if row["train"] > CHANCE]
    if not learned:
        return group, f"{len(group)}, at chance"
    failed = len(group) - len(learned)
    return learned, f"{len(learned)}, and {failed} at chance" if failed else f"{len(learned)}"


def sizes(rows: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Size and device in words -> recipe -> its runs, one a seed; large networks and our recipe first."""
    names = list(RECIPES | ABLATIONS)
    runs_on = Counter(where(row) for row in rows)

    def place(row: dict) -> tuple:
        return -row["width"], -row["epochs"], -runs_on[where(row)], names.index(row["recipe"])

    groups: dict[str, dict[str, list[dict]]] = {}
    for row in sorted(rows, key=place):
        images = f"{row['images']:,} training images of {NAMES.get(row['data'], row['data'])}"
        size = f"Width {row['width']}, {row['epochs']} epochs, {images}; {where(row)}:"
        groups.setdefault(size, {}).setdefault(row["recipe"], []).append(row)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10 (its archive in data/), or an image folder")
    parser.add_argument("--recipes", nargs="+", default=["recipes"], choices=[*GROUPS, *RECIPES, *ABLATIONS])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, help="train on this many (all of them)")
    parser.add_argument("--held-out", action="store_true", help="test on held-out training images")
    parser.add_argument("--out", type=Path, default=ASSETS / "accuracy.json")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder for checkpoints")
    parser.add_argument("--adopt", type=Path, metavar="RUN", help="count this run of eva-utils train as one of ours")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    rows = Rows(args.out)
    if args.adopt:
        row = adopt(args.adopt)
        if not rows.find(**{key: row[key] for key in KEY}):
            rows.add(row)
    elif not args.table:
        train, test = split(args.data, args.held_out)
        if args.images:  # a folder is in the order of its classes
            train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(2))[: args.images]]
        tested_on = "held out" if args.held_out else "test"
        names = [name for group in args.recipes for name in GROUPS.get(group, [group])]
        for seed in range(args.seeds):
            for name in dict.fromkeys(names):
                values = name, train.name, args.width, args.epochs, len(train), tested_on, seed
                key = dict(zip(KEY, values, strict=True))
                if not rows.find(**key):
                    folder = args.work / "-".join(str(value).replace(" ", "_") for value in key.values())
                    print(f"\n{key}", flush=True)
                    job = Job(train, args.epochs, args.width, seed, folder)
                    rows.add({**key, **run((RECIPES | ABLATIONS)[name], job, test)})
    for tested_on, functions in {"test": [table, statistics], "held out": [table, ablation, statistics]}.items():
        if chosen := [row for row in rows.rows if row["tested_on"] == tested_on]:
            print(f"\ntested on: {tested_on}", *(function(chosen) for function in functions), sep="\n\n")


if __name__ == "__main__":
    main()
