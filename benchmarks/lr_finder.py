"""Are the found rates as good as searched ones, on networks and optimizers that the rule was not chosen on?

    pip install '.[study]'
    python benchmarks/lr_finder.py --data data/cifar10-pixels    # hours on one core; goes on where it stopped

For each setting and seed, one-cycle trainings of some 25,000 images: with the pair that ``find_lr`` reads off its range
test, with those of other rules, and with the LR_MAX of a grid (LR_MIN a twentieth of it), which is wider where the best
is at its end; then Prodigy and schedule-free, which need no rates. Accuracy on images held out of the *training* set.
Writes assets/benchmarks/lr_study.json, a row a training; prints two tables and draws one figure of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import nn

import eva_utils as eva
from accuracy import Cycle
from common import ASSETS, Rows, machine, markdown, where
from eva_utils.batches import loader
from eva_utils.device import autocast, choose_device, choose_precision, keep_memory
from eva_utils.lr_curve import BARE, read_curve
from eva_utils.lr_finder import range_test
from eva_utils.model import conv_bn
from eva_utils.plots._base import BLUE, ORANGE, Picture, styled
from eva_utils.train import Trainer

SEEDS = range(3)
RULES = ("ours", "lowest / 10", "steepest", "valley", "Prodigy", "schedule-free")
# What eva_utils did for SGD and networks without normalisation layers, too, until this study showed what that costs.
WHOLE = "not halved"
GRID, MOST = 6, 12  # so many LR_MAX, a factor of two apart, and at most where the best stays at an end
RATIO = 20  # LR_MAX over LR_MIN on the grid, and for the rules that say nothing of LR_MIN
# Ours, which "lowest" and "steepest" are read off as well, and fastai's own, because its range is part of its rule.
TESTS = {
    "ours": {"lr_start": 1e-3, "lr_end": 10.0, "steps": 90},
    "fastai": {"lr_start": 1e-7, "lr_end": 10.0, "steps": 100},
}
ADAMW = TESTS | {"ours": {"lr_start": 1e-5, "lr_end": 0.1, "steps": 90}}
Curves = dict[str, dict[str, list[float]]]  # of TESTS: their "lr" and "loss"


@dataclass(frozen=True)
class Setting:
    data: str  # "digits", "pairs" (of digits side by side: a hundred classes), "cifar10": what --data names
    network: str
    batch: int
    optimizer: str
    decay: float
    epochs: int
    momentum: float = 0.9  # of SGD

    @property
    def bare(self) -> bool:
        """Whether it is SGD and a network without normalisation layers."""
        return self.optimizer == "sgd" and self.network.startswith(("MLP", "CNN"))

    def __str__(self) -> str:
        momentum = f", momentum {self.momentum:g}" if self.optimizer == "sgd" else ""
        return (
            f"{self.data}, {self.network}, batch {self.batch}, {self.optimizer}{momentum}, decay {self.decay:g}, "
            f"{self.epochs} epochs"
        )


SETTINGS = [
    Setting("digits", "MLP", 32, "sgd", 1e-3, 16),
    Setting("pairs", "MLP, zero head", 1024, "sgd", 1e-3, 6),
    Setting("digits", "CNN", 32, "adamw", 0.01, 16),
    Setting("cifar10", "MLP", 128, "sgd", 0.0, 3, momentum=0.0),
    Setting("cifar10", "CNN", 64, "sgd", 5e-4, 3),
    Setting("cifar10", "CNN, zero head", 128, "adamw", 0.01, 3),
    Setting("pairs", "ResNet9-16, plain logits", 128, "adamw", 0.05, 3),
    Setting("digits", "ResNet9-16, zero head", 64, "adamw", 0.05, 30),
    Setting("cifar10", "ResNet9-16, zero head", 128, "sgd", 0.0, 3, momentum=0.95),
    Setting("cifar10", "ResNet9-16, plain logits", 32, "sgd", 0.0, 3, momentum=0.0),
    Setting("digits", "VGG", 128, "sgd", 0.0, 30, momentum=0.95),
    Setting("cifar10", "VGG", 512, "sgd", 1e-3, 3),
    Setting("digits", "ViT", 64, "adamw", 0.1, 30),
    Setting("cifar10", "ViT", 128, "adamw", 0.05, 3),
    Setting("cifar10", "ResNet9-32", 512, "adamw", 0.1, 3),
    Setting("cifar10", "ResNet9-32", 128, "sgd", 5e-4, 3),
]
OTHERS = [
    *(Setting("digits", "MLP", 32, "sgd", 1e-3, epochs) for epochs in (4, 80)),  # two of the above at other lengths
    *(Setting("digits", "CNN", 32, "adamw", 0.01, epochs) for epochs in (4, 80)),
    Setting("digits", "CNN", 64, "sgd", 5e-4, 30),  # three made when the others had shown that such networks need half
    Setting("cifar10", "MLP", 64, "sgd", 5e-4, 6),
    Setting("cifar10", "CNN", 256, "sgd", 1e-3, 4),
]
ALL = [*SETTINGS, *OTHERS]
Pair = tuple[float, float]  # (LR_MIN, LR_MAX)
Task = tuple[Setting, int, str, Pair | None]  # with seed and rule; None: the range tests


# How the rules read a curve


def rates(curves: Curves, classes: int = 10, share: float = 1.0) -> dict[str, tuple[float, float]]:
    """(lr_min, lr_max) of each rule; ours, times ``share``, is left out where it refuses the curve."""
    lr, loss = (np.array(values) for values in curves["ours"].values())
    smooth, inner = loss.copy(), slice(10, -5)  # torch-lr-finder's
    for i in range(1, len(loss)):
        smooth[i] = 0.05 * loss[i] + 0.95 * smooth[i - 1]
    maxima = {
        "lowest / 10": lr[np.nanargmin(smooth)] / 10,
        "steepest": lr[inner][np.nanargmin(np.gradient(smooth[inner]))],
    }
    fastai_lr, fastai_loss = (np.array(values) for values in curves["fastai"].values())
    corrected, average = [], 0.0  # an average that starts at zero, divided by the weight it has so far
    for i, value in enumerate(fastai_loss):
        average = 0.98 * average + (1 - 0.98) * value
        corrected.append(average / (1 - 0.98 ** (i + 1)))
    maxima["valley"] = fastai_lr[inner][valley(np.array(corrected)[inner])]
    found = {rule: (float(rate) / RATIO, float(rate)) for rule, rate in maxima.items()}
    with contextlib.suppress(eva.InputError):
        ours = read_curve(lr, loss, math.log(classes), share)
        found["ours"] = ours.lr_min, ours.lr_max
    return found


def valley(loss: np.ndarray) -> int:
    """fastai's rule: half of its length before the end of the curve's longest falling subsequence."""
    length = np.ones(len(loss), dtype=int)
    for i in range(1, len(loss)):
        before = length[:i][loss[:i] > loss[i]]
        length[i] = 1 + (before.max() if len(before) else 0)
    end = int(length.argmax())
    return max(0, end - int(length[end]) + int(length[end] / 3) + int(length[end] / 6))


# The networks


class ViT(nn.Module):
    """Patches of 4 x 4 pixels, four pre-norm blocks, the mean over patches."""

    def __init__(self, height: int, width: int, classes: int, size: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size, 4, stride=4)
        self.places = nn.Parameter(0.02 * torch.randn(height * width // 16, size))
        block = {"nhead": 4, "dim_feedforward": 2 * size, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(size, **block) for _ in range(4)), nn.LayerNorm(size))
        self.head = nn.Linear(size, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.places).mean(1))


def mlp(height: int, width: int, classes: int) -> nn.Sequential:
    first = nn.Linear(3 * height * width, 256)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes))


def cnn(height: int, width: int, classes: int) -> nn.Sequential:
    convs = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 32), (32, 64), (64, 128)))
    layers = [layer for conv in convs for layer in (conv, nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * (height // 8) * (width // 8), classes))


def vgg(height: int, width: int, classes: int) -> nn.Sequential:
    stages = (layer for i, o in ((3, 16), (16, 32), (32, 64)) for layer in (conv_bn(i, o), conv_bn(o, o, pool=True)))
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(64 * (height // 8) * (width // 8), classes))


def network(name: str, images: eva.Images) -> nn.Module:
    (kind, *options), classes = name.split(", "), len(images.classes)
    if kind.startswith("ResNet9-"):
        scale = 1.0 if "plain logits" in options else 0.125
        model = eva.ResNet9(classes, int(kind.removeprefix("ResNet9-")), logit_scale=scale)
    else:
        model = {"MLP": mlp, "CNN": cnn, "VGG": vgg, "ViT": ViT}[kind](*images.pixels.shape[1:3], classes)
    if "zero head" in options:
        for p in [module for module in model.modules() if isinstance(module, nn.Linear)][-1].parameters():
            nn.init.zeros_(p)
    return model


@cache
def images(name: str, root: str) -> tuple[eva.Images, eva.Images]:
    """(to train on, held out), both from the training set: 8,192 and 5,000 of CIFAR-10; 800 and 637 digits, of which
    8,192 and 2,000 pairs are made, at half the side."""
    generator = torch.Generator().manual_seed(1)
    everything = eva.load_data(root if name == "cifar10" else "digits")[0]
    order = torch.randperm(len(everything), generator=generator)
    if name == "cifar10":
        return everything[order[5000:][:8192]], everything[order[:5000]]
    splits = everything[order[:800]], everything[order[800:]]
    if name == "digits":
        return splits
    pairs = []
    for part, n in zip(splits, (8192, 2000), strict=True):
        left, right = torch.randint(len(part), (2, n), generator=generator)
        small = part.pixels[:, ::2, ::2]
        labels = 10 * part.labels[left] + part.labels[right]
        pairs.append((torch.cat([small[left], small[right]], 2).numpy(), labels.numpy()))
    return eva.from_arrays(*pairs, [f"{number:02}" for number in range(100)], "pairs")


def prepared(setting: Setting, seed: int, root: str) -> tuple:
    """(model, images to train on, held out, Recipe)."""
    train, held_out = images(setting.data, root)
    torch.manual_seed(seed)
    augment = {"cifar10": eva.Augment(), "digits": eva.Augment(flip=False), "pairs": None}[setting.data]
    recipe = eva.Recipe(batch_size=setting.batch, seed=seed, augment=augment, optimizer=setting.optimizer,
                        momentum=setting.momentum, weight_decay=setting.decay)  # fmt: skip
    return network(setting.network, train), train, held_out, recipe


def curves(setting: Setting, seed: int, root: str) -> Curves:
    """The range tests that the rules are read off: rates and losses, five digits of each."""
    model, train, _, recipe = prepared(setting, seed, root)
    tests = TESTS if setting.optimizer == "sgd" else ADAMW
    found = {name: range_test(model, train, recipe, **test) for name, test in tests.items()}
    digits = {name: [[float(f"{x:.5g}") for x in values] for values in both] for name, both in found.items()}
    return {name: {"lr": lr, "loss": loss} for name, (lr, loss) in digits.items()}


def free(rule: str, setting: Setting) -> tuple[float, object]:
    """The default rate of a method that needs none found, and a function that makes its optimizer."""
    decay = {"weight_decay": setting.decay}
    if rule == "Prodigy":
        from prodigyopt import Prodigy

        return 1.0, lambda parameters: Prodigy(parameters, **decay)
    import schedulefree

    adamw = setting.optimizer == "adamw"

    def make(parameters):
        optimizer = (schedulefree.AdamWScheduleFree if adamw else schedulefree.SGDScheduleFree)(parameters, **decay)
        optimizer.train()
        return optimizer

    return 0.0025 if adamw else 1.0, make


def accuracy(setting: Setting, seed: int, rule: str, pair: Pair, root: str) -> dict:
    """Held-out accuracy (%) of one run, with its last weights and with the average; failed: loss not finite, or no
    better than half as much again as chance."""
    model, train, held_out, recipe = prepared(setting, seed, root)
    device, epochs = choose_device(), setting.epochs
    precision = choose_precision(device)
    if device.type == "cpu":
        keep_memory()
    schedule = eva.OneCycle(epochs, epochs * 5 / 24, *pair) if pair[0] < pair[1] else None
    if schedule is None:
        rate, make = free(rule, setting)
        recipe = recipe.replace(optimizer=make)
        # As their authors advise: no schedule without schedules, and half a cosine down to nothing with Prodigy.
        schedule = Cycle(epochs, 0, rate, rate, 0.0 if rule == "Prodigy" else rate, cosine=True)
    trainer = Trainer(model, loader(train, recipe, device), schedule, recipe, precision)
    chance = 100 / len(train.classes)
    try:
        for _ in range(epochs):
            trainer.history.append(trainer.epoch())
        if rule == "schedule-free":  # to the weights that it is about, and with BatchNorm's statistics of these
            trainer.optimizer.eval()
            with autocast(device, precision):
                torch.optim.swa_utils.update_bn(trainer.batches.epoch(0), trainer.model)
            trainer.ema = trainer.model  # an average already
        found = trainer.test(held_out)
    except eva.InputError:
        return {"raw": chance, "ema": chance, "failed": True}
    raw = found["test_accuracy"]
    return {"raw": raw, "ema": found["test_accuracy_ema"], "failed": raw < 1.5 * chance}


def done(rows: Rows, setting: Setting, seed: int, rule: str, pair: Pair | None = None) -> dict | None:
    key = {"lr_min": pair[0], "lr_max": pair[1]} if pair else {}
    return rows.find(**asdict(setting), seed=seed, rule=rule, **key)


def run(rows: Rows, task: Task, root: str) -> dict:
    """One row: the curves of the range tests, or the accuracy with the rates of a rule."""
    (setting, seed, rule, pair), begun = task, time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        if pair is None:
            name = images(setting.data, root)[0].name
            found = {"curves": curves(setting, seed, root), "pictures": name, **machine()}
        else:
            found = {"lr_min": pair[0], "lr_max": pair[1], **accuracy(setting, seed, rule, pair, root)}
    seconds = round(time.perf_counter() - begun, 1)
    return rows.add({**asdict(setting), "seed": seed, "rule": rule, **found, "seconds": seconds})


def pairs(rows: Rows, setting: Setting, seed: int) -> dict[str, Pair]:
    """The rates of each rule; none of ours if it cannot read the curve. Of methods that need none: (1, 1)."""
    stored, classes = done(rows, setting, seed, "range test")["curves"], 100 if setting.data == "pairs" else 10
    found = rates(stored, classes)
    if setting.bare and "ours" in found:
        found = rates(stored, classes, BARE) | {WHOLE: found["ours"]}
    return {rule: found.get(rule, (1.0, 1.0)) for rule in (*RULES, WHOLE) if rule in found or rule in RULES[-2:]}


def grid(rows: Rows, setting: Setting) -> dict[float, float | None]:
    """LR_MAX -> mean accuracy over the seeds, None where it has not been trained with."""
    found = [pairs(rows, setting, seed) for seed in SEEDS]
    middles = [each.get(WHOLE) or each.get("ours") or each["lowest / 10"] for each in found]
    middle = mean(math.log2(lr_max / 0.1) for _, lr_max in middles)
    low = math.floor(middle) - GRID // 2 + 1
    high = low + GRID - 1
    while True:
        tried = {}
        for rate in (0.1 * 2**k for k in range(low, high + 1)):
            runs = [done(rows, setting, seed, "grid", (rate / RATIO, rate)) for seed in SEEDS]
            tried[rate] = mean(row["raw"] for row in runs) if all(runs) else None
        if None in tried.values() or len(tried) >= MOST:
            return tried
        best = list(tried).index(max(tried, key=tried.get))
        if 0 < best < high - low:
            return tried
        low, high = (low - 1, high) if best == 0 else (low, high + 1)


def missing(rows: Rows, settings: list[Setting]) -> Iterator[Task]:
    """What is still to be run. Each task is expected to be done before the next is asked for."""
    for setting in settings:
        for seed in SEEDS:
            if not done(rows, setting, seed, "range test"):
                yield setting, seed, "range test", None
        for seed in SEEDS:
            for rule, pair in pairs(rows, setting, seed).items():
                if not done(rows, setting, seed, rule, pair):
                    yield setting, seed, rule, pair
        while None in (tried := grid(rows, setting)).values():
            for rate in tried:
                for seed in SEEDS:
                    if not done(rows, setting, seed, "grid", pair := (rate / RATIO, rate)):
                        yield setting, seed, "grid", pair


def judged(rows: Rows, setting: Setting) -> tuple[float, float, dict[str, list[dict]]] | None:
    """The grid's best LR_MAX, its accuracy, and each rule's trainings; None of a setting that is not complete."""
    if next(missing(rows, [setting]), None):
        return None
    tried, found = grid(rows, setting), [pairs(rows, setting, seed) for seed in SEEDS]
    best = max(tried, key=tried.get)
    return best, tried[best], {
        rule: [done(rows, setting, seed, rule, pair[rule]) for seed, pair in enumerate(found) if rule in pair]
        for rule in (*RULES, WHOLE)
    }  # fmt: skip


def counted(rows: Rows) -> dict[Setting, tuple]:
    """The complete ones of SETTINGS, but for those whose curves ours refuses to read."""
    found = {setting: judged(rows, setting) for setting in SETTINGS}
    return {setting: values for setting, values in found.items() if values and values[2]["ours"]}


def summary(rows: Rows) -> str:
    """What each rule loses, in Markdown: mean and worst setting of three groups; settings above 1 point; failures."""
    groups = {
        "SGD": [setting for setting in SETTINGS if setting.optimizer == "sgd"],
        "SGD, BN": [setting for setting in SETTINGS if setting.optimizer == "sgd" and not setting.bare],
        "AdamW": [setting for setting in SETTINGS if setting.optimizer == "adamw"],
    }
    complete, lines = counted(rows), []
    for rule in RULES:
        runs = {setting: trained[rule] for setting, (_, _, trained) in complete.items() if trained[rule]}
        lost = {setting: complete[setting][1] - mean(row["raw"] for row in some) for setting, some in runs.items()}
        cells = []
        for group in groups.values():
            some = [lost[setting] for setting in group if setting in lost]
            cells += [f"{statistic(some):.1f}" if some else "" for statistic in (mean, max)]
        failed = [row["failed"] for some in runs.values() for row in some]
        above, maxima = sum(points > 1 for points in lost.values()), [[r["lr_max"] for r in s] for s in runs.values()]
        moved = f"{median(max(some) / min(some) for some in maxima):.1f}" if rule in RULES[:4] and maxima else ""
        lines.append([rule, *cells, f"{above} of {len(lost)}", f"{sum(failed)} of {len(failed)}", moved])
    head = ["rule", *(f"{name}: {what}" for name in groups for what in ("mean", "worst"))]
    head += ["above 1", "at chance", "seeds"]
    devices = dict.fromkeys(where(row) for row in rows.rows if "curves" in row)
    tried = sum(judged(rows, setting) is not None for setting in SETTINGS)
    others = {"left out: ours refuses the curve": tried - len(complete), "not measured": len(SETTINGS) - tried}
    others = "; ".join(f"{n} {words}" for words, n in others.items() if n)
    title = f"{len(complete)} of {len(SETTINGS)} settings{f' ({others})' * bool(others)}, {len(SEEDS)} seeds each"
    title += f"; {'; '.join(devices)}; points lost"
    return f"{title}:\n\n{markdown(head, lines)}"


def details(rows: Rows) -> str:
    """Every complete setting, those of other lengths too: the grid's best and what each rule loses, in Markdown."""
    lines = []
    for setting in ALL:
        if found := judged(rows, setting):
            best, accuracy_, runs = found
            cells = []
            for some in runs.values():
                marks = "*" * sum(row["failed"] for row in some) + " refused" * (0 < len(some) < len(SEEDS))
                cells.append((f"{accuracy_ - mean(row['raw'] for row in some):.1f}" if some else "") + marks)
            maxima = ", ".join(f"{row['lr_max']:.2g}" for row in runs["ours"]) or "refused"
            name = f"{setting}{' (not counted above)' * (setting in OTHERS)}"
            lines.append([name, f"{best:.2g}", f"{accuracy_:.1f}", *cells, maxima])
    return "Points lost by each rule:\n\n" + markdown(
        ["setting", "best LR_MAX", "accuracy", *RULES, WHOLE, "LR_MAX found"], lines
    )


@styled
def draw(rows: Rows) -> Picture:
    """For each rule that gives rates: what every training loses, against how far its LR_MAX is from the grid's best."""
    rules, complete = RULES[:4], counted(rows)
    figure = Picture(9, 3.9, f"Four rules: what their LR_MAX costs, {len(complete)} settings, {len(SEEDS)} seeds each")
    panels = figure.subplots(1, len(rules), sharex=True, sharey=True)
    for ax, rule in zip(panels, rules, strict=True):
        ax.axvline(1, color=".5", lw=1)
        ax.set(title=rule, xscale="log", yscale="log", xlabel="its LR_MAX / the best")
        for kind, color, marker in (("sgd", BLUE, "o"), ("adamw", ORANGE, "s")):
            points = [
                (row["lr_max"] / best, max(accuracy_ - row["raw"], 0.1))
                for setting, (best, accuracy_, runs) in complete.items()
                for row in runs[rule] if setting.optimizer == kind
            ]  # fmt: skip
            x, y = [[point[axis] for point in points] for axis in (0, 1)]
            ax.plot(x, y, marker, ms=5, color=color, alpha=0.6, mew=0, label={"sgd": "SGD", "adamw": "AdamW"}[kind])
    panels[0].set(ylabel="points lost (bottom: 0.1 or less)", xlim=(1e-4, 1e2), xticks=[0.01, 1, 100], ylim=(0.09, 100))
    for axis in (panels[0].yaxis, *(ax.xaxis for ax in panels)):
        axis.set_major_formatter("{x:g}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10 (its archive in data/), or an image folder")
    parser.add_argument("--out", type=Path, default=ASSETS / "lr_study.json")
    args = parser.parse_args()
    rows = Rows(args.out)
    print(machine())
    for task in missing(rows, ALL):
        row = run(rows, task, args.data)
        print({key: value for key, value in row.items() if key != "curves"}, flush=True)
    print(summary(rows), details(rows), sep="\n")
    print(eva.plots.save(draw(rows), args.out.with_suffix(".png")))


if __name__ == "__main__":
    main()
