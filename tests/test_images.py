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
from eva_utils import images as images_module

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
    (ARRAYS[0] / 255, ARRAYS[1], r"pixels is 'torch.float64 \(4, 5, 6, 3\)'; it has to be a torch.uint8 tensor"),
    (ARRAYS[0].transpose(0, 3, 1, 2), ARRAYS[1], r"pixels is 'torch.uint8 \(4, 3, 5, 6\)'"),
    (ARRAYS[0][..., :1], ARRAYS[1], "pixels is"), (ARRAYS[0], ARRAYS[1][:3], r"labels is 'torch.int64 \(3,\)'"),
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
    (folder / "validation" / "wasp").mkdir(parents=True)
    train, _ = image_folder(folder)
    assert train.classes == ("ant", "bee")
    assert len(train) == 4
    first = str(folder / "train" / "ant" / "Thumbs.db")
    said = f"{str(folder / 'train')!r}: 5 passed over as no image files, such as {first!r}\n"
    assert capsys.readouterr().out == said


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
    "not there": (shutil.rmtree, ["is not a folder"]),
    "no test": (lambda root: shutil.rmtree(root / "test"), ["no folder test/"]),
    "no train": (lambda root: shutil.rmtree(root / "train"), ["no folder train/"]),
    "no classes": (
        lambda root: [shutil.rmtree(root / "test" / c) for c in ("ant", "bee")],
        ["test", "no class folders"],
    ),
    "class only in train": (lambda root: add_image(root, "train/wasp/0.png", RGB), ["'wasp'", "not in test/"]),
    "class only in test": (lambda root: add_image(root, "test/wasp/0.png", RGB), ["'wasp'", "not in train/"]),
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
        ["wide.png", "9 x 3", f"{WIDTH} x {HEIGHT}", "train"],
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
