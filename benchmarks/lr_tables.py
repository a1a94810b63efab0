"""An earlier study, of this network and SGD, for an earlier rule: the regret of four rules, the whole job, two figures.

    python benchmarks/lr_tables.py    # prints the tables; draws lr_finder.png and lr_finder_choice.png beside the json

Regret is the accuracy of the best rate of the grid (mean over the seeds) minus that of a rule's rates. Rates that no
run was trained with are read off the grid of the same seed, between its points (at its ends, the end's); for ours the
tables then say so.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from common import ASSETS, NAMES, Rows, markdown, spread, where
from eva_utils import plots
from eva_utils.lr_curve import BEYOND
from eva_utils.plots._base import COLORS, Picture, styled
from lr_finder import Pair, on_grid
from lr_rules import RULES, Curves, ours, rates

GRID = [0.0125 * 2**k for k in range(9)]  # 0.0125 .. 3.2
SEEDS = range(3)


@dataclass(frozen=True)
class Setting:
    data: str
    width: int
    batch: int
    logits: str
    smoothing: float
    epochs: int | None = None  # on all images but those held out; None: a short training


_TRIED = [
    ("digits", 16, 128, "scaled", 0.2), ("digits", 16, 128, "plain", 0.0),
    ("cifar10", 16, 128, "scaled", 0.2), ("cifar10", 16, 128, "plain", 0.0),
    ("cifar10", 16, 512, "scaled", 0.0), ("cifar10", 16, 512, "plain", 0.2),
    ("digits", 16, 512, "scaled", 0.0), ("digits", 16, 512, "plain", 0.2),
    ("cifar10", 16, 128, "scaled", 0.0), ("cifar10", 16, 128, "plain", 0.2),
    ("digits", 32, 128, "plain", 0.2), ("cifar10", 32, 512, "scaled", 0.2),
]  # fmt: skip
SETTINGS = [Setting(*values) for values in _TRIED]
WHOLE = Setting("cifar10", 64, 512, "scaled", 0.0, epochs=24)
# The rule in eva_utils was chosen on these. All but the first seed only where it matters.
_TRIED = [
    ("cifar10", 16, 512, "scaled", 0.2), ("cifar10", 16, 512, "plain", 0.0),
    ("cifar10", 16, 256, "scaled", 0.0), ("cifar10", 16, 256, "plain", 0.2),
    ("digits", 16, 256, "scaled", 0.2), ("digits", 16, 256, "plain", 0.0), ("cifar10", 32, 256, "scaled", 0.2),
]  # fmt: skip
CHOSEN_ON = [Setting(*values) for values in _TRIED]


def curves_of(rows: Rows, setting: Setting, seed: int) -> Curves:
    return rows.find(**asdict(setting), seed=seed, lr_max=None)["curves"]


def trained(rows: Rows, setting: Setting, seed: int, pair: Pair) -> dict | None:
    return rows.find(**asdict(setting), seed=seed, lr_min=pair[0], lr_max=pair[1])


def rates_of(rows: Rows, setting: Setting, seed: int) -> dict[str, Pair]:
    return rates(curves_of(rows, setting, seed))


def devices(rows: Rows, whole: bool = False) -> str:
    """What the short trainings, or the whole jobs, were measured on."""
    heads = [row for row in rows.rows if "curves" in row and bool(row.get("epochs")) == whole]
    return "; ".join(dict.fromkeys(where(row) for row in heads))


def pictures(rows: Rows) -> dict[str, str]:
    """The data of the settings, in the words of what was used."""
    return {row["data"]: NAMES.get(row["pictures"], row["pictures"]) for row in rows.rows if "curves" in row}


def label(rows: Rows, setting: Setting) -> str:
    """The setting in words, with the name of the pictures that were used."""
    smoothing = f"label smoothing {setting.smoothing:g}" if setting.smoothing else "no label smoothing"
    network = f"width {setting.width}, batch {setting.batch}, {setting.logits} logits"
    return f"{pictures(rows)[setting.data]}, {network}, {smoothing}"


def score(rows: Rows, setting: Setting, seed: int, pair: Pair, which: str = "raw") -> float:
    """Held-out accuracy with these rates, trained with or read off the grid; ``which``: "raw" or "ema"."""
    if row := trained(rows, setting, seed, pair):
        return row[which]
    runs = {rate: row[which] for rate in GRID if (row := trained(rows, setting, seed, on_grid(rate)))}
    return float(np.interp(np.log(pair[1]), np.log(list(runs)), list(runs.values())))


def grid_means(rows: Rows, setting: Setting, which: str = "raw") -> dict[float, float]:
    """LR_MAX -> mean accuracy."""
    return {rate: mean(score(rows, setting, seed, on_grid(rate), which) for seed in SEEDS) for rate in GRID}


def regret(rows: Rows, which: str = "raw") -> str:
    """Regret of each rule in each setting, in Markdown."""
    lines, regrets, untrained, n = [], {rule: [] for rule in RULES}, 0, 0
    for setting in SETTINGS:
        grid = grid_means(rows, setting, which)
        best = max(grid, key=grid.get)
        found = {seed: rates_of(rows, setting, seed) for seed in SEEDS}
        for rule in RULES:
            accuracy = mean(score(rows, setting, seed, pairs[rule], which) for seed, pairs in found.items())
            regrets[rule].append(grid[best] - accuracy)
        untrained += sum(not trained(rows, setting, seed, pairs["eva_utils"]) for seed, pairs in found.items())
        n += len(found)
        maxima = ", ".join(f"{pairs['eva_utils'][1]:.2g}" for pairs in found.values())
        cells = [f"{round(regrets[rule][-1], 1) + 0:.1f}" for rule in RULES]
        lines.append([label(rows, setting), f"{best:.3g}", f"{grid[best]:.1f}", *cells, maxima])
    table = markdown(["setting", "best LR_MAX", "accuracy", *RULES, "LR_MAX found"], lines)
    note = f"\n{untrained} of *eva_utils*' {n} pairs were not trained with; these are read off the grid.\n"
    short = [
        [rule, f"{mean(lost):.1f}", f"{max(lost):.1f}", f"{sum(x > 1 for x in lost)}"] for rule, lost in regrets.items()
    ]
    head = markdown(["rule", "mean", "worst setting", "settings above 1 point"], short)
    return f"{head}\n<details><summary>Each setting</summary>\n\n{table}{note * bool(untrained)}\n</details>\n"


def whole(rows: Rows) -> str:
    """The whole job with each LR_MAX of the grid and with the rates found, and what the other rules found, in Markdown:
    mean and standard deviation over the seeds.
    """
    job, seeds = WHOLE, SEEDS
    lines = []
    for rate in GRID:
        runs = [row for seed in seeds if (row := trained(rows, job, seed, on_grid(rate)))]
        lines.append(
            [f"{rate:.3g}", *(spread([row[which] for row in runs]) for which in ("raw", "ema")), f"{len(runs)}"]
        )
    found = {rule: [rates_of(rows, job, seed)[rule] for seed in seeds] for rule in RULES}
    pairs = list(zip(seeds, found["eva_utils"], strict=True))
    cells = [spread([score(rows, job, seed, pair, which) for seed, pair in pairs]) for which in ("raw", "ema")]
    every = all(trained(rows, job, seed, pair) for seed, pair in pairs)
    name = "as found, LR_MIN too" if every else "as found, read off the grid where not trained with"
    table = markdown(["LR_MAX", "last weights", "EMA", "n"], [*lines, [name, *cells, f"{len(pairs)}"]])
    maxima = "; ".join(f"*{rule}* {', '.join(f'{pair[1]:.2g}' for pair in found[rule])}" for rule in RULES)
    title = f"{label(rows, job)}, {job.epochs} epochs; {devices(rows, whole=True)}"
    return f"{title}:\n\n{table}\nLR_MAX found: {maxima}.\n"


def marks(ax, setting: Setting, x, y, **style) -> None:
    """Points of a setting: the colour tells the logits, the shape the data."""
    color, marker = COLORS[setting.logits == "plain"], "os"[setting.data == "digits"]
    name = f"{NAMES.get(setting.data, setting.data)}, {setting.logits} logits"
    ax.plot(x, y, marker, ms=5, color=color, alpha=0.6, mew=0, label=name, **style)


def legend(figure: Picture, ax) -> None:
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # each name once
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)


@styled
def draw(rows: Rows) -> Picture:
    """For each rule: what every setting and seed loses by its LR_MAX, against how far that is from the grid's best."""
    settings = SETTINGS
    figure = Picture(9, 3.9, f"Four rules: what their LR_MAX costs, {len(settings)} settings, {len(SEEDS)} seeds each")
    panels = figure.subplots(1, len(RULES), sharex=True, sharey=True)
    for setting in settings:
        grid = grid_means(rows, setting)
        best = max(grid, key=grid.get)
        for seed in SEEDS:
            found = rates_of(rows, setting, seed)
            for ax, pair in zip(panels, (found[rule] for rule in RULES), strict=True):
                marks(ax, setting, pair[1] / best, max(grid[best] - score(rows, setting, seed, pair), 0.1))
    for ax, rule in zip(panels, RULES, strict=True):
        ax.axvline(1, color=".5", lw=1)
        ax.set(title=rule, xscale="log", yscale="log", xlabel="its LR_MAX / the best")
    panels[0].set(ylabel="points lost, 0.1 or more", xlim=(1e-3, 1e3), xticks=[1e-2, 1, 1e2], ylim=(0.09, 100))
    for axis in (panels[0].yaxis, *(ax.xaxis for ax in panels)):
        axis.set_major_formatter("{x:g}")
    legend(figure, panels[0])
    return figure


@styled
def draw_choice(rows: Rows) -> Picture:
    """How BEYOND was chosen: accuracy lost against LR_MAX, counted from the rate at half of the loss's fall.

    A point is a training, a line one seed of a setting, counted from its own curve and its own best.
    """
    figure = Picture(9, 5, "Accuracy lost (points) against LR_MAX over the rate at half of the fall")
    ax = figure.subplots()
    for setting in CHOSEN_ON:
        for seed in SEEDS:
            if runs := [row for rate in GRID if (row := trained(rows, setting, seed, on_grid(rate)))]:
                middle, best = ours(curves_of(rows, setting, seed)).curve.half(), max(row["raw"] for row in runs)
                marks(
                    ax,
                    setting,
                    [row["lr_max"] / middle for row in runs],
                    [best - row["raw"] for row in runs],
                    ls="-",
                    lw=0.7,
                )
    ax.axvline(BEYOND, color=".3", lw=1.5, ls="--")
    ax.annotate(f"the rule: {BEYOND}  ", (BEYOND, 19), ha="right")
    ax.set(xscale="log", xlim=(0.1, 300), ylim=(20, -0.5), xlabel="LR_MAX / rate at half of the fall",
           ylabel="accuracy lost (points)")  # fmt: skip
    ax.xaxis.set_major_formatter("{x:g}")
    legend(figure, ax)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS / "lr_finder.json", help="(%(default)s)")
    args = parser.parse_args()
    rows = Rows(args.out)
    print(regret(rows), regret(rows, "ema"), whole(rows), sep="\n")
    about = f"{' and '.join(sorted(pictures(rows).values()))}; {devices(rows)}"
    for name, function in {"lr_finder": draw, "lr_finder_choice": draw_choice}.items():
        print(plots.save(function(rows, about=about), args.out.with_name(f"{name}.png")))


if __name__ == "__main__":
    main()
