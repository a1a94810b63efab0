"""Augmentation: one description, two engines.

``draw``, ``places`` and ``take`` work on a whole batch, with a few tensor operations on the device. ``albumentations``
is a pipeline for single images, and the reference: tests show that the same draws give the same pixels.
"""

import functools
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import torch

from .errors import check, kind


@dataclass(frozen=True)
class Augment:
    """Pad and crop, flip, Cutout, in this order; any of them can be switched off.

    The padding mirrors the edge, the edge itself not repeated. The hole is filled with the mean colour, lies wholly
    inside the crop and is equally likely everywhere there, as in D. Page's cifar10-fast (2018); that of T. DeVries and
    G. W. Taylor, arXiv:1708.04552, may reach beyond the edge. Raises ``InputError`` for values below 0.
    """

    padding: int = field(default=4, metadata={"help": "pixels added on each side before the random crop, 0 for none"})
    flip: bool = field(default=True, metadata={"help": "mirror half of the images"})
    cutout: int = field(default=8, metadata={"help": "side of the square Cutout hole in pixels, 0 for none"})

    def __post_init__(self) -> None:
        for name, value in (("padding", self.padding), ("cutout", self.cutout)):
            check(name, value, isinstance(value, Integral) and value >= 0, "a whole number of pixels, 0 or more")
        check("flip", self.flip, self.flip in (True, False), "True or False")

    def check(self, height: int, width: int) -> None:
        """Raises ``InputError`` unless images of this size can be padded and cut like this."""
        side = min(height, width)
        for name in ("padding", "cutout"):
            check(name, getattr(self, name), getattr(self, name) < side, f"below the images' side, {side} pixels")

    def draw(self, n: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        """Random parameters for ``n`` images, int64 (5, n): top and left of the crop, flip (0 or 1), top and left of
        the hole."""
        highest = (2 * self.padding, 2 * self.padding, int(self.flip), height - self.cutout, width - self.cutout)
        return torch.stack([torch.randint(high + 1, (n,), generator=generator) for high in highest])

    def places(self, draws: torch.Tensor, index: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, ...]:
        """Where the pixels of the augmented images ``index`` (n,) come from: rows, columns, hole_rows, hole_columns.

        A row (n, height) plus a column (n, width) is a position in the list of all pixels; the hole is where both
        others are True.
        """
        y, x = (torch.arange(side, device=draws.device) for side in (height, width))
        top, left, flip, hole_top, hole_left = draws[:, :, None]
        # The way back from the output: flip, then crop, then the mirror of the padding.
        rows = _mirror(y + top - self.padding, height)
        columns = _mirror(torch.where(flip == 1, width - 1 - x, x) + left - self.padding, width)
        hole_rows = (y >= hole_top) & (y < hole_top + self.cutout)
        hole_columns = (x >= hole_left) & (x < hole_left + self.cutout)
        return (index[:, None] * height + rows) * width, columns, hole_rows, hole_columns

    def take(self, pixels: torch.Tensor, places, mean, std) -> torch.Tensor:
        """Augmented and normalised images, float32 (n, 3, h, w), of the ``places`` in ``pixels``, uint8
        (..., h, w, 3)."""
        rows, columns, hole_rows, hole_columns = places
        # One gather does all three. Flat positions: a single index is far faster than three broadcast ones.
        position = rows[:, :, None] + columns[:, None, :]
        out = pixels.view(-1, 3).index_select(0, position.view(-1)).view(*position.shape, 3)
        out = normalize(out, mean, std)
        if self.cutout:
            # Zero is the mean colour, because the pixels are normalised already.
            out.masked_fill_((hole_rows[:, :, None] & hole_columns[:, None, :])[:, None], 0)
        return out

    def albumentations(self, mean, std, height: int, width: int):
        """The same as an ``albumentations.Compose`` for single images: uint8 (h, w, 3) -> float32 tensor (3, h, w)."""
        import albumentations as A
        import cv2
        from albumentations.pytorch import ToTensorV2

        steps = []
        if self.padding:
            steps += [A.Pad(self.padding, border_mode=cv2.BORDER_REFLECT_101), A.RandomCrop(height, width)]
        if self.flip:
            steps.append(A.HorizontalFlip(p=0.5))
        steps.append(A.Normalize(mean, std))
        if self.cutout:
            side = (self.cutout, self.cutout)
            steps.append(A.CoarseDropout((1, 1), hole_height_range=side, hole_width_range=side, fill=0, p=1))
        return A.Compose([*steps, ToTensorV2()])


def normalized(pipeline, images):
    """``pipeline``, an albumentations transform from pixels to pixels, followed by evaluation's normalising.

    Raises ``InputError`` if it gives something else than uint8 (h, w, 3).
    """
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    x = pipeline(image=images.pixels[0].cpu().numpy())["image"]
    right = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3
    words = "uint8 pixels (h, w, 3): leave out Normalize, ToFloat and ToTensorV2; normalising comes afterwards"
    check("what augment gives", kind(x), right, words)
    return A.Compose([pipeline, A.Normalize(images.mean, images.std), ToTensorV2()])


def normalize(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w): (pixels / 255 - mean) / std."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), pixels.device)
    return torch.addcmul(shift, pixels.float(), scale).permute(0, 3, 1, 2).contiguous()


@functools.lru_cache
def _scale_and_shift(mean, std, device) -> tuple[torch.Tensor, torch.Tensor]:
    """On ``device``, once: to make a tensor of a list there, the CPU waits for all that a GPU has still to do."""
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (mean, std))
    return (1 / (255 * std)).to(device), (-mean / std).to(device)


def _mirror(position: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside 0 .. size-1 mirrored at the edge: -1 -> 1, size -> size - 2."""
    last = size - 1
    return last - (last - position.abs()).abs()
