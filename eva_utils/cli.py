"""The command line: ``eva-utils train | explain | cycle``. Reads arguments, reports errors; ``job`` does the work.

torch is imported only after the arguments have been read, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import __version__
from .errors import InputError, RunError

EPILOG = """\
examples:
  eva-utils train --data digits --no-flip --width 8 --batch-size 64 --epochs 4 --out runs/demo
                                                      no download, half a minute on a laptop
  eva-utils train --data cifar10 --out runs/cifar10   the whole job: an hour or two on two CPU cores, 15 s on an H100
  eva-utils train --data photos  --out runs/photos    your own images: photos/train/<class>/, photos/test/<class>/
  torchrun --nproc-per-node 2 -m eva_utils train ...  the same on two GPUs, see docs/torchrun.md
  eva-utils explain runs/cifar10                      draw a finished run's figures again
  eva-utils cycle --out assets                        the zigzag and its relatives

Give the same train command again to go on where it stopped. Exit status: 0 done, 1 a fault, 2 bad
input (or a full disk, or a rate that is too high), 130 stopped by Ctrl-C, 143 by SIGTERM.
"""


def _rate(text: str):
    try:
        return text if text == "find" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it has to be a number, or find") from error


def _folder(text: str) -> Path:
    if not text:  # a shell variable that is not set: the current folder is not meant
        raise argparse.ArgumentTypeError("it is empty; it has to be a folder")
    return Path(text)


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """That of the whole command line, and that of ``train`` inside it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="eva-utils",
        description="Train a ResNet on small images with a one-cycle policy, find its rates, see how it went.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="train | explain | cycle")

    train = commands.add_parser(
        "train",
        help="find the rates, train, evaluate, draw",
        description="Find LR_MIN and LR_MAX, train, evaluate, draw the figures. Needs --data and --out; the defaults "
        "are those for CIFAR-10. Everything is written into OUT; the same command goes on where it was stopped.",
        epilog="OUT gets config.json, lr_range.json, lr.csv (every step), history.csv (every epoch), model.pt\n"
        "(averaged weights), checkpoint.pt, figures/ and, when all is done, results.json.",
        formatter_class=raw,
    )
    add = train.add_argument
    add("--data", help="cifar10, digits, or a folder with train/<class>/ and test/<class>/")
    add("--out", type=_folder, required=True, help="folder for everything that the run leaves")
    add("--root", default="data", help="where cifar10's archive is, or is downloaded to (%(default)s)")
    add("--config", type=Path, metavar="FILE", help="a config.json to take all settings from; flags given here win")
    add("--fresh", action="store_true", help="start over, whatever is in OUT")
    add("--epochs", type=int, default=24, help="passes over the training images (%(default)s)")
    add("--peak-epoch", type=float, help="epoch at which the rate is LR_MAX (5/24 of the epochs)")
    add("--batch-size", type=int, default=512, help="images a step, of all processes together (%(default)s)")
    rate = {"type": _rate, "default": "find", "metavar": "RATE"}
    add("--lr-min", **rate, help="a rate, or find: take it from a range test (%(default)s)")
    add("--lr-max", **rate, help="a rate, or find: take it from a range test (%(default)s)")
    add("--width", type=int, default=64, help="channels of the first layer; the last has 8 times as many (%(default)s)")
    add("--seed", type=int, default=0, help="of initial weights, order and augmentation (%(default)s)")
    add("--padding", type=int, default=4, help="pixels of padding before the random crop (%(default)s)")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror half of the images (yes)")
    add("--cutout", type=int, default=8, help="side of the Cutout hole in pixels, 0 for none (%(default)s)")
    add("--label-smoothing", type=float, default=0.0, help="of the training loss (%(default)s)")
    add("--weight-decay", type=float, default=1e-3, help="of SGD (%(default)s)")
    add("--ema", type=float, default=0.05, help="time constant of the EMA, a share of the steps so far (%(default)s)")
    add("--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto", help="number format (%(default)s)")
    add("--device", help="cpu, cuda, cuda:1, ... (the first GPU, or each process its own under torchrun; else the CPU)")
    add(
        "--engine",
        choices=["batch", "albumentations"],
        default="batch",
        help="augmentation by batch, or by image (%(default)s)",
    )
    add("--workers", type=int, default=2, help="processes of the albumentations engine (%(default)s)")

    explain = commands.add_parser("explain", help="draw the figures of a finished run again")
    explain.add_argument("run", type=_folder, help="the folder that was OUT")

    cycle = commands.add_parser("cycle", help="draw the cyclic policies")
    cycle.add_argument("--out", type=_folder, required=True, help="folder for zigzag.png, cycle.png and policies.png")
    cycle.add_argument("--lr-min", type=float, default=0.01, help="lowest rate (%(default)s)")
    cycle.add_argument("--lr-max", type=float, default=0.1, help="highest rate (%(default)s)")
    cycle.add_argument("--step-size", type=float, default=4, help="half a cycle, in epochs (%(default)s)")
    cycle.add_argument("--cycles", type=int, default=3, help="how many (%(default)s)")
    return parser, train


def _configured(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; for those not given, ``--config``'s values come before the defaults."""
    parser, train = _parsers()
    args = parser.parse_args(argv)
    if args.command == "train" and args.config:
        known = {a.dest: a for a in train._actions if a.dest not in ("help", "config", "out", "fresh")}
        train.set_defaults(**_read_config(args.config, known))
        args = parser.parse_args(argv)
    if args.command == "train" and not args.data:
        parser.error("train needs --data: cifar10, digits, or a folder with train/<class>/ and test/<class>/")
    return args


def _read_config(file: Path, known: dict[str, argparse.Action]) -> dict:
    """The settings in ``file``, checked as argparse checks flags, so that a mistake is named here too."""
    where = f"config {str(file)!r}"
    try:
        config = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{where} holds no settings; it has to be like the config.json of a run")
    if unknown := sorted(config.keys() - known.keys()):
        raise InputError(f"{where} has unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    for key, value in config.items():
        action = known[key]
        try:
            if value is None:
                right = action.default is None
            elif isinstance(action, argparse.BooleanOptionalAction):
                right = isinstance(value, bool)
            elif action.type:
                config[key] = action.type(str(value))
                right = True
            else:
                right = isinstance(value, str) and "\0" not in value and (not action.choices or value in action.choices)
        except (ValueError, argparse.ArgumentTypeError):
            right = False
        if not right:
            raise InputError(f"{where}: {key} is {value!r}; see eva-utils train --help for what it has to be")
    return config


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt(signum): a run ends in words, with its last epoch kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum, frame) -> None:
        # A queue's signal reaches the workers as well; that they have ended is no fault then, which torch would report.
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, lambda *_: None)
        raise KeyboardInterrupt(signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) is stop:  # not if something in between had a reason of its own
                signal.signal(signum, handler)


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's); returns the exit status."""
    with _stoppable():
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that a terminal's encoding lacks
    args = None
    try:
        args = _configured(argv)
        from . import job

        options = vars(args)
        getattr(job, options.pop("command"))(**{k: v for k, v in options.items() if k != "config"})
    except (InputError, OSError) as error:  # the latter of a path that is too long, say, or leads in circles
        print(f"eva-utils: error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"eva-utils: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        same = "the same command" + " without --fresh" * getattr(args, "fresh", False)
        print(f"\neva-utils: stopped; {same} goes on from what is done", file=sys.stderr)
        return 128 + (stop.args or (signal.SIGINT,))[0]
    except (MemoryError, RuntimeError) as error:  # torch's own, of a GPU and of a CPU
        words = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED", "unable to find an engine")
        if not isinstance(error, MemoryError) and not any(these in str(error) for these in words):
            raise
        what = str(error).split("\n")[0]
        or_old = ", or the GPU is too old for this cuDNN" if "engine" in what else ""
        print(f"eva-utils: out of memory{or_old}; take a smaller --batch-size or --width ({what})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
