"""Write the tables that are measured: ``python tools/update_tables.py``.

A table stands between ``<!-- NAME: written by ... -->`` and ``<!-- end of NAME -->``, and is made from json files under
assets/ by the function of TABLES with that name.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy  # noqa: E402
import lr_finder  # noqa: E402
import superconvergence  # noqa: E402
from common import Rows, markdown, where  # noqa: E402

BENCHMARKS = ROOT / "assets" / "benchmarks"
PAGES = ["README.md", "docs/speed.md", "docs/rates.md", "docs/accuracy.md"]


def speed(file: Path) -> str:
    """What was measured on a device (median, smallest and largest), and the ratios, taken round by round."""
    measured, rows = json.loads(file.read_text(encoding="utf8")), []
    for name, values in measured["measurements"].items():
        key, unit, digits = ("tflops", "TFLOP/s", 2) if "tflops" in values else ("images_per_second", "images/s", 0)
        memory = values.get("gpu_gb", values.get("process_gb"))
        start = values.get("warm_up_seconds", values.get("first_batch_seconds"))
        middle, low, high = (f"{values[key][which]:,.{digits}f}" for which in ("median", "min", "max"))
        rows.append([
            name,
            f"{middle} ({low} to {high}) {unit}",
            f"{max(0, start['max']):.1f} s" if start else "",
            f"{memory['median']:.1f} GB" if memory else "",
        ])  # fmt: skip
    ratios = measured["ratios"]
    share = ratios["data's share of the step"]
    shares = ", ".join(f"{part:.0%} in {p}" for p, part in ratios["share of the matrix product's rate"].items())
    return (
        f"{where(measured)}; n = {measured['rounds']} rounds, median (smallest to largest):\n\n"
        f"- whole epoch, `fit` over the usual pipeline: {ratios['whole epoch, eva_utils over usual']:.1f} times\n"
        f"- training step (the usual one without its data): {ratios['training step, eva_utils over usual']:.1f} times; "
        f"with `torch.compile` {ratios['compiled over not']:.2f} times that\n"
        f"- training reaches, of a large matrix product's rate: {shares}\n"
        f"- batch engine over albumentations, per core: {ratios['batch engine over albumentations, per core']:.1f} "
        f"times; on one core at most {share:.1%} of a step\n\n"
    ) + markdown(["what", "speed", "slowest start", "peak memory"], rows)


def rows(name: str) -> Rows:
    return Rows(BENCHMARKS / f"{name}.json")


def recipes(names=None, tested_on: str = "test", jpeg: bool = False, width: int | None = None) -> list[dict]:
    """The runs of the recipes ``names``; jpeg: on a lossy copy, on which accuracy is about three points lower."""
    found = [row for row in rows("accuracy").rows if row["tested_on"] == tested_on and width in (None, row["width"])]
    return [row for row in found if (row["data"] == "cifar10-jpeg") == jpeg and (not names or row["recipe"] in names)]


TABLES = {
    "recipe_results": lambda: accuracy.table(recipes(accuracy.RECIPES)),
    "jpeg_job": lambda: accuracy.table(recipes(jpeg=True)),
    "speed": lambda: "\n".join(map(speed, sorted(BENCHMARKS.glob("throughput-*.json")))),
    "ablation": lambda: accuracy.ablation(recipes(accuracy.ABLATIONS, width=16)),
    "jpeg_ablation": lambda: accuracy.ablation(recipes(tested_on="held out", jpeg=True)),
    "schedules": lambda: superconvergence.table(rows("superconvergence").rows),
    "rules": lambda: lr_finder.summary(rows("lr_study")),
    "rules_by_setting": lambda: lr_finder.details(rows("lr_study")),
}
MARKERS = re.compile(r"(<!-- (\w+): written by.*?-->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def updated(page: str) -> str:
    return MARKERS.sub(lambda match: match[1] + (TABLES[match[2]]() or "Not measured yet.\n") + match[4], page)


if __name__ == "__main__":
    for name in PAGES:
        path = ROOT / name
        path.write_text(updated(path.read_text(encoding="utf8")), encoding="utf8")
