"""The range test: the rates are where a known curve has them, and nothing outside feels the test."""

import copy
import dataclasses
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from eva_utils import Augment, InputError, OneCycle, ResNet9, digits, find_lr, fit, lr_finder
from eva_utils.lr_curve import BEYOND, choose_rates

LR = np.geomspace(1e-3, 10, 90)
# A mirrored or much shifted digit is another one.
OPTIONS = {"augment": Augment(2, False, 4), "batch_size": 64, "steps": 60, "precision": "fp32", "device": "cpu"}


def curve(*points: tuple[float, float]) -> np.ndarray:
    """The loss of 90 steps: straight lines through (step, loss)."""
    return np.interp(np.arange(90), *zip((0, 2.3), *points, strict=True))


VALLEY = curve((20, 2.3), (60, 1.3), (89, 2.0))  # it falls and rises by 1/40 and 1/41 a step


def step_of(rate: float) -> float:
    """The place of ``rate`` in the test's steps."""
    return np.log(rate / LR[0]) / np.log(LR[1] / LR[0])


def library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's announcement
        import torch_lr_finder.lr_finder
    return torch_lr_finder.lr_finder


@pytest.fixture(scope="module")
def images():
    return digits()[0]


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return ResNet9(10, width=4)


@pytest.fixture(scope="module")
def found(model, images):
    return find_lr(model, images, **OPTIONS)


def users_network() -> nn.Module:
    """With BatchNorm's buffers and Dropout's randomness."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
    )


# The rule, on curves whose answer is known


def test_rates_of_a_valley():
    lr_min, lr_max, reasons, _ = choose_rates(LR, VALLEY)
    # The lines fall for 40 steps. The mean over 11 steps lifts the tip by the mean of 0 to 5 steps on either side.
    fall = 40 - 2 * sum(range(6)) / 11
    assert step_of(lr_min) == pytest.approx(20 + 0.2 * fall, abs=0.1)
    assert step_of(lr_max / BEYOND) == pytest.approx(20 + 0.5 * fall, abs=0.1)
    assert "20%" in reasons["lr_min"]
    assert "half of its fall" in reasons["lr_max"]


def test_rates_lie_between_steps():
    # A curve moved by a third of a step moves both rates by as much.
    thirds = np.array([choose_rates(LR, curve((20 + d, 2.3), (60 + d, 1.3), (89 + d, 2.0)))[:2] for d in (0, 1 / 3)])
    np.testing.assert_allclose(step_of(thirds[1]) - step_of(thirds[0]), 1 / 3, atol=0.02)


@pytest.mark.parametrize("end", [1.25, 1.3, 1.35])
def test_whether_the_floor_falls_or_rises_moves_the_rates_little(end):
    # Its lowest point may be at either end of it.
    lr_min, lr_max, *_ = choose_rates(LR, curve((20, 2.3), (60, 1.3), (89, end)))
    assert step_of(lr_min) == pytest.approx(28, abs=1)
    assert step_of(lr_max / BEYOND) == pytest.approx(40, abs=1)


def test_a_second_valley_behind_a_blow_up_does_not_count():
    once = choose_rates(LR, curve((20, 2.3), (45, 1.3), (60, 2.0)))
    twice = choose_rates(LR, curve((20, 2.3), (45, 1.3), (60, 2.0), (89, 0.9)))
    assert twice[:2] == once[:2]
    assert step_of(twice[0]) == pytest.approx(25, abs=1.2)


def test_lr_max_stays_before_the_blow_up():
    # From half of the fall to where 15 % of it are lost again is a factor of less than BEYOND in a narrow valley.
    _, lr_max, reasons, read = choose_rates(LR, curve((30, 2.3), (44, 1.3), (89, 7.0)))
    assert 44 < step_of(lr_max) < 48 and lr_max < BEYOND * read.rate_at(0.5)
    assert "last rate before the loss comes up again by 15%" in reasons["lr_max"]


@pytest.mark.parametrize("last", [50.0, np.nan])
@pytest.mark.parametrize("ends", [42, 46, 50])
def test_lr_max_stays_before_a_blow_up_that_ends_the_test(ends, last):
    # Nothing behind it could be smoothed: a stop at the first large loss, or a loss that is not finite.
    loss = np.append(curve((20, 2.3), (45, 1.3), (89, 1.3))[:ends], last)
    _, lr_max, reasons, _ = choose_rates(LR[: len(loss)], loss)
    assert ends - 6 <= step_of(lr_max) < ends - 1
    assert "last rate before the loss" in reasons["lr_max"]


def test_one_bad_batch_is_no_noise():
    loss = VALLEY.copy()
    loss[30] = 9
    assert step_of(choose_rates(LR, loss)[1] / BEYOND) == pytest.approx(38.6, abs=1.5)


def test_lr_max_stays_within_the_test():
    _, lr_max, reasons, _ = choose_rates(LR, curve((60, 2.3), (89, 1.3)))
    assert lr_max == LR[-1]
    assert "the test's last rate" in reasons["lr_max"]


def test_a_bump_before_half_of_the_fall_does_not_count():
    bump = curve((20, 2.3), (26, 2.2), (30, 2.23), (60, 1.3), (89, 2.0))
    assert step_of(choose_rates(LR, bump)[1] / BEYOND) == pytest.approx(40, abs=3)


@pytest.mark.parametrize("height", [0.5, 5, 100])
def test_how_high_the_blow_up_is_does_not_matter(height):
    blow_up = VALLEY + height * np.maximum(np.arange(90) - 75, 0) ** 2
    assert choose_rates(LR, blow_up)[:2] == choose_rates(LR, VALLEY)[:2]


def test_a_cliff_of_any_height_moves_the_rates_little():
    rates = np.array([choose_rates(LR, VALLEY + height * (np.arange(90) > 60))[:2] for height in (1, 10, 1000)])
    np.testing.assert_array_equal(rates[1], rates[2])
    np.testing.assert_allclose(rates[0], rates[1], rtol=0.03)


def test_smoothing_does_not_move_the_curve():
    # Straight lines stay where they are under a centred mean; an average of the past would lag by several steps.
    loss = np.linspace(3, 1, 90)
    *_, read = choose_rates(LR, loss)
    np.testing.assert_allclose(read.smooth[5:-5], loss[5:-5])


def test_noise_moves_the_rates_little():
    for seed in range(20):
        loss = VALLEY + 0.03 * np.random.default_rng(seed).normal(size=90)
        lr_min, lr_max, *_ = choose_rates(LR, loss)
        assert step_of(lr_min) == pytest.approx(28, abs=3)
        assert step_of(lr_max / BEYOND) == pytest.approx(38.6, abs=1.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_curve_is_cut_where_the_loss_stops_being_finite(bad):
    loss = VALLEY.copy()
    loss[80] = bad  # what comes after it means nothing, finite or not
    lr_min, lr_max, _, read = choose_rates(LR, loss)
    assert len(read.lr) == len(read.loss) == len(read.smooth) == 80
    assert np.isfinite(read.smooth).all()
    assert (lr_min, lr_max) == choose_rates(LR[:80], loss[:80])[:2]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (np.full(90, 2.3), "flat"),
        (2.3 + np.linspace(0, 3, 90) ** 2, "flat"),  # rising from the start
        (2.3 - 0.005 * np.linspace(0, 1, 90), "flat.*fell by 0.004"),  # a fall, but of less than a per cent
        (VALLEY[30:40], "after 10 steps.*too short"),
        (np.where(np.arange(90) < 15, VALLEY, np.nan), "too short"),
        (np.full(90, np.nan), "not finite from its first step"),
        (np.full(90, np.inf), "not finite from its first step"),
    ],
    ids=["constant", "rising", "hardly falling", "ten steps", "nan early", "nan", "inf"],
)
def test_curves_without_an_answer_are_refused(loss, message):
    with pytest.raises(InputError, match=message):
        choose_rates(LR[: len(loss)], loss)


def test_noise_without_a_fall_is_refused():
    accepted = 0
    for seed in range(200):
        try:
            choose_rates(LR, 2.3 + 0.1 * np.random.default_rng(seed).normal(size=90))
            accepted += 1
        except InputError as error:
            assert "flat" in str(error)
    assert accepted <= 2


# The test itself


def test_the_result(found):
    assert 1e-3 <= found.lr_min < found.lr_max
    assert found.reasons.keys() == {"lr_min", "lr_max"}
    assert all(reason.endswith(".") and len(reason) > 40 for reason in found.reasons.values())
    assert found.seconds > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.lr_max = 1.0


def test_rates_grow_geometrically_from_lr_start_to_lr_end(images, model):
    lr = find_lr(model, images, lr_start=0.01, lr_end=1, **OPTIONS).curve.lr
    np.testing.assert_allclose(lr, np.geomspace(0.01, 1, 60), rtol=1e-6)


def test_torch_lr_finder_does_the_test(monkeypatch, images, model, found):
    finders, finder_class = [], library().LRFinder
    range_test = finder_class.range_test

    def spy(self, *args, **options):
        finders.append((self, options))
        return range_test(self, *args, **options)

    monkeypatch.setattr(finder_class, "range_test", spy)
    read = find_lr(model, images, **OPTIONS).curve
    ((finder, options),) = finders
    assert options["num_iter"] == 60
    assert read.loss.tolist() == finder.history["loss"] == found.curve.loss.tolist()
    assert read.lr.tolist() == finder.history["lr"]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_first_loss_is_that_of_the_untouched_network(smoothing, images, model):
    x, y = next(lr_finder.loader(images, OPTIONS["augment"], 64).epoch(0))
    logits = copy.deepcopy(model).train()(x)
    loss = nn.functional.cross_entropy(logits, y, label_smoothing=smoothing)
    found = find_lr(model, images, label_smoothing=smoothing, **OPTIONS)
    assert found.curve.loss[0] == pytest.approx(loss.item(), rel=1e-4)


def test_nothing_is_touched(images):
    model = users_network()
    model[2].eval()  # a mode that model.train() or .eval() would not bring back
    model[1].bias.requires_grad_(False)

    def state():
        tensors = model.state_dict() | {"pixels": images.pixels, "labels": images.labels, "rng": torch.get_rng_state()}
        return {
            "bits": {key: value.numpy().tobytes() for key, value in tensors.items()},
            "strides": [p.stride() for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "gradients": [p.grad for p in model.parameters()],
            "hooks": [len(module._forward_hooks) for module in model.modules()],
            "numpy": [getattr(part, "tolist", lambda part=part: part)() for part in np.random.get_state()],
            "random": random.getstate(),
        }

    before = state()
    find_lr(model, images, **OPTIONS)
    assert state() == before
    assert set(before["gradients"]) == {None}


def test_the_same_seed_gives_the_same_curve_whatever_surrounds_the_call(images, model, found):
    torch.manual_seed(99)
    with torch.no_grad():
        again = find_lr(model, images, **OPTIONS)
    assert (again.lr_min, again.lr_max, again.reasons) == (found.lr_min, found.lr_max, found.reasons)
    assert again.curve.loss.tolist() == found.curve.loss.tolist()


def test_the_loss_is_not_rounded_to_the_networks_format(monkeypatch, images, model):
    forward, formats = torch.nn.CrossEntropyLoss.forward, set()

    def note(self, logits, y):
        formats.add(logits.dtype)
        return forward(self, logits, y)

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", note)
    find_lr(model, images, **OPTIONS | {"precision": "bf16"})
    assert formats == {torch.float32}


def test_another_seed_gives_another_curve(images, model, found):
    assert find_lr(model, images, seed=1, **OPTIONS).curve.loss[0] != found.curve.loss[0]


def test_dropout_too_is_a_function_of_the_seed(images):
    model, losses = users_network(), []
    for outside in (1, 2):
        torch.manual_seed(outside)
        losses.append(find_lr(model, images, **OPTIONS).curve.loss.tolist())
    assert losses[0] == losses[1]


def test_nothing_is_printed_and_no_widget_made(monkeypatch, capsys, images, model):
    def widget(*args, **options):
        raise AssertionError("a notebook would show a widget")

    monkeypatch.setattr(library(), "tqdm", widget)
    find_lr(model, images, **OPTIONS)
    assert capsys.readouterr().out == ""
    assert library().tqdm is widget  # it got back what it had


def test_a_network_of_ones_own(images):
    rates = find_lr(users_network(), images, **OPTIONS)
    assert rates.lr_min < rates.lr_max


def test_a_network_with_too_few_outputs_is_refused(images):
    with pytest.raises(InputError, match="the model has 5 outputs; the data have 10 classes"):
        find_lr(ResNet9(5, width=4), images, **OPTIONS)


def test_the_rates_train_digits():
    train, test = digits()
    model = ResNet9(10, width=8)
    options = {key: OPTIONS[key] for key in ("augment", "batch_size", "device")}
    rates = find_lr(model, train, **options)
    run = fit(model, train, test, OneCycle(4, 1, rates.lr_min, rates.lr_max), **options)
    assert run.history[-1]["test_accuracy"] > 90


# What is kept


@pytest.fixture
def no_test(monkeypatch):
    """A range test would be noticed."""

    def range_test(*args, **options):
        raise InterruptedError("tested")

    monkeypatch.setattr(lr_finder, "range_test", range_test)


@pytest.fixture
def kept(tmp_path, found):
    found.save(tmp_path / "lr_range.json")
    return tmp_path


def test_the_result_is_kept_in_the_checkpoint_folder(monkeypatch, tmp_path, images, model, found):
    monkeypatch.setattr(lr_finder, "range_test", lambda *args, **options: (LR, VALLEY))
    rates = find_lr(model, images, checkpoint=tmp_path / "run", **OPTIONS)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["lr_range.json"]
    again = lr_finder.LRRange.load(tmp_path / "run" / "lr_range.json")
    for field in dataclasses.fields(rates):
        if field.name != "curve":
            assert getattr(again, field.name) == getattr(rates, field.name)
    for name in ("lr", "loss", "smooth"):
        assert getattr(again.curve, name).tolist() == getattr(rates.curve, name).tolist()


def test_a_second_call_reads_what_was_kept(no_test, capsys, kept, images, model, found):
    rates = find_lr(model, images, checkpoint=kept, **OPTIONS)
    assert (rates.lr_min, rates.lr_max, rates.reasons) == (found.lr_min, found.lr_max, found.reasons)
    assert "done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"batch_size": 65}, {"steps": 61}, {"augment": Augment(2, False, 5)}, {"weight_decay": 0.1}]
)
def test_other_arguments_test_again(no_test, kept, images, model, other):
    with pytest.raises(InterruptedError):
        find_lr(model, images, checkpoint=kept, **(OPTIONS | other))


def test_another_network_is_tested_again(no_test, kept, images):
    with pytest.raises(InterruptedError):
        find_lr(users_network(), images, checkpoint=kept, **OPTIONS)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"curve": 1}', '{"curve": {"x": []}}', "not json"])
def test_a_damaged_file_is_named(no_test, tmp_path, images, model, text):
    (tmp_path / "lr_range.json").write_text(text)
    with pytest.raises(InputError, match=r"lr_range\.json' cannot be read"):
        find_lr(model, images, checkpoint=tmp_path, **OPTIONS)


# Arguments


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr_start": 1, "lr_end": 0.1}, "lr_start is 1 and lr_end 0.1"),
        ({"lr_start": 0}, "lr_start is 0 "),
        ({"lr_start": -1}, "lr_start is -1 "),
        ({"lr_start": float("nan")}, "lr_start is nan"),
        ({"lr_end": float("inf")}, "lr_end inf"),
        ({"steps": 30}, "steps is 30.*33"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 5000}, "batch_size is 5000"),
        ({"engine": "steam"}, "engine is 'steam'"),
        ({"precision": "fp7"}, "precision is 'fp7'"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"augment": Augment(cutout=40)}, "cutout is 40"),
    ],
)
def test_bad_arguments_are_named(no_test, images, model, bad, message):
    with pytest.raises(InputError, match=message):
        find_lr(model, images, **(OPTIONS | bad))


def test_the_rates_of_a_training_are_not_overwritten(model, images, tmp_path):
    first = find_lr(model, images, **OPTIONS, checkpoint=tmp_path)
    other = OPTIONS | {"batch_size": 32}
    assert find_lr(model, images, **other, checkpoint=tmp_path).settings["batch_size"] == 32
    (tmp_path / "checkpoint.pt").touch()
    before = (tmp_path / "lr_range.json").read_text()
    with pytest.raises(InputError, match=r"another configuration:\n  batch_size: 32 there, 64 here\nchoose another"):
        find_lr(model, images, **OPTIONS, checkpoint=tmp_path)
    assert (tmp_path / "lr_range.json").read_text() == before
    assert find_lr(model, images, **other, checkpoint=tmp_path).lr_max < 10 and first.lr_max < 10
