"""See super-convergence for yourself: CIFAR-10 in 24 epochs, with a one-cycle policy whose rates are found.

Importing this package opens no connection and loads nothing heavy: each name is fetched from its module when
it is first used, so ``eva-utils --help`` answers before torch could be imported.
"""

import importlib
import os

__version__ = "0.1.0"

# Read once, when that library starts, so it is set before anything is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else albumentations asks the network for its newest version

_NAMES = {
    "errors": ("InputError",),
    "schedule": ("Triangular", "Triangular2", "ExpRange", "OneCycle", "StepDecay"),
    "model": ("ResNet9", "summary"),
    "data": ("Images", "digits", "from_arrays"),
    "download": ("cifar10",),
    "photos": ("image_folder", "load_data"),
    "augment": ("Augment",),
    "recipe": ("Recipe",),
    "lr_finder": ("find_lr",),
    "fitting": ("fit",),
    "look": ("evaluate", "predict", "misclassified", "confusion", "load_model", "classify"),
    "explain": ("gradcam",),
    "device": ("environment",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", "plots", *_MODULE_OF]


def __getattr__(name: str):
    if name == "plots":
        return importlib.import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        return getattr(importlib.import_module("." + _MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
