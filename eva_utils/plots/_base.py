"""What all figures share: the style, how a figure is made, how it is saved."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure

from ..checkpoint import write_atomically
from ..errors import check

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


class Picture(Figure):
    """A figure that a notebook shows as a cell's last expression, whatever its matplotlib backend."""

    def __init__(self, width: float, height: float, layout: str | None = "constrained") -> None:
        """``width``, ``height``: inches."""
        super().__init__(figsize=(width, height), dpi=DPI, layout=layout)

    def _repr_png_(self) -> bytes:
        return png(self)


def axes(ax, width: float = 8, height: float = 4):
    """``ax``, or the axes of a new picture of ``width`` x ``height`` inches."""
    return ax if ax is not None else Picture(width, height).subplots()


def legend_above(ax, points: float = 2) -> None:
    """A legend in one row at the right end of the title's line, ``points`` above ``ax``: it covers no curve."""
    size = 10  # points, the unit of the paddings
    ax.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=len(ax.get_legend_handles_labels()[0]), fontsize=size,
        borderpad=0, borderaxespad=points / size, columnspacing=1.5,
    )  # fmt: skip


def mark(ax, words: str, epoch: float, rate: float, epochs: float) -> None:
    """``words`` beside a point of a policy, on the side with more room."""
    late = epoch > epochs / 2
    offset, side = ((-14, -4), "right") if late else ((14, -4), "left")
    ax.annotate(words, (epoch, rate), offset, textcoords="offset points", ha=side)


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG of less than 200 kB: with as many colours, up to 256, as that allows, or at last smaller."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    picture = Image.open(buffer).convert("RGB")
    while True:
        source = picture
        if not picture.getcolors(2**16):  # photographs: to choose 256 of as many colours would take a minute
            source = picture.point([value & 0b11111100 | value >> 6 for value in range(256)] * 3)
        for colours in (256, 224, 160, 96):
            buffer = io.BytesIO()
            reduced = source.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            reduced.save(buffer, format="png", optimize=True)
            if buffer.tell() < LIMIT:
                return buffer.getvalue()
        picture = picture.resize((picture.width // 2, picture.height // 2))


def save(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` as a PNG of less than 200 kB; returns its path. Raises ``InputError`` where it cannot."""
    path = Path(path)
    check("path", str(path), path.suffix.lower() == ".png", "a name that ends in .png")
    data = png(figure)
    write_atomically(path, lambda part: part.write_bytes(data))
    return path
