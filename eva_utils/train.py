"""Training: ``fit`` follows a schedule step by step, records what it applied, and goes on where it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import checkpoint as checkpoints
from . import distributed
from .augment import Augment
from .batches import loader, to_device
from .errors import InputError, check_recipe
from .evaluation import check_model, check_trainable
from .images import Images, check_labels, crc32
from .model import ResNet9
from .precision import choose_device, choose_precision, keep_memory
from .schedule import OneCycle
from .trainer import Trainer


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training.

    model: the network with its last weights (the very object given to ``fit``). ema: a copy with the averaged weights
    and BatchNorm statistics. Both are in eval mode. history: a dict an epoch (loss in nats, accuracy in per cent,
    seconds since the start). steps: a dict a batch (step, epoch, planned, applied, skipped, loss); an fp16 overflow
    skips the step, and the schedule waits. settings: what the run depended on.
    """

    model: nn.Module
    ema: nn.Module
    schedule: object
    history: list[dict]
    steps: list[dict]
    settings: dict
    device: str
    precision: str
    seconds_total: float
    seconds_train: float
    images_per_second: float


def fit(
    model: nn.Module,
    train: Images,
    test: Images,
    schedule,
    *,
    augment=Augment(),  # noqa: B008 - it is frozen
    batch_size: int = 512,
    seed: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 1e-3,
    label_smoothing: float = 0.0,
    ema: float = 0.05,
    precision: str = "auto",
    device: str | torch.device | None = None,
    engine: str = "batch",
    workers: int = 2,
    checkpoint: str | Path | None = None,
    fresh: bool = False,
) -> Run:
    """Train ``model`` with SGD and Nesterov momentum; the rate follows ``schedule`` step by step.

    model: any module that gives logits (n, classes) for (n, 3, h, w); it is trained in place.
    schedule: a dataclass with ``epochs``, such as ``OneCycle``; called with the epoch (a float) before every step.
    augment, batch_size, engine, workers: see ``batches.loader``. All of an epoch's randomness is a function of
        ``seed`` and the epoch.
    ema: time constant of the weights' exponential moving average, as a share of the steps so far (in essence the
        power function EMA of T. Karras et al., arXiv:2312.02696, whose gamma is 1 / ema - 1). The average is evaluated
        beside the weights themselves, and BatchNorm statistics are averaged too.
    precision, device: see the module ``precision``; chosen by what is there.
    checkpoint: a folder. The state is saved there after each epoch, and a later call with the same arguments goes on
        from it; with ``fresh`` it starts over.

    Under torchrun, within ``distributed.process_group()``, all processes call this together: each takes its shard of
    every batch (``batch_size`` is that of the whole), rank 0 alone uses ``checkpoint``, and all get the same ``Run``.

    The test images are only looked at: the result is the last epoch's, whatever came before.
    Raises ``InputError`` for arguments that do not fit together, for a checkpoint that is damaged or belongs to another
    configuration, and if the loss stops being finite (the last checkpoint is kept).
    """
    check_recipe(momentum, weight_decay, label_smoothing, ema)
    check_trainable(model)
    device = choose_device(device)
    precision = choose_precision(device, precision)
    if device.type == "cpu":
        keep_memory()
    batches = loader(train, augment, batch_size, seed=seed, device=device, engine=engine, workers=workers,
                     shard=(distributed.rank(), distributed.world_size()))  # fmt: skip
    if train.classes != test.classes:
        raise InputError(f"train and test do not belong together: classes {train.classes} and {test.classes}")
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise InputError(f"train and test do not belong together: {train!r} and {test!r}")
    check_labels(train)
    epochs = getattr(schedule, "epochs", None)
    if epochs is None or epochs != int(epochs) or not dataclasses.is_dataclass(schedule):
        raise InputError(
            f"schedule is {schedule!r}; it has to be a dataclass with a whole number of epochs, like OneCycle"
        )
    settings = checkpoints.plain({
        "data": train.name,
        "n_train": len(train),
        "n_test": len(test),
        "data_crc32": crc32(train, test),
        "params": sum(p.numel() for p in model.parameters()),
        "network": checkpoints.fingerprint(model),
        "policy": type(schedule).__name__,
        **{f"schedule.{key}": value for key, value in dataclasses.asdict(schedule).items()},
        "augment": augment,
        "engine": engine,
        "batch_size": batch_size,
        "seed": seed,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "ema": ema,
    })  # fmt: skip
    _check_agreement({**settings, "precision": precision, "device": device.type})
    with contextlib.ExitStack() as held:
        if checkpoint is not None:
            distributed.on_first(held.enter_context)(checkpoints.exclusive(Path(checkpoint)))
        return _fit(model, train, test, schedule, settings, batches, precision, checkpoint, fresh)


def _fit(model, train, test, schedule, settings, batches, precision, checkpoint, fresh) -> Run:
    device = batches.device
    trainer = Trainer(model, batches, schedule, settings, precision)
    file = None if checkpoint is None else Path(checkpoint) / "checkpoint.pt"
    if file and (state := distributed.on_first(_stored)(file, fresh)):
        trainer.load_state_dict(state, file)
        before, now = state.get("processes", 1), distributed.world_size()
        change = f", {before} process{'es' * (before > 1)} so far, {now} from here on" if before != now else ""
        done = trainer.epoch == trainer.epochs
        rest = "finished, nothing to compute" if done else f"going on after epoch {trainer.epoch}{change}"
        print(f"{file}: {rest}")
    if not all(p.isfinite().all() for p in trainer.model.parameters()):
        raise InputError("the model has weights that are not finite, from a run that failed perhaps; make it anew")
    check_model(trainer.model, test, precision)
    trainer.run(to_device(test, device), file, fresh)
    seconds = trainer.seconds
    return Run(
        model=trainer.model.eval(),
        ema=trainer.ema.eval(),
        schedule=schedule,
        history=trainer.history,
        steps=trainer.steps,
        settings=settings,
        **trainer.where,
        seconds_total=seconds["total"],
        seconds_train=seconds["train"],
        images_per_second=len(train) * trainer.epochs / seconds["train"],
    )


def _stored(file: Path, fresh: bool) -> dict | None:
    return checkpoints.load(file) if file.exists() and not fresh else None


def _check_agreement(mine: dict) -> None:
    """Raises InputError unless all processes are about to do the same: machines may differ in their data."""
    first = distributed.on_first(lambda: mine)()
    for key, value in first.items():
        if repr(mine.get(key)) != repr(value):  # NaN is not equal to itself
            raise InputError(
                f"{key} is {value!r} in process 0 and {mine.get(key)!r} in process {distributed.rank()}; "
                "all have to be given the same"
            )


def estimate(epochs: int = 24, width: int = 64, images: int = 50_000) -> None:
    """Print about how long ``find_lr`` and ``fit`` take for ``epochs`` epochs of ``images`` 32 x 32 images here.

    Two short epochs on random pixels are trained for it, which takes some seconds, and the second one is timed. There
    are a fifth as many test images as training images, as in CIFAR-10, and the range test counts as one more epoch.
    """
    device = choose_device()
    n = 4096 if device.type == "cuda" else 256
    with torch.random.fork_rng([]), contextlib.redirect_stdout(io.StringIO()):
        pixels, labels = torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8), torch.arange(n) % 10
        some = Images(pixels, labels, tuple("0123456789"), (0.5,) * 3, (0.3,) * 3)
        history = fit(
            ResNet9(10, width), some, some[: n // 5], OneCycle(2, 1, 1e-6, 2e-6), batch_size=min(n, 512)
        ).history
    minutes = (history[1]["seconds"] - history[0]["seconds"]) * (epochs + 1) * images / n / 60
    long = f"{minutes / 60:.0f} hours" if minutes > 100 else f"{max(1, minutes):.0f} minute{'s' * (minutes >= 1.5)}"
    print(f"{epochs} epochs of {images:,} images at width {width} take about {long} here")
    if device.type == "cpu":
        print("There is no CUDA GPU here.", end=" ")
        print(
            "Runtime > Change runtime type > T4 GPU." if "COLAB_RELEASE_TAG" in os.environ else "QUICK = True is quick."
        )
