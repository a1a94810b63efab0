"""Training batches: two loaders behind one protocol.

``len(loader)`` is the number of steps in an epoch, ``loader.epoch(k)`` iterates over epoch k (0, 1, ...) and gives
(x, y) on the device: float32 (b, 3, h, w) in channels_last memory and int64 (b,). What comes is a function of
(seed, epoch) and of nothing else: epoch 7 is the same whether or not epoch 6 ran before it, so a resumed run sees what
an undisturbed one sees. Every image comes once an epoch; the last batch is smaller if the batch size does not
divide their number (a single image left over joins the batch before it). Of several processes, each takes its shard
of every batch, image for image what a single process would see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import signal
import threading
from collections.abc import Iterator

import numpy as np
import torch

from .augment import Augment, check_pipeline, normalize
from .errors import InputError, RunError, check
from .images import Images
from .precision import room

AHEAD = 32  # batches whose places are worked out at once: enough for a GPU, and little memory for large images


def seed_for(*numbers: int) -> int:
    """One 63-bit seed from several integers (seed, epoch, ...), without the collisions of adding them up."""
    digest = hashlib.blake2b(repr([int(n) for n in numbers]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def to_device(images: Images, device) -> Images:
    """The same images with labels and, if there is room for them, pixels on ``device``."""
    pixels = images.pixels.to(device) if _fits(images, device) else images.pixels
    return dataclasses.replace(images, pixels=pixels.contiguous(), labels=images.labels.to(device))


def _fits(images: Images, device) -> bool:
    return images.pixels.is_cuda or images.pixels.nbytes <= room(torch.device(device))


def loader(
    images: Images,
    augment=None,
    batch_size: int = 512,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    engine: str = "batch",
    workers: int = 2,
    shard: tuple[int, int] = (0, 1),
):
    """The loader for ``engine``: "batch" (on the device) or "albumentations" (image by image, in worker processes).

    ``augment`` is an ``Augment``, None for plain normalised images, or an albumentations pipeline of your own, which
    always uses the second engine. It ends in a float32 tensor (3, h, w), normalised as evaluation does it:
    ``A.Normalize(images.mean, images.std), ToTensorV2()``.
    shard: (rank, processes); of every batch of ``batch_size``, the images rank, rank + processes, ... are given.
    Raises ``InputError`` if the batch is larger than the data or too small to be shared, and for a pipeline that gives
    something else.
    """
    check_batches(images, augment, batch_size, engine, workers, shard[1])
    size = tuple(images.pixels.shape[1:3])
    if augment is None:
        augment = Augment(padding=0, flip=False, cutout=0)
    if isinstance(augment, Augment):
        if engine == "batch":
            return DeviceLoader(images, augment, batch_size, seed, device, shard)
        alternate = augment.flip and augment.alternate  # a pipeline knows of no epochs, so the loader does it
        pipeline = dataclasses.replace(augment, flip=augment.flip and not alternate)
        augment = pipeline.albumentations(images.mean, images.std, *size)
        return WorkerLoader(images, augment, batch_size, seed, device, shard, workers, alternate)
    batches = WorkerLoader(images, augment, batch_size, seed, device, shard, workers)
    check_pipeline(augment, batches.first(), images)
    return batches


def check_batches(
    images: Images, augment, batch_size: int, engine: str = "batch", workers: int = 0, processes: int = 1
) -> None:
    """Raises ``InputError`` unless ``loader`` can make batches of this."""
    n = len(images)
    check("batch_size", batch_size, 1 <= batch_size <= n, f"between 1 and the {n:,} training images")
    smallest = min(part.stop - part.start for part in _parts(n, batch_size))
    if processes > 1 and smallest < 2 * processes:  # BatchNorm has no variance to take from one image
        raise InputError(
            f"batch_size is {batch_size}, which leaves {smallest} of the {n:,} training images for the smallest batch; "
            f"{processes} processes need {2 * processes} or more in each: choose another batch size or fewer processes"
        )
    check("engine", engine, engine in ("batch", "albumentations"), "'batch' or 'albumentations'")
    check("workers", workers, 0 <= workers <= 256, "between 0 and 256")
    if isinstance(augment, Augment):
        augment.check(*images.pixels.shape[1:3])
    else:
        known = augment is None or hasattr(augment, "set_random_state")
        check("augment", augment, known, "an Augment, an albumentations pipeline or None")


def _parts(n: int, batch_size: int) -> list[slice]:
    """Where each batch lies in the order of an epoch with ``n`` images."""
    ends = [*range(batch_size, n, batch_size), n]
    if len(ends) > 1 and n % batch_size == 1 and batch_size > 1:
        del ends[-2]  # BatchNorm has no variance to take from one image
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class _Loader:
    """``sizes``: of each whole batch. ``parts``: where the images of this shard lie in the order of an epoch."""

    def __init__(self, images: Images, batch_size: int, seed: int, device, shard: tuple[int, int]) -> None:
        self.images, self.seed, self.device = images, seed, torch.device(device)
        self.rank, processes = shard
        parts = _parts(len(images), batch_size)
        self.sizes = [part.stop - part.start for part in parts]
        self.parts = [slice(part.start + self.rank, part.stop, processes) for part in parts]

    def __len__(self) -> int:
        return len(self.parts)

    def _generator(self, epoch: int) -> torch.Generator:
        # Always a CPU generator, so that every device sees the same order, crops, flips and holes.
        return torch.Generator().manual_seed(seed_for(self.seed, epoch))

    def _flips(self, order: torch.Tensor, epoch: int) -> torch.Tensor:
        """``Augment.alternate``: 0 or 1 for each image of ``order``."""
        first = torch.randint(2, order.shape, generator=torch.Generator().manual_seed(seed_for(self.seed)))
        return (first[order] + epoch) % 2


class DeviceLoader(_Loader):
    """Whole batches, made on the device where the data set lives as uint8.

    A data set that has no room there stays in the computer's memory, and each batch's bytes are sent when it is due.
    """

    def __init__(self, images: Images, augment: Augment, batch_size: int, seed: int, device, shard=(0, 1)) -> None:
        self.resident = _fits(images, device)
        super().__init__(to_device(images, device), batch_size, seed, device, shard)
        self.augment = augment
        if not self.resident:
            size = images.pixels.nbytes / 1e9
            print(f"{images.name}: {size:.1f} GB of pixels have no room on {self.device}, and are sent batch by batch")

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = self._generator(epoch)
        n, height, width, _ = self.images.pixels.shape
        order = torch.randperm(n, generator=generator)
        draws = self.augment.draw(n, height, width, generator)
        if self.augment.flip and self.augment.alternate:
            draws = dataclasses.replace(draws, flip=self._flips(order, epoch))
        draws = draws.to(self.device)
        there = order.to(self.device)
        labels, start = self.images.labels[there], there * (height * width)
        for i in range(0, len(self.parts), AHEAD):
            parts = self.parts[i : i + AHEAD]
            first = parts[0].start
            places = self.augment.places(draws[first : parts[-1].stop], height, width)
            for part in parts:
                images, begin = self.images, start[part]
                if not self.resident:
                    images, begin = self._sent(order[part], labels[part])
                here = slice(part.start - first, part.stop - first, part.step)
                yield self.augment.take(images, begin, places[here]), labels[part]

    def _sent(self, index: torch.Tensor, labels: torch.Tensor) -> tuple[Images, torch.Tensor]:
        """The images at ``index`` alone, with ``labels``, on the device, and where each begins there."""
        pixels = self.images.pixels[index]
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()  # then the CPU need not wait for the copy
        pixels = pixels.to(self.device, non_blocking=True)
        begin = torch.arange(len(index), device=self.device) * (pixels.shape[1] * pixels.shape[2])
        return dataclasses.replace(self.images, pixels=pixels, labels=labels), begin


class WorkerLoader(_Loader):
    """Image by image through an albumentations pipeline, in ``workers`` processes (0: in this one)."""

    def __init__(self, images, transform, batch_size, seed, device, shard, workers: int, alternate=False) -> None:
        super().__init__(images, batch_size, seed, device, shard)
        self.transform, self.workers, self.alternate = transform, workers, alternate

    def first(self) -> torch.Tensor:
        """The first image as the pipeline gives it."""
        return _WholeBatches(self, torch.arange(len(self.images)), 0)._augmented(0, 0)

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.images), generator=self._generator(epoch))
        dataset = _WholeBatches(self, order, epoch)
        batches = torch.utils.data.DataLoader(
            dataset,
            batch_size=None,  # an item is a batch already
            num_workers=self.workers,
            worker_init_fn=_one_thread if self.workers else None,
            pin_memory=self.device.type == "cuda",
            # For what in a worker draws from a global generator, and so that none is drawn from here.
            generator=torch.Generator().manual_seed(seed_for(self.seed, epoch, self.rank)),
        )
        for x, y in self._alive(batches):
            x = x.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            yield x, y.to(self.device, non_blocking=True)

    @staticmethod
    def _alive(batches) -> Iterator:
        try:
            with _interrupted_later():
                started = iter(batches)
            yield from started
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                "a worker process died, for lack of memory perhaps; the last checkpoint, if any, is kept: "
                "the same call goes on from it, with workers=0 in one process"
            ) from error


class _WholeBatches(torch.utils.data.Dataset):
    """Item i is the whole batch i, or this shard of it: a worker hands over few large tensors, not many small ones."""

    def __init__(self, loader: WorkerLoader, order: torch.Tensor, epoch: int) -> None:
        self.images, self.transform, self.parts = loader.images, loader.transform, loader.parts
        self.order, self.seed = order, (loader.seed, epoch)
        self.flips = loader._flips(order, epoch) if loader.alternate else torch.zeros_like(order)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = self.parts[i]
        index = self.order[part]
        places = range(part.start, part.stop, part.step)
        x = torch.stack([self._augmented(k, place) for k, place in zip(index.tolist(), places, strict=True)])
        return x, self.images.labels[index]

    def _augmented(self, k: int, place: int) -> torch.Tensor:
        # A stream of random numbers an image, a function of (seed, epoch, its place in the order), whichever worker or
        # process makes it. All steps of the pipeline draw from it: seeded alike, two flips would always agree.
        seed = seed_for(*self.seed, place)
        self.transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        pixels = self.images.pixels[k]
        return self.transform(image=(pixels.flip(1) if self.flips[place] else pixels).numpy())["image"]


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers are the parallelism; threads within each would only get in their way


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM count after this block, and not at all in processes that it starts: their parent ends them.

    Python drops what is raised within ``os.fork``, and a worker interrupted before it is ready prints a traceback.
    """
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    settable = threading.current_thread() is threading.main_thread() and None not in before.values()
    if not settable:  # None: the handler was not set from Python, and could not be put back
        yield
        return
    came = []
    try:
        for signum in before:
            signal.signal(signum, lambda received, frame: came.append(received))
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if came:
            signal.raise_signal(came[0])


def plain_batches(images: Images, batch_size: int, device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(x, y) of all images in order, normalised and nothing else: for evaluation."""
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        x = normalize(images.pixels[part].to(device), images.mean, images.std)
        yield x, images.labels[part].to(device)
