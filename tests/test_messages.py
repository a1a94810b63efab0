"""Whatever goes wrong ends with one clear message and the right status, loses nothing, and is in docs/messages.md."""

import csv
import importlib.util
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from cases import (
    CASES,
    COMMAND,
    DATA,
    OUT,
    SAVED,
    another_class,
    before_epoch,
    in_use,
    into_a_read_only_folder,
    run,
    send,
    write_photos,
)

from eva_utils import checkpoint, load_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "messages.md").read_text(encoding="utf8")
spec = importlib.util.spec_from_file_location("update_messages", ROOT / "tools" / "update_messages.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
pytestmark = [
    # From Python 3.12 on, a process with threads (any with torch) is warned when it starts worker processes by fork.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="no Linux: other words, other faults"),
]
ALL = [case for group in CASES.values() for case in group]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_photos()


def end(*given) -> tuple:
    """What the command leaves, without what the clock decides."""
    status, printed = run(*COMMAND, *given)
    assert status == 0, printed
    results = json.loads((OUT / "results.json").read_text())
    tables = []
    for name in ("lr.csv", "history.csv"):
        with (OUT / name).open(newline="") as lines:
            tables += [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(lines)]
    weights = {key: value.tolist() for key, value in load_model(OUT).state_dict().items()}
    return {key: value for key, value in results.items() if "second" not in key}, tables, weights


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the command with these flags leaves when nothing goes wrong."""
    ends = {}

    def undisturbed(*given) -> tuple:
        if given not in ends:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path_factory.mktemp("undisturbed"))
                write_photos()
                ends[given] = end(*given)
        return ends[given]

    return undisturbed


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.why)
def test_it_ends_in_words_and_loses_nothing(case, undisturbed):
    status, printed = case.act()
    assert status == case.status, printed
    assert "Traceback" not in printed
    assert tool.row(case, case.message(printed)) in PAGE.splitlines(), "run tools/update_messages.py"
    assert (OUT / "results.json").exists() == (status == 0)  # it looks finished only if it is
    if case.again is not None:
        if case.act not in (in_use, into_a_read_only_folder):  # those never began
            assert checkpoint.load(SAVED)["history"]
        shutil.rmtree(DATA, ignore_errors=True)
        write_photos()
        assert end(*case.again) == undisturbed(*case.again)


def test_other_data_do_not_replace_the_rates_that_were_found():
    command = [*COMMAND, "--lr-min", "find", "--lr-max", "find", "--batch-size", "16"]
    with before_epoch(2, send(signal.SIGTERM)):
        assert run(*command)[0] == 143
    found = (OUT / "lr_range.json").read_bytes()
    another_class()
    status, printed = run(*command)
    assert (status, "data_crc32" in printed) == (2, True), printed
    assert (OUT / "lr_range.json").read_bytes() == found
    shutil.rmtree(DATA)
    write_photos()
    status, printed = run(*command)
    assert (status, "going on after epoch 1" in printed) == (0, True), printed


def test_the_page_holds_these_cases_and_nothing_else():
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `", line)]
    assert [(row.split(" | ")[-3:-1], row.split(" | ")[-1]) for row in rows] == [
        ([str(case.status), case.why], f"{case.todo} |") for case in ALL
    ]
    assert tool.page(rows, {heading: len(group) for heading, group in CASES.items()}) == PAGE
