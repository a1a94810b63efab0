"""Augmentation: both engines give the same pixels, and what is drawn is uniform."""

import itertools

import albumentations as A
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from eva_utils import Augment, Images, InputError
from eva_utils.augment import NONE


def batch(augment: Augment, images: Images, index: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """What the device loader does."""
    places = augment.places(draws, index, *images.pixels.shape[1:3])
    return augment.take(images.pixels, places, images.mean, images.std)


def through_albumentations(augment: Augment, images: Images, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The images through ``augment``'s pipeline, one by one, and what albumentations drew for them."""
    _, height, width, _ = images.pixels.shape
    pipeline = augment.albumentations(images.mean, images.std, height, width)
    pipeline = A.Compose(pipeline.transforms, save_applied_params=True)  # the same, but telling what it drew
    pipeline.set_random_seed(seed)
    out, draws = [], []
    for image in images.pixels.numpy():
        result = pipeline(image=image)
        out.append(result["image"])
        drawn = dict(result["applied_transforms"])
        left, top = drawn["RandomCrop"]["crop_coords"][:2] if "RandomCrop" in drawn else (0, 0)
        hole_left, hole_top = drawn["CoarseDropout"]["holes"][0, :2] if "CoarseDropout" in drawn else (0, 0)
        draws.append([top, left, "HorizontalFlip" in drawn, hole_top, hole_left])
    return torch.stack(out), torch.tensor(np.array(draws, dtype=np.int64)).T


@pytest.mark.parametrize(("augment", "height", "width"), [
    (Augment(), 32, 32), (Augment(), 20, 28), (Augment(), 28, 20), (Augment(padding=0), 24, 20),
    (Augment(flip=False), 24, 20), (Augment(cutout=0), 24, 20), (Augment(padding=7, cutout=5), 9, 8),
    (Augment(padding=1, cutout=8), 8, 8), (NONE, 8, 12),  # in the last but one, the hole is all there is
], ids=str)  # fmt: skip
def test_both_engines_make_the_same_pixels_of_the_same_draws(augment, height, width, noise):
    images, index = noise(250, height, width), torch.randint(250, (250,))
    before = images.pixels.clone()
    expected, draws = through_albumentations(augment, images[index])
    torch.testing.assert_close(batch(augment, images, index, draws), expected, atol=1e-5, rtol=0)
    assert torch.equal(images.pixels, before), "an epoch that writes into the data spoils all that follow"
    # The borders are where an off-by-one would hide; so this must not have passed without them.
    top, left, flip, hole_top, hole_left = map(set, draws.tolist())
    assert {0, 2 * augment.padding} <= top & left and {0, int(augment.flip)} == flip
    if augment.cutout:
        assert {0, height - augment.cutout} <= hole_top and {0, width - augment.cutout} <= hole_left


# Uniformity. Seeds are fixed: a threshold of 1e-4 is passed or failed once and for all.

HEIGHT, WIDTH = 12, 14  # small, so that every pair of positions has enough draws


def p_uniform(values: torch.Tensor, cells: int) -> float:
    counts = np.bincount(values, minlength=cells)
    assert len(counts) == cells, "a value outside of its range"
    return chisquare(counts).pvalue


@pytest.mark.parametrize("engine", ["batch", "albumentations"])
def test_draws_are_uniform_and_independent(engine, noise):
    if engine == "batch":
        draws = Augment().draw(20_000, HEIGHT, WIDTH, torch.Generator().manual_seed(1))
    else:
        draws = through_albumentations(Augment(), noise(1, HEIGHT, WIDTH)[[0] * 4000], seed=1)[1]
    cells = 9, 9, 2, HEIGHT - 8 + 1, WIDTH - 8 + 1
    p = {i: p_uniform(draws[i], cells[i]) for i in range(5)}
    for i, j in itertools.combinations(range(5), 2):  # uniform over all pairs only if neither knows of the other
        p[i, j] = p_uniform(draws[i] * cells[j] + draws[j], cells[i] * cells[j])
    assert min(p.values()) > 1e-4, p


def test_values_that_do_not_fit_are_refused():
    for name, value in (("padding", -1), ("cutout", -8), ("padding", 1.5)):
        with pytest.raises(InputError, match=f"{name} is {value}; it has to be a whole number of pixels"):
            Augment(**{name: value})
    for height, width in ((8, 30), (30, 8)):
        Augment(padding=7, cutout=7).check(height, width)  # the largest that fit
        for name in ("padding", "cutout"):
            with pytest.raises(InputError, match=f"{name} is 8; it has to be below the images' side, 8 pixels"):
                Augment(**{"padding": 0, "cutout": 0, name: 8}).check(height, width)
