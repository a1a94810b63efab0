"""Device, number format, random numbers, and the memory of a step that failed."""

import contextlib
import weakref

import pytest
import torch

from eva_utils import InputError, OneCycle, Recipe, ResNet9, find_lr, fit
from eva_utils.device import DTYPES, choose_device, choose_precision

RECIPE = Recipe(batch_size=8, precision="fp32", device="cpu")


@pytest.mark.parametrize("call", ["fit", "find_lr"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_is_in_the_precision_asked_for_and_channels_last_but_its_loss_in_fp32(precision, call, tiny):
    seen, model = [], ResNet9(3, width=4)

    def note(conv, inputs, output):
        memory = {t.is_contiguous(memory_format=torch.channels_last) for t in (conv.weight, *inputs)}
        seen.append((conv.training, output.dtype, *memory))

    def criterion(logits, y):
        assert logits.dtype == torch.float32
        return torch.nn.functional.cross_entropy(logits, y)

    model.layer2.conv.register_forward_hook(note)
    recipe = RECIPE.replace(precision=precision, criterion=criterion)
    if call == "fit":
        assert fit(model, *tiny, OneCycle(1, 0.5, 0.01, 0.1), recipe).results["precision"] == precision
    else:
        with contextlib.suppress(InputError):  # noise has no curve to read
            find_lr(model, tiny[0], recipe)
    first = [training for training, *_ in seen].index(True)  # the calls before tell what it computes, in fp32
    assert set(seen[first:]) == {(mode, DTYPES[precision], True) for mode in (True, call == "find_lr")}


@pytest.mark.parametrize(("capability", "best"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_without_bf16_in_hardware_takes_fp16(capability, best, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(torch.device("cuda")) == best


def test_what_cannot_be_used_is_refused():
    assert choose_device("cpu").type == "cpu"
    for wrong in ("mps", "nonsense", "cuda:99"):
        with pytest.raises(InputError, match=f"device is '{wrong}'"):
            choose_device(wrong)
    with pytest.raises(InputError, match=r"precision is 'fp16'.*needs a CUDA GPU"):
        choose_precision(torch.device("cpu"), "fp16")


@pytest.mark.parametrize("call", ["fit", "find_lr"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_kept_error_keeps_no_tensors_and_random_numbers_are_restored(error, call, tiny, cnn, monkeypatch):
    # A notebook keeps the last error; the next try needs the memory. And no GPU is reseeded that does nothing here.
    seen, reseeded, optimizers = [], [], []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)

    class Failing(torch.nn.Module):
        def forward(self, x):
            seen.append(weakref.ref(activation := 2 * x))
            if len(seen) == 3:
                raise error
            return activation

    def sgd(parameters):
        optimizers.append(weakref.ref(optimizer := torch.optim.SGD(parameters, 0.1, momentum=0.9)))
        return optimizer

    model, recipe = cnn().insert(0, Failing()), RECIPE.replace(optimizer=sgd)
    reseeded.clear()
    before = torch.get_rng_state()
    with pytest.raises(error) as kept:
        fit(model, *tiny, OneCycle(3, 1, 0.01, 0.1), recipe) if call == "fit" else find_lr(model, tiny[0], recipe)
    assert kept.value.__traceback__ is not None
    assert [tensor() for tensor in seen] == [None] * 3 and {optimizer() for optimizer in optimizers} == {None}
    assert torch.equal(before, torch.get_rng_state()) and reseeded == []
