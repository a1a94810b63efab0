"""The range test: the rates are where a known curve has them, it takes the training's step, and nothing outside
feels it."""

import re
import signal

import numpy as np
import pytest
import torch
import torch_lr_finder
from torch import nn
from tqdm.std import tqdm

from eva_utils import Augment, InputError, OneCycle, Recipe, digits, find_lr, fit, lr_finder
from eva_utils.lr_curve import LRRange, read_curve

LR = np.geomspace(1e-3, 10, 90)
RECIPE = Recipe(augment=Augment(2, False, 4), batch_size=64, precision="fp32", device="cpu")


def curve(*points: tuple[float, float]) -> np.ndarray:
    """The loss of 90 steps: straight lines through (step, loss)."""
    return np.interp(np.arange(90), *zip((0, 2.3), *points, strict=True))


VALLEY = curve((20, 2.3), (60, 1.3), (89, 2.0))  # it falls and rises by 1/40 and 1/41 a step


@pytest.fixture(scope="module")
def images():
    return digits()[0][:512]


@pytest.fixture
def model() -> nn.Module:
    """A user's, with BatchNorm's buffers and Dropout's randomness."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
    )


# The rule, on curves whose answer is known


# First weights that are sure and wrong: what they lose at once is no learning.
SURE = VALLEY + np.interp(np.arange(90), (0, 10, 20), (2, 2, 0))
BLOWN_UP = curve((20, 2.3), (45, 1.3), (89, 1.3))[:46]  # in the next step, which ends it


@pytest.mark.parametrize(("loss", "guess", "low", "high", "words"), [
    # The mean over 11 steps lifts the tip by 15/440. So it falls for 37.3 steps from step 20 on: a fifth of that, and
    # half of it and 17.3 more, which is a factor of six.
    (VALLEY, np.inf, 27.5, 55.9, "20% of the fall from.*half of the fall is made"),
    (VALLEY, 3.0, 27.5, 55.9, "half of the fall is made"),  # a start below a guess counts as it is
    (SURE, 2.3, 12.5, 55.9, "half of the fall from 2.30, the loss of a guess, is made"),
    (curve((40, 2.3), (50, 1.3), (60, 2.3), (89, 2.3)), np.inf, 32.7, 55, "a tenth of LR_MAX.* comes up again by 40%"),
    (curve((40, 2.3), (46, 1.3), (89, 2.0)), np.inf, 37.6, 59.9, "a tenth of LR_MAX.*half of the fall is made"),
    (np.append(BLOWN_UP, 50.0), np.inf, 22.7, 45, "comes up again by 40%"),
    (np.append(BLOWN_UP, np.nan), np.inf, 22.7, 45, "the last rate that gave a finite loss"),
])  # fmt: skip
def test_the_rates_are_at_the_right_steps_with_their_reasons(loss, guess, low, high, words):
    """60 measured curves beside these: test_the_rule_is_the_one_that_was_judged."""
    read = read_curve(LR[: len(loss)], loss, guess)
    steps = [np.log(rate / LR[0]) / np.log(LR[1] / LR[0]) for rate in (read.lr_min, read.lr_max)]
    assert steps == pytest.approx([low, high], abs=0.1)
    assert re.search(words, " ".join(read.reasons.values()))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (np.full(90, 2.3), "flat.*check data and model"),
        (2.3 - 0.005 * np.linspace(0, 1, 90), "flat.*from 2.3 to 2.3"),  # a fall, but of less than a per cent
        (2.3 + 0.1 * np.random.default_rng(0).normal(size=90), "flat"),
        (VALLEY[:10], "gave 10 finite losses; 22 or more can be read: take more steps"),
        (np.where(np.arange(90) < 15, VALLEY, np.nan), "gave 15 .*: lower lr_start"),
        (np.full(90, np.nan), "gave 0 .*: check data and model"),
        (VALLEY - 2, "a loss below 0.*add a constant"),
    ],
    ids=["constant", "hardly falling", "noise", "ten steps", "nan early", "nan", "negative"],
)
def test_curves_without_an_answer_are_refused_with_the_cure(loss, message):
    with pytest.raises(InputError, match=message):
        read_curve(LR[: len(loss)], loss)


# The test itself


def test_the_few_images_left_over_in_an_epoch_are_left_out():
    sizes = (8, 8, 1, 8, 2, 8)
    assert [len(x) for x, _ in lr_finder._large((torch.zeros(n), torch.zeros(n)) for n in sizes)] == [8, 8, 8, 2, 8]


def test_the_losses_are_those_of_a_training_at_these_rates(monkeypatch, device, images, model):
    # Order, augmentation, Dropout, optimizer, loss and step are the same.
    model.eval()  # as a loaded model is; it trains all the same
    recipe = RECIPE.replace(label_smoothing=0.2, batch_size=40, device=device)  # 13 steps an epoch
    monkeypatch.setattr(lr_finder, "read_curve", lambda lr, loss, *_: LRRange(0, 0, {}, (lr, loss)))
    lr, loss = find_lr(model, images, recipe, lr_end=1, steps=33).curve
    np.testing.assert_allclose(lr, np.geomspace(1e-3, 1, 33), rtol=1e-6)

    class Growing:
        epochs = 1

        def __call__(self, epoch):
            return lr[min(round(13 * epoch), 12)]

    steps = fit(model, images, images, Growing(), recipe).steps
    assert [row["applied"] for row in steps] == lr[:13].tolist()
    there = [row["loss"] for row in steps]
    assert there == pytest.approx(loss[:13].tolist(), rel=0 if device == "cpu" else 1e-3, abs=0)


def test_nothing_is_touched(device, images, model, state):
    model[2].eval()  # a mode that model.train() or .eval() would not bring back
    model[1].bias.requires_grad_(False)
    plain = find_lr(model, images, RECIPE.replace(device=device), steps=40)
    torch.manual_seed(99)  # what is drawn outside decides nothing
    before, pixels, labels = state(model), images.pixels.clone(), images.labels.clone()
    for without_gradients in (torch.no_grad, torch.inference_mode):
        with without_gradients():
            found = find_lr(model, images, RECIPE.replace(device=device), steps=40)
        assert found.curve.loss.tolist() == pytest.approx(plain.curve.loss.tolist())
    assert state(model) == before and images.pixels.equal(pixels) and images.labels.equal(labels)


def test_the_bar_is_plain_text_and_the_result_a_line(capsys, images, model):
    found = find_lr(model, images, RECIPE, steps=40)
    assert torch_lr_finder.lr_finder.tqdm.func is tqdm  # and no widget, which would break a notebook's rendering
    assert capsys.readouterr().out == ""
    assert len(repr(found)) < 100 and "lr_max=" in repr(found)  # a notebook shows it


def test_sgd_and_a_network_without_normalisation_layers_get_half_of_the_rate(images, model):
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    weight_norm = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(3 * 32 * 32, 10)))
    cases = (bare, "sgd", 0.5), (weight_norm, "sgd", 0.5), (bare, "adamw", 1), (model, "sgd", 1)
    for network, optimizer, share in cases:
        found = find_lr(network, images, RECIPE.replace(optimizer=optimizer), steps=60)
        assert found.curve.lr[0] == pytest.approx(1e-3 if optimizer == "sgd" else 1e-5)
        assert found.curve.guess == pytest.approx(np.log(10))
        whole = read_curve(found.curve.lr, found.curve.loss, found.curve.guess)
        assert found.lr_max == pytest.approx(share * whole.lr_max) and 10 * found.lr_min <= found.lr_max * (1 + 1e-9)
        assert ("no normalisation layers" in found.reasons["lr_max"]) == (share < 1)


def test_a_regression(device):
    x = torch.rand(512, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    recipe = Recipe(optimizer="adamw", criterion=torch.nn.MSELoss(), device=device, precision="fp32")
    batches = list(zip(x.split(64), x.sum(1, keepdim=True).split(64), strict=True))
    rates = find_lr(torch.nn.Linear(8, 1), batches, recipe, lr_end=10)
    assert rates.lr_min < rates.lr_max
    assert rates.curve.guess == np.inf  # nobody knows what a guess costs by this loss


def test_parameter_groups_keep_the_ratio_of_their_rates(monkeypatch, images, model):
    first = set(model[1].parameters())

    def make(parameters):
        parts = [p for p in model.parameters() if p in first], [p for p in parameters if p not in first]
        return torch.optim.SGD([{"params": parts[0], "lr": 0.1}, {"params": parts[1]}], lr=1.0, momentum=0.9)

    rates, take = [], lr_finder.step
    note = lambda n, o, *rest: rates.append([g["lr"] for g in o.param_groups]) or take(n, o, *rest)  # noqa: E731
    monkeypatch.setattr(lr_finder, "step", note)
    lr = find_lr(model, images, RECIPE.replace(optimizer=make), steps=60).curve.lr
    assert lr[0] == 1e-3  # SGD's range, also of one's own SGD
    np.testing.assert_allclose(rates[: len(lr)], np.stack([lr / 10, lr], 1))


def test_an_optimizer_that_is_there_is_left_as_it_was_and_its_hooks_see_the_gradients(images, model):
    optimizer, norms = torch.optim.Adagrad(model.parameters()), []  # Adagrad begins with a state

    def clip(*_):
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)))

    optimizer.register_step_pre_hook(clip)
    before = str(optimizer.state_dict()), str(model.state_dict())
    recipe = RECIPE.replace(optimizer=lambda _: optimizer)
    find_lr(model, images, recipe, lr_end=1.0)
    assert min(norms) > 0
    stop = optimizer.register_step_post_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    with stop, pytest.raises(KeyboardInterrupt):
        find_lr(model, images, recipe, lr_end=1.0)
    assert (str(optimizer.state_dict()), str(model.state_dict())) == before
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


# What is kept


def test_the_result_is_kept_and_read_by_a_second_call(monkeypatch, capsys, tmp_path, images, model, batches):
    find_lr(model, batches(images, 64), RECIPE, folder=tmp_path, steps=40)  # of a loader, which is another test
    first = find_lr(model, images, RECIPE, folder=tmp_path, steps=40)

    def tested(*args, **options):
        raise InterruptedError

    monkeypatch.setattr(lr_finder, "range_test", tested)
    kept = find_lr(model, images, RECIPE.replace(workers=0), folder=tmp_path, steps=40)
    assert (kept.lr_min, kept.lr_max, kept.reasons) == (first.lr_min, first.lr_max, first.reasons)
    assert kept.curve.loss.tolist() == first.curve.loss.tolist() and kept.seconds > 0
    assert "done before" in capsys.readouterr().out
    for other in (RECIPE.replace(seed=1), RECIPE.replace(augment=None), RECIPE.replace(weight_decay=0.1)):
        with pytest.raises(InterruptedError):  # it is tested again
            find_lr(model, images, other, folder=tmp_path, steps=40)
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, x: 2 * forward(self, x))
    with pytest.raises(InterruptedError):  # the same weights in another network
        find_lr(model, images, RECIPE, folder=tmp_path, steps=40)
    (tmp_path / "lr_range.json").write_text("[]")
    with pytest.raises(InputError, match=r"lr_range\.json' is damaged or no file of a run.*delete it"):
        find_lr(model, images, RECIPE, folder=tmp_path)


def test_after_a_training_neither_other_arguments_nor_trained_weights_are_taken(tmp_path, images, model):
    find_lr(model, images, RECIPE, folder=tmp_path)
    before = (tmp_path / "lr_range.json").read_text()
    fit(model, images, images, OneCycle(1, 0.5, 0.01, 0.1), RECIPE, folder=tmp_path)
    with pytest.raises(InputError, match=r"(?s)another run:\n.*  first_weights: .*make the model anew after"):
        find_lr(model, images, RECIPE, folder=tmp_path)
    assert (tmp_path / "lr_range.json").read_text() == before


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr_start": 1, "lr_end": 0.1}, r"lr_start and lr_end is \(1, 0.1\)"),
        ({"lr_start": "a"}, r"lr_start and lr_end is \('a', 10.0\)"),
        ({"lr_start": 0}, r"lr_start and lr_end is \(0, 10.0\)"),
        ({"steps": 30}, "steps is 30.*33"),
        ({"steps": 40.5}, "steps is 40.5.*whole"),
    ],
)
def test_bad_arguments_are_named(bad, message, images, model):
    with pytest.raises(InputError, match=message):
        find_lr(model, images, RECIPE, **bad)
