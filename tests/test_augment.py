"""Augmentation: both engines give the same pixels. What is drawn: test_golden.py"""

import albumentations as A
import numpy as np
import pytest
import torch

from eva_utils import Augment, InputError


@pytest.mark.parametrize(("augment", "height", "width"), [
    (Augment(), 32, 32), (Augment(), 20, 28), (Augment(), 28, 20), (Augment(padding=0), 24, 20),
    (Augment(flip=False), 24, 20), (Augment(cutout=0), 24, 20), (Augment(padding=7, cutout=5), 9, 8),
    (Augment(padding=1, cutout=8), 8, 8), (Augment(0, False, 0), 8, 12),  # in the last but one, the hole is all
], ids=str)  # fmt: skip
def test_both_engines_make_the_same_pixels_of_the_same_draws(augment, height, width, noise):
    images, index = noise(250, height, width), torch.randint(250, (250,))
    before = images.pixels.clone()
    pipeline = augment.albumentations(images.mean, images.std, height, width)
    pipeline = A.Compose(pipeline.transforms, save_applied_params=True)  # the same, but telling what it drew
    pipeline.set_random_seed(0)
    expected, draws = [], []
    for image in images[index].pixels.numpy():
        result = pipeline(image=image)
        expected.append(result["image"])
        drawn = dict(result["applied_transforms"])
        left, top = drawn["RandomCrop"]["crop_coords"][:2] if "RandomCrop" in drawn else (0, 0)
        hole_left, hole_top = drawn["CoarseDropout"]["holes"][0, :2] if "CoarseDropout" in drawn else (0, 0)
        draws.append([top, left, "HorizontalFlip" in drawn, hole_top, hole_left])
    draws = torch.tensor(np.array(draws, dtype=np.int64)).T
    found = augment.take(images.pixels, augment.places(draws, index, height, width), images.mean, images.std)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert torch.equal(images.pixels, before), "an epoch that writes into the data spoils all that follow"
    # The borders are where an off-by-one would hide; so this must not have passed without them.
    top, left, flip, hole_top, hole_left = map(set, draws.tolist())
    assert {0, 2 * augment.padding} <= top & left and {0, int(augment.flip)} == flip
    if augment.cutout:
        assert {0, height - augment.cutout} <= hole_top and {0, width - augment.cutout} <= hole_left


def test_values_that_do_not_fit_are_refused():
    for name, value in (("padding", -1), ("cutout", -8), ("padding", 1.5)):
        with pytest.raises(InputError, match=f"{name} is {value}; it has to be a whole number of pixels"):
            Augment(**{name: value})
    with pytest.raises(InputError, match="flip is 2; it has to be True or False"):
        Augment(flip=2)
    for height, width in ((8, 30), (30, 8)):
        Augment(padding=7, cutout=7).check(height, width)  # the largest that fit
        for name in ("padding", "cutout"):
            with pytest.raises(InputError, match=f"{name} is 8; it has to be below the images' side, 8 pixels"):
                Augment(**{"padding": 0, "cutout": 0, name: 8}).check(height, width)
