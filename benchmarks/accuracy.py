"""Recipes side by side, on the same pictures, with the same network, epochs and batch size.

    python benchmarks/accuracy.py --data data/cifar10-pixels                          # a full run of each
    python benchmarks/accuracy.py --width 16 --epochs 12 --seeds 3                    # small ones
    python benchmarks/accuracy.py --width 32 --seeds 3 --held-out --recipes ablations

Each recipe is a configuration of the same ``fit``. What is in assets/benchmarks/accuracy.json already is not run again,
and an interrupted run goes on. With --held-out, accuracy is that on 5,000 of the training images, which are then not
trained on: for decisions, since test images choose nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev

import torch

import eva_utils as eva
from common import ASSETS, NAMES, Rows, folder_name, machine, markdown, options, some, spread, where
from eva_utils.batches import loader
from eva_utils.device import choose_device
from eva_utils.model import Residual

HELD_OUT = 5_000
CHANCE = 15  # per cent of the training images, in ten classes: with fewer, a run has learned nothing
KEY = ("recipe", "data", "width", "epochs", "images", "tested_on", "seed")  # what names a row


# Policies, layers and an optimizer of other people's recipes, which the package has no use for.


@dataclass(frozen=True)
class Cycle:
    """start -> peak at peak_epoch -> end: in straight lines, or each way half a cosine, as torch's OneCycleLR."""

    epochs: int
    peak_epoch: float
    start: float
    peak: float
    end: float
    cosine: bool = False

    def __call__(self, epoch: float) -> float:
        if epoch < self.peak_epoch:
            a, b, share = self.start, self.peak, epoch / self.peak_epoch
        else:
            a, b, share = self.peak, self.end, (epoch - self.peak_epoch) / (self.epochs - self.peak_epoch)
        return a + (b - a) * ((1 - math.cos(math.pi * share)) / 2 if self.cosine else share)


def cyclic_momentum(parameters, policy: Cycle, steps_per_epoch: int) -> torch.optim.SGD:
    """SGD, not Nesterov's, whose momentum follows a policy of the epoch; it counts its steps in its state."""
    optimizer = torch.optim.SGD([{"params": parameters, "taken": 0}], lr=1.0, momentum=0.9, weight_decay=5e-4)

    def follow(optimizer, *_) -> None:
        for group in optimizer.param_groups:
            group["momentum"] = policy(group["taken"] / steps_per_epoch)
            group["taken"] += 1

    optimizer.register_step_pre_hook(follow)
    return optimizer


class SkipTwice(Residual):
    """out = X + ReLU(X + R(X)), R without its last ReLU: a skip connection inside the block and another around it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        first, second = self.residual
        return x + second.relu(x + second.bn(second.conv(first(x))))


# Recipes: each gets a Job and returns (model, schedule, Recipe).


@dataclass(frozen=True)
class Job:
    train: eva.Images
    epochs: int
    width: int
    seed: int
    folder: Path | None

    @property
    def peak(self) -> float:
        return self.epochs * 5 / 24

    def network(self, **options) -> eva.ResNet9:
        torch.manual_seed(self.seed)
        return eva.ResNet9(len(self.train.classes), self.width, **options)


def ours(job: Job, end: float | None = None, logit_scale: float = 0.125, **changes):
    """The package's defaults: found rates and no annihilation; scaled logits, reflect padding, EMA.

    end: put annihilation back, down to this rate. changes: of the ``Recipe``.
    """
    model, recipe = job.network(logit_scale=logit_scale), eva.Recipe(seed=job.seed, **changes)
    rates = eva.find_lr(model, job.train, recipe, folder=job.folder)
    if end is None:
        return model, eva.OneCycle(job.epochs, job.peak, rates.lr_min, rates.lr_max), recipe
    return model, Cycle(job.epochs, job.peak, rates.lr_min, rates.lr_max, end), recipe


def solution_a(job: Job):
    """The assignment's public solution A: S. Ghana's PySodium at commit 82f3eaf, as the log of its notebook has it.

    (github.com/satyajitghana/PySodium; TSAI-DeepVision-EVA4.0, 11_SuperConvergence.) LR_MAX 0.609, where its range test
    of 1,000 steps had its lowest loss (smoothed). OneCycleLR, a cosine each way, from 0.004 and down to LR_MAX/25,
    momentum 0.95 -> 0.85 -> 0.95; plain logits, no label smoothing, the skip added twice. Padding to 36; four holes,
    which may reach beyond the edge, on half of the images. (Left out: its first step was taken at LR_MAX/10.)
    """
    import albumentations as A

    model, images = job.network(logit_scale=1.0), job.train
    model.layer1.__class__ = model.layer3.__class__ = SkipTwice
    padded = eva.Augment(2, cutout=0).albumentations(images.mean, images.std, *images.pixels.shape[1:3]).transforms[:-2]
    mean = tuple(round(255 * value) for value in images.mean)
    # A hole that lies in the image with 4 pixels around it has its centre anywhere in the image.
    cut = A.CoarseDropout((4, 4), hole_height_range=(8, 8), hole_width_range=(8, 8), fill=mean, p=0.5)
    beyond = A.Pad(4, fill=0), cut, A.CenterCrop(*images.pixels.shape[1:3])
    recipe = eva.Recipe(seed=job.seed, augment=A.Compose([*padded, *beyond]))
    steps = len(loader(job.train, recipe, choose_device()))
    momentum = Cycle(job.epochs, job.peak, 0.95, 0.85, 0.95, cosine=True)
    optimizer = partial(cyclic_momentum, policy=momentum, steps_per_epoch=steps)
    schedule = Cycle(job.epochs, job.peak, 0.004, 0.609, 0.609 / 25, cosine=True)
    return model, schedule, recipe.replace(optimizer=optimizer)


def cifar10_fast(job: Job):
    """D. Page's cifar10-fast: 0 -> 0.4 -> 0, Nesterov 0.9, weight decay 5e-4, logits x 0.125, reflect padding.

    (github.com/davidcpage/cifar10-fast; Cutout of 8 x 8 as there. Its rates are per batch of 512 as ours.)
    """
    schedule = Cycle(job.epochs, job.peak, 0.0, 0.4, 0.0)
    return job.network(), schedule, eva.Recipe(seed=job.seed, weight_decay=5e-4)


RECIPES = {"ours": ours, "cifar10-fast": cifar10_fast, "solution-a": solution_a}
ABLATIONS = {
    "ours": ours,
    "ours, plain logits": partial(ours, logit_scale=1.0),
    "ours, label smoothing 0.2": partial(ours, label_smoothing=0.2),
    "ours, half the weight decay": partial(ours, weight_decay=5e-4),
    "ours, with annihilation": partial(ours, end=1e-5),
    "ours, albumentations engine": partial(ours, engine="albumentations"),
}
GROUPS = {"recipes": list(RECIPES), "ablations": list(ABLATIONS)}


def split(data: str, held_out: bool) -> tuple[eva.Images, eva.Images]:
    """(to train on, to test on)."""
    train, test = eva.load_data(data)
    if held_out:
        n = min(HELD_OUT, len(train) // 5)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
        train, test = train[order[n:]], train[order[:n]]
    return train, test


def run(recipe: Callable, job: Job, test: eva.Images) -> dict:
    """Train, and the accuracies (%) after the last epoch: last weights (raw), their average (ema), both with TTA."""
    model, schedule, recipe = recipe(job)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    result = eva.fit(model, job.train, test, schedule, recipe, folder=job.folder)
    last, rates = result.history[-1], [step["applied"] for step in result.steps]
    return {
        "raw": last["test_accuracy"],
        "raw_tta": eva.evaluate(result.model, test, tta=True).accuracy,
        "ema": last["test_accuracy_ema"],
        "ema_tta": eva.evaluate(result.ema, test, tta=True).accuracy,
        "train": last["train_accuracy"],
        "lr_first": rates[0],
        "lr_max": max(rates),
        "lr_last": rates[-1],
        "seconds": last["seconds"],  # of a run that was interrupted too
        "seconds_train": last["seconds_train"],
        "skipped_steps": result.results["skipped_steps"],
        "gpu_gb": torch.cuda.max_memory_allocated() / 1e9,
        **machine(),
        "precision": result.results["precision"],
    }


# Tables in Markdown, one for each size. Runs that learned nothing are counted apart, and are in no mean.


def tables(rows: list[dict], head: list[str], line: Callable[[str, list[dict], dict], list[str]], needs="") -> str:
    """line(recipe, its runs, all recipes' runs): the cells between a recipe's name and the number of its runs."""
    parts = []
    for title, groups in sizes(rows).items():
        if not needs or needs in groups:
            lines = [[name, *line(name, count(group)[0], groups), count(group)[1]] for name, group in groups.items()]
            parts.append(f"{title}\n\n{markdown(['recipe', *head, 'n'], lines)}")
    return "\n".join(parts)


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over the seeds; time: of the median run, evaluations and checkpoints included."""

    def line(name: str, group: list[dict], groups: dict) -> list[str]:
        rates = dict.fromkeys(f"{bound(row['lr_max'] for row in groups[name]):.2g}" for bound in (min, max))
        cells = [spread([row[key] for row in group]) for key in ("raw", "ema", "ema_tta", "train")]
        seconds = median(row["seconds"] for row in group)
        return [" to ".join(rates), *cells, f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"]

    return tables(rows, ["LR_MAX", "last weights", "EMA", "EMA + TTA", "train", "time"], line)


def ablation(rows: list[dict]) -> str:
    """What each ingredient is worth: how much more ``ours`` has, and the standard error of that."""

    def line(name: str, group: list[dict], groups: dict) -> list[str]:
        cells = [spread([row[key] for row in group]) for key in ("raw", "ema")]
        for key in ("raw", "ema"):
            both = [[row[key] for row in part] for part in (count(groups["ours"])[0], group)]
            error = math.hypot(*(stdev(part) / len(part) ** 0.5 if len(part) > 1 else math.nan for part in both))
            spoken = "?" if math.isnan(error) else f"{error:.2f}"
            cells.append("" if name == "ours" else f"{mean(both[0]) - mean(both[1]):.2f} ± {spoken}")
        return cells

    return tables(rows, ["last weights", "EMA", "last: ours minus this", "EMA: ours minus this"], line, needs="ours")


def count(group: list[dict]) -> tuple[list[dict], str]:
    """The runs that learned something, and how many there are, in words if others did not."""
    learned = [row for row in group if row["train"] > CHANCE]
    if not learned:
        return group, f"{len(group)}, at chance"
    failed = len(group) - len(learned)
    return learned, f"{len(learned)}, and {failed} at chance" if failed else f"{len(learned)}"


def sizes(rows: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Size and device in words -> recipe -> its runs, one a seed; large networks and our recipe first."""
    names = [*RECIPES, *ABLATIONS, *(row["recipe"] for row in rows)]  # recipes that are gone come last
    runs_on = Counter(map(where, rows))

    def place(row: dict) -> tuple:
        return -row["width"], -row["epochs"], -runs_on[where(row)], names.index(row["recipe"])

    groups: dict[str, dict[str, list[dict]]] = {}
    for row in sorted(rows, key=place):
        images = f"{row['images']:,} training images of {NAMES.get(row['data'], row['data'])}"
        size = f"Width {row['width']}, {row['epochs']} epochs, {images}; {where(row)}:"
        groups.setdefault(size, {}).setdefault(row["recipe"], []).append(row)
    return groups


def main() -> None:
    parser = options(__doc__, ASSETS / "accuracy.json", "accuracy")
    parser.add_argument("--recipes", nargs="+", default=["recipes"], choices=[*GROUPS, *RECIPES, *ABLATIONS])
    parser.add_argument("--held-out", action="store_true", help="test on held-out training images")
    args = parser.parse_args()
    rows, (train, test) = Rows(args.out), split(args.data, args.held_out)
    train, tested_on = some(train, args.images), "held out" if args.held_out else "test"
    names = dict.fromkeys(name for group in args.recipes for name in GROUPS.get(group, [group]))
    for seed in range(args.seeds):
        for name in names:
            values = name, train.name, args.width, args.epochs, len(train), tested_on, seed
            key = dict(zip(KEY, values, strict=True))
            if not rows.find(**key):
                print(f"\n{key}", flush=True)
                job = Job(train, args.epochs, args.width, seed, args.work / folder_name(key))
                rows.add({**key, **run((RECIPES | ABLATIONS)[name], job, test)})
    for tested_on, functions in {"test": [table], "held out": [table, ablation]}.items():
        if chosen := [row for row in rows.rows if row["tested_on"] == tested_on]:
            print(f"\ntested on: {tested_on}", *(function(chosen) for function in functions), sep="\n\n")


if __name__ == "__main__":
    main()
