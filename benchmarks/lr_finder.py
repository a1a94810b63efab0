"""Are the found rates as good as searched ones, and what is LR_MIN worth? The trainings that tell.

    python benchmarks/lr_finder.py --data data/cifar10-jpeg     # some hours on two cores; goes on where it stopped
    python benchmarks/lr_finder.py --data data/cifar10-jpeg --whole    # minutes on a fast GPU, days on two cores
    python benchmarks/lr_tables.py                              # what came out, at any time

For each setting and seed, short one-cycle runs with the LR_MAX of a grid (LR_MIN a twentieth of it), with the pair
that ``find_lr`` reads off its range test, and with what other rules found beyond the grid; accuracy on images held out
of the *training* set. The rule was chosen on other settings than those it is judged on. --whole: the same for the whole
job, the full network over 24 epochs. Writes assets/benchmarks/lr_finder.json, a row a run.
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

import torch

import eva_utils as eva
from common import ASSETS, Rows, machine
from eva_utils.batches import loader
from eva_utils.lr_finder import range_test
from eva_utils.precision import choose_device, choose_precision, keep_memory
from eva_utils.trainer import Trainer
from lr_rules import RATIO, TESTS, ours, rates

GRID = [0.0125 * 2**k for k in range(9)]  # 0.0125 .. 3.2
RATIOS = [5, 10, 20, 40, 100]  # of the study of LR_MIN
SEEDS = range(3)
TRAIN, HELD_OUT, EPOCHS = 10_000, 5_000, 5  # CIFAR-10
DIGITS_HELD_OUT, DIGITS_EPOCHS = 300, 20


@dataclass(frozen=True)
class Setting:
    data: str  # "digits", or "cifar10" for what --data names
    width: int
    batch: int
    logits: str
    smoothing: float
    epochs: int | None = None  # on all images but those held out; None: a short training


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
WEAK = [SETTINGS[3], SETTINGS[9]]  # where the rule loses most with the first seeds: tried again with others
MORE_SEEDS = range(3, 12)
WHOLE = Setting("cifar10", 64, 512, "scaled", 0.0, epochs=24)  # rates for the job itself
WHOLE_NEAR = 1
WHOLE_RATIOS = [5, 40]
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
Task = tuple[Setting, int, tuple[float, float] | None]  # with a seed; (LR_MIN, LR_MAX), or None: the range tests


@cache
def images(name: str, root: str, short: bool = True) -> tuple[eva.Images, eva.Images]:
    """(to train on, held out), both from the training set."""
    if name == "digits":
        everything, held_out, n = eva.digits()[0], DIGITS_HELD_OUT, None
    else:
        everything, held_out, n = eva.load_data(root)[0], HELD_OUT, TRAIN if short else None
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1))
    return everything[order[held_out:][:n]], everything[order[:held_out]]


def network(setting: Setting, seed: int) -> eva.ResNet9:
    torch.manual_seed(seed)
    return eva.ResNet9(10, setting.width, logit_scale=0.125 if setting.logits == "scaled" else 1.0)


def augment(setting: Setting) -> eva.Augment:
    return eva.Augment(flip=False) if setting.data == "digits" else eva.Augment()


def curves(setting: Setting, seed: int, root: str) -> dict[str, dict[str, list[float]]]:
    """The range tests that the rules are read off: rates and losses, five digits of each."""
    train, _ = images(setting.data, root, not setting.epochs)
    model = network(setting, seed)
    batches = loader(train, augment(setting), setting.batch, seed=seed, device=choose_device())
    out = {}
    for name, test in TESTS.items():
        if setting in CHOSEN_ON and name != "eva_utils":
            continue  # the others' rules are what they are
        lr, loss = range_test(model, batches, **test, label_smoothing=setting.smoothing)
        out[name] = {"lr": [float(f"{x:.5g}") for x in lr], "loss": [float(f"{x:.5g}") for x in loss]}
    return out


def accuracy(setting: Setting, seed: int, lr_min: float, lr_max: float, root: str) -> dict:
    """Held-out accuracy (%) of one short run, with its last weights and with the average; diverged: loss not finite."""
    train, held_out = images(setting.data, root, not setting.epochs)
    device = choose_device()
    precision = choose_precision(device)
    if device.type == "cpu":
        keep_memory()
    epochs = setting.epochs or (DIGITS_EPOCHS if setting.data == "digits" else EPOCHS)
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
            pictures = images(setting.data, root)[0].name
            return {**key, "pictures": pictures, **machine(), "curves": curves(setting, seed, root)}
        found = accuracy(setting, seed, *pair, root)
        return {**key, "lr_min": pair[0], "lr_max": pair[1], **found, "device": machine()["device"]}


def curves_of(rows: Rows, setting: Setting, seed: int) -> dict | None:
    return found["curves"] if (found := rows.find(**asdict(setting), seed=seed, lr_max=None)) else None


def wanted(rows: Rows, rules: bool = True, whole: bool = False) -> list[Task]:
    """What is still to be run, in an order in which partial results are of use: setting by setting.

    Without ``rules``: only what does not depend on how a curve is read. ``whole``: the whole job, instead of the rest.
    """
    todo = []
    for setting in [WHOLE] if whole else SETTINGS + CHOSEN_ON:
        for seed in seeds(setting):
            key = {**asdict(setting), "seed": seed}
            if not curves_of(rows, setting, seed):
                todo.append((setting, seed, None))
                continue
            pairs = [(rate / RATIO, rate) for rate in grid_of(rows, setting, seed)]
            if rules:
                found = ours(curves_of(rows, setting, seed))
                pairs += [found] if setting in [*SETTINGS, *LR_MIN_SETTINGS, WHOLE] else []
                if setting in SETTINGS and seed in SEEDS:
                    pairs += beyond_grid(rates(curves_of(rows, setting, seed)))
                ratios = RATIOS if setting in LR_MIN_SETTINGS else WHOLE_RATIOS if setting == WHOLE else []
                pairs += [(found[1] / ratio, found[1]) for ratio in ratios]
            todo += [(setting, seed, p) for p in pairs if not rows.find(**key, lr_min=p[0], lr_max=p[1])]
    return todo


def seeds(setting: Setting) -> list[int]:
    return [*SEEDS, *(MORE_SEEDS if setting in WEAK else [])]


def beyond_grid(found: dict[str, tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the other rules' rates, those that the grid says nothing of."""
    return [pair for rule, pair in found.items() if rule != "eva_utils" and not GRID[0] <= pair[1] <= GRID[-1]]


def grid_of(rows: Rows, setting: Setting, seed: int) -> list[float]:
    """The LR_MAX to train with: the whole grid; of a setting for choosing and of the whole job, with all seeds but the
    first, and with MORE_SEEDS, only those with which the first came within NEAR points of its best (none before it is
    done).
    """
    if seed == SEEDS[0] or (setting in SETTINGS and seed in SEEDS):
        return GRID
    key = {**asdict(setting), "seed": SEEDS[0]}
    first = {rate: rows.find(**key, lr_min=rate / RATIO, lr_max=rate) for rate in GRID}
    if not all(first.values()):
        return []
    near, kinds = (WHOLE_NEAR, ("raw", "ema")) if setting == WHOLE else (NEAR, ("raw",))
    # Rounded, because 65.76 - 6 is a little more than 59.76.
    lowest = {kind: round(max(row[kind] for row in first.values()) - near, 6) for kind in kinds}
    return [rate for rate, row in first.items() if any(row[kind] >= lowest[kind] for kind in kinds)]


def run(rows: Rows, jobs: int, root: str, rules: bool, whole: bool) -> None:
    # One process a core with one thread each: several times faster than threads that wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {}
        while True:
            # Anew each time: which rates are to be run depends on the curves that came back.
            todo = [t for t in wanted(rows, rules, whole) if t not in running.values()]
            for setting, seed, pair in todo[: jobs - len(running)]:
                running[pool.submit(task, setting, seed, root, pair)] = setting, seed, pair
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                row = rows.add(future.result())
                print({key: value for key, value in row.items() if key != "curves"}, len(todo), "to go", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10 (its archive in data/), or an image folder")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else os.cpu_count())
    parser.add_argument("--out", type=Path, default=ASSETS / "lr_finder.json")
    parser.add_argument("--no-rules", action="store_true", help="range tests and grid only")
    parser.add_argument("--whole", action="store_true", help="the whole job instead of short trainings")
    args = parser.parse_args()
    rows, name = Rows(args.out), images("cifar10", args.data)[0].name
    if others := {row["pictures"] for row in rows.rows if "curves" in row} - {"digits", name}:
        parser.error(f"{args.out} is about {', '.join(others)}, and --data is {name}: choose another --out")
    print(machine())
    run(rows, args.jobs, args.data, not args.no_rules, args.whole)


if __name__ == "__main__":
    main()
