"""Write the tables that are measured: ``python tools/update_tables.py``.

A table stands between ``<!-- NAME: written by ... -->`` and ``<!-- end of NAME -->``, and is made from json files under
assets/ by the function of TABLES with that name.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy  # noqa: E402
import lr_finder  # noqa: E402
import lr_tables  # noqa: E402
import superconvergence as policies  # noqa: E402
from common import NAMES, Rows, markdown, where  # noqa: E402

BENCHMARKS = ROOT / "assets" / "benchmarks"
PAGES = ["README.md", "docs/torchrun.md", "docs/speed.md", "docs/rates.md", "docs/accuracy.md"]
NOTHING = "Nothing has been measured yet.\n"


def read(path: Path):
    return json.loads(path.read_text(encoding="utf8"))


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


def results() -> str:
    head = ["data, images", "epochs", "LR_MIN to LR_MAX", "test, raw", "test, EMA", "EMA + TTA", "train", "time"]
    rows = []
    for file in sorted((ROOT / "assets" / "runs").glob("*/results.json")):
        r = read(file)
        rows.append([
            f"{NAMES.get(r['data'], r['data'])}, {r['n_train']:,} + {r['n_test']:,}",
            f"{r['epochs']}",
            f"{r['lr_min']:.2g} to {r['lr_max']:.2g}",
            f"{r['test_accuracy']:.2f}",
            f"**{r['test_accuracy_ema']:.2f}**",
            f"{r['test_accuracy_ema_tta']:.2f}",
            f"{r['train_accuracy']:.2f}",
            f"{duration(r['seconds_total'])} in all, training at {r['images_per_second']:,.0f} images/s",
            where(r),
            f"[1, seed {r['seed']}](assets/runs/{file.parent.name})",
        ])  # fmt: skip
    return markdown([*head, "device", "n"], rows)


def scaling_table(measured: dict) -> str:
    """One device's rows; the formula is that of docs/torchrun.md, with the first row's step and the all-reduce."""
    first, *_ = measured["rows"]
    rows = []
    for row in measured["rows"]:
        speedup, more = row["images_per_second"] / first["images_per_second"], row["processes"] / first["processes"]
        step, first_step = (measured["batch_size"] / r["images_per_second"] for r in (row, first))
        alone = row["all_reduce_seconds"]
        rows.append([
            f"{row['processes']}", f"{row['images_per_second']:,.0f}", f"{speedup:.2f}", f"{speedup / more:.0%}",
            f"{1e3 * step:,.0f} ms", f"{1e3 * alone:,.1f} ms", f"{1e3 * (first_step / more + alone):,.0f} ms",
        ])  # fmt: skip
    title = (
        f"{measured['device']} each, {measured['precision']}, torch {measured['torch']}, batch of "
        f"{measured['batch_size']:,} in all, {measured['params']:,} parameters:"
    )
    columns = "speed-up", "efficiency", "a step", "all-reduce alone", "a step by the formula"
    return f"{title}\n\n" + markdown(["processes", "images/s", *columns], rows)


def scaling() -> str:
    return "\n".join(scaling_table(read(file)) for file in sorted(BENCHMARKS.glob("scaling-*.json"))) or NOTHING


def speed_table(measured: dict) -> str:
    """One device: what was measured (median, smallest and largest), and the ratios, taken round by round."""

    def cell(values: dict, digits: int = 0) -> str:
        return f"{values['median']:,.{digits}f} ({values['min']:,.{digits}f} to {values['max']:,.{digits}f})"

    rows = []
    for name, values in measured["measurements"].items():
        key, unit, digits = ("tflops", "TFLOP/s", 2) if "tflops" in values else ("images_per_second", "images/s", 0)
        memory = values.get("gpu_gb", values.get("process_gb"))
        start = values.get("warm_up_seconds", values.get("first_batch_seconds"))
        rows.append([
            name,
            f"{cell(values[key], digits)} {unit}",
            f"{max(0, start['max']):.1f} s" if start else "",
            f"{memory['median']:.1f} GB" if memory else "",
        ])  # fmt: skip
    ratios = measured["ratios"]
    shares = ", ".join(f"{share:.0%} in {p}" for p, share in ratios["share of the matrix product's rate"].items())
    lines = [
        f"- whole epoch, `fit` over the usual pipeline: {ratios['whole epoch, eva_utils over usual']:.1f} times",
        f"- training step (the usual one without its data): {ratios['training step, eva_utils over usual']:.1f} times; "
        f"with `torch.compile` {ratios['compiled over not']:.2f} times that",
        f"- share of the rate of a large matrix product while training: {shares}",
        f"- batch engine over albumentations, per core: {ratios['batch engine over albumentations, per core']:.1f} "
        f"times; on one core at most {ratios['data' + chr(39) + 's share of the step']:.1%} of a step",
    ]
    title = f"{where(measured)}; n = {measured['rounds']} rounds, median (smallest to largest):"
    table = markdown(["what", "speed", "start, at most", "peak memory"], rows)
    return f"{title}\n\n" + "\n".join(lines) + f"\n\n{table}"


def number_format(measured: dict) -> float:
    """How much faster eva_utils' step is in its number format than in fp32."""
    speed = measured["measurements"]
    best, fp32 = (
        speed[f"step: eva_utils, {p}"]["images_per_second"]["median"] for p in (measured["precision"], "fp32")
    )
    return best / fp32


def faster() -> str:
    """The same in a sentence for each device."""
    lines = []
    for file in sorted(BENCHMARKS.glob("throughput-*.json")):
        measured = read(file)
        ratios = measured["ratios"]
        precision = measured["precision"]
        share = ratios["share of the matrix product's rate"][precision]
        lines.append(
            f"- {where(measured)}: an epoch is {ratios['whole epoch, eva_utils over usual']:.1f} times as fast as in "
            f"the usual pipeline (albumentations in a `DataLoader`, fp32). In {precision} a step is "
            f"{number_format(measured):.1f} times as fast as in fp32. Training runs at {share:.0%} of the speed of a "
            f"large matrix product in {precision}.\n"
        )
    return "".join(lines) or NOTHING


def speed() -> str:
    return "\n".join(speed_table(read(file)) for file in sorted(BENCHMARKS.glob("throughput-*.json"))) or NOTHING


def scale_table(measured: dict) -> str:
    rows = [
        [name, *(f"{p:,}: {1e3 * s:,.0f} ms" for p, s in zip(g["points"], g["seconds"], strict=True)),
         f"{g['exponent']:.2f}"]
        for name, g in measured["growth"].items()
    ]  # fmt: skip
    base = ", ".join(f"{name} {value:,}" for name, value in measured["base"].items())
    title = f"{where(measured)}; an epoch with {base}, one of them changed; medians of {measured['rounds']} rounds:"
    return f"{title}\n\n" + markdown(["", "", "", "", "time grows with the power"], rows)


def scale() -> str:
    return "\n".join(scale_table(read(file)) for file in sorted(BENCHMARKS.glob("scale-*.json"))) or NOTHING


def rows_of(name: str, tested_on: str) -> list[dict]:
    file = BENCHMARKS / name
    return [row for row in read(file) if row["tested_on"] == tested_on] if file.is_file() else []


def recipes() -> str:
    return accuracy.table(rows) if (rows := rows_of("accuracy.json", "test")) else NOTHING


def whole_job() -> str:
    """The part of ``recipes`` with the full network, where it was trained most often."""
    rows = [row for row in rows_of("accuracy.json", "test") if (row["width"], row["epochs"]) == (64, 24)]
    device = Counter(map(where, rows)).most_common(1)
    return accuracy.table([row for row in rows if where(row) == device[0][0]]) if device else NOTHING


def ablation() -> str:
    return accuracy.ablation(rows) if (rows := rows_of("accuracy.json", "held out")) else NOTHING


def own_statistics() -> str:
    rows = [row for tested_on in ("test", "held out") for row in rows_of("accuracy.json", tested_on)]
    return accuracy.statistics(rows) or NOTHING


def superconvergence() -> str:
    file = BENCHMARKS / "superconvergence.json"
    return policies.table(read(file)) if file.is_file() else NOTHING


def rules(which: str = "raw") -> str:
    rows = Rows(BENCHMARKS / "lr_finder.json")
    if not (done := len(lr_tables.complete(rows))):
        return NOTHING
    title = f"{done} of {len(lr_finder.SETTINGS)} settings are complete; {lr_tables.devices(rows)}:"
    return f"{title}\n\n{lr_tables.regret(rows, which)}"


def rules_ema() -> str:
    return rules("ema")


def weak() -> str:
    return lr_tables.weak(Rows(BENCHMARKS / "lr_finder.json")) or NOTHING


def lr_min() -> str:
    return lr_tables.lr_min(Rows(BENCHMARKS / "lr_finder.json"))


def whole_rates() -> str:
    return lr_tables.whole(Rows(BENCHMARKS / "lr_finder.json")) or NOTHING


FUNCTIONS = (
    results, scaling, speed, faster, scale, recipes, whole_job, ablation, own_statistics,
    superconvergence, rules, rules_ema, weak, lr_min, whole_rates,
)  # fmt: skip
TABLES = {function.__name__: function for function in FUNCTIONS}
MARKERS = re.compile(r"(<!-- (\w+): written by.*?-->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def updated(page: str) -> str:
    return MARKERS.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], page)


if __name__ == "__main__":
    for name in PAGES:
        path = ROOT / name
        path.write_text(updated(path.read_text(encoding="utf8")), encoding="utf8")
