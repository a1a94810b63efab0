"""Where and how it is computed: device, number format, memory, random numbers."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

import torch

from .errors import InputError, check, first_line

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """``device`` if given, else the first CUDA GPU (of a machine's several processes, each its own), else the CPU.

    Raises ``InputError`` if it cannot be used. Others than these two are refused: on Apple's (mps), torch's copies and
    BatchNorm have silently been wrong in the way they are used here (pytorch issues 139550, 175189).
    """
    hint = "" if device else "; with CUDA_VISIBLE_DEVICES='' in the environment it is left alone"
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        check("device", str(device), device.type in ("cpu", "cuda"), "'cpu', 'cuda' or one of several, as 'cuda:1'")
        if device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
            own, right = int(os.environ["LOCAL_RANK"]), "'cuda': each process takes a GPU of its own"
            check("device", str(device), device.index in (None, own), right)
            check("--nproc-per-node", own + 1, own < torch.cuda.device_count(), "the GPUs here at most")
            device = torch.device("cuda", own)
        torch.ones(1, device=device)  # a kernel runs: torch may be too new for a GPU that it sees
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device is {str(device)!r}, which cannot be used here: {first_line(error)}{hint}") from error
    return device


def choose_precision(device: torch.device, precision: str = "auto") -> str:
    """ "bf16", "fp16" or "fp32": ``precision`` itself, or for "auto" the fastest that ``device`` has in hardware.

    CUDA: bf16 from compute capability 8.0, fp16 below (``torch.cuda.is_bf16_supported()`` is no guide: it says yes on a
    T4, which only emulates it). CPU: bf16 where AMX or AVX512-BF16 is there, else fp32.
    """
    if precision != "auto":
        right = "'bf16' or 'fp32' on a CPU; 'fp16' needs a CUDA GPU"
        check("precision", precision, precision in DTYPES and (precision != "fp16" or device.type == "cuda"), right)
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # not in every version of torch; bool() is False
    return "bf16" if any(getattr(torch.cpu, test, bool)() for test in tests) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context for forward passes in ``precision``."""
    # Without its cache: within an autocast of the caller's it would give the first weights in all steps.
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32", cache_enabled=False)


def describe(device: torch.device, processes: int = 1) -> str:
    """In words: "Tesla T4", or the CPU's name and the number of threads; "2 x ..." for two processes."""
    times = f"{processes} x " if processes > 1 else ""
    if device.type == "cuda":
        return times + torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf8") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    threads = torch.get_num_threads()
    return f"{times}CPU: {name}, {threads} thread{'s' * (threads > 1)}"


def environment() -> str:
    """Versions, device and number format, in two lines."""
    import torchvision

    from . import __version__

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    device = choose_device()
    return f"eva_utils {__version__}, {versions}\n{describe(device)}, {choose_precision(device)}"


def keep_memory() -> None:
    """Let this process keep freed memory for the next step instead of giving it back to the system (glibc only).

    A step on a CPU frees and asks again for hundreds of megabytes, and each time the system zeroes the pages it hands
    out. So the process grows for some steps, to about 2.5 GB at full width, and then stays as it is.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
    with contextlib.suppress(OSError, AttributeError):  # no glibc: nothing to gain here
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 1 << 30) or libc.mallopt(m_mmap_threshold, 1 << 25)  # the most of old versions
        libc.mallopt(m_trim_threshold, -1)  # never


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """torch's random numbers on the CPU and on ``device`` start from ``seed``; the caller's random state is restored.

    Not ``torch.manual_seed``: it would reseed the other GPUs too, which ``fork_rng`` does not restore.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
