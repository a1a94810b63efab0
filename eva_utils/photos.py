"""Photographs: folders of any sizes as ``Images``, and one file as pixels."""

import os
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm.std import tqdm

from .data import Images, digits, from_arrays
from .errors import InputError, check, first_line

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp", ".gif", ".avif",
    ".jp2", ".tga", ".heic",
})  # fmt: skip


def load_data(data: str, root: str = "data", size: int | None = None) -> tuple[Images, Images]:
    """(train, test) of "cifar10" (archive in ``root``), "digits" or an image folder's path."""
    check("size", size, size is None or data not in ("cifar10", "digits"), f"left out: {data} has its own")
    if data == "cifar10":
        from .download import cifar10  # torchvision with it

        return cifar10(root)
    return digits() if data == "digits" else image_folder(data, size)


def image_folder(path: str | os.PathLike, size: int | None = None) -> tuple[Images, Images]:
    """Photographs in ``path/{train,test}/<class>/``: (train, test). Classes are in alphabetical order.

    ``val/`` or ``valid/`` does where there is no ``test/``; of ``path/<class>/`` alone a fifth of each class is kept
    for the test, always the same one. size: resize the shorter side to it and crop the centre to a square; without it,
    all have to have one size. EXIF rotation is applied; grey, palette and CMYK become 8-bit RGB, what is transparent
    white. Prints images per class, what it passes over, and how many test images are training images.

    Raises ``InputError`` that names the folder or file if a class is missing in a split or empty, a file cannot be
    read, a size differs, or the images would not fit into memory.
    """
    root = Path(path).expanduser()
    right = "'cifar10', 'digits' or a folder with train/<class>/ and test/<class>/ (or only <class>/) inside"
    check("data", str(path), bool(str(path)) and root.is_dir(), right)
    right = "a whole number of pixels, between 8 and 4096"
    check("size", size, size is None or (isinstance(size, Integral) and 8 <= size <= 4096), right)
    try:
        train, test, note = _find(root)
        classes = list(train)
        check(f"the list of classes in {str(root)!r}", classes, len(classes) > 1, "2 or more, a folder of images each")
        pixels = read_photos([file for split in (train, test) for files in split.values() for file in files], size)
    except OSError as error:
        raise InputError(f"{error.filename!r} cannot be read: {error.strerror}") from error
    counts = [[len(split[name]) for name in classes] for split in (train, test)]
    each = ", ".join(f"{name} {n} + {m}" for name, n, m in zip(classes, *counts, strict=True))
    print(f"{str(root)!r}: {each if len(classes) <= 50 else f'{len(classes)} classes'} (train + test){note}")
    a, b = (np.repeat(np.arange(len(classes)), count) for count in counts)
    known = {hash(image.tobytes()) for image in pixels[: len(a)]}
    if twice := sum(hash(image.tobytes()) in known for image in pixels[len(a) :]):
        print(f"{twice} of the {len(b):,} test images ({100 * twice / len(b):.3g} %) are training images, too.")
    return from_arrays((pixels[: len(a)], a), (pixels[len(a) :], b), classes, root.resolve().name)


def _find(root: Path) -> tuple[dict, dict, str]:
    """({class: training files}, {class: test files}, what to say of the split)."""
    folders = {d.name.lower(): d for d in _folders(root)}
    if "train" in folders and not _folders(folders["train"]):  # beside car/ and bus/
        del folders["train"]
    tests = [folders[name] for name in ("test", "val", "valid", "validation") if name in folders]
    used = [folders["train"], *tests[:1]] if "train" in folders else []
    unused = ", ".join(sorted(d.name for d in _folders(root) if used and d not in used))
    note = f"; not used: {unused}" * bool(unused)
    if "train" in folders and tests:
        train, test = _classes(folders["train"]), _classes(tests[0])
        for name in sorted(train.keys() ^ test.keys()):
            where = folders["train"] if name in test else tests[0]
            raise InputError(f"class {name!r} is missing in {str(where)!r}; both splits need every class")
        return train, test, note
    if tests and "train" not in folders and _folders(tests[0]):
        raise InputError(f"{str(root)!r} has {tests[0].name}/, but no train/ beside it")
    if len(folders) == 1 and _folders(inside := next(iter(folders.values()))):
        return _find(inside)  # a folder within the folder, as unzipping leaves it
    train, test = {}, {}
    for name, files in _classes(folders.get("train", root)).items():
        check(f"number of images of class {name!r}", len(files), len(files) > 1, "2 or more to be split")
        # By the names' checksums: when photos come or go, the others stay where they are, but for a few.
        shuffled = sorted(files, key=lambda file: zlib.crc32(os.fsencode(file.name)))
        k = -(-len(files) // 5)
        train[name], test[name] = sorted(shuffled[k:]), sorted(shuffled[:k])
    return train, test, "; there is no test/, so a fifth of each class was kept for it" + note


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """{class: its image files}, both in alphabetical order."""
    classes, passed_over = {}, Counter()
    for entry in _folders(folder):
        inside = sorted(f for f in entry.iterdir() if not f.name.startswith("."))
        files = [f for f in inside if f.suffix.lower() in SUFFIXES and f.is_file()]
        passed_over.update(f"folder {f.name}" if f.is_dir() else f.suffix or f.name for f in set(inside) - set(files))
        if not files:
            raise InputError(f"class folder {str(entry)!r} has no images (.png, .jpg, ...); splits are train/, test/")
        # A name that is no UTF-8 could be neither printed nor drawn.
        classes[entry.name.encode("utf8", "backslashreplace").decode("utf8")] = files
    if passed_over:
        print(f"{str(folder)!r}: passed over as no images: " + ", ".join(f"{n} {s}" for s, n in passed_over.items()))
    return classes


def read_photos(files: list[Path], size: int | None) -> np.ndarray:
    """All of ``files`` as uint8 (n, h, w, 3); without ``size`` they have to be of one size."""
    height, width, _ = shape = photo(files[0], size).shape
    need, memory = len(files) * height * width * 3, float("inf")
    if hasattr(os, "sysconf"):  # Windows has none
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    right = f"half of this machine's {memory / 1e9:.1f} GB at most: take smaller ones, --size 64 (size=64) or so"
    what = f"what {len(files):,} images of {width} x {height} pixels take"
    check(what, f"{need / 1e9:.1f} GB", need <= memory / 2, right)
    pixels = np.empty((len(files), *shape), np.uint8)
    # Decoding releases the GIL. Closed first, so that after a refusal no further file is decoded.
    with ThreadPoolExecutor() as pool, closing(pool.map(lambda file: photo(file, size), files)) as decoded:
        arrays = tqdm(decoded, "images", len(files), delay=2, mininterval=1)
        for i, array in enumerate(arrays):
            if array.shape != shape:
                raise InputError(
                    f"{str(files[i])!r} is {array.shape[1]} x {array.shape[0]} pixels, but {str(files[0])!r} is "
                    f"{width} x {height} (turned as EXIF says); give --size 64 (size=64) or so to make them one size"
                )
            pixels[i] = array
    return pixels


def photo(file: Path, size: int | None = None) -> np.ndarray:
    """One image file as uint8 (height, width, 3), upright; with ``size``, as a square of that side."""
    try:
        with Image.open(Path(file).expanduser()) as image:
            mode, image = image.mode, ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:  # on white, as on a page
                image = image.convert("RGBA")
                if image.getchannel("A").getextrema()[1]:  # else the channel is not used
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if size is not None and image.size != (size, size):
                from torchvision.transforms.functional import center_crop, resize

                image = center_crop(resize(image, size), size)
            pixels = np.asarray(image)
    except Exception as error:  # Pillow raises many kinds for broken files, SyntaxError among them
        cure = "; mend it, convert it to .jpg, or remove it" * os.path.isfile(str(file))
        raise InputError(f"{str(file)!r} cannot be read as an image ({first_line(error)}){cure}") from error
    if mode.startswith(("I", "F")):  # Pillow has clipped these to 0..255 without a word
        raise InputError(f"{str(file)!r} has more than 8 bits a channel (mode {mode}); save it with 8")
    return pixels
