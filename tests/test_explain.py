"""Grad-CAM against the same by hand; whatever comes after the layer or surrounds the call makes no difference."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import Permute

from eva_utils import InputError, ResNet9, gradcam, misclassified, predict
from eva_utils.augment import normalize
from eva_utils.look import predictions


@pytest.fixture
def images(tiny):
    return tiny[0]


@pytest.fixture
def model(images):
    """Its BatchNorm has seen images, so train and eval mode differ."""
    model = ResNet9(3, width=4)
    with torch.no_grad():
        model.train()(normalize(images.pixels, images.mean, images.std))
    return model.eval().requires_grad_(False)  # as the EMA of a run


@pytest.fixture
def wrong(model, images):
    wrong = misclassified(model, images)[:6]
    assert len(wrong) == 6
    return wrong


def by_hand(model: nn.Sequential, x: torch.Tensor, label: int, layer: str, method: str) -> tuple:
    """(map, its sum before negative values are cut off, the logit) of one image x (1, 3, h, w).

    arXiv:1610.02391, equations 1 and 2; arXiv:2011.08891, equation 5.
    """
    seen = []
    catch = lambda *args: seen.append(args[2].requires_grad_()) or args[2].clone()  # noqa: E731 - for what is in place
    with model.get_submodule(layer).register_forward_hook(catch):
        logit = model(x)[0, label]
    (activations,), (weights,) = seen, torch.autograd.grad(logit, seen)
    if method == "gradcam":
        weights = weights.mean((2, 3), keepdim=True)
    cam = (weights * activations).sum(1)[0].detach()

    def scaled(cam):
        cam = cam - cam.min()
        return cam / (cam.max() + 1e-7)

    return scaled(cv2.resize(scaled(cam.relu().numpy()), (x.shape[3], x.shape[2]))), cam.sum().item(), logit.item()


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_every_map_equals_the_same_by_hand(method, model, wrong):
    cams = gradcam(model, wrong, method=method)
    assert (cams.maps.shape, cams.maps.dtype, cams.method) == ((6, 3, 16, 16), np.float32, method)
    x = normalize(wrong.images.pixels, wrong.images.mean, wrong.images.std)
    for i in range(6):
        for j, layer in enumerate(cams.layers):
            for maps, label in ((cams.maps, wrong.predicted[i]), (cams.true, wrong.images.labels[i])):
                expected, total, logit = by_hand(model, x[i : i + 1], int(label), layer, method)
                np.testing.assert_allclose(maps[i, j], expected, atol=2e-3)
                if (method, layer) == ("hirescam", "layer3"):  # what the documentation says
                    assert total == pytest.approx(logit, rel=1e-4, abs=1e-6)
    assert not np.allclose(cams.maps, cams.true)  # the class matters
    assert gradcam(model, wrong[2:4]).maps.shape == (2, 3, 16, 16)
    assert len(repr(cams)) < 200


def test_classes_are_a_name_or_labels(model, wrong):
    first, *others = (gradcam(model, wrong, "layer2", classes=c) for c in ("bee", 1, [1] * 6, ["bee"] * 6))
    for named in others:
        assert named.explained.tolist() == first.explained.tolist() == [1] * 6
        assert np.array_equal(named.maps, first.maps)
    own = gradcam(model, wrong, "layer2", classes=wrong.images.labels)
    assert np.array_equal(own.maps, own.true)
    for bad, words in (
        (["dog"] * 6, "one of ant, bee, cat"),
        ([3] * 6, "labels is .*within 0 and 2"),
        ([0], "a label for each image"),
    ):
        with pytest.raises(InputError, match=words):
            gradcam(model, wrong, "layer2", classes=bad)


def test_images_are_predicted_first_and_need_not_be_square(model, images):
    wide = replace(images, pixels=images.pixels.repeat(1, 1, 2, 1))[:4]  # 16 high, 32 wide
    cams = gradcam(model, wide)
    assert cams.maps.shape == (4, 3, 16, 32)
    assert cams.explained.equal(predict(model, wide).argmax(1))
    assert gradcam(model, misclassified(model, images)[:0]).maps.shape == (0, 3, 16, 16)  # nothing to explain
    large = replace(images, pixels=images.pixels.repeat(1, 20, 20, 1))[:2]  # more than one batch
    sizes = []
    model.prep.register_forward_hook(lambda prep, inputs, output: sizes.append(len(output)))
    both = gradcam(model, predictions(model, large), "layer3").maps
    assert set(sizes[1:]) == {1}  # the first: the prediction
    np.testing.assert_allclose(both[1:], gradcam(model, large[1], "layer3").maps, atol=1e-5)


class Net(nn.Module):
    """What comes after ``named`` is chosen: it may change its input in place."""

    def __init__(self, after):
        super().__init__()
        self.first, self.named = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.unused, self.linear, self.after = nn.Conv2d(4, 4, 1), nn.Linear(4, 3), after

    def forward(self, x):
        x = self.first(x)
        return self.linear(self.after(self.named(x), x).mean((2, 3)))


def test_an_operation_in_place_after_the_layer_makes_no_difference(images, device):
    # The activations that were caught would otherwise be overwritten before they are looked at.
    model, same = Net(torch.add).to(device), Net(torch.Tensor.add_).to(device)
    same.load_state_dict(model.state_dict())
    for method in ("gradcam", "hirescam"):
        a, b = (gradcam(net, images[:8], "named", method=method) for net in (model, same))
        assert np.array_equal(a.maps, b.maps) and a.maps.max() > 0


def network(order: str) -> nn.Sequential:
    """Layer "2" gives (n, c, h, w), or (n, h, w, c) as Swin's do, or (n, places, c) as a ViT's; all compute alike."""
    torch.manual_seed(0)
    last = Permute([0, 2, 1])
    blocks = {
        "chw": (nn.Identity(), nn.Flatten(2)),
        "hwc": (Permute([0, 2, 3, 1]), nn.Flatten(1, 2), last),
        "places": (nn.Sequential(nn.Flatten(2), last), last),
    }
    head = nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 3)
    return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), *blocks[order], *head)


def test_blocks_with_the_channels_last_are_found_out(images):
    plain = gradcam(network("chw"), images[:8], "2").maps
    np.testing.assert_allclose(gradcam(network("hwc"), images[:8], "2").maps, plain, atol=1e-5)
    tokens = network("places")
    with pytest.raises(InputError, match=r"gives is 'Tensor torch.float32 \(1, 64, 5\)'; it has to be a feature map"):
        gradcam(tokens, images[:8], "2")
    with pytest.raises(IndexError):  # not black maps, as grad-cam would have it
        gradcam(network("chw"), images[:8], "2", reshape_transform=lambda a: a.size(9))
    maps = gradcam(tokens, images[:8], "2", reshape_transform=lambda a: a.transpose(1, 2).unflatten(2, (8, 8))).maps
    np.testing.assert_allclose(maps, plain, atol=1e-5)


def test_a_layer_that_is_not_used_once_is_refused(images):
    conv = nn.Conv2d(3, 3, 1)
    twice = nn.Sequential(conv, conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for net, layer, times in ((twice, "0", 2), (Net(lambda y, x: y), "unused", 0)):
        with pytest.raises(InputError, match=f"how often layer '{layer}' is used is {times}; .* choose another layer"):
            gradcam(net, images[:2], layer)
    with pytest.raises(InputError, match="the logits have no gradient at layer 'named'"):
        gradcam(Net(lambda y, x: y.detach() + x), images[:2], "named")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("head", "layer 'head' gives is 'Tensor .* a feature map"),
        (("layer1", "layer9"), "layer9.* such as layer3, layer2, layer1$"),
        ("layer1.down.convolution", "'layer1.down.convolution' .* such as layer1.down.conv"),
        ("features", "'features' .* such as prep, layer1, layer2, layer3, head$"),
        ((), r"layers is \(\); it has to be one name or more"),
        (nn.Identity(), r"layers is \(Identity\(\),\); it has to be one name or more"),
    ],
)
def test_layers_that_cannot_be_explained_are_refused(layers, words, model, wrong):
    with pytest.raises(InputError, match=words):
        gradcam(model, wrong, layers)


@pytest.mark.parametrize(
    "surroundings",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_surroundings_make_no_difference(model, images, wrong, surroundings):
    expected = gradcam(model, wrong)
    with surroundings():
        cams = gradcam(model, wrong)
        assert len(gradcam(model, misclassified(model, images)[:6]).maps) == 6  # predicted in there as well
    assert np.array_equal(cams.maps, expected.maps) and np.array_equal(cams.true, expected.true)


def test_the_model_is_left_as_it_was(model, state, wrong):
    expected = gradcam(model, wrong)
    model.train()
    model.layer2.eval()
    model.layer1.requires_grad_(True)
    model.layer3.register_forward_hook(lambda *_: None)
    before = state(model)
    cams = gradcam(model, wrong)  # in eval mode, whatever the model's own is
    assert state(model) == before
    assert np.array_equal(cams.maps, expected.maps)
