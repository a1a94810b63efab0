"""Training: what is applied is what was planned, and a run that was stopped ends like one that was not."""

import contextlib
import copy
import dataclasses
import itertools
import math
import random
import re
import signal
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Subset

from eva_utils import (
    Augment,
    InputError,
    OneCycle,
    Recipe,
    ResNet9,
    StepDecay,
    evaluate,
    find_lr,
    fit,
    keeper,
    load_model,
)
from eva_utils import run as run_module
from eva_utils import train as train_module
from eva_utils.batches import loader
from eva_utils.keeper import identity
from eva_utils.run import read_csv
from eva_utils.train import Trainer

SCHEDULE = OneCycle(epochs=3, peak_epoch=1, lr_min=0.01, lr_max=0.1)
BATCH = 7  # does not divide the 32 images, so the last batch of an epoch is smaller
STEPS = 5  # an epoch
RECIPE = Recipe(augment=Augment(padding=2, cutout=4), batch_size=BATCH, precision="fp32", device="cpu")
TIMES = {"seconds", "seconds_train", "images_per_second"}


@pytest.fixture(autouse=True)
def saved_after_each_epoch(monkeypatch):
    monkeypatch.setattr(keeper, "SAVE_SECONDS", 0)


@pytest.fixture
def train(tiny, cnn, device):
    """``fit`` on the tiny images, with whatever a test changes."""

    def run(model=None, schedule=SCHEDULE, images=tiny, folder=None, fresh=False, on_epoch=None, **options):
        recipe = RECIPE.replace(**{"device": device} | options)
        return fit(model or cnn(), *images, schedule, recipe, folder=folder, fresh=fresh, on_epoch=on_epoch)

    return run


def same(first: nn.Module, second: nn.Module) -> bool:
    """Bit by bit, BatchNorm's buffers included."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(a[key].cpu().equal(b[key].cpu()) for key in a)


def assert_same_run(first, second) -> None:
    assert same(first.model, second.model)
    assert same(first.ema, second.ema)
    assert first.steps == second.steps
    untimed = [[{k: v for k, v in row.items() if k not in TIMES} for row in run.history] for run in (first, second)]
    assert untimed[0] == untimed[1]


def at_step(number: int, model: nn.Module, act):
    """A context: within it, ``act(output)`` is done in the ``number``-th training step (from 1)."""
    calls = itertools.count(1)

    def hook(module, inputs, output):
        return act(output) if module.training and next(calls) == number else None

    return model.register_forward_hook(hook)


# The schedule


def test_applied_rates_are_the_planned_ones_at_every_step(train):
    run = train()
    assert len(run.steps) == SCHEDULE.epochs * STEPS
    for step, row in enumerate(run.steps):
        assert (row["step"], row["epoch"], row["skipped"]) == (step, step / STEPS, 0)
        assert row["applied"] == row["planned"] == SCHEDULE(step / STEPS)
    assert run.steps[0]["applied"] == SCHEDULE.lr_min
    assert run.steps[STEPS]["applied"] == SCHEDULE.lr_max == max(row["applied"] for row in run.steps)


def test_the_weights_move_by_the_applied_rate(tiny, train):
    # Without momentum and decay a step is -rate * gradient: the rate can be read off the weights themselves.
    model = ResNet9(3, width=4)
    again = copy.deepcopy(model)
    run = train(model, OneCycle(1, 0.5, 0.01, 0.1), momentum=0, weight_decay=0, device="cpu")
    for row, (x, y) in zip(run.steps, loader(tiny[0], RECIPE, torch.device("cpu")).epoch(0), strict=True):
        again.zero_grad()
        nn.functional.cross_entropy(again(x), y).backward()
        with torch.no_grad():
            for p in again.parameters():
                p -= row["applied"] * p.grad
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_parameter_groups_keep_the_ratio_of_their_rates(cnn, train):
    model, rates = cnn(), []

    def make(parameters):
        head = list(model[-1].parameters())
        others = [p for p in parameters if all(p is not q for q in head)]
        optimizer = torch.optim.AdamW([{"params": others, "lr": 0.1}, {"params": head, "lr": 1.0}])
        optimizer.register_step_pre_hook(lambda o, *_: rates.append([group["lr"] for group in o.param_groups]))
        return optimizer

    run = train(model, optimizer=make)
    assert [row["applied"] for row in run.steps] == [row["planned"] for row in run.steps] == [r[1] for r in rates]
    assert all(low == pytest.approx(high / 10) for low, high in rates)


# The step


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waits += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(tiny, cnn, device):
    counts = []
    for size in (8, 4):  # four steps and eight
        recipe = RECIPE.replace(batch_size=size, device=device)
        trainer = Trainer(cnn(), loader(tiny[0], recipe, torch.device(device)), SCHEDULE, recipe, "fp32")
        with Waits() as counted:
            trainer.epoch()
        counts.append(counted.waits)
    assert counts[0] == counts[1]


def test_an_overflow_skips_the_step_and_the_schedule_waits(train, monkeypatch):
    # The real scaler, which works on a CPU as well, and infinite gradients at chosen steps.
    real, calls, overflows = torch.amp.GradScaler, itertools.count(), {0, 2, 3, 10}

    class Scaler(real):
        def scale(self, loss):
            return super().scale(loss) * (math.inf if next(calls) in overflows else 1)

    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: Scaler(device, init_scale=4.0))
    run = train()
    taken = 0
    for i, row in enumerate(run.steps):
        assert (row["step"], row["skipped"]) == (taken, int(i in overflows))
        assert row["applied"] == row["planned"] == SCHEDULE(taken / STEPS)
        taken += not row["skipped"]
    assert run.results["skipped_steps"] == len(overflows)


# History and average


def test_history_has_a_row_an_epoch_and_the_last_is_the_result(tiny, train):
    rows = []
    run = train(label_smoothing=0.2, on_epoch=lambda row: rows.append(dict(row)) or row.clear())
    assert [row["epoch"] for row in run.history] == [1, 2, 3] and rows == run.history
    for row in run.history:
        counts = [BATCH] * (STEPS - 1) + [32 - BATCH * (STEPS - 1)]  # each image counts once
        losses = [step["loss"] for step in run.steps[(row["epoch"] - 1) * STEPS :][:STEPS]]
        assert row["train_loss"] == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
    for model, suffix in ((run.model, ""), (run.ema, "_ema")):
        metrics = evaluate(model, tiny[1], label_smoothing=0.2, precision="fp32")
        assert run.history[-1]["test_accuracy" + suffix] == metrics.accuracy == run.results["test_accuracy" + suffix]
        assert run.history[-1]["test_loss" + suffix] == metrics.loss


def test_the_average_is_exponential_over_a_share_of_the_steps_so_far(train, monkeypatch):
    states, real = [], Trainer.average

    def average(self):
        values = {key: value.double().clone() for key, value in self.model.state_dict().items()}
        states.append((self.taken, self.taken - self.averaged, values))
        real(self)

    monkeypatch.setattr(Trainer, "average", average)
    run = train(ema=0.3, schedule=OneCycle(3, 1, 0.01, 0.1), batch_size=5)
    assert [taken for taken, *_ in states] == [5, 7, 12, 14, 19, 21]  # an epoch has 7 steps, and its test knows of all
    for key, value in run.ema.state_dict().items():
        expected = states[0][2][key]
        for taken, since, state in states[1:]:
            keep = math.exp(-since / (0.3 * taken))
            expected = state[key] if key.endswith("tracked") else keep * expected + (1 - keep) * state[key]
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)


def test_other_buffers_are_copied_not_averaged(cnn, train):
    model = cnn()
    model[0].register_buffer("mask", torch.tensor([0.0, -math.inf]))
    model.register_parameter("whole", nn.Parameter(torch.arange(2), requires_grad=False))
    run = train(model)
    assert run.ema[0].mask.tolist() == [0, -math.inf]
    assert all(p.isfinite().all() for p in run.ema.parameters())


# What the caller has frozen, or brings


@pytest.mark.parametrize("weights", [True, False])  # whether they are frozen as well
@pytest.mark.parametrize("call", ["fit", "find_lr"])
def test_frozen_layers_stay_as_they_are(call, weights, tiny, cnn, train):
    model, modes = cnn(), []
    model[1].requires_grad_(False) if weights else model[1].eval()
    model[1].register_forward_hook(lambda norm, *_: modes.append(norm.training))
    before = copy.deepcopy(dict(model[1].named_parameters() if weights else ()) | dict(model[1].named_buffers()))
    for _ in range(1 + weights):  # after the first training, the whole network is in eval mode
        with contextlib.suppress(InputError):  # noise has no curve to read
            train(model) if call == "fit" else find_lr(model, tiny[0], RECIPE)
        assert all(value.equal(model[1].state_dict()[key].cpu()) for key, value in before.items())
    assert set(modes) == {False}
    model[1].train().requires_grad_(True)  # thawed
    train(model)
    assert modes[-1] is False and True in modes  # in training, not in evaluation


def test_modes_are_those_of_the_start_in_every_epoch(cnn, train, capsys):
    model = cnn()
    model[1].weight.requires_grad_(False)  # but not its bias
    finished = train(model, on_epoch=lambda row: model.eval())
    assert model[1].num_batches_tracked == len(finished.steps)
    assert "stay in eval mode" not in capsys.readouterr().out
    train(nn.Sequential(cnn().eval()))
    assert re.search(r"steps, \d+ of \d+ modules stay in eval mode", capsys.readouterr().out)


class Odd(nn.Module):
    """It has a child named module, as DDP has, calls view, keeps a mask that grows, and its output with the graph."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.dropout, self.mask = module, nn.Dropout(0.5), torch.ones(0)
        self.modes, self.kept = [], {}

    def forward(self, x):
        self.modes.append(self.dropout.training)
        maps = self.module[:3](x)
        out = self.dropout(self.module[3:](maps.view(len(x), -1).view_as(maps)))
        if self.training:
            self.kept["last"] = out
        self.mask = self.mask if len(self.mask) >= len(x) else torch.ones(len(x), device=x.device)
        return out * self.mask[: len(x), None]


def test_a_network_may_have_a_child_named_module_and_keep_tensors(tiny, cnn, train, tmp_path):
    model = Odd(cnn()).eval()
    with contextlib.suppress(InputError):  # noise has no curve to read
        find_lr(model, tiny[0], RECIPE)
    model.modes.clear()
    train(model, folder=tmp_path)
    assert model.modes.count(True) == SCHEDULE.epochs * STEPS
    with pytest.raises(InputError, match=r"the model cannot be copied .* or make it anew"):
        train(model, folder=tmp_path)


class Volumes(nn.Conv3d):
    """It takes volumes, of whole numbers up to 4 alone, and tells more of its state than tensors."""

    def forward(self, x):
        return super().forward(nn.functional.one_hot(x.long(), 5).argmax(-1).float()).mean((2, 3, 4))

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def test_a_network_and_a_schedule_that_take_only_what_they_are_made_for(tmp_path):
    def schedule(epoch):  # without a rate for the end of the last epoch
        return [0.1, 0.01][int(epoch)]

    schedule.epochs = 2
    data = [(torch.randint(5, (4, 3, 5, 6, 7)).float(), torch.tensor([0, 1, 2, 0]))] * 2
    run = fit(Volumes(3, 3, 3), data, data, schedule, RECIPE, folder=tmp_path)
    assert [row["applied"] for row in run.steps] == [0.1, 0.1, 0.01, 0.01]
    with contextlib.suppress(InputError):  # noise has no curve to read
        find_lr(run.model, data, RECIPE)


def test_an_autocast_around_it_makes_no_difference(train):
    expected = train(precision="bf16", device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_run(train(precision="bf16", device="cpu"), expected)


def test_a_data_loader_and_adamw(tiny, cnn, batches):
    def run(seed):
        torch.manual_seed(seed)
        train, test = batches(tiny[0], shuffle=True), batches(tiny[1])
        return fit(cnn(), train, test, SCHEDULE, RECIPE.replace(optimizer="adamw"))

    first, second = run(1), run(2)
    assert_same_run(first, second)  # the order is a function of the recipe's seed
    facts = [first.results[key] for key in ("n_train", "n_test", "classes", "batch_size")]
    assert facts == [32, 12, None, 8]  # the loader's, not the recipe's


# Stopped and gone on


@pytest.mark.parametrize(("engine", "workers"), [("batch", 0), ("albumentations", 2)])
def test_a_stopped_run_goes_on_and_ends_like_an_undisturbed_one(engine, workers, cnn, train, state, tmp_path, capsys):
    model, taken, before = cnn(), [], signal.getsignal(signal.SIGTERM)

    def sgd(parameters):
        optimizer = torch.optim.SGD(parameters, momentum=0.9)
        optimizer.register_step_post_hook(lambda *_: taken.append(1))
        return optimizer

    options = {"engine": engine, "workers": workers, "optimizer": sgd}
    undisturbed = train(**options)
    taken.clear()
    kill = at_step(STEPS + 3, model, lambda output: signal.raise_signal(signal.SIGTERM))
    with kill, pytest.raises(KeyboardInterrupt) as stopped:
        train(model, **options, folder=tmp_path)
    assert (stopped.value.args, len(taken)) == ((signal.SIGTERM,), STEPS + 3)  # that step was taken
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped in epoch 2 of 3; the same call goes on after epoch 1" in capsys.readouterr().out
    assert len(read_csv(tmp_path / "history.csv")) == 1
    # In the same notebook, with the model as it was left; and in another process, with another random state.
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    before = state(nn.Module())
    for again in (copy.deepcopy(model), cnn()):
        with torch.no_grad():  # decides nothing, either
            assert_same_run(train(again, **options, folder=tmp_path), undisturbed)
    assert state(nn.Module()) == before  # the caller's random state is restored
    assert not same(train(**options, seed=5).model, undisturbed.model)
    assert "finished, nothing to compute" in capsys.readouterr().out


CALLS = {"write_tensors": 4, "write_csv": 5, "evaluate": 6}  # those of a whole run


@pytest.mark.parametrize(
    ("function", "call"), [("step", 3), *((name, call + 1) for name, n in CALLS.items() for call in range(n))]
)
def test_a_stop_in_the_first_epoch_or_while_it_saves_or_tests(function, call, cnn, train, tmp_path, monkeypatch):
    module = run_module if function.startswith("write") else train_module
    real, calls, model = getattr(module, function), itertools.count(1), cnn()

    def stop(*args, **options):
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, stop)
        with pytest.raises(KeyboardInterrupt):
            train(model, folder=tmp_path)
    assert bool(model.trained_on) == (tmp_path / "checkpoint.pt").exists()
    done = train(model, folder=tmp_path)
    assert_same_run(done, train())
    assert read_csv(tmp_path / "lr.csv") == done.steps and len(read_csv(tmp_path / "history.csv")) == 3


def test_a_signal_during_the_last_test_is_heard(cnn, train, monkeypatch):
    model, real, calls = cnn(), train_module.evaluate, itertools.count(1)

    def evaluate(*args, **options):
        if next(calls) == 2 * SCHEDULE.epochs:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(train_module, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train(model)
    assert same(model, cnn())


class Sequential(nn.Sequential):
    """Random in eval mode, too. Its layers look like those of torch's own."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)


def test_a_finished_run_says_so_and_keeps_its_results(cnn, train, tmp_path, capsys):
    finished = train(Sequential(*cnn()), folder=tmp_path)
    again = train(finished.model, folder=tmp_path)  # the weights it ended with
    assert_same_run(again, finished)
    assert "finished, nothing to compute" in capsys.readouterr().out
    assert again.results == finished.results
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(ZeroDivisionError):
        train(seed=5, folder=tmp_path, on_epoch=lambda row: 1 / 0)
    assert not (tmp_path / "results.json").exists()  # it was another run's


def test_another_run_is_refused_with_the_difference(cnn, train, tmp_path):
    train(folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for words, change in (
        (r":\n  recipe.augment.cutout: 4 there, 0 here\nchoose", {"augment": Augment(2, cutout=0)}),  # and no more
        ("first_weights.*make the model anew", {"model": cnn(5)}),
        ("what the network computes", {"model": Sequential(*cnn())}),
    ):
        with pytest.raises(InputError, match=f"(?s)holds another run.*{words}"):
            train(folder=tmp_path, **change)
        assert (tmp_path / "checkpoint.pt").read_bytes() == before


def weighted(weight: float) -> dict:
    return {"criterion": nn.CrossEntropyLoss(weight=torch.tensor([1, 1, weight]))}


def closed_over(momentum: float) -> dict:
    return {"optimizer": lambda parameters: torch.optim.SGD(parameters, momentum=momentum)}


FACTOR = 1.0


def times_factor(logits, y):
    return FACTOR * nn.functional.cross_entropy(logits, y)


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, logits, y):
        return self.factor * nn.functional.cross_entropy(logits, y)


@pytest.mark.parametrize(("first", "second"), [
    ({"criterion": nn.CrossEntropyLoss()}, {"criterion": nn.CrossEntropyLoss(label_smoothing=0.1)}),
    (weighted(1.0), weighted(2.0)),
    (
        {"optimizer": lambda parameters: torch.optim.SGD(parameters)},
        {"optimizer": lambda parameters: torch.optim.SGD(parameters, momentum=0.9)},
    ),
    (closed_over(0.0), closed_over(0.9)),
    (closed_over(torch.full((900,), 0.9)), closed_over(torch.full((900,), 0.90001))),
    ({"criterion": Scaled(1.0)}, {"criterion": Scaled(2.0)}),
    ({"criterion": times_factor}, {"criterion": FunctionType(times_factor.__code__, globals() | {"FACTOR": 2.0})}),
    ({"schedule": StepDecay(30, 0.1, milestones=())}, {"schedule": StepDecay(30, 0.1, milestones=(0.99,))}),
    ({}, {"change": lambda model: setattr(model[5], "p", 0.5)}),  # Dropout
    ({}, {"change": lambda model: model[0].requires_grad_(False)}),
])  # fmt: skip
def test_what_has_the_same_repr_or_weights_is_another_run(first, second, tiny, cnn):
    def known(change=id, schedule=None, **options):
        change(model := cnn())
        return identity(model, tiny[0], RECIPE.replace(**options), schedule=schedule)

    assert known(**first) == known(**first) != known(**second)
    named = FunctionType(times_factor.__code__, globals() | {"functional": 2.0})  # only an attribute has that name
    assert known(criterion=times_factor) == known(criterion=named)


def test_a_loader_with_another_transform_is_another_run(tiny, cnn, batches):
    data = DataLoader(Subset(batches(tiny[0]).dataset, range(8)), batch_size=4)
    there, again = (identity(cnn(), data, RECIPE) for _ in range(2))
    data.dataset.dataset.transform = nn.Identity()
    assert there == again != (within := identity(cnn(), data, RECIPE))
    data.dataset.transform = nn.Flatten()  # of a wrapper
    assert identity(cnn(), data, RECIPE) != within


def test_a_compiled_networks_weights_are_its_own(cnn, train, tmp_path):
    trained = train(torch.compile(cnn(), backend="eager"), folder=tmp_path)
    assert same(load_model(tmp_path, cnn(1)), trained.ema._orig_mod)


def test_data_count_by_their_pixels_and_other_names_of_classes_are_another_result(tiny, train, tmp_path, capsys):
    train(folder=tmp_path)
    renamed = [dataclasses.replace(split, name="elsewhere", classes=("cow", "dog", "elk")) for split in tiny]
    assert train(folder=tmp_path, images=renamed).results["recall"].keys() == {"cow", "dog", "elk"}
    assert "finished" in capsys.readouterr().out
    for i, split in enumerate(tiny):
        pixels, changed = split.pixels.clone(), list(tiny)
        pixels[0, 0, 0, 0] ^= 1
        changed[i] = dataclasses.replace(split, pixels=pixels)
        with pytest.raises(InputError, match="data:"):
            train(folder=tmp_path, images=changed)


def test_fresh_starts_from_the_weights_it_is_given_and_says_which(cnn, train, tmp_path, capsys):
    trained = train(seed=1, folder=tmp_path).model
    expected = train(copy.deepcopy(trained), seed=2)
    capsys.readouterr()
    assert_same_run(train(trained, seed=2, folder=tmp_path, fresh=True), expected)
    assert "starting over from the model's weights, which a training has left" in capsys.readouterr().out


# What goes wrong


def test_a_loss_that_is_not_finite_names_step_and_rate_and_keeps_the_checkpoint(cnn, train, tmp_path):
    model, rate = cnn(), f"{SCHEDULE(7 / STEPS):.4g}"  # the eighth step is number 7, in the second epoch
    words = rf"the loss at step 7 \(epoch 1\.40, rate {re.escape(rate)}\) is nan"
    with at_step(8, model, lambda output: output * math.nan), pytest.raises(InputError, match=words):
        train(model, folder=tmp_path)
    assert_same_run(train(model, folder=tmp_path), train())


def test_test_data_of_another_kind_are_refused(tiny, cnn, batches):
    train, test = tiny
    for other in ({"classes": "abc"}, {"mean": (0.5, 0.4, 0.5)}, {"pixels": torch.zeros(12, 9, 9, 3).byte()}):
        with pytest.raises(InputError, match=r"^test is .* of the classes, size, mean and std of train"):
            fit(cnn(), train, dataclasses.replace(test, **other), SCHEDULE, RECIPE)
    first, second = batches(train), batches(test)
    with pytest.raises(InputError, match="the model has 2 outputs; the data have 3 classes"):  # of the training's
        fit(cnn(outputs=2), train, second, SCHEDULE, RECIPE)
    first.dataset.classes, second.dataset.classes = ["ant", "bee", "cat"], ["ant", "cat"]
    with pytest.raises(InputError, match=r"the classes of test is \['ant', 'cat'\]; it has to be those of train"):
        fit(cnn(), first, second, SCHEDULE, RECIPE)


def test_what_is_no_schedule_or_recipe_is_named(tiny, cnn):
    endless = SimpleNamespace(epochs=-2)
    for schedule, recipe, words in ((RECIPE, SCHEDULE, "recipe is"), (endless, RECIPE, "schedule is")):
        with pytest.raises(InputError, match=words):
            fit(cnn(), *tiny, schedule, recipe)
    with pytest.raises(InputError, match="recipe is 'Images'"):
        find_lr(cnn(), *tiny)


def broken(model: nn.Module) -> nn.Module:
    model[0].weight.data[0] = math.nan
    return model


NETWORKS = {
    "not finite": lambda cnn: broken(cnn()),
    "nothing to train": lambda cnn: cnn().requires_grad_(False),
    "lazy layers": lambda cnn: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
    "float32.*small": lambda cnn: cnn().bfloat16(),
    "inference_mode.*float32": lambda cnn: torch.inference_mode()(cnn)(),
    "object, not its class": lambda cnn: ResNet9,
    "gives probabilities.*leave out the softmax": lambda cnn: nn.Sequential(cnn(), nn.Softmax(1)),
    "switch auxiliary outputs off": lambda cnn: Auxiliary(3, 3),
}


class Auxiliary(nn.Linear):
    def forward(self, x):
        out = super().forward(x.mean((2, 3)))
        return (out, out) if self.training else out


@pytest.mark.parametrize("words", NETWORKS)
def test_a_network_that_cannot_be_trained_is_refused(words, cnn, train):
    with pytest.raises(InputError, match=words):
        train(NETWORKS[words](cnn))
