"""A checkpoint survives whatever happens while the next one is written, and a damaged one is refused."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eva_utils import Augment, InputError, checkpoint


def state(value: float = 1.0) -> dict:
    return {
        "model": {"weight": torch.full((3, 5), value), "count": torch.tensor(7)},
        "history": [{"epoch": 1, "loss": value}],
        "name": "digits",
    }


def is_state(loaded: dict, value: float = 1.0) -> bool:
    model, expected = loaded.pop("model"), state(value)
    right = expected.pop("model")
    tensors_equal = model.keys() == right.keys() and all(model[key].equal(right[key]) for key in right)
    return tensors_equal and loaded == {"format": checkpoint.FORMAT, **expected}


@pytest.fixture
def file(tmp_path) -> Path:
    """A checkpoint that is there already."""
    path = tmp_path / "run" / "checkpoint.pt"
    checkpoint.save(path, state(1.0))
    return path


@pytest.fixture
def whole(file) -> bytes:
    return file.read_bytes()


def assert_unharmed(file: Path) -> None:
    assert is_state(checkpoint.load(file), 1.0)
    assert os.listdir(file.parent) == [file.name]  # no part is left over either


def test_round_trip(file):
    assert_unharmed(file)


def test_plain_settings_can_be_stored_and_compared(file):
    def noise(x):
        return x

    settings = {
        "lr": np.float64(0.1), "seed": np.int64(3), "sizes": (1, np.int32(2)), "augment": Augment(padding=2),
        "knots": np.array([0.5, 1.5]), "own": [noise, np.float32], "none": None, "layers": {"c", "a", "b"},
        "named": {(1, 2): True},
    }  # fmt: skip
    stored = checkpoint.plain(settings)
    assert stored == {
        "lr": 0.1, "seed": 3, "sizes": [1, 2],
        "augment": {"padding": 2, "flip": True, "cutout": 8, "alternate": True}, "knots": [0.5, 1.5],
        "own": ["<function test_plain_settings_can_be_stored_and_compared.<locals>.noise>", "<class 'numpy.float32'>"],
        "none": None, "layers": ["a", "b", "c"], "named": {"(1, 2)": True},
    }  # fmt: skip
    checkpoint.save(file, stored)
    assert json.loads(json.dumps(stored)) == stored
    assert checkpoint.load(file)["sizes"] == [1, 2]
    assert checkpoint.plain(stored) == stored


def test_the_next_one_takes_its_place(file):
    checkpoint.save(file, state(2.0))
    assert is_state(checkpoint.load(file), 2.0)
    assert os.listdir(file.parent) == [file.name]


# While writing


def half_then(error):
    """A write that does half of its work and then fails."""
    write = Path.write_bytes

    def broken(path, data):
        write(path, data[: len(data) // 2])
        if error:
            raise error

    return broken


def test_failed_write_is_an_input_error_and_keeps_the_previous(file, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", half_then(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left on device") as caught:
        checkpoint.save(file, state(2.0))
    assert str(file) in str(caught.value)
    assert_unharmed(file)


def test_ctrl_c_while_writing_keeps_the_previous(file, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", half_then(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(file, state(2.0))
    assert_unharmed(file)


def test_what_reads_back_wrong_does_not_replace_the_previous(file, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", half_then(None))  # a disk that loses half without a word
    with pytest.raises(InputError):
        checkpoint.save(file, state(2.0))
    assert_unharmed(file)


def test_a_full_disk_keeps_the_previous(file):
    # The real thing: the system itself refuses to let any file grow beyond the limit.
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*File too large"):
            checkpoint.save(file, {"weight": torch.zeros(1 << 18)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert_unharmed(file)


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*checkpoint\.pt"):
        checkpoint.save(tmp_path / "run" / "checkpoint.pt", state())


# While reading


@pytest.mark.parametrize("sixteenths", range(16))
def test_truncated_file_is_refused(sixteenths, file):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * sixteenths // 16])
    with pytest.raises(InputError, match="damaged") as caught:
        checkpoint.load(file)
    assert str(file) in str(caught.value)


def test_one_flipped_bit_in_a_tensor_is_refused(file):
    content = bytearray(file.read_bytes())
    weights = bytes(state()["model"]["weight"].numpy())
    content[content.index(weights) + 9] ^= 4
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(file)


def test_every_flipped_bit_in_the_table_of_contents_is_refused_or_harmless(whole, file):
    for place in range(whole.index(b"PK\x01\x02"), len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[place] ^= 1 << bit
            file.write_bytes(content)
            try:
                loaded = checkpoint.load(file)
            except InputError:
                continue
            assert is_state(loaded), (place, bit)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused_or_harmless(place, bit, whole, file):
    content = bytearray(whole)
    content[int(place * len(content))] ^= 1 << bit
    file.write_bytes(content)
    try:
        loaded = checkpoint.load(file)
    except InputError:
        return
    assert is_state(loaded)  # it was in the padding between two records


def test_a_bit_that_makes_a_record_look_compressed_is_refused(whole, file):
    content = bytearray(whole)
    with zipfile.ZipFile(file) as archive:
        directory = archive.start_dir
    content[directory + 10] ^= 8  # the method of the first record: stored -> deflated
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(file)


def test_newer_format_is_refused(file):
    torch.save({"format": checkpoint.FORMAT + 1, **state()}, file)
    with pytest.raises(InputError, match=f"format {checkpoint.FORMAT + 1}.*update"):
        checkpoint.load(file)


@pytest.mark.parametrize(
    "content", [[1, 2], {"state_dict": {}}, torch.zeros(3), {"format": "of another program"}], ids=repr
)
def test_a_file_of_another_program_is_refused(content, file):
    torch.save(content, file)
    with pytest.raises(InputError, match="not a checkpoint of this package"):
        checkpoint.load(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.pt"):
        checkpoint.load(tmp_path / "nothing.pt")


class Trap:
    """Makes a folder as soon as it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(how, file, tmp_path):
    how({"format": checkpoint.FORMAT, "model": Trap(tmp_path / "trapped")}, file)
    with pytest.raises(InputError):
        checkpoint.load(file)
    assert not (tmp_path / "trapped").exists()
    # The trap works: who unpickles it without care is caught.
    pickle.loads(pickle.dumps(Trap(tmp_path / "trapped")))
    assert (tmp_path / "trapped").exists()


# One process at a time

HOLD = """
import sys
from pathlib import Path
from eva_utils.checkpoint import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="in use by another process"), checkpoint.exclusive(folder):
            pass
        first.kill()  # it gets no chance to tidy up
    with checkpoint.exclusive(folder), checkpoint.exclusive(folder):  # the command holds it, and so does its fit
        pass


def test_a_folder_without_locks_works_and_nothing_in_it_is_taken_for_left_over(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    (tmp_path / ".checkpoint.pt.7.part").touch()  # another process may be at it
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", unsupported)
        with checkpoint.exclusive(tmp_path):
            checkpoint.save(tmp_path / "checkpoint.pt", state())
    assert sorted(os.listdir(tmp_path)) == [".checkpoint.pt.7.part", ".lock", "checkpoint.pt"]
    with checkpoint.exclusive(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoint.pt"]
