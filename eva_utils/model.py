"""The network: a nine-layer ResNet for 32 x 32 images, readable on one screen."""

import copy
from collections import OrderedDict
from numbers import Integral

import torch
from torch import nn

from .errors import InputError, check, first_line, kind


def conv_bn(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    """Conv3x3 - [MaxPool2] - BatchNorm - ReLU: (n, inputs, h, w) -> (n, outputs, h, w or h/2)."""
    layers = OrderedDict(conv=nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    if pool:
        layers["pool"] = nn.MaxPool2d(2)
    layers["bn"] = nn.BatchNorm2d(outputs)
    layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


class Residual(nn.Module):
    """X = conv_bn(x) with pooling; out = X + R(X), where R is two conv_bn blocks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = conv_bn(inputs, outputs, pool=True)
        self.residual = nn.Sequential(conv_bn(outputs, outputs), conv_bn(outputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        return x + self.residual(x)


class Head(nn.Module):
    """Max-pool to 1 x 1, linear, times a constant: (n, inputs, h, w) -> logits (n, classes)."""

    def __init__(self, inputs: int, classes: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes, bias=False)
        self.register_buffer("scale", torch.tensor(scale))  # saved with the weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Not AdaptiveMaxPool2d, which has no kernel for channels_last on a GPU.
        x = nn.functional.max_pool2d(x, x.shape[2:])
        return self.linear(x.flatten(1)) * self.scale


class ResNet9(nn.Sequential):
    """ResNet for small images: (n, 3, 32, 32) normalised pixels -> (n, num_classes) logits.

    Stages: ``prep`` (width), ``layer1`` (2 width, residual), ``layer2`` (4 width), ``layer3`` (8
    width, residual), ``head``. 6,573,120 parameters at width 64 with 10 classes. Any side from 8
    pixels up works: the last pool takes the maximum over what is left, 4 x 4 for 32 x 32 images.

    The logits are multiplied by ``logit_scale``; without that, only far smaller rates do well
    (docs/accuracy.md). Network and 0.125 are from David Page's cifar10-fast (2018).
    """

    def __init__(self, num_classes: int = 10, width: int = 64, logit_scale: float = 0.125) -> None:
        check("num_classes", num_classes, isinstance(num_classes, Integral) and num_classes >= 2, "2 or more")
        check("width", width, isinstance(width, Integral) and 1 <= width <= 4096, "between 1 and 4096")
        super().__init__()
        self.prep = conv_bn(3, width)
        self.layer1 = Residual(width, 2 * width)
        self.layer2 = conv_bn(2 * width, 4 * width, pool=True)
        self.layer3 = Residual(4 * width, 8 * width)
        self.head = Head(8 * width, num_classes, logit_scale)
        self.to(memory_format=torch.channels_last)  # what matrix units take; activations follow the weights


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters are. Raises ``InputError`` unless it is a network that has some."""
    right = "a torch.nn.Module that has parameters: an object, not its class"
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    check("the model", kind(model), first is not None, right)
    return first.device


def forward(model: nn.Module, x: torch.Tensor, classes: int | None) -> torch.Tensor:
    """Logits, float32 (n, classes). Raises ``InputError`` where the network does not fit the images or the classes."""
    try:
        logits = model(x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a network of somebody else raises
        raise InputError(f"the model cannot take a batch of {tuple(x.shape)}: {first_line(error)}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise InputError(f"the model gives {kind(logits)}; it has to give logits (n, classes)")
    if classes and logits.shape[1] != classes:
        raise InputError(f"the model has {logits.shape[1]} outputs; the data have {classes} classes")
    logits = logits.float()
    if min(logits.shape) > 1 and logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 3e-3:  # bf16's rounding
        raise InputError("the model gives probabilities; it has to give logits: leave out the softmax, the loss has it")
    return logits


def summary(model: nn.Module, size: int = 32) -> str:
    """A table of the layers, as text: name, output shape, parameters, multiply-adds for one 3 x size x size image.

    Multiply-adds: half of the operations of convolutions and matrix products that ``torch.utils.flop_counter`` counts.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device_of(model)  # for its check
    shapes, counter = {}, FlopCounterMode(display=False)
    network = copy.deepcopy(model).eval()  # hooks and mode are those of a copy
    for module in network.modules():
        module.register_forward_hook(lambda module, _, output: shapes.update({module: getattr(output, "shape", None)}))
    with torch.no_grad(), counter:
        first = next(network.parameters())
        network(torch.zeros(1, 3, size, size, device=first.device, dtype=first.dtype))
    flops, root = counter.get_flop_counts(), type(network).__name__

    def row(name: str, shape: str, module: nn.Module, counted: str) -> str:
        parameters, macs = sum(p.numel() for p in module.parameters()), sum(flops.get(counted, {}).values()) / 2
        return f"{name:<28} {shape:>14} {parameters:>12,} {macs / 1e6:>10.2f}"

    rows = []
    for name, module in network.named_modules(remove_duplicate=False):
        if module in shapes and not any(module.children()):
            shape = "several" if shapes[module] is None else " x ".join(map(str, shapes[module][1:]))
            rows.append(row(name or root, shape, module, f"{root}.{name}".rstrip(".")))
    head = f"{'layer':<28} {'output':>14} {'parameters':>12} {'mult-adds/M':>11}"
    rule = "-" * len(head)
    return "\n".join([head, rule, *rows, rule, row("total", "", network, "Global")])
