"""A range test's curve, loss against rate, and the two rates read off it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import InputError, check
from .run import read_json

LEARNS = 0.2  # LR_MIN: this share of the loss's fall is made, the network has begun to learn
BEYOND = 6  # LR_MAX over the rate at which half of the fall is made; chosen by trainings (docs/rates.md)
BARE = 0.5  # share of that for SGD and networks without normalisation layers, which diverge sooner
APART = 10  # LR_MAX is at least so many times LR_MIN
TURNS = 0.4  # and LR_MAX is never where the loss has risen again by this share of its fall
STOPS = 5  # times the lowest loss: where torch-lr-finder ends a test
SMOOTH = 11  # steps in the centred mean: centred, because an average of the past would move the curve to the right


@dataclass(frozen=True, eq=False)
class Curve:
    """Arrays (steps,): each step's rate, its batch's loss, and the mean loss of ``SMOOTH`` steps
    around it, in which a loss above the first ones counts as the highest of those. guess: the loss
    of somebody who only guesses, ln(classes) in nats; infinite where the loss is another one.
    """

    lr: np.ndarray = field(repr=False)
    loss: np.ndarray = field(repr=False)
    smooth: np.ndarray = field(repr=False)
    guess: float = np.inf

    def valley(self) -> tuple[int, int]:
        """The step with the lowest smoothed loss, and the first step after the valley (or len).

        The valley ends where the loss is up again by ``TURNS`` of its fall so far.
        """
        lowest = np.minimum.accumulate(self.smooth)
        fall = lowest[0] - lowest
        # Before half of the fall, a rise is a bump.
        up = (self.smooth > lowest + TURNS * fall) & (fall >= fall[-1] / 2)
        edge = int(np.append(up, True).argmax())
        return int(self.smooth[:edge].argmin()), edge

    @property
    def fall_from(self) -> float:
        """Where learning starts: above a guess's loss, first weights only unlearn overconfidence."""
        return float(min(self.smooth[0], self.guess))

    def rate_at(self, share: float, start: float) -> float:
        """The rate, between two steps, at which this share (above 0) of the fall is made."""
        lowest = np.minimum.accumulate(self.smooth[: self.valley()[0] + 1])
        made = (start - lowest) / (start - lowest[-1])
        return float(np.exp(np.interp(share, made, np.log(self.lr[: len(made)]))))

    def half(self) -> float:
        """The rate at which half of the fall is made."""
        return self.rate_at(0.5, self.fall_from)


@dataclass(frozen=True, eq=False)
class LRRange:
    """What a range test found: both rates, a sentence on each (``reasons``: lr_min, lr_max), the curve, its seconds."""

    lr_min: float
    lr_max: float
    reasons: dict[str, str]
    curve: Curve
    seconds: float = 0.0
    settings: dict | None = None

    def __repr__(self) -> str:
        return f"LRRange(lr_min={self.lr_min:.3g}, lr_max={self.lr_max:.3g}, of {len(self.curve.lr)} steps)"

    @classmethod
    def load(cls, path: str | Path) -> "LRRange":
        """Raises ``InputError`` if the file cannot be read."""
        state = read_json(Path(path))
        check(str(path), sorted(state), {"curve", "lr_min", "lr_max"} <= state.keys(), "a range test's file; delete it")
        curve = state.pop("curve")
        arrays = {key: np.array(curve.pop(key)) for key in ("lr", "loss", "smooth")}
        return cls(curve=Curve(**arrays, **curve), **state)


def read_curve(lr: np.ndarray, loss: np.ndarray, guess: float = np.inf, share: float = 1.0) -> LRRange:
    """Both rates, read off a range test's rates (growing) and losses, arrays (steps,).

    LR_MAX is six times the rate at which half of the fall is made, the fall counted from ``guess``
    where the loss starts above it; but never where the loss has come up again by 40 % of its fall
    so far; of that, ``share`` is taken. LR_MIN is where a fifth of the whole fall is made, at most
    a tenth of LR_MAX. Raises ``InputError`` for a curve that cannot be read.
    """
    if (loss < 0).any():
        raise InputError("the range test met a loss below 0, which ends it: add a constant to the criterion")
    end, half = int(np.append(~np.isfinite(loss), True).argmax()), SMOOTH // 2
    blew_up = end < len(loss) or loss[-1] > STOPS * loss.min()
    if end < 2 * SMOOTH:
        cure = "check data and model" if end == 0 else "lower lr_start" if blew_up else "take more steps"
        raise InputError(f"the range test gave {end} finite losses; {2 * SMOOTH} or more can be read: {cure}")
    lr, loss = lr[:end], loss[:end]
    # The mean shall see a blow-up at the end coming, but not how far it goes, which means nothing.
    after = [np.inf] * half if blew_up else []
    level = np.minimum([*loss, *after], loss[:half].max())
    smooth = np.array([level[max(0, i - half) : i + half + 1].mean() for i in range(end)])
    curve = Curve(lr, loss, smooth, float(guess))
    low, edge = curve.valley()
    start, bottom = smooth[0], smooth[low]
    noise = np.std(np.diff(level[: low + 1])) / np.sqrt(SMOOTH) if low > 1 else np.inf
    # The noise is that of the whole fall: far above a guess, losses jump more than below it.
    if start - bottom < 5 * noise or curve.fall_from - bottom < 0.01 * abs(start):
        raise InputError(
            f"the curve of the range test is flat: the loss came from {start:.3g} to {bottom:.3g} between rates "
            f"{lr[0]:.3g} and {lr[-1]:.3g}; check data and model, take larger batches or a network that is not trained "
            "yet, or choose both rates yourself"
        )
    middle, last, begun = curve.half(), float(lr[edge - 1]), curve.rate_at(LEARNS, start)
    whole = min(BEYOND * middle, last)
    lr_max = share * whole
    lr_min = min(begun, lr_max / APART)
    taken = f" Of that {share:.0%}, as the network has no normalisation layers." * (share < 1)
    since = f" from {curve.fall_from:.2f}, the loss of a guess," if guess < start else ""
    limit = f"before the loss comes up again by {TURNS:.0%} of its fall" if edge < end else "that gave a finite loss"
    reasons = {
        "lr_min": f"{LEARNS:.0%} of the fall from {start:.2f} to {bottom:.2f} is made: the network has begun to learn."
        if lr_min == begun
        else f"a tenth of LR_MAX; {LEARNS:.0%} of the fall is made later, at {begun:.3g}.",
        "lr_max": f"{BEYOND} times {middle:.3g}, the rate at which half of the fall{since} is made.{taken}"
        if whole < last
        else f"the last rate {limit}; {BEYOND} times the rate at half of the fall would be higher.{taken}",
    }
    return LRRange(lr_min, lr_max, reasons, curve)
