"""Every figure. Each function returns a figure and shows none; those with one panel can draw into an ``ax`` you give.

Figures are made without pyplot's global state: in a notebook the last expression of a cell shows its figure, once, and
in a script nothing opens. ``save`` writes a PNG.
"""

from ._base import save
from .pictures import augmented, confusion, gradcam, misclassified, samples
from .rates import annihilation, parity, policies, schedule, zigzag
from .training import applied, compare, history, lr_range

__all__ = [
    "annihilation",
    "applied",
    "augmented",
    "compare",
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
