"""Training batches: three loaders behind one protocol.

``len(loader)`` is the number of steps in an epoch, ``loader.epoch(k)`` iterates over epoch k (0, 1, ...) and gives
(x, y) on the device: float32 (b, 3, h, w) in channels_last memory and int64 (b,). What comes is a function of
(seed, epoch) and of nothing else: epoch 7 is the same whether or not epoch 6 ran before it, so a resumed run sees what
an undisturbed one sees. Every image comes once an epoch; the last batch is smaller if the batch size does not
divide their number (a single image left over joins the batch before it). Of several processes, each takes its shard
of every batch, image for image what a single process would see.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from .augment import NONE, Augment, check_pipeline, normalize
from .data import Images, check_labels
from .device import room
from .errors import InputError, RunError, check
from .processes import raise_if_stopped, rank, world_size
from .recipe import Recipe

AHEAD = 32  # batches whose places are worked out at once: enough for a GPU, and little memory for large images


def seed_for(*numbers: int) -> int:
    """One 63-bit seed from several integers (seed, epoch, ...), without the collisions of adding them up."""
    digest = hashlib.blake2b(repr([int(n) for n in numbers]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def loader(data, recipe: Recipe, device: torch.device, shard: tuple[int, int] | None = None):
    """The loader for ``data``: ``Images``, or any iterable of (x, y) batches with a length, such as a ``DataLoader``.

    shard: (rank, processes), by default this process's; of every batch, the images rank, rank + processes, ... come.
    Raises ``InputError`` if the batch is larger than the data or too small to be shared, and for other data.
    """
    shard = shard or (rank(), world_size())
    if not isinstance(data, Images):
        return GivenLoader(data, device)
    check_labels(data)
    n, augment = len(data), NONE if recipe.augment is None else recipe.augment
    check("batch_size", recipe.batch_size, recipe.batch_size <= n, f"between 1 and the {n:,} training images")
    smallest = min(part.stop - part.start for part in _parts(n, recipe.batch_size))
    if shard[1] > 1 and smallest < 2 * shard[1]:  # BatchNorm has no variance to take from one image
        raise InputError(
            f"batch_size is {recipe.batch_size}, which leaves {smallest} of the {n:,} training images for the smallest "
            f"batch; {shard[1]} processes need {2 * shard[1]} or more in each: choose another one or fewer processes"
        )
    if not isinstance(augment, Augment):
        batches = WorkerLoader(data, augment, recipe, device, shard)
        check_pipeline(augment, batches.first(), data)
        return batches
    augment.check(*data.pixels.shape[1:3])
    if recipe.engine == "batch":
        return DeviceLoader(data, augment, recipe, device, shard)
    return WorkerLoader(
        data, augment.albumentations(data.mean, data.std, *data.pixels.shape[1:3]), recipe, device, shard
    )


def to_device(images: Images, device: torch.device) -> Images:
    """The same images with labels and, if there is room for them, pixels on ``device``."""
    pixels = images.pixels.to(device) if _fits(images, device) else images.pixels
    return dataclasses.replace(images, pixels=pixels.contiguous(), labels=images.labels.to(device))


def _fits(images: Images, device: torch.device) -> bool:
    return images.pixels.is_cuda or images.pixels.nbytes <= room(device)


def _parts(n: int, batch_size: int) -> list[slice]:
    """Where each batch lies in the order of an epoch with ``n`` images."""
    ends = [*range(batch_size, n, batch_size), n]
    if len(ends) > 1 and n % batch_size == 1 and batch_size > 1:
        del ends[-2]  # BatchNorm has no variance to take from one image
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class _Loader:
    """``sizes``: of each whole batch. ``parts``: where the images of this shard lie in the order of an epoch."""

    def __init__(self, images: Images, recipe: Recipe, device: torch.device, shard: tuple[int, int]) -> None:
        self.images, self.seed, self.device, self.workers = images, recipe.seed, device, recipe.workers
        self.rank, processes = shard
        parts = _parts(len(images), recipe.batch_size)
        self.sizes = [part.stop - part.start for part in parts]
        self.parts = [slice(part.start + self.rank, part.stop, processes) for part in parts]

    def __len__(self) -> int:
        return len(self.parts)

    def _generator(self, epoch: int) -> torch.Generator:
        # Always a CPU generator, so that every device sees the same order, crops, flips and holes.
        return torch.Generator().manual_seed(seed_for(self.seed, epoch))


class DeviceLoader(_Loader):
    """Whole batches, made on the device where the data set lives as uint8.

    A data set that has no room there stays in the computer's memory, and each batch's bytes are sent when it is due.
    """

    def __init__(self, images: Images, augment: Augment, recipe: Recipe, device, shard) -> None:
        self.resident = _fits(images, device)
        super().__init__(to_device(images, device), recipe, device, shard)
        self.augment = augment
        if not self.resident:
            size = images.pixels.nbytes / 1e9
            print(f"{images.name}: {size:.1f} GB of pixels have no room on {device}, and are sent batch by batch")

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = self._generator(epoch)
        n, height, width, _ = self.images.pixels.shape
        order = torch.randperm(n, generator=generator)
        draws = self.augment.draw(n, height, width, generator).to(self.device)
        there = order.to(self.device)
        labels, start = self.images.labels[there], there * (height * width)
        for i in range(0, len(self.parts), AHEAD):
            parts = self.parts[i : i + AHEAD]
            first = parts[0].start
            places = self.augment.places(draws[first : parts[-1].stop], height, width)
            for part in parts:
                images, begin = self.images, start[part]
                if not self.resident:
                    pixels = self.images.pixels[order[part]]
                    if self.device.type == "cuda":
                        pixels = pixels.pin_memory()  # then the CPU need not wait for the copy
                    images = dataclasses.replace(images, pixels=pixels.to(self.device, non_blocking=True),
                                                 labels=labels[part])  # fmt: skip
                    begin = torch.arange(len(pixels), device=self.device) * (height * width)
                here = slice(part.start - first, part.stop - first, part.step)
                yield self.augment.take(images, begin, places[here]), labels[part]


class WorkerLoader(_Loader):
    """Image by image through an albumentations pipeline, in ``workers`` processes (0: in this one)."""

    def __init__(self, images: Images, transform, recipe: Recipe, device, shard) -> None:
        super().__init__(images, recipe, device, shard)
        self.transform = transform

    def first(self) -> torch.Tensor:
        """The first image as the pipeline gives it."""
        return _WholeBatches(self, torch.arange(len(self.images)), 0).augmented(0, 0)

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.images), generator=self._generator(epoch))
        batches = torch.utils.data.DataLoader(
            _WholeBatches(self, order, epoch),
            batch_size=None,  # an item is a batch already
            num_workers=self.workers,
            worker_init_fn=_one_thread if self.workers else None,
            pin_memory=self.device.type == "cuda",
            # For what in a worker draws from a global generator, and so that none is drawn from here.
            generator=torch.Generator().manual_seed(seed_for(self.seed, epoch, self.rank)),
        )
        try:
            for x, y in batches:
                x = x.to(self.device, non_blocking=True, memory_format=torch.channels_last)
                yield x, y.to(self.device, non_blocking=True)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise_if_stopped()  # workers that got the same signal are not reported as crashed
            raise RunError(
                "a worker process died: out of memory, or it could not start (a script needs an "
                "if __name__ == '__main__' around its calls); the last checkpoint, if any, is kept: "
                "the same call goes on from it, with workers=0 in one process"
            ) from error


class _WholeBatches(torch.utils.data.Dataset):
    """Item i is the whole batch i, or this shard of it: a worker hands over few large tensors, not many small ones."""

    def __init__(self, loader: WorkerLoader, order: torch.Tensor, epoch: int) -> None:
        self.images, self.transform, self.parts = loader.images, loader.transform, loader.parts
        self.order, self.seed = order, (loader.seed, epoch)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = self.parts[i]
        index = self.order[part]
        places = range(part.start, part.stop, part.step)
        x = torch.stack([self.augmented(k, place) for k, place in zip(index.tolist(), places, strict=True)])
        return x, self.images.labels[index]

    def augmented(self, k: int, place: int) -> torch.Tensor:
        # A stream of random numbers an image, a function of (seed, epoch, its place in the order), whichever worker or
        # process makes it. All steps of the pipeline draw from it: seeded alike, two flips would always agree.
        seed = seed_for(*self.seed, place)
        self.transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self.transform(image=self.images.pixels[k].numpy())["image"]


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers are the parallelism; threads within each would only get in their way


class GivenLoader:
    """Somebody else's batches: any iterable of (x, y) with a length.

    Its random numbers are a function of (seed, epoch) as far as it draws them from torch's global generator, as a
    ``DataLoader`` without a generator of its own does; training seeds that one before each epoch.
    """

    sizes = images = None  # not known before they come

    def __init__(self, batches, device: torch.device) -> None:
        known = (
            hasattr(batches, "__iter__")
            and hasattr(batches, "__len__")
            and not isinstance(batches, (str, torch.Tensor))
        )
        if not known or isinstance(batches, torch.utils.data.Dataset):
            raise InputError(
                f"the data are a {type(batches).__name__}; they have to be Images (from_arrays makes them of arrays, "
                "image_folder of a folder) or batches (x, y) with a length, such as a DataLoader"
            )
        check("number of batches", len(batches), len(batches) > 0, "1 or more")
        check("number of processes", world_size(), world_size() == 1, "1 with a loader of your own; Images are shared")
        self.batches, self.device = batches, device

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if hasattr(sampler := getattr(self.batches, "sampler", None), "set_epoch"):
            sampler.set_epoch(epoch)
        for batch in self.batches:
            yield _placed(batch, self.device)


def _placed(batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(t, torch.Tensor) for t in batch)):
        raise InputError(f"a batch is a {type(batch).__name__}; it has to be two tensors, (x, y)")
    x, y = batch
    layout = torch.channels_last if x.ndim == 4 else torch.preserve_format
    return x.to(device, non_blocking=True, memory_format=layout), y.to(device, non_blocking=True)


def plain_batches(data, batch_size: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(x, y) of all images in order, normalised and nothing else; of a loader, what it gives: for evaluation."""
    if not isinstance(data, Images):
        yield from GivenLoader(data, device).epoch(0)
        return
    for start in range(0, len(data), batch_size):
        part = slice(start, start + batch_size)
        yield normalize(data.pixels[part].to(device), data.mean, data.std), data.labels[part].to(device)
