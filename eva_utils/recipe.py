"""Every choice of a training, said once: name, meaning, default, limits. Flags, checks and files follow from it."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real

import numpy as np
import torch
from torch import nn

from .augment import Augment
from .errors import check, kind


def option(default, help: str, right: str | tuple = "", ok: Callable | None = None, compared: bool = True):
    """A field of ``Recipe``. right: the values it may have, in words, or as a tuple of them; ok: whether it has."""
    ok = ok or (lambda value: not right or value in right)
    return field(default=default, metadata={"help": help, "right": right, "ok": ok, "compared": compared})


def _plain(value):
    """Python's numbers for NumPy's: a checkpoint with these could not be read."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; the same for the range test (``find_lr``) and the training (``fit``).

    augment: an ``Augment``, None, or an albumentations pipeline of your own, which always runs image by image, from
    uint8 pixels to uint8 pixels; these are normalised afterwards. optimizer: "sgd" (Nesterov), "adamw", or a
    function of the parameters that makes one; parameter groups keep the ratio of their rates. criterion: a function of
    logits and labels that gives the mean loss of a batch; None for cross-entropy. ema: in essence the power function
    EMA of T. Karras et al., arXiv:2312.02696, whose gamma is 1 / ema - 1. precision, device and workers say how it is
    computed, so they may change when a run goes on. Raises ``InputError`` for a value that is out of its limits.
    """

    batch_size: int = option(512, "images a step, of all processes together", "1 or more", lambda v: v >= 1)
    seed: int = option(0, "of order, augmentation and Dropout", "between 0 and 2**63 - 1", lambda v: 0 <= v < 2**63)
    augment: object = option(
        Augment(), "what happens to a training image", "an Augment, an albumentations pipeline or None",
        lambda v: v is None or isinstance(v, Augment) or hasattr(v, "set_random_state"),
    )  # fmt: skip
    engine: str = option("batch", "augment by batch on the device, or by image in workers", ("batch", "albumentations"))
    optimizer: object = option(
        "sgd",
        "what takes the steps, sgd or adamw",
        "sgd, adamw or a function of the parameters that makes one",
        lambda v: v in ("sgd", "adamw") or callable(v),
    )
    momentum: float = option(0.9, "of SGD, Nesterov's", "0 or more and below 1", lambda v: 0 <= v < 1)
    weight_decay: float = option(1e-3, "of the optimizer", "0 or more", lambda v: 0 <= v < math.inf)
    label_smoothing: float = option(0.0, "of the training loss", "0 or more and below 1", lambda v: 0 <= v < 1)
    criterion: object = option(
        None,
        "the training loss",
        "a function or None",
        lambda v: v is None or (callable(v) and not isinstance(v, type)),
    )
    ema: float = option(
        0.05, "averaging time, share of the steps so far", "above 0 and at most 1", lambda v: 0 < v <= 1
    )
    precision: str = option("auto", "number format", ("auto", "bf16", "fp16", "fp32"), compared=False)
    device: str | None = option(None, "cpu, cuda, cuda:1, ... (the first GPU, else the CPU)", compared=False)
    workers: int = option(
        2, "processes of the albumentations engine", "between 0 and 256", lambda v: 0 <= v <= 256, compared=False
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value, right = getattr(self, f.name), f.metadata["right"]
            if kind := {int: Integral, float: Real}.get(type(f.default)):  # NumPy's, too
                words = "a whole number" if kind is Integral else "a number"
                check(f.name, value, isinstance(value, kind) and not isinstance(value, bool), words)
            check(f.name, value, f.metadata["ok"](value), " or ".join(right) if isinstance(right, tuple) else right)
            if kind:
                object.__setattr__(self, f.name, type(f.default)(value))
        if self.criterion is not None:
            check("label_smoothing", self.label_smoothing, not self.label_smoothing, "0 beside a criterion of your own")
            parts = [part for part in getattr(self.criterion, "modules", list)() if part.training]
            learns = [p for part in parts for p in part.parameters(recurse=False) if p.requires_grad]
            right = "0 (put a teacher network into eval mode): they would not be trained"
            check("the number of parameters in criterion", len(learns), not learns, right)

    def compared(self) -> dict:
        """What decides the result."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["compared"]}

    def replace(self, **changes) -> "Recipe":
        return dataclasses.replace(self, **changes)

    def loss(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The mean training loss of a batch, in nats unless there is a criterion of your own."""
        if self.criterion is not None:
            if isinstance(self.criterion, nn.Module):
                self.criterion.to(logits.device)  # the weights of classes, if it has some
            loss = self.criterion(logits, y)
            right = isinstance(loss, torch.Tensor) and loss.ndim == 0
            check("what the criterion gives", kind(loss), right, "a tensor of one number, the mean loss of the batch")
            return loss
        return nn.functional.cross_entropy(logits, y, label_smoothing=self.label_smoothing)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Its rate is set before each step, so the one here counts for nothing."""
        parameters = [p for p in parameters if p.requires_grad]
        if callable(self.optimizer):
            optimizer, given = self.optimizer(parameters), set(parameters)
            right = isinstance(optimizer, torch.optim.Optimizer) and not isinstance(optimizer, torch.optim.LBFGS)
            check("the optimizer", kind(optimizer), right, "a torch.optim.Optimizer that needs no closure")
            strange = sum(p not in given for group in optimizer.param_groups for p in group["params"])
            right = "0: the function gets those to train"
            check("the number of other parameters in the optimizer", strange, strange == 0, right)
            for group in optimizer.param_groups:
                group |= {key: _plain(value) for key, value in group.items() if key != "params"}
            return optimizer
        common = {"lr": 1.0, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, **common)
        optimizer = torch.optim.SGD(parameters, momentum=self.momentum, nesterov=self.momentum > 0, **common)
        if self.momentum:
            # Fused SGD makes its buffers without filling them, and leaves that if a scaler skips the very first step.
            for p in parameters:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
