"""What the benchmarks share: results that survive an interruption, and a description of the machine."""

from __future__ import annotations

import json
import platform
import re
from datetime import date
from pathlib import Path

import torch

from eva_utils import __version__
from eva_utils.checkpoint import write_atomically
from eva_utils.precision import choose_device, choose_precision, describe

ASSETS = Path(__file__).parent.parent / "assets/benchmarks"


def machine() -> dict:
    """Device, number format and versions, for the head of a result file."""
    device = choose_device()
    return {
        "device": describe(device),
        "precision": choose_precision(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "version": __version__,
        "date": date.today().isoformat(),
    }


def slug() -> str:
    """The device as part of a file name: "nvidia-h200", "cpu-intel-r-xeon-r-processor-2-threads"."""
    return re.sub(r"[^a-z0-9]+", "-", describe(choose_device()).lower()).strip("-")


def write(path: Path, content) -> None:
    write_atomically(path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8"))
    print(f"wrote {path}")


class Rows:
    """A json file with one row a run; what is there already is not computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = json.loads(path.read_text(encoding="utf8")) if path.is_file() else []

    def find(self, **key) -> dict | None:
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, row: dict) -> dict:
        self.rows.append(row)
        text = "[\n" + ",\n".join(json.dumps(row) for row in self.rows) + "\n]\n"
        write_atomically(self.path, lambda part: part.write_text(text, encoding="utf8"))
        return row
