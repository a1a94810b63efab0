"""Learning-rate policies: pure functions of the epoch (a float), so plot and training cannot disagree.

``policy(epoch)`` gives the rate at that epoch, for a number or an array. An epoch is a float: step 49 of 98 in the
eighth epoch is 7.5. The cyclic policies only divide by ``step_size``, so both may be counted in iterations as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import check


class _Policy:
    lr_min: float
    lr_max: float

    def __post_init__(self) -> None:
        check("lr_min", self.lr_min, 0 < self.lr_min < np.inf, "a positive number")
        check("lr_max", self.lr_max, self.lr_min < self.lr_max < np.inf, f"above lr_min, which is {self.lr_min!r}")

    def _height(self, epoch: np.ndarray) -> np.ndarray:
        """The rate's place between lr_min (0) and lr_max (1)."""
        raise NotImplementedError

    def __call__(self, epoch):
        """The learning rate at ``epoch``: a float for a number, an array of the same shape for an array."""
        height = self._height(np.asarray(epoch, dtype=float))
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

    Source: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.1.
    """

    lr_min: float
    lr_max: float
    step_size: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check("step_size", self.step_size, 0 < self.step_size < np.inf, "a positive number of epochs")

    def _height(self, epoch):
        # The paper's form, 1 - |epoch / step_size - 2 * cycle + 1|, with its cycle counted from 1.
        position = epoch / self.step_size
        cycle = np.floor(1 + position / 2)
        return (1 - np.abs(position - 2 * cycle + 1)) * self._scale(epoch, cycle)

    def _scale(self, epoch, cycle):
        return 1.0


@dataclass(frozen=True)
class Triangular2(Triangular):
    """The zigzag whose height halves with every cycle ("triangular2" in arXiv:1506.01186)."""

    def _scale(self, epoch, cycle):
        return 0.5 ** np.maximum(cycle - 1, 0)  # before epoch 0 there is no cycle to be larger than the first


@dataclass(frozen=True)
class ExpRange(Triangular):
    """The zigzag whose height shrinks by ``gamma`` every epoch: "exp_range" as torch's ``CyclicLR`` has it.

    (In arXiv:1506.01186, section 3.1, LR_MIN declines as well.)
    ``gamma`` is per unit of the argument: per epoch here, per iteration if you call it with iterations.
    """

    gamma: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check("gamma", self.gamma, 0 < self.gamma <= 1, "in (0, 1]")

    def _scale(self, epoch, cycle):
        return self.gamma ** np.maximum(epoch, 0)


@dataclass(frozen=True)
class OneCycle(_Policy):
    """One triangle: lr_min at epoch 0, lr_max at ``peak_epoch``, lr_min again at ``epochs``, and no annihilation.

    Smith's 1cycle policy ends with a phase far below lr_min, the annihilation; this one never goes below lr_min.
    Outside [0, epochs] the rate is lr_min.

    Source: L. N. Smith, N. Topin, "Super-Convergence", arXiv:1708.07120; L. N. Smith, arXiv:1803.09820.
    """

    epochs: float
    peak_epoch: float
    lr_min: float
    lr_max: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check("epochs", self.epochs, 1 <= self.epochs <= 1e6, "between 1 and 1,000,000")
        right = f"above 0 and below epochs, which is {self.epochs}"
        check("peak_epoch", self.peak_epoch, 0 < self.peak_epoch < self.epochs, right)

    def _height(self, epoch):
        return np.interp(epoch, [0, self.peak_epoch, self.epochs], [0, 1, 0])


@dataclass(frozen=True)
class StepDecay(_Policy):
    """``lr``, times ``gamma`` from each of ``milestones`` on: the ordinary schedule, to compare one-cycle with.

    milestones: shares of ``epochs``, growing; with none, the rate is constant.
    """

    epochs: float
    lr: float
    gamma: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        check("epochs", self.epochs, 1 <= self.epochs <= 1e6, "between 1 and 1,000,000")
        check("lr", self.lr, 0 < self.lr < np.inf, "a positive number")
        check("gamma", self.gamma, 0 < self.gamma <= 1, "in (0, 1]")
        shares = (0, *self.milestones, 1)
        right = "growing shares of the epochs, between 0 and 1"
        check("milestones", self.milestones, list(shares) == sorted(set(shares)), right)

    def __call__(self, epoch):
        passed = np.searchsorted(np.multiply(self.milestones, self.epochs), epoch, side="right")
        rate = self.lr * self.gamma**passed
        return float(rate) if np.ndim(epoch) == 0 else rate
