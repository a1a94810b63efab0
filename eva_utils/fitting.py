"""``fit``: train a network by a recipe and a schedule, into a folder, and go on there where it was stopped."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.std import tqdm

from . import __version__
from .batches import loader
from .data import Images
from .device import choose_device, choose_precision, describe, keep_memory
from .errors import InputError, check, kind
from .keeper import Keeper, check_network, identity, within
from .look import confusion, evaluate, predict
from .processes import on_first, raise_if_stopped, rank, stoppable, stopped, world_size
from .recipe import Recipe
from .run import CONFIG, RANGE, differences, exclusive, folder_of, plain, read_json, write_json
from .train import Trainer

HEADER = "epoch      rate   train loss  acc %   test loss  acc %  EMA acc %   images/s  remaining"


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training.

    model: the network with its last weights (the very object given to ``fit``). ema: a copy with the averaged weights
    and BatchNorm statistics; it is the result. Both are in eval mode. history: a dict an epoch (loss in nats, accuracy
    in per cent, seconds). steps: a dict a batch (step, epoch, planned, applied, skipped, loss). results: what
    results.json holds; ``print(run)`` says the most important of it.
    """

    model: nn.Module
    ema: nn.Module
    schedule: object
    history: list[dict]
    steps: list[dict]
    results: dict

    def __repr__(self) -> str:
        r = self.results
        lines = [
            f"Accuracy on {r['n_test']:,} test images after epoch {r['epochs']:g}, in per cent:",
            f"  {r['test_accuracy']:6.2f}  last weights",
            f"  {r['test_accuracy_ema']:6.2f}  EMA, their average: the result",
        ]
        if r["test_accuracy_ema_tta"] is not None:
            lines.append(f"  {r['test_accuracy_ema_tta']:6.2f}  EMA with the mirror image asked, too (TTA)")
        if r["recall"]:
            low = sorted(r["recall"].items(), key=lambda item: item[1])[:3]
            lines.append("Lowest recall (EMA): " + ", ".join(f"{name} {value:.1f}" for name, value in low))
        more = "the range test, " * (r["seconds_lr_finder"] > 0) + "evaluations and checkpoints"
        spent, whole = (tqdm.format_interval(r[key]) for key in ("seconds_train", "seconds_total"))
        return "\n".join([*lines, f"Time: {spent} of training, {whole} with {more}"])


@stoppable(between_steps=True)
@torch.inference_mode(False)  # also where the caller is within no_grad
def fit(
    model: nn.Module,
    train,
    test,
    schedule,
    recipe: Recipe = Recipe(),  # noqa: B008 - it is frozen
    *,
    folder: str | Path | None = None,
    fresh: bool = False,
    on_epoch=None,
) -> Run:
    """Train ``model`` in place; the rate follows ``schedule`` step by step.

    model: gives logits (n, classes) for (n, 3, h, w). What is frozen (``requires_grad_(False)``; single layers in eval
    mode, of a network in train mode) stays so. train, test: ``Images``, or iterables of (x, y) batches with a length,
    such as a ``DataLoader``; a test loader has to give the same images each time. schedule: called with the epoch (a
    float) before every step; its ``epochs`` is a whole number. on_epoch: called with each epoch's row of the history.
    folder: the run's, for history, checkpoints, weights and results. A later call with the same arguments goes on after
    the last checkpoint, and ends as if nothing had happened. A training that was stopped leaves the model as that
    checkpoint, or as it came, so the same call can be made again. fresh: forget the folder's training (not its range
    test), and start from the weights that ``model`` has.

    Under torchrun, within ``processes.process_group()``, all processes call this together: each takes its shard of
    every batch, rank 0 alone uses ``folder``, and all get the same ``Run``. Raises ``InputError`` for arguments that do
    not fit together, a folder that holds another run, and a loss that is not finite (the last checkpoint is kept).
    """
    begun = time.perf_counter()
    check("recipe", kind(recipe), isinstance(recipe, Recipe), "a Recipe, after the schedule")
    device = choose_device(recipe.device)
    precision = choose_precision(device, recipe.precision)
    folder = None if folder is None else folder_of(folder)
    if device.type == "cpu":
        keep_memory()
    with exclusive(folder) if folder and rank() == 0 else nullcontext():
        if isinstance(train, Images) and isinstance(test, Images):
            check("test", test, about(train) == about(test), f"of the classes, size, mean and std of train, {train!r}")
        named = [within(data, "classes") for data in (train, test)]
        names = [[*map(str, some)] if isinstance(some, (list, tuple)) else None for some in named]
        check("the classes of test", names[1], None in names or names[0] == names[1], f"those of train, {names[0]}")
        whole = callable(schedule) and getattr(schedule, "epochs", 0) in range(1, 10**6 + 1)
        check("schedule", schedule, whole, "a policy with a whole number of epochs, 1 or more, such as OneCycle")
        if isinstance(train, Images):
            check_network(model, train)
        batches = loader(train, recipe, device, outputs=check_network(model, test).shape[1])
        settings = identity(model, train, recipe, test, schedule)
        mine = settings | {"precision": precision, "device": device.type}
        if changed := differences(on_first(lambda: mine)(), mine):  # machines may differ in their data
            raise InputError(f"process {rank()} was given something else than process 0 (there):\n{changed}")
        trainer = Trainer(model, batches, schedule, recipe, precision)
        keeper = Keeper(trainer, settings, test, folder, fresh)
        before, model.trained_on = getattr(model, "trained_on", None), about(train)
        trainer.ema.trained_on = model.trained_on
        if folder and rank() == 0:  # enough to run it again; what else the file has stays
            config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
            policy = {"name": type(schedule).__name__, **getattr(schedule, "__dict__", {})}
            write_json(folder / CONFIG, config | {"recipe": recipe, "policy": policy})
        if trainer.history:
            begun -= trainer.history[-1]["seconds"]  # those of the calls before count, too
        if recipe.criterion is not None:
            print("The train loss is your criterion's, the test loss cross-entropy in nats: do not compare them.")
        rows = [line(row, trainer.epochs) for row in trainer.history]
        steps = f"{trainer.epochs * len(batches):,} steps"
        if still := sum(not training for _, training in trainer.modes):
            steps += f", {still} of {len(trainer.modes)} modules stay in eval mode"
        print(f"{describe(device, world_size())}, {precision}, {steps}", HEADER, *rows, sep="\n")
        on_device = test.to(device) if isinstance(test, Images) else test
        try:
            while not trainer.done:
                row = trainer.epoch() | trainer.test(on_device)
                row["seconds"] = time.perf_counter() - begun
                trainer.history.append(row)
                keeper.after_epoch()
                print(line(row, trainer.epochs), flush=True)
                raise_if_stopped()  # by a signal that came during the test
                if on_epoch and rank() == 0:
                    on_epoch(dict(row))
        except BaseException as error:
            trainer.model.load_state_dict(keeper.weights)
            model.trained_on = model.trained_on if keeper.epochs else before
            if isinstance(error, KeyboardInterrupt) or stopped:
                done = f"goes on after epoch {keeper.epochs}" if keeper.epochs else "starts over"
                epoch = min(len(trainer.history) + 1, trainer.epochs)
                print(f"\nstopped in epoch {epoch} of {trainer.epochs}; the same call {done}", flush=True)
            raise
        model.eval(), trainer.ema.eval()
        found = on_first(keeper.finish)(lambda: results(trainer, train, on_device, folder, begun), about(train))
        return Run(model, trainer.ema, schedule, trainer.history, trainer.steps, found)


def line(row: dict, epochs: int) -> str:
    """A row of the history, as it stands below HEADER."""
    left = (epochs - row["epoch"]) * row["seconds"] / row["epoch"]
    skipped = f"  {row['skipped']} step{'s' * (row['skipped'] > 1)} skipped (overflow)" if row["skipped"] else ""
    return (
        f"{row['epoch']:>5}  {row['lr']:>8.3g}  {row['train_loss']:>11.4f} {row['train_accuracy']:>6.2f}"
        f"  {row['test_loss']:>10.4f} {row['test_accuracy']:>6.2f}  {row['test_accuracy_ema']:>9.2f}"
        f"  {row['images_per_second']:>9,.0f}  {tqdm.format_interval(left):>9}{skipped}"
    )


def about(train) -> dict:
    """What model.pt says beside the weights: with it a photo can be classified without the training images."""
    keys = ("classes", "mean", "std", "image_size")
    if not isinstance(train, Images):
        return dict.fromkeys(keys)
    return plain(dict(zip(keys, (train.classes, train.mean, train.std, train.pixels.shape[1:3]), strict=True)))


def results(trainer: Trainer, train, test, folder: Path | None, begun: float) -> dict:
    """What results.json holds of a training that began at ``begun``, on the clock ``time.perf_counter``."""
    history, recipe, images, recall, tta = trainer.history, trainer.recipe, about(train), None, None
    last, options = history[-1], {"precision": trainer.precision}
    if isinstance(train, Images) and isinstance(test, Images):
        recall = confusion(trainer.ema, test, predict(trainer.ema, test, **options)).recall
        if getattr(recipe.augment, "flip", False):  # mirror images were trained on
            tta = evaluate(trainer.ema, test, tta=True, **options).accuracy
    rates = {key: getattr(trainer.schedule, key, None) for key in ("epochs", "peak_epoch", "lr_min", "lr_max")}
    found = read_json(folder / RANGE) if folder and (folder / RANGE).is_file() else {}
    used = {key: why for key, why in found.get("reasons", {}).items() if found[key] == rates[key]}
    seconds_found = found["seconds"] if used else 0.0
    return {
        "data": getattr(train, "name", None),
        **{key: images[key] for key in ("classes", "image_size")},
        "seed": recipe.seed,
        "batch_size": recipe.batch_size if isinstance(train, Images) else getattr(train, "batch_size", None),
        **rates,
        "lr_reasons": {"lr_min": "given", "lr_max": "given"} | used,
        "params": sum(p.numel() for p in trainer.model.parameters()),
        **{key: last[key] for key in ("test_accuracy", "test_accuracy_ema", "train_accuracy", "seconds_train")},
        "test_accuracy_ema_tta": tta,
        "recall": recall,
        "skipped_steps": sum(row["skipped"] for row in history),
        "seconds_total": seconds_found + time.perf_counter() - begun,
        "seconds_lr_finder": seconds_found,
        "images_per_second": trainer.facts["n_train"] * trainer.epochs / last["seconds_train"],
        **trainer.facts,
        "torch": torch.__version__,
        "version": __version__,
    }
