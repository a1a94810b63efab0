"""The whole job as three functions, one for each command: train, explain, cycle."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import torch

from . import __version__, plots
from .augment import Augment
from .checkpoint import write_atomically
from .errors import InputError
from .evaluation import evaluate, predict
from .explain import confusion, gradcam, misclassified
from .images import Images, cifar10, digits, image_folder
from .lr_finder import LRRange, find_lr
from .model import ResNet9
from .schedule import ExpRange, OneCycle, Triangular, Triangular2
from .train import Run, fit

HERE_ONLY = ("root", "device", "precision", "workers")  # where and how a run is computed, not what
SMALLEST = 8  # pixels: ResNet9 halves the side three times
LEFT_BY_A_RUN = ("results.json", "checkpoint.pt", "lr_range.json", "history.csv", "lr.csv", "model.pt")


def load_data(data: str, root: str = "data") -> tuple[Images, Images]:
    """(train, test) of "cifar10" (archive in ``root``), "digits" or an image folder's path."""
    if data == "cifar10":
        return cifar10(root)
    if data == "digits":
        return digits()
    if not Path(data).is_dir():
        raise InputError(f"data is {data!r}; it has to be 'cifar10', 'digits' or a folder with train/ and test/ inside")
    return image_folder(data)


def load_model(run: str | Path) -> ResNet9:
    """The network of a finished run with its averaged weights, in eval mode, on the CPU."""
    file = Path(run) / "model.pt"
    if not file.is_file():
        raise InputError(f"{str(file)!r} is not there; it is written at the end of a run")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        width, classes = state["prep.conv.weight"].shape[0], state["head.linear.weight"].shape[0]
        model = ResNet9(classes, width)
        model.load_state_dict(state)
    except Exception as error:  # a damaged file fails in many ways
        raise InputError(f"{str(file)!r} cannot be read as a model ({str(error).splitlines()[0]})") from error
    return model.eval()


def train(
    data, out, root, fresh, epochs, peak_epoch, batch_size, lr_min, lr_max, width, seed, padding, flip, cutout,
    label_smoothing, weight_decay, precision, device, engine, workers,
) -> dict:  # fmt: skip
    """Rate finding, training, evaluation, figures; returns what ``results.json`` holds. See ``eva-utils train -h``."""
    config = {key: value for key, value in locals().items() if key not in ("out", "fresh")}
    out = Path(out)
    if _finished(out, config, fresh):
        print(f"{out} holds this run, finished; nothing to compute (--fresh starts over)")
        return json.loads((out / "results.json").read_text(encoding="utf8"))
    # Both are checked before any work: a peak outside the epochs, a hole larger than the image.
    OneCycle(epochs, peak_epoch, *_placeholders(lr_min, lr_max))
    augment = Augment(padding, flip, cutout)
    train_images, test_images = load_data(data, root)
    print(f"{train_images}\n{test_images}")
    if (side := min(train_images.pixels.shape[1:3])) < SMALLEST:
        raise InputError(f"the images of {data!r} have a side of {side} pixels; the network needs {SMALLEST} or more")
    torch.manual_seed(seed)
    model = ResNet9(len(train_images.classes), width)
    _write_json(out / "config.json", config)

    shared = {"augment": augment, "batch_size": batch_size, "seed": seed, "label_smoothing": label_smoothing,
              "weight_decay": weight_decay, "precision": precision, "device": device, "engine": engine,
              "workers": workers, "checkpoint": out}  # fmt: skip
    rates = None
    reasons = {"lr_min": "given", "lr_max": "given"}
    if "find" in (lr_min, lr_max):
        rates = find_lr(model, train_images, **shared)
        reasons |= {key: rates.reasons[key] for key in reasons if config[key] == "find"}
        lr_min = rates.lr_min if lr_min == "find" else lr_min
        lr_max = rates.lr_max if lr_max == "find" else lr_max
    for key, value in (("lr_min", lr_min), ("lr_max", lr_max)):
        print(f"{key.upper()} = {value:.4g}: {reasons[key]}")
    schedule = OneCycle(epochs, peak_epoch, lr_min, lr_max)
    run = fit(model, train_images, test_images, schedule, **shared)

    _write_csv(out / "history.csv", run.history)
    _write_csv(out / "lr.csv", run.steps)
    write_atomically(out / "model.pt", lambda part: torch.save(run.ema.state_dict(), part))
    probabilities = predict(run.ema, test_images, precision=precision)
    results = _results(run, rates, reasons, test_images)
    draw(out / "figures", run.history, run.steps, rates, train_images, test_images, augment, run.ema, probabilities)
    _write_json(out / "results.json", results)
    print(
        f"test accuracy after epoch {epochs}: {results['test_accuracy']:.2f} %, averaged weights (EMA) "
        f"{results['test_accuracy_ema']:.2f} %, EMA with flip TTA {results['test_accuracy_ema_tta']:.2f} %\n"
        f"everything is in {out}"
    )
    return results


def explain(run) -> None:
    """Draw the figures of the finished run in the folder ``run`` again."""
    run = Path(run)
    config, results = (_read_json(run / name) for name in ("config.json", "results.json"))
    rates = LRRange.load(run / "lr_range.json") if (run / "lr_range.json").is_file() else None
    model = load_model(run)
    train_images, test_images = load_data(config["data"], config["root"])
    if (k := len(test_images.classes)) != (found := model.head.linear.out_features):
        raise InputError(f"data {config['data']!r} has {k} classes, but the model of {str(run)!r} has {found}")
    augment = Augment(config["padding"], config["flip"], config["cutout"])
    probabilities = predict(model, test_images, precision=results["precision"])
    history, steps = (_read_csv(run / name) for name in ("history.csv", "lr.csv"))
    draw(run / "figures", history, steps, rates, train_images, test_images, augment, model, probabilities)
    print(f"figures are in {run / 'figures'}")


def cycle(out, lr_min, lr_max, step_size, cycles) -> None:
    """Draw the zigzag (bare and annotated) and the cyclic policies side by side."""
    if cycles < 1:
        raise InputError(f"cycles is {cycles}; it has to be 1 or more")
    zigzag = Triangular(lr_min, lr_max, step_size)
    end = 2 * step_size * cycles
    named = {
        "triangular": zigzag,
        "triangular2": Triangular2(lr_min, lr_max, step_size),
        "exp_range": ExpRange(lr_min, lr_max, step_size, gamma=0.1 ** (1 / end)),
        "one-cycle": OneCycle(end, end * 5 / 24, lr_min, lr_max),
    }
    for name, figure in {
        "zigzag": plots.zigzag(zigzag, cycles),
        "cycle": plots.zigzag(zigzag, cycles, annotate=True),
        "policies": plots.policies(named, end),
    }.items():
        print(plots.save(figure, Path(out) / f"{name}.png"))


def draw(folder: Path, history, steps, rates, train_images, test_images, augment, model, probabilities) -> None:
    """All figures of a run into ``folder``, instead of those that are there."""
    shutil.rmtree(folder, ignore_errors=True)
    figures = {
        "samples": plots.samples(train_images),
        "augmented": plots.augmented(train_images, augment),
        "lr_schedule": plots.applied(steps),
        "history": plots.history(history),
        "confusion": plots.confusion(confusion(model, test_images, probabilities)),
    }
    if rates:
        figures["lr_finder"] = plots.lr_range(rates)
    mistakes = misclassified(model, test_images, probabilities).pick(25)
    if len(mistakes):
        cams = gradcam(model, mistakes)
        figures |= {"misclassified": plots.misclassified(mistakes), "gradcam": plots.gradcam(cams)}
        figures |= {f"gradcam/{i + 1:02}": plots.gradcam(cams[i : i + 1], zoom=3) for i in range(len(mistakes))}
    else:
        print("no test image is misclassified: no gallery and no Grad-CAM")
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


def _results(run: Run, rates: LRRange | None, reasons: dict, test_images: Images) -> dict:
    last, settings = run.history[-1], run.settings
    precision = run.precision
    finder = rates.seconds if rates else 0.0
    return {
        **{key: settings[key] for key in ("data", "n_train", "n_test", "seed", "epochs", "peak_epoch", "batch_size")},
        **{key: settings[key] for key in ("lr_min", "lr_max")},
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
        "precision": precision,
        "torch": torch.__version__,
        "version": __version__,
    }


def _finished(out: Path, config: dict, fresh: bool) -> bool:
    """Whether ``out`` holds this very run, finished. Raises InputError if it holds another one."""
    if fresh:
        for name in LEFT_BY_A_RUN:
            (out / name).unlink(missing_ok=True)
    elif (out / "config.json").is_file():
        old = _read_json(out / "config.json")
        changed = [
            f"  {key}: {old.get(key)!r} there, {value!r} here"
            for key, value in config.items()
            if key not in HERE_ONLY and old.get(key) != value
        ]
        if changed:
            raise InputError(
                f"{str(out)!r} holds a run of another configuration:\n" + "\n".join(changed) + "\n"
                "choose another --out, or start over with --fresh"
            )
        return (out / "results.json").is_file()
    return False


def _placeholders(lr_min, lr_max) -> tuple[float, float]:
    """Rates to check the rest with, where they are still to be found."""
    if lr_min == "find":
        lr_min = 1e-3 if lr_max == "find" else lr_max / 2
    return lr_min, 2 * lr_min if lr_max == "find" else lr_max


def _write_json(path: Path, value) -> None:
    write_atomically(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf8"))


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); is this the folder of a finished run?") from error


def _write_csv(path: Path, rows: list[dict]) -> None:
    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def _read_csv(path: Path) -> list[dict]:
    try:
        with path.open(newline="", encoding="utf8") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); is this the folder of a finished run?") from error
