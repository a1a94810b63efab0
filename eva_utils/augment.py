"""Augmentation: one description, two engines.

``Augment`` says what happens to a training image: padding and a random crop, a horizontal flip, one Cutout hole, in
this order. ``Augment.batch`` does it to a whole batch with a few tensor operations on the device (training calls its
two halves, ``places`` and ``take``);
``Augment.albumentations`` is the same as a pipeline for single images, and the reference that the first is tested
against: the same drawn parameters give the same pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from .errors import InputError, check


@dataclass(frozen=True)
class Draws:
    """The random parameters of n images, as int64 tensors (n,): crop offset, flip (0 or 1), corner of the hole."""

    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    hole_top: torch.Tensor
    hole_left: torch.Tensor

    def __getitem__(self, index) -> Draws:
        return Draws(*(value[index] for value in vars(self).values()))

    def to(self, device) -> Draws:
        return Draws(*(value.to(device, non_blocking=True) for value in vars(self).values()))


@dataclass(frozen=True)
class Places:
    """Where the pixels of n augmented images come from: rows and columns of the source, as positions in a flat image,
    int64 (n, h) and (n, w), and which of their own rows and columns the hole covers, bool."""

    rows: torch.Tensor
    columns: torch.Tensor
    hole_rows: torch.Tensor
    hole_columns: torch.Tensor

    def __getitem__(self, index) -> Places:
        return Places(*(value[index] for value in vars(self).values()))


@dataclass(frozen=True)
class Augment:
    """Pad and crop, flip, Cutout; any of them can be switched off.

    padding: pixels added on each side (mirrored at the edge, the edge itself not repeated) before a crop of the
        original size; 0 for none.
    flip: mirror left and right with probability 1/2.
    alternate: draw that only in the first epoch, then take turns, so that of two successive epochs one shows an image
        as it is and the other mirrored. Source: K. Jordan, arXiv:2404.00498.
    cutout: side of one square hole, filled with the mean colour; 0 for none. Source: T. DeVries, G. W. Taylor,
        arXiv:1708.04552; theirs may reach beyond the edge, this one lies wholly inside the crop and is equally likely
        everywhere there, as in D. Page's cifar10-fast (2018).
    """

    padding: int = 4
    flip: bool = True
    cutout: int = 8
    alternate: bool = False

    def __post_init__(self) -> None:
        check("padding", self.padding, self.padding >= 0, "0 or more pixels")
        check("cutout", self.cutout, self.cutout >= 0, "0 or more pixels")

    def check(self, height: int, width: int) -> None:
        """Raises InputError unless images of this size can be padded and cut like this."""
        side = min(height, width)
        check("padding", self.padding, self.padding < side, f"below the images' side, {side} pixels")
        check("cutout", self.cutout, self.cutout < side, f"below the images' side, {side} pixels")

    def draw(self, n: int, height: int, width: int, generator: torch.Generator) -> Draws:
        """Parameters for ``n`` images of ``height`` x ``width`` pixels."""

        def uniform(high: int) -> torch.Tensor:  # 0 .. high, both included
            return torch.randint(high + 1, (n,), generator=generator)

        return Draws(
            top=uniform(2 * self.padding),
            left=uniform(2 * self.padding),
            flip=uniform(int(self.flip)),
            hole_top=uniform(height - self.cutout),
            hole_left=uniform(width - self.cutout),
        )

    def batch(self, images, index: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The images at ``index``, augmented and normalised: float32 (len(index), 3, h, w), channels last.

        ``images`` is an ``Images`` whose pixels, like ``index`` and ``draws``, are on the device where it happens.
        """
        _, height, width, _ = images.pixels.shape
        return self.take(images, index * (height * width), self.places(draws, height, width))

    def places(self, draws: Draws, height: int, width: int) -> Places:
        """``batch``'s first half, without the pixels: for many batches at once, because it is many small operations."""
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
        """``batch``'s second half; start: where each image begins among all pixels, int64 (n,)."""
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


def check_pipeline(pipeline, x, images) -> None:
    """Raises ``InputError`` unless an albumentations pipeline fits the evaluation, and ``x``, made of one image by it,
    the network: a float32 tensor (3, h, w). Of the pipeline, what is looked at is any ``A.Normalize``: it has to be by
    the mean and std of ``images``, and may be missing only where a step of one's own could do the same."""
    import albumentations as A

    right = "so the pipeline needs A.Normalize(train.mean, train.std), and ToTensorV2() at its end"
    steps, normalizes = [pipeline], False
    while steps:
        step = steps.pop()
        if isinstance(step, A.BaseCompose):
            steps += step.transforms
            continue
        own = isinstance(step, A.Lambda) or not type(step).__module__.startswith("albumentations.")
        normalizes |= own or isinstance(step, A.Normalize)
        if isinstance(step, A.Normalize):
            pairs = (step.mean, images.mean), (step.std, images.std)
            # Rounded ones will do.
            if step.normalization != "standard" or not all(np.allclose(*pair, atol=0.01) for pair in pairs):
                raise InputError(
                    f"augment has {step}; evaluation normalises by the training images' mean and std, {right}"
                )
    if not (isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.ndim == 3 and len(x) == 3):
        raise InputError(
            f"augment gives a {type(x).__name__} of {getattr(x, 'dtype', '?')}, {tuple(getattr(x, 'shape', ()))}; "
            f"the network takes a float32 tensor (3, h, w), {right}"
        )
    if not normalizes:
        raise InputError(f"augment does not normalise; evaluation does, by the training images' mean and std, {right}")


def normalize(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in channels_last memory: (pixels / 255 - mean) / std."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), pixels.device)
    return torch.addcmul(shift, pixels.float(), scale).permute(0, 3, 1, 2)


@functools.lru_cache
def _scale_and_shift(mean, std, device) -> tuple[torch.Tensor, torch.Tensor]:
    """On ``device``, once: to make a tensor of a list there, the CPU waits for all that a GPU has still to do."""
    with torch.inference_mode(False):
        scale, shift = 1 / (255 * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)
        return scale.to(device), shift.to(device)


def _mirror(position: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside 0 .. size-1 mirrored at the edge: -1 -> 1, size -> size - 2."""
    last = size - 1
    return last - (last - position.abs()).abs()


def _between(position: torch.Tensor, start: torch.Tensor, length: int) -> torch.Tensor:
    return (position >= start[:, None]) & (position < start[:, None] + length)
