"""What benchmarks/lr_finder.py measured: the regret of four rules, what LR_MIN is worth, and two figures.

    python benchmarks/lr_tables.py    # prints the tables; draws lr_finder.png and lr_finder_choice.png beside the json

Regret is the accuracy of the best rate of the grid (mean over the seeds) minus that of a rule's rates. Rates that no
run was trained with are read off the grid of the same seed, between its points (at its ends, the end's); for ours the
tables then say so. Settings of which other runs are missing are left out.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import numpy as np

import lr_finder as study
from common import ASSETS, NAMES, Rows, markdown, spread, where
from eva_utils import plots
from eva_utils.lr_curve import BEYOND
from eva_utils.plots._base import COLORS, Picture, styled
from lr_finder import Pair, Setting, curves_of, grid_of, on_grid, seeds, trained, wanted
from lr_rules import RULES, ours, rates


def rates_of(rows: Rows, setting: Setting, seed: int) -> dict[str, Pair]:
    return rates(curves_of(rows, setting, seed))


def complete(rows: Rows, settings: list[Setting], whole: bool = False) -> list[Setting]:
    """Those of which every run is there, but for the rates that our rule finds now."""
    todo = {s for s, seed, pair in wanted(rows, whole=whole)
            if pair is None or pair[1] != rates_of(rows, s, seed)["eva_utils"][1]}  # fmt: skip
    return [setting for setting in settings if setting not in todo]


def devices(rows: Rows, whole: bool = False) -> str:
    """What the short trainings, or the whole jobs, were measured on."""
    heads = [row for row in rows.rows if "curves" in row and bool(row.get("epochs")) == whole]
    return "; ".join(dict.fromkeys(where(row) for row in heads))


def label(rows: Rows, setting: Setting) -> str:
    """The setting in words, with the name of the pictures that were used."""
    data = next(row["pictures"] for row in rows.rows if "curves" in row and row["data"] == setting.data)
    smoothing = f"label smoothing {setting.smoothing:g}" if setting.smoothing else "no label smoothing"
    network = f"width {setting.width}, batch {setting.batch}, {setting.logits} logits"
    return f"{NAMES.get(data, data)}, {network}, {smoothing}"


def score(rows: Rows, setting: Setting, seed: int, pair: Pair, which: str = "raw") -> float:
    """Held-out accuracy with these rates, trained with or read off the grid; ``which``: "raw" or "ema"."""
    if row := trained(rows, setting, seed, pair):
        return row[which]
    runs = {rate: row[which] for rate in study.GRID if (row := trained(rows, setting, seed, on_grid(rate)))}
    return float(np.interp(np.log(pair[1]), np.log(list(runs)), list(runs.values())))


def grid_means(rows: Rows, setting: Setting, which: str = "raw") -> dict[float, float]:
    """LR_MAX -> mean accuracy."""
    return {rate: mean(score(rows, setting, seed, on_grid(rate), which) for seed in study.SEEDS) for rate in study.GRID}


def regret(rows: Rows, which: str = "raw") -> str:
    """Regret of each rule in each setting, in Markdown."""
    lines, regrets, untrained, n = [], {rule: [] for rule in RULES}, 0, 0
    for setting in complete(rows, study.SETTINGS):
        grid = grid_means(rows, setting, which)
        best = max(grid, key=grid.get)
        found = {seed: rates_of(rows, setting, seed) for seed in study.SEEDS}
        for rule in RULES:
            accuracy = mean(score(rows, setting, seed, pairs[rule], which) for seed, pairs in found.items())
            regrets[rule].append(grid[best] - accuracy)
        untrained += sum(not trained(rows, setting, seed, pairs["eva_utils"]) for seed, pairs in found.items())
        n += len(found)
        maxima = ", ".join(f"{pairs['eva_utils'][1]:.2g}" for pairs in found.values())
        cells = [f"{round(regrets[rule][-1], 1) + 0:.1f}" for rule in RULES]
        lines.append([label(rows, setting), f"{best:.3g}", f"{grid[best]:.1f}", *cells, maxima])
    if not lines:
        return ""
    for name, statistic in (("mean", mean), ("worst", max)):
        lines.append([f"**{name}**", "", "", *(f"**{statistic(regrets[rule]):.1f}**" for rule in RULES), ""])
    table = markdown(["setting", "best LR_MAX", "accuracy", *RULES, "LR_MAX found"], lines)
    note = f"\n{untrained} of *eva_utils*' {n} pairs were not trained with; these are read off the grid.\n"
    return table + note * bool(untrained)


def lines_of(rows: Rows, setting: Setting, choices: dict[str, dict[int, Pair]]) -> list[list[str]]:
    """The table's line for each choice, name -> seed -> rates: accuracy over the seeds that were trained with them."""
    lines = []
    for name, pairs in choices.items():
        if runs := [row for seed, pair in pairs.items() if (row := trained(rows, setting, seed, pair))]:
            lines.append([name, *(spread([row[which] for row in runs]) for which in ("raw", "ema")), f"{len(runs)}"])
    return lines


def as_found(rows: Rows, setting: Setting) -> tuple[list[str], str]:
    """The line of the rates found, and the LR_MAX in words."""
    found = {seed: rates_of(rows, setting, seed)["eva_utils"] for seed in seeds(setting)}
    every = all(trained(rows, setting, seed, pair) for seed, pair in found.items())
    values = [[score(rows, setting, seed, pair, which) for seed, pair in found.items()] for which in ("raw", "ema")]
    name = "as found, LR_MIN too" if every else "as found, read off the grid where not trained with"
    return [name, *map(spread, values), f"{len(found)}"], ", ".join(f"{lr_max:.2g}" for _, lr_max in found.values())


def weak(rows: Rows) -> str:
    """The settings where our rule does worst, with more seeds, in Markdown."""
    parts = []
    for setting in complete(rows, study.WEAK):
        choices = {f"{rate:.3g}": dict.fromkeys(seeds(setting), on_grid(rate)) for rate in study.GRID}
        table = markdown(["LR_MAX", "raw", "EMA", "n"], [*lines_of(rows, setting, choices), as_found(rows, setting)[0]])
        parts.append(f"{label(rows, setting)}; {devices(rows)}:\n\n{table}")
    return "\n".join(parts)


def studied(rows: Rows, setting: Setting, seed: int, ratios: list[int]) -> Pair | None:
    """The pair that was found and trained with, LR_MAX with other LR_MIN as well: the present rule's, or an earlier."""
    key = {**asdict(setting), "seed": seed}
    runs = [row for row in rows.rows if "lr_min" in row and all(row.get(k) == v for k, v in key.items())]
    for pair in [rates_of(rows, setting, seed)["eva_utils"], *((row["lr_min"], row["lr_max"]) for row in runs)]:
        others = [(pair[1] / ratio, pair[1]) for ratio in ratios]
        if all(trained(rows, setting, seed, p) for p in (pair, *others)) and not any(
            math.isclose(pair[0], other) for other, _ in (*others, on_grid(pair[1]))
        ):
            return pair
    return None


def lr_min(rows: Rows) -> str:
    """Accuracy, last weights / average, for the LR_MAX found and several LR_MIN, in Markdown."""
    lines, earlier = [], False
    for setting in study.LR_MIN_SETTINGS:
        tests = [seed for seed in study.SEEDS if curves_of(rows, setting, seed)]
        found = {seed: pair for seed in tests if (pair := studied(rows, setting, seed, study.RATIOS))}
        if len(found) == len(study.SEEDS):
            earlier |= any(pair != rates_of(rows, setting, seed)["eva_utils"] for seed, pair in found.items())
            choices = [{s: (lr_max / r, lr_max) for s, (_, lr_max) in found.items()} for r in study.RATIOS] + [found]
            cells = [[mean(score(rows, setting, s, pair, which) for s, pair in pairs.items())
                      for which in ("raw", "ema")] for pairs in choices]  # fmt: skip
            share = " to ".join(f"1/{f([b / a for a, b in found.values()]):.0f}" for f in (min, max))
            lines.append([label(rows, setting), *(f"{raw:.1f} / {ema:.1f}" for raw, ema in cells), share])
    head = ["setting", *(f"LR_MAX/{ratio}" for ratio in study.RATIOS), "as found", "which is LR_MAX times"]
    return markdown(head, lines) + "\nSome or all of these rates were found by an earlier rule.\n" * earlier


def whole(rows: Rows) -> str:
    """The whole job with each LR_MAX of the grid and with the rates found, and what the other rules found, in Markdown:
    mean and standard deviation over the seeds.
    """
    if not complete(rows, [study.WHOLE], whole=True):
        return ""
    choices = {f"{rate:.3g}": dict.fromkeys(study.SEEDS, on_grid(rate)) for rate in study.GRID}
    line, maxima = as_found(rows, study.WHOLE)
    before = {seed: pair for seed in study.SEEDS if (pair := studied(rows, study.WHOLE, seed, study.WHOLE_RATIOS))}
    old = any(
        not trained(rows, study.WHOLE, seed, rates_of(rows, study.WHOLE, seed)["eva_utils"]) for seed in study.SEEDS
    )
    name = f"{', '.join(f'{lr_max:.3g}' for _, lr_max in before.values())} (an earlier rule's)" if old else "as found"
    more = {f"{name}, LR_MIN too": before} if old else {}
    for ratio in study.WHOLE_RATIOS:
        more[f"{name}, LR_MIN LR_MAX/{ratio}"] = {s: (lr_max / ratio, lr_max) for s, (_, lr_max) in before.items()}
    lines = [*lines_of(rows, study.WHOLE, choices), line, *lines_of(rows, study.WHOLE, more)]
    found = {rule: [rates_of(rows, study.WHOLE, seed)[rule][1] for seed in study.SEEDS] for rule in RULES[1:]}
    others = "; ".join(f"*{rule}* {', '.join(f'{rate:.2g}' for rate in found[rule])}" for rule in found)
    return (
        f"{label(rows, study.WHOLE)}, {study.WHOLE.epochs} epochs; {devices(rows, whole=True)}:\n\n"
        f"{markdown(['LR_MAX', 'raw', 'EMA', 'n'], lines)}\nLR_MAX found: *eva_utils* {maxima}; {others}.\n"
    )


@styled
def draw(rows: Rows) -> Picture:
    """For each rule: what every setting and seed loses by its LR_MAX, against how far that is from the grid's best."""
    figure = Picture(9, 3.4)
    panels = figure.subplots(1, len(RULES), sharex=True, sharey=True)
    for setting in complete(rows, study.SETTINGS):
        grid, color = grid_means(rows, setting), COLORS[setting.logits == "plain"]
        best = max(grid, key=grid.get)
        for seed in study.SEEDS:
            for ax, pair in zip(panels, rates_of(rows, setting, seed).values(), strict=True):
                lost = max(grid[best] - score(rows, setting, seed, pair), 0.1)
                ax.plot(pair[1] / best, lost, "o", ms=5, color=color, alpha=0.6, mew=0)
    for ax, rule in zip(panels, RULES, strict=True):
        ax.axvline(1, color=".5", lw=1)
        ax.set(title=rule, xscale="log", yscale="log", xlabel="its LR_MAX / the best")
    panels[0].set(ylabel="accuracy lost (points)", xlim=(1e-3, 1e3), xticks=[1e-2, 1, 1e2], ylim=(0.09, 100))
    for axis in (panels[0].yaxis, *(ax.xaxis for ax in panels)):
        axis.set_major_formatter("{x:g}")
    for logits, color in zip(("scaled", "plain"), COLORS, strict=False):
        panels[0].plot([], [], "o", ms=5, color=color, alpha=0.6, mew=0, label=f"{logits} logits")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def draw_choice(rows: Rows) -> Picture:
    """How BEYOND was chosen: accuracy lost against LR_MAX, counted from the rate at half of the loss's fall.

    A point is a training; each seed is counted from its own curve and its own best.
    """
    figure = Picture(9, 5)
    ax = figure.subplots()
    for i, setting in enumerate(study.CHOSEN_ON):
        lost = []
        for seed in study.SEEDS:
            runs = [trained(rows, setting, seed, on_grid(rate)) for rate in grid_of(rows, setting, seed)]
            if runs and all(runs):
                middle, best = ours(curves_of(rows, setting, seed)).curve.half(), max(row["raw"] for row in runs)
                lost += [(row["lr_max"] / middle, best - row["raw"]) for row in runs]
        if lost:
            marker, color = "os"[setting.data == "digits"], COLORS[i % len(COLORS)]
            ax.plot(*np.array(sorted(lost)).T, marker, ms=6, color=color, alpha=0.85, mew=0, label=label(rows, setting))
    ax.axvline(BEYOND, color=".3", lw=1.5, ls="--")
    ax.annotate(f"{BEYOND}", (BEYOND, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="center", annotation_clip=False)  # fmt: skip
    ax.set(xscale="log", xlim=(0.1, 300), ylim=(20, -0.5), xlabel="LR_MAX / rate at half of the fall",
           ylabel="accuracy lost (points)")  # fmt: skip
    ax.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=7.5)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS / "lr_finder.json", help="what lr_finder.py wrote")
    args = parser.parse_args()
    rows = Rows(args.out)
    print(regret(rows), regret(rows, "ema"), weak(rows), lr_min(rows), whole(rows), sep="\n")
    for name, picture in {"lr_finder": draw(rows), "lr_finder_choice": draw_choice(rows)}.items():
        print(plots.save(picture, args.out.with_name(f"{name}.png")))


if __name__ == "__main__":
    main()
