"""The command line: ``eva-utils train | predict | explain | cycle``.

torch is imported only after the arguments have been read, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys

from . import __version__
from .errors import InputError, RunError

EPILOG = """\
examples:
  eva-utils train --data digits --no-flip --width 8 --batch-size 64 --epochs 4 --out runs/demo
                                                      no download, half a minute on a laptop
  eva-utils train --data cifar10 --out runs/cifar10   the whole job: an hour or two on two CPU cores, 15 s on an H100
  eva-utils train --data photos --size 64 --out runs/photos    your own photos, one folder a class
  eva-utils predict runs/photos new.jpg               what is it? from the run's folder alone
  torchrun --nproc-per-node 2 -m eva_utils train ...  the same on two GPUs, see docs/torchrun.md
  eva-utils explain runs/cifar10                      draw a finished run's figures again
  eva-utils cycle --out assets                        the zigzag and its relatives

Give the same train command again to go on where it stopped. Exit status: 0 done, 1 a fault, 2 bad
input (or a full disk, or a rate that is too high), 130 stopped by Ctrl-C, 143 by SIGTERM.
"""


def rate(text: str):
    """A number, or "find"."""
    return text if text == "find" else float(text)


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """That of the whole command line, and that of ``train`` inside it, which lacks the flags of the recipe."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="eva-utils",
        description="Train a ResNet on small images with a one-cycle policy, find its rates, see how it went.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="train | predict | explain | cycle")
    train = commands.add_parser(
        "train",
        help="find the rates, train, evaluate, draw",
        description="Find LR_MIN and LR_MAX, train, evaluate, draw the figures. Needs --data and --out; the defaults "
        "are those for CIFAR-10. Everything is written into OUT; the same command goes on where it was stopped.",
        epilog="OUT gets config.json, lr_range.json, lr.csv (every step), history.csv (every epoch), model.pt\n"
        "(averaged weights), checkpoint.pt, results.json and figures/.",
        formatter_class=raw,
    )
    add = train.add_argument
    add("--data", help="cifar10, digits, or a folder with photos in <class>/ or train/<class>/ and test/<class>/")
    add("--out", required=True, help="folder for everything that the run leaves")
    add("--root", default="data", help="where cifar10 is, or is downloaded to (%(default)s)")
    add("--size", type=int, help="make photos squares of this many pixels")
    add("--config", metavar="FILE", help="a config.json to take all settings from; flags given here win")
    add("--fresh", action="store_true", help="start over, whatever is in OUT")
    add("--epochs", type=int, default=24, help="passes over the training images (%(default)s)")
    add("--peak-epoch", type=float, help="epoch at which the rate is LR_MAX (5/24 of the epochs)")
    find = {"type": rate, "default": "find", "metavar": "RATE", "help": "a number, or find: by a range test (find)"}
    add("--lr-min", **find)
    add("--lr-max", **find)
    add("--width", type=int, default=64, help="channels of the first layer; the last has 8 times as many (%(default)s)")

    predict = commands.add_parser("predict", help="what is on a photo?", description="The three likeliest classes.")
    predict.add_argument("run", help="the folder that was OUT")
    predict.add_argument("files", nargs="+", help="photos")
    predict.add_argument("--json", action="store_true", help="all probabilities, as json")
    explain = commands.add_parser("explain", help="draw the figures of a finished run again")
    explain.add_argument("run", help="the folder that was OUT")
    cycle = commands.add_parser("cycle", help="draw the cyclic policies")
    cycle.add_argument("--out", required=True, help="folder for zigzag.png, cycle.png and policies.png")
    cycle.add_argument("--lr-min", type=float, default=0.01, help="lowest rate (%(default)s)")
    cycle.add_argument("--lr-max", type=float, default=0.1, help="highest rate (%(default)s)")
    cycle.add_argument("--step-size", type=float, default=4, help="half a cycle, in epochs (%(default)s)")
    cycle.add_argument("--cycles", type=int, default=3, help="how many (%(default)s)")
    return parser, train


def _parse(argv: list[str]) -> dict:
    """The arguments; for those not given, ``--config``'s values come before the defaults."""
    parser, train = _parsers()
    if argv[:1] == ["train"] and not {"-h", "--help"} & {*argv[1:]}:
        from .job import add_recipe_flags, defaults_from

        add_recipe_flags(train)
        early = parser.parse_args(argv)
        if early.config:
            train.set_defaults(**defaults_from(early.config, train))
    elif argv[:1] == ["train"]:
        from .job import add_recipe_flags

        add_recipe_flags(train)
    options = vars(parser.parse_args(argv))
    if options["command"] == "train" and not options["data"]:
        train.error("--data is missing: cifar10, digits, or a folder with photos")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's); returns the exit status."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that a terminal's encoding lacks
    try:
        options = _parse(sys.argv[1:] if argv is None else argv)
        from .processes import stoppable  # torch with it

        with stoppable():
            from . import job

            getattr(job, options.pop("command"))(**options)
    except (InputError, OSError) as error:  # the latter of a path that is too long, say, or leads in circles
        print(f"eva-utils: error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"eva-utils: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("\neva-utils: stopped; the same command (without --fresh) goes on from what is done", file=sys.stderr)
        return 128 + (stop.args or (2,))[0]
    except MemoryError as error:
        print(f"eva-utils: out of memory ({error}); take smaller or fewer images", file=sys.stderr)
        return 1
    except RuntimeError as error:
        words = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")  # torch has types for some
        if not any(these in str(error) for these in words):
            raise
        what = str(error).split("\n")[0]
        print(f"eva-utils: out of memory; take a smaller --batch-size or --width ({what})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
