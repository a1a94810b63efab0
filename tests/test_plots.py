"""The figures: each shows the data it was given, and leaves everybody else's alone."""

import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

import eva_utils as eva
from eva_utils import InputError, OneCycle, Triangular, plots
from eva_utils.look import Confusion, predictions
from eva_utils.lr_curve import read_curve

ZIGZAG, ONE_CYCLE = Triangular(0.01, 0.1, 4), OneCycle(24, 5, 0.01, 0.1)
NAMES = ("ant", r"$\bee$", "5$ or 10$")  # neither is a formula, and the second would be none that can be drawn


@pytest.fixture(scope="module")
def curve():
    lr = np.geomspace(1e-3, 10, 90)
    return read_curve(lr, 0.3 + 2 / (1 + (lr / 0.05) ** 2) + 3 * np.maximum(np.log10(lr / 2), 0), np.log(10))


@pytest.fixture
def run(tiny, cnn):
    recipe = eva.Recipe(augment=eva.Augment(2, True, 4), batch_size=8, precision="fp32", device="cpu")
    return eva.fit(cnn(), *tiny, OneCycle(3, 1, 0.01, 0.1), recipe)


def lines(figure) -> list:
    return [line for ax in figure.axes for line in ax.lines]


def words(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text)).replace("\u00a0", " ")


def shows(figure, values) -> bool:
    return any(len(line.get_ydata()) == len(values) and np.allclose(line.get_ydata(), values) for line in lines(figure))


def follows(figure, policy) -> bool:
    long = [line for line in lines(figure) if len(line.get_xdata()) > 100]
    return any(np.allclose(line.get_ydata(), policy(np.asarray(line.get_xdata()))) for line in long)


def test_every_figure_is_saved_in_a_sane_size_and_leaves_no_trace(curve, run, noise, state, tmp_path, monkeypatch):
    """Also without pyplot's figures, in the caller's style, and whatever the classes are called."""
    few, model = replace(noise(6, 16, 24), classes=NAMES), eva.ResNet9(3, 4)
    figures = {
        "zigzag": lambda: plots.zigzag(ZIGZAG, annotate=True), "policies": lambda: plots.policies({"$": ZIGZAG}, 24),
        "annihilation": lambda: plots.annihilation(ONE_CYCLE),
        "lr_range": lambda: plots.lr_range(curve), "applied": lambda: plots.applied(run.steps, run.schedule),
        "history": lambda: plots.history(run.history, about="$ noise"),
        "compare": lambda: plots.compare({"$": [run.history], "other": [run.history]}),
        "samples": lambda: plots.samples(few), "augmented": lambda: plots.augmented(few, eva.Augment(2, True, 4)),
        "confusion": lambda: plots.confusion(eva.confusion(model, few)),
        "misclassified": lambda: plots.misclassified(predictions(model, few)),
        "gradcam": lambda: plots.gradcam(eva.gradcam(model, few)),
    }  # fmt: skip
    assert {*figures, "save"} == set(plots.__all__)
    style, before = dict(matplotlib.rcParams), state(model)
    written = [plots.save(draw(), tmp_path / f"deeper/{name}.png") for name, draw in figures.items()]
    assert dict(matplotlib.rcParams) == style and pyplot.get_fignums() == [] and state(model) == before
    for file in written:
        with Image.open(file) as picture:
            assert 500 < picture.width < 2500 and 200 < picture.height < 2500, file.name
        assert file.stat().st_size < 300_000
    picture, metadata = plots.zigzag(ZIGZAG, annotate=True)._repr_png_()
    assert picture.startswith(b"\x89PNG") and metadata == {"alt": "The cyclic learning rate and its terms"}
    with pytest.raises(InputError, match=r"\.png"):
        plots.save(plots.zigzag(ZIGZAG), tmp_path / "zigzag.pdf")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plots.save(plots.zigzag(ZIGZAG), "~/zigzag.png") == tmp_path / "zigzag.png"


def test_policies_are_drawn_as_they_are():
    for annotate in (False, True):
        figure = plots.zigzag(ZIGZAG, 3, annotate=annotate)
        assert follows(figure, ZIGZAG)
        assert ("LR_MAX = 0.1" in words(figure)) == annotate
    named = {"zigzag": ZIGZAG, "one-cycle": ONE_CYCLE, "shrinking": eva.ExpRange(0.01, 0.1, 4, 0.9)}
    figure = plots.policies(named, 24)
    assert all(follows(figure, policy) and title in words(figure) for title, policy in named.items())
    assert follows(plots.annihilation(ONE_CYCLE), ONE_CYCLE)


def test_the_range_test_marks_both_rates_and_says_why(curve):
    figure = plots.lr_range(curve)
    marked = [line.get_xdata()[0] for line in lines(figure) if len(set(line.get_xdata())) == 1]
    for rate in (curve.lr_min, curve.lr_max, curve.curve.half()):
        assert any(np.isclose(x, rate) for x in marked)
    assert shows(figure, curve.curve.smooth) and shows(figure, curve.curve.loss)
    text = words(figure).replace("\n", " ")
    for key in ("lr_min", "lr_max"):
        assert f"{key.upper()} = {getattr(curve, key):.3g}" in text and f"{key.upper()}: {curve.reasons[key]}" in text
    assert "ln 10 = 2.30" in text
    low, high = plots.lr_range(replace(curve, lr_min=1e-5, lr_max=99)).axes[0].get_xlim()
    assert low < 1e-5 and high > 99  # rates that were given may lie outside


def test_applied_works_the_plan_out_again(run):
    figure = plots.applied(run.steps, run.schedule)
    assert shows(figure, [row["applied"] for row in run.steps])
    assert shows(figure, [run.schedule(i / 4) for i in range(12)]) and "largest difference 0" in words(figure)
    wrong = [row | {"applied": row["applied"] + 0.01, "planned": row["applied"] + 0.01} for row in run.steps]
    assert "difference 0.01" in words(plots.applied(wrong, run.schedule))  # what training wrote down is no witness


def test_history_and_compare_show_every_curve(run):
    figure = plots.history(run.history, about="noise, one run")
    for what, far in (("loss", "highest 99"), ("accuracy", "lowest 1")):
        for key in (f"train_{what}", f"test_{what}", f"test_{what}_ema"):
            assert shows(figure, [row[key] for row in run.history]), key
        off = [run.history[0] | {f"test_{what}": float(far.split()[1])}, *run.history[1:]]
        assert far in words(plots.history(off))  # said where the axis does not reach it
    assert "noise, one run" in words(figure) and f"{run.history[-1]['test_accuracy_ema']:.2f} EMA" in words(figure)
    plots.history(run.history[:1])
    compared = plots.compare({"one-cycle": [run.history], "other": [run.history, run.history[:2]]})
    for rows, key in ((run.history, "test_accuracy_ema"), (run.history[:2], "test_accuracy")):
        assert shows(compared, [row[key] for row in rows])


def test_confusion_has_its_numbers_in_their_places():
    figure = plots.confusion(Confusion(np.array([[7, 0, 1], [4, 5, 0], [0, 2, 6]]), NAMES))
    places = {text.get_position()[::-1]: text.get_text() for text in figure.axes[0].texts}
    cells = [places.get((i, j), "") for i in range(3) for j in range(3)]
    assert cells == ["7", "", "1", "4", "5", "", "", "2", "6"]
    assert "18 of 25 images right (72.00 %)" in words(figure) and rf"{NAMES[1]} taken for ant: 4" in words(figure)


def test_photos_keep_their_colours():
    colours = torch.randint(256, (500, 1, 1, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels, labels = colours.expand(-1, 8, 8, -1).contiguous().numpy(), torch.arange(500) % 10
    images, _ = eva.from_arrays((pixels, labels), (pixels, labels), "abcdefghij")
    with Image.open(io.BytesIO(plots.samples(images, 40)._repr_png_()[0])) as picture:
        there = np.array([colour for _, colour in picture.convert("RGB").getcolors()])
    shown = colours[:400].view(-1, 1, 3).numpy().astype(int)
    assert abs(shown - there).max(2).min(1).max() <= 32


def test_captions_are_truthful(noise):
    few, model = replace(noise(6, 16, 24), classes=NAMES), eva.ResNet9(3, 4)
    found = predictions(model, few)
    cams, others = eva.gradcam(model, few), eva.gradcam(model, few, classes=[(int(i) + 1) % 3 for i in found.predicted])
    for figure, explained in ((plots.misclassified(found), 0), (plots.gradcam(cams), 0), (plots.gradcam(others), 1)):
        for i in range(6):
            true, predicted = (NAMES[int(labels[i])] for labels in (few.labels, found.predicted))
            caption = f"predicted {predicted} ({100 * float(found.probabilities[i].max()):.0f} %) true {true}"
            k = int(others.explained[i])
            first = f"class {NAMES[k]} ({100 * float(found.probabilities[i, k]):.0f} %) "
            assert f"{i + 1}. {first if explained else ''}{caption}" in words(figure).replace("\n", " ")
    for figure in (plots.misclassified(found[:0]), plots.gradcam(eva.gradcam(model, found[:0]))):
        assert "No misclassified images" in words(figure)
