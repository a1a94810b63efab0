"""Figures with curves: policies, the range test, rates applied, loss and accuracy, several runs compared."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from ..errors import check
from ._base import BLUE, COLORS, GREEN, GREY, ORANGE, Picture, beside, epoch_axis, policy_curve, show_ends, styled


@styled
def zigzag(policy, cycles: float = 3, *, annotate: bool = False) -> Figure:
    """The cyclic triangular curve of ``policy`` over ``cycles`` cycles: bare, or with axes and its terms marked."""
    lo, hi, step, end = policy.lr_min, policy.lr_max, policy.step_size, 2 * policy.step_size * cycles
    height = hi - lo
    if not annotate:
        ax = Picture(8, 1.8, alt=f"A rate that goes up and down in straight lines, {cycles:g} times").subplots()
        policy_curve(ax, policy, end, "black", lw=1.5)
        ax.hlines((lo, hi), 0, end, ["0.3", "0.8"], lw=1, zorder=1)
        ax.set(ylim=(lo - 0.01 * height, hi + 0.01 * height))
        ax.axis("off")
        return ax.figure
    ax = Picture(8, 4, "The cyclic learning rate and its terms").subplots()
    policy_curve(ax, policy, end)
    for rate, words, side in ((hi, "LR_MAX", 10), (lo, "LR_MIN", -10)):
        ax.axhline(rate, color="0.8", lw=1, zorder=1)
        beside(ax, f"{words} = {rate:.3g}", (end, rate), (0, side), ha="right", color=ORANGE)
    for stop, down, words in ((step, 0.08, "step size"), (2 * step, 0.21, "cycle")):
        y = lo - down * height
        ax.annotate("", (0, y), (stop, y), arrowprops={"arrowstyle": "<->", "color": "0.3", "shrinkA": 0, "shrinkB": 0})
        beside(ax, f"{words} = {stop:g} epochs", (stop, y), (6, 0))
    ax.set_ylim(lo - 0.3 * height, hi + 0.2 * height)
    return ax.figure


@styled
def policies(named: dict, epochs: float) -> Figure:
    """Several policies, one below the other: {title: policy}, each over ``epochs`` epochs, all on one scale."""
    title = f"Learning rates over {epochs:g} epochs"
    figure = Picture(8, 1.5 * len(named) + 0.8, title, alt=f"{title}: {', '.join(named)}")
    panels = figure.subplots(len(named), 1, sharex=True, sharey=True, squeeze=False).flat
    for ax, (title, policy) in zip(panels, named.items(), strict=True):
        policy_curve(ax, policy, epochs)
        ax.set_title(title)
        ax.set_ylim(0)  # LR_MIN is seen to be above it
        ax.label_outer()
    return figure


@styled
def annihilation(policy) -> Figure:
    """A one-cycle policy, and the same one squeezed to make room for an annihilation as Smith's (arXiv:1708.07120)."""
    end, start, low = policy.epochs, 0.9 * policy.epochs, policy.lr_min
    check("peak_epoch", policy.peak_epoch, policy.peak_epoch < start, f"below {start:g}, where annihilation begins")
    corners = [0, policy.peak_epoch, start, end], [low, policy.lr_max, low, low / 100]
    figure = Picture(8.5, 4, "Annihilation: in the last tenth (grey) the rate falls to LR_MIN / 100")
    for ax, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        ax.axvspan(start, end, color="0.92")
        policy_curve(ax, lambda epoch: np.interp(epoch, *corners), end, ORANGE, label="with annihilation")
        policy_curve(ax, policy, end, label="without: it ends at LR_MIN")
        ax.set(title=f"{scale} scale", yscale=scale)
    ax.yaxis.set_major_formatter("{x:g}")
    figure.legend(handles=ax.lines, loc="outside lower center", ncols=2)
    return figure


@styled
def lr_range(rates) -> Figure:
    """The range test: loss against rate; start, half and end of its fall, and both rates, with the reason for each."""
    curve = rates.curve
    title = "Range test: the loss of each step while the rate grows"
    found = f"LR_MIN is {rates.lr_min:.3g}, LR_MAX {rates.lr_max:.3g}"
    ax = Picture(8.5, 5.4, title, alt=f"{title}; {found}").subplots()
    (low, edge), half = curve.valley(), curve.half()
    start, valley = curve.smooth[0], curve.smooth[low]
    ax.plot(curve.lr, curve.loss, color="0.7", lw=1)
    ax.plot(curve.lr, curve.smooth, color=BLUE, lw=2.5)
    middle = f"half of the fall, at {half:.3g}", half, (curve.fall_from + valley) / 2
    first, last = (f"start, {start:.2f}", curve.lr[0], start), (f"end of the fall, {valley:.2f}", curve.lr[low], valley)
    for marker, (words, *point) in zip("sDo", (first, middle, last), strict=True):
        ax.plot(*point, marker, ms=8, color=BLUE, mec="white", label=words)
    # The names grow away from each other: the two rates may lie close together.
    for lr, name, color, side in ((rates.lr_min, "LR_MIN", GREEN, "right"), (rates.lr_max, "LR_MAX", ORANGE, "left")):
        ax.axvline(lr, color=color, lw=1.5, ls="--")
        beside(ax, f"{name} = {lr:.3g}", (lr, 1), (0, 9), ("data", "axes fraction"), c=color, ha=side, weight="bold")
    # The blow-up is what LR_MAX has to stay clear of, so it is shown, but it must not flatten the valley.
    fall, right = start - valley, 1.05 * max(curve.lr[-1], rates.lr_max)  # a rate that was given may lie outside
    bottom, top = curve.smooth.min() - 0.15 * fall, min(curve.smooth.max() + 0.3 * fall, start + 1.5 * fall)
    if bottom < curve.guess < top:
        ax.axhline(curve.guess, color=GREY, lw=0.8, ls="--")
        words = f"a guess:\nln {np.exp(curve.guess):.0f} = {curve.guess:.2f}"
        beside(ax, words, (1, curve.guess), (5, 0), ("axes fraction", "data"), color=GREY)
    if edge < len(curve.lr):  # and not merely flat to its end
        ax.axvspan(curve.lr[edge], right, color="0.94", zorder=0, label="ignored: too high")
    unit = " (nats)" if np.isfinite(curve.guess) else ""
    ax.set(xscale="log", xlabel="learning rate (log scale)", ylabel=f"loss{unit}: each step, and smoothed")
    ax.set(xlim=(min(curve.lr[0], rates.lr_min) / 1.6, right), ylim=(bottom, top))
    ax.xaxis.set_major_formatter(lambda x, _: np.format_float_positional(float(f"{x:g}"), trim="-"))  # 0.00001
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, fontsize=9)
    words = [textwrap.fill(f"{key.upper()}: {rates.reasons[key]}", 116) for key in ("lr_min", "lr_max")]
    ax.figure.supxlabel("\n".join(words), fontsize=10, ha="left", x=0.01, color=GREY)
    return ax.figure


@styled
def applied(steps: list[dict], policy) -> Figure:
    """Planned and applied rate of every step of a run (``Run.steps``), one on the other, and how they differ."""
    used = np.array([row["applied"] for row in steps])
    took = np.array([not row["skipped"] for row in steps])
    epoch = (took.cumsum() - took) * policy.epochs / len(steps)  # before each step; a skipped one makes the plan wait
    planned = np.array([policy(x) for x in epoch.tolist()])  # again: what training wrote down is no witness
    gap, peak = abs(used - planned).max(), f"{used.max():.3g} at epoch {round(epoch[used.argmax()], 2):g}"
    figure = Picture(8.5, 4, f"Rates planned and applied in {len(steps):,} steps: largest difference {gap:.3g}")
    ax = figure.subplots()
    ax.plot(epoch, planned, color=ORANGE, lw=6, alpha=0.4, label="plan: the policy, step by step")
    ax.plot(epoch, used, color=BLUE, lw=1.5, marker="o" if len(steps) == 1 else None, label="applied by the optimizer")
    epoch_axis(ax, policy.epochs)
    ax.set(ylabel="learning rate", ylim=(0, None), title=f"The highest: {peak}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def history(rows: list[dict]) -> Figure:
    """Loss and accuracy after every epoch (``Run.history``); the axes show the end, the titles name the worst value."""
    epoch, marker = [row["epoch"] for row in rows], "." if len(rows) <= 60 else None
    last, ema = (rows[-1][key] for key in ("test_accuracy", "test_accuracy_ema"))
    figure = Picture(9.2, 4, f"Test accuracy ends at {ema:.2f} % (EMA) and {last:.2f} % (last weights)")
    for ax, what, digits in zip(figure.subplots(1, 2), ("loss", "accuracy"), (3, 2), strict=True):
        curves = np.array([[row[key] for row in rows] for key in (f"train_{what}", f"test_{what}", f"test_{what}_ema")])
        for values, name, color in zip(curves, ("train", "last weights", "EMA"), (ORANGE, BLUE, GREEN), strict=True):
            ax.plot(epoch, values, color=color, lw=1.8, marker=marker, label=name)
        epoch_axis(ax, 1.01 * epoch[-1])
        if what == "loss":
            ax.set_title(f"Loss (nats), highest {curves.max():.3g}")
            low, high = curves.min(), min(ax.get_ylim()[1], 2 * max(*curves[0], *curves[:, -1]))
            ax.set_ylim(0 if 0 <= low < high / 2 else low - 0.1 * (high - low), high)  # from 0, if that hides no fall
        else:
            ax.set_title(f"Accuracy (%), lowest {curves.min():.3g}")
        show_ends(ax, digits, accuracy=what == "accuracy")
    return figure


@styled
def compare(runs: dict) -> Figure:
    """Test accuracy of runs, {name: a list of ``Run.history``}; the axes show the ends, which are named."""
    lengths = [len(rows) for some in runs.values() for rows in some]
    several, differ = len(lengths) > len(runs), max(lengths) > min(lengths)
    ends = {name: [r[-1]["test_accuracy_ema"] for r in some if len(r) == min(lengths)] for name, some in runs.items()}
    best = max(ends, key=lambda name: np.mean(ends[name] or 0))
    figure = Picture(9.2, 7.2 if differ else 4.4, f"Test accuracy (%): with the EMA, {best} ends highest")
    words = f"Dotted: where {next(iter(runs))} ended.{' Dashed: longer runs.' * differ}{' Ends: means.' * several}"
    figure.supxlabel(words, fontsize=10, x=0.01, ha="left", color=GREY)
    panels = figure.subplots(*((2, 1) if differ else (1, 2)))  # names are longer then
    for ax, key in zip(panels, ("test_accuracy", "test_accuracy_ema"), strict=True):
        for (name, some), color in zip(runs.items(), 9 * COLORS, strict=False):
            for rows in some:
                n, style = len(rows), "--" if len(rows) > min(lengths) else "-"
                label = name + f", {n} epochs" * differ
                ax.plot(range(1, n + 1), [row[key] for row in rows], style, color=color, label=label)
                ax.scatter(n, rows[-1][key], color=color, clip_on=False, zorder=3)
        epoch_axis(ax, max(lengths))
        ax.set_title("EMA" if key.endswith("ema") else "Last weights")
        show_ends(ax, 1, accuracy=True)
        first = next(iter(runs.values()))
        ended = [rows[-1][key] for rows in first if len(rows) == min(map(len, first))]
        ax.axhline(np.mean(ended), color=BLUE, lw=0.8, ls=":")
    return figure
