"""Downloads against a real server on this machine that misbehaves in every way we know of."""

import contextlib
import hashlib
import io
import os
import pickle
import re
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from eva_utils import InputError, cifar10, download

TRAIN_NAMES = [f"data_batch_{i}" for i in range(1, 6)]
# Neither sorted nor with the names of the classes first, like the real archive.
MEMBERS = ["data_batch_4", "test_batch", "data_batch_3", "batches.meta", "data_batch_2", "data_batch_5", "data_batch_1"]
CLASSES = ["airplane", "ship"]


@pytest.fixture(scope="module")
def batches():
    """What the small archive holds: random rows of pixels, as CIFAR-10 orders them (all red, all green, all blue)."""
    rng = np.random.default_rng(0)
    return {
        name: {"data": rng.integers(256, size=(2, 3072), dtype=np.uint8), "labels": rng.integers(2, size=2).tolist()}
        for name in [*TRAIN_NAMES, "test_batch"]
    }


@pytest.fixture(scope="module")
def archive(batches):
    """A valid archive of 12 images, as bytes."""
    content = batches | {"batches.meta": {"label_names": CLASSES}}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in MEMBERS:
            data, info = pickle.dumps(content[name], protocol=2), tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    """The path says how to behave."""

    def do_GET(self):
        route, archive = self.path.strip("/"), self.server.archive
        half, wrong = archive[: len(archive) // 2], archive[::-1]
        body, length = {
            "good": (archive, len(archive)), "cut": (half, len(archive)), "short": (half, len(half)),
            "unannounced": (half, None), "wrong": (wrong, len(wrong)), "long": (wrong * 2, None),
            "silent": (archive[:10], len(archive)), "drip": (b"", len(archive)), "error": (b"", 0),
        }[route]  # fmt: skip
        self.server.asked.append(route)
        with contextlib.suppress(ConnectionError):  # the client may give up, and in some tests it has to
            self.send_response(500 if route == "error" else 200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)
            if route == "silent":
                self.server.over.wait(20)
            for i in range(200 if route == "drip" else 0):  # 4 s at most: a client that never gives up fails the test
                self.wfile.write(archive[i : i + 1])
                self.server.over.wait(0.02)

    def log_message(self, *args):
        pass


# What each bad server is reported with.
REASONS = {
    "dead": "refused", "error": "500|Internal Server Error", "silent": "timed out", "cut": "ended after|broke off",
    "short": "ended after", "unannounced": "ended after", "wrong": "md5", "long": "md5",
    "drip": "too slow",  # a steady trickle: no byte is ever late, so only the speed can tell
}  # fmt: skip


@pytest.fixture
def server(archive, monkeypatch):
    """The server; the small archive counts as the true one, and the time limits are short."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        sums = {Path(m.name).name: hashlib.md5(tar.extractfile(m).read()).hexdigest() for m in tar}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN_NAMES])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    true = {"SIZE": len(archive), "MD5": hashlib.md5(archive).hexdigest()}
    for name, value in (true | {"CONNECT_SECONDS": 2, "PATIENCE_SECONDS": 0.3}).items():
        monkeypatch.setattr(download, name, value)
    monkeypatch.delenv("EVA_CIFAR10_URL", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.archive, server.asked, server.over = archive, [], threading.Event()
        with socket.socket() as closed:  # a port that was free a moment ago, and where nobody listens
            closed.bind(("127.0.0.1", 0))
            dead = closed.getsockname()[1]
        server.url = lambda route: f"http://127.0.0.1:{dead if route == 'dead' else server.server_port}/{route}"
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
            monkeypatch.setenv("EVA_CIFAR10_URL", server.url(own) if "/" not in own else own)

    return set_places


@pytest.fixture
def offline(monkeypatch):
    """Any request fails the test."""
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: pytest.fail("there was a request"))


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_published_archive_is_what_is_looked_for():
    assert (download.MD5, download.SIZE) == ("c58f30108f718f92721af3b95e74349a", 170498071)
    places = [*download.MIRRORS, download.ORIGINAL]
    assert len(set(places)) == len(places) >= 3 and all(url.startswith("https://") for url in places)


def test_own_url_then_mirrors_then_original_each_once(server, places, tmp_path, capsys):
    places(["error", "dead", "wrong", "short"], "good", own="cut")
    download.fetch_cifar10(tmp_path)
    assert server.asked == ["cut", "error", "wrong", "short", "good"]
    # The dead one cannot say so itself: that it was tried, and when, is in what is printed.
    assert re.findall(r"http://\S+/(\w+):", capsys.readouterr().out) == ["cut", "error", "dead", "wrong", "short"]


@pytest.mark.parametrize("bad", REASONS)
def test_a_bad_server_is_given_up_for_the_next(bad, server, places, archive, tmp_path, capsys):
    places([bad], "good")
    path = download.fetch_cifar10(tmp_path / "new" / "folder")
    assert path.read_bytes() == archive and listing(path.parent) == [download.ARCHIVE]
    assert re.search(f"/{bad}: .*({REASONS[bad]})", capsys.readouterr().out)


def test_when_all_fail_the_error_lists_every_place_and_reason(server, places, tmp_path):
    bad = ["dead", "error", "cut", "wrong", "long"]
    places(bad[1:-1], bad[-1], own=bad[0])
    with pytest.raises(InputError) as caught:
        download.fetch_cifar10(tmp_path)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  http")]
    assert len(lines) == len(bad)
    for line, route in zip(lines, bad, strict=True):
        assert re.match(f"  {re.escape(server.url(route))}: .*({REASONS[route]})", line)
    assert listing(tmp_path) == []  # neither a part nor a wrong file


def test_cifar10_reads_the_right_images(server, places, batches, tmp_path):
    places(["good"], "error")
    train, test = cifar10(tmp_path)
    assert server.asked == ["good"]
    for images, names in ((train, TRAIN_NAMES), (test, ["test_batch"])):
        rows = np.concatenate([batches[name]["data"] for name in names])
        # 1024 values of red in rows of 32, then green, then blue.
        np.testing.assert_array_equal(images.pixels.permute(0, 3, 1, 2).reshape(len(rows), 3072), rows)
        assert images.labels.tolist() == [label for name in names for label in batches[name]["labels"]]
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


def test_an_archive_that_is_there_is_used_without_any_request(server, offline, archive, tmp_path):
    (tmp_path / download.ARCHIVE).write_bytes(archive)
    (tmp_path / "cifar-10-batches-py").mkdir()  # what is there is not whole, and stays as it is
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut")
    train, test = cifar10(tmp_path)
    assert (len(train), len(test)) == (10, 2) and listing(tmp_path / "cifar-10-batches-py") == ["test_batch"]


def test_another_file_under_the_archives_name_is_refused_and_kept(server, offline, tmp_path):
    file = tmp_path / download.ARCHIVE
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=f"(?s){re.escape(str(file))}.*{hashlib.md5(b'mine').hexdigest()}"):
        cifar10(tmp_path)
    assert file.read_bytes() == b"mine" and listing(tmp_path) == [download.ARCHIVE]


@pytest.mark.parametrize("url", [
    "http://example.com/cifar.tar.gz", "http://localhost.example.com/cifar.tar.gz", "cifar.tar.gz",
    "http://127.0.0.1@example.com/cifar.tar.gz", "ftp://localhost/cifar.tar.gz", "http://[::1/cifar.tar.gz",
])  # fmt: skip
def test_own_url_that_others_could_tamper_with_is_refused(url, offline, monkeypatch, tmp_path):
    monkeypatch.setenv("EVA_CIFAR10_URL", url)
    with pytest.raises(InputError, match="EVA_CIFAR10_URL"):
        download.fetch_cifar10(tmp_path)


def test_own_url_may_be_a_file(server, places, archive, tmp_path):
    source = tmp_path / "my cifar.tar.gz"
    source.write_bytes(archive)
    places(["good"], "good", own=source.as_uri())
    assert download.fetch_cifar10(tmp_path / "data").read_bytes() == archive
    assert server.asked == []


def test_folder_that_cannot_be_written_is_named(server, offline, monkeypatch, tmp_path):
    def touch(*args, **kwargs):  # rights taken away would not stop a test that runs as root
        raise PermissionError(13, "Permission denied")

    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "data"))):
        download.fetch_cifar10(tmp_path / "data")
    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}.*Permission denied"):
        download.fetch_cifar10(tmp_path)


def test_ctrl_c_leaves_no_partial_file(server, places, archive, monkeypatch, tmp_path):
    class Reply(io.BytesIO):
        def read1(self, n=-1):
            if self.tell():
                raise KeyboardInterrupt
            return super().read(100)

    places(["good"], "good")
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *args, **kwargs: Reply(archive))
    with pytest.raises(KeyboardInterrupt):
        download.fetch_cifar10(tmp_path)
    assert listing(tmp_path) == []
