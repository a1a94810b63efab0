"""Augmentation: one description, two engines.

``Augment`` says what happens to a training image: padding and a random crop, a horizontal flip, one Cutout hole, in
this order. ``draw``, ``places`` and ``take`` do it to a whole batch with a few tensor operations on the device;
``albumentations`` is the same as a pipeline for single images, and the reference that the first is tested against:
the same drawn parameters give the same pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import torch

from .errors import InputError, check


class _Columns:
    """A dataclass of tensors with one row an image: indexed and moved together."""

    def __getitem__(self, index):
        return type(self)(*(value[index] for value in vars(self).values()))

    def to(self, device):
        return type(self)(*(value.to(device, non_blocking=True) for value in vars(self).values()))


@dataclass(frozen=True)
class Draws(_Columns):
    """The random parameters of n images, as int64 tensors (n,): crop offset, flip (0 or 1), corner of the hole."""

    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    hole_top: torch.Tensor
    hole_left: torch.Tensor


@dataclass(frozen=True)
class Places(_Columns):
    """Where the pixels of n augmented images come from: rows and columns of the source, as positions in a flat image,
    int64 (n, h) and (n, w), and which of their own rows and columns the hole covers, bool."""

    rows: torch.Tensor
    columns: torch.Tensor
    hole_rows: torch.Tensor
    hole_columns: torch.Tensor


@dataclass(frozen=True)
class Augment:
    """Pad and crop, flip, Cutout; any of them can be switched off.

    The padding mirrors the edge, the edge itself not repeated. The hole is filled with the mean colour, lies wholly
    inside the crop and is equally likely everywhere there, as in D. Page's cifar10-fast (2018); that of T. DeVries and
    G. W. Taylor, arXiv:1708.04552, may reach beyond the edge. Raises ``InputError`` for values below 0.
    """

    padding: int = field(default=4, metadata={"help": "pixels added on each side before the random crop, 0 for none"})
    flip: bool = field(default=True, metadata={"help": "mirror half of the images"})
    cutout: int = field(default=8, metadata={"help": "side of the square Cutout hole in pixels, 0 for none"})

    def __post_init__(self) -> None:
        for name in ("padding", "cutout"):
            check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more pixels")

    def check(self, height: int, width: int) -> None:
        """Raises InputError unless images of this size can be padded and cut like this."""
        side = min(height, width)
        for name in ("padding", "cutout"):
            check(name, getattr(self, name), getattr(self, name) < side, f"below the images' side, {side} pixels")

    def draw(self, n: int, height: int, width: int, generator: torch.Generator) -> Draws:
        """Parameters for ``n`` images of ``height`` x ``width`` pixels."""
        highest = (2 * self.padding, 2 * self.padding, int(self.flip), height - self.cutout, width - self.cutout)
        return Draws(*(torch.randint(high + 1, (n,), generator=generator) for high in highest))

    def places(self, draws: Draws, height: int, width: int) -> Places:
        """What ``take`` needs, without the pixels: for many batches at once, because it is many small operations."""
        y, x = (torch.arange(side, device=draws.top.device) for side in (height, width))
        # Position in the source of every output row and column: flip, then crop, then the mirror of the padding.
        rows = _mirror(y + draws.top[:, None] - self.padding, height)
        columns = torch.where(draws.flip[:, None] == 1, width - 1 - x, x) + draws.left[:, None] - self.padding
        return Places(
            rows * width,
            _mirror(columns, width),
            _between(y, draws.hole_top, self.cutout),
            _between(x, draws.hole_left, self.cutout),
        )

    def take(self, images, start: torch.Tensor, places: Places) -> torch.Tensor:
        """Augmented and normalised images, float32 (n, 3, h, w), channels last. ``images`` is an ``Images``; start:
        where each image begins among all its pixels, int64 (n,)."""
        _, height, width, _ = images.pixels.shape
        # One gather does all three. Flat positions: a single index is far faster than three broadcast ones.
        position = (start[:, None] + places.rows)[:, :, None] + places.columns[:, None, :]
        out = images.pixels.view(-1, 3).index_select(0, position.view(-1)).view(len(start), height, width, 3)
        out = normalize(out, images.mean, images.std)
        if self.cutout:
            # Zero is the mean colour, because the pixels are normalised already.
            out.masked_fill_((places.hole_rows[:, :, None] & places.hole_columns[:, None, :])[:, None], 0)
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


NONE = Augment(padding=0, flip=False, cutout=0)


def mirrors(augment) -> bool:
    """Whether training mirrors images, so that the mirror image may be asked, too (TTA). Of a pipeline: if it says."""
    if isinstance(augment, Augment):
        return augment.flip
    return "HorizontalFlip" in repr(augment)


def check_pipeline(pipeline, x, images) -> None:
    """Raises ``InputError`` unless a user's pipeline normalises as evaluation does, and ``x``, made of one image by it,
    is a float32 tensor (3, h, w). ``A.Normalize`` is optional if a step of one's own can do the same."""
    import albumentations as A

    steps, right = [pipeline], "the pipeline has to end with A.Normalize(train.mean, train.std), ToTensorV2()"
    normalizes = False
    while steps:
        step = steps.pop()
        if isinstance(step, A.BaseCompose):
            steps += step.transforms
        elif isinstance(step, A.Normalize):
            normalizes = True
            pairs = (step.mean, images.mean), (step.std, images.std)
            if step.normalization != "standard" or not all(np.allclose(*pair, atol=0.01) for pair in pairs):
                raise InputError(f"augment has {step}, but evaluation uses the training images' mean and std: {right}")
        else:
            normalizes |= isinstance(step, A.Lambda) or not type(step).__module__.startswith("albumentations.")
    if not (isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.ndim == 3 and len(x) == 3):
        got = f"{type(x).__name__} of {getattr(x, 'dtype', '?')}, {tuple(getattr(x, 'shape', ()))}"
        raise InputError(f"augment gives a {got}; the network takes a float32 tensor (3, h, w): {right}")
    if not normalizes:
        raise InputError(f"augment does not normalise, but evaluation does: {right}")


def normalize(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in channels_last memory: (pixels / 255 - mean) / std."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), pixels.device)
    return torch.addcmul(shift, pixels.float(), scale).permute(0, 3, 1, 2)


@functools.lru_cache
def _scale_and_shift(mean, std, device) -> tuple[torch.Tensor, torch.Tensor]:
    """On ``device``, once: to make a tensor of a list there, the CPU waits for all that a GPU has still to do."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in (mean, std))
        return (1 / (255 * std)).to(device), (-mean / std).to(device)


def _mirror(position: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside 0 .. size-1 mirrored at the edge: -1 -> 1, size -> size - 2."""
    last = size - 1
    return last - (last - position.abs()).abs()


def _between(position: torch.Tensor, start: torch.Tensor, length: int) -> torch.Tensor:
    return (position >= start[:, None]) & (position < start[:, None] + length)
