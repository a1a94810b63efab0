"""Which run it is, and what of a training is kept in its folder, and when."""

import copy
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import run
from .batches import plain_batches
from .data import Images, check_images
from .device import seeded
from .errors import InputError, check, first_line
from .model import device_of, forward
from .processes import on_first
from .recipe import Recipe

POINTS = 25  # at which a policy's rates are compared
SAVE_SECONDS = 20  # between two checkpoints: after each epoch of half a second they would take longer than training
HINTS = {
    "first_weights": "; make the model anew after torch.manual_seed(recipe.seed), or load_model(folder)",
    "policy.epochs": "; a one-cycle cannot be prolonged: fit(load_model(folder), ...) into a new folder trains on",
}


def check_network(model: nn.Module, data) -> torch.Tensor:
    """Logits (2, outputs) of the first weights, which have to be fit to be trained, on the classes of ``data``."""
    device_of(model)  # for its check
    parameters = list(model.parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise InputError("the model has lazy layers that have not seen an image yet; call it on a batch once")
    kinds = sorted({"inference_mode" if p.is_inference() else str(p.dtype) for p in parameters if p.requires_grad})
    right = "['torch.float32']: others lose small steps, and with none, or all frozen, there is nothing to train"
    check("the type of the parameters that can be trained", kinds, kinds == ["torch.float32"], right)
    if not all(p.isfinite().all() for p in parameters):
        raise InputError("the model has weights that are not finite, from a run that failed perhaps; make it anew")
    if isinstance(data, Images):
        check_images(data)
    return answers(model, two_of(data), len(data.classes) if isinstance(data, Images) else None)


def two_of(data) -> torch.Tensor:
    """Two of its images, as evaluation gives them to the network; of a loader that shuffles, any two."""
    with torch.random.fork_rng([]):  # a loader may draw
        return next(plain_batches(data, 2, torch.device("cpu")))[0][:2].clone()


def alike(there: torch.Tensor, here: torch.Tensor) -> bool:
    """Whether one network gave both ``answers``, on different machines perhaps, which round otherwise."""
    far = 1e-3 * float(there.nan_to_num(0, 0, 0).abs().max())
    return here.shape == there.shape and torch.allclose(here, there, rtol=0, atol=far, equal_nan=True)


def answers(model: nn.Module, x: torch.Tensor, classes: int | None = None) -> torch.Tensor:
    """Logits (2, classes) for the images ``x``: on the CPU, in fp32, in eval mode."""
    try:
        network = copy.deepcopy(model).float().cpu().eval()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of tensors with a graph that it keeps
        cure = "call it once under torch.no_grad(), or make it anew"
        raise InputError(f"the model cannot be copied ({first_line(error)}); {cure}") from error
    # Seeded for what is random in eval mode, too.
    with torch.no_grad(), torch.autocast("cpu", enabled=False), seeded(torch.device("cpu"), 0):
        return forward(network, x, classes)


def content(data):
    """What is compared of ``data``: of ``Images``, all; of a loader, what can be known before it is used up."""
    if isinstance(data, Images):
        statistics = torch.tensor([data.mean, data.std], dtype=torch.float32)
        return crc32({"pixels": data.pixels, "labels": data.labels, "mean and std": statistics})
    transform = within(data, "transform")
    return {"batches": len(data), "batch_size": getattr(data, "batch_size", None), "transform": transform}


def within(data, name: str):
    """The attribute ``name`` of loader, subset or data set: of the outermost that has it."""
    value = getattr(data, name, None)
    return within(data.dataset, name) if value is None and hasattr(data, "dataset") else value


def crc32(tensors: dict[str, torch.Tensor]) -> str:
    """Checksum of tensors, with their names and shapes."""
    crc = 0
    for name, value in tensors.items():
        is_tensor = isinstance(value, torch.Tensor)  # a module's get_extra_state may give anything
        crc = zlib.crc32(f"{name} {tuple(value.shape) if is_tensor else value}".encode(), crc)
        if is_tensor:
            crc = zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def identity(model: nn.Module, train, recipe: Recipe, test=None, schedule=None, **more) -> dict:
    """What decides the result, in what json has: compared when a call meets a folder that holds something."""
    # The share of a Dropout, say; the strides, which the optimizer's state has as well.
    layers = f"{run.without_addresses(repr(model))} {[p.stride() for p in model.parameters()]}"
    settings = {
        "recipe": recipe.compared(),
        "data": [content(data) for data in (train, test) if data is not None],
        "first_weights": crc32(model.state_dict()),
        "params": [sum(p.numel() for p in model.parameters() if p.requires_grad is grad) for grad in (True, False)],
        "layers": f"{zlib.crc32(layers.encode()):08x}",
        **more,
    }
    if schedule is not None:
        end = np.nextafter(schedule.epochs, 0)  # training asks for no later one
        rates = [float(f"{schedule(float(epoch)):.12g}") for epoch in np.linspace(0, end, POINTS)]
        settings["policy"] = {"name": type(schedule).__name__, "epochs": schedule.epochs, "rates": rates}
    return run.plain(settings)


class Keeper:
    """Keeps what ``trainer`` has done: in ``folder``, if there is one; after a stop, in the model.

    settings: what has to be the same for a call to go on (``identity``) from the folder's checkpoint, if there is one
    and ``fresh`` does not forget it.
    """

    def __init__(self, trainer, settings: dict, test, folder: Path | None, fresh: bool) -> None:
        self.trainer, self.settings, self.folder = trainer, settings, folder
        self.asked = two_of(test) if folder else None  # tell networks apart
        if folder and (state := on_first(self._stored)(fresh)):
            self._compare(state)
            trainer.load_state_dict(state)
            rest = "finished, nothing to compute" if trainer.done else f"going on after epoch {len(trainer.history)}"
            print(f"{folder / run.CHECKPOINT}: {rest}")
        self.mark()

    def mark(self) -> None:
        """The last checkpoint, or the beginning: when, after how many epochs, and the weights to put back at a stop."""
        self.when, self.epochs = time.perf_counter(), len(self.trainer.history)
        self.weights = copy.deepcopy(self.trainer.model.state_dict())

    def _stored(self, fresh: bool) -> dict | None:
        file = self.folder / run.CHECKPOINT
        if fresh:
            left = ", which a training has left" if getattr(self.trainer.model, "trained_on", None) else ""
            print(f"{self.folder}: starting over from the model's weights{left}")
        elif file.is_file():
            state = run.read_tensors(file)
            check(str(file), sorted(state), "asked" in state, "a checkpoint of this version; delete it")
            return state
        run.forget(self.folder, *(run.TRAINED if fresh else [run.RESULTS]))  # the latter marks a finished run

    def _compare(self, state: dict) -> None:
        """The model may have the run's first weights, or those that it was stopped or finished with."""
        there, here = state["settings"], self.settings
        if here["first_weights"] == crc32(state["model"]):  # the next checkpoint, too, says what the run began with
            here["first_weights"] = there["first_weights"]
        changed = run.differences(there, here)
        if not changed:
            self.trainer.ema.load_state_dict(state["ema"])
            if not alike(state["computes"], answers(self.trainer.ema, state["asked"])):
                changed = "  what the network computes: another forward() with the same weights"
        if changed:
            raise InputError(
                f"{str(self.folder)!r} holds another run:\n{changed}\nchoose another folder, or start over with "
                "fresh=True (--fresh)" + "".join(hint for key, hint in HINTS.items() if key in changed)
            )

    def after_epoch(self) -> None:
        """Write a checkpoint, if one is due, and the history."""
        if self.folder is None:
            return
        if self.trainer.done or on_first(lambda: time.perf_counter() - self.when >= SAVE_SECONDS)():
            on_first(self._save)()
            self.mark()
        # After the checkpoint: what is put back has to be what it holds, even if this fails.
        on_first(run.write_csv)(self.folder / run.HISTORY, self.trainer.history)

    def _save(self) -> None:
        state = {"settings": self.settings, **self.trainer.state_dict()}
        # The EMA, which is never in train mode: what a network keeps of a pass there has a graph, and cannot be copied.
        state |= {"asked": self.asked, "computes": answers(self.trainer.ema, self.asked)}
        run.write_tensors(self.folder / run.CHECKPOINT, state)

    def finish(self, results: Callable[[], dict], about: dict) -> dict:
        """The results; with a folder, they are in it, beside model.pt, which tells ``about`` the images, too."""
        if self.folder is None:
            return results()
        ema = getattr(self.trainer.ema, "_orig_mod", self.trainer.ema)  # the network that torch.compile has wrapped
        weights = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in ema.state_dict().items()}
        run.write_tensors(self.folder / run.MODEL, {"weights": weights, **about})
        run.write_csv(self.folder / run.HISTORY, self.trainer.history)
        run.write_csv(self.folder / run.STEPS, self.trainer.steps)
        file = self.folder / run.RESULTS
        if not file.is_file() or run.read_json(file).get("classes") != about["classes"]:  # which may get other names
            # Last, since it marks a finished run.
            run.write_json(file, results())
        return run.read_json(file)
