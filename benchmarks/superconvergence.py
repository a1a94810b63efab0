"""Super-convergence itself: test accuracy against epochs, one-cycle beside constant rates and step decay.

    python benchmarks/superconvergence.py --data data/cifar10-jpeg                               # minutes on a fast GPU
    python benchmarks/superconvergence.py --data data/cifar10-jpeg --width 16 --images 20000     # hours on a CPU's core

One-cycle with the found rates, constant rates and step decay, in 24 epochs and in 72. The constant rate and the rate
that a decay starts from are those that did best in 24 epochs on held-out training images (averaged weights). Writes
assets/benchmarks/superconvergence.json (what is there is not run again) and .png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import eva_utils as eva
from accuracy import Job, split
from common import ASSETS, NAMES, Rows, folder_name, machine, markdown, some, where
from eva_utils import plots

CONSTANT = [0.02, 0.1, 0.5]
DECAY = [0.1, 0.5]  # lower ones are what it decays to


def run(rows: Rows, name: str, schedule, job: Job, test: eva.Images, held_out: bool = False) -> dict:
    key = {"policy": name, "epochs": schedule.epochs, "data": job.train.name, "images": len(job.train),
           "width": job.width, "seed": job.seed, "tested_on": "held out" if held_out else None}  # fmt: skip
    if row := rows.find(**key):
        return row
    print(f"\n{key}", flush=True)
    folder = job.folder / folder_name(key)
    result = eva.fit(job.network(), job.train, test, schedule, eva.Recipe(seed=job.seed), folder=folder)
    curves = {key: [row[key] for row in result.history] for key in ("test_accuracy", "test_accuracy_ema")}
    return rows.add({**key, **curves, "lr": max(step["applied"] for step in result.steps), **machine()})


def draw(rows: list[dict]):
    """The figure of these rows; the longer run of a policy follows its shorter one."""
    runs: dict[str, list] = {}
    for row in rows:
        curves = zip(row["test_accuracy"], row["test_accuracy_ema"], strict=True)
        history = [{"test_accuracy": raw, "test_accuracy_ema": ema} for raw, ema in curves]
        runs.setdefault(row["policy"], []).append(history)
    return plots.compare(runs, about=f"{NAMES.get(row['data'], row['data'])}, {where(row)}, n = 1")


def table(rows: list[dict]) -> str:
    """Every run that was tested on the test images, in Markdown; a table for each size."""
    head = ["policy", "highest rate", "epochs", "last weights", "their average (EMA)"]
    sizes: dict[str, list[list[str]]] = {}
    rows = [row for row in rows if not row.get("tested_on")]
    for row in sorted(rows, key=lambda row: (row["epochs"], row["policy"] != "one-cycle", row["policy"])):
        size = f"Width {row['width']}, {row['images']:,} training images of {NAMES.get(row['data'], row['data'])}"
        accuracies = [f"{row[key][-1]:.1f}" for key in ("test_accuracy", "test_accuracy_ema")]
        sizes.setdefault(f"{size}, seed {row['seed']}, n = 1; {where(row)}:", []).append(
            [row["policy"], f"{row['lr']:.2g}", f"{row['epochs']}", *accuracies]
        )
    return "\n".join(f"{title}\n\n{markdown(head, lines)}" for title, lines in sizes.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10 (its archive in data/), digits or an image folder")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--images", type=int, help="train on this many (all of them)")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--work", type=Path, default=Path("runs/superconvergence-study"), help="for checkpoints")
    args = parser.parse_args()
    rows = Rows(args.out / "superconvergence.json")
    (job, test), (trial, held_out) = (
        (Job(some(train, args.images), args.epochs, args.width, 0, args.work), test)
        for train, test in (split(args.data, held_out=False), split(args.data, held_out=True))
    )
    rates = eva.find_lr(job.network(), job.train, eva.Recipe(seed=job.seed), folder=args.work / "one-cycle")
    policies = [eva.OneCycle(n * job.epochs, n * job.peak, rates.lr_min, rates.lr_max) for n in (1, 3)]
    shown = [run(rows, "one-cycle", policy, job, test) for policy in policies]
    for name, tried, milestones in (("constant", CONSTANT, ()), ("steps from", DECAY, (0.5, 0.75))):
        policies = {lr: eva.StepDecay(job.epochs, lr, milestones=milestones) for lr in tried}
        trials = {lr: run(rows, f"{name} {lr:g}", policy, trial, held_out, True) for lr, policy in policies.items()}
        best = max(trials, key=lambda lr: trials[lr]["test_accuracy_ema"][-1])
        longer = eva.StepDecay(3 * job.epochs, best, milestones=milestones)
        shown += [run(rows, f"{name} {best:g}", policy, job, test) for policy in (policies[best], longer)]
    print(plots.save(draw(shown), args.out / "superconvergence.png"))


if __name__ == "__main__":
    main()
