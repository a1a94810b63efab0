"""See super-convergence for yourself: CIFAR-10 in 24 epochs, with a one-cycle policy whose rates are found.

Importing this package opens no connection and loads nothing heavy: each name is fetched from its module when
it is first used, so ``eva-utils --help`` answers before torch could be imported.
"""

import importlib
import os

__version__ = "0.1.0"

# Read once, when that library starts, so it is set before anything is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else albumentations asks the network for its newest version

_MODULE_OF = {
    "InputError": "errors",
    "RunError": "errors",
    "Triangular": "schedule",
    "Triangular2": "schedule",
    "ExpRange": "schedule",
    "OneCycle": "schedule",
    "StepDecay": "schedule",
    "ResNet9": "model",
    "summary": "model",
    "Images": "images",
    "cifar10": "images",
    "image_folder": "images",
    "digits": "images",
    "from_arrays": "images",
    "Augment": "augment",
    "find_lr": "lr_finder",
    "fit": "train",
    "evaluate": "evaluation",
    "predict": "evaluation",
    "misclassified": "explain",
    "confusion": "explain",
    "gradcam": "explain",
    "load_data": "job",
    "load_model": "records",
    "save_run": "records",
    "environment": "precision",
    "estimate": "train",
}
__all__ = ["__version__", "plots", *_MODULE_OF]


def __getattr__(name: str):
    if name == "plots":
        return importlib.import_module(".plots", __name__)
    if name in _MODULE_OF:
        return getattr(importlib.import_module("." + _MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
