"""What the benchmarks share: results that survive an interruption, and a description of the machine."""

from __future__ import annotations

import argparse
import json
import math
import platform
from datetime import date
from pathlib import Path
from statistics import mean, stdev

import torch

from eva_utils import __version__
from eva_utils.device import choose_device, choose_precision, describe
from eva_utils.run import write_bytes

ASSETS = Path(__file__).parent.parent / "assets/benchmarks"
# What the data is called in words; a run knows only its folder's name.
NAMES = {"cifar10-jpeg": "CIFAR-10 (JPEG q75)", "cifar10": "CIFAR-10", "cifar10-pixels": "CIFAR-10"}


def machine() -> dict:
    """Device, number format and versions, for a result."""
    device = choose_device()
    return {
        "device": describe(device),
        "precision": choose_precision(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "version": __version__,
        "date": date.today().isoformat(),
    }


def options(doc: str, out: Path, work: str) -> argparse.ArgumentParser:
    """The command line of what trains ResNet9s by several recipes or policies."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10 (its archive in data/), digits or an image folder")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, help="train on this many (all of them)")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--work", type=Path, default=Path("runs") / work, help="folder for checkpoints")
    return parser


def where(measured: dict) -> str:
    """What of ``machine`` a table shows."""
    return f"{measured['device'].removeprefix('CPU: ')}, {measured['precision']}, torch {measured['torch']}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [" | ".join(cells) for cells in (head, *rows)]
    return "\n".join([f"| {lines[0]} |", "|---" * len(head) + "|", *(f"| {line} |" for line in lines[1:])]) + "\n"


def spread(values: list[float]) -> str:
    """Mean and standard deviation; of a single value, that."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def some(images, n: int | None):
    """``n`` of the images, always the same ones (a folder is in the order of its classes); all for None."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(2))[:n]] if n else images


def folder_name(key: dict) -> str:
    return "-".join(str(value).replace(" ", "_") for value in key.values())


def _same(there, here) -> bool:
    """Equal; numbers but for rounding, which differs from machine to machine in what is computed from a curve."""
    return there == here or (isinstance(there, float) and isinstance(here, float) and math.isclose(there, here))


class Rows:
    """A json file with one row a run, each a line; what is there already is not computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = json.loads(path.read_text(encoding="utf8")) if path.is_file() else []

    def find(self, **key) -> dict | None:
        return next((row for row in self.rows if all(_same(row.get(k), v) for k, v in key.items())), None)

    def add(self, row: dict) -> dict:
        self.rows = [*Rows(self.path).rows, row]  # read again: another process may have added some
        text = "[\n" + ",\n".join(json.dumps(row) for row in self.rows) + "\n]\n"
        write_bytes(self.path, text.encode())
        return row
