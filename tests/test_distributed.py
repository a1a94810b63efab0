"""Several real processes over gloo do what one does: the same batches, gradients, weights and counts."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch

from eva_utils import Augment, InputError, Recipe, device
from eva_utils import processes as distributed
from eva_utils.batches import loader
from eva_utils.device import choose_device

HERE = Path(__file__).resolve().parent
TRAIN = [
    "train", "--data", "digits", "--width", "4", "--epochs", "8", "--peak-epoch", "1", "--batch-size", "128",
    "--no-flip", "--precision", "fp32", "--device", "cpu", "--lr-min", "0.02", "--lr-max", "0.2",
]  # fmt: skip
STEPS = 12  # an epoch: 1,437 images in batches of 128
ENGINES = ["batch", "albumentations"]
SEVERAL = [2]


def one_thread(**more) -> dict:
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | more


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def processes(n: int, *arguments) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each of ``n`` processes, in the environment that torchrun gives them."""
    common = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=one_thread(RANK=str(rank), LOCAL_RANK=str(rank), **common),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        return [(p.returncode, out, err) for p in started for out, err in [p.communicate(timeout=120)]]
    finally:
        for p in started:
            p.kill()


class Group:
    """What ``n`` processes have left. states[r]: of rank r; ended[r]: its exit status and what it printed."""

    def __init__(self, n: int, folder: Path) -> None:
        self.n = n
        self.ended = processes(n, HERE / "together.py", folder)
        missing = [r for r in range(n) if not (folder / f"{n}-{r}.pt").exists()]
        assert not missing, self.ended
        self.states = [torch.load(folder / f"{n}-{r}.pt", weights_only=False) for r in range(n)]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> dict:
    with torch.random.fork_rng([]):
        return together.work(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module", params=SEVERAL, ids=lambda n: f"{n}-processes")
def group(request, tmp_path_factory) -> Group:
    return Group(request.param, tmp_path_factory.mktemp("group"))


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(value.equal(second[key]) for key, value in first.items())


# What each process sees


@pytest.mark.parametrize("engine", ENGINES)
def test_shards_are_the_single_processs_batches_dealt_out(engine, group, single):
    """To the last bit: order, crops, flips and holes; and the last batch, of 6 images, is shared as well."""
    whole = single[engine]["seen"]
    assert [len(x) for x in whole] == [16, 16, 6] * 2
    for step, x in enumerate(whole):
        shards = [state[engine]["seen"][step] for state in group.states]
        sizes = [len(shard) for shard in shards]
        assert sum(sizes) == len(x) and max(sizes) - min(sizes) <= 1
        for rank, shard in enumerate(shards):
            assert shard.equal(x[rank :: group.n])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_shards_partition_an_epoch(engine, count):
    images, recipe = together.images(93, 3), Recipe(augment=Augment(2, True, 4), batch_size=32, workers=0)

    def epoch(shard) -> list:
        batches = loader(images, recipe.replace(engine=engine), torch.device("cpu"), shard)
        assert len(batches) == 3 and batches.sizes == [32, 32, 29]
        return list(batches.epoch(4))

    whole = epoch((0, 1))
    shards = [epoch((rank, count)) for rank in range(count)]
    for step, (x, y) in enumerate(whole):
        for rank in range(count):
            assert shards[rank][step][0].equal(x[rank::count])
            assert shards[rank][step][1].equal(y[rank::count])


# What comes out


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", ["gradients", "weights", "ema"])
def test_gradients_and_weights_are_those_of_one_process(what, engine, group, single):
    for state in group.states:
        assert_close(state[engine][what], single[engine][what])
        assert same(state[engine][what], group.states[0][engine][what])


def test_the_weights_do_move(single):
    start = together.network(together.Frozen).state_dict()
    assert (single["batch"]["weights"]["6.weight"] - start["6.weight"]).abs().max() > 0.01


def test_records_are_those_of_one_process(group, single):
    metrics = ["train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_loss_ema", "test_accuracy_ema"]
    for state in group.states:
        for found, expected in zip(state["batch"]["steps"], single["batch"]["steps"], strict=True):
            assert found == expected | {"loss": pytest.approx(expected["loss"], rel=1e-5)}
        for found, expected in zip(state["batch"]["history"], single["batch"]["history"], strict=True):
            assert [found[key] for key in metrics] == pytest.approx([expected[key] for key in metrics], rel=1e-5)


def test_each_test_image_counts_once(group, single):
    for state in group.states:
        assert state["sharded"]["n"] == state["alone"]["n"] == 13
        assert state["sharded"]["correct"] == state["alone"]["correct"] == single["alone"]["correct"]
        assert state["sharded"]["loss"] == pytest.approx(state["alone"]["loss"], rel=1e-5)
        assert state["few"]["n"] == 1 and state["few"]["correct"] in (0, 1)
        assert state["few"] == group.states[0]["few"]


def test_counts_are_summed_exactly(group):
    expected = group.n * 2**60 + sum(range(group.n))
    assert [int(state["total"]) for state in group.states] == [expected] * group.n


def test_running_statistics_are_the_mean_over_processes(group, single):
    for state in group.states:
        assert state["average"].equal(torch.full((8,), (group.n - 1) / 2))
        assert same(state["statistics"], group.states[0]["statistics"])
        # The mean of equal shards' means is the batch's; their variances leave out what lies between the means.
        found, expected = state["statistics"], single["statistics"]
        torch.testing.assert_close(found["1.running_mean"], expected["1.running_mean"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["1.running_var"], expected["1.running_var"], rtol=0.1, atol=0)
        assert found["1.num_batches_tracked"] == expected["1.num_batches_tracked"] == 3


def test_a_stopped_run_goes_on_and_ends_like_an_undisturbed_one(group):
    for state in group.states:
        assert_close(state["resumed"], state["whole"])
        assert same(state["resumed"], group.states[0]["resumed"])
        if group.n == 2:  # with more, DDP adds in another order in a first step: equal but for rounding
            assert same(state["resumed"], state["whole"])


# Who does what


def test_rank_0_alone_finds_the_rates(group, single):
    assert [state["range test"] > 0 for state in group.states] == [True] + [False] * (group.n - 1)
    assert group.states[0]["range test"] == single["range test"]
    assert all(state["rates"] == single["rates"] for state in group.states)


def test_all_get_rank_0s_answer_or_its_refusal(group):
    assert [state["answer"] for state in group.states] == [5] * group.n
    assert [state["refusal"] for state in group.states] == ["answer is 0; it has to be another"] * group.n


def test_rank_0_alone_prints(group):
    (_, first, _), *others = group.ended
    assert "rank 0 speaks" in first and f"{group.n} x CPU" in first and "going on after epoch 1" in first
    assert [out for _, out, _ in others] == [""] * (group.n - 1)


def test_a_failing_rank_ends_all_with_its_own_message(group):
    """The last one's: another seed than the others' in one group, a fault in the other."""
    *others, (status, _, err) = group.ended
    assert status != 0 and all(status != 0 for status, _, _ in others)
    assert [err for _, _, err in others] == [""] * (group.n - 1)
    if group.n == 2:
        assert "InputError: process 1 was given something else" in err and "recipe.seed: 0 there, 1 here" in err
    else:
        assert err.strip().endswith("ZeroDivisionError: a fault") and err.count("Traceback") == 1


# The command under torchrun


def test_the_command_trains_together(tmp_path):
    run = tmp_path / "run"
    (status, out, err), (other, silent, _) = processes(2, "-m", "eva_utils", *TRAIN, "--out", run)
    assert (status, other, silent) == (0, 0, ""), err
    assert out.count("2 x CPU") == 1
    with (run / "lr.csv").open(newline="") as lines:
        steps = list(csv.DictReader(lines))
    assert [int(row["step"]) for row in steps] == list(range(8 * STEPS))
    assert all(row["applied"] == row["planned"] for row in steps)
    assert json.loads((run / "results.json").read_text())["test_accuracy"] > 60


def test_a_mistake_is_told_once(tmp_path):
    """1,437 images leave three for the last batch: too few for two in each process."""
    ended = processes(2, "-m", "eva_utils", *TRAIN, "--batch-size", "478", "--out", tmp_path / "run")
    assert [status for status, _, _ in ended] == [2, 2]
    message = (
        "eva-utils: error: batch_size is 478; it has to be one that leaves each of 2 processes 2 or more of the 1,437 "
        "training images in every batch\n"
    )
    assert sorted(err for _, _, err in ended) == ["", message]


# On GPUs, as far as it can be seen without


@pytest.fixture
def two_gpus(monkeypatch):
    """As in the second of two processes on a machine with two GPUs."""
    monkeypatch.setattr(device, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda n, device: None)


def test_each_process_takes_a_gpu_of_its_own(two_gpus, monkeypatch):
    for given in ("cuda", "cuda:1"):
        assert choose_device(given) == torch.device("cuda:1")
    for given, words in (("cuda:0", "each process takes a GPU of its own"), ("mps", "device is 'mps'")):
        with pytest.raises(InputError, match=words):
            choose_device(given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--nproc-per-node"):
        choose_device("cuda")


# In a single process there is no group


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}], ids=str)
def test_a_single_process_is_no_group(environment, monkeypatch, capsys):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    model = together.network()
    with distributed.process_group():
        assert not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.parallel(model) is model
        assert distributed.on_first(print)("heard") is None
    assert capsys.readouterr().out == "heard\n"
