"""Data sets in memory: ``Images``, and how arrays and scikit-learn's digits become some."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .errors import InputError, check, first_line, kind

IMAGES = "Images (from_arrays makes them of arrays, image_folder of a folder)"


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in memory.

    pixels: uint8 tensor (n, height, width, 3), RGB. labels: int64 tensor (n,), indices into ``classes``.
    mean, std: of each channel over the *training* images, in units of 0..1; a test set carries its training set's.
    ``from_arrays`` makes a pair of them. Raises ``InputError`` for tensors of another kind or shape.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str = "images"

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        right = isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8 and pixels.ndim == 4
        check("pixels", kind(pixels), right and pixels.shape[3] == 3, "a torch.uint8 tensor (n, height, width, 3)")
        right = isinstance(labels, torch.Tensor) and labels.dtype == torch.int64 and labels.shape == pixels.shape[:1]
        check("labels", kind(labels), right, f"a torch.int64 tensor ({len(pixels)},)")
        right = all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(self.mean, self.std, strict=True))
        check("mean and std", (self.mean, self.std), right, "in units of 0..1, and std above 0")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index) -> "Images":
        """The images at ``index`` (a position, a slice, a list or a tensor of positions) as ``Images``."""
        index = rows(index)
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def to(self, device: str | torch.device) -> "Images":
        """The same images on ``device``."""
        return replace(self, pixels=self.pixels.to(device).contiguous(), labels=self.labels.to(device))

    def __repr__(self) -> str:
        n, height, width, _ = self.pixels.shape
        return f"Images({self.name}: {n:,} images of {width} x {height}, {len(self.classes)} classes)"


def rows(index):
    """``index`` so that what it selects keeps its first dimension: a single position is a list of one."""
    return index if isinstance(index, slice) or np.ndim(index) else [int(index)]


def check_images(images) -> None:
    """Raises ``InputError`` unless these are ``Images``, at least one, with labels that are all among the classes."""
    check("the data", kind(images), isinstance(images, Images), IMAGES)
    check("number of images", len(images), len(images) > 0, "1 or more")
    check_labels(images.labels, len(images.classes))


def check_labels(labels: torch.Tensor, k: int) -> None:
    """Raises ``InputError`` unless all are among ``k`` classes: others would end a GPU's process."""
    check("the type of labels", kind(labels), labels.ndim == 1 and not labels.is_floating_point(), "whole numbers (n,)")
    low, high = int(labels.min()), int(labels.max())
    check("the range of labels", (low, high), low >= 0 and high < k, f"within 0 and {k - 1}, for {k} classes")


def from_arrays(train: tuple, test: tuple, classes, name: str = "images") -> tuple[Images, Images]:
    """(train, test) as ``Images``, both with the channel statistics of the training images.

    train, test: each (pixels, labels), as arrays, tensors or lists. pixels: whole numbers from 0 to 255, as
    (n, h, w, 3), (n, 3, h, w), or grey, as (n, h, w), (n, h, w, 1) or (n, 1, h, w). labels: n whole numbers that count
    ``classes`` from 0. Raises ``InputError`` for anything else.
    """
    right = "a list of names, in the order of their labels"
    check("classes", kind(classes), isinstance(classes, (Sequence, np.ndarray)), right)
    splits, names = [], tuple(map(str, classes))
    check("classes", names, len(set(names)) == len(names), "names that differ")
    for pair in (train, test):
        right = isinstance(pair, (tuple, list)) and len(pair) == 2
        check("train or test", kind(pair), right, "a pair, (pixels, labels)")
        pixels, labels = (part.cpu() if isinstance(part, torch.Tensor) else part for part in pair)
        labels = np.asarray(labels)
        check("the type of labels", str(labels.dtype), labels.dtype.kind in "iu", "whole numbers")
        tensors = (torch.from_numpy(array) for array in (_pixels(pixels), labels.astype(np.int64)))
        splits.append(Images(*tensors, names, (0.0,) * 3, (1.0,) * 3, name))
        check_images(splits[-1])
    # From counts of the 256 values: exact, and no float copy of the data.
    counts = np.stack([channel.flatten().bincount(minlength=256) for channel in splits[0].pixels.unbind(3)])
    value = np.arange(256) / 255
    mean = counts @ value / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ value**2 / counts.sum(1) - mean**2, 0))
    std[std == 0] = 1.0  # a constant channel stays finite when it is divided by this
    return tuple(replace(images, mean=tuple(mean.tolist()), std=tuple(std.tolist())) for images in splits)


def _pixels(values) -> np.ndarray:
    """uint8 (n, h, w, 3) of what ``from_arrays`` takes."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # images of several sizes
        raise InputError(f"pixels are no array: {first_line(error)}; give all images one size") from error
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() <= 255):
        raise InputError(f"pixels are {array.dtype}; they have to be whole numbers from 0 to 255 (floats: times 255)")
    array = array[..., None] if array.ndim == 3 else array
    axes = [axis for axis in (1, 3) if array.ndim == 4 and array.shape[axis] in (1, 3)]
    right = "(n, h, w, 3), (n, 3, h, w) or grey, and leave no doubt where the channels are"
    check("the shape of pixels", np.shape(values), len(axes) == 1, right)
    array = np.moveaxis(array, axes[0], 3)
    return np.ascontiguousarray(array if array.shape[3] == 3 else array.repeat(3, axis=3), np.uint8)


def digits() -> tuple[Images, Images]:
    """scikit-learn's embedded digits: (train, test) with 1,437 and 360 images as 32 x 32 RGB. No download.

    The 8 x 8 originals (values 0 to 16) are repeated to 32 x 32; the split is stratified and always the same.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    split = train_test_split(pixels, data.target, test_size=0.2, random_state=0, stratify=data.target)
    return from_arrays(split[::2], split[1::2], [str(name) for name in data.target_names], "digits")
