"""The learning-rate policies: numbers worked out by hand, and what must hold for any."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eva_utils import ExpRange, InputError, OneCycle, StepDecay, Triangular, Triangular2

BY_HAND = [
    # A rate of 1 to 5 in steps of two epochs: two up an epoch, two down an epoch.
    (Triangular(1, 5, 2), {0: 1, 0.5: 2, 1: 3, 2: 5, 3: 3, 4: 1, 5: 3, 6: 5, 7.5: 2, 8: 1}),
    # The height above 1 is 4 in the first cycle, 2 in the second, 1 in the third.
    (Triangular2(1, 5, 2), {-1: 3, 0: 1, 1: 3, 2: 5, 3: 3, 4: 1, 5: 2, 6: 3, 7: 2, 8: 1, 9: 1.5, 10: 2, 12: 1}),
    # 1 + 4 * triangle * 0.5**epoch: 1 + 4 * 0.5 * 0.5, 1 + 4 * 1 * 0.25, 1 + 4 * 0.5 * 0.125, ...
    (ExpRange(1, 5, 2, gamma=0.5), {0: 1, 1: 2, 2: 2, 3: 1.25, 4: 1, 5: 1.0625, 6: 1.0625, 8: 1}),
    # 0.95 up in 5 epochs, 0.19 each; 0.95 down in 19, 0.05 each; lr_min outside.
    (OneCycle(24, 5, 0.05, 1), {-1: 0.05, 0: 0.05, 1: 0.24, 5: 1, 6: 0.95, 15: 0.5, 23: 0.1, 24: 0.05, 30: 0.05}),
    # A tenth from half of the epochs on, a hundredth from three quarters on; 0.6 * 10 is 6.
    (StepDecay(24, 0.5), {0: 0.5, 11.75: 0.5, 12: 0.05, 17.75: 0.05, 18: 0.005, 24: 0.005}),
    (StepDecay(10, 1.0, 0.5, (0.2, 0.4, 0.6)), {1.9: 1, 2: 0.5, 4: 0.25, 5.9: 0.25, 6: 0.125}),
    (StepDecay(24, 0.5, milestones=()), {0: 0.5, 12: 0.5, 24: 0.5}),
]


@pytest.mark.parametrize(("policy", "table"), BY_HAND, ids=lambda value: type(value).__name__)
def test_rates_worked_out_by_hand(policy, table):
    assert policy(np.array(list(table))) == pytest.approx(list(table.values()), rel=1e-12)
    assert {type(policy(number)) for number in (3, 3.0, np.float32(3), np.int64(3), np.array(3))} == {float}


@pytest.mark.parametrize("kind", [Triangular, Triangular2, ExpRange, OneCycle])
def test_ends_and_peak_are_exact_and_limits_are_kept(kind):
    """Equal, not nearly equal: "never below lr_min" and "the maximum at epoch 5" are said of these numbers."""
    random = np.random.default_rng(0)
    for lr_min, times, share, epochs in random.uniform(0.001, 1, (1000, 4)).tolist():
        rates, end = (lr_min, lr_min / times), 1000 * epochs
        peak = share * end if kind is OneCycle else end / 2
        policy = OneCycle(end, peak, *rates) if kind is OneCycle else kind(*rates, peak)
        values = policy(random.uniform(0, 2000, 100))
        assert policy.lr_min <= values.min() <= values.max() <= policy.lr_max
        assert policy(0) == policy(end) == policy.lr_min
        if kind is OneCycle:
            assert policy(-end) == policy(1.5 * end) == policy.lr_min
        if kind is ExpRange:  # shrinks before it gets there
            assert policy(peak) == pytest.approx(policy.lr_min + (policy.lr_max - policy.lr_min) * policy.gamma**peak)
        else:
            assert policy(peak) == policy.lr_max


NAN, INF = math.nan, math.inf
ONE_CYCLE = OneCycle(epochs=24, peak_epoch=5, lr_min=0.1, lr_max=1.0)
BAD = [
    (ONE_CYCLE, "lr_min", (0, -0.1, NAN, INF, None, "0.1")),
    (ONE_CYCLE, "lr_max", (0.1, 0.05, -1, NAN, INF)),
    (ONE_CYCLE, "epochs", (0, 0.5, -3, NAN, INF)),
    (ONE_CYCLE, "peak_epoch", (0, 24, 25.5, -1, NAN, INF)),
    (Triangular(0.1, 1.0, 4), "step_size", (0, -2, NAN, INF)),
    (ExpRange(0.1, 1.0, 4), "gamma", (0, -0.5, 1.5, NAN, INF)),
    (StepDecay(24, 0.5), "lr", (0, INF)),
    (StepDecay(24, 0.5), "milestones", ((0.5, 0.5), (0.7, 0.5), (0.0,), (12, 18))),
]


@pytest.mark.parametrize(("good", "name", "values"), BAD)
def test_bad_argument_is_named_with_its_value(good, name, values):
    for value in values:
        with pytest.raises(InputError) as error:
            replace(good, **{name: value})
        assert str(error.value).startswith(f"{name} is {value!r}; it has to be ")


@pytest.mark.parametrize(
    "order", ["optimizer, make, scheduler", "make, optimizer, scheduler", "make, scheduler, optimizer"]
)
def test_a_loop_of_ones_own_follows_the_policy_and_goes_on_whichever_state_is_loaded_first(order):
    """The group with the highest rate follows it, the other keeps its ratio."""
    policy = OneCycle(3, 1, 0.1, 1.0)

    def new():
        first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        optimizer = torch.optim.AdamW([{"params": [first], "lr": 8.0}, {"params": [second]}], lr=2.0)
        torch.optim.lr_scheduler.StepLR(optimizer, 1)  # leaves its own idea of the initial rates in the optimizer
        return {"optimizer": optimizer}

    def loop(parts, steps):
        for step in steps:
            rates = [group["lr"] for group in parts["optimizer"].param_groups]
            assert rates == [policy(step / 4), policy(step / 4) / 4]
            parts["optimizer"].step()
            parts["scheduler"].step()

    parts, again = new(), new()
    with pytest.raises(InputError, match="steps_per_epoch is 0"):
        policy.scheduler(parts["optimizer"], 0)
    parts["scheduler"] = policy.scheduler(parts["optimizer"], steps_per_epoch=4)
    loop(parts, range(5))
    for part in order.split(", "):
        if part == "make":
            again["scheduler"] = policy.scheduler(again["optimizer"], steps_per_epoch=4)
        else:
            again[part].load_state_dict(parts[part].state_dict())
    loop(again, range(5, 12))
    assert again["scheduler"].get_last_lr() == [policy(3.0), policy(3.0) / 4]
