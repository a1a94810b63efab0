"""A 3 x 3 convolution that takes another way where the usual one is slow: small feature maps on a CPU with AMX."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .precision import has_amx

SMALL = 16  # pixels of a feature map up to which the matrix products win, as tried on AMX
CHANNELS = 256  # and with this many channels on both sides; below, they win nothing


class Conv3x3(nn.Conv2d):
    """Conv2d(inputs, outputs, 3, padding=1, bias=False): (n, inputs, h, w) -> (n, outputs, h, w).

    In bfloat16 on a CPU with AMX, a small map with many channels goes through large matrix products instead of oneDNN's
    convolution, whose gradient for the weights is slow there. Both sum in float32 and
    differ by the rounding of the last bit. Everywhere else this is ``nn.Conv2d``.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._through_products(x):
            return _Products.apply(x.bfloat16(), self.weight.bfloat16())
        return super().forward(x)

    def _through_products(self, x: torch.Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.shape[-2] * x.shape[-1] <= SMALL
            and min(self.weight.shape[:2]) >= CHANNELS
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and has_amx()
        )


class _Products(torch.autograd.Function):
    """The convolution and its two gradients as one matrix product each, over the 3 x 3 patches of all pixels."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _maps(_patches(x) @ _pixels(weight).reshape(len(weight), -1).t(), x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        x, weight = ctx.saved_tensors
        # The gradient of a convolution is a convolution with the kernel turned by 180 degrees.
        turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, weight.shape[1])
        grad_x = _maps(_patches(grad) @ turned, x)
        grad_weight = _pixels(grad).reshape(-1, len(weight)).t() @ _patches(x)
        return grad_x, grad_weight.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) -> (n, h, w, c), a view of channels_last memory."""
    return x.permute(0, 2, 3, 1)


def _patches(x: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) -> (n h w, 3 3 c): the neighbourhood of every pixel, zeros beyond the edge."""
    n, c, h, w = x.shape
    x = nn.functional.pad(_pixels(x), (0, 0, 1, 1, 1, 1))
    of_n, of_h, of_w, of_c = x.stride()
    return x.as_strided((n, h, w, 3, 3, c), (of_n, of_h, of_w, of_h, of_w, of_c)).reshape(n * h * w, 9 * c)


def _maps(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(n h w, c) -> (n, c, h, w) in channels_last memory, with n, h and w of ``like``."""
    n, _, h, w = like.shape
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)
