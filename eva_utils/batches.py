"""Training batches: three loaders behind one protocol.

``len(loader)`` is the number of steps in an epoch, ``loader.epoch(k)`` iterates over epoch k (0, 1, ...) and gives
(x, y) on the device. Of ``Images`` these are float32 (b, 3, h, w) and int64 (b,), and what comes is a function of
(seed, epoch) alone, so a resumed run sees what an undisturbed one sees. Every image comes once an epoch; the last
batch may have another size. Of several processes, each takes its shard of every batch that a single one would see.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from .augment import Augment, normalize, normalized
from .data import IMAGES, Images, check_images, check_labels
from .errors import check, kind
from .processes import rank, world_size
from .recipe import Recipe

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def seed_for(*numbers: int) -> int:
    """One 63-bit seed from several integers (seed, epoch, ...), without the collisions of adding them up."""
    digest = hashlib.blake2b(repr([int(n) for n in numbers]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def loader(data, recipe: Recipe, device: torch.device, shard: tuple[int, int] | None = None, outputs=None):
    """The loader for ``data``: ``Images``, or any iterable of (x, y) batches with a length, such as a ``DataLoader``.

    shard: (rank, processes), by default this process's; of every batch, the images rank, rank + processes, ... come.
    outputs: the network's, where the labels of batches are classes: they have to be below. Raises ``InputError`` if the
    batch is larger than the data or too small to be shared, and for other data.
    """
    if not isinstance(data, Images):
        return GivenLoader(data, device, outputs)
    check_images(data)
    shard = shard or (rank(), world_size())
    augment = Augment(padding=0, flip=False, cutout=0) if recipe.augment is None else recipe.augment
    if isinstance(augment, Augment):
        height, width = data.pixels.shape[1:3]
        augment.check(height, width)
        if recipe.engine == "batch":
            return DeviceLoader(data.to(device), augment, recipe, device, shard)
        augment = augment.albumentations(data.mean, data.std, height, width)
    else:
        augment = normalized(augment, data)
    return WorkerLoader(data.to("cpu"), augment, recipe, device, shard)


class _Loader:
    """``sizes``: of each whole batch. ``parts``: of each batch, this shard's places in the order of an epoch."""

    def __init__(self, images: Images, augment, recipe: Recipe, device: torch.device, shard: tuple[int, int]) -> None:
        self.images, self.augment, self.device = images, augment, device
        self.seed, self.workers, (self.rank, processes) = recipe.seed, recipe.workers, shard
        n, size = len(images), recipe.batch_size
        check("batch_size", size, size <= n, f"between 1 and the {n:,} training images")
        self.sizes = [len(part) for part in torch.arange(n).split(size)]
        if n % size == 1:  # BatchNorm has no variance to take from one image, so the last two become one
            self.sizes[-2:] = [size + 1]
        right = f"one that leaves each of {processes} processes 2 or more of the {n:,} training images in every batch"
        check("batch_size", size, processes == 1 or min(self.sizes) >= 2 * processes, right)
        self.parts = [part[self.rank :: processes] for part in torch.arange(n).split(self.sizes)]

    def __len__(self) -> int:
        return len(self.parts)

    def generator(self, epoch: int) -> torch.Generator:
        # Always a CPU generator, so that every device sees the same order, crops, flips and holes.
        return torch.Generator().manual_seed(seed_for(self.seed, epoch))


class DeviceLoader(_Loader):
    """Whole batches, made on the device, where the data set lives as uint8."""

    def epoch(self, epoch: int) -> Batches:
        images, generator, mine = self.images, self.generator(epoch), torch.cat(self.parts)
        n, height, width, _ = images.pixels.shape
        order = torch.randperm(n, generator=generator)[mine].to(self.device)
        draws = self.augment.draw(n, height, width, generator)[:, mine].to(self.device)
        # Of all batches at once: many small operations, which would cost a GPU time in every step.
        places = self.augment.places(draws, order, height, width)
        sizes = [len(part) for part in self.parts]
        for y, *here in zip(*(values.split(sizes) for values in (images.labels[order], *places)), strict=True):
            yield self.augment.take(images.pixels, here, images.mean, images.std), y


class WorkerLoader(_Loader, torch.utils.data.Dataset):
    """Image by image through an albumentations pipeline, in ``workers`` processes (0: in this one)."""

    def epoch(self, epoch: int) -> Batches:
        order = torch.randperm(len(self.images), generator=self.generator(epoch))
        batches = torch.utils.data.DataLoader(
            self,
            sampler=[(epoch, part.tolist(), order[part].tolist()) for part in self.parts],
            batch_size=None,  # an item is a batch already
            num_workers=self.workers,
            worker_init_fn=_one_thread,
            pin_memory=self.device.type == "cuda",
            # For what in a worker draws from a global generator, and so that none is drawn from here.
            generator=torch.Generator().manual_seed(seed_for(self.seed, epoch, self.rank)),
        )
        for x, y in batches:
            yield _placed(x, y, self.device)

    def __getitem__(self, batch: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch: a worker hands over few large tensors, not many small ones."""
        (epoch, places, index), x = batch, []
        for place, pixels in zip(places, self.images.pixels[index].numpy(), strict=True):
            # A stream of random numbers an image, a function of (seed, epoch, its place in the order), whichever worker
            # or process makes it. All steps of the pipeline draw from it: seeded alike, two flips would always agree.
            seed = seed_for(self.seed, epoch, place)
            self.augment.set_random_state(np.random.default_rng(seed), random.Random(seed))
            x.append(self.augment(image=pixels)["image"])
        return torch.stack(x).contiguous(), self.images.labels[index]


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers are the parallelism; threads within each would only get in their way


class GivenLoader:
    """Somebody else's batches: any iterable of (x, y) with a length.

    Its random numbers are a function of (seed, epoch) as far as it draws them from torch's global generator, as a
    ``DataLoader`` without a generator of its own does; training seeds that one before each epoch.
    """

    sizes = None  # not known before they come

    def __init__(self, batches, device: torch.device, outputs: int | None = None) -> None:
        try:
            known = len(batches) >= 0 and isinstance(batches, Iterable) and not isinstance(batches, (str, torch.Tensor))
        except TypeError:  # of a DataLoader, too, if its data are endless
            known = False
        check("the data", kind(batches), known, f"{IMAGES} or batches (x, y) with a length, such as a DataLoader")
        check("number of batches", len(batches), len(batches) > 0, "1 or more")
        check("number of processes", world_size(), world_size() == 1, "1 with a loader of your own; Images are shared")
        self.batches, self.device, self.outputs = batches, device, outputs

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Batches:
        for sampler in (getattr(self.batches, name, None) for name in ("sampler", "batch_sampler")):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        words = f"two tensors, (x, y): floating-point numbers (n, ...) and n labels; or give {IMAGES}"
        for batch in self.batches:
            x, y = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (None, None)
            right = isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.is_floating_point()
            check("a batch", kind(batch), right and x.shape[:1] == y.shape[:1] > (0,), words)
            if self.outputs:
                check_labels(y, self.outputs)
            yield _placed(x.float().contiguous(), y if y.is_floating_point() else y.long(), self.device)


def _placed(x: torch.Tensor, y: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    early = device.type == "cuda"  # the other way round, nobody would wait for the pixels
    return x.to(device, non_blocking=early), y.to(device, non_blocking=early)


def plain_batches(data, batch_size: int, device: torch.device) -> Batches:
    """(x, y) of all images in order, normalised and nothing else; of a loader, what it gives: for evaluation."""
    if not isinstance(data, Images):
        yield from GivenLoader(data, device).epoch(0)
        return
    for start in range(0, len(data), batch_size):
        part = slice(start, start + batch_size)
        yield normalize(data.pixels[part].to(device), data.mean, data.std), data.labels[part].to(device)
