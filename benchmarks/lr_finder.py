"""Are the found rates as good as searched ones? The trainings that tell.

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
from eva_utils.device import choose_device, choose_precision, keep_memory
from eva_utils.lr_finder import range_test
from eva_utils.train import Trainer
from lr_rules import RATIO, TESTS, Curves, rates

GRID = [0.0125 * 2**k for k in range(9)]  # 0.0125 .. 3.2
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


_TRIED = [
    ("digits", 16, 128, "scaled", 0.2), ("digits", 16, 128, "plain", 0.0),
    ("cifar10", 16, 128, "scaled", 0.2), ("cifar10", 16, 128, "plain", 0.0),
    ("cifar10", 16, 512, "scaled", 0.0), ("cifar10", 16, 512, "plain", 0.2),
    ("digits", 16, 512, "scaled", 0.0), ("digits", 16, 512, "plain", 0.2),
    ("cifar10", 16, 128, "scaled", 0.0), ("cifar10", 16, 128, "plain", 0.2),
    ("digits", 32, 128, "plain", 0.2), ("cifar10", 32, 512, "scaled", 0.2),
]  # fmt: skip
SETTINGS = [Setting(*values) for values in _TRIED]
NEAR = 6  # points
WHOLE = Setting("cifar10", 64, 512, "scaled", 0.0, epochs=24)  # rates for the job itself
WHOLE_NEAR = 1
# The rule in eva_utils was chosen on these. All but the first seed only where it matters.
_TRIED = [
    ("cifar10", 16, 512, "scaled", 0.2), ("cifar10", 16, 512, "plain", 0.0),
    ("cifar10", 16, 256, "scaled", 0.0), ("cifar10", 16, 256, "plain", 0.2),
    ("digits", 16, 256, "scaled", 0.2), ("digits", 16, 256, "plain", 0.0), ("cifar10", 32, 256, "scaled", 0.2),
]  # fmt: skip
CHOSEN_ON = [Setting(*values) for values in _TRIED]
Pair = tuple[float, float]  # (LR_MIN, LR_MAX)
Task = tuple[Setting, int, Pair | None]  # with a seed; None: the range tests


@cache
def images(name: str, root: str, short: bool = True) -> tuple[eva.Images, eva.Images]:
    """(to train on, held out), both from the training set."""
    everything = eva.load_data("digits" if name == "digits" else root)[0]
    held_out, n = (DIGITS_HELD_OUT, None) if name == "digits" else (HELD_OUT, TRAIN if short else None)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1))
    return everything[order[held_out:][:n]], everything[order[:held_out]]


def prepared(setting: Setting, seed: int, root: str) -> tuple:
    """(model, images to train on, held out, Recipe)."""
    torch.manual_seed(seed)
    model = eva.ResNet9(10, setting.width, logit_scale=0.125 if setting.logits == "scaled" else 1.0)
    augment = eva.Augment(flip=setting.data != "digits")
    recipe = eva.Recipe(batch_size=setting.batch, seed=seed, augment=augment, label_smoothing=setting.smoothing)
    return model, *images(setting.data, root, not setting.epochs), recipe


def curves(setting: Setting, seed: int, root: str) -> Curves:
    """The range tests that the rules are read off: rates and losses, five digits of each."""
    model, train, _, recipe = prepared(setting, seed, root)
    # Of those to choose on only ours: the others' rules are what they are.
    tests = {name: test for name, test in TESTS.items() if name == "eva_utils" or setting not in CHOSEN_ON}
    found = {name: range_test(model, train, recipe, **test) for name, test in tests.items()}
    digits = {name: [[float(f"{x:.5g}") for x in values] for values in both] for name, both in found.items()}
    return {name: {"lr": lr, "loss": loss} for name, (lr, loss) in digits.items()}


def accuracy(setting: Setting, seed: int, pair: Pair, root: str) -> dict:
    """Held-out accuracy (%) of one run, with its last weights and with the average; diverged: loss not finite."""
    model, train, held_out, recipe = prepared(setting, seed, root)
    device = choose_device()
    if device.type == "cpu":
        keep_memory()
    epochs = setting.epochs or (DIGITS_EPOCHS if setting.data == "digits" else EPOCHS)
    schedule = eva.OneCycle(epochs, epochs * 5 / 24, *pair)
    trainer = Trainer(model, loader(train, recipe, device), schedule, recipe, choose_precision(device))
    try:
        for _ in range(epochs):
            trainer.history.append(trainer.epoch())
    except eva.InputError:
        return {"raw": 10.0, "ema": 10.0, "diverged": True}
    found = trainer.test(held_out)
    return {"raw": found["test_accuracy"], "ema": found["test_accuracy_ema"], "diverged": False}


def task(setting: Setting, seed: int, root: str, pair: Pair | None) -> dict:
    """One row: the curves of the range tests, or the accuracy with the rates ``pair``."""
    key = {**asdict(setting), "seed": seed}
    with contextlib.redirect_stdout(io.StringIO()):
        if pair is None:
            pictures = images(setting.data, root)[0].name
            return {**key, "pictures": pictures, **machine(), "curves": curves(setting, seed, root)}
        found = accuracy(setting, seed, pair, root)
        return {**key, "lr_min": pair[0], "lr_max": pair[1], **found, "device": machine()["device"]}


def curves_of(rows: Rows, setting: Setting, seed: int) -> Curves | None:
    return found["curves"] if (found := rows.find(**asdict(setting), seed=seed, lr_max=None)) else None


def trained(rows: Rows, setting: Setting, seed: int, pair: Pair) -> dict | None:
    return rows.find(**asdict(setting), seed=seed, lr_min=pair[0], lr_max=pair[1])


def on_grid(rate: float) -> Pair:
    return rate / RATIO, rate


def wanted(rows: Rows, whole: bool = False) -> list[Task]:
    """What is still to be run, in an order in which partial results are of use; ``whole``: of the whole job alone."""
    todo = []
    for setting in [WHOLE] if whole else SETTINGS + CHOSEN_ON:
        for seed in SEEDS:
            if not (tests := curves_of(rows, setting, seed)):
                todo.append((setting, seed, None))
                continue
            pairs = [on_grid(rate) for rate in grid_of(rows, setting, seed)]
            if setting in [*SETTINGS, WHOLE]:
                found = rates(tests)
                pairs.append(found.pop("eva_utils"))
                if setting in SETTINGS:  # of the other rules' rates, what the grid says nothing of
                    pairs += [pair for pair in found.values() if not GRID[0] <= pair[1] <= GRID[-1]]
            todo += [(setting, seed, pair) for pair in pairs if not trained(rows, setting, seed, pair)]
    return todo


def grid_of(rows: Rows, setting: Setting, seed: int) -> list[float]:
    """The LR_MAX to train with: the whole grid; of a setting for choosing and of the whole job, with all seeds but the
    first, only those with which the first came within NEAR points of its best (none before it is done).
    """
    if seed == SEEDS[0] or setting in SETTINGS:
        return GRID
    first = {rate: trained(rows, setting, SEEDS[0], on_grid(rate)) for rate in GRID}
    if not all(first.values()):
        return []
    near, kinds = (WHOLE_NEAR, ("raw", "ema")) if setting == WHOLE else (NEAR, ("raw",))
    # Rounded, because 65.76 - 6 is a little more than 59.76.
    lowest = {kind: round(max(row[kind] for row in first.values()) - near, 6) for kind in kinds}
    return [rate for rate, row in first.items() if any(row[kind] >= lowest[kind] for kind in kinds)]


def run(rows: Rows, jobs: int, root: str, whole: bool) -> None:
    # One process a core with one thread each: several times faster than threads that wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {}
        while True:
            # Anew each time: which rates are to be run depends on the curves that came back.
            todo = [t for t in wanted(rows, whole) if t not in running.values()]
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
    parser.add_argument("--whole", action="store_true", help="the whole job instead of short trainings")
    args = parser.parse_args()
    rows, name = Rows(args.out), images("cifar10", args.data)[0].name
    if others := {row["pictures"] for row in rows.rows if "curves" in row} - {"digits", name}:
        parser.error(f"{args.out} is about {', '.join(others)}, and --data is {name}: choose another --out")
    print(machine())
    run(rows, args.jobs, args.data, args.whole)


if __name__ == "__main__":
    main()
