"""Looking at a network: against the same by hand; what does not fit is refused; a run's folder knows a photo."""

import copy
import dataclasses
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from eva_utils import InputError, OneCycle, Recipe, ResNet9, confusion, find_lr, fit, gradcam, look, misclassified
from eva_utils.look import classify, evaluate, load_model, predict

RECIPE = Recipe(batch_size=8, augment=None, precision="fp32", device="cpu")
POLICY = OneCycle(1, 0.5, 0.001, 0.01)


@pytest.fixture
def model(cnn):
    """A user's network whose BatchNorm has seen something and whose modules are in different modes."""
    model = cnn()
    with torch.no_grad():
        model(3 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1)
    model[1].eval()  # as people do who freeze BatchNorm
    return model


def logits_by_hand(model, images, mirrored: bool = False) -> torch.Tensor:
    """One image after the other, in the plainest way."""
    model, out = copy.deepcopy(model).eval(), []
    for pixels in images.pixels:
        x = ((pixels / 255 - torch.tensor(images.mean)) / torch.tensor(images.std)).permute(2, 0, 1)
        out.append(model((x.flip(2) if mirrored else x)[None])[0].detach())
    return torch.stack(out)


# predict and evaluate


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("batch", [1000, 7])  # 12 images: one batch; one and a smaller one
def test_predict_and_evaluate_against_the_same_by_hand(batch, tta, model, tiny, monkeypatch):
    monkeypatch.setattr(look, "BATCH", batch)
    logits = logits_by_hand(model, tiny[1])
    if tta:
        logits = (logits + logits_by_hand(model, tiny[1], mirrored=True)) / 2
    found = predict(model, tiny[1], tta=tta, precision="fp32")
    assert not found.requires_grad and not found.is_inference()
    torch.testing.assert_close(found, logits.softmax(1), rtol=1e-4, atol=1e-5)
    metrics = evaluate(model, tiny[1], tta=tta, label_smoothing=0.2, precision="fp32")
    correct = int((logits.argmax(1) == tiny[1].labels).sum())
    assert (metrics.n, metrics.correct, metrics.accuracy) == (12, correct, pytest.approx(100 * correct / 12))
    loss = nn.functional.cross_entropy(logits, tiny[1].labels, label_smoothing=0.2)
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-4)


def test_a_dataloader_is_evaluated_like_its_images(model, tiny, batches):
    ours, theirs = (evaluate(model, data, precision="fp32") for data in (tiny[1], batches(tiny[1])))
    assert (theirs.n, theirs.correct, theirs.loss) == (12, ours.correct, pytest.approx(ours.loss, rel=1e-5))
    torch.testing.assert_close(predict(model, batches(tiny[1])), predict(model, tiny[1]))


@pytest.mark.parametrize("call", [predict, evaluate])
def test_the_model_is_left_as_it_was_also_after_an_error(call, model, state, tiny, monkeypatch):
    before, calls = state(model), itertools.count(1)
    call(model, tiny[1], tta=True)
    assert state(model) == before and len(set(before["modes"])) == 2
    monkeypatch.setattr(look, "BATCH", 2)

    def fails(*_):
        if next(calls) == 2:
            raise RuntimeError("out of luck")

    # Kept in a variable, as a notebook keeps the last traceback: no local variable in it may be what holds a mode.
    with model.register_forward_pre_hook(fails), pytest.raises(InputError, match="out of luck") as caught:
        call(model, tiny[1], precision="bf16")
    assert caught.tb is not None and state(model) == before


def test_a_network_of_other_classes_is_refused_by_all_alike(cnn, tiny):
    (train, test), model = tiny, cnn(outputs=5)
    calls = [partial(call, model, test) for call in (predict, evaluate, confusion, misclassified, gradcam)]
    for call in (*calls, lambda: find_lr(model, train, RECIPE), lambda: fit(model, train, test, POLICY, RECIPE)):
        with pytest.raises(InputError, match=r"^the model has 5 outputs; the data have 3 classes$"):
            call()


def test_images_with_labels_of_their_classes_are_asked_for_by_all_alike(model, tiny, batches):
    images = tiny[1]
    for call in (confusion, misclassified, gradcam):
        with pytest.raises(InputError, match=r"^the data is 'DataLoader'; it has to be Images"):
            call(model, batches(images))
    for call in (confusion, misclassified):
        with pytest.raises(InputError, match=r"^the shape of probabilities is \(4, 3\); it has to be \(12, 3\)$"):
            call(model, images, torch.zeros(4, 3))
    wrong = dataclasses.replace(images, labels=images.labels + 1)
    for call, data in ((evaluate, batches(wrong)), (evaluate, wrong), (confusion, wrong), (gradcam, wrong)):
        with pytest.raises(InputError, match=r"the range of labels is .* within 0 and 2, for 3 classes"):
            call(model, data)


@pytest.mark.parametrize("call", [predict, evaluate])
def test_what_is_no_data_and_what_are_no_logits_is_refused(call, model, tiny, batches):
    with pytest.raises(InputError, match=r"cannot take a batch of \(12, 3, 16, 16\): .*expected input"):
        call(nn.Conv2d(4, 4, 1), tiny[1])
    with pytest.raises(InputError, match=r"the model gives Tensor torch.* \(12, 3, 16, 16\); it has to give"):
        call(nn.Conv2d(3, 3, 1), tiny[1])
    with pytest.raises(InputError, match="number of images is 0"):
        call(model, tiny[1][:0])
    with pytest.raises(InputError, match="the model gives probabilities"):
        call(nn.Sequential(model, nn.Softmax(1)), tiny[1])
    with pytest.raises(InputError, match="number of the model's outputs is 1"):
        call(nn.Sequential(model, nn.Linear(3, 1)), batches(tiny[1]))
    with pytest.raises(InputError, match=r"the data is 'Tensor torch.float32 .*'; it has to be Images"):
        call(model, torch.zeros(2, 3, 32, 32))


def test_confusion_recall_and_mistakes_are_counted(tiny):
    images, probabilities = tiny[0], torch.rand(len(tiny[0]), 3).softmax(1)  # of a model that is right now and then
    expected, mistakes = np.zeros((3, 3), int), []
    for i, (true, row) in enumerate(zip(images.labels.tolist(), probabilities.tolist(), strict=True)):
        expected[true, row.index(max(row))] += 1
        mistakes += [i] * (row.index(max(row)) != true)
    result = confusion(None, images, probabilities)
    assert result.counts.tolist() == expected.tolist()
    assert result.recall == {c: 100 * expected[i, i] / expected[i].sum() for i, c in enumerate(images.classes)}
    only = images[(images.labels == 1).nonzero().flatten()]
    result = confusion(None, only, torch.tensor([[0.9, 0.1, 0.0]] * len(only)))
    assert result.counts.tolist() == [[0, 0, 0], [len(only), 0, 0], [0, 0, 0]]
    assert result.recall == {"bee": 0}
    wrong = misclassified(None, images, probabilities)
    assert 0 < len(mistakes) < len(images) and wrong.index.tolist() == mistakes
    assert wrong.images.pixels.equal(images.pixels[mistakes]) and wrong.probabilities.equal(probabilities[mistakes])
    sure, picked = wrong.probabilities.max(1).values, wrong.pick(5)  # the surest first, and all fields went along
    assert picked.probabilities.max(1).values.tolist() == sorted(sure.tolist(), reverse=True)[:5]
    assert picked.images.pixels.equal(images.pixels[picked.index])
    assert len(misclassified(None, images, nn.functional.one_hot(images.labels).float()).pick()) == 0


# A run's folder alone


@pytest.fixture
def run(tiny, tmp_path):
    """(folder, Run) of a tiny training of a ResNet9."""
    return tmp_path / "run", fit(ResNet9(3, width=4), *tiny, POLICY, RECIPE, folder=tmp_path / "run")


def write(pixels, path):
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def test_classify_needs_the_folder_alone_and_resizes(run, tiny, tmp_path):
    folder, trained = run
    files = [write(tiny[1].pixels[i], tmp_path / f"{i}.png") for i in range(3)]
    expected = predict(trained.ema, tiny[1][:3])
    assert classify(folder, files) == classify(folder, *files)
    for answer, row in zip(classify(folder, *files), expected, strict=True):
        assert answer == {name: pytest.approx(float(row[i]), abs=1e-5) for i, name in enumerate(tiny[1].classes)}
        assert list(answer.values()) == sorted(answer.values(), reverse=True)
    larger = tiny[1].pixels[0].repeat_interleave(3, 0).repeat_interleave(3, 1)
    wide = nn.functional.pad(larger, (0, 0, 6, 6))  # black, left and right
    (answer,) = classify(folder, write(wide, tmp_path / "wide.png"))
    assert answer == {name: pytest.approx(float(expected[0, i]), abs=0.05) for i, name in enumerate(tiny[1].classes)}


def test_a_network_of_ones_own_is_given(cnn, tiny, tmp_path):
    trained = fit(cnn(), *tiny, POLICY, RECIPE, folder=tmp_path)
    file = write(tiny[1].pixels[0], tmp_path / "0.png")
    with pytest.raises(InputError, match=r"model is 'not given'; .* another network than ResNet9"):
        classify(tmp_path, file)
    (answer,) = classify(tmp_path, file, model=cnn(1))
    assert max(answer, key=answer.get) == tiny[1].classes[int(predict(trained.ema, tiny[1])[0].argmax())]
    with pytest.raises(InputError, match=r"model\.pt' does not fit this network"):
        load_model(tmp_path, cnn(outputs=5))


def test_photos_for_a_network_of_oblong_images_have_their_size(cnn, tiny, tmp_path):
    train, test = (dataclasses.replace(images, pixels=images.pixels[:, :-4].contiguous()) for images in tiny)
    fit(model := nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), train, test, POLICY, RECIPE,
        folder=tmp_path)  # fmt: skip
    right, wrong = (write(images.pixels[0], tmp_path / name) for images, name in ((test, "a.png"), (tiny[1], "b.png")))
    assert len(classify(tmp_path, right, model=model)) == 1
    with pytest.raises(InputError, match=r"the size of .*b\.png' is .* pixels, as trained on"):
        classify(tmp_path, right, wrong, model=model)


def test_a_run_that_was_trained_on_a_loader_knows_no_classes(cnn, tiny, batches, tmp_path):
    fit(cnn(), *map(batches, tiny), POLICY, RECIPE, folder=tmp_path)
    with pytest.raises(InputError, match="was trained on a loader, so it knows neither classes"):
        classify(tmp_path, "0.png", model=cnn())


def test_images_of_another_kind_than_trained_on_are_refused(run, tiny):
    model = load_model(run[0])
    assert evaluate(model, tiny[1]).accuracy == evaluate(run[1].ema, tiny[1]).accuracy
    larger = tiny[1].pixels.repeat_interleave(2, 1)
    for other in ({"classes": ("cat", "ant", "bee")}, {"mean": (0.1, 0.2, 0.3)}, {"pixels": larger}):
        for network in (model, run[1].model):
            with pytest.raises(InputError, match=r"the images have another [a-z_]+ than those trained on"):
                evaluate(network, dataclasses.replace(tiny[1], **other))
    other = [dataclasses.replace(images, classes=("cat", "ant", "bee")) for images in tiny]
    assert fit(model, *other, POLICY, RECIPE).ema.trained_on["classes"] == ["cat", "ant", "bee"]
