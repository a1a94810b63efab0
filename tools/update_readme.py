"""Write the tables that are measured: ``python tools/update_readme.py``.

README's results come from assets/runs/*/results.json, those of docs/torchrun.md from assets/benchmarks/scaling-*.json.
"""

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


SCALING = re.compile(r"(<!-- scaling:.*?-->\n)(.*?)(<!-- end of scaling -->)", re.DOTALL)
SCALING_HEAD = "| processes | images/s | speed-up | efficiency | a step | all-reduce alone | a step by the formula |"


def scaling_table(measured: dict) -> str:
    """One device's rows; the formula is that of docs/torchrun.md, with the first row's step and the all-reduce."""
    first, *_ = rows = measured["rows"]
    lines = [SCALING_HEAD, "|---" * (SCALING_HEAD.count("|") - 1) + "|"]
    for row in rows:
        speedup, more = row["images_per_second"] / first["images_per_second"], row["processes"] / first["processes"]
        step, first_step = (measured["batch_size"] / r["images_per_second"] for r in (row, first))
        alone = row["all_reduce_seconds"]
        cells = [
            f"{row['processes']}", f"{row['images_per_second']:,.0f}", f"{speedup:.2f}", f"{speedup / more:.0%}",
            f"{1e3 * step:,.0f} ms", f"{1e3 * alone:,.1f} ms", f"{1e3 * (first_step / more + alone):,.0f} ms",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    title = (
        f"{measured['device']} each, {measured['precision']}, torch {measured['torch']}, batch of "
        f"{measured['batch_size']:,} in all, {measured['params']:,} parameters:"
    )
    return "\n".join([title, "", *lines]) + "\n"


def scaling(folder: Path = ROOT / "assets" / "benchmarks") -> str:
    files = sorted(folder.glob("scaling-*.json"))
    tables = [scaling_table(json.loads(file.read_text(encoding="utf8"))) for file in files]
    return "\n".join(tables) or "Nothing has been measured yet.\n"


def scaling_updated(page: str) -> str:
    return SCALING.sub(lambda match: match[1] + scaling() + match[3], page)


if __name__ == "__main__":
    for name, new in (("README.md", updated), ("docs/torchrun.md", scaling_updated)):
        path = ROOT / name
        path.write_text(new(path.read_text(encoding="utf8")), encoding="utf8")
