"""What a training prints: a line an epoch, and a bar within it."""

from __future__ import annotations

import sys

from tqdm.std import tqdm

from .processes import rank

HEADER = "epoch    rate   train loss  acc %   test loss  acc %  EMA acc %   images/s  remaining"


def line(row: dict, epochs: int) -> str:
    """A row of the history, as it stands below HEADER."""
    left = (epochs - row["epoch"]) * row["seconds"] / row["epoch"]
    skipped = f"  {row['skipped']} step{'s' * (row['skipped'] > 1)} skipped (overflow)" if row["skipped"] else ""
    return (
        f"{row['epoch']:>5}  {row['lr']:>6.4f}  {row['train_loss']:>11.4f} {row['train_accuracy']:>6.2f}"
        f"  {row['test_loss']:>10.4f} {row['test_accuracy']:>6.2f}  {row['test_accuracy_ema']:>9.2f}"
        f"  {row['images_per_second']:>9,.0f}  {tqdm.format_interval(left):>9}{skipped}"
    )


def bar(images: int | None, words: str) -> tqdm:
    """Progress within an epoch; in a log or a notebook, where each update stays, only if the epoch is long."""
    live = sys.stderr.isatty()
    return tqdm(
        total=images,
        desc=words,
        unit="img",
        leave=False,
        mininterval=0.5 if live else 30,
        delay=0 if live else 30,
        disable=rank() > 0,
    )
