"""Figures with images: samples, augmentation, confusions, mistakes, Grad-CAM."""

import textwrap
from dataclasses import replace

import numpy as np
import seaborn as sns
import torch
from matplotlib import colormaps

from ..batches import loader
from ..recipe import Recipe
from ._base import SCREEN, Figure, Picture, headline, styled


def _mosaic(title: str, pictures: np.ndarray, names=(), above=()) -> Figure:
    """All of ``pictures``, float (rows, columns, h, w, 3), with names beside the rows and words above the columns."""
    rows, columns, h, w, _ = pictures.shape
    gap = max(1, w // 20)
    cells = np.pad(pictures, ((0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=1.0)
    h, w = cells.shape[2:4]
    ax = Picture(0.85 * columns + 1, 0.85 * rows * h / w + 0.6, title, save_dpi=SCREEN).subplots()
    ax.imshow(cells.swapaxes(1, 2).reshape(rows * h, columns * w, 3), interpolation="nearest")
    ax.set_xticks(w * (np.arange(len(above)) + 0.5), above)
    ax.set_yticks(h * (np.arange(len(names)) + 0.5), names)
    ax.tick_params(length=0, labeltop=True, labelbottom=False, grid_alpha=0)
    ax.spines[:].set_visible(False)
    return ax.figure


def _words(found, i: int, width: int, explained: int) -> str:
    """What is said of image ``i``: first of the class that is explained, if it is another one than predicted."""
    true, predicted, probability = found.caption(i)
    lines = [f"predicted {predicted} ({100 * probability:.0f}\xa0%)", f"true {true}"]
    if explained != int(found.predicted[i]):
        name, share = found.images.classes[explained], float(found.probabilities[i, explained])
        lines.insert(0, f"class {name} ({100 * share:.0f}\xa0%)")
    lines[0] = f"{i + 1}. {lines[0]}"
    return "\n".join(textwrap.fill(line, width) for line in lines)


@styled
def samples(images, per_class: int = 8) -> Figure:
    """The first ``per_class`` images of each class, a row a class; of more than 20 classes the first 20."""
    classes, (_, *shape) = images.classes[:20], images.pixels.shape
    pictures = np.ones((len(classes), per_class, *shape))
    for label, row in enumerate(pictures):
        found = images.pixels[images.labels == label][:per_class]
        row[: len(found)] = found.cpu() / 255
    return _mosaic(f"The first {per_class} images of {len(classes)} classes", pictures, classes)


@styled
def augmented(images, augment, count: int = 6, epochs: int = 7, seed: int = 0) -> Figure:
    """``count`` images as they are (left), and as ``augment`` draws them in each of ``epochs`` epochs of training."""
    chosen = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]]
    count = len(chosen)
    # The place of each image instead of its class as label: an epoch comes in random order, and this undoes it.
    places = replace(chosen, labels=torch.arange(count), classes=tuple(map(str, range(count))))
    batches = loader(
        places, Recipe(augment=augment, batch_size=count, seed=seed, workers=0), torch.device("cpu"), (0, 1)
    )
    columns = [chosen.pixels.cpu() / 255]
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
    size = max(5.0, min(0.62 * k, 20) + 1.5)  # inches
    ax = Picture(size + 0.8, size + 0.6).subplots()
    sns.heatmap(
        wrong, annot=np.where(counts, counts.astype(str), "") if k <= 20 else False, fmt="", cmap="Reds", square=True,
        cbar=False, linewidths=0.5, ax=ax, xticklabels=False, yticklabels=False,
        annot_kws={"fontsize": 10, "color": "0.1"}, vmin=0, vmax=2 * max(1, wrong.max()),  # light, under dark numbers
    )  # fmt: skip
    right, n = int(np.trace(counts)), int(counts.sum())
    ax.set(xlabel="predicted class", ylabel="true class")
    headline(ax, f"{right:,} of {n:,} images right ({100 * right / n:.2f} %); red: mistakes")
    # Not by seaborn, which draws each name by itself to see which fit: gigabytes for a hundred classes.
    names = {"ticks": np.arange(k) + 0.5, "labels": classes, "fontsize": min(10, 1300 / k)}
    ax.set_xticks(**names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(**names)
    worst = [f"{true} taken for {predicted}:\xa0{count}" for true, predicted, count in confusion.most_confused(pairs)]
    words = textwrap.fill(f"Most confused: {', '.join(worst)}", int(13 * size)) if worst else ""
    ax.figure.supxlabel(words, fontsize=10, x=0.01, ha="left")
    return ax.figure


@styled
def misclassified(predictions, columns: int = 5) -> Figure:
    """Misclassified images, numbered, each with its predicted class, that one's probability, and its true class."""
    n, panel = len(predictions.predicted), 8.5 / columns  # inches
    rows = max(1, -(-n // columns))
    h, w = predictions.images.pixels.shape[1:3]
    figure = Picture(8.5, rows * (panel * h / w + 0.6) + 0.5, f"Misclassified images: {n or 'none'}", save_dpi=SCREEN)
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
    found, layers = cams.predictions, len(cams.layers)
    if not len(found.predicted):
        return misclassified(found)
    pixels = found.images.pixels.cpu().numpy() / 255
    n, h, w, _ = pixels.shape
    sizes = [1] + [0.5] * 3 * (layers > 1) + [1] * 3 * max(1, layers - 1)
    unit = int(min(96, 820 / sum(sizes)))  # screen pixels of the longer side of a panel of size 1
    left = np.cumsum([0] + [round(unit * size * w / max(h, w)) + 6 + 12 * (j % 3 == 0) for j, size in enumerate(sizes)])
    words = [_words(found, i, 23, int(cams.explained[i])) for i in range(n)]
    row = 6 + max(unit * h // max(h, w), 16 * max(text.count("\n") + 1 for text in words))
    figure = Picture(left[-1] / SCREEN, n * row / SCREEN, layout=None, save_dpi=SCREEN)
    for i in range(n):
        panels = [pixels[i]]
        for explained, true in zip(cams.maps[i], cams.true[i], strict=True):
            heat, heat_true = (colormaps["inferno"](x)[..., :3] for x in (explained, true))
            panels += [(pixels[i] + heat) / 2, heat, (pixels[i] + heat_true) / 2]
        strip = np.ones((row, left[-1], 3))  # as the screen has it, pixel by pixel: sharp, and a small file
        for panel, size, x in zip(panels, sizes, left, strict=False):
            side = round(unit * size)
            rows, columns = (np.arange(side * length // max(h, w)) * max(h, w) // side for length in (h, w))
            y = (row - len(rows)) // 2
            strip[y : y + len(rows), x : x + len(columns)] = panel[rows][:, columns]
        ax = figure.add_axes((0, 1 - (i + 1) / n, 1, 1 / n))
        ax.axis("off")
        ax.imshow(strip, aspect="auto", interpolation="nearest")
        ax.text(-170, row / 2, words[i], va="center", fontsize=9)
    names = ["image", *(name for layer in cams.layers for name in ("overlay", f"{layer}\n\nmap", "true"))]
    for name, x, size in zip(names, left, sizes, strict=False):
        middle = x + unit * size * w / max(h, w) / 2
        figure.axes[0].text(middle, -9, name, ha="center", va="baseline", fontsize=min(10, 0.17 * unit * size))
    title = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM"}[cams.method]
    title += ": bright places speak for the class named first (under “true”: for the true class)"
    headline(figure.axes[0], title, pad=45, x=-170 / left[-1], fontsize=13)
    return figure
