"""The whole job as functions, one for each command: train, predict, explain, cycle."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path

import torch

from . import plots
from .augment import Augment
from .batches import loader
from .device import choose_device, choose_precision
from .errors import InputError, check
from .explain import gradcam
from .fitting import fit
from .look import classify, confusion, load_model, misclassified
from .look import predict as probabilities_of
from .lr_finder import LRRange, find_lr
from .model import ResNet9
from .photos import load_data
from .processes import on_first, one_a_machine_first, process_group, rank
from .recipe import Recipe
from .run import (
    CHECKPOINT,
    CONFIG,
    FIGURES,
    HISTORY,
    RANGE,
    RESULTS,
    STEPS,
    TRAINED,
    exclusive,
    folder_of,
    forget,
    read_csv,
    read_json,
    write_json,
)  # fmt: skip
from .schedule import ExpRange, OneCycle, Triangular, Triangular2

SMALLEST = 8  # pixels: ResNet9 halves the side three times
BESIDE = ("data", "root", "size", "width")  # what config.json has beside the recipe, the policy and what was found


def _options() -> dict[str, dataclasses.Field]:
    """The fields of ``Recipe`` and of its ``Augment`` that have a plain value, each of which is a flag."""
    every = [f for f in dataclasses.fields(Recipe) if f.name not in ("augment", "criterion")]
    return {f.name: f for f in [*every, *dataclasses.fields(Augment)]}


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    for name, f in _options().items():
        kind = {"help": f"{f.metadata['help']} ({f.default})".replace(" (None)", ""), "default": f.default}
        if isinstance(f.default, bool):
            kind |= {"action": argparse.BooleanOptionalAction, "help": f.metadata["help"]}
        elif isinstance(right := f.metadata.get("right"), tuple):
            kind["choices"] = right
        elif f.default is not None:
            kind["type"] = type(f.default)
        parser.add_argument(f"--{name.replace('_', '-')}", **kind)


def defaults_from(file: str, parser: argparse.ArgumentParser) -> dict:
    """The flags' values in a config.json. Raises ``InputError`` for a file that holds something else."""
    config = read_json(folder_of(file))
    try:
        recipe, policy = dict(config.get("recipe", {})), dict(config.get("policy", {}))
        found = config.get("found", ())
        values = {key: config[key] for key in BESIDE if key in config} | recipe.pop("augment", {}) | recipe
        values |= {key: "find" if key in found else policy[key] for key in ("lr_min", "lr_max") if key in policy}
        values |= {key: policy[key] for key in ("epochs", "peak_epoch") if key in policy}
    except (TypeError, ValueError) as error:
        raise InputError(f"config {file!r} is not like the config.json of a run ({error})") from error
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    right = "null and OneCycle: other ones are for fit"
    own = [values.pop("criterion", None), policy.get("name", "OneCycle")]
    check(f"config {file!r}: criterion and policy", own, own == [None, "OneCycle"], right)
    for key, value in ({key: config[key] for key in config.keys() - {"recipe", "policy", "found"}} | values).items():
        check(f"config {file!r}: setting", key, key in known and key in values, "one that config.json has")
        action = known[key]
        if value is None and action.default is None:
            continue
        try:
            if action.type:
                values[key] = action.type(str(value))
            elif not isinstance(value, str if action.nargs is None else bool):
                raise ValueError
        except ValueError as error:
            raise InputError(f"config {file!r}: {key} is {value!r}; see eva-utils train --help") from error
    return values


def train(out, **options) -> dict:
    """Rate finding, training, evaluation, figures, all into ``out``; returns what ``results.json`` holds.

    ``options`` are those of ``eva-utils train``, all of them, with underscores in their names. Under torchrun all
    processes train together, and rank 0 alone touches ``out``.
    """
    out = folder_of(out)
    with process_group(), exclusive(out) if rank() == 0 else contextlib.nullcontext():
        return _train(out, **options)


def _train(out: Path, *, data, root, size, config, fresh, epochs, peak_epoch, lr_min, lr_max, width, **flags) -> dict:
    # Everything is checked before any work, and before --fresh takes anything away.
    augment = Augment(**{f.name: flags.pop(f.name) for f in dataclasses.fields(Augment)})
    recipe = Recipe(augment=augment, **flags)
    peak_epoch = epochs * 5 / 24 if peak_epoch is None else peak_epoch
    low = 1e-6 if lr_min == "find" else lr_min
    OneCycle(epochs, peak_epoch, low, low * 2 if lr_max == "find" else lr_max)
    choose_precision(choose_device(recipe.device), recipe.precision)
    with one_a_machine_first():  # it may have to download
        train_images, test_images = load_data(data, root, size)
    print(f"{train_images}\n{test_images}")
    side = min(train_images.pixels.shape[1:3])
    check("the images' side", side, side >= SMALLEST, f"{SMALLEST} pixels or more")
    right = "2 or more for images below 16 pixels, which leave BatchNorm one value per channel"
    check("batch_size", recipe.batch_size, recipe.batch_size > 1 or side >= 16, right)
    torch.manual_seed(recipe.seed)
    model = ResNet9(len(train_images.classes), width)
    found = [key for key, rate in (("lr_min", lr_min), ("lr_max", lr_max)) if rate == "find"]
    loader(train_images, recipe, torch.device("cpu"))  # for its checks
    if fresh:
        on_first(forget)(out, RANGE, *TRAINED)
    rates = find_lr(model, train_images, recipe, folder=out) if found else None
    lr_min, lr_max = (
        getattr(rates, key) if key in found else given for key, given in (("lr_min", lr_min), ("lr_max", lr_max))
    )
    for key, value in (("lr_min", lr_min), ("lr_max", lr_max)):
        print(f"{key.upper()} = {value:.3g}: {rates.reasons[key] if key in found else 'given.'}")
    if found and not lr_min < lr_max:
        raise InputError(f"the found LR_MIN, {lr_min:.3g}, is not below --lr-max {lr_max:.3g}; give --lr-min, too")
    beside = dict(zip(BESIDE, (data, root, size, width), strict=True)) | {"found": found}
    if not on_first((out / CHECKPOINT).is_file)():
        on_first(_note)(out, beside)
    run = fit(model, train_images, test_images, OneCycle(epochs, peak_epoch, lr_min, lr_max), recipe, folder=out)
    on_first(_note)(out, beside)  # where there was a checkpoint, not before: fit may refuse to go on from it
    print(run, f"Numbers and weights are in {out}", sep="\n")
    if rank() == 0:
        draw(out, run.history, run.steps, run.schedule, rates, train_images, test_images, augment, run.ema)
    return run.results


def _note(out: Path, beside: dict) -> None:
    config = read_json(out / CONFIG) if (out / CONFIG).is_file() else {}
    write_json(out / CONFIG, config | beside)


def predict(run, files, json) -> None:
    """Print what is on each photo, by the network in the folder ``run``."""
    import json as writer

    answers = dict(zip(map(str, files), classify(run, *files), strict=True))
    if json:
        print(writer.dumps(answers, indent=1))
        return
    for file, classes in answers.items():
        print(f"{file}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in list(classes.items())[:3]))


def explain(run) -> None:
    """Draw the figures of the finished run in the folder ``run`` again."""
    run = folder_of(run)
    config, results = (read_json(run / name) for name in (CONFIG, RESULTS))
    rates = LRRange.load(run / RANGE) if (run / RANGE).is_file() else None
    model = load_model(run).to(choose_device())
    try:
        data, root, size = (config[key] for key in ("data", "root", "size"))
        augment = Augment(**config["recipe"]["augment"])
        schedule = OneCycle(*(results[key] for key in ("epochs", "peak_epoch", "lr_min", "lr_max")))
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(run)!r} is not a folder that eva-utils train has finished ({error})") from error
    train_images, test_images = load_data(data, root, size)
    history, steps = read_csv(run / HISTORY), read_csv(run / STEPS)
    draw(run, history, steps, schedule, rates, train_images, test_images, augment, model)


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
        print(plots.save(figure, folder_of(out) / f"{name}.png"))


def draw(run: Path, history, steps, schedule, rates, train_images, test_images, augment, model) -> None:
    """All figures of a run into its folder."""
    probabilities = probabilities_of(model, test_images)
    mistakes = misclassified(model, test_images, probabilities).pick(25)
    figures = {
        "samples": lambda: plots.samples(train_images),
        "augmented": lambda: plots.augmented(train_images, augment),
        "lr_schedule": lambda: plots.applied(steps, schedule),
        "history": lambda: plots.history(history),
        "confusion": lambda: plots.confusion(confusion(model, test_images, probabilities)),
        "misclassified": lambda: plots.misclassified(mistakes),
        "gradcam": lambda: plots.gradcam(gradcam(model, mistakes)),
    }
    if rates:
        figures["lr_finder"] = lambda: plots.lr_range(rates)
    else:
        forget(run / FIGURES, "lr_finder.png")
    print(f"{len(plots.save_all(run / FIGURES, figures))} figures are in {run / FIGURES}")
