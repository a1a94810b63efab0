"""Figures of trainings: the range test, rates planned and applied, loss and accuracy, several runs compared."""

from __future__ import annotations

import itertools
import textwrap

import numpy as np
from matplotlib.figure import Figure

from ..errors import check
from ._base import BLUE, COLORS, GREEN, ORANGE, RED, Picture, legend_above, mark, styled


@styled
def lr_range(rates, *, ax=None) -> Figure:
    """The range test: loss against rate, with both rates, half of the fall and its end marked.

    The reason for each rate stands below.
    """
    figure = None
    if ax is None:
        figure = Picture(8, 5)
        ax = figure.subplots()
    curve = rates.curve
    ax.plot(curve.lr, curve.loss, color="0.75", lw=1, label="each batch")
    ax.plot(curve.lr, curve.smooth, color=BLUE, lw=2.5, label="smoothed")
    # The names grow away from each other: the two rates may lie close together.
    for lr, name, color, side in ((rates.lr_min, "LR_MIN", GREEN, "right"), (rates.lr_max, "LR_MAX", RED, "left")):
        ax.axvline(lr, color=color, lw=1.5, ls="--")
        ax.annotate(
            f"{name} = {lr:.3g}", (lr, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
            color=color, ha=side, annotation_clip=False,
        )  # fmt: skip
    low, edge = curve.valley()
    valley, start = curve.smooth[low], curve.smooth[0]
    fall = start - valley
    ax.plot(curve.rate_at(0.5), start - fall / 2, "D", ms=7, color=BLUE, mec="white", label="half of the fall")
    ax.plot(curve.lr[low], valley, "o", ms=8, color=BLUE, mec="white", label="end of the fall")
    ax.set(xscale="log", xlabel="learning rate (log scale)", ylabel="training loss (nats)")
    ax.set_title("Range test", pad=22)  # the names of the two rates stand between title and axes
    # The blow-up is what LR_MAX has to stay clear of, so it is shown, but it must not flatten the valley.
    top = min(curve.smooth.max() + 0.3 * fall, start + 1.5 * fall)
    left, right = ax.get_xlim()
    right = max(right, left * (rates.lr_max / left) ** (1 / 0.84))  # the name of LR_MAX needs a sixth of the width
    ax.set(ylim=(curve.smooth.min() - 0.15 * fall, top), xlim=(left, right))
    if edge < len(curve.lr):  # and not merely flat to its end
        ax.axvspan(curve.lr[edge], right, color="0.965", zorder=0)
        if np.log(curve.lr[-1] / curve.lr[edge]) > 0.25 * np.log(curve.lr[-1] / curve.lr[0]):
            ax.annotate(
                "too high: does not count", (1, 1), (-6, -6), xycoords="axes fraction", textcoords="offset points",
                ha="right", va="top", fontsize=9, color="0.4", bbox={"fc": "0.965", "ec": "none", "pad": 1},
            )  # fmt: skip
    legend_above(ax, 24)
    if figure is not None:
        words = [f"{name}: {rates.reasons[key]}" for name, key in (("LR_MIN", "lr_min"), ("LR_MAX", "lr_max"))]
        text = "\n".join(line for sentence in words for line in textwrap.wrap(sentence, 115))
        figure.supxlabel(text, fontsize=9, ha="left", x=0.02, color="0.25")
    return ax.figure


@styled
def applied(steps: list[dict], policy) -> Figure:
    """Planned and applied rate of every step of a run (``Run.steps``), one on the other, and their difference.

    The plan is worked out again, from ``policy`` and the steps' number alone: what training wrote down is no witness.
    """
    used = np.array([row["applied"] for row in steps])
    took = np.array([not row["skipped"] for row in steps])
    epoch = (took.cumsum() - took) * policy.epochs / len(steps)  # before each step; a skipped one makes the plan wait
    planned = np.array([policy(x) for x in epoch.tolist()])
    figure = Picture(8, 4.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot(epoch, planned, color=ORANGE, lw=6, alpha=0.5, label="plan: the policy, step by step")
    marker = "o" if len(steps) == 1 else None  # a line needs two
    top.plot(epoch, used, color=BLUE, lw=1.5, marker=marker, label="applied by the optimizer")
    peak = int(used.argmax())
    mark(top, f"{used[peak]:.4g} at epoch {round(epoch[peak], 2):g}", epoch[peak], used[peak], policy.epochs)
    top.set(ylabel="learning rate", title="Planned and applied learning rate", ylim=(0, None), xlim=(0, None))
    top.legend(loc="upper left" if epoch[peak] > policy.epochs / 2 else "upper right")
    gap = used - planned
    bottom.plot(epoch, gap, color=RED, lw=1.5)
    bottom.set(
        xlabel="epoch", ylabel="difference",
        title=f"Largest difference in {len(steps):,} step{'s' * (len(steps) > 1)}: {abs(gap).max():g}",
    )  # fmt: skip
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    if not gap.any():
        bottom.set(ylim=(-1, 1), yticks=[0])
    return figure


@styled
def history(rows: list[dict]) -> Figure:
    """Loss and accuracy of train and test after every epoch (``Run.history``).

    A test loss far above all training losses, as a first epoch at high rates may leave it, is cut off.
    """
    epoch = [row["epoch"] for row in rows]
    figure = Picture(9, 4)
    marker = "." if len(rows) <= 60 else None
    for ax, what, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("nats", "%"), strict=True):
        for key, label, color in (
            (f"train_{what}", "train (augmented images)", ORANGE),
            (f"test_{what}", "test", BLUE),
            (f"test_{what}_ema", "test, averaged weights (EMA)", GREEN),
        ):
            values = np.array([row[key] for row in rows])
            last = f"{values[-1]:.2f} %" if what == "accuracy" else f"{values[-1]:.3f}"
            ax.plot(epoch, values, color=color, lw=1.8, marker=marker, label=f"{label}: {last}")
        ax.set(xlabel="epoch", ylabel=f"{what} ({unit})", title=what.capitalize())
        shown = max(row[f"train_{what}"] for row in rows), rows[-1][f"test_{what}"], rows[-1][f"test_{what}_ema"]
        if cut := what == "loss" and ax.get_ylim()[1] > 2 * max(shown) > 0:
            ax.set(ylim=(0, 2 * max(shown)))
        ax.legend(
            loc="upper right" if what == "loss" else "lower right", fontsize=9, title="after the last epoch",
            title_fontsize=9, alignment="left", frameon=cut, edgecolor="none",  # a line may leave through it
        )  # fmt: skip
        if len(rows) == 1:
            ax.set(xlim=(0, 2), xticks=[1])
            ax.margins(y=1)  # room for the legend, which no line leads away from
        else:
            ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def compare(runs: dict) -> Figure:
    """Test accuracy against epochs of several runs, of the last weights and of their average: {name: histories}.

    ``histories`` is a list of ``Run.history``; longer ones than the shortest of all are dashed. The first run's end is
    marked across the figure, and what lies far below all ends is cut off.
    """
    right = any(map(len, runs.values())) and all(isinstance(rows, list) for some in runs.values() for rows in some)
    check("runs", list(runs), right, "a dict of lists of histories, as {'one-cycle': [run.history]}")
    named = [(name, rows, color) for (name, some), color in zip(runs.items(), itertools.cycle(COLORS)) for rows in some]
    shortest = min(len(rows) for _, rows, _ in named)
    figure = Picture(9, 5)
    panels = figure.subplots(1, 2)
    titles = {"test_accuracy": "last weights", "test_accuracy_ema": "their average (EMA)"}
    for ax, (key, title) in zip(panels, titles.items(), strict=True):
        curves = [[row[key] for row in rows] for _, rows, _ in named]
        for (name, _, color), values in zip(named, curves, strict=True):
            style = "-" if len(values) == shortest else "--"
            label = f"{name}, {len(values)} epochs: {values[-1]:.1f} %"
            ax.plot(range(1, len(values) + 1), values, style, color=color, lw=1.5, label=label)
            ax.plot(len(values), values[-1], "o", color=color)
        first, rows, color = named[0]
        ax.axhline(curves[0][-1], color=color, lw=0.8, ls=":", label=f"where {first} ended after {len(rows)} epochs")
        top = max(map(max, curves))
        low = max(
            top - 45, min(min(values[shortest // 4 :]) for values in curves)
        )  # the first epochs are not the point
        ax.set(xlabel="epoch", title=title, ylim=(low, top + 0.05 * (top - low)))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9)
    panels[0].set(ylabel="test accuracy (%)")
    return figure
