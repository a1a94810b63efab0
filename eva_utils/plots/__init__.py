"""Every figure. Each function takes an optional ``ax`` (or makes a figure) and returns the figure; none shows it.

Figures are made without pyplot's global state: in a notebook the last expression of a cell shows its figure, once, and
in a script nothing opens. ``save`` writes a PNG.
"""

from ._base import save
from .curves import annihilation, applied, history, lr_range, parity, policies, schedule, zigzag
from .pictures import augmented, confusion, gradcam, misclassified, samples

__all__ = [
    "annihilation",
    "applied",
    "augmented",
    "confusion",
    "gradcam",
    "history",
    "lr_range",
    "misclassified",
    "parity",
    "policies",
    "samples",
    "save",
    "schedule",
    "zigzag",
]
