"""Two rates read off a curve of loss against learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import InputError

LEARNS = 0.2  # LR_MIN: this share of the loss's fall is made, the network has begun to learn
TURNS = 0.15  # LR_MAX: the loss has not yet risen again by this share of its fall
SMOOTH = 9  # steps in the centred mean: centred, because an average of the past would move the curve to the right


@dataclass(frozen=True, eq=False)
class Curve:
    """Arrays (steps,): the rate of each step, the loss of its batch in nats, and the loss smoothed."""

    lr: np.ndarray
    loss: np.ndarray
    smooth: np.ndarray


def choose_rates(lr: np.ndarray, loss: np.ndarray) -> tuple[float, float, dict[str, str], Curve]:
    """(lr_min, lr_max, reasons, curve) read off a range test's rates and losses, arrays (steps,) of growing rate."""
    finite = np.isfinite(loss)
    end = len(loss) if finite.all() else int(finite.argmin())
    lr, loss = lr[:end], loss[:end]
    if end < 2 * SMOOTH:
        raise InputError(
            f"the loss blew up after {end} steps of the range test, at a rate of {lr[-1] if end else 0:.3g}: "
            "the curve is too short to read; lower lr_start"
        )
    half = SMOOTH // 2
    smooth = np.array([loss[max(0, i - half) : i + half + 1].mean() for i in range(end)])
    lowest = np.minimum.accumulate(smooth)
    fall = smooth[0] - lowest
    # Before half of the fall is made, a small rise is only noise.
    up = (smooth > lowest + TURNS * fall) & (fall >= fall[-1] / 2)
    edge = int(up.argmax()) if up.any() else end  # the first step behind the valley
    low = int(smooth[:edge].argmin())
    fell = fall[low]
    noise = np.std(np.diff(loss[: low + 1])) / np.sqrt(SMOOTH) if low > 1 else np.inf
    if fell < max(5 * noise, 0.01 * abs(smooth[0])):
        raise InputError(
            f"the curve of the range test is flat: the loss fell by {fell:.3g} from {smooth[0]:.3g} between rates "
            f"{lr[0]:.3g} and {lr[-1]:.3g}; check data and model, or take a wider range"
        )
    start = int(np.argmax(smooth <= smooth[0] - LEARNS * fell))
    # A curve that never turns up is flat at its end: nothing is gained beyond its lowest point.
    lr_min, lr_max = float(lr[start]), float(lr[edge - 1] if edge < end else lr[low])
    if lr_min >= lr_max:
        raise InputError(
            f"the loss falls too abruptly at a rate of {lr_min:.3g} to tell two rates apart; take more steps"
        )
    up_again = f"come up again by {TURNS:.0%} of its fall"
    reasons = {
        "lr_min": f"the loss falls from {smooth[0]:.2f} to {smooth[low]:.2f} (at a rate of {lr[low]:.3g}); here it has "
        f"made {LEARNS:.0%} of that: the network has begun to learn.",
        "lr_max": f"the last rate before the loss has {up_again}."
        if edge < end
        else f"the loss has not {up_again} anywhere: this is its lowest point.",
    }
    return lr_min, lr_max, reasons, Curve(lr, loss, smooth)
