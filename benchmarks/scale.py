"""How the time of training grows: with the images' side, the width, the batch and the number of images.

    python benchmarks/scale.py && python tools/update_tables.py     # minutes

Each at three points, the other three held, medians over rounds that take turns; a power law is fitted to each.
Writes assets/benchmarks/scale-<device>.json, which docs/speed.md's table is made from.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

import eva_utils as eva
from common import ASSETS, machine, slug, write
from eva_utils.batches import loader
from eva_utils.precision import choose_device, choose_precision, keep_memory
from eva_utils.trainer import Trainer
from throughput import pictures, synchronize

DEVICE = choose_device()
BASE = {"side": 32, "width": 64, "batch": 256, "images": 512}
POINTS = {"side": [16, 32, 64], "width": [16, 32, 64], "batch": [64, 256, 1024], "images": [512, 1024, 2048]}
if DEVICE.type == "cuda":  # enough work for a clock
    BASE["images"] *= 32
    POINTS["images"] = [n * 32 for n in POINTS["images"]]


def epoch_seconds(side: int, width: int, batch: int, images: int) -> float:
    """Seconds of one training epoch, after one to warm up."""
    torch.manual_seed(0)
    batches = loader(pictures(max(images, batch), side), eva.Augment(), batch, device=DEVICE)
    settings = {"ema": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "label_smoothing": 0.0, "seed": 0}
    schedule = eva.OneCycle(24, 5, 0.001, 0.01)
    trainer = Trainer(eva.ResNet9(10, width), batches, schedule, settings, choose_precision(DEVICE))
    for epoch in range(2):
        synchronize()
        start = time.perf_counter()
        trainer.train_epoch(epoch)
        synchronize()
    return (time.perf_counter() - start) * images / max(images, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    if DEVICE.type == "cpu":
        keep_memory()
    samples: dict[tuple[str, int], list[float]] = {}
    for turn in range(args.rounds):
        for name, points in POINTS.items():
            for point in points:
                samples.setdefault((name, point), []).append(epoch_seconds(**BASE | {name: point}))
                print(f"round {turn + 1}  {name} {point}: {samples[name, point][-1]:.3f} s", flush=True)
    growth = {}
    for name, points in POINTS.items():
        seconds = [median(samples[name, point]) for point in points]
        exponent = float(np.polyfit(np.log(points), np.log(seconds), 1)[0])
        growth[name] = {"points": points, "seconds": seconds, "exponent": exponent}
    write(args.out / f"scale-{slug()}.json", machine() | {"base": BASE, "rounds": args.rounds, "growth": growth})


if __name__ == "__main__":
    main()
