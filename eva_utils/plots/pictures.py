"""Figures with images: samples, augmentation, confusions, mistakes, Grad-CAM."""

from __future__ import annotations

import math
import textwrap
from dataclasses import replace

import numpy as np
import seaborn as sns
import torch
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from ..batches import loader
from ._base import DPI, Picture, styled

as_they_are = rc_context({"text.parse_math": False})  # the names of classes: "5$ or 10$" is no formula


def _nothing() -> Figure:
    figure = Picture(8, 1)
    ax = figure.subplots()  # a notebook shows no figure without
    ax.axis("off")
    ax.text(0.5, 0.5, "No test image is misclassified.", ha="center", va="center", fontsize=12)
    return figure


def denormalize(x: torch.Tensor, mean, std) -> np.ndarray:
    """Normalised pixels (n, 3, h, w) back to RGB in 0..1: float array (n, h, w, 3)."""
    pixels = x.detach().float().cpu().permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    return pixels.clamp(0, 1).numpy()


@styled
@as_they_are
def samples(images, per_class: int = 8) -> Figure:
    """The first ``per_class`` images of each class, a row a class; of more than 20 classes the first 20."""
    classes = images.classes[:20]
    figure = Picture(per_class * 0.8 + 1.2, len(classes) * 0.8)
    if len(classes) < len(images.classes):
        figure.suptitle(f"the first {len(classes)} of {len(images.classes):,} classes", fontsize=10)
    grid = figure.subplots(len(classes), per_class, squeeze=False)
    for label, row in enumerate(grid):
        found = images.pixels[(images.labels == label).nonzero().flatten()[:per_class]].cpu().numpy()
        for ax in row:
            ax.axis("off")
        for ax, pixels in zip(row, found, strict=False):
            ax.imshow(pixels, interpolation="nearest")
        # Text instead of an axis label, which axis("off") would hide.
        row[0].text(-0.15, 0.5, classes[label], transform=row[0].transAxes, ha="right", va="center")
    return figure


@styled
def augmented(images, augment, count: int = 6, epochs: int = 7, seed: int = 0) -> Figure:
    """``count`` images, of different classes where there are enough, as they are (left) and in ``epochs`` draws of
    ``augment``, such as training sees them."""
    count = min(count, len(images))
    firsts = np.unique(images.labels.cpu().numpy(), return_index=True)[1][:count]
    others = np.setdiff1d(np.arange(len(images)), firsts)[: count - len(firsts)]
    chosen = images[torch.from_numpy(np.concatenate([firsts, others]))]
    figure = Picture((epochs + 1) * 0.95, count * 0.95 + 0.3)
    grid = figure.subplots(count, epochs + 1, squeeze=False)
    for ax, pixels in zip(grid[:, 0], chosen.pixels.cpu().numpy(), strict=True):
        ax.imshow(pixels, interpolation="nearest")
    # The place of each image instead of its class as label: an epoch comes in random order, and this undoes it.
    batches = loader(replace(chosen, labels=torch.arange(count)), augment, batch_size=count, seed=seed, workers=0)
    for epoch, column in enumerate(grid[:, 1:].T):
        ((x, place),) = batches.epoch(epoch)
        for ax, picture in zip(column, denormalize(x[place.argsort()], images.mean, images.std), strict=True):
            ax.imshow(picture, interpolation="nearest")
        column[0].set_title(f"draw {epoch + 1}", fontsize=9, loc="center", fontweight="normal")
    grid[0, 0].set_title("original", fontsize=9, loc="center")
    for ax in grid.flat:
        ax.axis("off")
    return figure


@styled
@as_they_are
def confusion(confusion, pairs: int = 5) -> Figure:
    """The confusion matrix (counts), coloured by its mistakes, with the ``pairs`` most confused pairs named."""
    counts, classes = confusion.counts, confusion.classes
    wrong = counts - np.diag(np.diag(counts))
    k = len(classes)
    cell = min(0.62, 20 / k)  # inches
    size = max(5.0, cell * k + 1.5)
    figure = Picture(size + 0.8, size + 0.6)
    ax = figure.subplots()
    numbers = np.where(counts, counts.astype(str), "") if k <= 20 else False
    sns.heatmap(
        wrong, annot=numbers, fmt="", cmap="Reds", square=True, cbar=False, linewidths=0.5,
        ax=ax, xticklabels=False, yticklabels=False, annot_kws={"fontsize": 9},
    )  # fmt: skip
    for i in range(k):
        ax.add_patch(Rectangle((i, i), 1, 1, fill=False, edgecolor="0.5", lw=1, clip_on=False))
    right, n = int(np.trace(counts)), int(counts.sum())
    ax.set(xlabel="predicted class", ylabel="true class")
    # Over the whole figure: with few classes the matrix is narrower than this.
    figure.suptitle(
        f"{right:,} of {n:,} images right ({100 * right / n:.2f} %); red: mistakes", fontsize=12, fontweight="bold"
    )
    # Not by seaborn, which draws each name by itself to see which fit: gigabytes for a hundred classes.
    names = {"ticks": np.arange(k) + 0.5, "labels": classes, "fontsize": min(10, 65 * cell)}
    ax.set_xticks(**names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(**names)
    worst = [f"{true} taken for {predicted}: {count}" for true, predicted, count in confusion.most_confused(pairs)]
    lines = [",  ".join(part) for part in (worst[:3], worst[3:]) if part]
    if lines:
        lines[0] = f"Most confused:  {lines[0]}"
    wide = int(13 * size)  # characters
    if max(map(len, lines), default=0) > wide:
        lines = [line for words in ("Most confused:", *worst) for line in textwrap.wrap(words, wide)]
    figure.supxlabel("\n".join(lines), fontsize=10)
    return figure


@styled
@as_they_are
def misclassified(mistakes, columns: int = 5) -> Figure:
    """Misclassified images, each with its true class, its predicted class and that one's probability."""
    if not len(mistakes):
        return _nothing()
    panel = 8.5 / columns  # inches; few mistakes make a narrow figure and not large panels
    captions = []
    for i in range(len(mistakes)):
        true, predicted, probability = mistakes.caption(i)
        words = f"{true}, taken for", f"{predicted} ({100 * probability:.0f} %)"
        captions.append("\n".join(line for part in words for line in textwrap.wrap(part, int(13 * panel))))
    high = 0.42 + 0.18 * (max(caption.count("\n") for caption in captions) - 1)  # inches of the captions
    columns = min(columns, len(mistakes))
    rows = -(-len(mistakes) // columns)
    figure = Picture(columns * panel, rows * (panel + high))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in panels:
        ax.axis("off")
    for ax, pixels, caption in zip(panels, mistakes.images.pixels.cpu().numpy(), captions, strict=False):
        ax.imshow(pixels, interpolation="nearest")
        ax.set_title(caption, fontsize=9, loc="center", fontweight="normal")
    return figure


@styled
@as_they_are
def gradcam(cams, side: int = 64) -> Figure:
    """Grad-CAM, a row an image: the image, then for each layer the overlay and the heat map for the class that was
    predicted, and the overlay for the class that was right. ``side``: of a panel, about, in screen pixels; the text
    grows with it."""
    if not len(cams.mistakes):
        return _nothing()
    pixels = cams.mistakes.images.pixels.cpu().numpy()
    # Whole screen pixels for an image pixel; of larger images, every so many-th pixel.
    every = -(-max(pixels.shape[1:3]) // (2 * side))
    pixels = pixels[:, ::every, ::every]
    chosen, right = (maps[..., ::every, ::every] for maps in (cams.predicted, cams.true))
    n, h, w, _ = pixels.shape
    zoom = max(1, side // max(h, w))
    size = 10 * side / 64  # points
    # The longest line there can be, not only in these rows: figures of one run can stand below each other.
    longest = [line for name in cams.mistakes.images.classes for line in f"predicted {name}".split("\n")]
    wide = max(TextPath((0, 0), line, size=size).get_extents().width for line in longest)
    gap, head, label = 4, 3 * side // 4, math.ceil(wide * DPI / 72) + 16  # screen pixels
    columns = 1 + 3 * len(cams.layers)
    # Room for the words over the columns and for three lines beside each row, whatever the shape of the images.
    step_x, step_y = max(w * zoom, side // 2) + gap, max(h * zoom, 4 * side // 5) + gap
    # One canvas, one pixel of it one pixel of the PNG: sharp, small, and much faster than hundreds of axes.
    canvas = np.full((head + n * step_y, label + columns * step_x + 2 * gap * len(cams.layers), 3), 255, np.uint8)
    figure = Picture(canvas.shape[1] / DPI, canvas.shape[0] / DPI, layout=None)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    text = {"fontsize": size, "va": "center"}

    def left(column: int) -> int:  # a wider gap before each layer
        return label + column * step_x + 2 * gap * ((column + 2) // 3)

    def title(column: float, line: int, words: str, **style) -> None:
        ax.text(left(int(column)) + column % 1 * step_x + w * zoom / 2, (0.19, 0.53)[line] * side, words, ha="center",
                **text | style)  # fmt: skip

    title(0, 1, "image")
    for j, layer in enumerate(cams.layers):
        title(3 * j + 2, 0, layer, fontweight="bold")
        title(3 * j + 1.5, 1, "predicted")
        title(3 * j + 3, 1, "true")
    for i in range(n):
        top = head + i * step_y
        panels = [pixels[i]]
        for j in range(len(cams.layers)):
            heat, heat_true = _heat(chosen[i, j]), _heat(right[i, j])
            panels += [_overlay(pixels[i], heat), heat, _overlay(pixels[i], heat_true)]
        for column, panel in enumerate(panels):
            x = left(column)
            canvas[top : top + h * zoom, x : x + w * zoom] = panel.repeat(zoom, 0).repeat(zoom, 1)
        true, predicted, probability = cams.mistakes.caption(i)
        words = f"predicted {predicted}\n({100 * probability:.0f} %)\ntrue {true}"
        ax.text(label - 8, top + h * zoom / 2, words, ha="right", **text)
    ax.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    return figure


def _heat(cam: np.ndarray) -> np.ndarray:
    """A map in 0..1 as colours, uint8 (h, w, 3): blue counts little, red counts most."""
    return (colormaps["jet"](cam)[..., :3] * 255).astype(np.uint8)


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.uint16) + heat) // 2).astype(np.uint8)
