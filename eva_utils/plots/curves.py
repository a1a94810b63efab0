"""Figures with curves: policies, the range test, rates applied, loss and accuracy, several runs compared."""

import textwrap

import numpy as np

from ..errors import check
from ..schedule import OneCycle
from ._base import BLUE, COLORS, GREEN, GREY, ORANGE, Figure, Picture, beside, epoch_axis, headline, label_ends, styled


@styled
def zigzag(policy, cycles: float = 3, *, annotate: bool = False, ax=None) -> Figure:
    """The cyclic triangular curve of ``policy`` over ``cycles`` cycles: bare, or with axes and its terms marked."""
    ax = ax or Picture(8, 4 if annotate else 1.8).subplots()
    lo, hi, step, end = policy.lr_min, policy.lr_max, policy.step_size, 2 * policy.step_size * cycles
    height, epoch = hi - lo, np.arange(0, end + step / 400, step / 200)
    ax.axhline(hi, color="0.8", lw=1)
    ax.axhline(lo, color="0.8" if annotate else "0.3", lw=1)
    ax.plot(epoch, policy(epoch), color=BLUE if annotate else "black", lw=2 if annotate else 1.5)
    if not annotate:
        ax.set(xlim=(0, end), ylim=(lo - 0.01 * height, hi + 0.01 * height))
        ax.axis("off")
        return ax.figure
    epoch_axis(ax, end)
    ax.set(ylabel="learning rate", ylim=(lo - 0.3 * height, hi + 0.2 * height))
    headline(ax, "The cyclic learning rate and its terms")
    beside(ax, f"LR_MAX = {hi:.3g}", (end, hi), (0, 10), ha="right", color=ORANGE)
    beside(ax, f"LR_MIN = {lo:.3g}", (end, lo), (0, -10), ha="right", color=ORANGE)
    for stop, down, words in ((step, 0.08, f"step size = {step:g}"), (2 * step, 0.21, f"cycle = {2 * step:g} epochs")):
        y = lo - down * height
        ax.annotate("", (0, y), (stop, y), arrowprops={"arrowstyle": "<->", "color": "0.3", "shrinkA": 0, "shrinkB": 0})
        beside(ax, words, (stop, y), (6, 0))
    return ax.figure


@styled
def policies(named: dict, epochs: float) -> Figure:
    """Several policies, one below the other: {title: policy}, each over ``epochs`` epochs, all on one scale."""
    figure = Picture(8, 1.5 * len(named) + 0.8, f"Learning rates over {epochs:g} epochs")
    epoch = np.linspace(0, epochs, 2001)
    panels = figure.subplots(len(named), 1, sharex=True, sharey=True, squeeze=False).flat
    for ax, (title, policy) in zip(panels, named.items(), strict=True):
        ax.plot(epoch, policy(epoch), color=BLUE, lw=2)
        ax.set_title(title)
    epoch_axis(ax, epochs)
    figure.supylabel("learning rate", fontsize=11)
    return figure


@styled
def schedule(policy, *, ax=None) -> Figure:
    """A policy with an end over its epochs; of a one-cycle policy both rates and the peak are marked."""
    check("policy", policy, hasattr(policy, "epochs"), "one with an end, its epochs; plots.policies draws the others")
    ax, end = ax or Picture(8, 4).subplots(), policy.epochs
    epoch = np.linspace(0, end, 2001)
    ax.plot(epoch, policy(epoch), color=BLUE, lw=2)
    title, points = type(policy).__name__, {}
    if isinstance(policy, OneCycle):
        title, peak = "One-cycle policy, no annihilation: it ends where it began", policy.peak_epoch
        points = {0: f"LR_MIN = {policy.lr_min:.3g}", end: f"LR_MIN at epoch {end:g}"}
        points[peak] = f"LR_MAX = {policy.lr_max:.3g} at epoch {peak:g}"
    for point, words in points.items():
        ax.plot(point, policy(point), "o", color=ORANGE, clip_on=False)
        offset, side = (-14, "right") if point > end / 2 else (14, "left")  # where there is more room
        beside(ax, words, (point, policy(point)), (offset, 0), ha=side)
    epoch_axis(ax, end)
    ax.set(ylabel="learning rate", ylim=(0, 1.07 * policy(epoch).max()))
    headline(ax, title)
    return ax.figure


@styled
def parity(pairs: dict, epochs: float, steps_per_epoch: int) -> Figure:
    """Policies as lines and torch's schedulers, driven step by step, as dots on them: {title: (policy, scheduler)}."""
    figure = Picture(8, 2.4 * len(pairs) + 0.5, "Our policies (lines) and torch's schedulers (dots), step by step")
    epoch = np.arange(round(epochs * steps_per_epoch) + 1) / steps_per_epoch
    for ax, (name, (policy, other)) in zip(figure.subplots(len(pairs), squeeze=False).flat, pairs.items(), strict=True):
        theirs = [other.optimizer.param_groups[0]["lr"]]
        for _ in epoch[1:]:
            other.optimizer.step()  # a scheduler warns when it moves before its optimizer
            other.step()
            theirs.append(other.optimizer.param_groups[0]["lr"])
        ax.plot(epoch, policy(epoch), color=ORANGE, lw=6, alpha=0.4)
        ax.plot(epoch[::4], theirs[::4], ".", ms=4, color=BLUE)
        epoch_axis(ax, epochs)
        ax.set(ylabel="learning rate", title=f"{name}: largest difference {abs(policy(epoch) - theirs).max():.1g}")
    return figure


@styled
def annihilation(policy) -> Figure:
    """A one-cycle policy, and the same one squeezed to make room for an annihilation as Smith's (arXiv:1708.07120)."""
    end, start = policy.epochs, 0.9 * policy.epochs
    check("peak_epoch", policy.peak_epoch, policy.peak_epoch < start, f"below {start:g}, where annihilation begins")
    low, epoch = policy.lr_min, np.linspace(0, end, 2001)
    squeezed = np.interp(epoch, [0, policy.peak_epoch, start, end], [low, policy.lr_max, low, low / 100])
    figure = Picture(8.5, 4, "Annihilation: in the last tenth (grey) the rate falls to LR_MIN / 100")
    for ax, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        ax.axvspan(start, end, color="0.92")
        ax.plot(epoch, squeezed, color=ORANGE, lw=2, label="with annihilation")
        ax.plot(epoch, policy(epoch), color=BLUE, lw=2, label="without: it ends at LR_MIN")
        epoch_axis(ax, end)
        ax.set(ylabel="learning rate", title=f"{scale} scale", yscale=scale)
    ax.yaxis.set_major_formatter("{x:g}")
    figure.legend(handles=ax.lines, loc="outside lower center", ncols=2)
    return figure


@styled
def lr_range(rates, *, ax=None) -> Figure:
    """The range test: loss against rate; start, half and end of its fall, and both rates, with the reason for each."""
    whole, ax, curve = ax is None, ax or Picture(8.5, 5.4).subplots(), rates.curve
    (low, edge), rate = curve.valley(), curve.half()
    start, valley = curve.smooth[0], curve.smooth[low]
    ax.plot(curve.lr, curve.loss, color="0.7", lw=1, label="each batch")
    ax.plot(curve.lr, curve.smooth, color=BLUE, lw=2.5, label="smoothed")
    half, style = (curve.fall_from + valley) / 2, {"ms": 8, "color": BLUE, "mec": "white"}
    ax.plot(curve.lr[0], start, "s", **style)
    ax.plot(rate, half, "D", **style, label=f"half of the fall, at {rate:.3g}")
    ax.plot(curve.lr[low], valley, "o", **style, label=f"end of the fall, {valley:.2f}")
    beside(ax, f"start {start:.2f}", (curve.lr[0], start), (0, 14), color=BLUE)
    # The names grow away from each other: the two rates may lie close together.
    for lr, name, color, side in ((rates.lr_min, "LR_MIN", GREEN, "right"), (rates.lr_max, "LR_MAX", ORANGE, "left")):
        ax.axvline(lr, color=color, lw=1.5, ls="--")
        beside(ax, f"{name} = {lr:.3g}", (lr, 1), (0, 9), ("data", "axes fraction"), c=color, ha=side, weight="bold")
    # The blow-up is what LR_MAX has to stay clear of, so it is shown, but it must not flatten the valley.
    fall, right = start - valley, 1.05 * curve.lr[-1]
    bottom, top = curve.smooth.min() - 0.15 * fall, min(curve.smooth.max() + 0.3 * fall, start + 1.5 * fall)
    if bottom < curve.guess < top:
        ax.axhline(curve.guess, color=GREY, lw=0.8, ls="--")
        words = f"a guess:\nln {np.exp(curve.guess):.0f} = {curve.guess:.2f}"
        beside(ax, words, (1, curve.guess), (5, 0), ("axes fraction", "data"), color=GREY)
    if edge < len(curve.lr):  # and not merely flat to its end
        ax.axvspan(curve.lr[edge], right, color="0.94", zorder=0, label="ignored: too high")
    ax.set(xscale="log", xlabel="learning rate (log scale)", ylabel="training loss (nats)")
    ax.set(xlim=(curve.lr[0] / 1.6, right), ylim=(bottom, top))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5 if whole else 3, fontsize=9, columnspacing=1.2)
    headline(ax, "Range test: the loss of each step while the rate grows", **{} if whole else {"pad": 22})
    if whole:
        words = [textwrap.fill(f"{key.upper()}: {rates.reasons[key]}", 116) for key in ("lr_min", "lr_max")]
        ax.figure.supxlabel("\n".join(words), fontsize=10, ha="left", x=0.01, color=GREY)
    return ax.figure


@styled
def applied(steps: list[dict], policy) -> Figure:
    """Planned and applied rate of every step of a run (``Run.steps``), one on the other, and their difference."""
    used = np.array([row["applied"] for row in steps])
    took = np.array([not row["skipped"] for row in steps])
    epoch = (took.cumsum() - took) * policy.epochs / len(steps)  # before each step; a skipped one makes the plan wait
    planned = np.array([policy(x) for x in epoch.tolist()])  # again: what training wrote down is no witness
    gap, peak = used - planned, f"{used.max():.3g} at epoch {round(epoch[used.argmax()], 2):g}"
    figure = Picture(8.5, 4.8, f"Rates planned and applied in {len(steps):,} steps; the highest {peak}")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot(epoch, planned, color=ORANGE, lw=6, alpha=0.4, label="plan: the policy, step by step")
    top.plot(epoch, used, color=BLUE, lw=1.5, marker="o" if len(steps) == 1 else None, label="applied by the optimizer")
    top.set(ylabel="learning rate", ylim=(0, None))
    top.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    bottom.plot(epoch, gap, color=BLUE, lw=1.5)
    epoch_axis(bottom, policy.epochs)
    bottom.set(ylabel="difference", title=f"Largest difference: {abs(gap).max():.3g}")
    return figure


@styled
def history(rows: list[dict]) -> Figure:
    """Loss and accuracy after every epoch (``Run.history``); the axes show the end, and the worst cut off is named."""
    epoch = [row["epoch"] for row in rows]
    figure = Picture(9.5, 4, "Loss and accuracy after every epoch: train, and test with last weights and EMA")
    lines = {"train_{}": ("train", ORANGE), "test_{}": ("last weights", BLUE), "test_{}_ema": ("EMA", GREEN)}
    for ax, what, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("nats", "%"), strict=True):
        ends, curves = [], np.array([[row[key.format(what)] for row in rows] for key in lines])
        for (name, color), values in zip(lines.values(), curves, strict=True):
            ax.plot(epoch, values, color=color, lw=1.8, marker="." if len(rows) <= 60 else None, label=name)
            ends.append((values[-1], f"{name} {values[-1]:.{3 if what == 'loss' else 2}f}", color))
        epoch_axis(ax, 1.01 * epoch[-1])
        up, last = what == "loss", curves[:, -1]
        low = min(0, curves.min()) if up else max(0, min(70, 5 * (last.min() // 5) - 15))
        high = min(ax.get_ylim()[1], 2 * max(curves[0].max(), *last) if up else 100.5)
        ax.set(title=f"{what.capitalize()} ({unit})", ylim=(low, high))
        worst = curves.max(0) if up else curves.min(0)
        off, k = (worst < low) | (worst > high), int(worst.argmax() if up else worst.argmin())
        if off[k]:
            clear = epoch[k + int(off[k:].argmin())]  # where all lines are on the axes again
            words = f"{'↑' if up else '↓'} {worst[k]:.3g} in epoch {epoch[k]:g}"
            beside(ax, words, (clear, up), (5, -9 if up else 9), ("data", "axes fraction"), color=GREY)
        label_ends(ax, ends)
    ax.axhline(90, color="0.6", lw=1, zorder=1)
    return figure


@styled
def compare(runs: dict) -> Figure:
    """Test accuracy of runs, {name: a list of ``Run.history``}; what lies far below their ends is cut off."""
    right = any(map(len, runs.values())) and all(isinstance(rows, list) for some in runs.values() for rows in some)
    check("runs", list(runs), right, "a dict of lists of histories, as {'one-cycle': [run.history]}")
    named = [(name, rows, color) for name, color in zip(runs, 9 * COLORS, strict=False) for rows in runs[name]]
    shortest, longest = (f(len(rows) for _, rows, _ in named) for f in (min, max))
    words = f"Test accuracy (%); dotted: where {named[0][0]} ended"
    figure = Picture(11, 4.4, words + "; dashed: longer runs" * (longest > shortest))
    for ax, key in zip(figure.subplots(1, 2), ("test_accuracy", "test_accuracy_ema"), strict=True):
        curves, ends = [[row[key] for row in rows] for _, rows, _ in named], {}
        for (name, rows, color), values in zip(named, curves, strict=True):
            ax.plot(range(1, len(rows) + 1), values, "--" if len(rows) > shortest else "-", color=color, lw=1.5)
            ax.plot(len(rows), values[-1], "o", color=color, clip_on=False)
            ends.setdefault((f"{name}, {len(rows)} epochs", color), []).append(values[-1])
        top = max(map(max, curves))
        low = max(top - 45, min(min(values[shortest // 4 :]) for values in curves))  # the first epochs matter little
        epoch_axis(ax, longest)
        ax.set(title="EMA" if "ema" in key else "Last weights", ylim=(low, top + max(0.05 * (top - low), 0.5)))
        ax.axhline(curves[0][-1], color=named[0][2], lw=0.8, ls=":")
        ax.axhline(90, color="0.6", lw=1, zorder=1)
        means = {words + ", mean" * (len(some) > 1): (np.mean(some), color) for (words, color), some in ends.items()}
        label_ends(ax, [(mean, f"{mean:.1f} {words}", color) for words, (mean, color) in means.items()])
    return figure
