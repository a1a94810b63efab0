"""What makes a run this run and no other: recipe, rates, pixels, first weights, what the network computes."""

import copy
import zlib

import numpy as np
import torch
from torch import nn

from .batches import plain_batches
from .data import Images, check_images
from .device import seeded
from .errors import InputError, check
from .model import device_of, forward
from .recipe import Recipe
from .run import plain, without_addresses

POINTS = 25  # at which a policy's rates are compared


def check_network(model: nn.Module, data, recipe: Recipe) -> int:
    """How many outputs ``model`` has. Raises ``InputError`` unless it can be trained, on the classes of ``data``."""
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
    logits = answers(model, data)
    sums_to_one = logits.shape[1] > 1 and logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-4
    if sums_to_one and recipe.criterion is None:
        raise InputError("the model gives probabilities; it has to give logits: leave out the softmax, the loss has it")
    return logits.shape[1]


def answers(model: nn.Module, data, weights: dict | None = None) -> torch.Tensor:
    """Logits (2, classes) for noise in the shape of ``data``: on the CPU, in fp32, in eval mode, with ``weights``."""
    with torch.random.fork_rng([]):  # a loader may draw
        x = next(plain_batches(data, 2, torch.device("cpu")))[0][:2]
    x = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(0))
    network = copy.deepcopy(model).to("cpu", torch.float32).eval()
    if weights:
        network.load_state_dict(weights)
    # Seeded for what is random in eval mode, too.
    with torch.no_grad(), torch.autocast("cpu", enabled=False), seeded(torch.device("cpu"), 0):
        return forward(network, x, len(data.classes) if isinstance(data, Images) else None)


def same_answers(model: nn.Module, data, weights: dict, there: torch.Tensor) -> bool:
    """Whether ``model`` with ``weights`` computes what it did there: to 0.1 %, as another machine rounds otherwise."""
    here = answers(model, data, weights)
    far = 1e-3 * float(there.nan_to_num(0, 0, 0).abs().max())
    return here.shape == there.shape and torch.allclose(here, there, rtol=0, atol=far, equal_nan=True)


def content(data):
    """What is compared of ``data``: of ``Images``, all; of a loader, what can be known before it is used up."""
    if isinstance(data, Images):
        statistics = torch.tensor([data.mean, data.std], dtype=torch.float32)
        return crc32({"pixels": data.pixels, "labels": data.labels, "mean and std": statistics})
    transform = getattr(getattr(data, "dataset", None), "transform", None)
    return {"batches": len(data), "batch_size": getattr(data, "batch_size", None), "transform": transform}


def crc32(tensors: dict[str, torch.Tensor]) -> str:
    """Checksum of tensors, with their names and shapes."""
    crc = 0
    for name, value in tensors.items():
        crc = zlib.crc32(f"{name} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def identity(model: nn.Module, train, recipe: Recipe, test=None, schedule=None, **more) -> dict:
    """What decides the result, in what json has: compared when a call meets a folder that holds something."""
    settings = {
        "recipe": recipe.compared(),
        "data": [content(data) for data in (train, test) if data is not None],
        "first_weights": crc32(model.state_dict()),
        "params": [sum(p.numel() for p in model.parameters() if p.requires_grad is grad) for grad in (True, False)],
        "layers": f"{zlib.crc32(without_addresses(repr(model)).encode()):08x}",  # the share of a Dropout, say
        **more,
    }
    if schedule is not None:
        rates = [float(f"{schedule(float(epoch)):.12g}") for epoch in np.linspace(0, schedule.epochs, POINTS)]
        settings["policy"] = {"name": type(schedule).__name__, "epochs": schedule.epochs, "rates": rates}
    return plain(settings)
