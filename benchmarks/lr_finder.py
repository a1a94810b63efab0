"""Are the found rates as good as searched ones? Regret of four rules, and what LR_MIN is worth.

    python benchmarks/lr_finder.py --data data/cifar10-jpeg     # about two hours on two cores; goes on where it stopped

For each setting and seed, short one-cycle runs with every LR_MAX of a grid (LR_MIN a twentieth of it) and with the
rates that each rule reads off its range test; accuracy on images held out of the *training* set. Regret is the best of
the grid (mean over the seeds) minus the rule's mean. No setting here is one that the rule in eva_utils was chosen on.
Writes assets/benchmarks/lr_finder.json, a row a run, and prints the tables; --tables prints them alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import numpy as np
import torch

import eva_utils as eva
from common import ASSETS, Rows, machine
from eva_utils.batches import loader
from eva_utils.lr_finder import choose_rates, range_test
from eva_utils.precision import choose_device, choose_precision, keep_memory
from eva_utils.trainer import Trainer

GRID = [0.0125 * 2**k for k in range(9)]  # 0.0125 .. 3.2
RATIO = 20  # LR_MAX over LR_MIN on the grid, and for the rules that say nothing of LR_MIN
RATIOS = [5, 10, 20, 40, 100]  # of the study of LR_MIN
SEEDS = range(3)
# Ours, torch-lr-finder's own defaults, and fastai's (its smoothing, like torch-lr-finder's, is part of the rule).
TESTS = {
    "eva_utils": {"lr_start": 1e-3, "lr_end": 10.0, "steps": 90},
    "torch-lr-finder": {"lr_start": 1e-4, "lr_end": 10.0, "steps": 100},
    "fastai": {"lr_start": 1e-7, "lr_end": 10.0, "steps": 100},
}
RULES = ("eva_utils", "lowest", "steepest", "valley")
TRAIN, HELD_OUT, EPOCHS = 10_000, 5_000, 5  # CIFAR-10
DIGITS_HELD_OUT, DIGITS_EPOCHS = 300, 20


@dataclass(frozen=True)
class Setting:
    data: str
    width: int
    batch: int
    logits: str
    smoothing: float

    def __str__(self) -> str:
        smoothing = f"smoothing {self.smoothing:g}" if self.smoothing else "no smoothing"
        return f"{self.data}, width {self.width}, batch {self.batch}, {self.logits} logits, {smoothing}"


# Two more, the first and the last of batch 512 and width 16, were the ones that LEARNS and TURNS were chosen on.
SETTINGS = [
    Setting("digits", 16, 128, "scaled", 0.2),
    Setting("digits", 16, 128, "plain", 0.0),
    Setting("digits", 16, 512, "scaled", 0.0),
    Setting("digits", 32, 128, "plain", 0.2),
    Setting("cifar10", 16, 128, "scaled", 0.2),
    Setting("cifar10", 16, 128, "plain", 0.0),
    Setting("cifar10", 16, 512, "scaled", 0.0),
    Setting("cifar10", 16, 512, "plain", 0.2),
    Setting("cifar10", 16, 128, "scaled", 0.0),
    Setting("cifar10", 16, 128, "plain", 0.2),
    Setting("cifar10", 32, 512, "scaled", 0.2),
    Setting("cifar10", 32, 512, "plain", 0.0),
]
LR_MIN_SETTINGS = [SETTINGS[0], SETTINGS[4], SETTINGS[6], SETTINGS[7]]


@cache
def images(name: str, root: str) -> tuple[eva.Images, eva.Images]:
    """(to train on, held out), both from the training set."""
    if name == "digits":
        everything, held_out, n = eva.digits()[0], DIGITS_HELD_OUT, None
    else:
        everything = eva.cifar10(root)[0] if not (Path(root) / "train").is_dir() else eva.image_folder(root)[0]
        held_out, n = HELD_OUT, TRAIN
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1))
    return everything[order[held_out:][:n]], everything[order[:held_out]]


def network(setting: Setting, seed: int) -> eva.ResNet9:
    torch.manual_seed(seed)
    return eva.ResNet9(10, setting.width, logit_scale=0.125 if setting.logits == "scaled" else 1.0)


def augment(setting: Setting) -> eva.Augment:
    return eva.Augment(flip=False) if setting.data == "digits" else eva.Augment()


def curves(setting: Setting, seed: int, root: str) -> dict[str, dict[str, list[float]]]:
    """The range tests that the rules are read off: rates and losses, five digits of each."""
    train, _ = images(setting.data, root)
    model = network(setting, seed)
    batches = loader(train, augment(setting), setting.batch, seed=seed, device=choose_device())
    out = {}
    for name, test in TESTS.items():
        lr, loss = range_test(model, batches, **test, label_smoothing=setting.smoothing)
        out[name] = {"lr": [float(f"{x:.5g}") for x in lr], "loss": [float(f"{x:.5g}") for x in loss]}
    return out


def rates(curves: dict[str, dict[str, list[float]]]) -> dict[str, tuple[float, float]]:
    """(lr_min, lr_max) of each rule."""
    lr, loss = (np.array(values) for values in curves["eva_utils"].values())
    ours = tuple(choose_rates(lr, loss)[:2])
    lr, loss = (np.array(values) for values in curves["torch-lr-finder"].values())
    smooth = exponential(loss, 0.05)
    inner = slice(10, -5)
    found = {"lowest": lr[np.nanargmin(smooth)], "steepest": lr[inner][np.gradient(smooth[inner]).argmin()]}
    lr, loss = (np.array(values) for values in curves["fastai"].values())
    found["valley"] = lr[10:-5][valley(corrected(loss, 0.98)[10:-5])]
    return {"eva_utils": ours, **{rule: (float(rate) / RATIO, float(rate)) for rule, rate in found.items()}}


def exponential(loss: np.ndarray, new: float) -> np.ndarray:
    """torch-lr-finder's smoothing: ``new`` of the new value, the rest of the smoothed one before."""
    out = loss.copy()
    for i in range(1, len(loss)):
        out[i] = new * loss[i] + (1 - new) * out[i - 1]
    return out


def corrected(loss: np.ndarray, old: float) -> np.ndarray:
    """An exponential average that starts at zero, divided by the weight it has so far."""
    out, average = [], 0.0
    for i, value in enumerate(loss):
        average = old * average + (1 - old) * value
        out.append(average / (1 - old ** (i + 1)))
    return np.array(out)


def valley(loss: np.ndarray) -> int:
    """fastai's rule: half-way into the longest falling subsequence of the curve."""
    length = np.ones(len(loss), dtype=int)
    for i in range(1, len(loss)):
        before = length[:i][loss[:i] > loss[i]]
        length[i] = 1 + (before.max() if len(before) else 0)
    end = int(length.argmax())
    return max(0, end - int(length[end]) + int(length[end] / 3) + int(length[end] / 6))


def accuracy(setting: Setting, seed: int, lr_min: float, lr_max: float, root: str) -> dict:
    """Held-out accuracy (%) of one short run, with its last weights and with the average; diverged: loss not finite."""
    train, held_out = images(setting.data, root)
    device = choose_device()
    precision = choose_precision(device)
    if device.type == "cpu":
        keep_memory()
    epochs = DIGITS_EPOCHS if setting.data == "digits" else EPOCHS
    batches = loader(train, augment(setting), setting.batch, seed=seed, device=device)
    settings = {"seed": seed, "momentum": 0.9, "weight_decay": 5e-4, "label_smoothing": setting.smoothing, "ema": 0.05}
    schedule = eva.OneCycle(epochs, epochs * 5 / 24, lr_min, lr_max)
    trainer = Trainer(network(setting, seed), batches, schedule, settings, precision)
    try:
        for epoch in range(epochs):
            trainer.train_epoch(epoch)
    except eva.InputError:
        return {"raw": 10.0, "ema": 10.0, "diverged": True}
    raw, ema = (eva.evaluate(model, held_out).accuracy for model in (trainer.model, trainer.ema.module))
    return {"raw": raw, "ema": ema, "diverged": False}


def task(setting: Setting, seed: int, root: str, pair: tuple[float, float] | None) -> dict:
    """One row: the curves of the range tests, or the accuracy with the rates ``pair``."""
    key = {**asdict(setting), "seed": seed}
    with contextlib.redirect_stdout(io.StringIO()):
        if pair is None:
            return {**key, "curves": curves(setting, seed, root)}
        return {**key, "lr_min": pair[0], "lr_max": pair[1], **accuracy(setting, seed, *pair, root)}


def found_rates(rows: Rows, setting: Setting, seed: int) -> dict[str, tuple[float, float]] | None:
    key = {**asdict(setting), "seed": seed}
    row = next((row for row in rows.rows if "curves" in row and key.items() <= row.items()), None)
    return None if row is None else rates(row["curves"])


def wanted(rows: Rows) -> list[tuple[Setting, int, tuple[float, float] | None]]:
    """What is still to be run, in an order in which partial results are of use: setting by setting."""
    todo = []
    for setting in SETTINGS:
        for seed in SEEDS:
            key = {**asdict(setting), "seed": seed}
            found = found_rates(rows, setting, seed)
            if found is None:
                todo.append((setting, seed, None))
                continue
            pairs = [(rate / RATIO, rate) for rate in GRID] + list(found.values())
            if setting in LR_MIN_SETTINGS:
                pairs += [(found["eva_utils"][1] / ratio, found["eva_utils"][1]) for ratio in RATIOS]
            todo += [(setting, seed, p) for p in pairs if not rows.find(**key, lr_min=p[0], lr_max=p[1])]
    return todo


def run(rows: Rows, jobs: int, root: str) -> None:
    # One process a core with one thread each: several times faster than threads that wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for kind in ("curves", "runs"):  # the second list depends on what was read off the first
            todo = [t for t in wanted(rows) if (t[2] is None) == (kind == "curves")]
            futures = [pool.submit(task, setting, seed, root, pair) for setting, seed, pair in todo]
            for i, future in enumerate(as_completed(futures)):
                row = rows.add(future.result())
                shown = {key: value for key, value in row.items() if key != "curves"}
                print(f"{kind} {i + 1}/{len(todo)}  {shown}", flush=True)


def tables(rows: Rows, which: str) -> str:
    """Regret of each rule, and accuracy against LR_MIN, in Markdown; ``which`` accuracy: "raw" or "ema"."""

    def score(setting: Setting, seed: int, pair) -> float:
        return rows.find(**asdict(setting), seed=seed, lr_min=pair[0], lr_max=pair[1])[which]

    lines = ["| setting | best LR_MAX | accuracy | " + " | ".join(RULES) + " | LR_MAX found |"]
    lines += ["|---|---|---|" + "---|" * (len(RULES) + 1)]
    regrets: dict[str, list[float]] = {rule: [] for rule in RULES}
    complete = [s for s in SETTINGS if not any(setting == s for setting, _, _ in wanted(rows))]
    for setting in complete:
        grid = {rate: mean(score(setting, seed, (rate / RATIO, rate)) for seed in SEEDS) for rate in GRID}
        best = max(grid, key=grid.get)
        found = [found_rates(rows, setting, seed) for seed in SEEDS]
        for rule in RULES:
            got = mean(score(setting, seed, found[seed][rule]) for seed in SEEDS)
            regrets[rule].append(grid[best] - got)
        maxima = ", ".join(f"{f['eva_utils'][1]:.2g}" for f in found)
        cells = " | ".join(f"{regrets[rule][-1]:.1f}" for rule in RULES)
        lines.append(f"| {setting} | {best:.3g} | {grid[best]:.1f} | {cells} | {maxima} |")
    for name, statistic in (("mean", mean), ("worst", max)):
        if complete:
            lines.append(f"| **{name}** | | | " + " | ".join(f"{statistic(regrets[r]):.1f}" for r in RULES) + " | |")
    lines += ["", "| setting, at the LR_MAX found | " + " | ".join(f"/{r}" for r in RATIOS) + " | LR_MIN found |"]
    lines += ["|---|" + "---|" * (len(RATIOS) + 1)]
    for setting in (s for s in LR_MIN_SETTINGS if s in complete):
        pairs = [found_rates(rows, setting, seed)["eva_utils"] for seed in SEEDS]
        cells = [mean(score(setting, s, (pairs[s][1] / ratio, pairs[s][1])) for s in SEEDS) for ratio in RATIOS]
        cells.append(mean(score(setting, s, pairs[s]) for s in SEEDS))
        lines.append(f"| {setting} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder with train/ and test/, or with the archive")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else os.cpu_count())
    parser.add_argument("--out", type=Path, default=ASSETS / "lr_finder.json")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there, run nothing")
    args = parser.parse_args()
    rows = Rows(args.out)
    if not args.tables:
        print(machine())
        run(rows, args.jobs, args.data)
    for which in ("raw", "ema"):
        print(f"\n{which} weights\n\n{tables(rows, which)}")


if __name__ == "__main__":
    main()
