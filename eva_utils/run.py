"""A run's folder: its lock, its files, which a kill at any moment leaves whole, and whether it is another run's."""

import csv
import dataclasses
import dis
import inspect
import io
import json
import os
import pickle
import re
import reprlib
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from .errors import InputError, check, first_line

CONFIG, RANGE, STEPS, HISTORY = "config.json", "lr_range.json", "lr.csv", "history.csv"
MODEL, CHECKPOINT, RESULTS, FIGURES = "model.pt", "checkpoint.pt", "results.json", "figures"
TRAINED = (CHECKPOINT, RESULTS, HISTORY, STEPS, MODEL)  # what a training leaves
RETRIES = (0.5, 1, 2, 4)  # seconds between tries to put a file in place: network drives fail now and then
LOCK_SECONDS = 6  # the workers of a killed process hold its lock for five


def folder_of(path: str | os.PathLike) -> Path:
    """``path`` as a folder; "~" is the user's home."""
    check("the folder's name", str(path), str(path) != "", "a path; '.' is the current folder")
    return Path(os.path.expanduser(path))


@contextmanager
def exclusive(folder: Path, name: str = ".lock", seconds: float | None = None) -> Iterator[None]:
    """``folder`` for this process alone, by a lock that ends with the process; within it, it may be asked for again.

    seconds: to wait for another process; -1 for as long as it takes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.resolve() / name, is_singleton=True)
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire(LOCK_SECONDS if seconds is None else seconds)
    except OSError as error:
        why = "it is in use by another process" if isinstance(error, Timeout) else first_line(error)
        raise InputError(f"cannot write into {str(folder)!r}: {why}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def forget(folder: Path, *names: str) -> None:
    """Delete these files of a run, if they are there."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside ``path`` first: a file takes its name only when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        for seconds in RETRIES:
            with suppress(OSError):
                return os.replace(part, path)
            time.sleep(seconds)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {first_line(error)}; what was there is unharmed") from error
    finally:
        with suppress(OSError):  # the folder itself may be the trouble
            part.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    write_bytes(path, f"{json.dumps(value, indent=1, default=_in_json, skipkeys=True)}\n".encode())


def write_csv(path: Path, rows: list[dict]) -> None:
    lines = [rows[0], *(row.values() for row in rows)]  # numbers alone, which need no quotes
    write_bytes(path, "".join(",".join(map(str, line)) + "\n" for line in lines).encode())


def write_tensors(path: Path, content: dict) -> None:
    # In one go, which network folders like; and written by Python, whose errors, unlike torch's, tell of a full disk.
    torch.save(content, whole := io.BytesIO())
    write_bytes(path, whole.getbuffer())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} is not there: is this the folder of a finished run?") from error
    except (OSError, MemoryError) as error:  # of the content nothing is known
        raise InputError(f"{str(path)!r} cannot be read: {first_line(error) or 'out of memory'}") from error
    except Exception as error:  # a damaged file fails in many ways
        code = isinstance(error, pickle.UnpicklingError)  # torch would tell how to run it
        why = "it holds more than tensors and numbers" if code else first_line(error)
        cure = "if it is a run's, delete it: the training's call writes it anew"
        raise InputError(f"{str(path)!r} is damaged or no file of a run ({why}); {cure}") from error


def read_json(path: Path) -> dict:
    with _reading(path):
        value = json.loads(path.read_text(encoding="utf8"))
        check("its content", type(value).__name__, isinstance(value, dict), "a dict")
    return value


def read_csv(path: Path) -> list[dict]:
    with _reading(path), path.open(newline="", encoding="utf8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def read_tensors(path: Path) -> dict:
    """What ``write_tensors`` wrote, on the CPU. No code in it is run."""
    with _reading(path):
        with zipfile.ZipFile(path) as archive:  # torch does not look at checksums
            bad = archive.testzip()
        check("its first damaged record", bad, bad is None, "None")
        content = torch.load(path, map_location="cpu", weights_only=True)
        check("its content", type(content).__name__, isinstance(content, dict), "a dict")
    return content


def plain(value):
    """``value`` as json gives it back, to be stored and compared; an object as its ``repr`` without addresses."""
    return json.loads(json.dumps(value, default=_in_json, skipkeys=True))


def _in_json(value):
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, torch.nn.Module):  # a criterion's repr does not tell all it has
        options = [{k: v for k, v in vars(part).items() if not k.startswith("_")} for part in value.modules()]
        code = [getattr(type(part), "forward", None) for part in value.modules()]
        return {without_addresses(repr(value)): {"options": options, "code": code, **_numbers(value.state_dict())}}
    if inspect.isfunction(value) and not value.__module__.startswith("torch."):  # nor does a lambda's
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        around = {name: cell.cell_contents for name, cell in cells}
        names = {i.argval for i in dis.get_instructions(value) if i.opname == "LOAD_GLOBAL"}  # not .gamma, an attribute
        around |= {name: v for name in names if not isinstance(v := value.__globals__.get(name), str)}  # "cuda", say
        around |= dict(enumerate(value.__defaults__ or ())) | (value.__kwdefaults__ or {})
        return {f"{value.__qualname__} {zlib.crc32(_code(value.__code__).encode()):08x}": _numbers(around)}
    if hasattr(value, "tolist"):
        return value.tolist()
    if type(value).__repr__ is object.__repr__:  # it has none of its own
        return {type(value).__qualname__: _numbers(getattr(value, "__dict__", {}))}
    return without_addresses(repr(value))


def _numbers(values: dict) -> dict:
    """What is compared of a function's or an object's surroundings. A list or a network in them may have changed since,
    so it says nothing."""
    tensors = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
    sums = {name: zlib.crc32(v.detach().cpu().double().numpy().tobytes()) for name, v in tensors.items()}
    return {name: v for name, v in values.items() if isinstance(v, (int, float, str))} | sums


def _code(code) -> str:
    """What a function does, without where it stands."""
    # A set's order is another one in each process.
    sets = [sorted(map(repr, value)) if isinstance(value, frozenset) else value for value in code.co_consts]
    constants = [_code(value) if inspect.iscode(value) else repr(value) for value in sets]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def differences(there: dict, here: dict, within: str = "") -> str:
    """A line for each setting that is not the same, for the message that refuses; "" if all are."""
    lines = []
    for key in sorted(there.keys() | here.keys()):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines.append(differences(a, b, f"{within}{key}."))
        elif a != b:
            lines.append(f"  {within}{key}: {reprlib.repr(a)} there, {reprlib.repr(b)} here")
    return "\n".join(filter(None, lines))
