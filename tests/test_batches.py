"""The loaders: every image once an epoch, and nothing but (seed, epoch) decides what comes."""

import dataclasses

import albumentations as A
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from eva_utils import Augment, Images, InputError, Recipe
from eva_utils import batches as batches_module
from eva_utils.batches import plain_batches

ENGINES = [{"engine": "batch"}, *({"engine": "albumentations", "workers": workers} for workers in (0, 2))]
every_engine = pytest.mark.parametrize("engine", ENGINES, ids=["batch", "albumentations", "2 workers"])
MEAN, STD = (0.5, 0.4, 0.6), (0.25, 0.3, 0.2)  # those of conftest's noise


def loader(images, augment=None, batch_size=512, *, device="cpu", shard=(0, 1), **options):
    recipe = Recipe(augment=augment, batch_size=batch_size, **options)
    return batches_module.loader(images, recipe, torch.device(device), shard)


def numbered(n: int) -> Images:
    """Image i has the value i in every pixel, and the label i."""
    pixels = torch.arange(n, dtype=torch.uint8)[:, None, None, None].repeat(1, 8, 8, 3)
    return Images(pixels, torch.arange(n), tuple(map(str, range(n))), MEAN, STD)


def numbers(x: torch.Tensor) -> list[int]:
    """Which of the ``numbered`` images these are; all their pixels have to say so."""
    pixels = (x * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    torch.testing.assert_close(pixels, pixels[:, :1, :1, :1].round().expand_as(pixels), atol=1e-3, rtol=0)
    return pixels[:, 0, 0, 0].round().int().tolist()


def whole(loader, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All of an epoch as one (x, y)."""
    x, y = zip(*loader.epoch(epoch), strict=True)
    return torch.cat(x), torch.cat(y)


def same(a, b) -> bool:
    """Bit by bit."""
    return all(torch.equal(first, second) for first, second in zip(a, b, strict=True))


@every_engine
@pytest.mark.parametrize(("n", "batch_size", "sizes"), [
    (23, 8, [8, 8, 7]), (5, 5, [5]), (6, 1, [1] * 6),
    (17, 8, [8, 9]),  # BatchNorm could take no variance from a single image left over
])  # fmt: skip
def test_every_image_comes_once_with_its_label(engine, n, batch_size, sizes):
    batches = loader(numbered(n), None, batch_size, **engine)
    orders = []
    for epoch in (0, 1):
        found = [(numbers(x), y.tolist()) for x, y in batches.epoch(epoch)]
        assert [len(y) for _, y in found] == sizes and len(batches) == len(sizes)
        assert all(x == y for x, y in found)
        orders.append([label for _, y in found for label in y])
        assert sorted(orders[-1]) == list(range(n))
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


@every_engine
def test_epoch_is_a_function_of_seed_and_number(engine, noise):
    def new(seed: int):
        return loader(noise(13), Augment(), 4, seed=seed, **engine)

    old = new(5)
    next(old.epoch(0))  # broken off
    first, second, third = (whole(old, epoch) for epoch in range(3))
    assert same(whole(old, 1), second), "the same again"
    assert same(whole(new(5), 2), third), "without the earlier epochs"
    assert not torch.equal(first[1], second[1]) and not torch.equal(second[1], third[1])
    if engine.get("workers"):
        assert same(whole(loader(noise(13), Augment(), 4, seed=5, **engine | {"workers": 0}), 0), first)
    alone = loader(noise(1), Augment(), 1, seed=5, **engine)  # whatever differs was drawn for it
    assert len({whole(alone, epoch)[0].numpy().tobytes() for epoch in range(4)}) == 4
    for x, y in old.epoch(0):
        assert x.dtype == torch.float32 and x.shape[1:] == (3, 16, 16) and y.dtype == torch.int64
    other = whole(new(6), 0)
    assert not torch.equal(other[1], first[1]), "another seed"
    assert not torch.equal(other[1], second[1]), "5 + 1 is not 6 + 0"


def test_pipeline_of_ones_own(noise):
    """It takes the second engine without being told, with what it draws from our seed."""
    images = dataclasses.replace(noise(10), labels=torch.arange(10), classes=tuple("0123456789"))
    own = A.Compose([A.HorizontalFlip(p=1), A.RandomBrightnessContrast(p=0.5)])
    x, y = whole(loader(images, own, 4, workers=2), 0)
    assert sorted(y.tolist()) == list(range(10))
    flipped = [
        torch.allclose(image, plain.flip(2), atol=1e-5)
        for image, plain in zip(x, torch.cat([p for p, _ in plain_batches(images[y], 4, "cpu")]), strict=True)
    ]
    assert 0 < sum(flipped) < 10  # those whose brightness stayed
    assert same(whole(loader(images, own, 4, workers=0), 0), (x, y))


@pytest.mark.parametrize("steps", [[A.Normalize(MEAN, STD), ToTensorV2()], [ToTensorV2()], [A.ToFloat()]])
def test_a_pipeline_that_normalises_or_gives_no_pixels_is_refused(steps, noise):
    with pytest.raises(InputError, match=r"what augment gives is .*uint8 pixels \(h, w, 3\): leave out Normalize"):
        loader(noise(4), A.Compose(steps), 2)


def test_a_single_transform_and_another_size_will_do(noise):
    assert whole(loader(noise(4), A.RandomCrop(8, 8), 2, workers=0), 0)[0].shape == (4, 3, 8, 8)


class Speckle(A.ImageOnlyTransform):
    """Draws from NumPy's own generator, as some people's transforms do."""

    def apply(self, image, **params):
        return np.random.randint(0, 256, image.shape, dtype=np.uint8)


def test_global_random_numbers_in_a_worker_are_those_of_seed_epoch_and_rank(noise):
    def drawn(seed: int, epoch: int, rank: int = 0) -> bytes:
        own = A.Compose([Speckle(p=1)])
        return whole(loader(noise(4), own, 4, seed=seed, workers=1, shard=(rank, 2)), epoch)[0].numpy().tobytes()

    assert drawn(0, 0) == drawn(0, 0)
    assert len({drawn(0, 0), drawn(0, 0, rank=1), drawn(0, 1), drawn(1, 0)}) == 4


@pytest.mark.parametrize("given", ["images", "batches"])
def test_networks_that_call_view_get_contiguous_images(given):
    images = numbered(8)[::2]  # a view that is not
    data = images if given == "images" else [(images.pixels.permute(0, 3, 1, 2).float(), images.labels)]
    x, y = whole(loader(data, batch_size=2), 0)
    assert x.is_contiguous() and sorted(y.tolist()) == [0, 2, 4, 6]


def test_any_data_loader_will_do():
    x, y = torch.rand(10, 3, 8, 8), torch.arange(10)
    batches = loader(DataLoader(TensorDataset(x, y), batch_size=4))
    assert len(batches) == 3
    assert same(whole(batches, 0), (x, y))
    pairs = TensorDataset(x, y)
    shuffled = loader(DataLoader(pairs, 4, sampler=DistributedSampler(pairs, num_replicas=1, rank=0)))
    first, second = (whole(shuffled, epoch)[1].tolist() for epoch in (0, 1))
    assert first != second and sorted(second) == list(range(10))


def test_what_are_no_batches_of_two_tensors_is_refused_with_the_cure():
    endless = DataLoader(type("Endless", (IterableDataset,), {"__iter__": lambda self: iter(())})())
    for data in (TensorDataset(torch.rand(2, 1)), torch.rand(3), "photos", 7, iter([]), endless):
        with pytest.raises(InputError, match=f"the data is '{type(data).__name__}.*from_arrays"):
            loader(data)
    x, y = torch.rand(2, 3), torch.tensor([0, 2])
    for batch in (x, (x,), {"x": 1}, (x, y, y), (x.byte(), y), (x, y[:1])):
        with pytest.raises(InputError, match=r"a batch is .*two tensors.*from_arrays"):
            next(loader([batch]).epoch(0))
    with pytest.raises(InputError, match=r"labels is \(0, 2\); .* for 2 classes"):
        next(batches_module.loader([(x, y)], Recipe(), torch.device("cpu"), outputs=2).epoch(0))
    for labels in (y[:, None], y.float()):  # no classes; a criterion of one's own may take them
        with pytest.raises(InputError, match=r"the type of labels is .* whole numbers"):
            next(batches_module.loader([(x, labels)], Recipe(), torch.device("cpu"), outputs=3).epoch(0))
        assert torch.equal(next(loader([(x, labels)]).epoch(0))[1], labels)
    assert [part.dtype for part in next(loader([(x.double(), y.int())]).epoch(0))] == [torch.float32, torch.int64]
