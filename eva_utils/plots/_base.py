"""What all figures share: the style, the title, axes of epochs and of accuracy, words at the ends of lines, saving."""

import functools
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from ..errors import check
from ..run import write_bytes

SCREEN, FINE = 100, 200  # dots an inch: in a notebook, and of saved figures unless they are made of many pictures
# Words in each have a contrast of 4.5 : 1 or more on white; the colour-blind can tell the first three apart.
COLORS = BLUE, ORANGE, GREEN, *_ = ("#0072b2", "#b85600", "#00694c", "#1f1f1f", "#8f4fa8", "#6e6e6e")
GREY = "0.35"
STYLE = {key: value for key, value in sns.axes_style("whitegrid").items() if not key.startswith("font.")} | {
    "grid.color": ".9", "axes.edgecolor": ".6", "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 11,
    "font.size": 10, "xtick.labelsize": 10, "ytick.labelsize": 10, "grid.linewidth": 0.8, "axes.linewidth": 0.8,
    "text.parse_math": False, "text.usetex": False,  # the names of classes: "5$ or 10$" is no formula
    "figure.titlesize": 13, "figure.titleweight": "bold", "legend.frameon": False, "legend.fontsize": 10,
}  # fmt: skip


class Picture(Figure):
    """A figure of ``width`` x ``height`` inches that a notebook shows as a cell's last expression."""

    def __init__(self, width, height, title="", *, alt="", dpi=FINE) -> None:
        super().__init__(figsize=(width, height), dpi=dpi, layout="constrained")
        self.headline, self.alt = self.suptitle(title, x=0.01, ha="left") if title else None, alt

    def _repr_png_(self) -> tuple[bytes, dict]:
        """With its title as alternative text, for who cannot see it, unless it has another."""
        return png(self, SCREEN), {"alt": self.alt or self.headline.get_text().strip()}


def png(figure: Figure, dpi="figure") -> bytes:
    """``figure`` in 256 colours: a third of the bytes, and a notebook has a dozen of figures."""
    large, small = io.BytesIO(), io.BytesIO()
    figure.savefig(large, dpi=dpi, format="png", bbox_inches="tight", pad_inches=0.15, facecolor="white")
    # The default palette leaves out what is rare, and a green frog turns brown.
    few = Image.open(large).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    few.save(small, "png", optimize=True)
    return small.getvalue()


def styled(draw: Callable) -> Callable:
    """``draw`` in this package's style, with an option ``about``: a second, lighter line of a picture's title."""

    @functools.wraps(draw)
    def wrapper(*args, about: str = "", **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            if about and (title := figure.headline):
                title.set_text(title.get_text() + "\n ")  # an empty line, which the layout makes room for
                figure.add_artist(matplotlib.text.Annotation(about, (0, 0), xycoords=title, va="bottom", color=GREY))
        return figure

    return wrapper


def policy_curve(ax, policy: Callable, end: float, color=BLUE, **style) -> None:
    """The rate that ``policy`` gives for every epoch from 0 to ``end``."""
    epoch = np.linspace(0, end, 2401)
    ax.plot(epoch, policy(epoch), color=color, **{"lw": 2} | style)
    ax.set_ylabel("learning rate")
    epoch_axis(ax, end)


def epoch_axis(ax, end: float) -> None:
    """From 0 to ``end``, with ticks at whole epochs: 0, 6, ... 24, or 0, 24, 48, 72."""
    ax.set(xlim=(0, end), xlabel="epoch")
    step = next((step for step in (1, 2, 3, 6, 12, 24) if end < 5.1 * step), end // 5)
    ax.xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(step))


def beside(ax, words: str, point: tuple, offset: tuple, coordinates="data", *, ha: str = "left", **style) -> None:
    """``words`` at ``offset`` (in points) from ``point``, in the axes or out of them."""
    style = {"xycoords": coordinates, "textcoords": "offset points", "va": "center", "fontsize": 10} | style
    ax.annotate(words, point, offset, ha=ha, annotation_clip=False, **style)


def show_ends(ax, digits: int, *, accuracy: bool) -> None:
    """Show where lines over epochs end, and name them there; of lines with the same name and colour, their mean.

    accuracy: in per cent, from 70, or from lower where that is needed, and with a line at 90.
    """
    ends: dict[tuple, list[float]] = {}
    for line in ax.lines:
        ends.setdefault((line.get_label(), line.get_color()), []).append(line.get_ydata()[-1])
    if accuracy:
        ax.set_ylim(max(0, min(70, 5 * (min(map(min, ends.values())) // 5) - 10)), min(ax.get_ylim()[1], 100.5))
        ax.axhline(90, color="0.6", lw=1, zorder=1)
    (low, high), below = ax.get_ylim(), -1.0
    # 12 points, of axes that take 70 % of the figure, or of their row of it.
    line = 17 * ax.get_gridspec().nrows / (72 * ax.figure.get_figheight())
    named = sorted((np.mean(some), name, color) for (name, color), some in ends.items())
    for above, (value, name, color) in zip(range(len(named) - 1, -1, -1), named, strict=True):
        below = max((value - low) / (high - low), below + line)  # no words over others
        place = 1, min(below, 1 - line * above)
        beside(ax, f"{value:.{digits}f} {name}", place, (7, 0), "axes fraction", color=color)


def save(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` as a PNG, whole or not at all; returns its path. Raises ``InputError`` where it cannot."""
    path = Path(path).expanduser()
    check("path", str(path), path.suffix.lower() == ".png", "a name that ends in .png")
    write_bytes(path, png(figure))
    return path
