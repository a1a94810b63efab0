"""What all figures share: the style, how a figure is made, how it is saved."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure

from ..checkpoint import write_atomically

LIMIT = 200_000  # bytes; GitHub and notebooks stay quick
DPI = 100
COLORS = sns.color_palette("colorblind").as_hex()
BLUE, ORANGE, GREEN, RED = COLORS[0], COLORS[1], COLORS[2], COLORS[3]
STYLE = {
    **sns.axes_style("whitegrid"),
    "grid.color": ".9",
    "axes.edgecolor": ".6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "legend.frameon": False,
    "figure.dpi": DPI,
}


def styled(draw):
    """``draw`` in this package's style, without changing the style of anybody else's figures."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def axes(ax, width: float = 8, height: float = 4):
    """``ax``, or the axes of a new figure of ``width`` x ``height`` inches."""
    return ax if ax is not None else Figure(figsize=(width, height), dpi=DPI, layout="constrained").subplots()


def save(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` as a PNG of less than 200 kB; returns its path.

    A figure full of photographs that comes out larger is reduced to a palette of 256 colours.
    """
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", pil_kwargs={"optimize": True})
    for colours in (256, 128, 64, 32):
        if buffer.tell() < LIMIT:
            break
        picture = (
            Image.open(buffer).convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        )
        buffer = io.BytesIO()
        picture.save(buffer, format="png", optimize=True)
    path = Path(path)
    write_atomically(path, lambda part: part.write_bytes(buffer.getvalue()))
    return path
