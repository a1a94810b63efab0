"""Grad-CAM: which places of a layer raise a class's logit."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import numpy as np
import torch
from torch import nn

from .augment import normalize
from .data import Images
from .errors import InputError, check
from .look import Cams, Predictions, predictions

LAYERS = ("layer1", "layer2", "layer3")


def gradcam(
    model: nn.Module,
    images: Images | Predictions,
    layers: str | tuple[str, ...] = LAYERS,
    *,
    classes=None,
    method: str = "gradcam",
    reshape_transform=None,
) -> Cams:
    """Heat maps of each image at each of ``layers`` (names of submodules), for the predicted and for the true class.

    classes: a class's name, or a label an image, to be explained in place of the predicted one. method: "gradcam"
    (R. R. Selvaraju et al., arXiv:1610.02391), or "hirescam" (R. Draelos, L. Carin, arXiv:2011.08891), which multiplies
    gradient and activation place by place; of ResNet9's layer3 its maps sum to the logit before negative values are
    cut off. reshape_transform: makes (n, channels, h, w) of a layer's output, for one that has another order.

    Works on a copy, in fp32 with gradients on, whatever surrounds the call; the model keeps its mode, hooks, gradients.
    Raises ``InputError`` if no layer has such a name, or for one without feature maps or that is not used once.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from the package's own imports
        from pytorch_grad_cam import GradCAM, HiResCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    check("method", method, method in ("gradcam", "hirescam"), "'gradcam' or 'hirescam'")
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    check("layers", layers, len(layers) > 0, "one name or more")
    found = predictions(model, images) if isinstance(images, Images) else images
    images, device = found.images, next(model.parameters()).device
    explained = found.predicted if classes is None else _labels(classes, images)
    targets = {"maps": explained.tolist(), "true": images.labels.tolist()}
    maps = {which: [np.empty((0, *images.pixels.shape[1:3]))] * len(layers) for which in targets}
    if len(found):
        maps = {which: [] for which in targets}
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            network = copy.deepcopy(model).float().eval().requires_grad_(True)
            x = normalize(images.pixels.to(device), images.mean, images.std)
            for layer in layers:
                module = _submodule(network, layer)
                transform = partial(_feature_map, layer, x.shape, reshape_transform)
                with {"gradcam": GradCAM, "hirescam": HiResCAM}[method](network, [module], transform) as cam:
                    # After grad-cam's own hook: what comes later gets a copy, which it may change in place.
                    hook = module.register_forward_hook(lambda module, inputs, output: output.clone())
                    cam.activations_and_grads(x[:1])
                    times = len(cam.activations_and_grads.activations)
                    check(f"how often layer {layer!r} is used", times, times == 1, "once: choose another layer")
                    for which, labels in targets.items():
                        maps[which].append(cam(x, [ClassifierOutputTarget(label) for label in labels]))
                    hook.remove()
    maps = {which: np.stack(m, axis=1).astype(np.float32) for which, m in maps.items()}
    return Cams(found, layers, explained, maps["maps"], maps["true"], method)


def _labels(classes, images: Images) -> torch.Tensor:
    """A label an image, of a class's name or of labels."""
    if isinstance(classes, str):
        check("classes", classes, classes in images.classes, f"one of {', '.join(images.classes)}")
        classes = [images.classes.index(classes)] * len(images)
    labels = torch.as_tensor(classes, dtype=torch.int64)
    right = f"a class's name, or {len(images)} labels below {len(images.classes)}"
    fits = labels.shape == (len(images),) and bool(((labels >= 0) & (labels < len(images.classes))).all())
    check("classes", classes, fits, right)
    return labels


def _submodule(model: nn.Module, layer: str) -> nn.Module:
    modules = dict(model.named_modules())
    if layer not in modules:
        part = layer
        while part and not (part in modules and list(modules[part].children())):  # the model itself is ""
            part = part.rpartition(".")[0]
        known = ", ".join(f"{part}.{name}".lstrip(".") for name, _ in modules[part].named_children())
        raise InputError(f"layer {layer!r} is not in the model; layers= takes names such as {known}")
    return modules[layer]


def _feature_map(layer: str, images: torch.Size, reshape, output) -> torch.Tensor:
    """(n, channels, h, w) of a layer's output, by the user's ``reshape`` if there is one."""
    output = reshape(output) if reshape else output
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) != 4 or shape[2] * shape[3] == 1:
        got = f"{type(output).__name__} {shape}"
        raise InputError(f"layer {layer!r} gives no feature map (n, channels, h, w) but a {got}; choose an earlier one")
    return output if reshape else _channels_first(output, images)


def _channels_first(a: torch.Tensor, images: torch.Size) -> torch.Tensor:
    """(n, c, h, w) of a feature map, which some networks keep as (n, h, w, c): told by the shape of the images."""

    def like_images(h: int, w: int) -> bool:
        return abs(h * images[3] - w * images[2]) <= max(images[2:])  # within a place or so

    if not like_images(*a.shape[2:]) and like_images(*a.shape[1:3]):
        return a.permute(0, 3, 1, 2)
    return a
