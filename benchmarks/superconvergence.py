"""Super-convergence itself: test accuracy against epochs, one-cycle beside constant rates and step decay.

    python benchmarks/superconvergence.py --data data/cifar10-jpeg    # width 16, over an hour on two cores

One-cycle with the found rates in 24 epochs; constant rates and step decay in 24 and in 72. The rate of the decay and
of the longer constant runs is the constant rate that did best of three in 24 epochs, *by test accuracy*: an advantage
that one-cycle does not get. Writes assets/benchmarks/superconvergence.json (what is there is not run again) and .png.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

import eva_utils as eva
from accuracy import BATCH, Job, split
from common import ASSETS, Rows, machine
from eva_utils import plots
from eva_utils.plots._base import COLORS, Picture, styled

CONSTANT = [0.02, 0.1, 0.5]


@dataclass(frozen=True)
class Steps:
    """``lr``, a tenth of it after half of the epochs, a hundredth after three quarters; ``decay=False``: constant."""

    epochs: int
    lr: float
    decay: bool

    def __call__(self, epoch: float) -> float:
        return self.lr * (0.1 ** ((epoch >= self.epochs / 2) + (epoch >= self.epochs * 3 / 4)) if self.decay else 1)


def run(rows: Rows, name: str, schedule, job: Job, test: eva.Images, work: Path) -> dict:
    key = {"policy": name, "epochs": schedule.epochs, "data": job.train.name, "images": len(job.train),
           "width": job.width, "seed": job.seed}  # fmt: skip
    if row := rows.find(**key):
        return row
    print(f"\n{key}", flush=True)
    folder = work / "-".join(str(value).replace(" ", "_") for value in key.values())
    result = eva.fit(job.network(), job.train, test, schedule, batch_size=BATCH, seed=job.seed, checkpoint=folder)
    curves = {key: [row[key] for row in result.history] for key in ("test_accuracy", "test_accuracy_ema")}
    return rows.add({**key, **curves, "lr": max(step["applied"] for step in result.steps), **machine()})


@styled
def draw(rows: list[dict]) -> Picture:
    """Test accuracy (last weights) against epochs; the longer runs of a policy dashed, in its colour."""
    figure = Picture(8, 4.2)
    ax = figure.subplots()
    shortest = min(row["epochs"] for row in rows)
    colors = dict(zip(dict.fromkeys(row["policy"] for row in rows), COLORS, strict=False))
    for row in rows:
        values = row["test_accuracy"]
        label = f"{row['policy']}, {row['epochs']} epochs: {values[-1]:.1f} %"
        style = "-" if row["epochs"] == shortest else "--"
        ax.plot(range(1, len(values) + 1), values, style, color=colors[row["policy"]], lw=1.8, label=label)
        ax.plot(len(values), values[-1], "o", color=colors[row["policy"]])
    ax.set(xlabel="epoch", ylabel="test accuracy (%)", title="Super-convergence: after the last epoch")
    ax.legend(loc="lower right", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder with train/ and test/, or with the archive")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--images", type=int, help="train on this many (all of them)")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--work", type=Path, default=Path("runs/superconvergence-study"), help="for checkpoints")
    args = parser.parse_args()
    rows = Rows(args.out / "superconvergence.json")
    train, test = split(args.data, held_out=False)
    folder = args.work / "one-cycle"
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(2))
    job = Job(train[order[: args.images]], args.epochs, args.width, seed=0, folder=folder)

    rates = eva.find_lr(job.network(), job.train, batch_size=BATCH, seed=job.seed, checkpoint=folder)
    one_cycle = eva.OneCycle(job.epochs, job.peak, rates.lr_min, rates.lr_max)
    shown = [run(rows, "one-cycle", one_cycle, job, test, args.work)]
    constant = [run(rows, f"constant {lr:g}", Steps(job.epochs, lr, False), job, test, args.work) for lr in CONSTANT]
    best = max(constant, key=lambda row: row["test_accuracy"][-1])["lr"]
    for epochs in (job.epochs, 3 * job.epochs):
        for name, decay in ((f"constant {best:g}", False), (f"steps from {best:g}", True)):
            shown.append(run(rows, name, Steps(epochs, best, decay), job, test, args.work))
    print(plots.save(draw(shown), args.out / "superconvergence.png"))


if __name__ == "__main__":
    main()
