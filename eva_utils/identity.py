"""What makes a run this run and no other: recipe, rates, pixels, first weights, what the network computes."""

from __future__ import annotations

import copy
import zlib

import numpy as np
import torch
from torch import nn

from .batches import plain_batches
from .data import Images, check_labels, crc32
from .errors import InputError, check, first_line
from .look import predict
from .processes import on_first, rank
from .recipe import Recipe
from .run import differences, plain

EPOCHS = 25  # at so many points a policy's rates are compared
TOLERANCE = 1e-3  # relative: a network computes the same on another machine, but for rounding


def check_network(model: nn.Module, data, recipe: Recipe) -> None:
    """Raises ``InputError`` unless ``model`` can be trained, and gives a logit for each class of ``data``."""
    parameters = list(model.parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise InputError("the model has lazy layers that have not seen an image yet; call it on a batch once")
    check("number of parameters that can be trained", sum(p.requires_grad for p in parameters),
          any(p.requires_grad for p in parameters), "1 or more; all are frozen, or there are none")  # fmt: skip
    kinds = {str(p.dtype) for p in parameters if p.requires_grad} - {"torch.float32"}
    check("the type of the parameters", ", ".join(kinds), not kinds, "torch.float32: small steps are lost in others")
    if isinstance(data, Images):
        check_labels(data)
        predict(model, data[:2], precision="fp32")


def check_pair(train, test, schedule) -> None:
    """Raises ``InputError`` unless the data belong together and the schedule has an end."""
    if isinstance(train, Images) and isinstance(test, Images):
        together = train.classes == test.classes and train.pixels.shape[1:] == test.pixels.shape[1:]
        check("test", test, together, f"of the classes and size of train, which is {train!r}")
    epochs = getattr(schedule, "epochs", None)
    right = "a policy with a whole number of epochs, such as OneCycle"
    check("schedule", schedule, callable(schedule) and epochs is not None and epochs == int(epochs), right)


def weights_crc(model: nn.Module) -> str:
    """Checksum of parameters and buffers."""
    crc = 0
    for value in model.state_dict().values():
        crc = zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def identity(model: nn.Module, train, recipe: Recipe, test=None, schedule=None, **more) -> dict:
    """What decides the result, in what json has: compared when a call meets a folder that holds something."""
    splits = [data for data in (train, test) if data is not None]
    settings = {
        "recipe": recipe.compared(),
        "data": crc32(*splits) if all(isinstance(s, Images) for s in splits) else [f"{len(s)} batches" for s in splits],
        "first_weights": weights_crc(model),
        "params": sum(p.numel() for p in model.parameters()),
        **more,
    }
    if schedule is not None:
        rates = [float(f"{schedule(float(epoch)):.12g}") for epoch in np.linspace(0, schedule.epochs, EPOCHS)]
        settings["policy"] = {"name": type(schedule).__name__, "epochs": schedule.epochs, "rates": rates}
    return plain(settings)


def answers(model: nn.Module, data) -> list[list[float]]:
    """What the network computes of fixed pixels: on the CPU, in fp32, in eval mode."""
    if isinstance(data, Images):
        shape = (3, *data.pixels.shape[1:3])
    else:
        with torch.random.fork_rng([]):
            shape = next(iter(plain_batches(data, 1, torch.device("cpu"))))[0].shape[1:]
    network = copy.deepcopy(model).to("cpu", torch.float32).eval()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return network(x).tolist()
    except (RuntimeError, AttributeError) as error:
        raise InputError(f"the model cannot take a batch of {tuple(x.shape)}: {first_line(error)}") from error


def same_answers(model: nn.Module, data, there: list) -> bool:
    here, there = torch.tensor(answers(model, data)), torch.tensor(there)
    return here.shape == there.shape and bool((here - there).abs().max() <= TOLERANCE * there.abs().max())


def check_agreement(mine: dict) -> None:
    """Raises ``InputError`` unless all processes are about to do the same: machines may differ in their data."""
    first = on_first(lambda: mine)()
    if changed := differences(first, mine):
        raise InputError(f"process {rank()} was given something else than process 0 (there):\n{changed}")
