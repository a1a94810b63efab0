"""How fast, and how near to what the device can do.

    python benchmarks/throughput.py            # about half an hour on two cores

Four questions, each variant in a process of its own, the variants taking turns, medians over the rounds:
data alone, the training step, a whole epoch, and the share of the rate of a large matrix product in the same number
format. The pictures are random bytes: their content changes no time. Writes assets/benchmarks/throughput-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from statistics import median

import torch
from torch.utils.data import DataLoader, default_collate

import eva_utils as eva
from common import ASSETS, machine
from eva_utils.batches import loader
from eva_utils.device import DTYPES, choose_device, choose_precision, describe, keep_memory
from eva_utils.run import write_json
from eva_utils.train import Trainer

FLOP = 2.27e9  # forward and backward for one 32 x 32 image; 379.26 M multiply-adds forward, see eva_utils.summary
RECIPE = eva.Recipe()
BATCH = RECIPE.batch_size
DEVICE = choose_device()
BEST = choose_precision(DEVICE)
PRECISIONS = ["bf16", "fp16", "fp32"] if DEVICE.type == "cuda" else sorted({"fp32", BEST})


def pictures(n: int) -> eva.Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    return eva.Images(pixels, labels, tuple("0123456789"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "random")


def seconds_of(function) -> float:
    start = time.perf_counter()
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory() -> dict:
    if DEVICE.type == "cuda":
        return {"gpu_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


# The usual pipeline: a data set of single images, a DataLoader with its defaults, float32, a .item() each step.


def per_image(images: eva.Images, workers: int, augment=RECIPE.augment):
    pipeline = augment.albumentations(images.mean, images.std, 32, 32)
    pairs = list(zip(images.pixels.numpy(), images.labels.tolist(), strict=True))

    def collate(batch: list):
        return default_collate([(pipeline(image=pixels)["image"], label) for pixels, label in batch])

    return DataLoader(pairs, BATCH, shuffle=True, num_workers=workers, collate_fn=collate)


def usual():
    """(model, its training step as notebooks have it)."""
    model = eva.ResNet9().to(DEVICE, memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()

    def step(x, y) -> float:
        optimizer.zero_grad()
        loss = criterion(model(x.to(DEVICE)), y.to(DEVICE))
        loss.backward()
        optimizer.step()
        return loss.item()

    return model, step


def usual_epoch(train: eva.Images, test: eva.Images) -> None:
    model, step = usual()
    for x, y in per_image(train, 2):
        step(x, y)
    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in per_image(test, 2, eva.Augment(padding=0, flip=False, cutout=0)):
            correct += (model(x.to(DEVICE)).argmax(1).cpu() == y).sum().item()


# What is measured; each function runs in a fresh process and returns numbers.


def data(n: int, workers: int | None = None) -> dict:
    """The batch engine on one core, or albumentations on one core a worker."""
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    images, epochs, sizes = pictures(n), [], []
    if workers is None:  # it is over so soon that the first pass would measure the warming up
        batches = loader(images, RECIPE, DEVICE)
        epochs = [batches.epoch(0), batches.epoch(1)]
    else:
        epochs = [iter(per_image(images, workers))]
    first = seconds_of(lambda: next(epochs[0]))
    if workers is None:
        seconds_of(lambda: [len(x) for x, _ in epochs[0]] and next(epochs[1]))
    seconds = seconds_of(lambda: sizes.extend(len(x) for x, _ in epochs[-1]))
    return {"images_per_second": sum(sizes) / seconds, "first_batch_seconds": first}


def step(steps: int, precision: str, compiled: bool = False) -> dict:
    if precision == "usual":
        take, (x, y) = usual()[1], (torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,)))

        def run() -> None:
            for _ in range(steps):
                take(x, y)

    else:
        if DEVICE.type == "cpu":
            keep_memory()
        batches = loader(pictures(steps * BATCH), RECIPE, DEVICE)
        model = torch.compile(eva.ResNet9()) if compiled else eva.ResNet9()
        run = Trainer(model, batches, eva.OneCycle(24, 5, 0.001, 0.01), RECIPE, precision).epoch
    first = seconds_of(run)
    rate = median(steps * BATCH / seconds_of(run) for _ in range(3))
    return {"images_per_second": rate, "warm_up_seconds": first - steps * BATCH / rate, **peak_memory()}


def epoch(n: int, name: str) -> dict:
    """Seconds from pictures in memory to trained, evaluated (and, with ``fit``, saved), workers' start included."""
    images = pictures(n)
    test = images[: n // 5]
    # What a process pays once (libraries, cuDNN's choices) is paid before; an epoch among 24 does not see it.
    step(1, "usual" if name == "usual" else BEST)
    with tempfile.TemporaryDirectory() as folder:
        policy = eva.OneCycle(1, 0.5, 0.001, 0.01)
        fit = partial(eva.fit, eva.ResNet9(), images, test, policy, RECIPE, folder=folder)
        seconds = seconds_of(partial(usual_epoch, images, test) if name == "usual" else fit)
    return {"seconds": seconds, "images_per_second": n / seconds, **peak_memory()}


def matmul(size: int, precision: str) -> dict:
    """TFLOP/s of a square matrix product."""
    a = torch.randn(size, size, device=DEVICE).to(DTYPES[precision])
    out = torch.empty_like(a)  # else a CPU's page faults would be in it
    samples = [2 * size**3 / seconds_of(lambda: torch.mm(a, a, out=out)) / 1e12 for _ in range(8)]
    return {"tflops": median(samples[2:])}


def parts(images: int, steps: int) -> dict[str, partial]:
    """Every measurement by its name."""
    found = {f"matmul: {p}": partial(matmul, 8192 if DEVICE.type == "cuda" else 4096, p) for p in PRECISIONS}
    for workers in (0, 2):
        found[f"data: albumentations, {workers} workers"] = partial(data, min(images, 10_240), workers)
    found["data: eva_utils, batch engine"] = partial(data, 50_000)
    found["step: usual, fp32"] = partial(step, steps, "usual")
    for p in PRECISIONS:
        many = steps * (1 if p == "fp32" else 5)  # enough of them for memory to settle, where a step is short
        found[f"step: eva_utils, {p}"] = partial(step, many, p)
        if p == BEST:
            found[f"step: eva_utils, {p}, compiled"] = partial(step, many, p, True)
    return found | {f"epoch: {name}": partial(epoch, images, name) for name in ("usual", "eva_utils")}


def child(name: str, images: int, steps: int) -> dict:
    command = [sys.executable, __file__, "--part", name, "--images", str(images), "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def summarise(samples: dict[str, list[dict]]) -> dict:
    """Medians, with smallest and largest, and ratios, which are taken round by round."""
    table: dict[str, dict] = {name: {} for name in samples}
    for name, rows in samples.items():
        for key in rows[0]:
            values = sorted(row[key] for row in rows)
            table[name][key] = {"median": median(values), "min": values[0], "max": values[-1], "n": len(values)}

    def ratio(a: str, b: str, key: str = "images_per_second", factor: float = 1) -> float:
        rounds = zip(samples[a], samples[b], strict=True)
        return median(factor * x["images_per_second"] / y[key] for x, y in rounds)

    ours, batches = f"step: eva_utils, {BEST}", "data: eva_utils, batch engine"
    ratios = {
        "whole epoch, eva_utils over usual": ratio("epoch: eva_utils", "epoch: usual"),
        "training step, eva_utils over usual": ratio(ours, "step: usual, fp32"),
        "batch engine over albumentations, per core": ratio(batches, "data: albumentations, 0 workers"),
        "data's share of the step": ratio(ours, batches),
        "compiled over not": ratio(ours + ", compiled", ours),
        "share of the matrix product's rate": {
            p: ratio(f"step: eva_utils, {p}", f"matmul: {p}", "tflops", FLOP / 1e12) for p in PRECISIONS
        },
    }
    return {"ratios": ratios, "measurements": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = DEVICE.type == "cuda"
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=50_000 if gpu else 5_120, help="of the whole epoch")
    parser.add_argument("--steps", type=int, default=50 if gpu else 2, help="of the training step")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    measurements = parts(args.images, args.steps)
    if args.part:
        print(json.dumps(measurements[args.part]()))
        return
    samples: dict[str, list[dict]] = {}
    for turn in range(args.rounds):
        for name in measurements:
            samples.setdefault(name, []).append(child(name, args.images, args.steps))
            print(f"round {turn + 1}  {name:<45} {samples[name][-1]}", flush=True)
    settings = {"batch_size": BATCH, "epoch_images": args.images, "steps": args.steps, "rounds": args.rounds}
    device = re.sub(r"[^a-z0-9]+", "-", describe(DEVICE).lower()).strip("-")
    write_json(ASSETS / f"throughput-{device}.json", machine() | settings | summarise(samples))


if __name__ == "__main__":
    main()
