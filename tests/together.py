"""What test_distributed.py runs in 1, 2 and 3 processes: ``python together.py FOLDER`` with torchrun's environment.

Every process leaves what it saw and got as FOLDER/<processes>-<rank>.pt; at the end the last one makes a mistake.
"""

import itertools
import sys
from pathlib import Path

import torch
from torch import nn

from eva_utils import Augment, Images, InputError, OneCycle, Recipe, evaluate, find_lr, fit, keeper
from eva_utils.errors import check
from eva_utils.processes import on_first, process_group, rank, total, world_size

SCHEDULE = OneCycle(epochs=2, peak_epoch=1, lr_min=0.01, lr_max=0.1)
FLAT = OneCycle(epochs=1, peak_epoch=0.5, lr_min=1e-9, lr_max=2e-9)  # no weight moves
RECIPE = Recipe(augment=Augment(2, True, 4), batch_size=16, precision="fp32", device="cpu", workers=0)


class Frozen(nn.BatchNorm2d):
    """BatchNorm that keeps its statistics: what a step does is then a sum over images, however they are shared out."""

    def train(self, mode: bool = True):
        return super().train(False)


def images(n: int, seed: int) -> Images:
    """Noise of three shades, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    pixels = torch.randint(156, (n, 16, 16, 3), generator=generator) + 50 * labels[:, None, None, None]
    return Images(pixels.to(torch.uint8), labels, ("ant", "bee", "cat"), (0.5, 0.4, 0.6), (0.25, 0.3, 0.2), "tiny")


def network(norm=nn.BatchNorm2d) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip


def watched(model: nn.Module) -> list[torch.Tensor]:
    """What ``model`` will be given in training, a tensor a step."""
    seen = []
    model.register_forward_pre_hook(lambda module, x: seen.append(x[0].clone()) if module.training else None)
    return seen


def work(folder: Path) -> dict:
    train, test = images(38, 1), images(13, 2)  # in batches of 16: 16, 16 and 6
    left = {}
    for engine in ("batch", "albumentations"):
        model = network(Frozen)
        seen = watched(model)
        run = fit(model, train, test, SCHEDULE, RECIPE.replace(engine=engine))
        left[engine] = {
            "seen": seen,
            "gradients": {name: p.grad for name, p in model.named_parameters()},  # of the last step
            "weights": run.model.state_dict(),
            "ema": run.ema.state_dict(),
            "steps": run.steps,
            "history": run.history,
        }
        assert run.model is model
    left["alone"] = vars(evaluate(model, test, label_smoothing=0.2, precision="fp32"))
    left["sharded"] = vars(evaluate(model, test, label_smoothing=0.2, precision="fp32", sharded=True))
    left["few"] = vars(evaluate(model, test[:1], precision="fp32", sharded=True))  # fewer images than processes

    left["statistics"] = fit(network(), train[:36], test, FLAT, RECIPE.replace(batch_size=12)).model.state_dict()
    left["total"] = total(torch.tensor(2**60 + rank()))  # beyond what any float could hold

    # Stopped in the second epoch and gone on. The folder is rank 0's alone, as on machines that share no disk.
    own = folder / f"run-{world_size()}" if rank() == 0 else folder / "nowhere"
    left["whole"] = fit(network(), train, test, SCHEDULE, RECIPE).model.state_dict()
    model, steps = network(), itertools.count(1)

    def stop(module, x):
        if module.training and next(steps) == 5:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop)
    try:
        fit(model, train, test, SCHEDULE, RECIPE, folder=own)
    except KeyboardInterrupt:
        left["resumed"] = fit(network(), train, test, SCHEDULE, RECIPE, folder=own)
        left["resumed"] = left["resumed"].model.state_dict()
    assert rank() == 0 or not own.exists()

    model = network()
    seen = watched(model)
    rates = find_lr(model, train, RECIPE, steps=60)
    left["rates"] = (rates.lr_min, rates.lr_max, rates.curve.loss.tolist())
    left["range test"] = len(seen)
    try:
        on_first(check)("answer", rank(), world_size() == 0, "another")
    except InputError as error:
        left["refusal"] = str(error)
    print(f"rank {rank()} speaks")
    return left


def mistake() -> None:
    """Of two processes the last is given another seed; of three, the last has a fault in its program."""
    last = rank() == world_size() - 1
    if world_size() == 2:
        fit(network(), images(38, 1), images(13, 2), SCHEDULE, RECIPE.replace(seed=int(last)))
    if last:
        raise ZeroDivisionError("a fault")
    total(torch.zeros(1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    keeper.SAVE_SECONDS = 0
    folder = Path(sys.argv[1])
    try:
        with process_group():
            torch.save(work(folder), folder / f"{world_size()}-{rank()}.pt")
            mistake()
    except InputError as error:
        sys.exit(f"InputError: {error}")
