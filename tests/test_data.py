"""The three places where images come from."""

import io
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from eva_utils import Images, InputError, digits, from_arrays, image_folder
from eva_utils import photos as images_module

HEIGHT, WIDTH = 5, 7


def random_pixels(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def write(root: Path, image: Image.Image, name: str = "image.png", **options) -> Path:
    """A folder with the one image in two classes of both splits."""
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            file = root / split / label / name
            file.parent.mkdir(parents=True)
            image.save(file, **options)
    return root


@pytest.fixture
def folder(tmp_path):
    """A good folder: two classes, each with two images for training and one for the test."""
    for i, name in enumerate(["train/bee/0", "train/bee/1", "train/ant/0", "train/ant/1", "test/ant/0", "test/bee/0"]):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(i)).save(file)
    return tmp_path


# Images


def test_images_say_what_they_are(tiny):
    train, _ = tiny
    assert len(train) == 32
    assert repr(train) == "Images(tiny: 32 images of 16 x 16, 3 classes)"


@pytest.mark.parametrize("index", [slice(3, 9, 2), [5, 0, 5], range(4)], ids=repr)
def test_a_selection_is_images_again(tiny, index):
    train, _ = tiny
    part, positions = train[index], np.arange(32)[index]
    assert part.pixels.equal(train.pixels[positions]) and part.labels.equal(train.labels[positions])
    assert (part.classes, part.mean, part.std, part.name) == (train.classes, train.mean, train.std, train.name)


# digits


def test_a_single_position_is_a_selection_of_one(tiny):
    for i in (2, np.int64(2), torch.tensor(2)):
        assert tiny[0][i].labels.tolist() == [int(tiny[0].labels[2])]
        assert torch.equal(tiny[0][i].pixels, tiny[0].pixels[2:3])
    assert [len(one) for one in tiny[1]] == [1] * 12


ARRAYS = np.zeros((4, 5, 6, 3), np.uint8), np.array([0, 1, 2, 1], np.int32)


def test_own_arrays_become_images():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    train, test = from_arrays((pixels, [0, 1, 2, 1]), ARRAYS, "abc", "own")
    assert (repr(train), len(test)) == ("Images(own: 4 images of 6 x 5, 3 classes)", 4)
    assert torch.equal(train.pixels, torch.from_numpy(pixels)) and train.labels.tolist() == [0, 1, 2, 1]
    np.testing.assert_allclose(test.mean, (pixels / 255).mean((0, 1, 2)), atol=1e-6)
    assert test.labels.dtype == torch.int64 and test.classes == ("a", "b", "c")


@pytest.mark.parametrize(("pixels", "labels", "words"), [
    (ARRAYS[0] / 255, ARRAYS[1], "whole numbers from 0 to 255"), (ARRAYS[0].astype(int) - 1, ARRAYS[1], "from 0"),
    (np.zeros((4, 3, 6, 3), int), ARRAYS[1], "no doubt"), (np.zeros((4, 5, 6, 4), int), ARRAYS[1], "the shape of"),
    (ARRAYS[0], ARRAYS[1][:3], r"labels is 'torch.int64 \(3,\)'"),
    (ARRAYS[0], ARRAYS[1] + 0.5, "labels is 'torch.float64"), (ARRAYS[0][:0], ARRAYS[1][:0], "number of images is 0"),
    (ARRAYS[0], ARRAYS[1] + 1, r"labels is \(1, 3\); it has to be within 0 and 2"),
    (ARRAYS[0], ARRAYS[1] - 1, "labels is"),
])  # fmt: skip
def test_arrays_of_another_kind_are_refused(pixels, labels, words):
    for pair in (((pixels, labels), ARRAYS), (ARRAYS, (pixels, labels))):
        with pytest.raises(InputError, match=words):
            from_arrays(*pair, "abc")


def test_images_are_made_of_tensors():
    with pytest.raises(InputError, match="pixels is 'uint8"):
        Images(*ARRAYS, ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)


def test_digits_are_32_x_32_rgb_of_the_whole_range():
    train, test = digits()
    assert (len(train), len(test)) == (1437, 360)
    for images in (train, test):
        assert tuple(images.pixels.shape[1:]) == (32, 32, 3)
        assert (str(images.pixels.dtype), str(images.labels.dtype)) == ("torch.uint8", "torch.int64")
        assert (int(images.pixels.min()), int(images.pixels.max())) == (0, 255)
        assert images.classes == tuple("0123456789")


def test_every_digit_is_in_exactly_one_split_with_its_label():
    data, (train, test) = load_digits(), digits()
    # The corners of the 4 x 4 blocks are the originals. Sorted with their labels, both sides have to be the same.
    small = np.concatenate([images.pixels[:, ::4, ::4, 0].flatten(1).numpy() for images in (train, test)])
    labels = np.concatenate([train.labels, test.labels])
    found = np.column_stack([small, labels])
    expected = np.column_stack([np.round(data.images * 255 / 16).reshape(-1, 64), data.target])
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])


def test_digits_split_is_stratified():
    train, test = digits()
    in_train, in_test = np.bincount(train.labels), np.bincount(test.labels)
    assert np.all(abs(in_test - (in_train + in_test) * 360 / 1797) < 1)


def test_digits_are_always_split_the_same():
    for first, second in zip(digits(), digits(), strict=True):
        assert first.pixels.equal(second.pixels) and first.labels.equal(second.labels)


# image_folder: what it reads


def test_folder_gives_pixels_labels_and_sorted_classes(folder):
    train, test = image_folder(folder)
    assert train.classes == test.classes == ("ant", "bee")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    np.testing.assert_array_equal(train.pixels, [random_pixels(i) for i in (2, 3, 0, 1)])
    np.testing.assert_array_equal(test.pixels, [random_pixels(i) for i in (4, 5)])
    assert train.name == folder.name


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_statistics_are_the_training_images_alone(source, folder):
    train, test = digits() if source == "digits" else image_folder(folder)
    values = train.pixels.numpy() / 255
    np.testing.assert_allclose(train.mean, values.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(train.std, values.std((0, 1, 2)), atol=1e-6)
    assert (test.mean, test.std) == (train.mean, train.std)


def test_statistics_take_next_to_no_memory():
    pixels, labels = np.zeros((200, 100, 100, 3), np.uint8), np.zeros(200, int)
    tracemalloc.start()
    images_module.from_arrays((pixels, labels), (pixels, labels), ["a", "b"], "zeros")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pixels.nbytes / 10


def test_a_constant_channel_can_be_divided_by_its_std(tmp_path):
    pixels = random_pixels()
    pixels[..., 1] = 77
    train, _ = image_folder(write(tmp_path, Image.fromarray(pixels)))
    assert train.mean[1] == pytest.approx(77 / 255)
    assert train.std[1] == 1


def image_of_mode(mode: str) -> tuple[Image.Image, np.ndarray]:
    """An image and the RGB pixels that are right for it."""
    rgb = random_pixels()
    grey, alpha = rgb[..., 0], rgb[..., 1]
    as_grey = np.stack([grey] * 3, axis=2)
    if mode == "RGB":
        return Image.fromarray(rgb), rgb
    if mode == "L":
        return Image.fromarray(grey), as_grey
    if mode == "1":
        return Image.fromarray(grey > 127), np.where(as_grey > 127, 255, 0)
    if mode == "RGBA":  # the colour counts even where it is transparent
        return Image.fromarray(np.dstack([rgb, alpha])), rgb
    if mode == "LA":
        return Image.fromarray(np.dstack([grey, alpha])), as_grey
    if mode == "CMYK":
        image = Image.fromarray(rgb).convert("CMYK")  # without any black, so this is 255 - CMY
        return image, 255 - np.asarray(image)[..., :3]
    assert mode == "P"
    palette = np.random.default_rng(1).integers(256, size=(256, 3), dtype=np.uint8)
    image = Image.fromarray(grey)
    image.putpalette(palette.tobytes())
    return image, palette[grey]


FILES = "RGB.png RGB.BMP RGB.ppm RGBA.png L.png L.pgm LA.png 1.png P.png P.gif CMYK.tif"


@pytest.mark.parametrize("file", FILES.split())
def test_any_mode_becomes_rgb(file, tmp_path):
    image, expected = image_of_mode(Path(file).stem)
    assert image.mode == Path(file).stem
    train, _ = image_folder(write(tmp_path, image, file))
    np.testing.assert_array_equal(train.pixels[0], expected)


def test_palette_with_transparency_becomes_rgb(tmp_path):
    # What pngquant and many web pages write: an opacity for each colour of the palette.
    image, expected = image_of_mode("P")
    train, _ = image_folder(write(tmp_path, image, transparency=bytes(range(256))))
    np.testing.assert_array_equal(train.pixels[0], expected)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    red, blue = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    train, _ = image_folder(write(tmp_path, red, "moving.gif", save_all=True, append_images=[blue]))
    np.testing.assert_array_equal(train.pixels[0], np.asarray(red))


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn it clockwise by a quarter
    train, _ = image_folder(write(tmp_path, Image.fromarray(random_pixels()), exif=exif))
    np.testing.assert_array_equal(train.pixels[0], np.rot90(random_pixels(), -1))


def test_names_with_spaces_and_other_alphabets(tmp_path):
    root = tmp_path / "mes données"
    write(root, Image.fromarray(random_pixels()), "picture (1) ümläut.png")
    for split in ("train", "test"):
        (root / split / "ant").rename(root / split / "蟻 and more")
    train, _ = image_folder(str(root))
    assert train.classes == ("bee", "蟻 and more")
    assert len(train) == 2
    assert train.name == "mes données"


def test_other_files_and_hidden_folders_are_passed_over(folder, capsys):
    for name in ("Thumbs.db", "notes.txt", "image.png.bak", "no_suffix"):
        (folder / "train" / "ant" / name).write_bytes(b"not an image")
    (folder / "train" / "README.md").write_text("not a class")
    (folder / "train" / "ant" / "folder.png").mkdir()
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "ant" / ".DS_Store").write_bytes(b"of no interest")
    train, _ = image_folder(folder)
    assert train.classes == ("ant", "bee")
    assert len(train) == 4
    said = capsys.readouterr().out
    assert all(count in said for count in ("passed over", "1 .db", "1 .txt", "1 .bak", "1 no_suffix"))


def test_links_in_circles_are_passed_over(folder):
    (folder / "train" / "ant" / "itself.png").symlink_to("itself.png")
    (folder / "train" / "ant" / "up.png").symlink_to(folder / "train", target_is_directory=True)
    (folder / "train" / "round").symlink_to("round")
    train, _ = image_folder(folder)
    assert train.classes == ("ant", "bee")
    assert len(train) == 4


# image_folder: what it refuses


def jpeg(side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.fromarray(random_pixels(0, side, side)).save(out, "jpeg")
    return out.getvalue()


def add(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(content)


def add_image(root: Path, name: str, image: Image.Image) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    image.save(root / name)


RGB = Image.fromarray(random_pixels())
# What is done to a good folder, and what the error has to name.
SPOILT = {
    "not there": (shutil.rmtree, ["it has to be"]),
    "no classes": (
        lambda root: [shutil.rmtree(root / "test" / c) for c in ("ant", "bee")],
        ["test", "no class folders"],
    ),
    "class only in train": (lambda root: add_image(root, "train/wasp/0.png", RGB), ["'wasp'", "missing", "test"]),
    "class only in test": (lambda root: add_image(root, "test/wasp/0.png", RGB), ["'wasp'", "missing", "train"]),
    "class without files": (lambda root: (root / "train" / "wasp").mkdir(), ["wasp", "no images"]),
    "class without images": (lambda root: add(root, "train/wasp/notes.txt", b"text"), ["wasp", "no images"]),
    "one class": (lambda root: [shutil.rmtree(root / s / "bee") for s in ("train", "test")], ["only the class 'ant'"]),
    "truncated": (lambda root: add(root, "test/ant/cut.jpg", jpeg()[:2000]), ["cut.jpg", "cannot be read"]),
    "garbage": (lambda root: add(root, "train/ant/garbage.png", b"\x89PNG garbage"), ["garbage.png", "cannot be read"]),
    "empty file": (lambda root: add(root, "train/ant/empty.png", b""), ["empty.png", "cannot be read"]),
    "16 bits": (
        lambda root: add_image(
            root, "train/ant/deep.png", Image.fromarray(np.full((HEIGHT, WIDTH), 40_000, np.uint16))
        ),
        ["deep.png", "more than 8 bits"],
    ),
    "other size": (
        lambda root: add_image(root, "test/bee/wide.png", Image.fromarray(random_pixels(0, 3, 9))),
        ["wide.png", "9 x 3", f"{WIDTH} x {HEIGHT}", "--size 64"],
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_bad_folder_is_refused_and_the_culprit_named(what, folder):
    spoil, words = SPOILT[what]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        image_folder(folder)
    for word in [folder.name, *words]:
        assert word in str(caught.value)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    file = tmp_path / "images.zip"
    file.write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(repr(str(file)))):
        image_folder(file)


# Photos as they come


def photos(root: Path, *splits: str, n: int = 5) -> Path:
    """Three classes, each with ``n`` photos of three sizes, some turned by EXIF."""
    rng = np.random.default_rng(0)
    for split in splits or ("",):
        for name in ("ant", "bee", "cat"):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                shape = [(48, 64, 3), (64, 48, 3), (90, 70, 3)][i % 3]
                image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
                exif = image.getexif()
                exif[0x0112] = 6 if i % 2 else 1
                image.save(root / split / name / f"{i}{('.jpg', '.jfif')[i % 2]}", format="JPEG", exif=exif)
    return root


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val"), ("Train", "valid")])
def test_photos_of_any_size_become_squares(splits, tmp_path, capsys):
    root = photos(tmp_path / "photos", *splits)
    train, test = image_folder(root, size=32)
    assert train.pixels.shape == test.pixels.shape == (15, 32, 32, 3)
    assert "ant 5 + 5, bee 5 + 5, cat 5 + 5 (train + test)" in capsys.readouterr().out
    with pytest.raises(InputError, match="--size 64"):
        image_folder(root)


def test_without_a_split_a_fifth_of_each_class_is_kept_for_the_test(tmp_path, capsys):
    root = photos(tmp_path / "photos")
    train, test = image_folder(root, size=16)
    assert (len(train), len(test)) == (12, 3)
    assert np.bincount(test.labels).tolist() == [1, 1, 1]
    assert "there is no test/, so a fifth of each class was kept" in capsys.readouterr().out
    again = image_folder(root, size=16)
    assert torch.equal(again[0].pixels, train.pixels) and torch.equal(again[1].pixels, test.pixels)


def test_a_folder_within_the_folder_is_found(tmp_path):
    photos(tmp_path / "photos" / "photos", "train", "test")
    assert len(image_folder(tmp_path / "photos", size=16)[0]) == 15


def test_uneven_classes_and_too_large_data_are_said(tmp_path, capsys, monkeypatch):
    root = photos(tmp_path / "photos", "train", "test", n=6)
    for i in range(1, 6):
        next((root / "train" / "cat").glob(f"{i}.*")).unlink()
    image_folder(root, size=16)
    assert "uneven" in capsys.readouterr().out
    monkeypatch.setattr(images_module.os, "sysconf", lambda name: 100)
    with pytest.raises(InputError, match="GB"):
        image_folder(root, size=64)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (4, 3, 5, 6)])
def test_channels_may_come_first_or_last(shape):
    array = np.random.default_rng(0).integers(0, 256, shape)
    expected = np.moveaxis(array, shape.index(3), 3)
    for kind in (np.asarray, torch.tensor, np.ndarray.tolist):
        train, _ = from_arrays((kind(array), [0, 1, 0, 1]), ARRAYS, "abc")
        np.testing.assert_array_equal(train.pixels, expected)


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 1, 5, 6), (4, 5, 6, 1)])
def test_grey_becomes_three_equal_channels(shape):
    array = np.random.default_rng(0).integers(0, 256, shape)
    train, _ = from_arrays((array, [0, 1, 0, 1]), ARRAYS, "abc")
    assert all(train.pixels[..., c].equal(torch.tensor(array.reshape(4, 5, 6), dtype=torch.uint8)) for c in range(3))
