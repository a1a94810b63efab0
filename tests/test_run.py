"""A run's files: whole whatever happens while they are written, refused when damaged, one process at a time."""

import errno
import itertools
import os
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from eva_utils import Augment, InputError, OneCycle, Recipe, fit, keeper, run
from eva_utils.run import exclusive, plain, read_csv, read_json, read_tensors, write_tensors

RECIPE = Recipe(augment=Augment(padding=2, cutout=4), batch_size=8, precision="fp32", device="cpu")
SCHEDULE = OneCycle(2, 1, 0.01, 0.1)


def state(value: float = 1.0) -> dict:
    return {"weight": torch.full((3, 5), value), "history": [{"epoch": 1, "loss": value}]}


def is_state(found: dict, value: float = 1.0) -> bool:
    right = state(value)
    return found["weight"].equal(right["weight"]) and found | {"weight": 0} == right | {"weight": 0}


@pytest.fixture
def file(tmp_path) -> Path:
    """A checkpoint that is there already."""
    path = tmp_path / "run" / "checkpoint.pt"
    write_tensors(path, state())
    return path


def assert_unharmed(file: Path) -> None:
    assert is_state(read_tensors(file))
    assert os.listdir(file.parent) == [file.name]  # no part is left over either


# Writing


def test_a_file_that_may_not_grow_keeps_what_was_there(file):
    # The real thing: the system itself refuses to let any file grow beyond the limit.
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*checkpoint\.pt.*File too large.* is unharmed"):
            write_tensors(file, {"weight": torch.zeros(1 << 18)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert_unharmed(file)


def test_putting_a_file_in_place_is_tried_again(file, monkeypatch):
    real, tries, waited = os.replace, itertools.count(1), []

    def replace(source, target):
        if next(tries) < 2 * (1 + len(run.RETRIES)):
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(run.time, "sleep", waited.append)
    with pytest.raises(InputError, match="Permission denied"):
        write_tensors(file, state(2.0))
    assert_unharmed(file)
    write_tensors(file, state(2.0))  # its last try succeeds
    assert is_state(read_tensors(file), 2.0)
    assert waited == [*run.RETRIES, *run.RETRIES]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*checkpoint\.pt"):
        write_tensors(tmp_path / "run" / "checkpoint.pt", state())
    with pytest.raises(InputError, match=r"cannot write into .*run"), exclusive(tmp_path / "run"):
        pass
    with pytest.raises(InputError, match="is the current folder"):
        run.folder_of("")
    assert run.folder_of("~/run") == Path.home() / "run"


# Reading


def test_a_truncated_file_is_refused_and_a_flipped_bit_is_or_is_harmless(file):
    whole = file.read_bytes()
    weights = whole.index(bytes(state()["weight"].numpy()))
    with zipfile.ZipFile(file) as archive:
        compressed = archive.start_dir + 10  # the method of the first record: stored -> deflated
    places = [(weights + 9, 2), (compressed, 3)]
    places += [(int(p), int(b)) for p, b in np.random.default_rng(0).integers((0, 0), (len(whole), 8), (300, 2))]
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"checkpoint\.pt' is damaged.*delete it"):
        read_tensors(file)
    refused = []
    for place, bit in places:
        content = bytearray(whole)
        content[place] ^= 1 << bit
        file.write_bytes(content)
        try:
            assert is_state(read_tensors(file)), (place, bit)  # it was in the padding between two records
        except InputError:
            refused.append((place, bit))
    assert refused[:2] == places[:2]


def test_files_of_other_programs_are_refused_in_words(file):
    torch.save([1, 2], file)
    with pytest.raises(InputError, match=r"damaged or no file of a run .*content is 'list'"):
        read_tensors(file)
    torch.save({"weight": Fraction(1, 2)}, file)  # to read it, a function would have to be called
    with pytest.raises(InputError, match="it holds more than tensors and numbers"):
        read_tensors(file)
    with pytest.raises(InputError, match=r"model\.pt' is not there: is this the folder"):
        read_tensors(file.with_name("model.pt"))
    other = file.with_name("other")
    for text in ("", "[1]", "{", "a,b\n1,x\n"):
        other.write_text(text)
        with pytest.raises(InputError, match="no file of a run"):
            read_json(other)
    with pytest.raises(InputError, match="no file of a run"):
        read_csv(other)


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path, tiny, cnn, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(run, "LOCK_SECONDS", 0)
    with (tmp_path / ".lock").open("w") as first:  # as in another process; what a kill leaves: test_killed.py
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="in use by another process"):
            fit(cnn(), *tiny, SCHEDULE, RECIPE, folder=tmp_path)
    with exclusive(tmp_path), exclusive(tmp_path):  # the command holds it, and so does its fit
        assert os.listdir(tmp_path) == [".lock"]


# What fit makes of it


def test_a_run_leaves_what_is_promised(tmp_path, tiny, cnn):
    left = []
    done = fit(cnn(), *tiny, SCHEDULE, RECIPE, folder=tmp_path,
               on_epoch=lambda row: left.append(read_csv(tmp_path / "history.csv")))  # fmt: skip
    assert [len(rows) for rows in left] == [1, 2]  # it grows, though no checkpoint is due after the first
    assert read_csv(tmp_path / "lr.csv") == done.steps
    results = read_json(tmp_path / "results.json")
    assert results == done.results
    assert results["recall"].keys() == {"ant", "bee", "cat"} and results["test_accuracy_ema_tta"] is not None
    config = read_json(tmp_path / "config.json")
    assert Recipe(**config["recipe"] | {"augment": Augment(**config["recipe"]["augment"])}) == RECIPE
    assert plain({"sizes": (1, np.int32(2)), 3: None}) == {"sizes": [1, 2], "3": None}


def test_a_checkpoint_only_every_so_many_seconds_and_at_the_end(tmp_path, tiny, cnn, monkeypatch):
    saved, real = [], run.write_tensors
    monkeypatch.setattr(run, "write_tensors", lambda path, content: (saved.append(path.name), real(path, content)))
    for seconds, checkpoints in ((20, 1), (0, 2)):
        monkeypatch.setattr(keeper, "SAVE_SECONDS", seconds)
        fit(cnn(), *tiny, SCHEDULE, RECIPE, folder=tmp_path / str(seconds))
        assert saved == ["checkpoint.pt"] * checkpoints + ["model.pt"]
        saved.clear()


def test_a_damaged_checkpoint_is_refused_and_fresh_starts_over(tmp_path, tiny, cnn):
    finished = fit(cnn(), *tiny, SCHEDULE, RECIPE, folder=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"checkpoint\.pt' is damaged"):
        fit(cnn(), *tiny, SCHEDULE, RECIPE, folder=tmp_path)
    write_tensors(tmp_path / "checkpoint.pt", state())
    with pytest.raises(InputError, match="a checkpoint of this version; delete it"):
        fit(cnn(), *tiny, SCHEDULE, RECIPE, folder=tmp_path)
    again = fit(cnn(), *tiny, SCHEDULE, RECIPE, folder=tmp_path, fresh=True)
    assert again.steps == finished.steps
