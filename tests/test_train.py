"""Training: what is applied is what was planned, and a run that was stopped ends like one that was not."""

import copy
import dataclasses
import itertools
import math
import random
import re
import weakref
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from torch import nn

from eva_utils import (
    Augment,
    InputError,
    OneCycle,
    ResNet9,
    Triangular,
    checkpoint,
    digits,
    estimate,
    evaluate,
    find_lr,
    fit,
    save_run,
)
from eva_utils import train as train_module
from eva_utils import trainer as trainer_module
from eva_utils.batches import loader
from eva_utils.lr_finder import range_test
from eva_utils.precision import DTYPES
from eva_utils.trainer import EMA_EVERY, Trainer

SCHEDULE = OneCycle(epochs=3, peak_epoch=1, lr_min=0.01, lr_max=0.1)
BATCH = 7  # does not divide the 32 images, so the last batch of an epoch is smaller
STEPS = 5  # an epoch
TIMES = {"seconds", "seconds_train", "images_per_second"}
# From Python 3.12 on, a process with threads (any with torch) is warned when it starts worker processes by fork.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def train(tiny, cnn):
    """``fit`` on the tiny images, with whatever a test changes."""

    def run(model=None, schedule=SCHEDULE, images=tiny, **options):
        defaults = {"augment": Augment(padding=2, cutout=4), "batch_size": BATCH, "precision": "fp32", "device": "cpu"}
        return fit(model or cnn(), *images, schedule, **(defaults | options))

    return run


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Bit by bit, BatchNorm's buffers included."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def assert_same_run(first, second) -> None:
    assert same(first.model, second.model)
    assert same(first.ema, second.ema)
    assert first.steps == second.steps
    untimed = [[{k: v for k, v in row.items() if k not in TIMES} for row in run.history] for run in (first, second)]
    assert untimed[0] == untimed[1]


def at_step(number: int, act):
    """A forward hook that calls ``act(output)`` in the ``number``-th training step (counted from 1)."""
    calls = itertools.count(1)

    def hook(module, inputs, output):
        return act(output) if module.training and next(calls) == number else None

    return hook


def stop(output):
    raise KeyboardInterrupt


# The schedule


def test_applied_rates_are_the_planned_ones_at_every_step(train):
    run = train()
    assert len(run.steps) == SCHEDULE.epochs * STEPS
    for step, row in enumerate(run.steps):
        assert row["step"] == step
        assert row["epoch"] == step / STEPS
        assert row["applied"] == row["planned"] == SCHEDULE(step / STEPS)
        assert row["skipped"] == 0
    assert run.steps[0]["applied"] == SCHEDULE.lr_min
    assert run.steps[STEPS]["applied"] == SCHEDULE.lr_max  # the peak is at epoch 1
    assert max(row["applied"] for row in run.steps) == SCHEDULE.lr_max
    assert min(row["applied"] for row in run.steps) == SCHEDULE.lr_min


def test_the_weights_move_by_the_applied_rate(tiny, train):
    # Without momentum and decay a step is -rate * gradient: the rate can be read off the weights themselves.
    model = ResNet9(3, width=4)
    again, weight, weights = copy.deepcopy(model), model.head.linear.weight, []

    class Schedule(OneCycle):
        def __call__(self, epoch):
            weights.append(weight.detach().clone())
            return super().__call__(epoch)

    schedule = Schedule(1, 0.5, 0.01, 0.1)
    run = train(model, schedule, momentum=0, weight_decay=0, label_smoothing=0)
    weights = [*weights[-STEPS:], weight.detach()]  # it is called before each step; and after the last one
    for i, (x, y) in enumerate(loader(tiny[0], Augment(padding=2, cutout=4), BATCH).epoch(0)):
        again.zero_grad()
        torch.nn.functional.cross_entropy(again(x), y).backward()
        rate = schedule(i / STEPS)
        assert run.steps[i]["applied"] == rate
        torch.testing.assert_close(
            weights[i + 1] - weights[i], -rate * again.head.linear.weight.grad, atol=1e-6, rtol=1e-3
        )
        with torch.no_grad():
            for p in again.parameters():
                p -= rate * p.grad


def test_history_has_a_row_an_epoch(train):
    run = train()
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    metrics = {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_loss_ema", "test_accuracy_ema"}
    for row in run.history:
        assert row.keys() == {"epoch", "lr", "skipped"} | metrics | TIMES
        assert row["lr"] == run.steps[row["epoch"] * STEPS - 1]["applied"]
        assert all(math.isfinite(row[key]) for key in metrics)
        # Each training image counts once, however large its batch was.
        counts = [BATCH] * (STEPS - 1) + [32 - BATCH * (STEPS - 1)]
        losses = [step["loss"] for step in run.steps[(row["epoch"] - 1) * STEPS :][:STEPS]]
        assert row["train_loss"] == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
    assert [row["seconds"] for row in run.history] == sorted(row["seconds"] for row in run.history)
    assert run.history[-1]["seconds"] == run.seconds_total >= run.seconds_train > 0


def test_the_result_is_the_last_epoch(tiny, train):
    run = train(label_smoothing=0.2)
    for model, suffix in ((run.model, ""), (run.ema, "_ema")):
        metrics = evaluate(model, tiny[1], label_smoothing=0.2, precision="fp32")
        assert run.history[-1]["test_accuracy" + suffix] == metrics.accuracy
        assert run.history[-1]["test_loss" + suffix] == metrics.loss


def test_the_given_model_is_the_one_that_is_trained(cnn, train):
    model = cnn()
    run = train(model)
    assert run.model is model
    assert not same(model, cnn())
    assert not any(part.training for network in (run.model, run.ema) for part in network.modules())


def test_it_learns_digits():
    images = digits()
    schedule = OneCycle(epochs=3, peak_epoch=1, lr_min=0.01, lr_max=0.3)
    # A mirrored or much shifted digit is another one.
    run = fit(ResNet9(width=8), *images, schedule, augment=Augment(2, False, 4), batch_size=64, device="cpu")
    assert run.history[-1]["test_accuracy"] > 90
    assert run.history[-1]["test_accuracy_ema"] > 90
    assert run.history[-1]["train_accuracy"] > 90


# The moving average


def test_the_average_is_exponential_over_a_share_of_the_steps_so_far(train, monkeypatch):
    states, step = [], Trainer._step

    def recorded(self, loss):
        row = step(self, loss)
        states.append({key: value.double().clone() for key, value in self.model.state_dict().items()})
        return row

    monkeypatch.setattr(Trainer, "_step", recorded)
    share = 0.3
    run = train(ema=share, schedule=OneCycle(4, 1, 0.01, 0.1))
    states = states[EMA_EVERY - 1 :: EMA_EVERY]
    assert len(states) == 4
    average = run.ema.state_dict()
    for key in average.keys() - {"1.num_batches_tracked"}:
        expected = states[0][key]
        for i, state in enumerate(states[1:], start=2):
            keep = math.exp(-EMA_EVERY / (share * i * EMA_EVERY))  # a share of the steps so far
            expected = keep * expected + (1 - keep) * state[key]
        torch.testing.assert_close(average[key].double(), expected, rtol=1e-5, atol=1e-7)
    assert {"1.running_mean", "1.running_var"} < average.keys()
    assert not same(run.model, run.ema)


# Seeds


@forks
@pytest.mark.parametrize(("engine", "workers"), [("batch", 0), ("albumentations", 0), ("albumentations", 2)])
def test_a_seed_decides_everything(engine, workers, train):
    runs = []
    for seed in (4, 4, 5):
        torch.rand(1)  # what the caller drew before decides nothing
        runs.append(train(seed=seed, engine=engine, workers=workers))
    assert_same_run(runs[0], runs[1])
    assert not same(runs[0].model, runs[2].model)


@forks
def test_the_number_of_workers_decides_nothing(train):
    runs = [train(engine="albumentations", workers=workers) for workers in (0, 1)]
    assert_same_run(*runs)


@forks
@pytest.mark.parametrize(("engine", "workers"), [("batch", 0), ("albumentations", 0), ("albumentations", 2)])
def test_the_callers_random_numbers_go_on_as_if_nothing_had_been(engine, workers, train):
    def draw():
        return random.random(), np.random.random(), torch.rand(3).tolist()

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    train(engine=engine, workers=workers)
    assert draw() == expected


# Stopped and gone on


@forks
@pytest.mark.parametrize(("engine", "workers"), [("batch", 0), ("albumentations", 0), ("albumentations", 2)])
@pytest.mark.parametrize("where", ["step", "test"])
def test_a_stopped_run_goes_on_and_ends_like_an_undisturbed_one(
    where, engine, workers, cnn, train, tmp_path, capsys, monkeypatch
):
    undisturbed = train(engine=engine, workers=workers)

    model = cnn()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "step":
            model.register_forward_hook(at_step(STEPS + 3, stop))
        else:  # of the four evaluations in two epochs, the last one
            calls = itertools.count(1)
            patch.setattr(
                trainer_module, "evaluate", lambda *a, **k: stop(0) if next(calls) == 4 else evaluate(*a, **k)
            )
        train(model, engine=engine, workers=workers, checkpoint=tmp_path)
    assert "stopped in epoch 2 of 3; the same call goes on after epoch 1" in capsys.readouterr().out

    # As after a lost connection to a notebook: another process, whose random numbers and first weights are others.
    torch.manual_seed(99)
    resumed = train(cnn(seed=99), engine=engine, workers=workers, checkpoint=tmp_path)
    assert "going on after epoch 1" in capsys.readouterr().out
    assert_same_run(resumed, undisturbed)
    assert [row["seconds"] for row in resumed.history] == sorted(row["seconds"] for row in resumed.history)


def test_a_run_stopped_in_its_first_epoch_starts_from_the_first_weights(cnn, train, tmp_path):
    # As in a notebook: the cell is interrupted and run again, and the network is the same object, half-trained.
    model = cnn()
    hook = model.register_forward_hook(at_step(3, stop))
    with pytest.raises(KeyboardInterrupt):
        train(model, checkpoint=tmp_path)
    hook.remove()
    assert_same_run(train(model, checkpoint=tmp_path), train())


def test_the_words_to_somebody_who_stops_a_fresh_run(cnn, train, tmp_path, capsys):
    model = cnn()
    model.register_forward_hook(at_step(STEPS + 2, stop))
    with pytest.raises(KeyboardInterrupt):
        train(model, checkpoint=tmp_path, fresh=True)
    assert "stopped in epoch 2 of 3; the same call without fresh goes on after epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_network_computes_in_the_precision_asked_for(precision, cnn, train):
    seen, model = set(), cnn()
    model[0].register_forward_hook(lambda module, inputs, output: seen.add((module.training, output.dtype)))
    train(model, precision=precision)
    assert seen == {(mode, DTYPES[precision]) for mode in (True, False)}


def test_a_finished_run_says_where_it_was_computed(cnn, train, tmp_path):
    train(checkpoint=tmp_path, precision="bf16")
    again = train(checkpoint=tmp_path, precision="fp32")
    assert again.precision == "bf16"
    assert again.device.startswith("CPU: ")


def test_a_run_finished_in_fp16_on_a_gpu_is_saved_without_one(tiny, train, tmp_path):
    train(checkpoint=tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    checkpoint.save(tmp_path / "checkpoint.pt", state | {"where": {"device": "Tesla T4", "precision": "fp16"}})
    results = save_run(tmp_path, train(checkpoint=tmp_path), tiny[1])
    assert (results["device"], results["precision"]) == ("Tesla T4", "fp16")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [((2.04, 8.4), "2.0 seconds of training, 8.4 with"), ((6354.0, 7396.7), "105.9 minutes of training, 123.3 with")],
)
def test_how_long_a_run_took_is_said_in_a_unit_that_fits(seconds, words, tiny, train, tmp_path, capsys):
    spent = dict(zip(("seconds_train", "seconds_total"), seconds, strict=True))
    save_run(tmp_path, dataclasses.replace(train(), **spent), tiny[1])
    assert words in capsys.readouterr().out


def test_a_run_of_fewer_steps_than_the_average_waits_for(tiny, cnn, train):
    run = train(schedule=OneCycle(1, 0.5, 0.01, 0.1), batch_size=16)
    assert len(run.steps) == 2 < EMA_EVERY
    pairs = zip(run.ema.parameters(), run.model.parameters(), strict=True)
    assert all(average.equal(last) for average, last in pairs)  # not the first weights


def test_weights_that_are_not_finite_are_refused(cnn, train):
    model = cnn()
    model[0].weight.data[0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        train(model)


def test_the_generators_of_gpus_that_do_nothing_here_are_left_alone(tiny, cnn, train, monkeypatch):
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    torch.manual_seed(0)
    assert reseeded == [0]  # as torch's own way to seed does it
    model = cnn()
    reseeded.clear()
    train(model)
    range_test(cnn(), loader(tiny[0], batch_size=BATCH), lr_start=0.01, lr_end=0.1, steps=5, precision="fp32")
    assert reseeded == [0]  # cnn's


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("call", ["fit", "find_lr"])
def test_a_kept_error_keeps_no_tensors(call, error, tiny, cnn, train):
    # A notebook keeps the last error; the next try needs the memory.
    seen = []

    class Failing(torch.nn.Module):
        def forward(self, x):
            activation = 2 * x
            seen.append(weakref.ref(activation))
            if len(seen) == 3:
                raise error
            return activation

    model = cnn().insert(0, Failing())
    with pytest.raises(error) as kept:
        train(model) if call == "fit" else find_lr(model, tiny[0], batch_size=BATCH, device="cpu")
    assert kept.value.__traceback__ is not None
    assert [tensor() for tensor in seen] == [None] * 3


def test_a_finished_run_computes_nothing_again(cnn, train, tmp_path, monkeypatch, capsys):
    finished = train(checkpoint=tmp_path)
    monkeypatch.setattr(Trainer, "train_epoch", lambda *args: pytest.fail("it trains again"))
    monkeypatch.setattr(trainer_module, "evaluate", lambda *args, **kwargs: pytest.fail("it evaluates again"))
    again = train(cnn(seed=99), checkpoint=tmp_path)
    assert_same_run(again, finished)
    assert (again.seconds_total, again.images_per_second) == (finished.seconds_total, finished.images_per_second)
    assert "finished, nothing to compute" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Knots:
    """A policy of one's own, with NumPy's numbers in it and out of it."""

    epochs: int
    at: tuple
    rates: np.ndarray

    def __call__(self, epoch: float) -> np.float64:
        return np.interp(epoch, self.at, self.rates)


def test_a_policy_in_numpys_numbers_goes_on(cnn, train, tmp_path, capsys):
    def policy():
        return Knots(np.int64(3), (0, 1, 3), np.array([0.01, 0.1, 0.01]))

    first = train(cnn(), policy(), checkpoint=tmp_path, seed=np.int64(1))
    again = train(cnn(), policy(), checkpoint=tmp_path, seed=np.int64(1))
    assert "finished, nothing to compute" in capsys.readouterr().out
    assert_same_run(first, again)
    assert all(type(row["planned"]) is float for row in first.steps)


def test_a_pipeline_with_a_function_of_ones_own_goes_on(cnn, train, tmp_path, capsys, tiny):
    """Its text has the function's address, which is another one in each process."""

    def pipeline():
        def brighter(image, **params):
            return np.clip(image.astype(int) + 9, 0, 255).astype(np.uint8)

        normal = A.Normalize(tiny[0].mean, tiny[0].std)
        return A.Compose([A.Lambda(image=brighter, name="brighter", p=1), normal, ToTensorV2()])

    one, other = pipeline(), pipeline()
    assert repr(one) != repr(other)
    for augment in (one, other):
        train(cnn(), augment=augment, checkpoint=tmp_path, workers=0)
    assert "finished, nothing to compute" in capsys.readouterr().out


def test_fresh_starts_over(cnn, train, tmp_path):
    train(seed=1, checkpoint=tmp_path)
    over = train(seed=2, checkpoint=tmp_path, fresh=True)
    assert_same_run(over, train(seed=2))
    assert checkpoint.load(tmp_path / "checkpoint.pt")["settings"]["seed"] == 2


CHANGES = {
    "batch_size: 7 there, 8 here": {"batch_size": 8},
    "seed: 0 there, 3 here": {"seed": 3},
    "lr_max: 0.1 there, 0.2 here": {"schedule": OneCycle(3, 1, 0.01, 0.2)},
    "epochs: 3 there, 4 here": {"schedule": OneCycle(4, 1, 0.01, 0.1)},
    "engine: 'batch' there, 'albumentations' here": {"engine": "albumentations", "workers": 0},
    "weight_decay: 0.001 there, 0 here": {"weight_decay": 0},
    "augment: .*'cutout': 4.* there, .*'cutout': 0.* here": {"augment": Augment(2, cutout=0)},
}


@pytest.mark.parametrize("words", CHANGES)
def test_another_configuration_is_refused_with_the_difference(words, train, tmp_path):
    train(checkpoint=tmp_path, schedule=SCHEDULE)
    file = tmp_path / "checkpoint.pt"
    before = file.read_bytes()
    with pytest.raises(InputError, match=f"(?s){re.escape(str(file))}.*{words}"):
        train(checkpoint=tmp_path, **CHANGES[words])
    assert file.read_bytes() == before


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("part", ["pixels", "labels", "mean"])
def test_other_data_are_refused(split, part, tiny, train, tmp_path):
    train(checkpoint=tmp_path, schedule=OneCycle(1, 0.5, 0.01, 0.1))
    changed = list(tiny)
    values = torch.as_tensor(getattr(tiny[split], part)).clone()
    values.view(-1)[5 % values.numel()] += 1
    changed[split] = dataclasses.replace(tiny[split], **{part: tuple(values.tolist()) if part == "mean" else values})
    with pytest.raises(InputError, match="data_crc32"):
        train(checkpoint=tmp_path, images=changed, schedule=OneCycle(1, 0.5, 0.01, 0.1))


@pytest.mark.parametrize("change", [nn.Sigmoid(), nn.ReLU6()])
def test_another_network_of_the_same_shapes_is_refused(change, cnn, train, tmp_path):
    train(cnn(), checkpoint=tmp_path)
    other = cnn()
    other[2] = change
    with pytest.raises(InputError, match=r"network: .* there"):
        train(other, checkpoint=tmp_path)


@dataclasses.dataclass(frozen=True)
class Own:
    """A policy whose fields are named as settings are, and whose rates may be any."""

    epochs: int
    momentum: float
    rate: float

    def __call__(self, epoch: float) -> float:
        return self.rate if epoch > 0.5 else 0.01


def test_a_policys_fields_are_no_settings(cnn, train, tmp_path):
    run = train(schedule=Own(1, 0.5, 0.01), checkpoint=tmp_path)
    assert (run.settings["momentum"], run.settings["schedule.momentum"]) == (0.9, 0.5)
    with pytest.raises(InputError, match=r"schedule.momentum: 0.5 there, 0.6 here"):
        train(schedule=Own(1, 0.6, 0.01), checkpoint=tmp_path)


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_what_is_no_rate_is_refused(rate, train):
    with pytest.raises(InputError, match=rf"schedule\(0.6\) is {rate}; it has to be a rate, 0 or more"):
        train(schedule=Own(1, 0.5, rate))


@pytest.mark.parametrize("call", ["fit", "find_lr"])
def test_a_network_that_cannot_be_trained_is_refused(call, tiny, cnn, train):
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    for model, words in (
        (nn.Flatten(), "parameters do not exist"),
        (cnn().requires_grad_(False), "parameters are all frozen"),
        (lazy, "lazy layers"),
    ):
        with pytest.raises(InputError, match=words):
            train(model) if call == "fit" else find_lr(model, tiny[0], batch_size=BATCH, device="cpu")


def test_labels_beyond_the_classes_are_refused(tiny, train):
    for split in range(2):
        pair = list(tiny)
        pair[split] = dataclasses.replace(pair[split], labels=pair[split].labels + 1)
        with pytest.raises(InputError, match=r"labels is \(1, 3\); it has to be within 0 and 2, for 3 classes"):
            train(images=pair)


class Bare(nn.Module):
    """Its ``repr`` tells nothing of it."""

    def __init__(self, name: str):
        super().__init__()
        setattr(self, name, nn.Parameter(torch.randn(3, 3)))

    def forward(self, x):
        return x.mean((2, 3)) @ next(self.parameters())


def test_another_network_is_refused(cnn, train, tmp_path):
    train(Bare("weight"), checkpoint=tmp_path)
    with pytest.raises(InputError, match="another network"):
        train(Bare("other"), checkpoint=tmp_path)


# What goes wrong


def test_a_loss_that_is_not_finite_names_step_and_rate_and_keeps_the_checkpoint(cnn, train, tmp_path):
    undisturbed = train()
    model = cnn()
    model.register_forward_hook(at_step(8, lambda output: output * float("nan")))
    rate = f"{SCHEDULE(7 / STEPS):.4g}"  # the eighth step is number 7, in the second epoch
    with pytest.raises(InputError, match=rf"nan at step 7 \(epoch 1\.40, rate {re.escape(rate)}\)"):
        train(model, checkpoint=tmp_path)
    assert len(checkpoint.load(tmp_path / "checkpoint.pt")["history"]) == 1
    assert_same_run(train(cnn(seed=99), checkpoint=tmp_path), undisturbed)


def test_a_rate_far_too_high_is_said_to_be(train):
    with pytest.raises(InputError, match=r"loss became (nan|inf) at step \d+ .*lower lr_max"):
        train(ResNet9(3, width=4, logit_scale=1), OneCycle(3, 1, 1e3, 1e30))


@pytest.mark.parametrize("overflows", [{1}, {3, 4, 11}])
def test_an_fp16_overflow_skips_the_step_and_the_schedule_waits(overflows, cnn, train, monkeypatch, tmp_path):
    # The real scaler, which works on a CPU as well, and infinite gradients at chosen steps.
    real, step, moved = torch.amp.GradScaler, Trainer._step, []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: real(device, init_scale=4.0))
    calls = itertools.count()

    def recorded(self, loss):
        if next(calls) in overflows:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        before = [p.detach().clone() for p in self.model.parameters()]
        row = step(self, loss)
        moved.append(any(not p.equal(old) for p, old in zip(self.model.parameters(), before, strict=True)))
        return row

    monkeypatch.setattr(Trainer, "_step", recorded)
    run = train(checkpoint=tmp_path)
    assert len(run.steps) == len(moved) == SCHEDULE.epochs * STEPS
    taken = 0
    for i, row in enumerate(run.steps):
        assert (row["skipped"], moved[i]) == ((1, False) if i in overflows else (0, True))
        assert row["step"] == taken
        assert row["applied"] == row["planned"] == SCHEDULE(taken / STEPS)
        taken += moved[i]
    for epoch, row in enumerate(run.history):
        assert row["skipped"] == sum(epoch * STEPS <= i < (epoch + 1) * STEPS for i in overflows)

    # Stopped in epoch 3 and gone on, the schedule knows what was skipped before.
    calls = itertools.count()
    model = cnn()
    model.register_forward_hook(at_step(2 * STEPS + 1, stop))
    with pytest.raises(KeyboardInterrupt):
        train(model, checkpoint=tmp_path, fresh=True)
    calls = itertools.count(2 * STEPS)
    assert_same_run(train(cnn(seed=99), checkpoint=tmp_path), run)


def test_train_and_test_images_have_to_match(tiny, train):
    images, test = tiny
    wider = type(test)(test.pixels.repeat(1, 1, 2, 1), test.labels, test.classes, test.mean, test.std)
    renamed = type(test)(test.pixels, test.labels, ("ant", "bee", "dog"), test.mean, test.std)
    for other in (wider, renamed):
        with pytest.raises(InputError, match="do not belong together"):
            train(images=(images, other))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 33}, "batch_size is 33.* 32 "),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"engine": "turbo"}, "engine is 'turbo'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"device": "nonsense"}, "device is 'nonsense'"),
        ({"schedule": Triangular(0.01, 0.1, 2)}, "epochs"),  # it never ends, so it cannot say how long to train
        ({"schedule": OneCycle(2.5, 1, 0.01, 0.1)}, "2.5"),  # half an epoch would be left out without a word
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used_are_named(options, words, train):
    with pytest.raises(InputError, match=words):
        train(**options)


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_network_with_another_number_of_outputs_is_refused(outputs, cnn, train):
    with pytest.raises(InputError, match=f"the model has {outputs} outputs; the data have 3 classes"):
        train(cnn(outputs=outputs))


class Viewed(torch.nn.Module):
    """Flattens with ``view``, which only contiguous memory allows."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = torch.nn.Conv2d(3, 2, 3), torch.nn.Linear(2 * 14 * 14, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.linear(x.view(len(x), -1))


def test_a_network_that_flattens_with_view_is_told_what_to_do(train):
    with pytest.raises(InputError, match=r"view\(\).*channels_last.*flatten\(1\) or reshape\(\)"):
        train(Viewed())


# fp16, as far as a CPU can show it


def test_an_overflow_in_the_very_first_step_leaves_no_trace(train, monkeypatch):
    """Fused SGD would keep momentum that it has never written."""
    real = Trainer.__init__

    def with_scaler(self, *args):
        real(self, *args)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        self.scale = self.scaler.get_scale()

    monkeypatch.setattr(Trainer, "__init__", with_scaler)
    steps = []
    backward = torch.Tensor.backward

    def overflowing(self):
        backward(self * float("inf") if not steps else self)
        steps.append(1)

    monkeypatch.setattr(torch.Tensor, "backward", overflowing)
    junk = [torch.full((1 << k,), float("nan")) for k in range(4, 20) for _ in range(8)]
    del junk  # memory that is handed out again, not zero
    run = train()
    assert [row["skipped"] for row in run.steps[:2]] == [1, 0]
    assert all(p.isfinite().all() and p.abs().max() < 100 for p in run.model.parameters())


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.012288, "1 minute"), (0.12288, "10 minutes"), (1.2288, "100 minutes"), (2.2, "3 hours")]
)
def test_the_time_it_takes_is_estimated_from_the_second_of_two_epochs(seconds, words, monkeypatch, capsys):
    """At 0.12288 s for 256 images, 25 epochs of 50,000 take 600 s."""

    def two_epochs(model, train, test, schedule, *, batch_size):
        assert (len(train), len(test), schedule.epochs, batch_size) == (256, 51, 2, 256)
        return SimpleNamespace(history=[{"seconds": 7.0}, {"seconds": 7.0 + seconds}])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train_module, "fit", two_epochs)
    estimate()
    printed = capsys.readouterr().out
    assert f"24 epochs of 50,000 images at width 64 take about {words} here" in printed
    assert "no CUDA GPU" in printed
    assert "QUICK = True" in printed


def test_an_estimate_leaves_the_callers_random_numbers(capsys):
    state = torch.get_rng_state()
    estimate(epochs=2, width=4, images=256)
    assert torch.equal(state, torch.get_rng_state())
    assert re.fullmatch(
        r"2 epochs of 256 images at width 4 take about 1 minute here(\nThere is no CUDA GPU here\. .*)?\n",
        capsys.readouterr().out,
    )
