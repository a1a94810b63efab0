"""Grad-CAM: which places of a layer raise a class's logit; and all figures of a run."""

import copy
import difflib
import sys
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .augment import normalize
from .data import Images, check_labels
from .errors import InputError, check, first_line, kind
from .look import Predictions, confusion, misclassified, predict, predictions
from .lr_curve import LRRange
from .model import device_of
from .run import FIGURES, HISTORY, RANGE, RESULTS, STEPS, read_csv, read_json

LAYERS = ("layer1", "layer2", "layer3")


@dataclass(frozen=True, eq=False)
class Cams:
    """Heat maps of ``predictions``: ``maps`` for the classes ``explained`` (m,), ``true`` for the right ones.

    Both are float32 arrays (m, len(layers), h, w), each map scaled to 0..1 by itself. method: "gradcam" or "hirescam".
    """

    predictions: Predictions
    layers: tuple[str, ...]
    method: str
    explained: torch.Tensor = field(repr=False)
    maps: np.ndarray = field(repr=False)
    true: np.ndarray = field(repr=False)


def gradcam(
    model: torch.nn.Module, images, layers=LAYERS, *, classes=None, method="gradcam", reshape_transform=None
) -> Cams:
    """Heat maps of each image at each of ``layers`` (names of submodules), for the predicted and for the true class.

    images: ``Images``, or what ``misclassified`` gives. classes: a class's name, or a label an image, to be explained
    in place of the predicted one. method: "gradcam" (R. R. Selvaraju et al., arXiv:1610.02391), or "hirescam"
    (R. Draelos, L. Carin, arXiv:2011.08891), which multiplies gradient and activation place by place; of ResNet9's
    layer3 its maps sum to the logit before negative values are cut off. reshape_transform: makes (n, channels, h, w)
    of a layer's output, for one that has another order.

    Works on a copy, in fp32 with gradients on, whatever surrounds the call; the model keeps its mode, hooks, gradients.
    Raises ``InputError`` if no layer has such a name, or for one without feature maps or that is not used once.
    """
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # from the package's own imports
        from pytorch_grad_cam import GradCAM, HiResCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    check("method", method, method in ("gradcam", "hirescam"), "'gradcam' or 'hirescam'")
    layers = tuple(layers) if isinstance(layers, (tuple, list)) else (layers,)
    check("layers", layers, {*map(type, layers)} == {str}, "one name or more, of named_modules()")
    found = images if isinstance(images, Predictions) else predictions(model, images)
    images, device = found.images, device_of(model)
    known, given = images.classes, [classes] * len(images) if np.ndim(classes) == 0 else classes
    labels = found.predicted if classes is None else [known.index(c) if c in known else c for c in given]
    right = f"one of {', '.join(known)}, or a label for each image"
    check("classes", classes, len(labels) == len(images) and not any(isinstance(c, str) for c in labels), right)
    explained = torch.as_tensor(labels, dtype=torch.int64)
    maps, true = np.zeros((2, len(images), len(layers), *images.pixels.shape[1:3]), np.float32)
    cams = Cams(found, layers, method, explained, maps, true)
    if not len(images):
        return cams
    check_labels(explained, len(images.classes))
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        network = copy.deepcopy(getattr(model, "_orig_mod", model)).float().eval().requires_grad_(True)
        modules = dict(network.named_modules())
        x = normalize(images.pixels.to(device), images.mean, images.std)
        few = max(1, 100 * 32 * 32 // (x.shape[2] * x.shape[3]))  # a batch keeps what all layers give
        parts = [slice(start, start + few) for start in range(0, len(x), few)]
        for j, layer in enumerate(layers):
            if layer not in modules:
                near = difflib.get_close_matches(layer, modules) or dict(network.named_children())
                raise InputError(f"layer {layer!r} is not in the model; layers= takes names such as {', '.join(near)}")
            transform = partial(_feature_map, layer, x.shape, reshape_transform)
            cam = {"gradcam": GradCAM, "hirescam": HiResCAM}[method](network, [modules[layer]], transform)
            # After grad-cam's own hook: what comes later gets a copy, which it may change in place.
            modules[layer].register_forward_hook(lambda module, inputs, output: output.clone())
            cam.activations_and_grads(x[:1])
            times = len(cam.activations_and_grads.activations)
            check(f"how often layer {layer!r} is used", times, times == 1, "once: choose another layer")
            try:
                for where, labels in ((maps, explained), (true, images.labels)):
                    for part in parts:
                        where[part, j] = cam(x[part], [*map(ClassifierOutputTarget, labels[part].tolist())])
            except (AttributeError, IndexError, TypeError) as error:  # grad-cam waited for a gradient
                words = f"the logits have no gradient at layer {layer!r} ({first_line(error)}); take another"
                raise InputError(words) from error
            cam.activations_and_grads.release()
    return cams


def _feature_map(layer: str, images: torch.Size, reshape, output) -> torch.Tensor:
    """(n, channels, h, w) of a layer's output, by the user's ``reshape`` if there is one."""
    output = reshape(output) if reshape else output
    shape = getattr(output, "shape", ())
    right = "a feature map (n, channels, h, w) larger than 1 x 1: take another layer"
    check(f"what layer {layer!r} gives", kind(output), len(shape) == 4 and shape[2:] != (1, 1), right)
    # Some networks keep (n, h, w, channels): told by the shape of the images, which maps have within a place or so.
    like_images = [abs(h * images[3] - w * images[2]) <= max(images[2:]) for h, w in (shape[2:], shape[1:3])]
    return output.permute(0, 3, 1, 2) if like_images == [False, True] and not reshape else output


def draw(run: Path, schedule, augment, train_images: Images, test_images: Images, model: torch.nn.Module) -> None:
    """All figures of the finished run in the folder ``run``."""
    from . import plots  # matplotlib with it

    history, steps, results = read_csv(run / HISTORY), read_csv(run / STEPS), read_json(run / RESULTS)
    precision = "fp32" if results["precision"] == "fp32" else "auto"  # this device may not have the run's
    probabilities = predict(model, test_images, precision=precision)
    about = f"{results['data']}, seed {results['seed']}; {results['device']}"
    mistakes = misclassified(model, test_images, probabilities).pick(25)
    layers = LAYERS if max(test_images.pixels.shape[1:3]) >= 16 else LAYERS[:2]  # layer3 is 1 x 1 then
    figures = {
        "samples": lambda: plots.samples(train_images),
        "augmented": lambda: plots.augmented(train_images, augment),
        "lr_schedule": lambda: plots.applied(steps, schedule, about=about),
        "history": lambda: plots.history(history, about=about),
        "confusion": lambda: plots.confusion(confusion(model, test_images, probabilities), about=about),
        "misclassified": lambda: plots.misclassified(mistakes),
        "gradcam": lambda: plots.gradcam(gradcam(model, mistakes, layers)),
    }
    if set(results["lr_reasons"].values()) != {"given"}:
        used = {"lr_min": schedule.lr_min, "lr_max": schedule.lr_max, "reasons": results["lr_reasons"]}
        figures["lr_finder"] = lambda: plots.lr_range(replace(LRRange.load(run / RANGE), **used), about=about)
    for name, figure in figures.items():
        try:
            plots.save(figure(), run / FIGURES / f"{name}.png")
        except Exception as error:  # no run is lost for a figure
            print(f"figure {name}: {first_line(error) or type(error).__name__}", file=sys.stderr)
    print(f"The figures are in {run / FIGURES}")
