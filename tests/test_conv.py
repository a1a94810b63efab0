"""The convolution's second way for small maps: torch's own values and gradients, and taken only where it should be."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eva_utils import ResNet9, conv
from eva_utils.conv import Conv3x3, _Products


def random_input(channels: int, side: int | tuple[int, int], n: int = 3) -> torch.Tensor:
    height, width = (side, side) if isinstance(side, int) else side
    x = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [1, 2, 4, (2, 5), (5, 3)])
@pytest.mark.parametrize("outputs", [4, 7])
def test_products_are_the_convolution_and_its_gradients(side, outputs):
    torch.manual_seed(0)
    layer = Conv3x3(6, outputs).double().to(memory_format=torch.channels_last)
    x = random_input(6, side).double().requires_grad_()
    there = F.conv2d(x, layer.weight, padding=1)
    here = _Products.apply(x, layer.weight)
    assert here.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(here, there, rtol=0, atol=1e-12)
    grad = torch.randn_like(there)
    expected = torch.autograd.grad(there, (x, layer.weight), grad)
    found = torch.autograd.grad(here, (x, layer.weight), grad)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_products_take_memory_in_any_order():
    torch.manual_seed(0)
    weight, x = torch.randn(5, 6, 3, 3), random_input(6, 4).contiguous()
    assert torch.allclose(_Products.apply(x, weight), F.conv2d(x, weight, padding=1), atol=1e-5)


@pytest.fixture
def ways(monkeypatch) -> list[str]:
    """Which way each convolution of a forward pass took; the machine is one with AMX."""
    taken = []
    products, usual = _Products.apply, nn.Conv2d.forward

    def apply(*args):
        taken.append("products")
        return products(*args)

    def forward(self, x):
        taken.append("usual")
        return usual(self, x)

    monkeypatch.setattr(conv, "has_amx", lambda: True)
    monkeypatch.setattr(_Products, "apply", apply)
    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    return taken


def test_small_maps_with_many_channels_go_through_products(ways):
    layer = Conv3x3(256, 256)
    usual = layer(random_input(256, 4))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(random_input(256, 4))
    assert ways == ["usual", "products"]
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), usual, atol=0.02)  # eight bits of mantissa
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("channels, side, dtype", [(256, 5, torch.bfloat16), (128, 4, torch.bfloat16), (256, 4, None)])
def test_everything_else_does_not(ways, channels, side, dtype):
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        Conv3x3(channels, channels)(random_input(channels, side))
    assert ways == ["usual"]


def test_no_matrix_units_no_products(ways, monkeypatch):
    monkeypatch.setattr(conv, "has_amx", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        Conv3x3(256, 256)(random_input(256, 4))
    assert ways == ["usual"]


def test_the_network_s_last_two_convolutions_take_it(ways):
    model = ResNet9(width=32).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        model(torch.randn(2, 3, 32, 32))
    assert ways == ["usual"] * 6 + ["products"] * 2
