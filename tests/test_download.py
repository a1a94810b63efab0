"""Downloads against a real server on this machine that misbehaves in every way we know of."""

import contextlib
import hashlib
import io
import os
import pickle
import re
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from eva_utils import InputError, cifar10, download

TRAIN_NAMES = [f"data_batch_{i}" for i in range(1, 6)]
CLASSES = ["airplane", "ship"]

RNG = np.random.default_rng(0)
# What the small archive holds: random rows of pixels, as CIFAR-10 orders them (all red, all green, all blue).
BATCHES = {
    name: {"data": RNG.integers(256, size=(2, 3072), dtype=np.uint8), "labels": RNG.integers(2, size=2).tolist()}
    for name in [*TRAIN_NAMES, "test_batch"]
}
FILES = {
    name: pickle.dumps(content) for name, content in (BATCHES | {"batches.meta": {"label_names": CLASSES}}).items()
}
SUMS = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}


@pytest.fixture(scope="module")
def archive():
    """A valid archive of 12 images, as bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in FILES.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    """The path says how to behave."""

    def do_GET(self):
        route, whole = self.path.strip("/"), self.server.archive
        half = whole[: len(whole) // 2]
        body = {"wrong": whole[::-1], "cut": half, "short": half, "silent": half, "error": b""}
        body = body.get(route, whole)
        self.server.asked.append(route)
        with contextlib.suppress(ConnectionError):  # the client may give up, and in some tests it has to
            self.send_response(500 if route == "error" else 200)
            self.send_header("Content-Length", str(len(body if route in ("short", "error") else whole)))
            self.end_headers()
            self.wfile.write(body)
            if route == "silent":
                self.server.over.wait(20)

    def log_message(self, *args):
        pass


# What each bad server is reported with.
REASONS = {
    "dead": "refused", "error": "Internal Server Error", "silent": "timed out", "cut": "invalid hash|Incomplete",
    "short": "invalid hash", "wrong": "invalid hash",
}  # fmt: skip


@pytest.fixture
def server(archive, monkeypatch):
    """The server; the small archive counts as the true one, and the time limit is short."""
    monkeypatch.setattr(CIFAR10, "train_list", [[name, SUMS[name]] for name in TRAIN_NAMES])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", SUMS["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": SUMS["batches.meta"]})
    monkeypatch.setattr(download, "SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(download, "SILENCE_SECONDS", 1)
    monkeypatch.delenv("EVA_CIFAR10_URL", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.archive, server.asked, server.over = archive, [], threading.Event()
        server.url = lambda route: f"http://127.0.0.1:{1 if route == 'dead' else server.server_port}/{route}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def places(server, monkeypatch):
    """Sets where the archive is looked for: the mirrors, the original, and the user's own URL."""

    def set_places(mirrors, original, own=None):
        monkeypatch.setattr(download, "MIRRORS", tuple(map(server.url, mirrors)))
        monkeypatch.setattr(download, "ORIGINAL", server.url(original))
        if own:
            monkeypatch.setenv("EVA_CIFAR10_URL", own if "/" in own else server.url(own))

    return set_places


@pytest.fixture
def offline(monkeypatch):
    """Any request fails the test."""
    monkeypatch.setattr(download.torch.hub, "urlopen", lambda *a, **k: pytest.fail("there was a request"))


def listing(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def test_own_url_mirrors_original_are_asked_in_turn_and_bad_ones_given_up(server, places, archive, tmp_path, capsys):
    own, *mirrors = REASONS
    places(mirrors, "good", own=own)
    path = download.fetch_cifar10(tmp_path / "new" / "folder")
    assert path.read_bytes() == archive and listing(path.parent) == [download.ARCHIVE]
    assert server.asked == [*(bad for bad in REASONS if bad != "dead"), "good"]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    for line, (bad, reason) in zip(told, REASONS.items(), strict=True):
        assert re.match(f"  {server.url(bad)}: .*({reason})", line)


def test_when_all_fail_the_error_lists_every_place_and_reason(server, places, tmp_path):
    places(["error"], "wrong", own="file:///no/archive")
    with pytest.raises(InputError) as caught:
        download.fetch_cifar10(tmp_path)
    first, *lines, last = str(caught.value).splitlines()
    assert "could not be downloaded" in first and str(tmp_path) in last
    reasons = ["no/archive: .*No such file", "error: Internal Server Error", "wrong: .*invalid hash"]
    for line, reason in zip(lines, reasons, strict=True):
        assert re.search(reason, line)
    assert listing(tmp_path) == []  # neither a part nor a wrong file


def test_of_two_at_once_one_downloads(server, places, archive, tmp_path):
    places(["good"], "error")
    with ThreadPoolExecutor(2) as pool:
        for path in pool.map(download.fetch_cifar10, [tmp_path] * 2):
            assert path.read_bytes() == archive
    assert server.asked == ["good"]


def test_cifar10_reads_the_right_images_also_from_a_file_as_own_url(server, places, archive, tmp_path):
    (tmp_path / "my cifar.tar.gz").write_bytes(archive)
    places(["good"], "error", own=(tmp_path / "my cifar.tar.gz").as_uri())
    train, test = cifar10(tmp_path)
    assert server.asked == []
    for images, names in ((train, TRAIN_NAMES), (test, ["test_batch"])):
        rows = np.concatenate([BATCHES[name]["data"] for name in names])
        # 1024 values of red in rows of 32, then green, then blue.
        np.testing.assert_array_equal(images.pixels.permute(0, 3, 1, 2).reshape(len(rows), 3072), rows)
        assert images.labels.tolist() == [label for name in names for label in BATCHES[name]["labels"]]
        assert images.classes == tuple(CLASSES)


def test_a_folder_that_somebody_has_left_is_used_as_it_is(server, offline, archive, tmp_path):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "cifar-10-batches-py"
    before = listing(folder)
    folder.chmod(0o555)
    for root in (tmp_path, folder):
        train, test = cifar10(root)
        assert (len(train), len(test)) == (10, 2)
    assert listing(folder) == before and listing(tmp_path) == [folder.name]
    folder.chmod(0o755)


def test_an_archive_that_is_there_is_used_without_any_request(server, offline, archive, tmp_path, capsys):
    (tmp_path / download.ARCHIVE).write_bytes(archive)
    (tmp_path / "cifar-10-batches-py").mkdir()  # what is there is not whole, and stays as it is
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut")
    train, test = cifar10(tmp_path)
    assert (len(train), len(test)) == (10, 2) and listing(tmp_path / "cifar-10-batches-py") == ["test_batch"]
    assert not [*tmp_path.glob(".*.lock")]  # nor is anything written: the folder may be read-only
    assert "cifar-10-batches-py' is not whole, and is passed over" in capsys.readouterr().out


def test_another_file_under_the_archives_name_is_refused_and_kept(server, offline, tmp_path):
    file = tmp_path / download.ARCHIVE
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=f"(?s){re.escape(str(file))}.*{hashlib.sha256(b'mine').hexdigest()}"):
        cifar10(tmp_path)
    assert file.read_bytes() == b"mine" and listing(tmp_path) == [download.ARCHIVE]


def test_folder_that_cannot_be_written_is_named(offline, tmp_path):
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(InputError, match=f"cannot write into {str(tmp_path / 'data')!r}"):
        download.fetch_cifar10(tmp_path / "data")
