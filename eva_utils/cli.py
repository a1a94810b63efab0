"""Train a ResNet on small images with a one-cycle policy, find its rates, see how it went.

examples:
  eva-utils train --data digits --no-flip --width 8 --batch-size 64 --epochs 4 --out runs/demo    half a minute
  eva-utils train --data cifar10 --out runs/cifar10   the whole job: two hours on two CPU cores, 15 s on an H100
  eva-utils train --data photos --size 64 --batch-size 32 --out runs/photos    your own, one folder a class
  eva-utils predict runs/photos new.jpg               what is it? from the run's folder alone
  torchrun --nproc-per-node 2 -m eva_utils train ...  the same on two GPUs, see docs/torchrun.md
Exit status: 0 done, 1 a fault or no memory, 2 bad input (a full disk, too high a rate), 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import contextlib
import glob
import json
import re
import sys
from dataclasses import fields

import eva_utils as eva  # its names are loaded when they are used: so --help answers before torch could be imported

from .errors import InputError, check, first_line


def train(out, fresh, data, root, size, width, epochs, peak_epoch, lr_min, lr_max, **flags) -> None:
    """Find LR_MIN and LR_MAX, train, evaluate, draw. The same command goes on where it was stopped."""
    import torch

    from .batches import loader
    from .device import choose_device, choose_precision
    from .explain import draw
    from .processes import process_group, rank
    from .run import CHECKPOINT, CONFIG, FIGURES, RANGE, TRAINED, exclusive, folder_of, forget, read_json, write_json

    out = folder_of(out)
    with process_group(), exclusive(out) if rank() == 0 else contextlib.nullcontext():  # rank 0 alone touches it
        # Everything is checked before any work, and before --fresh takes anything away.
        augment = eva.Augment(**{f.name: flags.pop(f.name) for f in fields(eva.Augment)})
        recipe = eva.Recipe(augment=augment, **flags)
        peak_epoch = min(epochs, 1e6) * 5 / 24 if peak_epoch is None else peak_epoch  # OneCycle refuses more
        low = 1e-6 if lr_min is None else lr_min
        eva.OneCycle(epochs, peak_epoch, low, 2 * low if lr_max is None else lr_max)
        choose_precision(choose_device(recipe.device), recipe.precision)
        train_images, test_images = eva.load_data(data, root, size)
        print(f"train: {train_images}\ntest: {test_images}")
        # ResNet9 halves the side three times, and BatchNorm has no variance to take from one value.
        side, least = min(train_images.pixels.shape[1:3]), 8 if recipe.batch_size > 1 else 16
        check("the images' side", side, side >= least, f"{least} pixels or more at batch_size {recipe.batch_size}")
        torch.manual_seed(recipe.seed)
        model = eva.ResNet9(len(train_images.classes), width)
        loader(train_images, recipe, torch.device("cpu"))  # for its checks
        if fresh and rank() == 0:
            forget(out, RANGE, *TRAINED, f"{FIGURES}/lr_finder.png")

        rates = {"lr_min": lr_min, "lr_max": lr_max}
        found = [key for key, rate in rates.items() if rate is None]
        if found:
            range_test = eva.find_lr(model, train_images, recipe, folder=out)
            rates |= {key: getattr(range_test, key) for key in found}
        for key, rate in rates.items():
            print(f"{key.upper()} = {rate:.3g}: {range_test.reasons[key] if key in found else 'given.'}")
        if found and not rates["lr_min"] < rates["lr_max"]:
            words = f"LR_MIN is {rates['lr_min']:.3g}, not below LR_MAX, {rates['lr_max']:.3g}"
            raise InputError(f"{words}; {found[0].upper()} was found by the range test: give both rates")
        beside = {"data": data, "root": root, "size": size, "width": width}
        if rank() == 0 and not (out / CHECKPOINT).is_file():
            write_json(out / CONFIG, beside)
        schedule = eva.OneCycle(epochs, peak_epoch, **rates)
        run = eva.fit(model, train_images, test_images, schedule, recipe, folder=out)
        print(run, f"Numbers and weights are in {out}", sep="\n")
        if rank() == 0:
            write_json(out / CONFIG, read_json(out / CONFIG) | beside)  # not before: fit may refuse a checkpoint
            draw(out, schedule, augment, train_images, test_images, run.ema)


def predict(run, files, as_json) -> None:
    """What is on a photo? The three likeliest classes, by the network in the folder RUN."""
    files = [name for file in files for name in sorted(glob.glob(file)) or [file]]  # *.jpg, as Windows hands it on
    answers = dict(zip(files, eva.classify(run, *files), strict=True))
    if as_json:
        print(json.dumps(answers, indent=1))
        return
    for file, classes in answers.items():
        print(f"{file}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in list(classes.items())[:3]))


def explain(run) -> None:
    """Draw the figures of a finished run again."""
    from .device import choose_device
    from .explain import draw
    from .run import CONFIG, RESULTS, folder_of, read_json

    config, results = (read_json(folder_of(run) / name) for name in (CONFIG, RESULTS))
    model = eva.load_model(run).to(choose_device())
    try:
        schedule = eva.OneCycle(*(results[key] for key in ("epochs", "peak_epoch", "lr_min", "lr_max")))
        augment, data = eva.Augment(**config["recipe"]["augment"]), [config[key] for key in ("data", "root", "size")]
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(run)!r} is no finished run of eva-utils train; of fit's, draw by eva.plots") from error
    draw(folder_of(run), schedule, augment, *eva.load_data(*data), model)


def cycle(out, lr_min, lr_max, step_size, cycles) -> None:
    """Draw the zigzag (bare and annotated) and the cyclic policies side by side."""
    from .run import folder_of

    zigzag, end = eva.Triangular(lr_min, lr_max, step_size), 2 * step_size * cycles
    policies = {
        "triangular": zigzag,
        "triangular2": eva.Triangular2(lr_min, lr_max, step_size),
        "exp_range": eva.ExpRange(lr_min, lr_max, step_size, gamma=0.9),
        "one-cycle": eva.OneCycle(end, end * 5 / 24, lr_min, lr_max),
    }
    for name, figure in {
        "zigzag": eva.plots.zigzag(zigzag, cycles),
        "cycle": eva.plots.zigzag(zigzag, cycles, annotate=True),
        "policies": eva.plots.policies(policies, end),
    }.items():
        print(eva.plots.save(figure, folder_of(out) / f"{name}.png"))


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("eva-utils", description=__doc__, formatter_class=raw)
    parser.add_argument("--version", action="version", version=eva.__version__)
    commands = parser.add_subparsers(required=True, metavar="train | predict | explain | cycle")

    def command(function):
        words = function.__doc__
        added = commands.add_parser(function.__name__, help=words.split(".")[0], description=words)
        added.set_defaults(command=function)
        return added.add_argument

    add = command(train)
    add("--data", required=True, help="cifar10, digits, or a folder with <class>/ or train/<class>/ and test/<class>/")
    add("--out", required=True, help="folder for everything that the run leaves: tables, weights, figures")
    add("--root", default="data", help="where cifar10 is, or is downloaded to (%(default)s)")
    add("--size", type=int, help="make photos squares of this many pixels")
    add("--fresh", action="store_true", help="start over, whatever is in OUT")
    add("--epochs", type=int, default=24, help="passes over the training images (%(default)s)")
    add("--peak-epoch", type=float, help="epoch at which the rate is LR_MAX (5/24 of the epochs)")
    for flag in ("--lr-min", "--lr-max"):
        add(flag, type=float, metavar="RATE", help="a number; without it, a range test finds one")
    add("--width", type=int, default=64, help="channels of the first layer; the last has 8 times as many (%(default)s)")
    # A flag for each field that has a plain value; only here, because the others' help needs no torch.
    for f in (*fields(eva.Recipe), *fields(eva.Augment)) if argv[:1] == ["train"] else ():
        flag, words, right = f"--{f.name.replace('_', '-')}", f.metadata["help"], f.metadata.get("right")
        if isinstance(f.default, bool):
            add(flag, action=argparse.BooleanOptionalAction, default=f.default, help=words)
        elif f.name not in ("augment", "criterion"):
            words += "" if f.default is None else f" ({f.default})"
            kind, choices = str if f.default is None else type(f.default), right if isinstance(right, tuple) else None
            add(flag, type=kind, choices=choices, default=f.default, help=words)

    add = command(predict)
    add("run", help="the folder that was OUT")
    add("files", nargs="+", help="photos; other sizes are resized and cropped to the one trained on")
    add("--json", dest="as_json", action="store_true", help="all probabilities, as json")
    command(explain)("run", help="the folder that was OUT")
    add = command(cycle)
    add("--out", required=True, help="folder for zigzag.png, cycle.png and policies.png")
    add("--lr-min", type=float, default=0.01, help="lowest rate (%(default)s)")
    add("--lr-max", type=float, default=0.1, help="highest rate (%(default)s)")
    add("--step-size", type=float, default=4, help="half a cycle, in epochs (%(default)s)")
    add("--cycles", type=int, default=3, help="how many (%(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's); returns the exit status."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that a terminal's encoding lacks
    argv = sys.argv[1:] if argv is None else argv
    try:
        options = vars(_parser(argv).parse_args(argv))
        from .processes import stoppable  # torch with it

        with stoppable():
            options.pop("command")(**options)
        return 0
    except KeyboardInterrupt as stop:
        status, words = 128 + (stop.args or (2,))[0], "stopped; the same command (train: without --fresh) goes on"
    except (InputError, OSError) as error:  # the latter of a path that is too long, say, or leads in circles
        status, words = 2, f"error: {error}"
    except (MemoryError, RuntimeError) as error:  # torch has a type of its own only for a GPU that is full
        full = isinstance(error, MemoryError) or re.search("(out of|allocate|enough) memory|ALLOC_FAILED", str(error))
        if not full:
            raise
        cure = "out of memory; take a smaller --batch-size or --width, or smaller images"
        status, words = 1, f"{cure} ({first_line(error)})"
    print(f"eva-utils: {words}", file=sys.stderr)
    return status
