"""The whole job as three functions, one for each command: train, explain, cycle."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from . import plots
from .augment import Augment
from .batches import check_batches
from .checkpoint import exclusive, write_json
from .distributed import on_first, one_a_machine_first, process_group, world_size
from .errors import InputError, check, check_recipe, differences
from .evaluation import predict
from .explain import confusion, gradcam, misclassified
from .images import Images, cifar10, digits, image_folder
from .lr_finder import LRRange, find_lr
from .model import ResNet9
from .precision import choose_device, choose_precision, precision_again
from .records import load_model, read_csv, read_json, save_run
from .schedule import ExpRange, OneCycle, Triangular, Triangular2
from .train import fit

HERE_ONLY = ("root", "device", "precision", "workers")  # where and how a run is computed, not what
BUILT_IN = ("cifar10", "digits")
SMALLEST = 8  # pixels: ResNet9 halves the side three times
TRAINED = ("results.json", "checkpoint.pt", "history.csv", "lr.csv", "model.pt")
LEFT_BY_A_RUN = (*TRAINED, "lr_range.json")


def load_data(data: str, root: str = "data") -> tuple[Images, Images]:
    """(train, test) of "cifar10" (archive in ``root``), "digits" or an image folder's path."""
    if data == "cifar10":
        return cifar10(root)
    if data == "digits":
        return digits()
    if not Path(data).is_dir():
        raise InputError(f"data is {data!r}; it has to be 'cifar10', 'digits' or a folder with train/ and test/ inside")
    return image_folder(data)


def train(out, **options) -> dict:
    """Rate finding, training, evaluation, figures, all into ``out``; returns what ``results.json`` holds.

    ``options`` are those of ``eva-utils train``, all of them, with underscores in their names. Under torchrun all
    processes train together, and rank 0 alone touches ``out``.
    """
    with process_group(), contextlib.ExitStack() as held:
        on_first(held.enter_context)(exclusive(Path(out)))
        return _train(Path(out), **options)


def _train(
    out, fresh, data, root, epochs, peak_epoch, batch_size, lr_min, lr_max, width, seed, padding, flip, cutout,
    label_smoothing, weight_decay, ema, precision, device, engine, workers,
) -> dict:  # fmt: skip
    if (path := str(Path(data))) not in BUILT_IN:  # ./digits is a folder
        data = path  # photos/ is photos
    if peak_epoch is None:
        peak_epoch = epochs * 5 / 24
    config = {key: value for key, value in locals().items() if key not in ("out", "fresh", "path")}
    if results := on_first(_finished)(out, config, fresh):
        print(f"{out} holds this run, finished; nothing to compute (--fresh starts over)")
        return results
    # Everything is checked before any work, and before --fresh takes anything away.
    OneCycle(epochs, peak_epoch, *_placeholders(lr_min, lr_max))
    augment = Augment(padding, flip, cutout)
    check_recipe(0, weight_decay, label_smoothing, ema)
    check("seed", seed, 0 <= seed < 2**64, "between 0 and 2**64 - 1")
    choose_precision(choose_device(device), precision)
    with one_a_machine_first():  # it may have to download
        train_images, test_images = load_data(data, root)
    print(f"{train_images}\n{test_images}")
    if (side := min(train_images.pixels.shape[1:3])) < SMALLEST:
        raise InputError(f"the images of {data!r} have a side of {side} pixels; the network needs {SMALLEST} or more")
    check_batches(train_images, augment, batch_size, engine, workers, world_size())
    right = "2 or more for images below 16 pixels, which leave BatchNorm one value per channel"
    check("batch_size", batch_size, batch_size > 1 or side >= 16, right)
    torch.manual_seed(seed)
    model = ResNet9(len(train_images.classes), width)
    on_first(_begin)(out, config, fresh)

    shared = {"augment": augment, "batch_size": batch_size, "seed": seed, "label_smoothing": label_smoothing,
              "weight_decay": weight_decay, "precision": precision, "device": device, "engine": engine,
              "workers": workers, "checkpoint": out}  # fmt: skip
    rates = None
    reasons = {"lr_min": "given", "lr_max": "given"}
    if "find" in (lr_min, lr_max):
        rates = on_first(_kept)(out / "lr_range.json") or find_lr(model, train_images, **shared)
        reasons |= {key: rates.reasons[key] for key in reasons if config[key] == "find"}
        lr_min = rates.lr_min if lr_min == "find" else lr_min
        lr_max = rates.lr_max if lr_max == "find" else lr_max
    for key, value in (("lr_min", lr_min), ("lr_max", lr_max)):
        print(f"{key.upper()} = {value:.4g}: {reasons[key]}")
    schedule = OneCycle(epochs, peak_epoch, lr_min, lr_max)
    run = fit(model, train_images, test_images, schedule, ema=ema, **shared)
    return on_first(_finish)(out, run, rates, reasons, train_images, test_images, augment)


def _begin(out: Path, config: dict, fresh: bool) -> None:
    if fresh:
        for name in LEFT_BY_A_RUN:
            (out / name).unlink(missing_ok=True)
    write_json(out / "config.json", config)


def _finish(out: Path, run, rates, reasons, train_images, test_images, augment) -> dict:
    precision = precision_again(next(run.ema.parameters()).device, run.device, run.precision)
    probabilities = predict(run.ema, test_images, precision=precision)
    draw(
        out / "figures", run.history, run.steps, run.schedule, rates, train_images, test_images, augment, run.ema,
        probabilities,
    )  # fmt: skip
    return save_run(out, run, test_images, rates, reasons)


def explain(run) -> None:
    """Draw the figures of the finished run in the folder ``run`` again."""
    run = Path(run)
    config, results = (read_json(run / name) for name in ("config.json", "results.json"))
    rates = LRRange.load(run / "lr_range.json") if (run / "lr_range.json").is_file() else None
    device = choose_device()
    model = load_model(run).to(device)
    try:
        data, root = config["data"], config["root"]
        precision = precision_again(device, results["device"], results["precision"])
        augment = Augment(config["padding"], config["flip"], config["cutout"])
        schedule = OneCycle(*(results[key] for key in ("epochs", "peak_epoch", "lr_min", "lr_max")))
    except KeyError as error:
        raise InputError(
            f"config.json or results.json in {str(run)!r} has no {error}; is it of a finished run?"
        ) from error
    train_images, test_images = load_data(data, root)
    if (k := len(test_images.classes)) != (found := model.head.linear.out_features):
        raise InputError(f"data {data!r} has {k} classes, but the model of {str(run)!r} has {found}")
    probabilities = predict(model, test_images, precision=precision)
    history, steps = (read_csv(run / name) for name in ("history.csv", "lr.csv"))
    draw(run / "figures", history, steps, schedule, rates, train_images, test_images, augment, model, probabilities)
    print(f"figures are in {run / 'figures'}")


def cycle(out, lr_min, lr_max, step_size, cycles) -> None:
    """Draw the zigzag (bare and annotated) and the cyclic policies side by side."""
    check("cycles", cycles, 1 <= cycles <= 100, "between 1 and 100")
    zigzag = Triangular(lr_min, lr_max, step_size)
    end = 2 * step_size * cycles
    named = {
        "triangular": zigzag,
        "triangular2": Triangular2(lr_min, lr_max, step_size),
        "exp_range": ExpRange(lr_min, lr_max, step_size, gamma=0.9),
        "one-cycle": OneCycle(end, end * 5 / 24, lr_min, lr_max),
    }
    for name, figure in {
        "zigzag": plots.zigzag(zigzag, cycles),
        "cycle": plots.zigzag(zigzag, cycles, annotate=True),
        "policies": plots.policies(named, end),
    }.items():
        print(plots.save(figure, Path(out) / f"{name}.png"))


def draw(
    folder: Path, history, steps, schedule, rates, train_images, test_images, augment, model, probabilities
) -> None:
    """All figures of a run into ``folder``, instead of an earlier run's."""
    figures = {
        "samples": plots.samples(train_images),
        "augmented": plots.augmented(train_images, augment),
        "lr_schedule": plots.applied(steps, schedule),
        "history": plots.history(history),
        "confusion": plots.confusion(confusion(model, test_images, probabilities)),
    }
    if rates:
        figures["lr_finder"] = plots.lr_range(rates)
    mistakes = misclassified(model, test_images, probabilities).pick(25)
    cams = gradcam(model, mistakes)
    figures |= {"misclassified": plots.misclassified(mistakes), "gradcam": plots.gradcam(cams)}
    figures |= {f"gradcam/{i + 1:02}": plots.gradcam(cams[i : i + 1]) for i in range(len(mistakes))}
    for file in [folder / "lr_finder.png", *folder.glob("gradcam/[0-9][0-9].png")]:
        with contextlib.suppress(OSError):  # if it cannot be, saving will say so
            file.unlink()  # of a run that had more figures; only now, when all are drawn
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


def _finished(out: Path, config: dict, fresh: bool) -> dict | None:
    """The results in ``out`` if it holds this very run, finished. Raises InputError if it holds another one."""
    # A config without these is from a command that failed before it trained; find_lr sees to the range test's.
    if not fresh and any((out / name).is_file() for name in TRAINED):
        old = read_json(out / "config.json")
        there, here = ({key: c.get(key) for key in config if key not in HERE_ONLY} for c in (old, config))
        if changed := differences(there, here):
            raise InputError(
                f"{str(out)!r} holds a run of another configuration:\n{changed}\n"
                "choose another --out, or start over with --fresh"
            )
        if (out / "results.json").is_file():
            return read_json(out / "results.json")
    return None


def _kept(file: Path) -> LRRange | None:
    """The range test in ``file``. Once training has begun it stays, even if the data change: ``fit`` refuses those."""
    if not (file.is_file() and file.with_name("checkpoint.pt").is_file()):
        return None
    print(f"{file}: range test done before")
    return LRRange.load(file)


def _placeholders(lr_min, lr_max) -> tuple[float, float]:
    """Rates to check the rest with, where they are still to be found."""
    if lr_max != "find":
        check("lr_max", lr_max, 0 < lr_max < float("inf"), "a positive number")
    if lr_min == "find":
        lr_min = 1e-3 if lr_max == "find" else lr_max / 2
    return lr_min, 2 * lr_min if lr_max == "find" else lr_max
