"""A run's folder: its files, written so that a kill at any moment leaves whole ones; its lock; what makes it this run.

This module knows files, numbers and tensors, and nothing of training.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .errors import InputError, first_line

CONFIG, RANGE, STEPS, HISTORY = "config.json", "lr_range.json", "lr.csv", "history.csv"
MODEL, CHECKPOINT, RESULTS, FIGURES = "model.pt", "checkpoint.pt", "results.json", "figures"
TRAINED = (CHECKPOINT, RESULTS, HISTORY, STEPS, MODEL)  # what a training leaves
RETRIES = (0.5, 1, 2, 4)  # seconds between tries to put a file in place: network drives fail now and then
LOCK_SECONDS = 6  # the workers of a killed process hold its lock for five


def folder_of(path: str | os.PathLike) -> Path:
    """``path`` as a folder; "~" is the user's home. Raises ``InputError`` for an empty one, where ~ is unknown too."""
    if not str(path):
        raise InputError("the folder's name is empty; '.' is the current folder")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(path)!r}: {error}") from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """``folder`` for this process alone, by a lock that ends with the process; within it, it may be asked for again.

    Raises ``InputError`` if another process has it, or if the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.resolve() / ".lock", timeout=LOCK_SECONDS, is_singleton=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{str(folder)!r} is in use by another process; wait for it or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write into {str(folder)!r}: {first_line(error)}; choose another folder") from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        if lock.lock_counter == 1:
            for part in folder.glob(".*.part"):  # of a process that was killed while writing
                part.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def forget(folder: Path, *names: str) -> None:
    """Delete these files of a run, if they are there."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


# Writing


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
        for seconds in (*RETRIES, None):
            try:
                os.replace(part, path)
                break
            except OSError:
                if seconds is None or path.is_dir():
                    raise
                time.sleep(seconds)
    except (OSError, zipfile.BadZipFile) as error:
        with suppress(OSError):  # the folder itself may be the trouble
            part.unlink()
        raise InputError(
            f"cannot write {str(path)!r}: {first_line(error)}; what was there before is unharmed"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value) -> None:
    write_atomically(path, lambda part: part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf8"))


def write_csv(path: Path, rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda part: part.write_text(text.getvalue(), encoding="utf8"))


def write_tensors(path: Path, content: dict) -> None:
    """``torch.save``, and read back before it replaces what was there."""

    def write(part: Path) -> None:
        whole = io.BytesIO()
        torch.save(content, whole)
        # In one go, which network folders like; and by Python, whose errors, unlike torch's, tell of a full disk.
        part.write_bytes(whole.getbuffer())
        _check(part)

    write_atomically(path, write)


# Reading


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no settings")
        return value
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); is this the folder of a finished run?") from error


def read_csv(path: Path) -> list[dict]:
    try:
        with path.open(newline="", encoding="utf8") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); is this the folder of a finished run?") from error


def read_tensors(path: Path) -> dict:
    """What ``write_tensors`` wrote, on the CPU; no code in it is run. Raises ``InputError`` if it is something else."""
    try:
        _check(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError("it holds no state")
        return content
    except FileNotFoundError as error:
        near = [f.name for f in path.parent.glob(f"{path.stem}*{path.suffix}")]
        hint = f"; {near[0]!r} is there: rename it" if near else ""
        raise InputError(f"{str(path)!r} is not there: is this the folder of a finished run?{hint}") from error
    except Exception as error:  # a damaged file fails in many ways
        reason = "it holds more than tensors and numbers" if "weights_only" in str(error) else first_line(error)
        raise InputError(f"{str(path)!r} is damaged or no file of this package ({reason}); delete it") from error


def _check(path: Path) -> None:
    """Raises BadZipFile unless every record of the file has the checksum it was written with: torch does not look."""
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"record {bad} does not match its checksum")


# Which run it is


def plain(value):
    """``value`` in what json has, to be stored and compared; an object as its ``repr`` without addresses."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist") and not isinstance(value, type):
        return plain(value.tolist())
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def differences(there: dict, here: dict) -> str:
    """A line for each setting that is not the same, for the message that refuses; "" if all are."""
    there, here = _flat(there), _flat(here)
    changed = sorted(key for key in there.keys() | here.keys() if not _same(there.get(key), here.get(key)))
    return "\n".join(f"  {key}: {_short(there.get(key))} there, {_short(here.get(key))} here" for key in changed)


def _flat(settings: dict, before: str = "") -> dict:
    """{"recipe.seed": 0, ...} of {"recipe": {"seed": 0, ...}}."""
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _same(a, b) -> bool:
    """Equal; NaN equals itself, which it does not in Python."""
    return a == b or repr(a) == repr(b)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
