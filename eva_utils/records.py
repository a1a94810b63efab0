"""What a run leaves as numbers and weights: written at its end, read again to explain it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch

from . import __version__
from .checkpoint import read_tensors, write_atomically, write_json, write_tensors
from .errors import InputError
from .evaluation import evaluate
from .images import Images
from .lr_finder import LRRange
from .model import ResNet9
from .precision import precision_again
from .train import Run


def load_model(run: str | Path) -> ResNet9:
    """The ``ResNet9`` of a finished run with its averaged weights, in eval mode, on the CPU.

    Raises ``InputError`` if there is none; for another network, load ``model.pt`` with ``torch.load`` yourself.
    """
    file = Path(run) / "model.pt"
    if not file.is_file():
        raise InputError(f"{str(file)!r} is not there; save_run writes it, as eva-utils train does at the end of a run")
    try:
        state = read_tensors(file)
        if "prep.conv.weight" not in state:
            raise InputError("it is of another network than ResNet9; torch.load reads its weights")
        width, classes = state["prep.conv.weight"].shape[0], state["head.linear.weight"].shape[0]
        model = ResNet9(classes, width)
        model.load_state_dict(state)
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).split("\n")[0]
        raise InputError(f"{str(file)!r} cannot be read as a model ({reason})") from error
    return model.eval()


def save_run(folder: str | Path, run: Run, test: Images, rates: LRRange | None = None, reasons=None) -> dict:
    """Write history.csv, lr.csv, model.pt and at last results.json into ``folder``; print and return the results.

    ``rates`` and ``reasons`` (of lr_min and lr_max; default: those of ``rates``) say where the rates came from.
    """
    folder = Path(folder)
    write_csv(folder / "history.csv", run.history)
    write_csv(folder / "lr.csv", run.steps)
    write_tensors(folder / "model.pt", {key: value.cpu() for key, value in run.ema.state_dict().items()})
    results = _results(run, rates, reasons or (rates.reasons if rates else {}), test)
    write_json(folder / "results.json", results)
    augment = run.settings["augment"]
    # TTA by flips is for networks that saw flipped images; what a pipeline of one's own does is not known.
    mirrored = augment["flip"] if isinstance(augment, dict) else augment is not None
    print(f"Accuracy on {len(test):,} test images after epoch {results['epochs']}, in per cent:")
    for key, words in (
        ("test_accuracy", "weights of the last step"),
        ("test_accuracy_tta", "the same, averaged over the mirror image (flip TTA)"),
        ("test_accuracy_ema", "averaged weights (EMA)"),
        ("test_accuracy_ema_tta", "averaged weights and flip TTA"),
    ):
        if mirrored or not key.endswith("tta"):
            print(f"  {results[key]:6.2f}  {words}")
    unit, size = ("minutes", 60) if results["seconds_total"] > 100 else ("seconds", 1)
    training, total = (results[key] / size for key in ("seconds_train", "seconds_total"))
    print(f"{training:.1f} {unit} of training, {total:.1f} with the range test and an evaluation each epoch")
    print(f"Numbers and weights are in {folder}")
    return results


def _results(run: Run, rates: LRRange | None, reasons: dict, test_images: Images) -> dict:
    last, settings = run.history[-1], run.settings
    precision = precision_again(next(run.model.parameters()).device, run.device, run.precision)
    finder = rates.seconds if rates else 0.0
    return {
        **{key: settings[key] for key in ("data", "n_train", "n_test", "seed", "batch_size", "ema")},
        # None for a policy that has no such number.
        **{key: settings.get(f"schedule.{key}") for key in ("epochs", "peak_epoch", "lr_min", "lr_max")},
        "lr_reasons": reasons,
        "params": settings["params"],
        "test_accuracy": last["test_accuracy"],
        "test_accuracy_tta": evaluate(run.model, test_images, tta=True, precision=precision).accuracy,
        "test_accuracy_ema": last["test_accuracy_ema"],
        "test_accuracy_ema_tta": evaluate(run.ema, test_images, tta=True, precision=precision).accuracy,
        "train_accuracy": last["train_accuracy"],
        "skipped_steps": sum(row["skipped"] for row in run.history),
        "seconds_total": finder + run.seconds_total,
        "seconds_train": run.seconds_train,
        "seconds_lr_finder": finder,
        "images_per_second": run.images_per_second,
        "device": run.device,
        "precision": run.precision,
        "torch": torch.__version__,
        "version": __version__,
    }


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no settings")
        return value
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); is this the folder of a finished run?") from error


def write_csv(path: Path, rows: list[dict]) -> None:
    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def read_csv(path: Path) -> list[dict]:
    try:
        with path.open(newline="", encoding="utf8") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); is this the folder of a finished run?") from error
