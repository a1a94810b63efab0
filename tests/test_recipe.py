"""A recipe refuses a wrong value when it is made, and knows which of its values decide the result."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from eva_utils import Augment, InputError, Recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0}, {"batch_size": 2.5}, {"batch_size": "64"}, {"batch_size": True}, {"batch_size": 8.0},
        {"seed": -1}, {"seed": 2**63}, {"seed": 0.5}, {"augment": "flip"}, {"engine": "steam"}, {"optimizer": "adam"},
        {"optimizer": None}, {"momentum": 1}, {"momentum": -0.1}, {"weight_decay": -1}, {"weight_decay": math.inf},
        {"weight_decay": math.nan}, {"label_smoothing": 1}, {"label_smoothing": math.nan}, {"criterion": "mse"},
        {"ema": 0}, {"ema": 2}, {"precision": "fp8"}, {"workers": -1}, {"workers": 1000},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_value_is_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError) as caught:
        Recipe(**wrong)
    assert str(caught.value).startswith(f"{name} is {value!r}; it has to be ")
    with pytest.raises(InputError, match=f"^{name} is "):
        Recipe().replace(**wrong)


def test_compared_leaves_out_how_it_is_computed():
    here, there = Recipe(), Recipe(precision="fp32", device="cuda:1", workers=0)
    assert here.compared() == there.compared()
    assert vars(here).keys() - here.compared().keys() == {"precision", "device", "workers"}
    assert here.compared() != here.replace(augment=Augment(flip=False)).compared()


def test_numpys_numbers_become_pythons():
    recipe = Recipe(batch_size=np.int64(8), momentum=np.float32(0.5), ema=1)
    assert [type(value) for value in (recipe.batch_size, recipe.momentum, recipe.ema)] == [int, float, float]
    weight = nn.Parameter(torch.ones(2))
    own = Recipe(optimizer=lambda p: torch.optim.Adam(p, betas=tuple(np.array([0.9, 0.99])))).make_optimizer([weight])
    assert [type(beta) for beta in own.param_groups[0]["betas"]] == [float, float]


def test_the_optimizer_has_what_is_not_frozen_and_no_momentum_yet():
    weight, frozen = (nn.Parameter(torch.ones(2), requires_grad=grad) for grad in (True, False))
    optimizer = Recipe().make_optimizer([weight, frozen])
    assert optimizer.param_groups[0]["params"] == [weight]
    assert optimizer.defaults["fused"]
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [0, 0]  # fused SGD leaves it unfilled
    with pytest.raises(InputError, match="the number of other parameters in the optimizer is 1"):
        Recipe(optimizer=lambda _: torch.optim.SGD([weight, frozen])).make_optimizer([weight, frozen])
    for make in (torch.optim.LBFGS, iter):
        with pytest.raises(InputError, match=r"the optimizer is .*needs no closure"):
            Recipe(optimizer=make).make_optimizer([weight])


def test_loss_is_cross_entropy_or_the_criterion():
    logits, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = nn.functional.cross_entropy(logits, y, label_smoothing=0.2)
    torch.testing.assert_close(Recipe(label_smoothing=0.2).loss(logits, y), expected)
    assert Recipe(criterion=lambda logits, y: logits.sum() + 7).loss(logits, y) == logits.sum() + 7
    with pytest.raises(InputError, match=r"label_smoothing is 0\.1; .* beside a criterion"):
        Recipe(criterion=nn.CrossEntropyLoss(), label_smoothing=0.1)
    with pytest.raises(InputError, match="the number of parameters in criterion is 2"):
        Recipe(criterion=nn.Linear(3, 1))
    Recipe(criterion=nn.ModuleList([nn.Linear(3, 1).eval()]))  # a teacher
    with pytest.raises(InputError, match=r"what the criterion gives is 'Tensor torch.float32 \(5, 3\)'.*mean loss"):
        Recipe(criterion=lambda logits, y: logits).loss(logits, y)
