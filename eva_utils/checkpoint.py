"""Checkpoints: written so that a kill at any moment leaves a whole one, read without running code from them."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from .errors import InputError

FORMAT = 1


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """``write(part)`` makes the file under a name beside ``path``; it takes that name only when it is on the disk.

    Raises ``InputError`` if that fails (folder not writable, disk full); what was at ``path`` before is then unharmed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise InputError(f"cannot write {str(path)!r}: {reason}; what was there before is unharmed") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save(path: Path, state: dict) -> None:
    """``state`` (tensors, numbers, strings, lists, dicts) to ``path``, read back before it replaces what was there."""

    def write(part: Path) -> None:
        torch.save({"format": FORMAT, **state}, part)
        _check(part)

    write_atomically(path, write)


def load(path: Path) -> dict:
    """What ``save`` wrote, on the CPU. Raises ``InputError`` for a file that is damaged, newer or something else."""
    try:
        _check(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"checkpoint {str(path)!r} is damaged ({reason}); delete it to start over") from error
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(f"{str(path)!r} is not a checkpoint of this package; choose another folder")
    if state["format"] > FORMAT:
        raise InputError(
            f"checkpoint {str(path)!r} has format {state['format']}; this version of eva_utils reads up to {FORMAT}: "
            "update the package"
        )
    return state


def _check(path: Path) -> None:
    """Raises BadZipFile unless every record of the file has the checksum it was written with."""
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"record {bad} does not match its checksum")
