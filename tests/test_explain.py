"""Where a model is wrong: counted by hand, and Grad-CAM computed by hand."""

import copy
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from eva_utils import InputError, ResNet9, confusion, gradcam, misclassified, predict
from eva_utils.batches import normalize
from eva_utils.explain import Confusion


@pytest.fixture
def images(tiny):
    return tiny[0]


@pytest.fixture
def probabilities(images):
    """Of a model that is right now and then."""
    return torch.rand(len(images), 3).softmax(1)


@pytest.fixture
def model(images):
    """Untrained, so wrong often enough; its BatchNorm has seen images, so train and eval mode differ."""
    model = ResNet9(3, width=4)
    with torch.no_grad():
        model.train()(normalize(images.pixels, images.mean, images.std))
    return model.eval()


@pytest.fixture
def wrong(model, images):
    wrong = misclassified(model, images)
    assert len(wrong) > 5
    return wrong


# Confusions and mistakes


def test_confusion_counts(images, probabilities):
    expected = np.zeros((3, 3), int)
    for true, row in zip(images.labels.tolist(), probabilities.tolist(), strict=True):
        expected[true, row.index(max(row))] += 1
    result = confusion(None, images, probabilities)
    assert result.counts.tolist() == expected.tolist()
    assert result.counts.tolist() == confusion_matrix(images.labels, probabilities.argmax(1)).tolist()
    assert result.classes == ("ant", "bee", "cat")


def test_confusion_has_a_row_and_a_column_for_classes_that_never_come(images):
    only = images[(images.labels == 1).nonzero().flatten()]
    counts = confusion(None, only, torch.tensor([[0.9, 0.1, 0.0]] * len(only))).counts
    assert counts.tolist() == [[0, 0, 0], [len(only), 0, 0], [0, 0, 0]]


def test_confusion_of_a_model_is_that_of_its_predictions(model, images):
    assert (confusion(model, images).counts == confusion(None, images, predict(model, images)).counts).all()


def test_most_confused_pairs():
    counts = np.array([[50, 3, 0], [7, 40, 1], [0, 9, 30]])
    pairs = [("cat", "bee", 9), ("bee", "ant", 7), ("ant", "bee", 3), ("bee", "cat", 1)]
    result = Confusion(counts, ("ant", "bee", "cat"))
    assert result.most_confused() == pairs  # nothing from the diagonal, nothing with a count of 0
    assert result.most_confused(2) == pairs[:2]
    assert Confusion(np.diag([5, 5, 5]), result.classes).most_confused() == []


def test_misclassified_are_those_whose_label_is_not_the_likeliest(images, probabilities):
    wrong = misclassified(None, images, probabilities)
    expected = [i for i in range(len(images)) if probabilities[i].argmax() != images.labels[i]]
    assert 0 < len(expected) < len(images)
    assert wrong.index.tolist() == expected
    assert len(wrong) == len(expected)
    assert wrong.images.pixels.equal(images.pixels[expected])
    assert wrong.images.labels.equal(images.labels[expected])
    assert wrong.predicted.equal(probabilities[expected].argmax(1))
    assert wrong.probabilities.equal(probabilities[expected])


def test_misclassified_of_a_model_are_those_of_its_predictions(model, images):
    assert misclassified(model, images).index.equal(misclassified(None, images, predict(model, images)).index)


def test_pick_takes_the_surest_mistakes_first(images, probabilities):
    wrong = misclassified(None, images, probabilities)
    sure = wrong.probabilities.max(1).values
    picked = wrong.pick(5)
    assert picked.probabilities.max(1).values.tolist() == sorted(sure.tolist(), reverse=True)[:5]
    assert picked.images.pixels.equal(images.pixels[picked.index])  # all fields went along
    assert picked.images.labels.equal(images.labels[picked.index])
    assert picked.predicted.equal(probabilities[picked.index].argmax(1))


def test_pick_gives_no_more_than_there_are(images, probabilities):
    wrong = misclassified(None, images, probabilities)
    assert len(wrong.pick(1000)) == len(wrong)
    right = misclassified(None, images, nn.functional.one_hot(images.labels).float())
    assert len(right) == len(right.pick()) == 0


def test_caption(images):
    probabilities = torch.tensor([[0.1, 0.2, 0.7]] * len(images))
    wrong = misclassified(None, images, probabilities)
    true, predicted, probability = wrong.caption(0)
    assert (true, predicted) == (images.classes[int(images.labels[wrong.index[0]])], "cat")
    assert probability == pytest.approx(0.7)


# Grad-CAM


def by_hand(model: nn.Sequential, x: torch.Tensor, label: int, layer: str) -> np.ndarray:
    """Grad-CAM of one image x (1, 3, h, w): arXiv:1610.02391, equations 1 and 2."""
    model = copy.deepcopy(model).eval()
    out = x
    for name, module in model.named_children():
        out = module(out)
        if name == layer:
            activations = out = out.detach().requires_grad_()
    (gradients,) = torch.autograd.grad(out[0, label], activations)
    weights = gradients.mean((2, 3), keepdim=True)
    cam = (weights * activations).sum(1).relu()[0].detach().numpy()

    def scaled(cam):
        cam = cam - cam.min()
        return cam / (cam.max() + 1e-7)

    return scaled(cv2.resize(scaled(cam), (x.shape[3], x.shape[2])))


@pytest.mark.parametrize("layer", ["head", "head.flatten", "head.linear"])
def test_a_layer_without_feature_maps_is_refused(layer, model, wrong):
    with pytest.raises(InputError, match=f"layer '{layer}' gives no feature map"):
        gradcam(model, wrong, layer)


def test_a_single_mistake_is_a_selection_of_one(model, wrong):
    cams = gradcam(model, wrong)
    assert len(wrong[1]) == 1 and wrong[1].caption(0) == wrong.caption(1)
    assert np.array_equal(cams[1].true, cams.true[1:2]) and len(cams[1].mistakes) == 1


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3"])
def test_gradcam_is_what_the_paper_says(model, wrong, layer):
    cams = gradcam(model, wrong)
    j = cams.layers.index(layer)
    x = normalize(wrong.images.pixels, wrong.images.mean, wrong.images.std)
    for which, classes in (("predicted", wrong.predicted), ("true", wrong.images.labels)):
        expected = np.stack([by_hand(model, x[i : i + 1], int(classes[i]), layer) for i in range(len(wrong))])
        assert expected.max() > 0.99  # not all empty
        np.testing.assert_allclose(getattr(cams, which)[:, j], expected, atol=1e-3)


def test_shapes_and_range(model, wrong):
    cams = gradcam(model, wrong)
    assert cams.layers == ("layer1", "layer2", "layer3")
    assert cams.mistakes is wrong
    for maps in (cams.predicted, cams.true):
        assert maps.shape == (len(wrong), 3, 16, 16)
        assert maps.dtype == np.float32
        assert maps.min() >= 0
        assert maps.max() <= 1
    assert not np.array_equal(cams.predicted, cams.true)  # the class matters
    assert cams[2:4].predicted.shape == (2, 3, 16, 16)
    assert cams[2:4].mistakes.index.equal(wrong.index[2:4])


def test_images_need_not_be_square(model, images):
    wide = replace(images, pixels=images.pixels.repeat(1, 1, 2, 1))  # 16 high, 32 wide
    wrong = misclassified(model, wide)
    assert gradcam(model, wrong).predicted.shape == (len(wrong), 3, 16, 32)


@pytest.mark.parametrize(
    "surroundings",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_surroundings_make_no_difference(model, images, wrong, surroundings):
    expected = gradcam(model, wrong)
    with surroundings():
        cams = gradcam(model, wrong)
        inside = gradcam(model, misclassified(None, images, predict(model, images)))  # mistakes from inside as well
    assert np.array_equal(cams.predicted, expected.predicted)
    assert np.array_equal(cams.true, expected.true)
    assert inside.predicted.shape[1:] == (3, 16, 16)


def test_a_model_in_train_mode_is_explained_in_eval_mode(model, wrong):
    expected = gradcam(model.eval(), wrong)
    cams = gradcam(model.train(), wrong)
    assert np.array_equal(cams.predicted, expected.predicted)
    assert np.array_equal(cams.true, expected.true)


def test_the_model_is_left_as_it_was(model, wrong):
    model.train()
    model.layer2.eval()
    model.prep.conv.weight.requires_grad_(False)

    def state():
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "model": {key: value.clone() for key, value in model.state_dict().items()},
            "modes": [module.training for module in model.modules()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "hooks": [len(getattr(module, hook)) for module in model.modules() for hook in hooks],
        }

    before = state()
    gradcam(model, wrong)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_a_network_of_ones_own_with_its_own_layers(cnn, images):
    model = cnn().eval()
    wrong = misclassified(model, images)
    cams = gradcam(model, wrong, layers=("0", "2"))
    assert cams.layers == ("0", "2")
    x = normalize(wrong.images.pixels, wrong.images.mean, wrong.images.std)
    for j, layer in enumerate(cams.layers):
        np.testing.assert_allclose(
            cams.true[0, j], by_hand(model, x[:1], int(wrong.images.labels[0]), layer), atol=1e-3
        )


def test_layers_may_be_nested(model, wrong):
    assert gradcam(model, wrong, layers=("layer1.residual.0",)).predicted.shape == (len(wrong), 1, 16, 16)


def test_operations_in_place_after_the_layer_make_no_difference(cnn, images):
    # The activations that were caught would otherwise be overwritten before they are looked at.
    model, same = cnn(), cnn()
    same[2] = nn.ReLU(inplace=True)
    wrong = misclassified(model, images)
    assert np.array_equal(gradcam(model, wrong, ("1",)).predicted, gradcam(same, wrong, ("1",)).predicted)


def test_one_layer_may_be_named_alone(model, wrong):
    cams = gradcam(model, wrong, layers="layer3")
    assert cams.layers == ("layer3",)
    np.testing.assert_array_equal(cams.predicted, gradcam(model, wrong, layers=("layer3",)).predicted)


def test_unknown_layer_is_named_with_those_that_are_there(model, wrong):
    with pytest.raises(InputError, match=r"layer9.*prep, layer1, layer2, layer3, head"):
        gradcam(model, wrong, layers=("layer1", "layer9"))
    for layer in ("layer1.down.convolution", "layer1.down.conv.2"):
        with pytest.raises(InputError, match=rf"'{layer}' .* such as layer1.down.conv, layer1.down.pool, "):
            gradcam(model, wrong, layers=layer)


def test_nothing_to_explain(model, wrong):
    cams = gradcam(model, wrong[:0])
    assert cams.predicted.shape == cams.true.shape == (0, 3, 16, 16)
