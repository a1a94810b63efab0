"""What benchmarks/lr_finder.py measured: the regret of four rules, what LR_MIN is worth, and two figures.

    python benchmarks/lr_tables.py    # prints the tables; draws lr_finder.png and lr_finder_choice.png beside the json

Regret is the accuracy of the best rate of the grid (mean over the seeds) minus that of a rule's rates. Settings of
which a run is missing are left out.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import numpy as np

from common import ASSETS, NAMES, Rows, markdown, spread, where
from eva_utils import plots
from eva_utils.lr_curve import BEYOND, choose_rates
from eva_utils.plots._base import COLORS, Picture, styled
from lr_finder import (
    CHOSEN_ON,
    GRID,
    LR_MIN_SETTINGS,
    RATIOS,
    SEEDS,
    SETTINGS,
    WEAK,
    WHOLE,
    WHOLE_RATIOS,
    Setting,
    beyond_grid,
    curves_of,
    grid_of,
    seeds,
    wanted,
)  # fmt: skip
from lr_rules import RATIO, RULES, ours, rates


def complete(rows: Rows) -> list[Setting]:
    """The settings of which every run is there."""
    todo = {setting for setting, _, _ in wanted(rows)}
    return [setting for setting in SETTINGS if setting not in todo]


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


def score(rows: Rows, setting: Setting, pairs: dict[int, tuple[float, float]], which: str = "raw") -> float:
    """Mean held-out accuracy with seed -> (lr_min, lr_max); ``which``: "raw" or "ema"."""
    key = asdict(setting)
    return mean(
        rows.find(**key, seed=seed, lr_min=lr_min, lr_max=lr_max)[which] for seed, (lr_min, lr_max) in pairs.items()
    )


def score_by(
    rule: str, rows: Rows, setting: Setting, pairs: dict[int, tuple[float, float]], which: str = "raw"
) -> float:
    """The same for what ``rule`` found. Ours is trained with; for the others, whose LR_MIN is that of the grid, the
    grid of the same seed is read between its points, and only what lies beyond its ends is trained with.
    """
    values = []
    for seed, pair in pairs.items():
        if rule == "eva_utils" or pair in beyond_grid({rule: pair}):
            values.append(score(rows, setting, {seed: pair}, which))
        else:
            grid = [score(rows, setting, {seed: (rate / RATIO, rate)}, which) for rate in GRID]
            values.append(float(np.interp(np.log(pair[1]), np.log(GRID), grid)))
    return mean(values)


def on_grid(rows: Rows, setting: Setting, which: str = "raw") -> dict[float, float]:
    """LR_MAX -> mean accuracy."""
    return {rate: score(rows, setting, dict.fromkeys(SEEDS, (rate / RATIO, rate)), which) for rate in GRID}


def by_rule(rows: Rows, setting: Setting) -> dict[str, dict[int, tuple[float, float]]]:
    """Rule -> seed -> (lr_min, lr_max)."""
    found = {seed: rates(curves_of(rows, setting, seed)) for seed in SEEDS}
    return {rule: {seed: pairs[rule] for seed, pairs in found.items()} for rule in RULES}


def regret(rows: Rows, which: str = "raw") -> str:
    """Regret of each rule in each setting, in Markdown."""
    head = ["setting", "best LR_MAX", "accuracy", *RULES, "LR_MAX found"]
    lines, regrets = [], {rule: [] for rule in RULES}
    for setting in complete(rows):
        grid = on_grid(rows, setting, which)
        best = max(grid, key=grid.get)
        found = by_rule(rows, setting)
        for rule, pairs in found.items():
            regrets[rule].append(grid[best] - score_by(rule, rows, setting, pairs, which))
        maxima = ", ".join(f"{lr_max:.2g}" for _, lr_max in found["eva_utils"].values())
        cells = [f"{round(regrets[rule][-1], 1) + 0:.1f}" for rule in RULES]
        lines.append([label(rows, setting), f"{best:.3g}", f"{grid[best]:.1f}", *cells, maxima])
    for name, statistic in (("mean", mean), ("worst", max)):
        if lines:
            lines.append([f"**{name}**", "", "", *(f"**{statistic(regrets[rule]):.1f}**" for rule in RULES), ""])
    return markdown(head, lines)


def lr_min(rows: Rows) -> str:
    """Accuracy, last weights / average, for the LR_MAX found and several LR_MIN, in Markdown."""
    lines = []
    waiting = {setting for setting, _, _ in wanted(rows)}
    for setting in (setting for setting in LR_MIN_SETTINGS if setting not in waiting):
        found = {seed: ours(curves_of(rows, setting, seed)) for seed in SEEDS}
        choices = [{s: (lr_max / ratio, lr_max) for s, (_, lr_max) in found.items()} for ratio in RATIOS] + [found]
        share = " to ".join(f"1/{f([b / a for a, b in found.values()]):.0f}" for f in (min, max))
        cells = [" / ".join(f"{score(rows, setting, pairs, w):.1f}" for w in ("raw", "ema")) for pairs in choices]
        lines.append([label(rows, setting), *cells, share])
    return markdown(["setting", *(f"LR_MAX/{ratio}" for ratio in RATIOS), "as found", "which is LR_MAX times"], lines)


def by_rate(rows: Rows, setting: Setting, choices: dict[str, dict[int, tuple[float, float]]]) -> str:
    """Accuracy in ``setting`` for each choice, name -> seed -> (lr_min, lr_max), in Markdown."""
    lines = []
    for name, pairs in choices.items():
        runs = [rows.find(**asdict(setting), seed=s, lr_min=pair[0], lr_max=pair[1]) for s, pair in pairs.items()]
        runs = [row for row in runs if row]  # rates far from the best were tried with the first seeds only
        lines.append([name, *(spread([row[which] for row in runs]) for which in ("raw", "ema")), f"{len(runs)}"])
    return markdown(["LR_MAX", "raw", "EMA", "n"], lines)


def weak(rows: Rows) -> str:
    """The settings where our rule does worst, with more seeds, in Markdown."""
    tables, waiting = [], {setting for setting, _, _ in wanted(rows)}
    for setting in (setting for setting in WEAK if setting not in waiting):
        found = {seed: ours(curves_of(rows, setting, seed)) for seed in seeds(setting)}
        choices = {f"{rate:.3g}": dict.fromkeys(found, (rate / RATIO, rate)) for rate in GRID}
        choices["as found, LR_MIN too"] = found
        tables.append(f"{label(rows, setting)}; {devices(rows)}:\n\n{by_rate(rows, setting, choices)}")
    return "\n".join(tables)


def whole(rows: Rows) -> str:
    """The whole job with each LR_MAX of the grid and with the rates found, and what the other rules found, in Markdown:
    mean and standard deviation over the seeds.
    """
    if wanted(rows, whole=True):
        return ""
    found = by_rule(rows, WHOLE)
    choices = {f"{rate:.3g}": dict.fromkeys(SEEDS, (rate / RATIO, rate)) for rate in GRID}
    for ratio in (None, *WHOLE_RATIOS):
        pairs = {s: (lr_max / ratio if ratio else lr_min, lr_max) for s, (lr_min, lr_max) in found["eva_utils"].items()}
        choices[f"as found, LR_MIN {f'LR_MAX/{ratio}' if ratio else 'too'}"] = pairs
    maxima = {rule: ", ".join(f"{lr_max:.2g}" for _, lr_max in pairs.values()) for rule, pairs in found.items()}
    return (
        f"{label(rows, WHOLE)}, {WHOLE.epochs} epochs; {devices(rows, whole=True)}:\n\n"
        f"{by_rate(rows, WHOLE, choices)}\n"
        f"LR_MAX found: {'; '.join(f'*{rule}* {values}' for rule, values in maxima.items())}.\n"
    )


@styled
def draw(rows: Rows) -> Picture:
    """For each rule: what every setting and seed loses by its LR_MAX, against how far that is from the grid's best."""
    figure = Picture(9, 3.4)
    panels = figure.subplots(1, len(RULES), sharex=True, sharey=True)
    for ax, rule in zip(panels, RULES, strict=True):
        for setting in complete(rows):
            grid = on_grid(rows, setting)
            best = max(grid, key=grid.get)
            for seed, pair in by_rule(rows, setting)[rule].items():
                lost = grid[best] - score_by(rule, rows, setting, {seed: pair})
                color = COLORS[setting.logits == "plain"]
                ax.plot(pair[1] / best, max(lost, 0.1), "o", ms=5, color=color, alpha=0.6, mew=0)
        ax.axvline(1, color=".5", lw=1)
        ax.set(title=rule, xscale="log", yscale="log", xlabel="its LR_MAX / the best")
    panels[0].set(ylabel="accuracy lost (points)", xlim=(1e-3, 1e3), xticks=[1e-2, 1, 1e2], ylim=(0.09, 100))
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
    for i, setting in enumerate(CHOSEN_ON):
        lost = []
        for seed in SEEDS:
            rates = grid_of(rows, setting, seed)
            runs = [rows.find(**asdict(setting), seed=seed, lr_min=rate / RATIO, lr_max=rate) for rate in rates]
            if runs and all(runs):
                found = curves_of(rows, setting, seed)["eva_utils"]
                middle = choose_rates(*(np.array(values) for values in found.values()))[3].rate_at(0.5)
                best = max(row["raw"] for row in runs)
                lost += [(rate / middle, best - row["raw"]) for rate, row in zip(rates, runs, strict=True)]
        if lost:
            marker, color = "os"[setting.data == "digits"], COLORS[i % len(COLORS)]
            lost = np.array(sorted(lost))
            ax.plot(*lost.T, marker, ms=6, color=color, alpha=0.85, mew=0, label=label(rows, setting))
    ax.axvline(BEYOND, color=".3", lw=1.5, ls="--")
    ax.annotate(f"{BEYOND}", (BEYOND, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="center", annotation_clip=False)  # fmt: skip
    ax.set(xscale="log", xlim=(0.1, 300), ylim=(20, -0.5), xlabel="LR_MAX / rate at half of the fall",
           ylabel="accuracy lost (points)")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, fontsize=7.5)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS / "lr_finder.json", help="what lr_finder.py wrote")
    args = parser.parse_args()
    rows = Rows(args.out)
    for which, name in (("raw", "last weights"), ("ema", "average of the weights")):
        print(f"{name}\n\n{regret(rows, which)}")
    print(weak(rows), lr_min(rows), whole(rows), sep="\n")
    for name, picture in {"lr_finder": draw(rows), "lr_finder_choice": draw_choice(rows)}.items():
        print(plots.save(picture, args.out.with_name(f"{name}.png")))


if __name__ == "__main__":
    main()
