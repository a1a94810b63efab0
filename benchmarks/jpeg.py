"""CIFAR-10 as JPEG files: the pictures that the figures named "CIFAR-10 (JPEG q75)" were measured on.

    python benchmarks/jpeg.py    # data/cifar-10-python.tar.gz (downloaded, if it is not there) -> data/cifar10-jpeg

Quality 75 with half the chroma resolution, which is what Pillow makes of ``quality=75``: the quantisation tables and
the layout of the files are those of the files that were used.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from PIL import Image

import eva_utils as eva


def write(images: eva.Images, folder: Path) -> None:
    """Every image as ``folder``/<class>/<0000, 0001, ...>.jpg, in their order."""
    written = Counter()
    for pixels, label in zip(images.pixels.numpy(), images.labels.tolist(), strict=True):
        file = folder / images.classes[label] / f"{written[label]:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=75)
        written[label] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="where the archive is (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/cifar10-jpeg"), help="(%(default)s)")
    args = parser.parse_args()
    for split, images in zip(("train", "test"), eva.cifar10(args.root), strict=True):
        write(images, args.out / split)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
