"""How rules read the loss against the rate: eva_utils', and some that are widely used."""

from __future__ import annotations

import contextlib
import math

import numpy as np

from eva_utils.errors import InputError
from eva_utils.lr_curve import read_curve

RATIO = 20  # LR_MAX over LR_MIN on the grid, and for the rules that say nothing of LR_MIN
# Ours, which "lowest" and "steepest" are read off as well, and fastai's own, because its range is part of its rule.
TESTS = {
    "eva_utils": {"lr_start": 1e-3, "lr_end": 10.0, "steps": 90},
    "fastai": {"lr_start": 1e-7, "lr_end": 10.0, "steps": 100},
}
ADAMW = TESTS | {"eva_utils": {"lr_start": 1e-5, "lr_end": 0.1, "steps": 90}}
Curves = dict[str, dict[str, list[float]]]  # of TESTS: their "lr" and "loss"


def rates(curves: Curves, classes: int = 10, share: float = 1.0) -> dict[str, tuple[float, float]]:
    """(lr_min, lr_max) of each rule; ours, times ``share``, is left out where it refuses the curve."""
    lr, loss = (np.array(values) for values in curves["eva_utils"].values())
    smooth, inner = exponential(loss, 0.05), slice(10, -5)  # torch-lr-finder's
    maxima = {
        "lowest / 10": lr[np.nanargmin(smooth)] / 10,
        "steepest": lr[inner][np.nanargmin(np.gradient(smooth[inner]))],
    }
    fastai_lr, fastai_loss = (np.array(values) for values in curves["fastai"].values())
    maxima["valley"] = fastai_lr[inner][valley(corrected(fastai_loss, 0.98)[inner])]
    found = {rule: (float(rate) / RATIO, float(rate)) for rule, rate in maxima.items()}
    with contextlib.suppress(InputError):
        ours = read_curve(lr, loss, math.log(classes), share)
        found["eva_utils"] = ours.lr_min, ours.lr_max
    return found


def exponential(loss: np.ndarray, new: float) -> np.ndarray:
    """torch-lr-finder's smoothing: ``new`` of the new value, the rest of the smoothed one before."""
    out = loss.copy()
    for i in range(1, len(loss)):
        out[i] = new * loss[i] + (1 - new) * out[i - 1]
    return out


def corrected(loss: np.ndarray, old: float) -> np.ndarray:
    """An exponential average that starts at zero, divided by the weight it has so far."""
    out, average = [], 0.0
    for i, value in enumerate(loss):
        average = old * average + (1 - old) * value
        out.append(average / (1 - old ** (i + 1)))
    return np.array(out)


def valley(loss: np.ndarray) -> int:
    """fastai's rule: half of its length before the end of the curve's longest falling subsequence."""
    length = np.ones(len(loss), dtype=int)
    for i in range(1, len(loss)):
        before = length[:i][loss[:i] > loss[i]]
        length[i] = 1 + (before.max() if len(before) else 0)
    end = int(length.argmax())
    return max(0, end - int(length[end]) + int(length[end] / 3) + int(length[end] / 6))
