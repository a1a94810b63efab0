"""What a model makes of images: probabilities, accuracy, loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .batches import plain_batches
from .distributed import rank, total, world_size
from .errors import InputError, check
from .images import Images, check_labels
from .precision import autocast, choose_precision

BATCH = 1000  # of 32 x 32 pixels; of larger images as many fewer


@dataclass(frozen=True)
class Metrics:
    """accuracy: per cent of ``n`` images; loss: mean cross-entropy in nats; correct: how many.

    (Losses in ``Run.history`` are with the training's label smoothing, those of ``evaluate`` with its own argument.)
    """

    accuracy: float
    loss: float
    correct: int
    n: int


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in eval mode; each of its modules gets its own mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@torch.inference_mode()
def _logits(model: nn.Module, images: Images, tta: bool, precision: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    device = next(model.parameters()).device
    precision = choose_precision(device, precision)
    with eval_mode(model):
        size = BATCH * 32 * 32 // (images.pixels.shape[1] * images.pixels.shape[2])
        for x, y in plain_batches(images, min(BATCH, max(1, size)), device):
            # Autocast around the network alone: left open over a yield, it makes a CPU three times slower.
            with autocast(device, precision):
                logits = model(x)
                if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
                    what = f"{type(logits).__name__} {tuple(getattr(logits, 'shape', ()))}"
                    raise InputError(f"the model gives a {what}; it has to give a tensor of logits (n, classes)")
                logits = logits.float()
                if tta:
                    logits = (logits + model(x.flip(3)).float()) / 2
            yield logits, y


def predict(model: nn.Module, images: Images, *, tta: bool = False, precision: str = "auto") -> torch.Tensor:
    """Softmax probabilities, float32 (n, classes) on the CPU.

    With ``tta`` (test-time augmentation) the logits of each image and of its mirror image are averaged first. The model
    runs on the device it is on, in eval mode, and is left as it was.
    """
    check("images", type(images).__name__, isinstance(images, Images), "Images")
    if not len(images):
        raise InputError("there are no images to predict")
    parts = []
    # No comprehension: after an error its frame would keep the generator, and with it eval mode and autocast, alive.
    for logits, _ in _logits(model, images, tta, precision):
        parts.append(logits.softmax(1).cpu())
    return torch.cat(parts)


def check_trainable(model: nn.Module) -> None:
    """Raises ``InputError`` unless ``model`` has parameters, known in size, and some of them can be trained."""
    parameters = list(model.parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise InputError("the model has lazy layers that have not seen an image yet; call it on a batch once")
    if not any(p.requires_grad for p in parameters):
        frozen = "are all frozen (requires_grad is False)" if parameters else "do not exist"
        raise InputError(f"the model's parameters {frozen}; there is nothing to train")


def check_model(model: nn.Module, images: Images, precision: str) -> None:
    """Raises ``InputError`` unless ``model`` gives a logit for each class of ``images`` and no more, and the labels are
    of these classes: a label beyond the outputs would end a GPU's process, and an output beyond them has no name."""
    check_labels(images)
    try:
        outputs = predict(model, images[:2], precision=precision).shape[1]
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        raise InputError(
            "the model uses view() on images or feature maps, which are in channels_last memory here; "
            "use flatten(1) or reshape()"
        ) from error
    if outputs != len(images.classes):
        raise InputError(f"the model has {outputs} outputs; the data have {len(images.classes)} classes")


def evaluate(
    model: nn.Module,
    images: Images,
    *,
    tta: bool = False,
    label_smoothing: float = 0.0,
    precision: str = "auto",
    sharded: bool = False,
) -> Metrics:
    """Accuracy and loss on ``images``; each counts once. ``tta`` as in ``predict``.

    sharded: each process of a group takes its share of the images, and all get the whole result, so all have to call
    it. Otherwise a process does the work alone.
    """
    if not len(images):
        raise InputError("there are no images to evaluate on")
    device = next(model.parameters()).device
    loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    part = images[rank() :: world_size()] if sharded else images
    for logits, y in _logits(model, part, tta, precision):
        loss += nn.functional.cross_entropy(logits, y, reduction="sum", label_smoothing=label_smoothing)
        correct += (logits.argmax(1) == y).sum()
    if sharded:
        loss, correct = total(loss), total(correct)
    n, correct = len(images), int(correct)
    return Metrics(accuracy=100 * correct / n, loss=float(loss) / n, correct=correct, n=n)
