"""Two rates read off a curve of loss against learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import InputError

LEARNS = 0.2  # LR_MIN: this share of the loss's fall is made, the network has begun to learn
BEYOND = 6  # LR_MAX over the rate at which half of the fall is made; chosen by benchmarks/lr_finder.py
TURNS = 0.4  # and LR_MAX is never where the loss has risen again by this share of its fall
STOPS = 5  # times the lowest loss: where torch-lr-finder ends a test
SMOOTH = 11  # steps in the centred mean: centred, because an average of the past would move the curve to the right


@dataclass(frozen=True, eq=False)
class Curve:
    """Arrays (steps,): the rate of each step, the loss of its batch in nats, and the loss smoothed.

    Smoothed it is a mean over ``SMOOTH`` steps, where a loss above the first ones counts as the highest of those.
    """

    lr: np.ndarray
    loss: np.ndarray
    smooth: np.ndarray

    def valley(self) -> tuple[int, int]:
        """The step with the lowest smoothed loss of the valley, and the first step behind it (or their number).

        The valley ends where the loss has come up again by ``TURNS`` of its fall so far. What comes later does not
        count: a network may recover from a blow-up while the test goes on, or give up and just guess.
        """
        lowest = np.minimum.accumulate(self.smooth)
        fall = lowest[0] - lowest
        # Before half of the whole fall is made, a rise is a bump on the way.
        up = (self.smooth > lowest + TURNS * fall) & (fall >= fall[-1] / 2)
        edge = int(up.argmax()) if up.any() else len(up)
        return int(self.smooth[:edge].argmin()), edge

    def rate_at(self, share: float, start: float = np.inf) -> float:
        """The rate at which this share (above 0) of the fall is made, between two steps; the fall from ``start`` nats,
        if that is below the first loss."""
        lowest = np.minimum.accumulate(self.smooth[: self.valley()[0] + 1])
        start = min(start, lowest[0])
        made = (start - lowest) / (start - lowest[-1])
        after = max(1, int(np.argmax(made >= share)))
        return float(np.exp(np.interp(share, made[after - 1 : after + 1], np.log(self.lr[after - 1 : after + 1]))))


def choose_rates(lr: np.ndarray, loss: np.ndarray, guess: float = np.inf) -> tuple[float, float, dict[str, str], Curve]:
    """(lr_min, lr_max, reasons, curve) read off a range test's rates and losses, arrays (steps,) of growing rate.

    guess: the loss of somebody who only guesses, ln(classes). A loss above it is the overconfidence of first weights,
    and what the test takes off that is not learning: half of the fall is counted from ``guess`` at most.
    """
    finite = np.isfinite(loss)
    end = len(loss) if finite.all() else int(finite.argmin())
    lr, loss = lr[:end], loss[:end]
    if not end:
        raise InputError("the loss of the range test is not finite from its first step; check data and model")
    if end < 2 * SMOOTH:
        raise InputError(
            f"the loss blew up after {end} steps of the range test, at a rate of {lr[-1]:.3g}: "
            "the curve is too short to read; lower lr_start"
        )
    half = SMOOTH // 2
    # How far a blow-up goes means nothing, but the mean would carry it back to rates before it.
    level = np.minimum(loss, top := loss[:half].max())
    if blew_up := not finite.all() or loss[-1] > STOPS * loss.min():
        level = np.append(level, [top] * half)  # the mean shall see it coming, as it does one in the middle
    curve = Curve(lr, loss, np.array([level[max(0, i - half) : i + half + 1].mean() for i in range(end)]))
    low, edge = curve.valley()
    start, bottom = curve.smooth[0], curve.smooth[low]
    noise = np.std(np.diff(level[: low + 1])) / np.sqrt(SMOOTH) if low > 1 else np.inf
    if start - bottom < max(5 * noise, 0.01 * abs(start)):
        raise InputError(
            f"the curve of the range test is flat: the loss fell by {start - bottom:.3g} from {start:.3g} between "
            f"rates {lr[0]:.3g} and {lr[-1]:.3g}; check data and model, or take a wider range"
        )
    middle, last = curve.rate_at(0.5, guess), float(lr[edge - 1])
    lr_max = min(BEYOND * middle, last)
    lr_min = min(curve.rate_at(LEARNS), lr_max / 10)
    limit = f"last rate before the loss comes up again by {TURNS:.0%} of its fall"
    if edge == end:
        limit = "last rate before the loss blew up" if blew_up else "test's last rate"
    reasons = {
        "lr_min": f"the loss falls from {start:.2f} to {bottom:.2f} (at a rate of {lr[low]:.3g}); here it has "
        f"made {LEARNS:.0%} of that: the network has begun to learn.",
        "lr_max": f"{BEYOND} times {middle:.3g}, the rate at which the loss has made half of its fall."
        if BEYOND * middle <= last
        else f"the {limit}; {BEYOND} times the rate at half of the fall would be higher.",
    }
    return lr_min, lr_max, reasons, curve
