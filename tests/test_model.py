"""The network: its size, its shapes, what its residual blocks compute, and the table of its layers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eva_utils import InputError, ResNet9, summary
from eva_utils.model import Head

PARAMETERS = 6_573_120


@pytest.fixture(scope="module")
def full() -> ResNet9:
    """The network of the assignment, on the meta device: shapes without memory or arithmetic."""
    with torch.device("meta"):
        return ResNet9().eval()


def small(**options) -> ResNet9:
    """A narrow network in eval mode whose BatchNorm layers do something, unlike freshly made ones."""
    torch.manual_seed(0)
    model = ResNet9(width=8, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def test_stages_give_the_shapes_of_the_assignment(full):
    x, shapes = torch.zeros(1, 3, 32, 32, device="meta"), {}
    for name, stage in full.named_children():
        shapes[name] = tuple((x := stage(x)).shape)
    assert shapes == {
        "prep": (1, 64, 32, 32),
        "layer1": (1, 128, 16, 16),
        "layer2": (1, 256, 8, 8),
        "layer3": (1, 512, 4, 4),
        "head": (1, 10),
    }


def test_forward_and_backward_cost(full):
    """2.27 GFLOP for an image, which the assignment's 2.73 PFLOP for 24 epochs of 50,000 follow from."""
    with FlopCounterMode(display=False) as counter:
        full(torch.zeros(1, 3, 32, 32, device="meta")).sum().backward()
    assert counter.get_total_flops() == pytest.approx(2.27e9, rel=0.002)
    assert counter.get_total_flops() * 24 * 50_000 == pytest.approx(2.73e15, rel=0.002)


def test_residual_stage_adds_its_input_once():
    """out = X + R(X), written out with the functions behind the layers."""

    def conv_bn(block, x, pool=False):
        x = nn.functional.conv2d(x, block.conv.weight, stride=1, padding=1)
        x = nn.functional.max_pool2d(x, 2) if pool else x
        bn = block.bn
        x = nn.functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return x.clamp(min=0)

    stage = small().layer3
    x = torch.randn(2, stage.down.conv.in_channels, 8, 8)
    with torch.no_grad():
        shortcut = conv_bn(stage.down, x, pool=True)
        residual = conv_bn(stage.residual[1], conv_bn(stage.residual[0], shortcut))
        torch.testing.assert_close(stage(x), shortcut + residual)
    assert residual.abs().max() > 0.01  # else the sum would say nothing


def test_head_is_the_maximum_of_each_channel_times_the_matrix_times_the_scale():
    x = torch.randn(2, 64, 4, 4)
    for scale, model in ((0.125, small()), (0.3, small(logit_scale=0.3))):
        torch.testing.assert_close(model.head(x), scale * (x.amax((2, 3)) @ model.head.linear.weight.T))


@pytest.mark.parametrize(("name", "value"), [("num_classes", 1), ("num_classes", 2.5), ("width", 0)])
def test_bad_argument_is_named_with_its_value(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; it has to be"):
        ResNet9(**{name: value})


# The table of the layers.


def rows(text: str) -> list[list[str]]:
    """The table's rows between head and total, as words."""
    return [line.split() for line in text.splitlines()[2:-2]]


def test_summary_has_a_row_for_each_layer_and_the_totals(full):
    table, total = rows(summary(full)), summary(full).splitlines()[-1].split()
    assert [row[0] for row in table] == [name for name, module in full.named_modules() if not any(module.children())]
    assert total == ["total", f"{PARAMETERS:,}", "379.26"]
    assert sum(int(row[-2].replace(",", "")) for row in table) == PARAMETERS
    assert sum(float(row[-1]) for row in table) == pytest.approx(379.26, abs=0.05)
    # layer2.conv: 3 * 3 * 128 * 256 weights, each used at 16 x 16 places.
    assert ["layer2.conv", "256", "x", "16", "x", "16", "294,912", "75.50"] in table
    assert ["prep.conv", "64", "x", "16", "x", "16", "1,728", "0.44"] in rows(summary(full, size=16))


def test_summary_leaves_the_model_and_the_random_numbers_as_they_were():
    model = small().train()
    model.layer1.eval()  # a mixture of modes, and a hook of the user's own
    model.prep.conv.register_forward_hook(lambda *_: None)

    def state():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        values = [value.tolist() for value in (*model.state_dict().values(), torch.get_rng_state())]
        return [m.training for m in model.modules()], hooks, values

    before = state()
    assert summary(model) == summary(model)
    with pytest.raises(InputError, match=r"cannot take 4 x 4 pixels; give another size="):
        summary(model, size=4)  # too small for three poolings
    assert state() == before


def test_summary_of_a_model_of_ones_own_also_a_lazy_one():
    own = nn.Sequential(nn.LazyConv2d(4, 5, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2))
    assert rows(summary(own))[0] == ["0", "4", "x", "14", "x", "14", "304", "0.06"]  # 3 * 4 * 25 weights, 4 biases
    assert summary(own).splitlines()[-1].split() == ["total", "314", "0.06"]
    shared = nn.Conv2d(3, 3, 1)  # under two names: nothing is lost
    table = summary(nn.Sequential(nn.Sequential(shared), nn.Sequential(shared)), 320)
    assert sum(float(row[-1]) for row in rows(table)) == float(table.split()[-1]) == 1.84


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_pool_is_torchs_adaptive_one(device, dtype):
    """Values and gradients, ties included, and the memory's order stays."""
    x = torch.randint(-3, 3, (5, 7, 4, 6)).to(device, dtype).contiguous(memory_format=torch.channels_last)
    mine, theirs = x.clone().requires_grad_(), x.contiguous().requires_grad_()  # its kernel takes no channels_last
    head = Head(7, 3, 0.5).to(device, dtype)
    out, expected = head(mine), head.linear(nn.AdaptiveMaxPool2d(1)(theirs).flatten(1)) * head.scale
    assert torch.equal(out, expected)
    weight = torch.randn(out.shape).to(device, dtype)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.equal(mine.grad, theirs.grad)
