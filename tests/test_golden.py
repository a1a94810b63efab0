"""What the package computed when golden.json was recorded, in fp32 with one thread.

    python tests/test_golden.py > tests/golden.json    # on the machine that recorded it, this changes nothing

Another CPU sums in another order, so the test compares to four digits.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import eva_utils as eva
from eva_utils.batches import loader

GOLDEN = Path(__file__).with_name("golden.json")


def batches() -> dict:
    """Checksums of what both engines give, rounded to a 64th so that the last bit of a float does not count."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, 32, 32, 3), generator=generator, dtype=torch.uint8)
    images = eva.Images(pixels, torch.arange(50), tuple(map(str, range(50))), (0.5, 0.4, 0.6), (0.25, 0.3, 0.2))
    out = {}
    for engine in ("batch", "albumentations"):
        for shard in ((0, 1), (1, 2)):
            recipe = eva.Recipe(batch_size=22, seed=3, engine=engine, workers=0)
            some = loader(images, recipe, torch.device("cpu"), shard)
            for epoch in (0, 1):
                x, y = (torch.cat(parts) for parts in zip(*some.epoch(epoch), strict=True))
                x = (x * 64).round().to(torch.int16).contiguous()
                out[f"{engine} {shard} {epoch}"] = [zlib.crc32(x.numpy()), y.tolist()]
    return out


def sums(model: torch.nn.Module) -> list[float]:
    return [float(value.double().abs().sum()) for value in model.state_dict().values()]


def measure(folder: Path) -> dict:
    train, test = eva.digits()
    torch.manual_seed(0)
    model = eva.ResNet9(width=8)
    recipe = eva.Recipe(batch_size=64, seed=1, augment=eva.Augment(2, False, 4), precision="fp32", device="cpu")
    rates = eva.find_lr(model, train, recipe)
    trained = eva.fit(model, train, test, eva.OneCycle(2, 1, 0.01, 0.2), recipe, folder=folder)
    wrong = eva.misclassified(trained.ema, test).pick(3)
    cams = eva.gradcam(trained.ema, wrong)
    return {
        "batches": batches(),
        "range test": {"lr": rates.curve.lr.tolist(), "loss": rates.curve.loss.tolist()},
        "rates": [rates.lr_min, rates.lr_max],
        "applied": [step["applied"] for step in trained.steps],
        "losses": [step["loss"] for step in trained.steps],
        "weights": sums(trained.model),
        "ema": sums(trained.ema),
        "accuracies": [[row["test_accuracy"], row["test_accuracy_ema"]] for row in trained.history],
        "mistakes": wrong.index.tolist(),
        "Grad-CAM": np.stack([cams.maps, cams.true]).astype(float).sum((3, 4)).tolist(),
        "columns": {name: (folder / name).read_text().split("\n")[0] for name in ("lr.csv", "history.csv")},
    }


def flat(value, path=""):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    return {k: v for key, item in items for k, v in flat(item, f"{path}/{key}").items()}


def test_nothing_has_changed(tmp_path):
    golden, now = flat(json.loads(GOLDEN.read_text())), flat(json.loads(json.dumps(measure(tmp_path))))
    assert golden.keys() == now.keys()
    for key, value in golden.items():
        assert now[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key


if __name__ == "__main__":
    import contextlib
    import io
    import tempfile

    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder))
    print(json.dumps(measured, indent=1))
