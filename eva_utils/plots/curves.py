"""Figures with curves: policies, the range test, rates planned and applied, loss and accuracy."""

from __future__ import annotations

import itertools
import math
import textwrap

import numpy as np
from matplotlib.figure import Figure

from ..errors import check
from ._base import BLUE, COLORS, GREEN, ORANGE, RED, Picture, axes, styled


def _legend_above(ax, points: float = 2) -> None:
    """A legend in one row at the right end of the title's line, ``points`` above ``ax``: it covers no curve."""
    size = 10  # points, the unit of the paddings
    ax.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=len(ax.get_legend_handles_labels()[0]), fontsize=size,
        borderpad=0, borderaxespad=points / size, columnspacing=1.5,
    )  # fmt: skip


def _mark(ax, words: str, epoch: float, rate: float, epochs: float) -> None:
    """``words`` beside a point of a policy, on the side with more room."""
    late = epoch > epochs / 2
    offset, side = ((-14, -4), "right") if late else ((14, -4), "left")
    ax.annotate(words, (epoch, rate), offset, textcoords="offset points", ha=side)


@styled
def zigzag(policy, cycles: float = 3, *, annotate: bool = False, ax=None) -> Figure:
    """The cyclic triangular curve of ``policy`` over ``cycles`` cycles: bare, or with axes and its terms marked."""
    end = 2 * policy.step_size * cycles
    ax = axes(ax, 8, 4 if annotate else 1.8)
    epoch = np.linspace(0, end, 400 * math.ceil(cycles) + 1)
    lo, hi, step = policy.lr_min, policy.lr_max, policy.step_size
    height = hi - lo
    ax.axhline(hi, color="0.8", lw=1)
    ax.axhline(lo, color="0.3" if not annotate else "0.8", lw=1)
    ax.plot(epoch, policy(epoch), color=BLUE if annotate else "black", lw=2 if annotate else 1.5)
    ax.set_xlim(0, end)
    if not annotate:
        ax.set_ylim(lo - 0.01 * height, hi + 0.01 * height)
        ax.axis("off")
        return ax.figure
    ax.grid(False)
    ax.set(
        xlabel="epoch",
        ylabel="learning rate",
        title="Cyclic learning rate",
        ylim=(lo - 0.3 * height, hi + 0.2 * height),
    )
    for y, words, offset in ((hi, f"LR_MAX = {hi:g}", 4), (lo, f"LR_MIN = {lo:g}", -4)):
        ax.annotate(
            words, (end, y), (0, offset), textcoords="offset points", color=RED, ha="right",
            va="bottom" if offset > 0 else "top",
        )  # fmt: skip
    for start, stop, y, words in (
        (0, step, lo - 0.08 * height, f"step size = {step:g}"),
        (0, 2 * step, lo - 0.21 * height, f"cycle = {2 * step:g} epochs"),
    ):
        ax.annotate(
            "", (start, y), (stop, y), arrowprops={"arrowstyle": "<->", "color": "0.3", "shrinkA": 0, "shrinkB": 0}
        )
        if cycles <= 5:
            ax.text((start + stop) / 2, y, words, ha="center", va="center", backgroundcolor="white", fontsize=9)
        else:  # the arrow is shorter than the words
            ax.annotate(words, (stop, y), (6, 0), textcoords="offset points", va="center", fontsize=9)
    return ax.figure


@styled
def policies(named: dict, epochs: float) -> Figure:
    """Several policies side by side: {title: policy}, each over ``epochs`` epochs, all on one scale."""
    check("named", named, len(named) > 0, "a dict with a policy or more")
    columns = min(2, len(named))
    rows = -(-len(named) // columns)
    figure = Picture(8.5, 2.5 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    epoch = np.linspace(0, epochs, 2001)
    for ax, (title, policy), color in zip(grid.flat, named.items(), itertools.cycle(COLORS), strict=False):
        ax.plot(epoch, policy(epoch), color=color, lw=2)
        ax.set(title=title, xlim=(0, epochs))
    for ax in grid.flat[len(named) :]:
        ax.set_visible(False)
    figure.supxlabel("epoch", fontsize=11)
    figure.supylabel("learning rate", fontsize=11)
    return figure


@styled
def schedule(policy, *, ax=None) -> Figure:
    """A one-cycle policy over its epochs, with both rates and the peak marked."""
    ax = axes(ax)
    epoch = np.linspace(0, policy.epochs, 2001)
    ax.plot(epoch, policy(epoch), color=BLUE, lw=2)
    ax.plot(
        [0, policy.peak_epoch, policy.epochs], policy(np.array([0, policy.peak_epoch, policy.epochs])), "o", color=RED
    )
    _mark(ax, f"LR_MIN = {policy.lr_min:.3g}", 0, policy.lr_min, policy.epochs)
    peak = policy.peak_epoch
    _mark(ax, f"LR_MAX = {policy.lr_max:.3g} at epoch {peak:g}", peak, policy.lr_max, policy.epochs)
    _mark(ax, f"LR_MIN at epoch {policy.epochs:g}", policy.epochs, policy.lr_min, policy.epochs)
    top = policy.lr_max + 0.05 * max(policy.lr_max - policy.lr_min, 0.5 * policy.lr_max)
    ax.set(xlabel="epoch", ylabel="learning rate", title="One-cycle policy, no annihilation", ylim=(0, top))
    return ax.figure


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
    ax.set(ylim=(curve.smooth.min() - 0.15 * fall, top), xlim=ax.get_xlim())
    if edge < len(curve.lr):  # and not merely flat to its end
        ax.axvspan(curve.lr[edge], ax.get_xlim()[1], color="0.965", zorder=0)
        if np.log(curve.lr[-1] / curve.lr[edge]) > 0.25 * np.log(curve.lr[-1] / curve.lr[0]):
            ax.annotate(
                "too high: does not count", (1, 1), (-6, -6), xycoords="axes fraction", textcoords="offset points",
                ha="right", va="top", fontsize=9, color="0.4", bbox={"fc": "0.965", "ec": "none", "pad": 1},
            )  # fmt: skip
    _legend_above(ax, 24)
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
    _mark(top, f"{used[peak]:.4g} at epoch {epoch[peak]:g}", epoch[peak], used[peak], policy.epochs)
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
    """Loss and accuracy of train and test after every epoch (``Run.history``)."""
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
        ax.legend(
            loc="upper right" if what == "loss" else "lower right", fontsize=9,
            title="after the last epoch", title_fontsize=9, alignment="left",
        )  # fmt: skip
        if len(rows) == 1:
            ax.set(xlim=(0, 2), xticks=[1])
            ax.margins(y=1)  # room for the legend, which no line leads away from
        else:
            ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def parity(pairs: dict, epochs: float, steps_per_epoch: int) -> Figure:
    """Policies as lines and torch's schedulers, driven step by step, as dots on them: {title: (policy, scheduler)}."""
    figure = Picture(8, 2.6 * len(pairs))
    epoch = np.arange(round(epochs * steps_per_epoch) + 1) / steps_per_epoch
    for ax, (title, (policy, scheduler)) in zip(
        figure.subplots(len(pairs), 1, squeeze=False).flat, pairs.items(), strict=True
    ):
        theirs = np.empty(len(epoch))
        for i in range(len(epoch)):
            theirs[i] = scheduler.optimizer.param_groups[0]["lr"]
            if i + 1 < len(epoch):
                scheduler.optimizer.step()  # a scheduler warns when it moves before its optimizer
                scheduler.step()
        ours = policy(epoch)
        ax.plot(epoch, ours, color=ORANGE, lw=6, alpha=0.5, label=type(policy).__name__)
        ax.plot(epoch[::4], theirs[::4], ".", ms=4, color=BLUE, label=f"torch, {title}")
        gap = abs(ours - theirs).max()
        ax.set(xlabel="epoch", ylabel="learning rate", title=f"{title}: largest difference {gap:.1g}")
        _legend_above(ax)
    return figure


@styled
def annihilation(policy) -> Figure:
    """A one-cycle policy beside the same triangle squeezed to make room for an annihilation phase, on a log scale.

    Smith lets the rate fall by orders of magnitude in the end (arXiv:1708.07120); here it is to a hundredth of lr_min,
    within the last tenth of the epochs.
    """
    epoch = np.linspace(0, policy.epochs, 2001)
    start, low = 0.9 * policy.epochs, policy.lr_min / 100
    check("peak_epoch", policy.peak_epoch, policy.peak_epoch < start, f"below {start:g}, where annihilation begins")
    knots, rates = [0, policy.peak_epoch, start, policy.epochs], [policy.lr_min, policy.lr_max, policy.lr_min, low]
    figure = Picture(8, 3.6)
    for ax, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        ax.axvspan(start, policy.epochs, color="0.92")
        ax.plot(epoch, np.interp(epoch, knots, rates), color=ORANGE, lw=2, label="with annihilation")
        ax.plot(epoch, policy(epoch), color=BLUE, lw=2, label="without: ends at LR_MIN")
        ax.set(xlabel="epoch", ylabel="learning rate", title=f"{scale} scale", yscale=scale, xlim=(0, policy.epochs))
        if scale == "linear":
            middle = (start + policy.epochs) / 2
            ax.text(
                middle, 0.95, "annihilation", transform=ax.get_xaxis_transform(), rotation=90, ha="center", va="top"
            )
        else:  # the lower half is empty
            ax.legend(loc="center left", fontsize=9)
            ax.annotate(
                "annihilation: the last tenth,\ndown to LR_MIN / 100", (start, 0.04), (-6, 0), ha="right",
                xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9,
            )  # fmt: skip
    return figure
