"""The range test: the training's own step at growing rates, undone at the end; the two rates read off it."""

import contextlib
import copy
import gc
import io
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.std import tqdm

from .batches import Batches, loader, seed_for
from .data import Images
from .device import choose_device, choose_precision, keep_memory, seeded
from .errors import InputError, check, kind
from .keeper import alike, check_network, identity
from .lr_curve import BARE, SMOOTH, STOPS, LRRange, read_curve
from .processes import on_first, raise_if_stopped, stoppable
from .recipe import Recipe
from .run import CHECKPOINT, RANGE, differences, exclusive, folder_of, write_json
from .schedule import ratios
from .train import set_rate, set_train_mode, step


@on_first
@stoppable(between_steps=True)
def find_lr(
    model: nn.Module,
    train,
    recipe: Recipe = Recipe(),  # noqa: B008 - it is frozen
    *,
    folder: str | Path | None = None,
    lr_start: float | None = None,
    lr_end: float | None = None,
    steps: int = 90,
) -> LRRange:
    """LR_MIN and LR_MAX for ``model`` by a range test: training steps at growing rates, which are undone.

    Gives ``lr_min``, ``lr_max``, the ``reasons`` for both, and the ``curve``. LR_MAX is six times the rate at half of
    the loss's fall, LR_MIN the rate at a fifth of it; docs/rates.md says more. That one test gives both is L. N.
    Smith's idea (arXiv:1506.01186, section 3.3).

    train: ``Images``, or any iterable of (x, y) batches with a length. lr_start, lr_end: by default 0.001 to 10 for
    SGD, 0.00001 to 0.1 for other optimizers; the rule was measured on these, in 90 steps. steps: 33 or more.
    folder: a run's; the result is kept there, and a later call with the same arguments reads it. Of several
    processes, which all have to call this, rank 0 alone makes the test, with whole batches.

    Raises ``InputError`` if the curve cannot be read, or if ``folder`` holds a training with other arguments, from
    other first weights or of another network.
    """
    check("recipe", kind(recipe), isinstance(recipe, Recipe), "a Recipe, after the training data")
    logits = check_network(model, train)
    optimizer = recipe.make_optimizer(model.parameters())
    low, high = (1e-3, 10.0) if isinstance(optimizer, torch.optim.SGD) else (1e-5, 0.1)
    start, end = low if lr_start is None else lr_start, high if lr_end is None else lr_end
    right = isinstance(start, Real) and isinstance(end, Real) and 0 < start < end < math.inf
    check("lr_start and lr_end", (start, end), right, "positive numbers in this order")
    check("steps", steps, isinstance(steps, Integral) and steps >= 3 * SMOOTH, f"a whole number, {3 * SMOOTH} or more")
    computes = logits.tolist() if isinstance(train, Images) else None  # a loader may give others next time
    settings = identity(model, train, recipe, lr_start=start, lr_end=end, steps=steps, computes=computes)
    file = None if folder is None else folder_of(folder) / RANGE
    with exclusive(file.parent) if file else contextlib.nullcontext():
        if file and file.exists():
            kept = LRRange.load(file)
            if computes and alike(torch.tensor(kept.settings.get("computes") or [[0.0]]), logits):
                settings["computes"] = kept.settings["computes"]
            if not (changed := differences(kept.settings, settings)):
                print(f"{file}: range test done before")
                return kept
            if file.with_name(CHECKPOINT).exists():  # a training used these rates, and does not go on with others
                anew = ", or make the model anew after torch.manual_seed(seed)" * ("first_weights" in changed)
                cure = f"choose another folder, or empty this one (--fresh does){anew}"
                raise InputError(f"{str(file)!r} belongs to another run:\n{changed}\n{cure}")
        begun = time.perf_counter()
        # With a criterion, what the labels are is its business: a regression's, say.
        outputs = logits.shape[1] if recipe.criterion is None else None
        guess = math.log(outputs) if outputs else math.inf
        # weight_norm's modules, of torch.nn.utils, normalise weights.
        names = [type(m).__name__ for m in model.modules() if not type(m).__module__.startswith("torch.nn.utils")]
        bare = isinstance(optimizer, torch.optim.SGD) and not any("Norm" in name for name in names)
        curve = range_test(model, train, recipe, start, end, steps, outputs)
        gc.collect()  # the library leaves the optimizer, and the weights in it, in circles
        found = read_curve(*curve, guess, BARE if bare else 1.0)
        found = replace(found, seconds=time.perf_counter() - begun, settings=settings)
        if file:
            write_json(file, found)
    return found


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` works on copies of its tensors; at the end it is what it was.

    The model itself, not a copy: the recipe's ``optimizer`` may know its parameters one by one, in a hook perhaps.
    """
    dicts = [d for m in model.modules() for d in (vars(m), *vars(m).values()) if isinstance(d, dict)]
    before = [dict(d) for d in dicts]
    tensors = [(t, t.data, t.grad) for t in (*model.parameters(), *model.buffers())]
    try:
        for tensor, data, _ in tensors:
            tensor.data, tensor.grad = data.clone(), None
        yield
    finally:
        for tensor, data, grad in tensors:
            tensor.data, tensor.grad = data, grad
        for d, values in zip(dicts, before, strict=True):
            d.clear(), d.update(values)


@torch.inference_mode(False)  # also where the caller is within no_grad
def range_test(model: nn.Module, train, recipe: Recipe, lr_start: float, lr_end: float, steps: int, outputs=None):
    """Rates and losses, arrays of up to ``steps``, of torch-lr-finder's range test of ``model``, in the training's own
    steps; it stops at five times the lowest loss."""
    with warnings.catch_warnings(action="ignore"):  # tqdm.autonotebook's announcement
        import torch_lr_finder.lr_finder as library

    # The library's own bar would be a widget in a notebook, and widgets break GitHub's rendering.
    library.tqdm = partial(tqdm, desc="range test", unit="step", leave=False, mininterval=10, delay=10)

    device = choose_device(recipe.device)
    precision = choose_precision(device, recipe.precision)
    if device.type == "cpu":
        keep_memory()
    batches = loader(train, recipe, device, shard=(0, 1), outputs=outputs)

    class Finder(library.LRFinder):
        def _train_batch(self, train_iter, accumulation_steps, non_blocking_transfer=True):
            raise_if_stopped()
            set_rate(self.optimizer, self.optimizer.param_groups[0]["lr"], self.shares)
            x, y = next(train_iter)
            return step(self.model, self.optimizer, self.scaler, recipe, x, y, precision)[0].item()

    endless = library.TrainDataLoaderIter(_large(batch for epoch in range(steps) for batch in batches.epoch(epoch)))
    with (
        contextlib.ExitStack() as at_last,
        untouched(model),
        seeded(device, seed_for(recipe.seed, 0, 1)),  # for Dropout and the like
        warnings.catch_warnings(action="ignore"),  # torch's, of a first step that fp16 skips
        contextlib.redirect_stdout(io.StringIO()),
    ):
        set_train_mode(model.to(device))
        optimizer = recipe.make_optimizer(model.parameters())
        at_last.callback(optimizer.load_state_dict, copy.deepcopy(optimizer.state_dict()))  # it may be the user's own
        finder = Finder(model, optimizer, criterion=None, device=device)
        # Attributes, since a kept error would keep what a closure holds.
        finder.scaler, finder.shares = torch.amp.GradScaler(device.type, enabled=precision == "fp16"), ratios(optimizer)
        finder.range_test(endless, None, lr_start, lr_end, steps, smooth_f=0, diverge_th=STOPS)  # smoothing is ours
    return np.array(finder.history["lr"]), np.array(finder.history["loss"])


def _large(batches) -> Batches:
    """Without what is left over in the end of an epoch: the loss of two images could end the test."""
    most = 0
    for x, y in batches:
        most = max(most, len(y))
        if 4 * len(y) >= most:
            yield x, y
