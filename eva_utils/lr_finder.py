"""The range test: short training at growing rates, on a copy of the network, and the two rates it gives."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from .augment import Augment
from .batches import loader, seed_for
from .checkpoint import fingerprint, plain, write_json
from .distributed import on_first
from .errors import InputError, check_recipe, differences
from .evaluation import check_model, check_trainable
from .images import Images, crc32
from .lr_curve import SMOOTH, Curve, choose_rates
from .precision import DTYPES, choose_device, choose_precision, forget_failed_step, keep_memory, seeded


@dataclass(frozen=True, eq=False)
class LRRange:
    """What a range test found: both rates, a sentence on each (``reasons``: lr_min, lr_max), the curve, its seconds."""

    lr_min: float
    lr_max: float
    reasons: dict[str, str]
    curve: Curve
    seconds: float
    settings: dict

    def save(self, path: Path) -> None:
        state = asdict(self) | {"curve": {key: value.tolist() for key, value in vars(self.curve).items()}}
        write_json(path, state)

    @classmethod
    def load(cls, path: Path) -> LRRange:
        try:
            state = json.loads(Path(path).read_text(encoding="utf8"))
            curve = Curve(**{key: np.array(value) for key, value in state.pop("curve").items()})
            return cls(curve=curve, **state)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{str(path)!r} cannot be read as a range test ({error}); delete it") from error


@on_first
def find_lr(
    model: nn.Module,
    train: Images,
    *,
    augment=Augment(),  # noqa: B008 - it is frozen
    batch_size: int = 512,
    seed: int = 0,
    lr_start: float = 1e-3,
    lr_end: float = 10.0,
    steps: int = 90,
    momentum: float = 0.9,
    weight_decay: float = 1e-3,
    label_smoothing: float = 0.0,
    precision: str = "auto",
    device: str | torch.device | None = None,
    engine: str = "batch",
    workers: int = 2,
    checkpoint: str | Path | None = None,
) -> LRRange:
    """LR_MIN and LR_MAX for ``model`` by a range test: ``steps`` steps at rates from ``lr_start`` to ``lr_end``.

    LR_MIN is the rate at which the network has begun to learn: the smoothed loss has made 20 % of its fall. LR_MAX is
    six times the rate at which half of the fall is made, but never where the loss has turned up again. The point
    at half of the fall is the same from one seed to the next; the curve's floor is flat or ragged, so that its lowest
    and its steepest point can lie anywhere, even behind a blow-up. The factor is from trainings
    (benchmarks/lr_finder.py). That one test gives both rates is L. N. Smith's idea (arXiv:1506.01186, section 3.3).

    The test works on a copy: the model, its mode, the random number generators and all else are left as they were.
    Training arguments are those of ``fit``, and should be the same ones. checkpoint: a folder; the result is kept there
    as lr_range.json, and a later call with the same arguments reads it instead of testing again. Of several processes,
    which all have to call this, rank 0 alone makes the test, with whole batches, and all get what it found.

    Raises ``InputError`` if the curve is too short, flat, or NaN from the start, and where a training with other
    arguments lies in ``checkpoint``.
    """
    check_trainable(model)
    settings = plain({
        "params": sum(p.numel() for p in model.parameters()),
        "network": fingerprint(model),
        "data": train.name, "n_train": len(train), "data_crc32": crc32(train),
        "augment": augment, "batch_size": batch_size, "seed": seed, "engine": engine,
        "lr_start": lr_start, "lr_end": lr_end, "steps": steps,
        "momentum": momentum, "weight_decay": weight_decay, "label_smoothing": label_smoothing,
    })  # fmt: skip
    if not 0 < lr_start < lr_end < np.inf:
        raise InputError(f"lr_start is {lr_start!r} and lr_end {lr_end!r}; they have to be positive and in this order")
    if steps < 3 * SMOOTH:
        raise InputError(f"steps is {steps}; a range test needs {3 * SMOOTH} or more to give a curve that can be read")
    file = None if checkpoint is None else Path(checkpoint) / "lr_range.json"
    if file and file.exists():
        kept = LRRange.load(file)
        if not (changed := differences(kept.settings, settings)):
            print(f"{file}: range test done before")
            return kept
        if file.with_name("checkpoint.pt").exists():  # it trained with these rates, and would not go on with others
            raise InputError(
                f"{str(file)!r} belongs to another configuration:\n{changed}\nchoose another folder, or delete this one"
            )

    check_recipe(momentum, weight_decay, label_smoothing)
    start = time.perf_counter()
    device = choose_device(device)
    precision = choose_precision(device, precision)
    batches = loader(train, augment, batch_size, seed=seed, device=device, engine=engine, workers=workers)
    lr, loss = range_test(
        model, batches, lr_start=lr_start, lr_end=lr_end, steps=steps, momentum=momentum, weight_decay=weight_decay,
        label_smoothing=label_smoothing, precision=precision,
    )  # fmt: skip
    rates = choose_rates(lr, loss, np.log(len(train.classes)))
    found = LRRange(*rates, seconds=time.perf_counter() - start, settings=settings)
    if file:
        found.save(file)
    return found


def range_test(
    model: nn.Module, batches, *, lr_start: float, lr_end: float, steps: int, momentum: float = 0.9,
    weight_decay: float = 1e-3, label_smoothing: float = 0.0, precision: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """torch-lr-finder's range test on a copy of ``model`` and ``batches`` (a ``loader``), without its printing.

    Rates and losses in nats, unsmoothed, as arrays of up to ``steps`` values: it stops at five times the lowest loss.
    """
    device = batches.device
    precision = choose_precision(device, precision)
    if device.type == "cpu":
        keep_memory()
    network = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    check_model(network, batches.images, precision)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=lr_start, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay
    )
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm.autonotebook's announcement, at import
        import torch_lr_finder.lr_finder as library
    from tqdm.std import tqdm

    class Endless(library.TrainDataLoaderIter):
        def __init__(self, batches):  # given, not closed over: a class lives until the next garbage collection
            self.batches = batches

        def __next__(self):
            return next(self.batches)

    def criterion(logits, y):
        return cross_entropy(logits.float(), y)  # as in training; the library calls it within autocast

    finder = library.LRFinder(
        network, optimizer, criterion, device=device, amp_backend="torch",
        amp_config={"device_type": device.type, "dtype": DTYPES[precision], "enabled": precision != "fp32"},
        grad_scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
    )  # fmt: skip

    def bar(steps):
        # The library's own bar would be a widget in a notebook, and widgets break GitHub's rendering.
        return tqdm(steps, desc="range test", unit="step", leave=False, mininterval=10, delay=10)

    with (
        forget_failed_step(),
        seeded(device, seed_for(batches.seed, 0, 1)),  # for Dropout and the like
        torch.enable_grad(),
        warnings.catch_warnings(),
        mock.patch.object(library, "tqdm", bar),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        # Unsmoothed, because smoothing is ours (centred).
        warnings.simplefilter("ignore")  # torch's, of a first step that fp16 skips
        endless = (batch for epoch in range(steps) for batch in batches.epoch(epoch))
        finder.range_test(Endless(endless), end_lr=lr_end, num_iter=steps, smooth_f=0)
    return np.array(finder.history["lr"]), np.array(finder.history["loss"])
