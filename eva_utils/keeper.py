"""What of a training is kept in its folder, when, and whether what is there belongs to it."""

import contextlib
import copy
import time
from collections.abc import Callable
from pathlib import Path

from . import run
from .errors import InputError, check
from .identity import answers, crc32, same_answers
from .processes import on_first

SAVE_SECONDS = 20  # between two checkpoints: after each epoch of half a second they would take longer than training
HINTS = {
    "first_weights": "; make the model anew after torch.manual_seed(recipe.seed), or load_model(folder)",
    "policy.epochs": "; a one-cycle cannot be prolonged: fit(load_model(folder), ...) into a new folder trains on",
}


class Keeper:
    """Keeps what ``trainer`` has done: in ``folder``, if there is one; after a stop, in the model.

    settings: what has to be the same for a call to go on (``identity``). test: its images or batches.
    """

    def __init__(self, trainer, settings: dict, test, folder: Path | None) -> None:
        self.trainer, self.settings, self.test, self.folder = trainer, settings, test, folder
        self.mark(self.weights_now())

    def weights_now(self) -> dict:
        return copy.deepcopy(self.trainer.model.state_dict())

    def mark(self, weights: dict) -> None:
        """The last checkpoint, or the beginning: when it was, after how many epochs, with which weights."""
        self.when, self.epochs, self.weights = time.perf_counter(), len(self.trainer.history), weights

    def put_back(self) -> None:
        """After a training that was stopped: the model as the last checkpoint has it, or as it came."""
        self.trainer.model.load_state_dict(self.weights)

    def begin(self, fresh: bool) -> None:
        """Go on from the folder's checkpoint, if there is one. Raises ``InputError`` if it is another run's."""
        if self.folder and (state := on_first(self._stored)(fresh)):
            self._compare(state)
            self.trainer.load_state_dict(state)
            self.mark(self.weights_now())
            rest = "finished, nothing to compute" if self.trainer.done else f"going on after epoch {self.epochs}"
            print(f"{self.folder / run.CHECKPOINT}: {rest}")

    def _stored(self, fresh: bool) -> dict | None:
        file, state = self.folder / run.CHECKPOINT, None
        with contextlib.suppress(InputError) if fresh else contextlib.nullcontext():
            if file.is_file() or run.copy_of(file):
                found = run.read_tensors(file)
                check(str(file), sorted(found), {"settings", "facts"} <= found.keys(), "a checkpoint of fit; delete it")
                state = found
        if fresh:
            which = ""
            if state:
                same = state["settings"]["first_weights"] == self.settings["first_weights"]
                which = f", {'those' if same else 'not those'} that the run before began with"
            print(f"{self.folder}: starting over from the model's weights{which}")
            run.forget(self.folder, *run.TRAINED)
        elif state is None:
            run.forget(self.folder, run.RESULTS)  # it marks a finished run
        return None if fresh else state

    def _compare(self, state: dict) -> None:
        """The model may have the run's first weights, or those that it was stopped or finished with."""
        there, here = state["settings"], self.settings
        if here["first_weights"] == state["weights"]:  # the next checkpoint, too, shall say what the run began with
            here["first_weights"] = there["first_weights"]
        changed = run.differences(there, here)
        if not changed and not same_answers(self.trainer.model, self.test, state["model"], state["answers"]):
            changed = "  what the network computes: another forward() with the same weights"
        if changed:
            raise InputError(
                f"{str(self.folder)!r} holds another run:\n{changed}\nchoose another folder, or start over with "
                "fresh=True (--fresh)" + "".join(hint for key, hint in HINTS.items() if key in changed)
            )

    def after_epoch(self) -> None:
        """Write a checkpoint, if one is due, and the history."""
        if self.folder is None:
            return
        done = self.trainer.done
        try:
            if done or on_first(lambda: time.perf_counter() - self.when >= SAVE_SECONDS)():
                weights = self.weights_now()
                on_first(self._save)()
                self.mark(weights)
            # After the checkpoint: what is put back has to be what it holds, even if this fails.
            on_first(run.write_csv)(self.folder / run.HISTORY, self.trainer.history)
        except InputError as error:
            if done:
                raise
            print(f"{error}; training goes on, and tries again after a later epoch", flush=True)

    def _save(self) -> None:
        model, state = self.trainer.model, self.trainer.state_dict()
        state |= {"settings": self.settings, "weights": crc32(model.state_dict()), "answers": answers(model, self.test)}
        run.write_tensors(self.folder / run.CHECKPOINT, state)

    def finish(self, results: Callable[[], dict], about: dict) -> dict:
        """The results; with a folder, they are in it, beside model.pt, which tells ``about`` the images, too."""
        if self.folder is None:
            return results()
        ema = getattr(self.trainer.ema, "_orig_mod", self.trainer.ema)  # the network that torch.compile has wrapped
        weights = {key: value.cpu() for key, value in ema.state_dict().items()}
        run.write_tensors(self.folder / run.MODEL, {"weights": weights, **about})
        run.write_csv(self.folder / run.HISTORY, self.trainer.history)
        run.write_csv(self.folder / run.STEPS, self.trainer.steps)
        file = self.folder / run.RESULTS
        if not file.is_file() or run.read_json(file).get("classes") != about["classes"]:  # which may get other names
            # Last, since it marks a finished run.
            run.write_json(file, results())
        return run.read_json(file)
