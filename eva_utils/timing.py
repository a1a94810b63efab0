"""How long a training will take, before it is started."""

import contextlib
import io
import os

import torch

from .data import Images
from .device import choose_device
from .fitting import duration, fit
from .model import ResNet9
from .recipe import Recipe
from .schedule import OneCycle


def estimate(epochs: int = 24, width: int = 64, images: int = 50_000) -> str:
    """About how long ``find_lr`` and ``fit`` take here for ``epochs`` epochs of ``images`` 32 x 32 images, in words.

    Two short epochs on random pixels are trained for it, which takes some seconds, and the second one is timed. There
    are a fifth as many test images as training images, as in CIFAR-10, and the range test counts as one more epoch.
    """
    gpu = choose_device().type == "cuda"
    n = 4096 if gpu else 256
    with torch.random.fork_rng([]), contextlib.redirect_stdout(io.StringIO()):
        pixels, labels = torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8), torch.arange(n) % 10
        some = Images(pixels, labels, tuple("0123456789"), (0.5,) * 3, (0.3,) * 3)
        model, schedule, recipe = ResNet9(10, width), OneCycle(2, 1, 1e-6, 2e-6), Recipe(batch_size=min(n, 512))
        first, second = fit(model, some, some[: n // 5], schedule, recipe).history
    seconds = (second["seconds"] - first["seconds"]) * (epochs + 1) * images / n
    words = f"{epochs} epochs of {images:,} images at width {width} take about {duration(seconds)} here."
    colab = "COLAB_RELEASE_TAG" in os.environ
    cure = "Runtime > Change runtime type > T4 GPU." if colab else "QUICK = True is quick."
    return words if gpu else f"{words}\nThere is no CUDA GPU: {cure}"
