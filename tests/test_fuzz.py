"""Whatever is given, it works or it is refused in words with status 2: no traceback, no hang, no half run.

A fixed number of examples, always the same ones. Longer, and with new ones every time: ``EVA_FUZZ=5000 pytest
tests/test_fuzz.py``; what it finds it prints as small as it can.
"""

import faulthandler
import functools
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from cases import COMMAND, run, write_photos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eva_utils import InputError, download, image_folder, job, lr_finder
from eva_utils.trainer import Trainer

MORE = int(os.environ.get("EVA_FUZZ", "0"))


def examples(number: int):
    return settings(
        max_examples=MORE or number,
        derandomize=not MORE,
        database=None,
        deadline=20_000,  # ms: it hangs
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Its own folder for everything, with a few images and files in it."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    write_photos()
    Path("loop").symlink_to("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "MIRRORS", ())
        patch.setattr(download, "ORIGINAL", "https://127.0.0.1:1/cifar-10-python.tar.gz")  # nobody listens
        patch.setenv("no_proxy", "*")
        patch.setattr(job, "image_folder", functools.cache(image_folder))
        yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def no_hang():
    """A test that hangs ends the whole process, with the place where it was."""
    faulthandler.dump_traceback_later(MORE or 300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Reached(BaseException):
    """All checks are passed, and it would begin to compute."""


def reached(*args, **options):
    raise Reached


def refused_or_reached(*argv) -> None:
    """No other exception than ``Reached`` gets through, and a refusal has status 2 and words."""
    try:
        with mock.patch.object(Trainer, "run", reached), mock.patch.object(lr_finder, "range_test", reached):
            status, printed = run(*argv)
    except Reached:
        return
    finally:
        assert not list(Path().rglob("results.json"))
        for name in ("runs", "data", "new"):
            shutil.rmtree(name, ignore_errors=True)
    if argv[:1] != ("cycle",) and "-h" not in printed:
        assert status == 2, printed
    if status:
        assert status == 2
        assert printed.strip().splitlines()[-1].strip()
        assert "eva-utils" in printed and ": error: " in printed and "Traceback" not in printed


NUMBERS = [
    "-1", "0", "1", "2", "3", "7", "1e-400", "1e-30", "1e30", "1e308", "1e400", "nan", "inf", "-inf", "-0.0", "2.5",
    "0x10", "1_0", "١٢", "9223372036854775807", "9223372036854775808", "18446744073709551616", "9" * 400, "9" * 5000,
]  # fmt: skip
WORDS = [
    "", " ", "-", "--", "find", "auto", "fp16", "bf16", "cpu", "cuda", "cuda:99", "cpu:7", "meta", "mps", "batch",
    "albumentations", "digits", "photos", "photos/train/ant/0.png", ".", "loop", "/dev/null", "no/such", "ü ñ 蟻",
    "a\tb\nc", "\udcff", "x" * 300, "y/" * 3000, "None", "true", "%s", "{}", "$HOME", "photos/../photos",
]  # fmt: skip
ANY = st.sampled_from(NUMBERS + WORDS) | st.text(st.characters(exclude_characters="\0/"), max_size=6)
VALUED = [
    "--data", "--epochs", "--peak-epoch", "--batch-size", "--lr-min", "--lr-max", "--width", "--seed", "--padding",
    "--cutout", "--label-smoothing", "--weight-decay", "--precision", "--device", "--engine", "--workers", "--config",
]  # fmt: skip
# What is written to stays in this folder.
PLACES = st.sampled_from(
    ["new", "new/deep er/ü", "photos/train/ant/0.png", "photos/train/ant/0.png/x", "loop", "x" * 300, ""]
)
FLAG = st.one_of(
    st.tuples(st.sampled_from(VALUED), ANY),
    st.tuples(st.sampled_from(["--out", "--root"]), PLACES),
    st.sampled_from(
        [("--fresh",), ("--flip",), ("--no-flip",), ("--lr-min", "find"), ("--data", "cifar10"), ("--help",)]
    ),
)


NUMERIC = [flag for flag in VALUED if flag not in ("--data", "--precision", "--device", "--engine", "--config")]


@pytest.mark.parametrize("flag", NUMERIC)
def test_every_number_for_every_flag(flag):
    for number in NUMBERS:
        refused_or_reached(*COMMAND, flag, number)


@examples(120)
@given(flags=st.lists(FLAG, min_size=1, max_size=4))
def test_the_train_command(flags):
    refused_or_reached(*COMMAND, *(word for flag in flags for word in flag))


@examples(150)
@given(
    words=st.lists(st.sampled_from([*COMMAND, "explain", "cycle", "-h", "--fresh", "--step-size", "--cycles"]) | ANY)
)
def test_any_words(words):
    places = {"--out", "explain"}  # what follows is written to, or read
    refused_or_reached(
        *(word if before not in places else "new" for before, word in zip(["", *words], words, strict=False))
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ANY, inner, max_size=2),
    max_leaves=4,
)
KEYS = ["root", "flip", *(flag[2:].replace("-", "_") for flag in VALUED if flag != "--config")]


@examples(120)
@given(values=st.dictionaries(st.sampled_from([*KEYS, "colour"]), JSON, max_size=3) | JSON)
def test_a_config(values):
    if isinstance(values, dict) and isinstance(values.get("root"), str):
        values["root"] = "new"
    Path("my.json").write_text(json.dumps(values))
    refused_or_reached("train", "--config", "my.json", "--out", "new", "--width", "2", "--batch-size", "8")


@examples(50)
@given(content=st.binary(max_size=30))
def test_a_config_of_any_bytes(content):
    Path("my.json").write_bytes(content)
    refused_or_reached("train", "--config", "my.json", "--out", "new")


@examples(50)
@given(flags=st.lists(st.tuples(st.sampled_from(["--lr-min", "--lr-max", "--step-size", "--cycles"]), ANY), max_size=3))
def test_the_cycle_command(flags):
    refused_or_reached("cycle", "--out", "new", *(word for flag in flags for word in flag))


# Folders of images

SIDE = 9
FORMATS = {
    "RGB": "png jpg bmp gif tif webp ppm", "L": "png jpg bmp gif tif pgm", "1": "png bmp tif", "P": "png bmp gif tif",
    "RGBA": "png tif webp", "LA": "png", "CMYK": "jpg tif", "I;16": "png tif", "F": "tif", "I": "tif",
}  # fmt: skip
KINDS = [(mode, suffix) for mode, suffixes in FORMATS.items() for suffix in suffixes.split()]
DEEP = ("I;16", "F", "I")
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: not name.startswith(".")
) | st.sampled_from(["two words", "蟻", "$x$", "new\nline", "-n", "ümläut (1)", "CON", "\udcff", "a.png"])


def image(mode: str, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(256, size=(height, width, 3), dtype=np.uint8)
    if mode in ("I;16", "F", "I"):
        dtype = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
        return Image.fromarray(pixels[..., 0].astype(dtype))
    return Image.fromarray(pixels).convert(mode)


def cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def flip(file: Path, share: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 255
    file.write_bytes(content)


def link(to: str):
    return lambda file, share: (file.unlink(), file.symlink_to(to))


# What is done to one file, and whether its folder is then good, bad, or may be either.
DAMAGE = {
    "none": (lambda file, share: None, "good"),
    "other size": (lambda file, share: image("RGB", SIDE + 1 + int(20 * share), SIDE).save(file, "png"), "bad"),
    "line": (lambda file, share: image("RGB", 300, 1).save(file, "png"), "bad"),
    "cut": (cut, "either"),  # a good image can end in bytes that nobody needs
    "flipped": (flip, "either"),
    "empty": (lambda file, share: file.write_bytes(b""), "bad"),
    "text": (lambda file, share: file.write_text("not an image"), "bad"),
    "animation": (
        lambda file, share: image("P", SIDE, SIDE).save(
            file, "gif", save_all=True, append_images=[image("P", SIDE, SIDE).rotate(90)]
        ),
        "good",
    ),
    "circle": (lambda file, share: (file.unlink(), file.symlink_to(file.name)), "passed over"),
    "link up": (link(".."), "passed over"),
    "link to nothing": (link("nothing.png"), "passed over"),
    "link to an image": (link("0.png"), "good"),
    "folder": (lambda file, share: (file.unlink(), file.mkdir()), "passed over"),
    "pipe": (lambda file, share: (file.unlink(), os.mkfifo(file)), "passed over"),  # who reads it waits for ever
    "no image's name": (lambda file, share: file.rename(file.with_suffix(".txt")), "passed over"),
}
FILES = st.tuples(
    st.sampled_from(["train", "test"]), st.integers(0, 1), NAMES, st.sampled_from(KINDS),
    st.just("none") | st.sampled_from(sorted(DAMAGE)), st.floats(0, 1, exclude_max=True),
)  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="names and pipes as Linux has them")
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about damaged files, before it gives up
@examples(120)
@given(classes=st.lists(NAMES, min_size=2, max_size=2, unique=True), files=st.lists(FILES, max_size=3))
def test_image_folders(classes, files):
    root = Path("images with spaces")
    shutil.rmtree(root, ignore_errors=True)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            image("RGB", SIDE, SIDE).save(root / split / name / "0.png")
    outcomes, expected = [], {"train": 2, "test": 2}
    for i, (split, label, name, (mode, suffix), damage, share) in enumerate(files):
        file = root / split / classes[label] / f"{name} {i}.{suffix}"
        image(mode, SIDE, SIDE).save(file)
        act, outcome = DAMAGE[damage]
        act(file, share)
        if damage == "none" and mode in DEEP:
            outcome = "bad"
        outcomes.append(outcome)
        expected[split] += outcome != "passed over"
    try:
        pair = image_folder(root)
    except InputError as error:
        assert set(outcomes) & {"bad", "either"}, error
        assert repr(str(root))[1:-1] in str(error)
        assert "\n" not in str(error)
        return
    assert "bad" not in outcomes
    for images, split in zip(pair, ("train", "test"), strict=True):
        assert (tuple(images.pixels.shape), str(images.pixels.dtype)) == (
            (expected[split], SIDE, SIDE, 3),
            "torch.uint8",
        )
        print(images.classes, str(images).encode())  # both can be printed anywhere
        "".join(images.classes).encode()
