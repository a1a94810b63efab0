"""Every figure: each function returns one and shows none, without pyplot. All take ``about``: data, device, n."""

from ._base import save
from .curves import annihilation, applied, compare, history, lr_range, policies, zigzag
from .pictures import augmented, confusion, gradcam, misclassified, samples

__all__ = [
    "annihilation", "applied", "augmented", "compare", "confusion", "gradcam", "history", "lr_range", "misclassified",
    "policies", "samples", "save", "zigzag",
]  # fmt: skip
