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
    return packed({f"cifar-10-batches-py/{name}": pickle.dumps(content[name], protocol=2) for name in MEMBERS})


def packed(members: dict[str, bytes]) -> bytes:
    """A .tar.gz with these members; one without content is a link to the folder above."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if not data:
                info.type, info.linkname = tarfile.SYMTYPE, ".."
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how to behave: each method below that has no underscore in its name."""

    def do_GET(self):
        self.server.asked.append(self.path.strip("/"))
        with contextlib.suppress(ConnectionError):  # the client may give up, and in some tests it has to
            getattr(self, self.path.strip("/"))(self.server.archive)

    def log_message(self, *args):
        pass

    def _reply(self, body, length):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def silent(self, archive):
        self._reply(archive[:10], len(archive))
        self.server.over.wait(20)

    def drip(self, archive):
        self._reply(b"", len(archive))
        for i in range(200):  # 4 s at most, so that a client that never gives up fails the test and doesn't hang it
            self.wfile.write(archive[i : i + 1])
            self.server.over.wait(0.02)
        self.server.asked.append("dripped to the end")

    def error(self, archive):
        self.send_error(500)

    def __getattr__(self, route):  # one whole reply: its body, and the length that it claims
        def reply(archive):
            half, wrong = archive[: len(archive) // 2], archive[::-1]
            self._reply(*{
                "good": (archive, len(archive)), "cut": (half, len(archive)), "short": (half, len(half)),
                "unannounced": (half, None), "wrong": (wrong, len(wrong)), "long": (wrong * 2, None),
            }[route])  # fmt: skip

        if route.startswith("_") or not route.islower() or not route.isalpha():
            raise AttributeError(route)
        return reply


# What each bad server is reported with.
REASONS = {
    "dead": "refused", "error": "500|Internal Server Error", "silent": "timed out", "cut": "ended after|broke off",
    "short": "ended after", "unannounced": "ended after", "wrong": "md5", "long": "more than|md5",
}  # fmt: skip


@pytest.fixture
def server(archive, monkeypatch):
    """The server; the small archive counts as the true one, and the time limits are short."""
    monkeypatch.setattr(download, "SIZE", len(archive))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        sums = {Path(m.name).name: hashlib.md5(tar.extractfile(m).read()).hexdigest() for m in tar}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN_NAMES])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(download, "MD5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(download, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 0.3)
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

    def urlopen(*args, **kwargs):
        pytest.fail("there was a request")

    monkeypatch.setattr(download.urllib.request, "urlopen", urlopen)


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_published_archive_is_what_is_looked_for():
    assert download.MD5 == "c58f30108f718f92721af3b95e74349a"
    assert download.SIZE == 170498071
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
    assert path.read_bytes() == archive
    assert listing(path.parent) == [download.ARCHIVE]
    assert re.search(f"/{bad}: .*({REASONS[bad]})", capsys.readouterr().out)


def test_a_mirror_that_would_exceed_its_limit_is_given_up_early(server, places, archive, tmp_path, capsys):
    # A steady trickle: no byte is ever late, so only the speed can tell.
    places(["drip"], "good")
    assert download.fetch_cifar10(tmp_path).read_bytes() == archive
    assert server.asked == ["drip", "good"]
    assert "too slow" in capsys.readouterr().out


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
        for k in range(3):  # 1024 values of red in rows of 32, then green, then blue
            np.testing.assert_array_equal(
                images.pixels[..., k].reshape(len(rows), 1024), rows[:, 1024 * k : 1024 * (k + 1)]
            )
        assert images.labels.tolist() == [label for name in names for label in batches[name]["labels"]]
        assert images.classes == tuple(CLASSES)
    np.testing.assert_allclose(train.mean, (train.pixels.numpy() / 255).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(train.std, (train.pixels.numpy() / 255).std((0, 1, 2)), atol=1e-6)
    assert (test.mean, test.std) == (train.mean, train.std)


def test_a_folder_that_somebody_has_left_is_used_as_it_is(server, offline, archive, tmp_path):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "cifar-10-batches-py"
    before = listing(folder)
    folder.chmod(0o555)
    try:
        for root in (tmp_path, folder):
            train, test = cifar10(root)
            assert (len(train), len(test)) == (10, 2)
        assert listing(folder) == before and listing(tmp_path) == [folder.name]
    finally:
        folder.chmod(0o755)


def test_an_archive_that_is_there_is_used_without_any_request(server, offline, archive, tmp_path):
    (tmp_path / download.ARCHIVE).write_bytes(archive)
    train, test = cifar10(tmp_path)
    assert (len(train), len(test)) == (10, 2)


def test_another_file_under_the_archives_name_is_refused_and_kept(server, offline, tmp_path):
    file = tmp_path / download.ARCHIVE
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=f"(?s){re.escape(str(file))}.*{hashlib.md5(b'mine').hexdigest()}"):
        cifar10(tmp_path)
    assert file.read_bytes() == b"mine"
    assert listing(tmp_path) == [download.ARCHIVE]


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
        def read(self, n=-1):
            if self.tell():
                raise KeyboardInterrupt
            return super().read(100)

        read1 = read

    places(["good"], "good")
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *args, **kwargs: Reply(archive))
    with pytest.raises(KeyboardInterrupt):
        download.fetch_cifar10(tmp_path)
    assert listing(tmp_path) == []
