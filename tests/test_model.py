"""The network: its size, its shapes, and the table of its layers. What it computes: test_golden.py"""

import pytest
import torch
from torch import nn

from eva_utils import InputError, ResNet9, summary

PARAMETERS = 6_573_120


@pytest.mark.parametrize(("name", "value"), [("num_classes", 1), ("num_classes", 2.5), ("width", 0)])
def test_bad_argument_is_named_with_its_value(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; it has to be"):
        ResNet9(**{name: value})


def rows(text: str) -> list[list[str]]:
    """The table's rows between head and total, as words."""
    return [line.split() for line in text.splitlines()[2:-2]]


def test_summary_has_a_row_for_each_layer_and_the_totals():
    with torch.device("meta"):  # shapes without memory or arithmetic
        full = ResNet9().eval()
    table, total = rows(summary(full)), summary(full).splitlines()[-1].split()
    assert [row[0] for row in table] == [name for name, module in full.named_modules() if not any(module.children())]
    assert total == ["total", f"{PARAMETERS:,}", "379.26"]
    assert sum(int(row[-2].replace(",", "")) for row in table) == PARAMETERS
    assert sum(float(row[-1]) for row in table) == pytest.approx(379.26, abs=0.05)
    shapes = {row[0]: " ".join(row[1:-2]) for row in table if row[0].endswith(("relu", "linear"))}
    assert list(dict.fromkeys(shapes.values())) == [
        "64 x 32 x 32", "128 x 16 x 16", "256 x 8 x 8", "512 x 4 x 4", "10"
    ]  # of the assignment's stages  # fmt: skip
    # layer2.conv: 3 * 3 * 128 * 256 weights, each used at 16 x 16 places.
    assert ["layer2.conv", "256", "x", "16", "x", "16", "294,912", "75.50"] in table
    assert ["prep.conv", "64", "x", "16", "x", "16", "1,728", "0.44"] in rows(summary(full, size=16))
    assert ResNet9(width=1, logit_scale=0.5).head.scale == 0.5


def test_summary_leaves_the_model_and_the_random_numbers_as_they_were(state):
    model = ResNet9(width=8)
    model.layer1.eval()  # a mixture of modes, and a hook of the user's own
    model.prep.conv.register_forward_hook(lambda *_: None)
    before = state(model)
    assert summary(model) == summary(model)
    with pytest.raises(RuntimeError, match="too small"):
        summary(model, size=4)  # too small for three poolings
    assert state(model) == before


def test_summary_of_a_model_of_ones_own_also_a_lazy_one():
    own = nn.Sequential(nn.LazyConv2d(4, 5, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2))
    assert rows(summary(own))[0] == ["0", "4", "x", "14", "x", "14", "304", "0.06"]  # 3 * 4 * 25 weights, 4 biases
    assert summary(own).splitlines()[-1].split() == ["total", "314", "0.06"]
