"""The figures: each shows the data it was given, and leaves everybody else's alone."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from eva_utils import (
    Augment,
    ExpRange,
    InputError,
    OneCycle,
    Recipe,
    ResNet9,
    StepDecay,
    Triangular,
    confusion,
    fit,
    gradcam,
    plots,
)
from eva_utils.look import predictions
from eva_utils.lr_curve import read_curve

ZIGZAG, ONE_CYCLE = Triangular(0.01, 0.1, 4), OneCycle(24, 5, 0.01, 0.1)


@pytest.fixture(scope="module")
def curve():
    lr = np.geomspace(1e-3, 10, 90)
    return read_curve(lr, 0.3 + 2 / (1 + (lr / 0.05) ** 2) + 3 * np.maximum(np.log10(lr / 2), 0), np.log(10))


@pytest.fixture
def run(tiny, cnn):
    recipe = Recipe(augment=Augment(2, True, 4), batch_size=8, precision="fp32", device="cpu")
    return fit(cnn(), *tiny, OneCycle(3, 1, 0.01, 0.1), recipe)


def lines(figure) -> list:
    return [line for ax in figure.axes for line in ax.lines]


def words(figure) -> str:
    texts = figure.findobj(matplotlib.text.Text)
    return "\n".join(text.get_text() for text in texts).replace("\u00a0", " ")


def shows(figure, values) -> bool:
    """Whether a line of the figure has these values."""
    return any(len(line.get_ydata()) == len(values) and np.allclose(line.get_ydata(), values) for line in lines(figure))


def test_the_zigzag_is_the_policy():
    for annotate in (False, True):
        figure = plots.zigzag(ZIGZAG, 3, annotate=annotate)
        curve = max(lines(figure), key=lambda line: len(line.get_xdata()))
        np.testing.assert_allclose(curve.get_ydata(), ZIGZAG(np.asarray(curve.get_xdata())))
        assert (curve.get_ydata().min(), curve.get_ydata().max()) == (0.01, 0.1)
        assert ("LR_MAX" in words(figure)) == annotate


def test_policies_and_schedules_are_drawn_as_they_are():
    named = {"zigzag": ZIGZAG, "one-cycle": ONE_CYCLE, "shrinking": ExpRange(0.01, 0.1, 4, 0.9)}
    figure = plots.policies(named, 24)
    for policy in named.values():
        assert any(np.allclose(line.get_ydata(), policy(np.asarray(line.get_xdata()))) for line in lines(figure))
    assert all(title in words(figure) for title in named)
    assert "LR_MAX = 0.1" in words(plots.schedule(ONE_CYCLE))
    plots.schedule(StepDecay(24, 0.1))
    plots.annihilation(ONE_CYCLE)
    with pytest.raises(InputError, match="with an end"):
        plots.schedule(ZIGZAG)


def test_parity_says_the_largest_difference():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=40, cycle_momentum=False)
    figure = plots.parity({"CyclicLR": (ZIGZAG, scheduler)}, 8, 10)
    assert "CyclicLR" in words(figure) and "e-1" in words(figure)


def test_the_range_test_marks_both_rates_and_says_why(curve):
    figure = plots.lr_range(curve)
    marked = [line.get_xdata()[0] for line in lines(figure) if len(set(line.get_xdata())) == 1]
    for rate in (curve.lr_min, curve.lr_max, curve.curve.half()):
        assert any(np.isclose(x, rate) for x in marked)
    assert shows(figure, curve.curve.smooth) and shows(figure, curve.curve.loss)
    text = words(figure)
    assert f"LR_MIN = {curve.lr_min:.3g}" in text and f"LR_MAX = {curve.lr_max:.3g}" in text and "ln 10" in text
    assert curve.reasons["lr_max"][:30] in text.replace("\n", " ")


def test_applied_works_the_plan_out_again(run):
    figure = plots.applied(run.steps, run.schedule)
    assert shows(figure, [row["applied"] for row in run.steps])
    assert shows(figure, [run.schedule(i / 4) for i in range(12)])
    wrong = [row | {"applied": row["applied"] + 0.01, "planned": row["applied"] + 0.01} for row in run.steps]
    assert "0.01" in words(plots.applied(wrong, run.schedule))  # what training wrote down as planned is no witness


def test_history_and_compare_show_every_curve(run):
    figure = plots.history(run.history, about="noise, one run")
    for key in ("train_loss", "test_loss_ema", "train_accuracy", "test_accuracy", "test_accuracy_ema"):
        assert shows(figure, [row[key] for row in run.history]), key
    assert "noise, one run" in words(figure) and "EMA" in words(figure)
    plots.history(run.history[:1])
    compared = plots.compare({"one-cycle": [run.history], "other": [run.history, run.history[:2]]})
    assert shows(compared, [row["test_accuracy_ema"] for row in run.history])


def test_confusion_has_the_counts(run, tiny):
    found = confusion(run.ema, tiny[1])
    text = words(plots.confusion(found)).split("\n")
    for count in found.counts[found.counts > 0]:
        assert str(count) in text


def test_pictures_of_images(run, tiny):
    train, test = tiny
    for figure in (plots.samples(train), plots.augmented(train, Augment(2, True, 4))):
        assert any(ax.images for ax in figure.axes)
    wrong = predictions(run.ema, test)
    assert "1. predicted" in words(plots.misclassified(wrong)).replace("\u00a0", " ")
    assert "none" in words(plots.misclassified(wrong[:0]))


@pytest.mark.parametrize("side", [16, 32, 100])
def test_gradcam_captions_are_truthful(side):
    from eva_utils import from_arrays

    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    data = pixels, [0, 1, 2]
    images, _ = from_arrays(data, data, ("ant", "bee", "5$ or 10$"))
    model = ResNet9(3, 4)
    cams = gradcam(model, images)
    text = words(plots.gradcam(cams))
    for i in range(3):
        true, predicted, _ = cams.predictions.caption(i)
        assert f"predicted {predicted}" in text and f"true {true}" in text
    assert "class bee" in words(plots.gradcam(gradcam(model, images, classes="bee")))
    plots.gradcam(cams[:0])


def test_saved_files_are_whole_pngs(tmp_path, capsys):
    file = plots.save(plots.zigzag(ZIGZAG), tmp_path / "deeper" / "zigzag.png")
    with Image.open(file) as picture:
        assert picture.width > 800
    with pytest.raises(InputError, match=r"\.png"):
        plots.save(plots.zigzag(ZIGZAG), tmp_path / "zigzag.pdf")

    def fails():
        raise ValueError("no LaTeX\nhere")

    written = plots.save_all(tmp_path, {"bad": fails, "good": lambda: plots.zigzag(ZIGZAG)})
    assert [path.name for path in written] == ["good.png"]
    assert capsys.readouterr().err == "figure bad: no LaTeX\n"


def test_other_figures_are_left_alone(curve):
    before = dict(matplotlib.rcParams)
    figure = plots.lr_range(curve)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
