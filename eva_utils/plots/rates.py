"""Figures of policies: the rate as a function of the epoch."""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.figure import Figure

from ..errors import check
from ..schedule import OneCycle
from ._base import BLUE, COLORS, ORANGE, RED, Picture, axes, legend_above, mark, styled


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
    """A policy with an end over its epochs; of a one-cycle policy both rates and the peak are marked."""
    check("policy", policy, hasattr(policy, "epochs"), "one with an end, its epochs; plots.policies draws the others")
    ax = axes(ax)
    epoch = np.linspace(0, policy.epochs, 2001)
    rate = policy(epoch)
    ax.plot(epoch, rate, color=BLUE, lw=2)
    title = type(policy).__name__
    if isinstance(policy, OneCycle):
        title = "One-cycle policy, no annihilation"
        points = np.array([0, policy.peak_epoch, policy.epochs])
        ax.plot(points, policy(points), "o", color=RED)
        for point, words in (
            (0, f"LR_MIN = {policy.lr_min:.3g}"),
            (policy.peak_epoch, f"LR_MAX = {policy.lr_max:.3g} at epoch {policy.peak_epoch:g}"),
            (policy.epochs, f"LR_MIN at epoch {policy.epochs:g}"),
        ):
            mark(ax, words, point, policy(point), policy.epochs)
    top = rate.max() + 0.05 * max(np.ptp(rate), 0.5 * rate.max())
    ax.set(xlabel="epoch", ylabel="learning rate", title=title, ylim=(0, top))
    return ax.figure


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
        legend_above(ax)
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
