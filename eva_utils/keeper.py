"""What of a training is kept in its folder, when, and whether what is there belongs to it."""

from __future__ import annotations

import contextlib
import copy
import time
from pathlib import Path

import torch

from . import __version__
from .augment import mirrors
from .data import Images
from .device import describe
from .errors import InputError, check
from .identity import answers, same_answers, weights_crc
from .look import confusion, evaluate, predict
from .processes import on_first, rank, world_size
from .run import (
    CHECKPOINT,
    CONFIG,
    HISTORY,
    MODEL,
    RANGE,
    RESULTS,
    STEPS,
    TRAINED,
    differences,
    forget,
    plain,
    read_json,
    read_tensors,
    write_csv,
    write_json,
    write_tensors,
)  # fmt: skip
from .train import Trainer

SAVE_SECONDS = 20  # between two checkpoints: after each epoch of half a second they would take longer than training


class Keeper:
    """What of a training is kept in its folder, and when."""

    def __init__(self, trainer: Trainer, settings: dict, folder: Path | None, start: float) -> None:
        self.trainer, self.settings, self.folder = trainer, settings, folder
        self.start, self.before = start, 0.0  # of this call; seconds of the calls before
        self.last = start  # when something was saved
        self.saved = 0  # epochs in the checkpoint
        self.done_before = False
        self.where = {"device": describe(trainer.device), "precision": trainer.precision}  # the last epoch was computed
        self.kept = copy.deepcopy(trainer.model.state_dict())

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def begin(self, fresh: bool, test) -> None:
        """Go on from the checkpoint in the folder, if there is one. Raises ``InputError`` if it is another run's."""
        state = on_first(self._stored)(fresh)
        if state is not None:
            self._compare(state, test)
            self.trainer.load_state_dict(state)
            self.before, self.saved = state["seconds"], len(self.trainer.history)
            self.settings = state["settings"]
            self.kept = copy.deepcopy(self.trainer.model.state_dict())
            before, now = state["processes"], world_size()
            change = f", {before} process{'es' * (before > 1)} so far, {now} from here on" if before != now else ""
            rest = f"going on after epoch {self.saved}{change}"
            if self.saved == self.trainer.epochs:
                self.where, rest, self.done_before = state["where"], "finished, nothing to compute", True
            print(f"{self.folder / CHECKPOINT}: {rest}")
        if not all(p.isfinite().all() for p in self.trainer.model.parameters()):
            raise InputError("the model has weights that are not finite, from a run that failed perhaps; make it anew")
        if self.folder and rank() == 0:
            config = read_json(self.folder / CONFIG) if (self.folder / CONFIG).is_file() else {}
            policy = {"name": type(self.trainer.schedule).__name__, **getattr(self.trainer.schedule, "__dict__", {})}
            write_json(self.folder / CONFIG, config | plain({"recipe": self.trainer.recipe, "policy": policy}))

    def _stored(self, fresh: bool) -> dict | None:
        if self.folder is None or not (file := self.folder / CHECKPOINT).is_file():
            return None
        state = None
        with contextlib.suppress(InputError) if fresh else contextlib.nullcontext():
            found = read_tensors(file)
            check(str(file), sorted(found), {"settings", "seconds"} <= found.keys(), "a checkpoint of fit; delete it")
            state = found
        if not fresh:
            return state
        same = state is not None and state["settings"]["first_weights"] == self.settings["first_weights"]
        print(f"{self.folder}: starting over from the model's weights, "
              f"{'the same' if same else 'not those'} as the run before began with")  # fmt: skip
        forget(self.folder, *TRAINED)
        return None

    def _compare(self, state: dict, test) -> None:
        """Raises ``InputError`` unless the checkpoint is of this run: settings, first weights, what the network does.

        The model may have the run's first weights, or those that it was stopped or finished with.
        """
        there, here = dict(state["settings"]), dict(self.settings)
        if here["first_weights"] == state["weights"]:
            here["first_weights"] = there["first_weights"]
        changed = differences(there, here)
        if not changed:
            probe = copy.deepcopy(self.trainer.model)
            try:
                probe.load_state_dict(state["model"])
                same = same_answers(probe, test, state["answers"])
            except RuntimeError:  # layers have other names
                same = False
            if not same:
                changed = "  what the network computes: another forward() with the same weights"
        if changed:
            hint = ""
            if "first_weights" in changed:
                hint = "; make the model anew after torch.manual_seed(recipe.seed), or load_model(folder)"
            if "policy" in changed and len(state["history"]) == there["policy"]["epochs"]:
                hint = "; a one-cycle cannot be prolonged: fit(load_model(folder), ...) into a new folder trains on"
            raise InputError(
                f"{str(self.folder)!r} holds another run:\n{changed}\n"
                f"choose another folder, or start over with fresh=True (--fresh){hint}"
            )

    def after_epoch(self, test) -> None:
        """Write the history, and a checkpoint if one is due. What fails in the middle is tried again at the next."""
        trainer, now = self.trainer, time.perf_counter()
        done = len(trainer.history) == trainer.epochs
        due = self.folder is not None and (done or on_first(lambda: now - self.last >= SAVE_SECONDS)())
        if due:
            state = trainer.state_dict() if rank() == 0 else {}

            def save() -> None:
                more = {"settings": self.settings, "where": self.where, "weights": weights_crc(trainer.model)}
                more["answers"] = answers(trainer.model, test)
                more |= {"processes": world_size(), "version": __version__, "seconds": self.seconds()}
                write_tensors(self.folder / CHECKPOINT, state | more)

            kept = copy.deepcopy(trainer.model.state_dict())
            if on_first(self._try)(save, done):
                self.last, self.saved, self.kept = time.perf_counter(), len(trainer.history), kept
        if self.folder and rank() == 0:
            # After the checkpoint, and apart: what is put back has to be what it holds, even if a table fails.
            self._try(lambda: write_csv(self.folder / HISTORY, trainer.history), raising=False)
            if due:
                self._try(lambda: write_csv(self.folder / STEPS, trainer.steps), raising=False)

    @staticmethod
    def _try(write, raising: bool) -> bool:
        try:
            write()
        except InputError as error:
            if raising:
                raise
            print(f"{error}; training goes on, and tries again after a later epoch", flush=True)
            return False
        return True

    def put_back(self) -> None:
        """After a training that was stopped: the weights of the last checkpoint, or those it began with."""
        self.trainer.model.load_state_dict(self.kept)

    def finish(self, train, test) -> dict:
        """The results; with a folder, model.pt and results.json in it."""
        trainer, schedule, last = self.trainer, self.trainer.schedule, self.trainer.history[-1]
        recall = tta = None
        about = dict.fromkeys(("classes", "mean", "std", "image_size"))
        # A run that another device has finished is looked at in the format that this one can.
        precision = self.where["precision"] if self.where["device"] == describe(trainer.device) else "auto"
        if isinstance(train, Images) and isinstance(test, Images):
            about = {key: plain(getattr(train, key)) for key in ("classes", "mean", "std")}
            about["image_size"] = list(train.pixels.shape[1:3])
            recall = confusion(trainer.ema, test, predict(trainer.ema, test, precision=precision)).recall
            if mirrors(trainer.recipe.augment):
                tta = evaluate(trainer.ema, test, tta=True, precision=precision).accuracy
        rates = {key: getattr(schedule, key, None) for key in ("epochs", "peak_epoch", "lr_min", "lr_max")}
        test_of = read_json(self.folder / RANGE) if self.folder and (self.folder / RANGE).is_file() else {}
        reasons = {
            key: test_of["reasons"][key] if test_of and test_of[key] == rates[key] else "given"
            for key in ("lr_min", "lr_max")
        }
        finder = test_of["seconds"] if any(reason != "given" for reason in reasons.values()) else 0.0
        results = {
            "data": getattr(train, "name", None),
            **{key: about[key] for key in ("classes", "image_size")},
            "n_train": trainer.images,
            "n_test": trainer.tested,
            "seed": trainer.recipe.seed,
            "batch_size": trainer.recipe.batch_size,
            **rates,
            "lr_reasons": reasons,
            "params": sum(p.numel() for p in trainer.model.parameters()),
            "test_accuracy": last["test_accuracy"],
            "test_accuracy_ema": last["test_accuracy_ema"],
            "test_accuracy_ema_tta": tta,
            "train_accuracy": last["train_accuracy"],
            "recall": recall,
            "skipped_steps": sum(row["skipped"] for row in trainer.history),
            "seconds_total": finder + (self.before if self.done_before else self.seconds()),
            "seconds_train": trainer.seconds_train,
            "seconds_lr_finder": finder,
            "images_per_second": trainer.images * trainer.epochs / trainer.seconds_train,
            **self.where,
            "torch": torch.__version__,
            "version": __version__,
        }
        if self.folder:
            weights = {key: value.cpu() for key, value in trainer.ema.state_dict().items()}
            write_tensors(self.folder / MODEL, {"weights": weights, **about})
            write_csv(self.folder / HISTORY, trainer.history)
            write_csv(self.folder / STEPS, trainer.steps)
            write_json(self.folder / RESULTS, results)
        return results
