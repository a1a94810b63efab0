"""Write README's table of results from assets/runs/*/results.json: ``python tools/update_readme.py``."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKERS = re.compile(r"(<!-- results:.*?-->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
# What the data is called in words; a run knows only its folder's name.
NAMES = {"cifar10-jpeg": "CIFAR-10 (JPEG q75)", "cifar10": "CIFAR-10"}


def row(folder: Path) -> str:
    r = json.loads((folder / "results.json").read_text(encoding="utf8"))
    cells = [
        f"{NAMES.get(r['data'], r['data'])}, {r['n_train']:,} + {r['n_test']:,}",
        f"{r['epochs']}",
        f"{r['lr_min']:.2g} to {r['lr_max']:.2g}",
        f"{r['test_accuracy']:.2f}",
        f"**{r['test_accuracy_ema']:.2f}**",
        f"{r['test_accuracy_ema_tta']:.2f}",
        f"{r['train_accuracy']:.2f}",
        f"{r['seconds_total'] / 60:.0f} min, {r['images_per_second']:,.0f} images/s",
        f"{r['device'].removeprefix('CPU: ')}, {r['precision']}, torch {r['torch']}",
        f"[1, seed {r['seed']}](assets/runs/{folder.name})",
    ]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    head = "| data, images | epochs | rates found | test, raw | test, EMA | EMA + TTA | train | time | device | n |"
    folders = sorted(path.parent for path in (ROOT / "assets" / "runs").glob("*/results.json"))
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *map(row, folders)]) + "\n"


def updated(readme: str) -> str:
    return MARKERS.sub(lambda match: match[1] + table() + match[3], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(encoding="utf8")), encoding="utf8")
