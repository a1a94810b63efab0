"""Folders of photographs: what is read, how it is split and made one size, and what is refused."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eva_utils import InputError, image_folder
from eva_utils import photos as photos_module
from eva_utils.photos import photo

HEIGHT, WIDTH = 5, 7


def random_pixels(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def put(root: Path, name: str, content=None, **options) -> None:
    """Bytes or an image as the file ``name`` in ``root``; without either, a folder."""
    file = root / name
    (file if content is None else file.parent).mkdir(parents=True, exist_ok=True)
    if content is not None:
        content.save(file, **options) if isinstance(content, Image.Image) else file.write_bytes(content)


RGB, WIDE = Image.fromarray(random_pixels()), Image.fromarray(random_pixels(0, 3, 9))
DEEP = Image.fromarray(np.full((HEIGHT, WIDTH), 40_000, np.uint16))


@pytest.fixture
def folder(tmp_path):
    """A good folder: two classes, each with two images for training and one for the test."""
    for i, name in enumerate(["train/bee/0", "train/bee/1", "train/ant/0", "train/ant/1", "test/ant/0", "test/bee/0"]):
        put(tmp_path, f"mes données/{name} (ü).png", Image.fromarray(random_pixels(i)))
    return tmp_path / "mes données"


def test_folder_gives_pixels_labels_and_sorted_classes(folder):
    train, test = image_folder(folder)
    assert train.classes == test.classes == ("ant", "bee") and train.name == "mes données"
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    np.testing.assert_array_equal(train.pixels, [random_pixels(i) for i in (2, 3, 0, 1)])
    np.testing.assert_array_equal(test.pixels, [random_pixels(i) for i in (4, 5)])


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
def test_any_mode_becomes_rgb(mode, tmp_path):
    image = RGB.convert(mode)
    put(tmp_path, "photo.tif", image)
    np.testing.assert_array_equal(photo(tmp_path / "photo.tif"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(mode, tmp_path):
    image = Image.fromarray(np.dstack([random_pixels(), random_pixels(1)[..., 0]])).convert(mode)
    if mode == "P":  # an opacity for each colour of the palette: what pngquant and many web pages write
        image.info["transparency"] = bytes(range(256))
    put(tmp_path, "photo.png", image)
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    np.testing.assert_allclose(photo(tmp_path / "photo.png"), rgba[..., :3] * share + 255 * (1 - share), atol=1)


def test_a_photo_is_turned_as_its_exif_says_and_of_an_animation_the_first_frame_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn it clockwise by a quarter
    put(tmp_path, "turned.png", RGB, exif=exif)
    np.testing.assert_array_equal(photo(tmp_path / "turned.png"), np.rot90(random_pixels(), -1))
    red, blue = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    put(tmp_path, "moving.gif", red, save_all=True, append_images=[blue])
    np.testing.assert_array_equal(photo(tmp_path / "moving.gif"), np.asarray(red))


@pytest.mark.parametrize(("height", "width"), [(64, 192), (192, 64), (32, 96)])
def test_a_size_takes_the_square_in_the_middle(tmp_path, height, width):
    """Three parts, red, green and blue, of which the middle one is the square."""
    thirds = np.repeat(np.eye(3, dtype=np.uint8) * 255, max(height, width) // 3, axis=0)
    bands = np.broadcast_to(thirds if width > height else thirds[:, None], (height, width, 3))
    put(tmp_path, "bands.png", Image.fromarray(bands.copy()))
    square = photo(tmp_path / "bands.png", 64)
    assert square.shape == (64, 64, 3) and (square[8:-8, 8:-8] == (0, 255, 0)).all()


def test_other_files_hidden_ones_and_links_in_circles_are_passed_over(folder, capsys):
    for name in ("ant/Thumbs.db", "ant/a.txt", "ant/b.txt", "ant/0.png.bak", "ant/no_suffix", "README.md"):
        put(folder, f"train/{name}", b"not an image")
    put(folder, "train/ant/.DS_Store", b"of no interest")
    put(folder, "train/ant/folder.png")
    put(folder, "train/.ipynb_checkpoints")
    put(folder, "train/__MACOSX")
    put(folder, "val")
    (folder / "train/ant/itself.png").symlink_to("itself.png")
    (folder / "train/round").symlink_to("round")
    train, _ = image_folder(folder)
    assert train.classes == ("ant", "bee") and len(train) == 4
    said = capsys.readouterr().out
    passed_over = re.search(r"passed over as no images: (.*)", said)[1].split(", ")
    assert sorted(passed_over) == ["1 .bak", "1 .db", "1 .png", "1 folder folder.png", "1 no_suffix", "2 .txt"]
    assert "not used: val" in said


# What is done to a good folder, and what the error has to name.
SPOILT = {
    "a file": (lambda f: [shutil.rmtree(f), f.write_bytes(b"zip")], ["it has to be"]),
    "no classes": (lambda f: [shutil.rmtree(f / "test" / c) for c in ("ant", "bee")], ["'ant'", "missing", "test"]),
    "class only in train": (lambda f: put(f, "train/wasp/0.png", RGB), ["'wasp'", "missing", "test"]),
    "class only in test": (lambda f: put(f, "test/wasp/0.png", RGB), ["'wasp'", "missing", "train"]),
    "class without images": (lambda f: put(f, "train/wasp/notes.txt", b"text"), ["wasp", "no images"]),
    "no train": (lambda f: [shutil.rmtree(f / "train"), put(f, "ant/0.png", RGB)], ["test/", "no train/"]),
    "one class": (lambda f: [shutil.rmtree(f / s / "bee") for s in ("train", "test")], ["is ['ant']", "2 or more"]),
    "garbage": (lambda f: put(f, "train/ant/garbage.png", b"\x89PNG garbage"), ["garbage.png", "cannot be read"]),
    "cut short": (lambda f: put(f, "test/ant/cut.ppm", b"P6 7 5 255 too little"), ["cut.ppm", "cannot be read"]),
    "16 bits": (lambda f: put(f, "train/ant/deep.png", DEEP), ["deep.png", "more than 8 bits"]),
    "other size": (lambda f: put(f, "test/bee/wide.png", WIDE), ["wide.png", "9 x 3", "7 x 5", "--size 64"]),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_bad_folder_is_refused_and_the_culprit_named(what, folder):
    spoil, words = SPOILT[what]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        image_folder(folder)
    assert all(word in str(caught.value) for word in [folder.name, *words]), caught.value


# Photos as they come


def photos(root: Path, *splits: str, n: int = 5) -> Path:
    """Three classes, each with ``n`` photos of three sizes, some turned by EXIF, some named as cameras do."""
    exif = Image.Exif()
    for split in splits or ("",):
        for i, name in enumerate(["ant", "bee", "cat"] * n):
            exif[0x0112] = 6 if i % 2 else 1
            image = Image.fromarray(random_pixels(i, *[(48, 64), (64, 48), (90, 70)][i // 3 % 3]))
            put(root, f"{split}/{name}/{i}{('.JPG', '.jfif')[i % 2]}".lstrip("/"), image, format="JPEG", exif=exif)
    return root


@pytest.mark.parametrize("splits", [
    ("train", "test"), ("train", "val"), ("Train", "valid"), ("train", "validation"), ("inside/train", "inside/test"),
])  # fmt: skip
def test_photos_of_any_size_become_squares(splits, tmp_path, capsys):
    train, test = image_folder(photos(tmp_path / "photos", *splits), size=64)
    assert train.pixels.shape == test.pixels.shape == (15, 64, 64, 3)
    assert "ant 5 + 5, bee 5 + 5, cat 5 + 5 (train + test)" in capsys.readouterr().out


@pytest.mark.parametrize("inside", [".", "photos", "train"])
def test_without_a_split_a_fifth_of_each_class_is_kept_for_the_test(inside, tmp_path, capsys):
    photos(tmp_path / "photos" / inside, n=10)
    if inside == "train":
        (tmp_path / "photos" / "eval").mkdir()
    (train, test), again = (image_folder(tmp_path / "photos", size=16) for _ in range(2))
    assert np.bincount(train.labels).tolist() == [8] * 3 and np.bincount(test.labels).tolist() == [2] * 3
    said = capsys.readouterr().out
    assert "there is no test/, so a fifth of each class was kept" in said
    assert ("not used: eval" in said) == (inside == "train")
    assert torch.equal(again[0].pixels, train.pixels) and torch.equal(again[1].pixels, test.pixels)
    tested = {image.numpy().tobytes() for image in test.pixels}
    assert len(tested | {image.numpy().tobytes() for image in train.pixels}) == 30
    folder = next((tmp_path / "photos").rglob("bee"))
    Image.fromarray(random_pixels(99, 48, 64)).save(folder / "00.jpg")
    train, test = image_folder(tmp_path / "photos", size=16)  # the others stay where they were
    assert not any(image.numpy().tobytes() in tested for image in train.pixels)
    shutil.copytree(folder, folder.parent / "train")  # a class, too
    for file in (folder.parent / "train").iterdir():
        file.rename(file.with_stem(f"{file.stem} (1)"))
    capsys.readouterr()
    assert "train" in image_folder(tmp_path / "photos", size=16)[0].classes
    assert re.search(r"\d of the 10 test images \(\d+ %\) are training images, too", capsys.readouterr().out)


def test_too_large_data_and_sizes_that_make_no_sense_are_refused(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos", "train", "test", n=6)
    monkeypatch.setattr(photos_module.os, "sysconf", lambda name: 100)
    with pytest.raises(InputError, match=r"36 images of 64 x 64 pixels take is .* GB.*--size 64"):
        image_folder(root, size=64)
    monkeypatch.delattr(photos_module.os, "sysconf")  # as on Windows
    assert len(image_folder(root, size=64)[0]) == 18
    with pytest.raises(InputError, match="size is 64; it has to be left out: digits has its own"):
        photos_module.load_data("digits", size=64)
    with pytest.raises(InputError, match=r"size is 16\.0; it has to be a whole number"):
        image_folder(root, size=16.0)
