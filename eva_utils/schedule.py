"""Learning-rate policies: pure functions of the epoch (a float), so plot and training cannot disagree.

Step 49 of 98 in the eighth epoch is 7.5. The cyclic policies only divide by ``step_size``, so iterations do as well.
"""

from dataclasses import dataclass
from numbers import Real

import numpy as np

from .errors import check

# Of each field that a policy may have: what it has to be, and whether it is.
LIMITS = {
    "lr": ("a positive number", lambda p: 0 < p.lr < np.inf),
    "lr_min": ("a positive number", lambda p: 0 < p.lr_min < np.inf),
    "lr_max": ("above lr_min, which is {p.lr_min!r}", lambda p: p.lr_min < p.lr_max < np.inf),
    "step_size": ("a positive number of epochs", lambda p: 0 < p.step_size < np.inf),
    "gamma": ("in (0, 1]", lambda p: 0 < p.gamma <= 1),
    "epochs": ("between 1 and 1,000,000", lambda p: 1 <= p.epochs <= 1e6),
    "peak_epoch": ("above 0 and below epochs, which is {p.epochs}", lambda p: 0 < p.peak_epoch < p.epochs),
    "milestones": ("growing shares of the epochs, between 0 and 1", lambda p: all(np.diff([0, *p.milestones, 1]) > 0)),
}


class _Policy:
    def __post_init__(self) -> None:
        for name, (right, ok) in LIMITS.items():
            if hasattr(self, name):
                value = getattr(self, name)
                check(name, value, name == "milestones" or isinstance(value, Real), "a number")
                check(name, value, ok(self), right.format(p=self))

    def __call__(self, epoch):
        """The learning rate at ``epoch``: a float for a number, an array of the same shape for an array."""
        height = self._height(np.asarray(epoch, dtype=float))  # from 0 at lr_min to 1 at lr_max
        # Written as a weighted mean and not as lr_min + height * span: exact at both ends, where it matters.
        rate = np.clip((1 - height) * self.lr_min + height * self.lr_max, self.lr_min, self.lr_max)
        return float(rate) if np.ndim(epoch) == 0 else rate

    def scheduler(self, optimizer, steps_per_epoch: int):
        """A ``torch.optim.lr_scheduler.LambdaLR`` that follows this policy, for a training loop of your own.

        Call its ``step()`` once a batch, after ``optimizer.step()``. Of several parameter groups the one with the
        highest rate follows the policy; the others keep their ratio to it. Save and load the optimizer and the
        scheduler by their ``state_dict``, in either order.
        """
        from torch.optim.lr_scheduler import LambdaLR

        class Follow(LambdaLR):
            def load_state_dict(self, state_dict) -> None:
                super().load_state_dict(state_dict)
                # LambdaLR leaves the rate as it is until its next step, which would be one step late.
                for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                    group["lr"] = base * self.lr_lambdas[0](self.last_epoch)

        check("steps_per_epoch", steps_per_epoch, steps_per_epoch >= 1, "1 or more")
        for group, ratio in zip(optimizer.param_groups, ratios(optimizer), strict=True):
            group["lr"] = group["initial_lr"] = ratio  # what LambdaLR multiplies with our rate
        return Follow(optimizer, lambda step: self(step / steps_per_epoch))


def ratios(optimizer) -> list[float]:
    """The rate of each parameter group over the highest of them."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    check("the optimizer's highest rate", max(rates), 0 < max(rates) < np.inf, "a positive number")
    return [rate / max(rates) for rate in rates]


@dataclass(frozen=True)
class Triangular(_Policy):
    """The zigzag: lr_min -> lr_max -> lr_min in straight lines, a cycle every ``2 * step_size`` epochs.

    It has no end, so ``fit`` does not take it; ``scheduler`` brings it into a loop of your own.
    Source: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.1.
    """

    lr_min: float
    lr_max: float
    step_size: float

    def _cycle(self, epoch):
        return np.floor(1 + epoch / self.step_size / 2)  # counted from 1, as in the paper

    def _height(self, epoch):
        return 1 - np.abs(epoch / self.step_size - 2 * self._cycle(epoch) + 1)


@dataclass(frozen=True)
class Triangular2(Triangular):
    """The zigzag whose height halves with every cycle ("triangular2" in arXiv:1506.01186)."""

    def _height(self, epoch):
        # Before epoch 0 there is no cycle to be larger than the first.
        return super()._height(epoch) * 0.5 ** np.maximum(self._cycle(epoch) - 1, 0)


@dataclass(frozen=True)
class ExpRange(Triangular):
    """The zigzag whose height shrinks by ``gamma`` every epoch, or every iteration if it is called with these:
    "exp_range" as torch's ``CyclicLR`` has it. (In arXiv:1506.01186, section 3.1, LR_MIN declines as well.)
    """

    gamma: float = 0.95

    def _height(self, epoch):
        return super()._height(epoch) * self.gamma ** np.maximum(epoch, 0)


@dataclass(frozen=True)
class OneCycle(_Policy):
    """One triangle: lr_min at epoch 0, lr_max at ``peak_epoch``, lr_min at ``epochs`` and outside.

    No annihilation: Smith's 1cycle policy ends far below lr_min, this one never goes below it.
    Source: L. N. Smith, N. Topin, arXiv:1708.07120; L. N. Smith, arXiv:1803.09820.
    """

    epochs: float
    peak_epoch: float
    lr_min: float
    lr_max: float

    def _height(self, epoch):
        return np.interp(epoch, [0, self.peak_epoch, self.epochs], [0, 1, 0])


@dataclass(frozen=True)
class StepDecay(_Policy):
    """The ordinary schedule, to compare one-cycle with: ``lr``, times ``gamma`` from each of ``milestones`` on,
    which are growing shares of ``epochs``; with none, the rate is constant.
    """

    epochs: float
    lr: float
    gamma: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.75)

    def __call__(self, epoch):
        passed = np.searchsorted(np.multiply(self.milestones, self.epochs), epoch, side="right")
        rate = self.lr * self.gamma**passed
        return float(rate) if np.ndim(epoch) == 0 else rate
