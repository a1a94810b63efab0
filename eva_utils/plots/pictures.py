"""Figures with images: samples, augmentation, confusions, mistakes, Grad-CAM."""

import textwrap
from dataclasses import replace

import numpy as np
import torch
from matplotlib import colormaps

from ..batches import loader
from ..data import check_images
from ..recipe import Recipe
from ._base import SCREEN, Figure, Picture, styled


def _tiles(ax, pictures: np.ndarray, height: int, width: int, names=(), above=()) -> None:
    """All of ``pictures``, float (rows, columns, h, w, 3), each in the middle of a white cell of ``height`` x ``width``
    pixels, with names beside the rows and words above the columns."""
    rows, columns, h, w, _ = pictures.shape
    cells, y, x = np.ones((rows, columns, height, width, 3)), (height - h) // 2, (width - w) // 2
    cells[:, :, y : y + h, x : x + w] = pictures
    ax.imshow(cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3), interpolation="nearest")
    ax.set_xticks(width * (np.arange(len(above)) + 0.5), above)
    ax.set_yticks(height * (np.arange(len(names)) + 0.5), names)
    ax.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=9, grid_alpha=0)
    ax.spines[:].set_visible(False)


def _mosaic(title: str, pictures: np.ndarray, names=(), above=()) -> Figure:
    rows, columns, h, w, _ = pictures.shape
    gap = 2 * max(1, w // 20)
    figure = Picture(0.85 * columns + 1, 0.85 * rows * (h + gap) / (w + gap) + 0.6, title, dpi=SCREEN)
    _tiles(figure.subplots(), pictures, h + gap, w + gap, names, above)
    return figure


def _words(found, i: int, width: int, explained: int) -> str:
    """What is said of image ``i``: first of the class that is explained, if it is another one than predicted."""
    names = found.images.classes
    likely = [f"{name} ({100 * share:.0f}\xa0%)" for name, share in zip(names, found.probabilities[i], strict=True)]
    predicted = int(found.predicted[i])
    lines = [f"predicted {likely[predicted]}", f"true {names[int(found.images.labels[i])]}"]
    if explained != predicted:
        lines.insert(0, f"class {likely[explained]}")
    lines[0] = f"{i + 1}. {lines[0]}"
    return "\n".join(textwrap.fill(line, width) for line in lines)


@styled
def samples(images, per_class: int = 8) -> Figure:
    """The first ``per_class`` images of each class, a row a class; of more than 20 classes the first 20."""
    check_images(images)
    classes, (_, *shape) = images.classes[:20], images.pixels.shape
    pictures = np.ones((len(classes), per_class, *shape))
    for label, row in enumerate(pictures):
        found = images.pixels[images.labels == label][:per_class]
        row[: len(found)] = found.cpu().numpy() / 255
    return _mosaic(f"The first {per_class} images of {len(classes)} classes", pictures, classes)


@styled
def augmented(images, augment, count: int = 6, epochs: int = 7, seed: int = 0) -> Figure:
    """``count`` images as they are (left), and as ``augment`` draws them in each of ``epochs`` epochs of training."""
    chosen = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]]
    count = len(chosen)
    # The place of each image instead of its class as label: an epoch comes in random order, and this undoes it.
    places = replace(chosen, labels=torch.arange(count), classes=tuple(map(str, range(count))))
    recipe = Recipe(augment=augment, batch_size=count, seed=seed, workers=0)
    batches, columns = loader(places, recipe, torch.device("cpu"), (0, 1)), [chosen.pixels.cpu() / 255]
    for epoch in range(epochs):
        ((x, place),) = batches.epoch(epoch)
        pixels = x[place.argsort()].permute(0, 2, 3, 1) * torch.tensor(images.std) + torch.tensor(images.mean)
        columns.append(pixels.clamp(0, 1))
    words, above = "What training sees of an image", ["original", *(f"epoch {epoch + 1}" for epoch in range(epochs))]
    return _mosaic(f"{words}: another draw in every epoch", torch.stack(columns, 1).numpy(), above=above)


@styled
def confusion(confusion, pairs: int = 5) -> Figure:
    """The confusion matrix (counts), coloured by its mistakes, with the ``pairs`` most confused pairs named."""
    counts, classes = confusion.counts, confusion.classes
    wrong, k = counts - np.diag(np.diag(counts)), len(classes)
    right, n, size = np.trace(counts), counts.sum(), max(5.0, min(0.62 * k, 20) + 1.5)  # inches
    title = f"{right:,} of {n:,} images right ({100 * right / n:.2f} %); red: mistakes"
    figure = Picture(size + 0.8, size + 0.6, title)
    ax = figure.subplots()
    ax.imshow(wrong, cmap="Reds", vmin=0, vmax=2 * max(1, wrong.max()))  # light, under dark numbers
    for i, j in np.argwhere(counts) if k <= 20 else ():
        ax.text(j, i, counts[i, j], ha="center", va="center", fontsize=10, color="0.1")
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_xticks(range(k), classes, fontsize=min(10, 1300 / k), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(k), classes, fontsize=min(10, 1300 / k))
    ax.grid(False)
    largest = (divmod(int(place), k) for place in np.argsort(-wrong, axis=None, kind="stable")[:pairs])
    worst = [f"{classes[i]} taken for {classes[j]}:\xa0{wrong[i, j]}" for i, j in largest if wrong[i, j]]
    words = textwrap.fill(f"Most confused: {', '.join(worst)}", int(13 * size)) if worst else ""
    figure.supxlabel(words, fontsize=10, x=0.01, ha="left")
    return figure


@styled
def misclassified(predictions, columns: int = 5) -> Figure:
    """Misclassified images, numbered, each with its predicted class, that one's probability, and its true class."""
    n, panel = len(predictions.predicted), 8.5 / columns  # inches
    rows = max(1, -(-n // columns))
    h, w = predictions.images.pixels.shape[1:3]
    title = f"{n or 'No'} misclassified images{', and what the network took them for' * (n > 0)}"
    figure = Picture(8.5, rows * (panel * h / w + 0.6) + 0.5, title, dpi=SCREEN)
    bare = {"frameon": False, "xticks": [], "yticks": []}
    for i, ax in zip(range(n), figure.subplots(rows, columns, squeeze=False, subplot_kw=bare).flat, strict=False):
        ax.imshow(predictions.images.pixels[i].cpu().numpy(), interpolation="nearest")
        words = _words(predictions, i, int(13 * panel), int(predictions.predicted[i]))
        ax.set_title(words, fontsize=9, fontweight="normal")
    return figure


@styled
def gradcam(cams) -> Figure:
    """Heat maps, a row an image; for each layer overlay and map for the class named first, overlay for the true class.

    Bright places raise the class's score most. Each map is scaled to its own maximum: compare places, not maps.
    """
    found, n, layers = cams.predictions, len(cams.predictions), len(cams.layers)
    if not n:
        return misclassified(found)
    pixels = found.images.pixels.cpu().numpy() / 255
    side = max(pixels.shape[1:3]) * 17 // 16 + 2
    # Half as large are the layers before the last two: in cells twice as high as wide, for rows level with the others'.
    tall = [1 + (j < layers - 2) for j in range(layers)]
    widths = [1, *(3 / times for times in tall)]
    method = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM"}[cams.method]
    title = f"{method}: bright places speak for the class named first (under “true”: for the true class)"
    title = textwrap.fill(title, int(8 * sum(widths) + 30))
    figure = Picture(1.02 * sum(widths) + 2.4, 1.02 * n + 1, title, dpi=SCREEN)
    first, *others = figure.subplots(1, 1 + layers, width_ratios=widths)
    _tiles(first, pixels[:, None], side, side, [_words(found, i, 23, int(cams.explained[i])) for i in range(n)])
    for j, ax in enumerate(others):
        heat, heat_true = (colormaps["inferno"](maps[:, j])[..., :3] for maps in (cams.maps, cams.true))
        panels = np.stack([(pixels + heat) / 2, heat, (pixels + heat_true) / 2], 1)
        _tiles(ax, panels, tall[j] * side, side, above=("overlay", "map", "true"))
        ax.set_title(cams.layers[j], loc="center", fontweight="normal")
    return figure
