"""Several processes: ``torchrun`` starts them, ``torch.distributed`` and DDP do the work. And signals, which stop one.

Without torchrun there is no group: ``rank`` is 0, and what is about several does nothing.
"""

import contextlib
import copy
import functools
import gc
import io
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from .errors import InputError

# One process may wait for another that finds rates or tests; torchrun ends those whose partner has died.
PATIENCE = timedelta(hours=3)
stopped: list[int] = []  # the signals that came


@contextlib.contextmanager
def stoppable(between_steps: bool = False) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP raise ``KeyboardInterrupt(signal)``: at once, or where ``raise_if_stopped`` is called.

    Between steps, because Python drops what is raised in some places (within ``os.fork``, in a ``__del__``), and what
    is put back after a stop has to be what was saved. A second signal does not wait.
    """

    def handle(signum, frame) -> None:
        stopped.append(signum)
        if not between_steps or len(stopped) > 1:
            raise KeyboardInterrupt(signum)

    names = ("SIGINT", "SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    signals = [signum for signum in signal.Signals if signum.name in names]
    heard = [signum for signum in signals if signal.getsignal(signum) not in (None, signal.SIG_IGN)]  # as by nohup
    before = {signum: signal.signal(signum, handle) for signum in heard}
    try:
        yield
        raise_if_stopped()
    except BaseException as error:
        if stopped or isinstance(error, (KeyboardInterrupt, torch.OutOfMemoryError)):
            # A notebook keeps the error, and so the frames of all calls and the tensors in them: gigabytes that the
            # next try, with a smaller batch say, would have to do without.
            traceback.clear_frames(error.__traceback__)
            gc.collect()
        if not isinstance(error, KeyboardInterrupt):
            raise_if_stopped()  # workers that got the same signal are not reported as crashed
        raise
    finally:
        stopped.clear()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def raise_if_stopped() -> None:
    if stopped:
        raise KeyboardInterrupt(stopped[0]) from None


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all of them, from 0."""
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _in_group() else 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The group of the processes that torchrun has started, if it has and none is there yet.

    NCCL joins GPUs, gloo CPUs. Within, only rank 0 prints. An error ends all processes, and the one that fails first
    tells its own: what the others could say is the echo of it.
    """
    if not {"RANK", "MASTER_ADDR"} <= os.environ.keys() or _in_group():
        yield
        return
    backend = "gloo"  # also for what lies in a CPU's memory, whatever the GPUs do
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    store, number, world = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()) if number else contextlib.nullcontext():
            yield
    except Exception as error:
        first = False
        with contextlib.suppress(RuntimeError):  # the store may have gone, with the process that held it
            first = store.add("eva_utils/failed", 1) == 1
        if not first:
            raise SystemExit(2 if isinstance(error, InputError) else 1) from None
        raise
    dist.destroy_process_group()


def on_first(function: Callable) -> Callable:
    """``function``, run by rank 0 alone: every process has to call it, and gets its result or its InputError."""

    @functools.wraps(function)
    def wrapper(*args, **options):
        answer = [None]
        if rank() == 0:
            try:
                answer[0] = function(*args, **options)
            except InputError as error:
                answer[0] = error
        if world_size() > 1:
            dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], InputError):
            raise answer[0]
        return answer[0]

    return wrapper


def total(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, which is changed, as the sum over all processes; whole numbers are summed exactly."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def average_buffers(model: nn.Module) -> None:
    """Give every process the mean over all of them of ``model``'s floating-point buffers: BatchNorm's statistics."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if world_size() > 1 and buffers:
        mean = total(torch.cat([b.flatten() for b in buffers])) / world_size()
        for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))


def parallel(model: nn.Module) -> nn.Module:
    """What to call in training instead of ``model``: DDP, with SyncBatchNorm on GPUs. Tensors are shared, not copied.

    ``model`` keeps its structure, its keys and plain BatchNorm. On a CPU, where SyncBatchNorm does not work, each
    process normalises with the statistics of its own slice.
    """
    if not _in_group():
        return model
    device = next(model.parameters()).device
    if device.type == "cuda":
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model, shared))
    gpus = [device] if device.type == "cuda" else None
    # With buckets of 25 MB, the default, two thirds of ResNet9's 26 MB would wait for the backward pass's end.
    network = nn.parallel.DistributedDataParallel(model, device_ids=gpus, bucket_cap_mb=4)
    network.broadcast_buffers = False  # DDP would send rank 0's at every step; average_buffers does it when needed
    return network
