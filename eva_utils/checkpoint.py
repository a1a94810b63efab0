"""Files: written so that a kill at any moment leaves a whole one, read without running code from them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .errors import InputError

FORMAT = 1
_held: set[Path] = set()  # folders that this process has for itself


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
    except (OSError, zipfile.BadZipFile) as error:
        with suppress(OSError):  # the folder itself may be the trouble
            part.unlink()
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise InputError(f"cannot write {str(path)!r}: {reason}; what was there before is unharmed") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """``folder`` for this process alone, by a lock that ends with the process however it ends.

    Raises ``InputError`` if another process has it. Within one process it may be asked for again. Where there
    are no such locks (Windows, some network folders) nothing is checked.
    """
    try:
        import fcntl
    except ImportError:
        fcntl = None
    key = Path(os.path.realpath(folder))  # unlike resolve, it is not upset by links in circles
    if fcntl is None or key in _held:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write into {str(folder)!r}: {error.strerror}; choose another folder") from error
    with file:
        try:
            # Not flock: worker processes would inherit it, and hold it for seconds after this process was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"{str(folder)!r} is in use by another process; wait for it or choose another folder"
            ) from error
        except OSError:
            pass
        else:
            for part in folder.glob(".*.part"):  # of a process that was killed while writing
                part.unlink(missing_ok=True)
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


def plain(value):
    """``value`` in what json has, to be stored and compared: numpy's numbers, which ``load`` would refuse, as Python's,
    and objects as they are ``described``."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key if isinstance(key, str) else described(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):  # in an order that is another one in the next process
        return sorted(map(plain, value), key=repr)
    if hasattr(value, "tolist") and not isinstance(value, type):
        return plain(value.tolist())
    return described(value)


def described(value) -> str:
    """``repr`` without addresses, which are others in the next process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def fingerprint(model) -> str:
    """A checksum of a network's layers, activations and options, which its weights' shapes do not tell."""
    return f"{zlib.crc32(described(model).encode()):08x}"


def write_json(path: Path, value) -> None:
    write_atomically(path, lambda part: part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf8"))


def save(path: Path, state: dict) -> None:
    """``state`` (tensors, numbers, strings, lists, dicts) to ``path``; ``load`` reads it."""
    write_tensors(path, {"format": FORMAT, **state})


def write_tensors(path: Path, content: dict) -> None:
    """``torch.save``, atomically, and read back before it replaces what was there."""

    def write(part: Path) -> None:
        whole = io.BytesIO()
        torch.save(content, whole)
        # In one go, which network folders like; and by Python, whose errors, unlike torch's, tell of a full disk.
        part.write_bytes(whole.getbuffer())
        _check(part)

    write_atomically(path, write)


def read_tensors(path: Path):
    """What ``write_tensors`` wrote, on the CPU. Raises many kinds of errors for a file that is damaged."""
    _check(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load(path: Path) -> dict:
    """What ``save`` wrote, on the CPU. Raises ``InputError`` for a file that is damaged, newer or something else."""
    try:
        state = read_tensors(path)
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).split("\n")[0]
        raise InputError(f"checkpoint {str(path)!r} is damaged ({reason}); delete it to start over") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
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
        # torch writes none; one of them would make it take a tensor's record for a folder, and the tensor for empty.
        if any(record.external_attr for record in archive.infolist()):
            raise zipfile.BadZipFile("a record has attributes")
