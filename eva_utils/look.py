"""Looking at a network: accuracy, probabilities, confusions, mistakes, one photo."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .batches import plain_batches
from .data import Images, check_images, check_labels, rows
from .device import autocast, choose_precision
from .errors import InputError, check
from .model import ResNet9, device_of, forward
from .photos import photo, read_photos
from .processes import rank, total, world_size
from .run import MODEL, folder_of, read_tensors

BATCH = 1000  # of 32 x 32 pixels; of larger images as many fewer


@dataclass(frozen=True)
class Metrics:
    """accuracy: per cent of ``n`` images; loss: mean cross-entropy in nats; correct: how many."""

    accuracy: float
    loss: float
    correct: int
    n: int


def check_trained_on(model: nn.Module, images: Images) -> None:
    """Raises ``InputError`` if ``model`` says that it was trained on other classes, sizes or channel statistics."""
    there = getattr(model, "trained_on", None)
    if isinstance(there, dict) and there.get("classes"):
        here = {"image_size": images.pixels.shape[1:3], "mean": images.mean, "std": images.std}
        differ = ["classes"] * (list(images.classes) != there["classes"])
        differ += [key for key, numbers in here.items() if not np.allclose(there[key], numbers, atol=1e-3)]
        if differ:
            cure = "give it images like those, or, to use these all the same, set model.trained_on = None"
            raise InputError(f"the images have another {' and '.join(differ)} than those trained on; {cure}")


def _logits_of(model: nn.Module, data, tta: bool, precision: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits, labels) batch by batch, in eval mode, on the model's device; the model is left as it was."""
    device = device_of(model)
    precision, size, classes = choose_precision(device, precision), 1, None
    if isinstance(data, Images):
        height, width = data.pixels.shape[1:3]
        size, classes = min(BATCH, max(1, BATCH * 32 * 32 // (height * width))), len(data.classes)
        check_trained_on(model, data)
    modes = [(module, module.training) for module in model.modules()]
    for x, y in plain_batches(data, size, device):
        model.eval()
        try:
            # Nothing is left open over a yield: an open autocast makes a CPU three times slower.
            with torch.no_grad(), autocast(device, precision):  # what a network keeps, it may train with later
                logits = forward(model, x, classes)
                if tta:
                    logits = (logits + forward(model, x.flip(3), classes)) / 2
        finally:
            for module, training in modes:
                module.training = training
        check("number of the model's outputs", logits.shape[1], logits.shape[1] > 1, "2 or more: one a class")
        yield logits, y


def predict(model: nn.Module, images, *, tta=False, precision="auto") -> torch.Tensor:
    """Softmax probabilities, float32 (n, classes) on the CPU, of ``Images`` or of a loader's batches.

    With ``tta`` (test-time augmentation) the logits of each image and of its mirror image are averaged first. The model
    runs on the device it is on, in eval mode, and is left as it was.
    """
    parts = [logits.softmax(1).cpu() for logits, _ in _logits_of(model, images, tta, precision)]
    check("number of images", len(parts), len(parts) > 0, "1 or more")
    return torch.cat(parts)


def evaluate(model: nn.Module, images, *, tta=False, label_smoothing=0.0, precision="auto", sharded=False) -> Metrics:
    """Accuracy and loss on ``Images`` or on a loader's batches; each image counts once. ``tta`` as in ``predict``.

    sharded: each process of a group takes its share of the images, and all get the whole result, so all have to call
    it. Otherwise a process does the work alone.
    """
    device = device_of(model)
    loss, counts = torch.zeros((), device=device), torch.zeros(2, dtype=torch.int64, device=device)
    part = images[rank() :: world_size()] if sharded and world_size() > 1 else images
    for logits, y in _logits_of(model, part, tta, precision):
        check_labels(y, logits.shape[1])
        loss += nn.functional.cross_entropy(logits, y, reduction="sum", label_smoothing=label_smoothing)
        counts += torch.stack([(logits.argmax(1) == y).sum(), torch.ones_like(y).sum()])
    if sharded:
        loss, counts = total(loss), total(counts)
    correct, n = counts.tolist()
    check("number of images", n, n > 0, "1 or more")
    return Metrics(accuracy=100 * correct / n, loss=float(loss) / n, correct=correct, n=n)


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts[i, j]: how many images of class i were taken for class j; int64 array (classes, classes)."""

    counts: np.ndarray
    classes: tuple[str, ...]

    @property
    def recall(self) -> dict[str, float]:
        """The share of each class's images that were recognised, in per cent; without the classes that have none."""
        right = zip(self.classes, self.counts.diagonal().tolist(), self.counts.sum(1).tolist(), strict=True)
        return {name: 100 * recognised / n for name, recognised, n in right if n}


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of images: ``images`` with their true labels, ``index`` (m,) their places in the data set they
    come from, ``predicted`` (m,) labels, ``probabilities`` (m, classes)."""

    images: Images
    index: torch.Tensor = field(repr=False)
    predicted: torch.Tensor = field(repr=False)
    probabilities: torch.Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i) -> "Predictions":
        return Predictions(*(value[rows(i)] for value in vars(self).values()))

    def pick(self, n: int = 25) -> "Predictions":
        """The ``n`` that the model was surest of, surest first (all of them, if there are fewer)."""
        sure = self.probabilities.max(1).values
        return self[sure.argsort(descending=True, stable=True)[:n]]


def predictions(model: nn.Module, images: Images, probabilities: torch.Tensor | None = None) -> Predictions:
    """What ``model`` says of every image; ``probabilities``: those of ``predict``, if made already."""
    check_images(images)
    probabilities = predict(model, images) if probabilities is None else torch.as_tensor(probabilities)
    shape = (len(images), len(images.classes))
    check("the shape of probabilities", tuple(probabilities.shape), probabilities.shape == shape, f"{shape}")
    check("probabilities", "not finite", bool(probabilities.isfinite().all()), "numbers: look for nan in the weights")
    return Predictions(images, torch.arange(len(images)), probabilities.argmax(1), probabilities)


def confusion(model: nn.Module, images: Images, probabilities: torch.Tensor | None = None) -> Confusion:
    """The confusion matrix of ``model`` on ``images``; ``probabilities``: those of ``predict``, if made already."""
    predicted, k = predictions(model, images, probabilities).predicted, len(images.classes)
    counts = torch.bincount(images.labels.cpu() * k + predicted, minlength=k * k).view(k, k)
    return Confusion(counts.numpy(), images.classes)


def misclassified(model: nn.Module, images: Images, probabilities: torch.Tensor | None = None) -> Predictions:
    """The images that ``model`` gets wrong, in their order; ``probabilities`` as in ``confusion``."""
    found = predictions(model, images, probabilities)
    return found[(found.predicted != images.labels.cpu()).nonzero().flatten()]


def load_model(run: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network of a finished run with its averaged weights, in eval mode.

    A new ``ResNet9`` on the CPU; or ``model``, a network of your own with the same layers, whose weights are
    overwritten. What ``classify`` needs beside them is left as the attribute ``trained_on``. Raises ``InputError`` if
    there is no model.
    """
    file = folder_of(run) / MODEL
    content = read_tensors(file)
    try:
        weights = content.pop("weights")
        if model is None:
            known = "prep.conv.weight" in weights
            right = "given, classify(run, file, model=network) in Python: the run is of another network than ResNet9"
            check("model", "not given", known, right)
            model = ResNet9(weights["head.linear.weight"].shape[0], weights["prep.conv.weight"].shape[0])
        getattr(model, "_orig_mod", model).load_state_dict(weights)  # the network that torch.compile has wrapped
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{str(file)!r} does not fit this network ({' '.join(str(error).split())})") from error
    model.trained_on = content
    return model.eval()


def classify(run: str | Path, *files: str | Path, model: nn.Module | None = None) -> list[dict[str, float]]:
    """For each image file {class: probability}, the likeliest first, by the network of the folder ``run`` alone.

    Photos of another size are resized by the shorter side and centre-cropped to the one trained on. ``model`` as in
    ``load_model``. Raises ``InputError`` if the run or a file cannot be read, or if the run knows no classes.
    """
    model = load_model(run, model)
    about = model.trained_on
    if not about.get("classes"):
        raise InputError(f"{str(run)!r} was trained on a loader, so it knows neither classes nor mean and std")
    files = [file for some in files for file in (some if isinstance(some, (list, tuple)) else [some])]
    check("number of files", len(files), len(files) > 0, "1 or more")
    height, width = about["image_size"]
    for file in files if height != width else ():  # these are not resized
        size, right = photo(file).shape[1::-1], f"{width} x {height} pixels, as trained on"
        check(f"the size of {str(file)!r}", "{} x {}".format(*size), size == (width, height), right)
    pixels = torch.from_numpy(read_photos(files, height if height == width else None))
    labels = torch.zeros(len(files), dtype=torch.int64)  # of no account
    images = Images(pixels, labels, *(tuple(about[key]) for key in ("classes", "mean", "std")))
    shares = [zip(images.classes, row, strict=True) for row in predict(model, images).tolist()]
    return [dict(sorted(row, key=lambda share: -share[1])) for row in shares]
