"""Images: what they are, and how arrays become some. (CIFAR-10: test_download.py; digits: test_golden.py)"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from eva_utils import Images, InputError, from_arrays

ARRAYS = np.zeros((4, 5, 6, 3), np.uint8), np.array([0, 1, 2, 1], np.int32)


def test_images_say_what_they_are_and_are_made_of_tensors(tiny):
    assert len(tiny[0]) == 32 and repr(tiny[0]) == "Images(tiny: 32 images of 16 x 16, 3 classes)"
    with pytest.raises(InputError, match="pixels is 'ndarray uint8"):
        Images(*ARRAYS, ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)
    for mean, std in ((127.0, 0.2), (math.nan, 0.2), (0.5, 0.0), (0.5, 60.0)):
        with pytest.raises(InputError, match=r"mean and std is .* units of 0..1"):
            dataclasses.replace(tiny[0], mean=(mean,) * 3, std=(std,) * 3)


@pytest.mark.parametrize("index", [slice(3, 9, 2), [5, 0, 5], range(4), 2, np.int64(2), torch.tensor(2)], ids=repr)
def test_a_selection_is_images_again_also_of_a_single_position(tiny, index):
    part, positions = tiny[0][index], np.atleast_1d(np.arange(32)[index])
    assert part.pixels.equal(tiny[0].pixels[positions]) and part.labels.equal(tiny[0].labels[positions])
    assert (part.classes, part.mean, part.std, part.name) == (("ant", "bee", "cat"), tiny[0].mean, tiny[0].std, "tiny")


def test_own_arrays_become_images_with_the_statistics_of_the_training_images():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    pixels[..., 1] = 77
    train, test = from_arrays((pixels, [0, 1, 2, 1]), ARRAYS, "abc", "own")
    assert (repr(train), len(test)) == ("Images(own: 4 images of 6 x 5, 3 classes)", 4)
    assert torch.equal(train.pixels, torch.from_numpy(pixels)) and train.labels.tolist() == [0, 1, 2, 1]
    np.testing.assert_allclose(train.mean, (pixels / 255).mean((0, 1, 2)), atol=1e-6)
    deviation = (pixels / 255).std((0, 1, 2))
    np.testing.assert_allclose(train.std, [deviation[0], 1, deviation[2]], atol=1e-6)  # a constant one can be divided
    assert (test.mean, test.std) == (train.mean, train.std)
    assert test.labels.dtype == torch.int64 and test.classes == ("a", "b", "c")


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, np.ndarray.tolist], ids=["array", "tensor", "list"])
@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (4, 3, 5, 6), (4, 5, 6), (4, 1, 5, 6), (4, 5, 6, 1)])
def test_channels_may_come_first_or_last_or_be_one(shape, kind):
    array = np.random.default_rng(0).integers(0, 256, shape)
    expected = np.moveaxis(array, shape.index(3), 3) if 3 in shape else array.reshape(4, 5, 6)[..., None].repeat(3, 3)
    train, _ = from_arrays((kind(array), kind(np.array([0, 1, 0, 1]))), ARRAYS, range(3))
    np.testing.assert_array_equal(train.pixels, expected)
    assert train.classes == ("0", "1", "2")


@pytest.mark.parametrize(("pixels", "labels", "words"), [
    ([np.zeros((5, 6, 3)), np.zeros((6, 5, 3))], [0, 1], "give all images one size"),
    (ARRAYS[0] / 255, ARRAYS[1], "whole numbers from 0 to 255"), (ARRAYS[0].astype(int) - 1, ARRAYS[1], "from 0"),
    (np.zeros((4, 3, 6, 3), int), ARRAYS[1], "no doubt"), (np.zeros((4, 5, 6, 4), int), ARRAYS[1], "the shape of"),
    (ARRAYS[0], ARRAYS[1][:3], r"labels is 'Tensor torch.int64 \(3,\)'"),
    (ARRAYS[0], ARRAYS[1] + 0.5, "labels is 'float64'"), (ARRAYS[0], list("abca"), "labels is '<U1'"),
    (ARRAYS[0][:0], ARRAYS[1][:0], "number of images is 0"),
    (ARRAYS[0], ARRAYS[1] + 1, r"labels is \(1, 3\); it has to be within 0 and 2"),
    (ARRAYS[0], ARRAYS[1] - 1, "labels is"),
])  # fmt: skip
def test_arrays_of_another_kind_are_refused(pixels, labels, words):
    for pair in (((pixels, labels), ARRAYS), (ARRAYS, (pixels, labels))):
        with pytest.raises(InputError, match=words):
            from_arrays(*pair, "abc")
    with pytest.raises(InputError, match=r"a pair, \(pixels, labels\)"):
        from_arrays(*ARRAYS, "abc")
    with pytest.raises(InputError, match=r"classes is .* names that differ"):
        from_arrays(ARRAYS, ARRAYS, "aba")
    with pytest.raises(InputError, match=r"classes is 'set'.* in the order of their labels"):
        from_arrays(ARRAYS, ARRAYS, {"ant", "bee", "cat"})
