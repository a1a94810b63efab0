"""Figures: each draws the numbers it was given, is saved small, and leaves matplotlib's global state alone."""

import io
import itertools
import sys
import tracemalloc
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch.optim.lr_scheduler import CyclicLR

from eva_utils import Augment, ExpRange, Images, InputError, OneCycle, StepDecay, Triangular, Triangular2, plots
from eva_utils.explain import Cams, Confusion, Mistakes
from eva_utils.lr_curve import choose_rates
from eva_utils.lr_finder import LRRange
from eva_utils.plots.pictures import denormalize

LIMIT = 200_000  # bytes
CLASSES = ("ant", "bee", "cat")
ZIGZAG = Triangular(0.01, 0.1, 4)
ONE_CYCLE = OneCycle(6, 2, 0.02, 0.4)
POLICIES = {"triangular": ZIGZAG, "triangular2": Triangular2(0.01, 0.1, 4), "exp_range": ExpRange(0.01, 0.1, 4)}


def torchs() -> CyclicLR:
    """torch's zigzag, ten steps an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return CyclicLR(optimizer, 0.01, 0.1, step_size_up=40, cycle_momentum=False)


def found() -> LRRange:
    lr = np.geomspace(1e-3, 10, 90)
    noise = 0.02 * np.random.default_rng(0).normal(size=90)
    lr_min, lr_max, reasons, curve = choose_rates(lr, 2.3 - 1 / (1 + (0.05 / lr) ** 2) + noise)
    return LRRange(lr_min, lr_max, reasons, curve, 1.0, {})


def steps() -> list[dict]:
    """The applied rate is another than the planned one, so that a figure cannot mix them up."""
    return [{"epoch": i / 10, "applied": ONE_CYCLE(i / 10) + 0.001 * (i % 3), "skipped": 0} for i in range(60)]


def history() -> list[dict]:
    keys = [f"{which}_{what}" for what in ("loss", "accuracy") for which in ("train", "test")]
    keys += ["test_loss_ema", "test_accuracy_ema"]
    return [{"epoch": epoch + 1} | {key: 10.0 * i + epoch for i, key in enumerate(keys)} for epoch in range(6)]


def confused() -> Confusion:
    return Confusion(np.array([[50, 3, 0], [7, 40, 1], [0, 9, 30]]), CLASSES)


def images(n: int = 12, height: int = 16, width: int = 16) -> Images:
    """Random pixels: the hardest to save small."""
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(256, (n, height, width, 3), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 3, CLASSES, (0.5, 0.4, 0.6), (0.25, 0.3, 0.2))


def mistakes(n: int = 6, height: int = 16, width: int = 16) -> Mistakes:
    wrong = images(n, height, width)
    probabilities = torch.full((n, 3), 0.1)
    predicted = (wrong.labels + 1) % 3
    probabilities[torch.arange(n), predicted] = 0.8
    return Mistakes(wrong, torch.arange(n), predicted, probabilities)


def cams(n: int = 3, height: int = 16, width: int = 16) -> Cams:
    heat = np.random.default_rng(0).random((2, n, 2, height, width), np.float32)
    return Cams(mistakes(n, height, width), ("layer1", "layer2"), heat[0], heat[1])


DRAW = {
    "annihilation": lambda: plots.annihilation(ONE_CYCLE),
    "applied": lambda: plots.applied(steps(), ONE_CYCLE),
    "augmented": lambda: plots.augmented(images(), Augment(2, True, 4)),
    "compare": lambda: plots.compare({"one-cycle": [history()], "constant": [history(), history() * 3]}),
    "confusion": lambda: plots.confusion(confused()),
    "gradcam": lambda: plots.gradcam(cams()),
    "history": lambda: plots.history(history()),
    "lr_range": lambda: plots.lr_range(found()),
    "misclassified": lambda: plots.misclassified(mistakes()),
    "parity": lambda: plots.parity({"CyclicLR": (ZIGZAG, torchs())}, epochs=16, steps_per_epoch=10),
    "policies": lambda: plots.policies(POLICIES, 24),
    "samples": lambda: plots.samples(images()),
    "schedule": lambda: plots.schedule(ONE_CYCLE),
    "zigzag": lambda: plots.zigzag(ZIGZAG),
}


def texts(ax) -> str:
    """All words in and around ``ax``."""
    parts = [text.get_text() for text in ax.texts]
    parts += [ax.get_title(loc) for loc in ("left", "center", "right")]
    return " ".join([*parts, ax.get_xlabel(), ax.get_ylabel()])


def runs(mask: np.ndarray) -> int:
    """How many times ``mask`` becomes true."""
    return int(np.diff(mask.astype(int), prepend=0).clip(0).sum())


def places(picture: np.ndarray, panel: np.ndarray) -> list[tuple[int, int]]:
    """Every (y, x) where ``panel`` is found in ``picture``, pixel by pixel."""
    h, w, _ = panel.shape
    corners = (picture[: len(picture) - h + 1, : picture.shape[1] - w + 1] == panel[0, 0]).all(-1)
    return [(y, x) for y, x in np.argwhere(corners).tolist() if np.array_equal(picture[y : y + h, x : x + w], panel)]


def shown(ax) -> np.ndarray:
    """The pixels of the one image in ``ax``."""
    (image,) = ax.images
    return np.asarray(image.get_array())


# All figures


@pytest.mark.parametrize("name", sorted(set(plots.__all__) - {"save"}))
def test_every_figure_is_a_small_png_and_changes_nothing_global(name, tmp_path):
    before = matplotlib.rcParams.copy()
    figure = DRAW[name]()
    file = plots.save(figure, tmp_path / "new" / "figure.png")
    assert isinstance(figure, Figure)
    assert file == tmp_path / "new" / "figure.png"
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) < LIMIT
    with Image.open(file) as picture:
        width, height = figure.get_size_inches() * 100
        assert picture.size == (pytest.approx(width, abs=1), pytest.approx(height, abs=1))
        # GitHub shows about 850 pixels; letters in a much wider figure could not be read there.
        assert picture.width <= 1100
        assert len(np.unique(np.asarray(picture.convert("L")))) > 1  # not a white sheet
    after = matplotlib.rcParams.copy()
    assert {key for key in after if key != "backend" and after[key] != before[key]} == set()
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(("name", "what"), [("zigzag", ZIGZAG), ("schedule", ONE_CYCLE), ("lr_range", found())])
def test_axes_that_are_given_are_drawn_into(name, what):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert getattr(plots, name)(what, ax=right) is figure
    assert figure.axes == [left, right]
    assert right.lines
    assert not left.lines


@pytest.mark.parametrize("name", ["samples", "confusion", "misclassified", "gradcam"])
def test_a_class_may_have_any_name(name, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "CLASSES", (r"$\frac$", "5$ or 10$^{", "%s {} _\n<b>"))
    assert plots._base.png(DRAW[name]())


def test_a_notebook_shows_a_figure_as_png():
    assert plots.zigzag(ZIGZAG)._repr_png_().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_notebook_shows_that_there_are_no_mistakes():
    for figure in (plots.misclassified(mistakes(0)), plots.gradcam(cams(0))):
        (ax,) = figure.axes  # IPython passes over a figure without
        assert [text.get_text() for text in ax.texts] == ["No test image is misclassified."]


def test_save_replaces_what_was_there(tmp_path):
    file = tmp_path / "figure.png"
    file.write_bytes(b"old")
    plots.save(plots.zigzag(ZIGZAG), file)
    assert [f.name for f in tmp_path.iterdir()] == ["figure.png"]
    assert file.stat().st_size > 100


@pytest.mark.parametrize("side", [32, 96])
def test_figures_full_of_noise_are_small_as_well(tmp_path, side):
    for draw in (plots.gradcam, lambda cams: plots.misclassified(cams.mistakes)):
        file = plots.save(draw(cams(25, side, side)), tmp_path / "figure.png")
        assert file.stat().st_size < LIMIT
        with Image.open(file) as picture:
            picture.verify()


def test_a_photographs_colours_are_rounded_before_256_are_chosen(tmp_path, monkeypatch):
    chosen_from, quantize = [], Image.Image.quantize

    def watched(picture, *args, **options):
        chosen_from.append(len(picture.getcolors(2**24)))
        return quantize(picture, *args, **options)

    monkeypatch.setattr(Image.Image, "quantize", watched)
    plots.save(plots.misclassified(cams(25, 96, 96).mistakes), tmp_path / "figure.png")
    assert len(chosen_from) > 4  # a smaller picture was tried as well
    assert all(2**12 < colours <= 2**18 for colours in chosen_from)
    chosen_from.clear()
    plots.save(plots.schedule(ONE_CYCLE), tmp_path / "figure.png")
    assert len(chosen_from) == 1 and chosen_from[0] < 2**12


@pytest.mark.parametrize("place", ["file/figure.png", "folder.png"])
def test_save_says_where_it_cannot_write(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=f"cannot write .*{place}"):
        plots.save(plots.zigzag(ZIGZAG), tmp_path / place)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder.png"]  # no half of a figure either


def test_save_writes_png_alone(tmp_path):
    with pytest.raises(InputError, match=r"it has to be a name that ends in .png"):
        plots.save(plots.zigzag(ZIGZAG), tmp_path / "figure.pdf")


# Curves


@pytest.mark.parametrize("annotate", [False, True])
@pytest.mark.parametrize("cycles", [1, 3])
def test_zigzag(annotate, cycles):
    (ax,) = plots.zigzag(ZIGZAG, cycles, annotate=annotate).axes
    x, y = max((line.get_data() for line in ax.lines), key=lambda data: len(data[0]))
    assert (x[0], x[-1]) == (0, 8 * cycles)
    assert np.array_equal(y, ZIGZAG(x))
    assert runs(np.isclose(y, 0.1)) == cycles
    assert runs(np.isclose(y, 0.01)) == cycles + 1
    assert ax.axison == annotate
    words = texts(ax)
    for word in ("LR_MAX = 0.1", "LR_MIN = 0.01", "step size = 4", "cycle = 8 epochs", "learning rate", "epoch"):
        assert (word in words) == annotate


def test_policies():
    figure = plots.policies(POLICIES, 24)
    drawn = [ax for ax in figure.axes if ax.get_visible()]
    assert len(drawn) == 3
    for ax, (name, policy) in zip(drawn, POLICIES.items(), strict=True):
        (line,) = ax.lines
        x, y = line.get_data()
        assert name in texts(ax)
        assert (x[0], x[-1]) == (0, 24)
        assert np.array_equal(y, policy(x))
    assert len({ax.get_ylim() for ax in drawn}) == 1  # one scale, so that they can be compared
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("epoch", "learning rate")


def test_schedule():
    (ax,) = plots.schedule(ONE_CYCLE).axes
    x, y = ax.lines[0].get_data()
    assert (x[0], x[-1]) == (0, 6)
    assert np.array_equal(y, ONE_CYCLE(x))
    assert ax.lines[1].get_xydata().tolist() == [[0, 0.02], [2, 0.4], [6, 0.02]]
    for word in ("LR_MIN = 0.02", "LR_MAX = 0.4 at epoch 2", "LR_MIN at epoch 6", "learning rate"):
        assert word in texts(ax)


def test_a_schedule_without_an_end_is_refused():
    with pytest.raises(InputError, match=r"policy is Triangular.*it has to be one with an end"):
        plots.schedule(Triangular(0.01, 0.1, 4))


def test_a_schedule_without_a_peak_has_its_curve_alone():
    policy = StepDecay(8, 0.4)
    (ax,) = plots.schedule(policy).axes
    x, y = ax.lines[0].get_data()
    assert (x[0], x[-1]) == (0, 8) and np.array_equal(y, policy(x))
    assert len(ax.lines) == 1 and not ax.texts and ax.get_title("left") == "StepDecay"
    assert ax.get_ylim() == (0, pytest.approx(0.42, abs=0.001))


@pytest.mark.parametrize("schedule", [OneCycle(6, 5, 0.02, 0.4), OneCycle(6, 2, 0.396, 0.4)])
def test_the_peaks_name_lies_in_the_axes(schedule):
    rows = [{"applied": schedule(i / 10), "skipped": 0} for i in range(60)]
    for figure, word in ((plots.schedule(schedule), "LR_MAX"), (plots.applied(rows, schedule), "0.4 at")):
        figure.draw_without_rendering()
        ax = figure.axes[0]
        (name,) = (text for text in ax.texts if text.get_text().startswith(word))
        box, whole = name.get_window_extent(), ax.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1 + 12


def test_applied_in_a_single_step_is_seen():
    top, bottom = plots.applied([{"applied": 0.02, "skipped": 0}], ONE_CYCLE).axes
    assert top.lines[1].get_marker() == "o"
    assert "in 1 step:" in texts(bottom)


def test_a_piece_of_a_cycle_and_many_cycles():
    line = max(plots.zigzag(ZIGZAG, 0.5, annotate=True).axes[0].lines, key=lambda line: len(line.get_xdata()))
    assert (line.get_xdata()[-1], line.get_ydata().max()) == (4, 0.1)
    (ax,) = plots.zigzag(ZIGZAG, 30, annotate=True).axes
    ax.figure.draw_without_rendering()
    assert all(text.get_window_extent().x0 >= ax.get_window_extent().x0 for text in ax.texts if text.get_text())


def test_more_policies_than_colours():
    drawn = plots.policies({str(i): ZIGZAG for i in range(12)}, 8).axes
    assert [len(ax.lines) for ax in drawn] == [1] * 12
    with pytest.raises(InputError, match=r"named is \{\}"):
        plots.policies({}, 8)


def test_no_annihilation_before_the_peak():
    with pytest.raises(InputError, match=r"peak_epoch is 5.5; it has to be below 5.4"):
        plots.annihilation(OneCycle(6, 5.5, 0.02, 0.4))


def test_parity_shows_both_and_their_distance():
    pairs = {"like it": (ZIGZAG, torchs()), "unlike it": (Triangular(0.01, 0.2, 4), torchs())}
    like, unlike = plots.parity(pairs, epochs=16, steps_per_epoch=10).axes
    for ax, policy in ((like, ZIGZAG), (unlike, Triangular(0.01, 0.2, 4))):
        epoch, ours = ax.lines[0].get_data()
        assert np.array_equal(epoch, np.arange(161) / 10)
        assert np.array_equal(ours, policy(epoch))
        dots, theirs = ax.lines[1].get_data()
        np.testing.assert_allclose(theirs, ZIGZAG(dots), atol=1e-9)
    assert "unlike it: largest difference 0.1" in texts(unlike)
    assert "like it: largest difference" in texts(like)
    assert float(texts(like).split("difference ")[1].split()[0]) < 1e-9


def test_annihilation_is_on_one_curve_only():
    for ax in plots.annihilation(ONE_CYCLE).axes:
        with_it, without = (line.get_ydata() for line in ax.lines)
        assert np.array_equal(without, ONE_CYCLE(ax.lines[1].get_xdata()))
        assert without[-1] == without.min() == 0.02
        assert with_it[-1] == with_it.min() == pytest.approx(0.0002)
        assert with_it.max() == pytest.approx(0.4, rel=1e-3)


def test_lr_range():
    rates = found()
    figure = plots.lr_range(rates)
    (ax,) = figure.axes
    assert np.array_equal(ax.lines[0].get_xydata(), np.stack([rates.curve.lr, rates.curve.loss], 1))
    assert np.array_equal(ax.lines[1].get_xydata(), np.stack([rates.curve.lr, rates.curve.smooth], 1))
    vertical = [line.get_xdata()[0] for line in ax.lines[2:] if len(line.get_xdata()) == 2]
    assert vertical == [rates.lr_min, rates.lr_max]
    assert f"LR_MIN = {rates.lr_min:.3g}" in texts(ax)
    assert f"LR_MAX = {rates.lr_max:.3g}" in texts(ax)
    below = "".join(figure.get_supxlabel().split())  # wherever its lines are broken
    for name, reason in rates.reasons.items():
        assert "".join(f"{name.upper()}: {reason}".split()) in below
    assert ax.get_xscale() == "log"
    assert "nats" in ax.get_ylabel()


def blown_up(height: float) -> LRRange:
    """A curve that falls from 2.3 to 1.3 at a rate of 0.1, is up by ``height`` at 1, and comes down again."""
    lr = np.geomspace(1e-3, 10, 90)
    loss = np.interp(np.log10(lr), [-3, -2, -1, 0, 1], [2.3, 2.3, 1.3, 1.3 + height, 1.2])
    lr_min, lr_max, reasons, curve = choose_rates(lr, loss)
    return LRRange(lr_min, lr_max, reasons, curve, 1.0, {})


@pytest.mark.parametrize("height", [1.5, 50])
def test_lr_range_shows_the_blow_up_and_its_valley(height):
    rates = blown_up(height)
    (ax,) = plots.lr_range(rates).axes
    start, peak, top = rates.curve.smooth[0], rates.curve.smooth.max(), ax.get_ylim()[1]
    (dot,) = (line.get_xydata()[0] for line in ax.lines if line.get_label() == "end of the fall")
    assert 0.05 < dot[0] < 0.15  # and not the lower point behind the blow-up
    assert dot[1] == rates.curve.smooth[rates.curve.lr < 1].min()
    most = start + 1.5 * (start - dot[1])
    assert min(peak, most) <= top <= most
    assert "does not count" in texts(ax)
    (shaded,) = ax.patches
    assert dot[0] < shaded.get_x() and rates.lr_max < shaded.get_x() < 1
    (half,) = (line.get_xydata()[0] for line in ax.lines if line.get_label() == "half of the fall")
    assert half[1] == pytest.approx((start + dot[1]) / 2) and half[0] == pytest.approx(rates.curve.rate_at(0.5))


def test_lr_range_without_a_blow_up_shades_nothing():
    (ax,) = plots.lr_range(found()).axes
    assert not ax.patches
    assert "does not count" not in texts(ax)


def test_lr_range_has_its_title_beside_its_legend_wherever_lr_max_is():
    rates = found()
    for place in (0.5, 0.85, 0.92, 1):  # its name may not make the axes narrower
        lr = rates.curve.lr[round(place * (len(rates.curve.lr) - 1))]
        figure = plots.lr_range(replace(rates, lr_max=float(lr)))
        figure.savefig(io.BytesIO())  # lays it out
        (ax,) = figure.axes
        (title,) = ax.findobj(lambda artist: isinstance(artist, Text) and artist.get_text() == "Range test")
        gap = ax.get_legend().get_window_extent().x0 - title.get_window_extent().x1
        assert gap > 0.03 * figure.bbox.width, place


def test_applied():
    rows = steps()
    top, bottom = plots.applied(rows, ONE_CYCLE).axes
    epoch, used = ([row[key] for row in rows] for key in ("epoch", "applied"))
    planned = [ONE_CYCLE(x) for x in epoch]
    by_label = {line.get_label(): line for line in top.lines}
    for label, values in (("plan: the policy, step by step", planned), ("applied by the optimizer", used)):
        assert by_label[label].get_xydata().tolist() == [list(pair) for pair in zip(epoch, values, strict=True)]
    (difference,) = bottom.lines
    np.testing.assert_array_equal(difference.get_ydata(), np.array(used) - np.array(planned))
    assert "60 steps: 0.002" in texts(bottom)
    assert f"{max(used):.4g} at epoch 2" in texts(top)


def test_applied_rounds_the_epoch_of_the_peak():
    policy = OneCycle(1, 3 / 7, 0.01, 0.1)
    rows = [{"applied": policy(i / 7), "skipped": 0} for i in range(7)]
    assert "at epoch 0.43" in texts(plots.applied(rows, policy).axes[0])


def follow(skipped: list[int]) -> list[dict]:
    """The rows of a trainer that does what ONE_CYCLE says, where these steps were skipped."""
    rows, taken = [], 0
    for skip in skipped:
        epoch = taken / (len(skipped) / 6)
        rows.append({"epoch": epoch, "planned": ONE_CYCLE(epoch), "applied": ONE_CYCLE(epoch), "skipped": skip})
        taken += not skip
    return rows


@pytest.mark.parametrize("skipped", [(), (0, 1), (7, 30)])
def test_applied_as_planned_differs_by_zero(skipped):
    _, bottom = plots.applied(follow([int(i in skipped) for i in range(78)]), ONE_CYCLE).axes
    assert texts(bottom).rstrip().count("78 steps: 0 ") == 1
    assert not bottom.lines[0].get_ydata().any()


@pytest.mark.parametrize("by", [-1, 1])
def test_applied_finds_a_shift_by_one_step_even_if_it_was_written_down_as_the_plan(by):
    rows = follow([0] * 78)
    shifted = [rows[min(max(i + by, 0), 77)] for i in range(78)]
    _, bottom = plots.applied(shifted, ONE_CYCLE).axes
    step = 0.38 / 2 / 13  # the way up: from 0.02 to 0.4 in two epochs of 13 steps
    assert abs(bottom.lines[0].get_ydata()).max() == pytest.approx(step)
    assert "78 steps: 0 " not in texts(bottom)


def test_history():
    rows = history()
    loss, accuracy = plots.history(rows).axes
    for ax, what in ((loss, "loss"), (accuracy, "accuracy")):
        assert len(ax.lines) == 3
        for line, key in zip(ax.lines, (f"train_{what}", f"test_{what}", f"test_{what}_ema"), strict=True):
            assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6]
            assert list(line.get_ydata()) == [row[key] for row in rows]
            assert f"{rows[-1][key]:.2f}" in line.get_label()  # the last epoch is the result
            assert line.get_label().startswith(key[:4])
            assert ("EMA" in line.get_label()) == key.endswith("ema")
    assert "nats" in loss.get_ylabel()
    assert "%" in accuracy.get_ylabel()


def test_a_loss_that_blew_up_does_not_flatten_the_others():
    rows = [
        row | {"train_loss": 2 - 0.3 * i, "test_loss": 1.0, "test_loss_ema": 0.9} for i, row in enumerate(history())
    ]
    low, high = plots.history(rows).axes[0].get_ylim()
    assert low < 0.5 and 2 < high < 2.2
    rows[0]["test_loss_ema"] = 130.0
    assert plots.history(rows).axes[0].get_ylim() == (0, 4)
    rows[-1]["test_loss"] = 40.0  # the end is what a run is about
    assert plots.history(rows).axes[0].get_ylim() == (0, 80)


def test_history_of_one_epoch():
    for ax in plots.history(history()[:1]).axes:
        assert list(ax.get_xticks()) == [1]
        for line in ax.lines:
            assert len(line.get_xdata()) == 1 and line.get_marker() == "."  # a line alone would not be seen


def test_compare():
    short, longer = history(), [row | {"test_accuracy_ema": 50.0} for row in history() * 2]
    panels = plots.compare({"a": [short], "b": [short[:4], longer]}).axes
    for ax, key in zip(panels, ("test_accuracy", "test_accuracy_ema"), strict=True):
        *lines, end = (line for line in ax.lines if not line.get_label().startswith("_"))
        for line, rows, name in zip(lines, (short, short[:4], longer), "abb", strict=True):
            assert list(line.get_xdata()) == list(range(1, len(rows) + 1))
            assert list(line.get_ydata()) == [row[key] for row in rows]
            assert line.get_label() == f"{name}, {len(rows)} epochs: {rows[-1][key]:.1f} %"
        assert [line.get_linestyle() for line in lines] == ["--", "-", "--"]  # the shortest alone is not dashed
        assert lines[0].get_color() != lines[1].get_color() == lines[2].get_color()
        assert end.get_ydata()[0] == short[-1][key] and end.get_label() == f"where a ended after {len(short)} epochs"
        low, high = ax.get_ylim()
        assert low < short[-1][key] < high
    (ax, _) = plots.compare({"a": [short[:3]]}).axes
    assert all(tick.is_integer() for tick in ax.get_xticks())
    for wrong in ({}, {"a": []}, {"a": short}):
        with pytest.raises(InputError, match=r"runs is .*it has to be a dict of lists of histories"):
            plots.compare(wrong)


# Pictures


def test_confusion():
    figure = plots.confusion(confused())
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts] == ["50", "3", "", "7", "40", "1", "", "9", "30"]
    assert [label.get_text() for label in ax.get_xticklabels()] == list(CLASSES)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(CLASSES)
    assert ax.get_xlabel() == "predicted class"
    assert ax.get_ylabel() == "true class"
    assert "120 of 140 images right (85.71 %)" in figure.get_suptitle()
    named = figure.get_supxlabel()
    pairs = [named.find(f"{true} taken for {predicted}: {n}") for true, predicted, n in confused().most_confused()]
    assert len(pairs) == 4
    assert -1 < pairs[0] < pairs[1] < pairs[2] < pairs[3]  # all are there, the worst first


def test_confusion_without_mistakes():
    figure = plots.confusion(Confusion(np.diag([5, 5, 5]), CLASSES))
    assert figure.get_supxlabel() == ""
    assert "100.00 %" in figure.get_suptitle()


def test_confusion_of_many_classes_is_no_larger_than_a_page_and_names_them_all():
    names = tuple(f"class {i}" for i in range(70))
    figure = plots.confusion(Confusion(np.eye(70, dtype=int) + 1, names))
    assert max(figure.get_size_inches()) < 24
    (ax,) = figure.axes
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert tuple(label.get_text() for label in labels) == names
    assert not ax.texts  # numbers would be too small
    tracemalloc.start()
    figure.draw_without_rendering()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


LONG = ("a very long name of a class that goes on and on", "another one, which is no shorter at all", "cat")


def inside(figure, texts) -> bool:
    """Whether all ``texts`` are within ``figure``."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    return all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_long_names_are_not_cut_off_and_do_not_overlap():
    figure = plots.confusion(Confusion(confused().counts, LONG))
    assert inside(figure, [figure._supxlabel, figure._suptitle])
    wrong = mistakes(6)
    figure = plots.misclassified(replace(wrong, images=replace(wrong.images, classes=LONG)))
    titles = [ax.title for ax in figure.axes if ax.images]
    assert inside(figure, titles)
    boxes = [title.get_window_extent() for title in titles[:5]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_misclassified():
    wrong = mistakes(6)
    panels = [ax for ax in plots.misclassified(wrong, columns=4).axes if ax.images]
    assert len(panels) == 6
    for i, ax in enumerate(panels):
        assert np.array_equal(shown(ax), wrong.images.pixels[i].numpy())
        true, predicted = CLASSES[i % 3], CLASSES[(i + 1) % 3]
        assert texts(ax).split() == [f"{true},", "taken", "for", predicted, "(80", "%)"]


def test_fewer_mistakes_do_not_make_larger_panels():
    one, many = (plots.misclassified(mistakes(n)) for n in (1, 10))
    for figure in (one, many):
        figure.draw_without_rendering()
    assert one.axes[0].get_window_extent().width <= 1.1 * many.axes[0].get_window_extent().width
    assert one.get_figwidth() == many.get_figwidth() / 5


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_gradcam_rows(tmp_path, height, width):
    explained = cams(3, height, width)
    figure = plots.gradcam(explained, side=2 * max(height, width))
    figure.savefig(tmp_path / "figure.png", dpi=100)  # before it gets a palette
    with Image.open(tmp_path / "figure.png") as picture:
        picture = np.asarray(picture.convert("RGB"))

    def place(panel: np.ndarray) -> tuple[int, int]:
        (found,) = places(picture, panel.repeat(2, 0).repeat(2, 1))  # once, and sharp
        return found

    def colours(cam: np.ndarray) -> np.ndarray:
        return (matplotlib.colormaps["jet"](cam)[..., :3] * 255).astype(np.uint8)

    tops = []
    for i in range(3):
        pixels = explained.mistakes.images.pixels[i].numpy()
        panels = [pixels]
        for j in range(2):
            heat, heat_true = colours(explained.predicted[i, j]), colours(explained.true[i, j])
            half, half_true = ((pixels.astype(int) + h) // 2 for h in (heat, heat_true))
            panels += [half.astype(np.uint8), heat, half_true.astype(np.uint8)]
        ys, xs = zip(*(place(panel) for panel in panels), strict=True)
        assert len(set(ys)) == 1  # a row an image ...
        assert all(b - a >= 2 * width for a, b in itertools.pairwise(xs))  # ... in this order, side by side
        tops.append(ys[0])
    assert all(b - a >= 2 * height for a, b in itertools.pairwise(tops))
    (ax,) = figure.axes
    words = [text.get_text() for text in ax.texts]
    assert [word for word in words if word.startswith("layer")] == ["layer1", "layer2"]
    assert (words.count("predicted"), words.count("true")) == (2, 2)
    assert "predicted bee\n(80 %)\ntrue ant" in words


@pytest.mark.parametrize("side", [48, 64, 96])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 32), (32, 20)])
def test_gradcam_words_lie_apart(monkeypatch, side, height, width):
    monkeypatch.setattr(sys.modules[__name__], "CLASSES", ("automobile", "convertible car", "ox"))
    figure = plots.gradcam(cams(3, height, width), side=side)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for box in boxes:
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0)
        assert figure.bbox.containsy(box.y1)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_augmented_has_the_originals_first():
    several = images(12)
    axes = plots.augmented(several, Augment(2, True, 4), count=6, epochs=3).axes
    grid = np.array(axes, dtype=object).reshape(6, 4)
    for i, row in enumerate(grid):
        assert np.array_equal(shown(row[0]), several.pixels[i].numpy())
        assert not all(np.allclose(shown(row[0]) / 255, shown(ax), atol=0.01) for ax in row[1:])
    assert [texts(ax).strip() for ax in grid[0]] == ["original", "draw 1", "draw 2", "draw 3"]


def test_augmented_shows_one_image_of_each_class_first():
    several = images(12)
    several = several[several.labels.argsort(stable=True)]  # as a folder of images comes: four ants, four bees, ...
    for count, places in ((2, [0, 4]), (3, [0, 4, 8]), (5, [0, 4, 8, 1, 2])):
        grid = np.array(plots.augmented(several, None, count=count, epochs=1).axes, dtype=object).reshape(count, 2)
        assert [shown(row[0]).tolist() for row in grid] == several.pixels[places].tolist()


def test_augmented_columns_are_the_same_images_denormalised():
    # Without augmentation all columns look alike, and only if each epoch's random order is undone.
    several = images(12)
    grid = np.array(plots.augmented(several, None, count=6, epochs=2).axes, dtype=object).reshape(6, 3)
    for i, row in enumerate(grid):
        for ax in row[1:]:
            np.testing.assert_allclose(shown(ax), several.pixels[i].numpy() / 255, atol=1e-5)


def test_augmented_with_fewer_images_than_rows():
    assert sum("original" in texts(ax) for ax in plots.augmented(images(4), None).axes) == 1


def test_samples_have_a_row_a_class():
    several = images(8)  # three ants, three bees, two cats
    axes = plots.samples(several, per_class=3).axes
    for label, row in enumerate(np.array(axes, dtype=object).reshape(3, 3)):
        expected = several.pixels[several.labels == label].numpy()
        assert CLASSES[label] in texts(row[0])
        drawn = [shown(ax) for ax in row if ax.images]
        assert len(drawn) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(drawn, expected, strict=True))


def test_samples_of_many_classes_are_those_of_the_first_twenty():
    many = replace(images(60), classes=tuple(f"class {i}" for i in range(30)), labels=torch.arange(60) % 30)
    figure = plots.samples(many, per_class=2)
    assert sum(bool(ax.images) for ax in figure.axes) == 40
    assert figure.get_suptitle() == "the first 20 of 30 classes"


def test_denormalize_undoes_the_normalisation():
    several = images(4)
    x = (several.pixels / 255 - torch.tensor(several.mean)) / torch.tensor(several.std)
    np.testing.assert_allclose(
        denormalize(x.permute(0, 3, 1, 2), several.mean, several.std), several.pixels.numpy() / 255, atol=1e-6
    )
