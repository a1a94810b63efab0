"""Several real processes over gloo do what one does: the same batches, gradients, weights and counts."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import together
import torch

from eva_utils import InputError, processes
from eva_utils.device import choose_device
from eva_utils.run import read_csv, read_json

HERE = Path(__file__).resolve().parent
TRAIN = [
    "train", "--data", "digits", "--width", "4", "--epochs", "2", "--peak-epoch", "1", "--batch-size", "128",
    "--no-flip", "--precision", "fp32", "--device", "cpu", "--lr-min", "0.02", "--lr-max", "0.2",
]  # fmt: skip
COMMAND = "import sys; from eva_utils import cli, explain; explain.draw = print; sys.exit(cli.main(sys.argv[1:]))"
STEPS = 12  # an epoch: 1,437 images in batches of 128


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def started(n: int, *arguments) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each of ``n`` processes, in the environment that torchrun gives them."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    common = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    common |= {"OMP_NUM_THREADS": 1, "PYTHONPATH": path}
    group, pipes = [], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for rank in range(n):
        own = {key: str(value) for key, value in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        group.append(subprocess.Popen([sys.executable, *map(str, arguments)], env=os.environ | own, **pipes))
    try:
        return [(p.returncode, out, err) for p in group for out, err in [p.communicate(timeout=120)]]
    finally:
        for p in group:
            p.kill()


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> dict:
    with torch.random.fork_rng([]):
        return together.work(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module", params=[2, 3], ids=lambda n: f"{n}-processes")
def group(request, tmp_path_factory) -> SimpleNamespace:
    """What ``n`` processes have left. states[r]: of rank r; ended[r]: its exit status and what it printed."""
    n, folder = request.param, tmp_path_factory.mktemp("group")
    ended = started(n, HERE / "together.py", folder)
    files = [folder / f"{n}-{rank}.pt" for rank in range(n)]
    assert all(file.exists() for file in files), ended
    return SimpleNamespace(n=n, ended=ended, states=[torch.load(file, weights_only=False) for file in files])


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(value.equal(second[key]) for key, value in first.items())


# What each process sees, and what comes out


@pytest.mark.parametrize("engine", ["batch", "albumentations"])
def test_shards_gradients_and_weights_are_those_of_one_process(engine, group, single):
    """The shards to the last bit: order, crops, flips, holes; and the last batch, of 6 images, is shared as well."""
    whole = single[engine]
    assert [len(x) for x in whole["seen"]] == [16, 16, 6] * 2
    for step, x in enumerate(whole["seen"]):
        for rank, state in enumerate(group.states):
            assert state[engine]["seen"][step].equal(x[rank :: group.n])
    for what in ("gradients", "weights", "ema"):
        for state in group.states:
            assert_close(state[engine][what], whole[what])
            assert same(state[engine][what], group.states[0][engine][what])
    start = together.network(together.Frozen).state_dict()
    assert (whole["weights"]["6.weight"] - start["6.weight"]).abs().max() > 0.01  # they do move


def test_records_are_those_of_one_process(group, single):
    metrics = ["train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_loss_ema", "test_accuracy_ema"]
    for state in group.states:
        for found, expected in zip(state["batch"]["steps"], single["batch"]["steps"], strict=True):
            assert found == expected | {"loss": pytest.approx(expected["loss"], rel=1e-5)}
        for found, expected in zip(state["batch"]["history"], single["batch"]["history"], strict=True):
            assert [found[key] for key in metrics] == pytest.approx([expected[key] for key in metrics], rel=1e-5)


def test_each_test_image_counts_once_and_exactly(group, single):
    for state in group.states:
        assert state["sharded"]["n"] == state["alone"]["n"] == 13
        assert state["sharded"]["correct"] == state["alone"]["correct"] == single["alone"]["correct"]
        assert state["sharded"]["loss"] == pytest.approx(state["alone"]["loss"], rel=1e-5)
        assert state["few"]["n"] == 1 and state["few"]["correct"] in (0, 1)
        assert state["few"] == group.states[0]["few"]
        assert int(state["total"]) == group.n * 2**60 + sum(range(group.n))


def test_running_statistics_are_the_mean_over_processes(group, single):
    for state in group.states:
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


def test_rank_0_alone_finds_the_rates_and_prints(group, single):
    assert [state["range test"] for state in group.states] == [single["range test"]] + [0] * (group.n - 1)
    for state in group.states:
        assert state["rates"] == single["rates"]
        assert state["refusal"] == "answer is 0; it has to be another"
    (_, first, _), *others = group.ended
    assert "rank 0 speaks" in first and f"{group.n} x CPU" in first and "going on after epoch 1" in first
    assert [out for _, out, _ in others] == [""] * (group.n - 1)


def test_a_failing_rank_ends_all_with_its_own_message(group):
    """The last one's: another seed than the others' in one group, a fault in the other."""
    *others, (status, _, err) = group.ended
    assert status != 0 and all(status != 0 for status, _, _ in others)
    ends = "terminate called without an active exception\n"  # of torch's threads, now and then
    assert [err.replace(ends, "") for _, _, err in others] == [""] * (group.n - 1)
    if group.n == 2:
        assert "InputError: process 1 was given something else" in err and "recipe.seed: 0 there, 1 here" in err
    else:
        assert err.strip().endswith("ZeroDivisionError: a fault") and err.count("Traceback") == 1


def test_the_command_trains_together(tmp_path):
    (status, out, err), (other, silent, _) = started(2, "-c", COMMAND, *TRAIN, "--out", tmp_path)
    assert (status, other, silent) == (0, 0, ""), err
    assert out.count("2 x CPU") == 1
    steps = read_csv(tmp_path / "lr.csv")
    assert [row["step"] for row in steps] == list(range(2 * STEPS))
    assert all(row["applied"] == row["planned"] for row in steps)
    assert read_json(tmp_path / "results.json")["test_accuracy"] > 20


def test_a_mistake_is_told_once(tmp_path):
    """1,437 images leave three for the last batch: too few for two in each process."""
    ended = started(2, "-c", COMMAND, *TRAIN, "--batch-size", "478", "--out", tmp_path)
    assert [status for status, _, _ in ended] == [2, 2]
    message = (
        "eva-utils: error: batch_size is 478; it has to be one that leaves each of 2 processes 2 or more of the 1,437 "
        "training images in every batch\n"
    )
    assert sorted(err for _, _, err in ended) == ["", message]


# Without a second GPU, and without a group


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    """As in the second of two processes on a machine with two GPUs."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda n, device: None)
    for given in ("cuda", "cuda:1"):
        assert choose_device(given) == torch.device("cuda:1")
    with pytest.raises(InputError, match="each process takes a GPU of its own"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--nproc-per-node"):
        choose_device("cuda")


def test_torchrun_with_one_process_is_a_group(monkeypatch):
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    with processes.process_group():
        assert isinstance(processes.parallel(together.network()), torch.nn.parallel.DistributedDataParallel)
        assert processes.on_first(lambda: 7)() == 7
    assert not torch.distributed.is_initialized()
