"""Are the found rates as good as searched ones? Regret of four rules, and what LR_MIN is worth.

    python benchmarks/lr_finder.py --data data/cifar10-jpeg     # some hours on two cores; goes on where it stopped

For each setting and seed, short one-cycle runs with every LR_MAX of a grid (LR_MIN a twentieth of it) and with the
pair that ``find_lr`` reads off its range test; accuracy on images held out of the *training* set. Regret is the best of
the grid (mean over the seeds) minus a rule's mean. The rule was chosen on other settings than those it is judged on.
Writes assets/benchmarks/lr_finder.json, a row a run, and draws; prints the tables. --tables runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import numpy as np
import torch

import eva_utils as eva
from common import ASSETS, NAMES, Rows, machine, markdown, where
from eva_utils import plots
from eva_utils.batches import loader
from eva_utils.lr_curve import BEYOND, choose_rates
from eva_utils.lr_finder import range_test
from eva_utils.plots._base import COLORS, Picture, styled
from eva_utils.precision import choose_device, choose_precision, keep_memory
from eva_utils.trainer import Trainer

GRID = [0.0125 * 2**k for k in range(9)]  # 0.0125 .. 3.2
RATIO = 20  # LR_MAX over LR_MIN on the grid, and for the rules that say nothing of LR_MIN
RATIOS = [5, 10, 20, 40, 100]  # of the study of LR_MIN
SEEDS = range(3)
# Ours, which "lowest" and "steepest" are read off as well, and fastai's own, because its range is part of its rule.
TESTS = {
    "eva_utils": {"lr_start": 1e-3, "lr_end": 10.0, "steps": 90},
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
        smoothing = f"label smoothing {self.smoothing:g}" if self.smoothing else "no label smoothing"
        data = "digits" if self.data == "digits" else NAMES["cifar10-jpeg"]
        return f"{data}, width {self.width}, batch {self.batch}, {self.logits} logits, {smoothing}"


SETTINGS = [
    Setting("digits", 16, 128, "scaled", 0.2),
    Setting("digits", 16, 128, "plain", 0.0),
    Setting("cifar10", 16, 128, "scaled", 0.2),
    Setting("cifar10", 16, 128, "plain", 0.0),
    Setting("cifar10", 16, 512, "scaled", 0.0),
    Setting("cifar10", 16, 512, "plain", 0.2),
    Setting("digits", 16, 512, "scaled", 0.0),
    Setting("digits", 16, 512, "plain", 0.2),
    Setting("cifar10", 16, 128, "scaled", 0.0),
    Setting("cifar10", 16, 128, "plain", 0.2),
    Setting("digits", 32, 128, "plain", 0.2),
    Setting("cifar10", 32, 512, "scaled", 0.2),
]
NEAR = 6  # points
# The rule in eva_utils was chosen on these. All but the first seed only where it matters.
CHOSEN_ON = [
    Setting("cifar10", 16, 512, "scaled", 0.2),
    Setting("cifar10", 16, 512, "plain", 0.0),
    Setting("cifar10", 16, 256, "scaled", 0.0),
    Setting("cifar10", 16, 256, "plain", 0.2),
    Setting("digits", 16, 256, "scaled", 0.2),
    Setting("digits", 16, 256, "plain", 0.0),
    Setting("cifar10", 32, 256, "scaled", 0.2),
]
# What LR_MIN is worth: in some of both, at the LR_MAX found.
LR_MIN_SETTINGS = [CHOSEN_ON[0], CHOSEN_ON[3], SETTINGS[4], SETTINGS[5]]


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
        if setting in CHOSEN_ON and name != "eva_utils":
            continue  # the others' rules are what they are
        lr, loss = range_test(model, batches, **test, label_smoothing=setting.smoothing)
        out[name] = {"lr": [float(f"{x:.5g}") for x in lr], "loss": [float(f"{x:.5g}") for x in loss]}
    return out


def ours(curves: dict[str, dict[str, list[float]]]) -> tuple[float, float]:
    """(lr_min, lr_max) as ``find_lr`` gives them."""
    return tuple(choose_rates(*(np.array(values) for values in curves["eva_utils"].values()))[:2])


def rates(curves: dict[str, dict[str, list[float]]]) -> dict[str, tuple[float, float]]:
    """(lr_min, lr_max) of each rule."""
    lr, loss = (np.array(values) for values in curves["eva_utils"].values())
    smooth = exponential(loss, 0.05)
    inner = slice(10, -5)
    found = {"lowest": lr[np.nanargmin(smooth)], "steepest": lr[inner][np.gradient(smooth[inner]).argmin()]}
    lr, loss = (np.array(values) for values in curves["fastai"].values())
    found["valley"] = lr[10:-5][valley(corrected(loss, 0.98)[10:-5])]
    return {"eva_utils": ours(curves), **{rule: (float(rate) / RATIO, float(rate)) for rule, rate in found.items()}}


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
    settings = {"seed": seed, "momentum": 0.9, "weight_decay": 1e-3, "label_smoothing": setting.smoothing, "ema": 0.05}
    schedule = eva.OneCycle(epochs, epochs * 5 / 24, lr_min, lr_max)
    trainer = Trainer(network(setting, seed), batches, schedule, settings, precision)
    try:
        for epoch in range(epochs):
            trainer.train_epoch(epoch)
    except eva.InputError:
        return {"raw": 10.0, "ema": 10.0, "diverged": True}
    raw, ema = (eva.evaluate(model, held_out).accuracy for model in (trainer.model, trainer.ema))
    return {"raw": raw, "ema": ema, "diverged": False}


def task(setting: Setting, seed: int, root: str, pair: tuple[float, float] | None) -> dict:
    """One row: the curves of the range tests, or the accuracy with the rates ``pair``."""
    key = {**asdict(setting), "seed": seed}
    with contextlib.redirect_stdout(io.StringIO()):
        if pair is None:
            return {**key, **machine(), "curves": curves(setting, seed, root)}
        found = accuracy(setting, seed, *pair, root)
        return {**key, "lr_min": pair[0], "lr_max": pair[1], **found, "device": machine()["device"]}


def curves_of(rows: Rows, setting: Setting, seed: int) -> dict | None:
    key = {**asdict(setting), "seed": seed}
    return next((row["curves"] for row in rows.rows if "curves" in row and key.items() <= row.items()), None)


def wanted(rows: Rows, rules: bool = True) -> list[tuple[Setting, int, tuple[float, float] | None]]:
    """What is still to be run, in an order in which partial results are of use: setting by setting.

    Without ``rules``: only what does not depend on how a curve is read.
    """
    todo = []
    for setting in SETTINGS + CHOSEN_ON:
        for seed in SEEDS:
            key = {**asdict(setting), "seed": seed}
            if not curves_of(rows, setting, seed):
                todo.append((setting, seed, None))
                continue
            pairs = [(rate / RATIO, rate) for rate in grid_of(rows, setting, seed)]
            if rules:
                found = ours(curves_of(rows, setting, seed))
                pairs += [found] if setting in SETTINGS + LR_MIN_SETTINGS else []
                pairs += [(found[1] / ratio, found[1]) for ratio in RATIOS if setting in LR_MIN_SETTINGS]
            todo += [(setting, seed, p) for p in pairs if not rows.find(**key, lr_min=p[0], lr_max=p[1])]
    return todo


def grid_of(rows: Rows, setting: Setting, seed: int) -> list[float]:
    """The LR_MAX to train with: the whole grid; of a setting for choosing, with all seeds but the first, only those
    with which the first came within NEAR points of its best (none before it is done).
    """
    if setting in SETTINGS or seed == SEEDS[0]:
        return GRID
    key = {**asdict(setting), "seed": SEEDS[0]}
    first = {rate: rows.find(**key, lr_min=rate / RATIO, lr_max=rate) for rate in GRID}
    if not all(first.values()):
        return []
    return [rate for rate, row in first.items() if row["raw"] >= max(r["raw"] for r in first.values()) - NEAR]


def run(rows: Rows, jobs: int, root: str, rules: bool) -> None:
    # One process a core with one thread each: several times faster than threads that wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {}
        while True:
            # Anew each time: which rates are to be run depends on the curves that came back.
            todo = [t for t in wanted(rows, rules) if t not in running.values()]
            for setting, seed, pair in todo[: jobs - len(running)]:
                running[pool.submit(task, setting, seed, root, pair)] = setting, seed, pair
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                row = rows.add(future.result())
                print({key: value for key, value in row.items() if key != "curves"}, len(todo), "to go", flush=True)


def complete(rows: Rows) -> list[Setting]:
    """The settings of which every run is there."""
    todo = {setting for setting, _, _ in wanted(rows)}
    return [setting for setting in SETTINGS if setting not in todo]


def devices(rows: Rows) -> str:
    """What the rows were measured on."""
    heads = [row for row in rows.rows if "curves" in row]
    return "; ".join(dict.fromkeys(where(row) for row in heads))


def score(rows: Rows, setting: Setting, pairs: dict[int, tuple[float, float]], which: str = "raw") -> float:
    """Mean held-out accuracy with seed -> (lr_min, lr_max); ``which``: "raw" or "ema"."""
    key = asdict(setting)
    return mean(
        rows.find(**key, seed=seed, lr_min=lr_min, lr_max=lr_max)[which] for seed, (lr_min, lr_max) in pairs.items()
    )


def score_by(
    rule: str, rows: Rows, setting: Setting, pairs: dict[int, tuple[float, float]], which: str = "raw"
) -> float:
    """The same for what ``rule`` found. Ours is trained with; for the others, whose LR_MIN is that of the grid, the
    grid of the same seed is read between its points. Beyond its ends, that is the value at the end: too kind to them.
    """
    if rule == "eva_utils":
        return score(rows, setting, pairs, which)
    values = []
    for seed, (_, lr_max) in pairs.items():
        grid = [score(rows, setting, {seed: (rate / RATIO, rate)}, which) for rate in GRID]
        values.append(float(np.interp(np.log(lr_max), np.log(GRID), grid)))
    return mean(values)


def on_grid(rows: Rows, setting: Setting, which: str = "raw") -> dict[float, float]:
    """LR_MAX -> mean accuracy."""
    return {rate: score(rows, setting, dict.fromkeys(SEEDS, (rate / RATIO, rate)), which) for rate in GRID}


def by_rule(rows: Rows, setting: Setting) -> dict[str, dict[int, tuple[float, float]]]:
    """Rule -> seed -> (lr_min, lr_max)."""
    found = {seed: rates(curves_of(rows, setting, seed)) for seed in SEEDS}
    return {rule: {seed: pairs[rule] for seed, pairs in found.items()} for rule in RULES}


def regret(rows: Rows, which: str = "raw") -> str:
    """Regret of each rule in each setting, in Markdown."""
    head = ["setting", "best LR_MAX", "accuracy", *RULES, "LR_MAX found"]
    lines, regrets = [], {rule: [] for rule in RULES}
    for setting in complete(rows):
        grid = on_grid(rows, setting, which)
        best = max(grid, key=grid.get)
        found = by_rule(rows, setting)
        for rule, pairs in found.items():
            regrets[rule].append(grid[best] - score_by(rule, rows, setting, pairs, which))
        maxima = ", ".join(f"{lr_max:.2g}" for _, lr_max in found["eva_utils"].values())
        cells = [f"{round(regrets[rule][-1], 1) + 0:.1f}" for rule in RULES]
        lines.append([str(setting), f"{best:.3g}", f"{grid[best]:.1f}", *cells, maxima])
    for name, statistic in (("mean", mean), ("worst", max)):
        if lines:
            lines.append([f"**{name}**", "", "", *(f"**{statistic(regrets[rule]):.1f}**" for rule in RULES), ""])
    return markdown(head, lines)


def lr_min(rows: Rows) -> str:
    """Accuracy, last weights / average, for the LR_MAX found and several LR_MIN, in Markdown."""
    lines = []
    waiting = {setting for setting, _, _ in wanted(rows)}
    for setting in (setting for setting in LR_MIN_SETTINGS if setting not in waiting):
        found = {seed: ours(curves_of(rows, setting, seed)) for seed in SEEDS}
        choices = [{s: (lr_max / ratio, lr_max) for s, (_, lr_max) in found.items()} for ratio in RATIOS] + [found]
        share = " to ".join(f"1/{f([b / a for a, b in found.values()]):.0f}" for f in (min, max))
        cells = [" / ".join(f"{score(rows, setting, pairs, w):.1f}" for w in ("raw", "ema")) for pairs in choices]
        lines.append([str(setting), *cells, share])
    return markdown(["setting", *(f"LR_MAX/{ratio}" for ratio in RATIOS), "as found", "which is LR_MAX times"], lines)


@styled
def draw(rows: Rows) -> Picture:
    """For each rule: what every setting and seed loses by its LR_MAX, against how far that is from the grid's best."""
    figure = Picture(9, 3.4)
    panels = figure.subplots(1, len(RULES), sharex=True, sharey=True)
    for ax, rule in zip(panels, RULES, strict=True):
        for setting in complete(rows):
            grid = on_grid(rows, setting)
            best = max(grid, key=grid.get)
            for seed, pair in by_rule(rows, setting)[rule].items():
                lost = grid[best] - score_by(rule, rows, setting, {seed: pair})
                color = COLORS[setting.logits == "plain"]
                ax.plot(pair[1] / best, max(lost, 0.1), "o", ms=5, color=color, alpha=0.6, mew=0)
        ax.axvline(1, color=".5", lw=1)
        ax.set(title=rule, xscale="log", yscale="log", xlabel="its LR_MAX / the best")
    panels[0].set(ylabel="accuracy lost (points)", xlim=(1e-3, 1e3), ylim=(0.09, 100))
    return figure


@styled
def draw_choice(rows: Rows) -> Picture:
    """How BEYOND was chosen: accuracy lost against LR_MAX, counted from the rate at half of the loss's fall.

    A point is a training; each seed is counted from its own curve and its own best.
    """
    figure = Picture(9, 5)
    ax = figure.subplots()
    for i, setting in enumerate(CHOSEN_ON):
        lost = []
        for seed in SEEDS:
            rates = grid_of(rows, setting, seed)
            runs = [rows.find(**asdict(setting), seed=seed, lr_min=rate / RATIO, lr_max=rate) for rate in rates]
            if runs and all(runs):
                found = curves_of(rows, setting, seed)["eva_utils"]
                middle = choose_rates(*(np.array(values) for values in found.values()))[3].rate_at(0.5)
                best = max(row["raw"] for row in runs)
                lost += [(rate / middle, best - row["raw"]) for rate, row in zip(rates, runs, strict=True)]
        if lost:
            marker, color = "os"[setting.data == "digits"], COLORS[i % len(COLORS)]
            lost = np.array(sorted(lost))
            ax.plot(*lost.T, marker, ms=6, color=color, alpha=0.85, mew=0, label=str(setting))
    ax.axvline(BEYOND, color=".3", lw=1.5, ls="--")
    ax.annotate(f"{BEYOND}", (BEYOND, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="center", annotation_clip=False)  # fmt: skip
    ax.set(xscale="log", xlim=(0.1, 300), ylim=(20, -0.5), xlabel="LR_MAX / rate at half of the fall",
           ylabel="accuracy lost (points)")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, fontsize=7.5)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder with train/ and test/, or with the archive")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else os.cpu_count())
    parser.add_argument("--out", type=Path, default=ASSETS / "lr_finder.json")
    parser.add_argument("--no-rules", action="store_true", help="range tests and grid only")
    parser.add_argument("--tables", action="store_true", help="tables and figures of what is there, run nothing")
    args = parser.parse_args()
    rows = Rows(args.out)
    if not args.tables:
        print(machine())
        run(rows, args.jobs, args.data, not args.no_rules)
    for name, picture in {"lr_finder": draw(rows), "lr_finder_choice": draw_choice(rows)}.items():
        print(plots.save(picture, args.out.with_name(f"{name}.png")))
    for which, name in (("raw", "last weights"), ("ema", "average of the weights")):
        print(f"\n{name}\n\n{regret(rows, which)}")
    print(f"\n{lr_min(rows)}")


if __name__ == "__main__":
    main()
