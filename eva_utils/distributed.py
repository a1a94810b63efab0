"""More than one process: ``torchrun`` starts them, ``torch.distributed`` and DDP do the work, this knows the rank.

In a single process there is no group, and everything here does nothing.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from .errors import InputError, RunError

# One process may wait for another that finds rates, downloads or draws; torchrun ends those whose partner has died.
PATIENCE = timedelta(hours=3)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all of them, from 0."""
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _in_group() else 1


def local_rank() -> int:
    """This process's number on its machine, from 0; torchrun says it before there is a group."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The group of the processes that torchrun has started, if it has and none is there yet.

    NCCL joins GPUs, gloo CPUs. Within, only rank 0 prints. An error ends all processes, and the one that fails first
    tells its own: what the others could say is the echo of it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ or _in_group():
        yield
        return
    backend = "gloo"  # also for what lies in a CPU's memory, whatever the GPUs do
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
    store, number, world = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()) if number else contextlib.nullcontext():
            yield
    except Exception as error:
        with contextlib.suppress(ValueError):  # not in the main thread
            # torchrun sends SIGTERM to what is left of a group: not in the middle of saying why this one ends.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _first_to_fail(store):
            raise SystemExit(2 if isinstance(error, InputError) else 1) from None
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # the line to another process broke
            raise RunError(
                f"another of the {world} processes has died, killed or out of memory perhaps; the last checkpoint, "
                "if any, is kept: the same call goes on from it"
            ) from error
        raise
    dist.destroy_process_group()


def _first_to_fail(store) -> bool:
    try:
        return store.add("eva_utils/failed", 1) == 1
    except (RuntimeError, ValueError):  # the store itself has gone, with the process that held it
        return False


def on_first(function: Callable) -> Callable:
    """``function``, run by rank 0 alone: every process has to call it, and gets its result or its InputError."""

    @functools.wraps(function)
    def wrapper(*args, **options):
        if world_size() == 1:
            return function(*args, **options)
        result = error = None
        if rank() == 0:
            try:
                result = function(*args, **options)
            except InputError as e:
                error = str(e)
        answer = [result, error]
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise InputError(answer[1])
        return answer[0]

    return wrapper


def own_device(device: torch.device) -> torch.device:
    """``device`` for this process: each on a machine has a GPU of its own, that of its local rank."""
    if world_size() == 1 or device.type == "cpu":
        return device
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here == 1:
        return device
    if device.index not in (None, local_rank()):
        raise InputError(
            f"device is {str(device)!r} for {here} processes; give 'cuda', and each takes a GPU of its own"
        )
    if here > gpus:
        raise InputError(f"--nproc-per-node is {here}; it has to be at most the number of GPUs here, {gpus}")
    return torch.device("cuda", local_rank())


@contextlib.contextmanager
def one_a_machine_first() -> Iterator[None]:
    """The process with local rank 0 goes first, the others of its machine when all of those are done: for downloads."""
    if _in_group() and local_rank():
        dist.barrier()
    yield
    if _in_group() and not local_rank():
        dist.barrier()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, which is changed, as the sum over all processes; whole numbers are summed exactly."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def average_buffers(model: nn.Module) -> None:
    """Give every process the mean over all of them of ``model``'s floating-point buffers: BatchNorm's statistics."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    mean = total(torch.cat([b.flatten() for b in buffers])) / world_size()
    for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def parallel(model: nn.Module) -> nn.Module:
    """What to call in training instead of ``model``: DDP, with SyncBatchNorm on GPUs. Tensors are shared, not copied.

    ``model`` keeps its structure, its keys and plain BatchNorm. On a CPU, where SyncBatchNorm does not work, each
    process normalises with the statistics of its own slice.
    """
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type == "cuda":
        model = synchronized(model)
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)
    # From here on, average_buffers takes care of them, when they are needed; DDP would send rank 0's at every step.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    off = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        bucket_cap_mb=4,  # with the default, 25, two thirds of ResNet9's 26 MB would wait for the backward pass's end
        **{off: False},
    )


def synchronized(model: nn.Module) -> nn.Module:
    """A twin of ``model`` with SyncBatchNorm in place of BatchNorm, and the very same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model, shared))
