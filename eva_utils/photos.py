"""Photographs: folders of any sizes as ``Images``, and one file as pixels."""

from __future__ import annotations

import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .data import Images, cifar10, digits, from_arrays
from .errors import InputError, check, first_line

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp", ".gif", ".avif",
    ".jp2", ".tga", ".heic",
})  # fmt: skip
TEST_NAMES = ("test", "val", "valid", "validation")


def load_data(data: str, root: str = "data", size: int | None = None) -> tuple[Images, Images]:
    """(train, test) of "cifar10" (archive in ``root``), "digits" or an image folder's path."""
    if data == "cifar10":
        return cifar10(root)
    if data == "digits":
        return digits()
    return image_folder(data, size)


def image_folder(path: str | os.PathLike, size: int | None = None) -> tuple[Images, Images]:
    """Photographs in ``path/{train,test}/<class>/``: (train, test). Classes are in alphabetical order.

    ``val/`` or ``valid/`` does where there is no ``test/``; of ``path/<class>/`` alone a fifth of each class is kept
    for the test, always the same one. size: resize the shorter side to it and crop the centre to a square; without it,
    all have to have one size. EXIF rotation is applied; grey, palette and CMYK become 8-bit RGB, without transparency.
    Prints images per class, and what it passes over.

    Raises ``InputError`` that names the folder or file if a class is missing in a split or empty, a file cannot be
    read, a size differs, or the images would not fit into memory.
    """
    root = Path(path).expanduser()
    right = "'cifar10', 'digits' or a folder with train/<class>/ and test/<class>/ (or only <class>/) inside"
    check("data", str(path), bool(str(path)) and root.is_dir(), right)
    check("size", size, size is None or 8 <= size <= 4096, "between 8 and 4096 pixels")
    try:
        found = _find(root)
        (a, a_labels), (b, b_labels), classes, note = found
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the GIL
            train, test = ((_read(pool, files, a[0], size), labels) for files, labels in ((a, a_labels), (b, b_labels)))
    except OSError as error:
        raise InputError(f"{error.filename!r} cannot be read: {error.strerror}") from error
    counts = np.bincount(train[1], minlength=len(classes)), np.bincount(test[1], minlength=len(classes))
    each = ", ".join(f"{name} {n} + {m}" for name, n, m in zip(classes, *counts, strict=True))
    print(f"{str(root)!r}: {each if len(classes) <= 50 else f'{len(classes)} classes'} (train + test){note}")
    if counts[0].max() > 5 * counts[0].min():
        print("The classes are uneven: look at the recall of each, the accuracy hides the small ones.")
    return from_arrays(train, test, classes, root.resolve().name)


def _find(root: Path) -> tuple:
    """((train files, labels), (test files, labels), classes, what to say of the split)."""
    folders = {d.name.lower(): d for d in sorted(root.iterdir()) if d.is_dir() and not d.name.startswith(".")}
    test = next((folders[name] for name in TEST_NAMES if name in folders), None)
    if "train" in folders and test:
        a, b = _classes(folders["train"]), _classes(test)
        for here, there, other in ((a, b, test), (b, a, folders["train"])):
            if missing := sorted(here.keys() - there.keys()):
                raise InputError(f"class {missing[0]!r} is missing in {str(other)!r}; both splits need every class")
        note = ""
    elif len(folders) == 1 and any(d.is_dir() for d in next(iter(folders.values())).iterdir()):
        return _find(next(iter(folders.values())))  # a folder within the folder, as unzipping leaves it
    else:
        from sklearn.model_selection import train_test_split

        everything, a, b = _classes(folders.get("train", root)), {}, {}
        for name, files in everything.items():
            check(f"number of images of class {name!r}", len(files), len(files) > 1, "2 or more to be split")
            a[name], b[name] = train_test_split(files, test_size=0.2, random_state=0)
        note = "; there is no test/, so a fifth of each class was kept for it"
    if len(a) < 2:
        raise InputError(f"{str(root)!r} has only the class {', '.join(a)!r}; a classifier needs 2 or more")
    classes = sorted(a)
    splits = ([(f, i) for i, c in enumerate(classes) for f in sorted(split[c])] for split in (a, b))
    return *(([f for f, _ in split], np.array([i for _, i in split])) for split in splits), classes, note


def _classes(folder: Path) -> dict[str, list[Path]]:
    """{class: its image files} in ``folder``."""
    classes, passed_over = {}, Counter()
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        inside = [f for f in entry.iterdir() if not f.name.startswith(".")]
        files = sorted(f for f in inside if f.suffix.lower() in SUFFIXES and f.is_file())
        passed_over.update(f.suffix or f.name for f in set(inside) - set(files))
        if not files:
            raise InputError(f"class folder {str(entry)!r} has no images (files ending in .png, .jpg, ...)")
        # A name that is no UTF-8 could be neither printed nor drawn.
        classes[entry.name.encode("utf8", "backslashreplace").decode("utf8")] = files
    if not classes:
        raise InputError(f"{str(folder)!r} has no class folders; it needs one for each class, with images inside")
    if passed_over:
        print(f"{str(folder)!r}: passed over as no images: " + ", ".join(f"{n} {s}" for s, n in passed_over.items()))
    return classes


def _read(pool, files: list[Path], first: Path, size: int | None) -> np.ndarray:
    """All of ``files`` as uint8 (n, h, w, 3); without ``size`` they have the size of ``first``."""
    from tqdm.std import tqdm

    shape = photo(first, size).shape
    need, memory = len(files) * int(np.prod(shape)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > memory / 2:
        raise InputError(
            f"{len(files):,} images of {shape[1]} x {shape[0]} pixels take {need / 1e9:.1f} GB, and this machine has "
            f"{memory / 1e9:.1f} GB; take smaller ones: --size 64 (size=64) or so"
        )
    pixels = np.empty((len(files), *shape), np.uint8)
    arrays = tqdm(pool.map(lambda file: photo(file, size), files), "images", len(files), delay=2, mininterval=1)
    for i, (file, array) in enumerate(zip(files, arrays, strict=True)):
        if array.shape != shape:
            raise InputError(
                f"{str(file)!r} is {array.shape[1]} x {array.shape[0]} pixels, but {str(first)!r} is "
                f"{shape[1]} x {shape[0]} (turned as EXIF says); give --size 64 (size=64) or so to make them one size"
            )
        pixels[i] = array
    return pixels


def photo(file: Path, size: int | None = None) -> np.ndarray:
    """One image file as uint8 (height, width, 3), upright; with ``size``, as a square of that side."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(Path(file).expanduser().read_bytes())) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to 0..255 without a word
                raise InputError(f"{str(file)!r} has more than 8 bits a channel (mode {image.mode}); save it with 8")
            image = ImageOps.exif_transpose(image)
            # Transparency in a palette goes by way of RGBA; straight to RGB, Pillow warns.
            image = (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
            if size is not None and image.size != (size, size):
                from torchvision.transforms.functional import center_crop, resize

                image = center_crop(resize(image, size), size)
            return np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files, SyntaxError among them
        raise InputError(
            f"{str(file)!r} cannot be read as an image ({first_line(error)}); mend or remove it"
        ) from error
