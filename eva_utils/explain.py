"""Where a model is wrong, and what it looked at: confusions, misclassified images, Grad-CAM."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .batches import normalize
from .errors import InputError
from .evaluation import predict
from .images import Images, places

LAYERS = ("layer1", "layer2", "layer3")


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts[i, j]: how many images of class i were taken for class j; int64 array (classes, classes)."""

    counts: np.ndarray
    classes: tuple[str, ...]

    def most_confused(self, k: int = 5) -> list[tuple[str, str, int]]:
        """The ``k`` largest confusions as (true class, predicted class, count), largest first."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:k]
        pairs = [divmod(int(i), len(self.classes)) for i in order]
        return [(self.classes[i], self.classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


@dataclass(frozen=True, eq=False)
class Mistakes:
    """Misclassified images: ``images`` with their true labels, ``index`` (m,) their places in the data set they come
    from, ``predicted`` (m,) labels, ``probabilities`` (m, classes)."""

    images: Images
    index: torch.Tensor
    predicted: torch.Tensor
    probabilities: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i) -> Mistakes:
        i = places(i)
        return Mistakes(self.images[i], self.index[i], self.predicted[i], self.probabilities[i])

    def pick(self, n: int = 25) -> Mistakes:
        """The ``n`` mistakes that the model was surest of, surest first (all of them, if there are fewer)."""
        sure = self.probabilities.max(1).values
        return self[sure.argsort(descending=True, stable=True)[:n]]

    def caption(self, i: int) -> tuple[str, str, float]:
        """(true class, predicted class, the predicted class's probability) of mistake ``i``."""
        classes, predicted = self.images.classes, int(self.predicted[i])
        return classes[int(self.images.labels[i])], classes[predicted], float(self.probabilities[i, predicted])


@dataclass(frozen=True, eq=False)
class Cams:
    """Grad-CAM heat maps of ``mistakes``: ``predicted`` for the class the model chose, ``true`` for the right one.

    Both are float32 arrays (m, len(layers), h, w), each map scaled to 0..1 by itself.
    """

    mistakes: Mistakes
    layers: tuple[str, ...]
    predicted: np.ndarray
    true: np.ndarray

    def __getitem__(self, i) -> Cams:
        i = places(i)
        return Cams(self.mistakes[i], self.layers, self.predicted[i], self.true[i])


def confusion(model: nn.Module, images: Images, probabilities: torch.Tensor | None = None) -> Confusion:
    """The confusion matrix of ``model`` on ``images``; ``probabilities``: those of ``predict``, if made already."""
    predicted = (predict(model, images) if probabilities is None else probabilities).argmax(1)
    k = len(images.classes)
    counts = torch.bincount(images.labels.cpu() * k + predicted, minlength=k * k).view(k, k)
    return Confusion(counts.numpy(), images.classes)


def misclassified(model: nn.Module, images: Images, probabilities: torch.Tensor | None = None) -> Mistakes:
    """The images that ``model`` gets wrong, in their order; ``probabilities`` as in ``confusion``."""
    probabilities = predict(model, images) if probabilities is None else probabilities
    predicted = probabilities.argmax(1)
    index = (predicted != images.labels.cpu()).nonzero().flatten()
    return Mistakes(images[index], index, predicted[index], probabilities[index])


def gradcam(model: nn.Module, mistakes: Mistakes, layers: str | tuple[str, ...] = LAYERS) -> Cams:
    """Grad-CAM of each mistake at each of ``layers`` (names of submodules), for the predicted and for the true class.

    Works on a copy, in fp32 with gradients on, whatever surrounds the call; the model keeps its mode, hooks, gradients.
    Source: R. R. Selvaraju et al., arXiv:1610.02391, as implemented in the grad-cam package.
    Raises ``InputError`` if no layer has such a name, or if it is one without feature maps.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from the package's own imports
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules:
            part = layer
            while part and not (part in modules and list(modules[part].children())):  # the model itself is ""
                part = part.rpartition(".")[0]
            known = ", ".join(f"{part}.{name}".lstrip(".") for name, _ in modules[part].named_children())
            raise InputError(f"layer {layer!r} is not in the model; layers= takes names such as {known}")
    images, device = mistakes.images, next(model.parameters()).device
    labels = {"predicted": mistakes.predicted.tolist(), "true": images.labels.tolist()}
    if not len(mistakes):
        none = np.empty((0, len(layers), *images.pixels.shape[1:3]), np.float32)
        return Cams(mistakes, layers, none, none)
    maps = {which: [] for which in labels}
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        network = copy.deepcopy(model).float().requires_grad_(True)
        for module in network.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # it would overwrite the activations that are looked at
        x = normalize(images.pixels.to(device), images.mean, images.std)
        for layer in layers:
            with GradCAM(network, [network.get_submodule(layer)]) as cam:
                cam.activations_and_grads(x[:1])
                if [a.ndim for a in cam.activations_and_grads.activations] != [4]:
                    raise InputError(f"layer {layer!r} gives no feature map (n, channels, h, w); choose an earlier one")
                for which, classes in labels.items():
                    maps[which].append(cam(x, [ClassifierOutputTarget(c) for c in classes]))
    return Cams(mistakes, layers, **{which: np.stack(m, axis=1).astype(np.float32) for which, m in maps.items()})
