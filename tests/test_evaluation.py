"""Prediction and evaluation against the same by hand, and what they must leave alone. Also: device and precision."""

import dataclasses

import pytest
import torch
from torch import nn

from eva_utils import InputError, ResNet9, evaluate, evaluation, precision, predict
from eva_utils.precision import choose_device, choose_precision


@pytest.fixture
def model(cnn):
    """A user's network whose BatchNorm has seen something and whose modules are in different modes."""
    model = cnn()
    with torch.no_grad():
        model(3 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1)
    model[1].eval()  # as people do who freeze BatchNorm
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def logits_by_hand(model, images, mirrored: bool = False) -> torch.Tensor:
    """One image after the other, in the plainest way."""
    before = modes(model)
    model.eval()
    out = []
    with torch.no_grad():
        for pixels in images.pixels:
            x = ((pixels / 255 - torch.tensor(images.mean)) / torch.tensor(images.std)).permute(2, 0, 1)
            out.append(model((x.flip(2) if mirrored else x)[None])[0])
    for module, mode in zip(model.modules(), before, strict=True):
        module.training = mode
    return torch.stack(out)


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# 12 images: one batch; several; several and a smaller one.
@pytest.mark.parametrize("batch", [1000, 4, 7])
def test_predict_gives_the_softmax_of_every_image(batch, model, tiny, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", batch)
    found = predict(model, tiny[1], precision="fp32")
    assert (found.shape, found.dtype, found.device.type) == ((12, 3), torch.float32, "cpu")
    close(found.sum(1), torch.ones(12))
    close(found, logits_by_hand(model, tiny[1]).softmax(1))


def test_tta_averages_the_logits_of_both_mirror_images(model, tiny):
    found = predict(model, tiny[1], tta=True, precision="fp32")
    both = [logits_by_hand(model, tiny[1], mirrored) for mirrored in (False, True)]
    close(found, ((both[0] + both[1]) / 2).softmax(1))
    assert not torch.allclose(found, both[0].softmax(1), atol=1e-3)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("batch", [1000, 7])
def test_evaluate_counts_every_image_once(batch, smoothing, tta, model, tiny, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", batch)
    found = evaluate(model, tiny[1], tta=tta, label_smoothing=smoothing, precision="fp32")
    logits = logits_by_hand(model, tiny[1])
    if tta:
        logits = (logits + logits_by_hand(model, tiny[1], mirrored=True)) / 2
    # The definition of label smoothing: that share of the target is spread over all classes alike.
    target = (1 - smoothing) * nn.functional.one_hot(tiny[1].labels, 3) + smoothing / 3
    correct = int((logits.argmax(1) == tiny[1].labels).sum())
    assert (found.n, found.correct) == (12, correct)
    assert found.accuracy == pytest.approx(100 * correct / 12)
    assert found.loss == pytest.approx(float(-(target * logits.log_softmax(1)).sum(1).mean()), rel=1e-4)


def test_bf16_is_near_fp32(model, tiny):
    seen = set()
    model.get_submodule("0").register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    found = predict(model, tiny[1], precision="bf16")
    assert found.dtype == torch.float32
    assert seen == {torch.bfloat16}
    torch.testing.assert_close(found, predict(model, tiny[1], precision="fp32"), rtol=0, atol=0.02)
    assert seen == {torch.bfloat16, torch.float32}


def test_large_images_come_in_smaller_batches(tiny):
    sizes = []
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    evaluate(network, dataclasses.replace(tiny[1][:5], pixels=torch.zeros(5, 640, 512, 3, dtype=torch.uint8)))
    assert sizes == [3, 2]  # a thousand images of 32 x 32 have as many pixels as three of these


@pytest.mark.parametrize(("change", "words"), [
    (lambda y: (y, y), "the model gives a tuple"), (lambda y: y[:, :, None], r"the model gives a Tensor \(12, 3, 1\)"),
])  # fmt: skip
def test_what_is_no_logits_is_named(change, words, model, tiny):
    model.register_forward_hook(lambda module, inputs, output: change(output))
    with pytest.raises(InputError, match=words):
        predict(model, tiny[1])


@pytest.mark.parametrize("call", [predict, evaluate])
def test_the_model_is_left_as_it_was(call, model, tiny):
    before = modes(model), {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    call(model, tiny[1], tta=True)
    assert modes(model) == before[0]
    assert all(value.equal(before[1][key]) for key, value in model.state_dict().items())
    assert torch.get_rng_state().equal(before[2])
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_the_probabilities_are_an_ordinary_tensor(model, tiny):
    found = predict(model, tiny[1])
    assert not found.requires_grad
    assert not found.is_inference()  # such a tensor could not be used in a later training


class Fails(nn.Module):
    """Fails in its second batch."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return self.layer(x)


class Flat(nn.Module):
    """Gives one number for an image instead of one for each class, at which the caller fails and not the network."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[:, 0]


@pytest.mark.parametrize("wrapper", [Fails, Flat])
@pytest.mark.parametrize("call", [predict, evaluate])
def test_the_modes_come_back_after_an_exception(call, wrapper, model, tiny, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 7)
    broken = wrapper(model)
    before = modes(broken)
    assert len(set(before)) == 2
    # Kept in a variable, as a notebook keeps the last traceback: no local variable in it may be what holds a mode.
    with pytest.raises((RuntimeError, InputError)) as caught:
        call(broken, tiny[1], precision="bf16")
    assert caught.tb is not None
    assert modes(broken) == before
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_a_tensor_in_place_of_images_is_refused(model):
    with pytest.raises(InputError, match="images is 'Tensor'; it has to be Images"):
        predict(model, torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("call", [predict, evaluate])
def test_no_images_are_refused(call, model, tiny):
    with pytest.raises(InputError, match="no images"):
        call(model, tiny[1][:0])


def test_it_works_on_the_network_of_this_package(tiny):
    assert predict(ResNet9(3, width=4), tiny[1]).shape == (12, 3)


# Precision and device


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((10, 0), "bf16")],
)
def test_cuda_precision_follows_the_compute_capability(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)  # a T4 says so too: by emulation
    assert choose_precision(torch.device("cuda"), "auto") == expected


@pytest.mark.parametrize(("amx", "avx512", "expected"), [(0, 0, "fp32"), (1, 0, "bf16"), (0, 1, "bf16")])
def test_cpu_precision_follows_its_instructions(amx, avx512, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512), raising=False)
    assert choose_precision(torch.device("cpu"), "auto") == expected


def test_a_torch_without_these_questions_means_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert choose_precision(torch.device("cpu"), "auto") == "fp32"


@pytest.mark.parametrize("name", precision.DTYPES)
def test_a_precision_that_is_asked_for_is_taken(name):
    assert choose_precision(torch.device("cuda"), name) == name


@pytest.mark.parametrize(("name", "words"), [("fp16", "'fp16'.*cpu"), ("float8", "'float8'.*'bf16'")])
def test_a_precision_that_cannot_be_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        choose_precision(torch.device("cpu"), name)


def test_a_device_that_is_there_is_taken():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("cuda", [False, True])
def test_the_first_gpu_is_taken_if_there_is_one(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch, "ones", lambda *args, **kwargs: None)  # the trial, which would fail without a GPU
    assert choose_device().type == ("cuda" if cuda else "cpu")


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "cpu:x"])
def test_a_device_that_cannot_be_used_is_named(name):
    with pytest.raises(InputError, match=f"device is '{name}'"):
        choose_device(name)


def test_a_device_that_torch_may_compute_wrongly_on_is_refused():
    with pytest.raises(InputError, match="device is 'mps'; it has to be 'cpu', 'cuda'"):
        choose_device("mps")


def test_a_gpu_that_nobody_asked_for_and_that_fails_can_be_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def no_kernel(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "ones", no_kernel)
    with pytest.raises(InputError, match=r"no kernel image.*; with CUDA_VISIBLE_DEVICES='' in the environment"):
        choose_device()
    with pytest.raises(InputError, match=r"on the device$"):
        choose_device("cuda")


def test_environment_says_what_there_is(capsys):
    precision.environment()
    assert torch.__version__ in capsys.readouterr().out
