"""How fast, and how near to what the device can do.

    python benchmarks/throughput.py            # about half an hour on two cores

Four questions, each variant in a process of its own, the variants taking turns, medians over the rounds:
data alone, the training step, a whole epoch, and the share of the rate of a large matrix product in the same number
format. The pictures are random bytes: their content changes no time. Writes assets/benchmarks/throughput-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import eva_utils as eva
from common import ASSETS, machine, slug, write
from eva_utils.batches import loader
from eva_utils.precision import DTYPES, choose_device, choose_precision, keep_memory
from eva_utils.trainer import Trainer

FLOP = 2.27e9  # forward and backward for one 32 x 32 image; 379.26 M multiply-adds forward, see eva_utils.summary
BATCH = 512
DEVICE = choose_device()


def pictures(n: int, side: int = 32) -> eva.Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, side, side, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    return eva.Images(pixels, labels, tuple("0123456789"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "random")


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> dict:
    if DEVICE.type == "cuda":
        return {"gpu_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


# The usual pipeline: a data set of single images, a DataLoader with its defaults, float32, a .item() each step.


class PerImage(torch.utils.data.Dataset):
    def __init__(self, images: eva.Images, transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.transform(self.images.pixels[i].numpy()), int(self.images.labels[i])


def per_image(images: eva.Images, library: str, workers: int):
    if library == "albumentations":
        pipeline = eva.Augment().albumentations(images.mean, images.std, 32, 32)
        dataset = PerImage(images, lambda pixels: pipeline(image=pixels)["image"])
    else:
        from torchvision.transforms import v2

        steps = [v2.ToImage(), v2.Pad(4, padding_mode="reflect"), v2.RandomCrop(32), v2.RandomHorizontalFlip(),
                 v2.ToDtype(torch.float32, scale=True), v2.Normalize(images.mean, images.std),
                 v2.RandomErasing(p=1, scale=(1 / 16, 1 / 16), ratio=(1, 1))]  # fmt: skip
        dataset = PerImage(images, v2.Compose(steps))
    return torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)


def usual_epoch(train: eva.Images, test: eva.Images) -> None:
    model = eva.ResNet9().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()
    for x, y in per_image(train, "albumentations", 2):
        usual_step(model, optimizer, criterion, x, y)
    plain = eva.Augment(padding=0, flip=False, cutout=0).albumentations(test.mean, test.std, 32, 32)
    model.eval()
    correct = 0
    with torch.no_grad():
        dataset = PerImage(test, lambda pixels: plain(image=pixels)["image"])
        for x, y in torch.utils.data.DataLoader(dataset, BATCH, num_workers=2):
            correct += (model(x.to(DEVICE)).argmax(1).cpu() == y).sum().item()


def usual_step(model, optimizer, criterion, x, y) -> float:
    optimizer.zero_grad()
    loss = criterion(model(x.to(DEVICE)), y.to(DEVICE))
    loss.backward()
    optimizer.step()
    return loss.item()


# What is measured; each function runs in a fresh process and returns numbers.


def data(images: eva.Images, library: str, workers: int) -> dict:
    """One core, or one core a worker."""
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    start = time.perf_counter()
    if library == "eva_utils":
        batches = loader(images, eva.Augment(), BATCH, device=DEVICE)
        iterator = batches.epoch(0)
    else:
        iterator = iter(per_image(images, library, workers))
    next(iterator)
    synchronize()
    first = time.perf_counter() - start
    if library == "eva_utils":  # it is over so soon that the first pass would measure the warming up
        for _ in iterator:
            pass
        iterator = batches.epoch(1)
        next(iterator)
    start, n = time.perf_counter(), 0
    for x, _ in iterator:
        n += len(x)
    synchronize()
    return {"images_per_second": n / (time.perf_counter() - start), "first_batch_seconds": first}


def step(images: eva.Images, precision: str, compiled: bool, steps: int) -> dict:
    if precision == "usual":
        model = eva.ResNet9().to(DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
        criterion = torch.nn.CrossEntropyLoss()
        x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

        def run() -> None:
            for _ in range(steps):
                usual_step(model, optimizer, criterion, x, y)

    else:
        if DEVICE.type == "cpu":
            keep_memory()
        batches = loader(images[: steps * BATCH], eva.Augment(), BATCH, device=DEVICE)
        model = torch.compile(eva.ResNet9()) if compiled else eva.ResNet9()
        settings = {"ema": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "label_smoothing": 0.0, "seed": 0}
        trainer = Trainer(model, batches, eva.OneCycle(24, 5, 0.001, 0.01), settings, precision)

        def run() -> None:
            trainer.train_epoch(0)

    start = time.perf_counter()
    run()
    synchronize()
    first = time.perf_counter() - start
    samples = []
    for _ in range(3):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        samples.append(steps * BATCH / (time.perf_counter() - start))
    rate = median(samples)
    return {"images_per_second": rate, "warm_up_seconds": first - steps * BATCH / rate, **peak_memory()}


def epoch(images: eva.Images, name: str) -> dict:
    """Seconds from pictures in memory to trained, evaluated (and, with ``fit``, saved), workers' start included."""
    test = images[: len(images) // 5]
    model = eva.ResNet9()
    # What a process pays once (libraries, cuDNN's choices) is paid before; an epoch among 24 does not see it.
    step(images, "usual" if name == "usual" else choose_precision(DEVICE), False, 1)
    start = time.perf_counter()
    if name == "usual":
        usual_epoch(images, test)
    else:
        with tempfile.TemporaryDirectory() as folder:
            eva.fit(model, images, test, eva.OneCycle(1, 0.5, 0.001, 0.01), batch_size=BATCH, checkpoint=folder)
    synchronize()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "images_per_second": len(images) / seconds, **peak_memory()}


def matmul(precision: str) -> dict:
    """TFLOP/s of a square matrix product."""
    size = 8192 if DEVICE.type == "cuda" else 4096
    a = torch.randn(size, size, device=DEVICE).to(DTYPES[precision])
    out = torch.empty_like(a)  # else a CPU's page faults would be in it
    samples = []
    for _ in range(8):
        synchronize()
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        synchronize()
        samples.append(2 * size**3 / (time.perf_counter() - start) / 1e12)
    return {"tflops": median(samples[2:])}


def precisions() -> list[str]:
    if DEVICE.type == "cuda":
        return ["bf16", "fp16", "fp32"]
    return sorted({"fp32", choose_precision(DEVICE)})


def parts(images: int, steps: int) -> dict[str, tuple]:
    """Every measurement: its name, and the function and arguments that make it."""
    per_image = {
        f"data: {library}, {workers} workers": (data, min(images, 10_240), library, workers)
        for library in ("albumentations", "torchvision")
        for workers in (0, 2)
    }
    ours = {
        # Enough of them for memory to settle, where a step is short.
        f"step: eva_utils, {precision}{', compiled' * compiled}": (
            step,
            steps * (1 if precision == "fp32" else 5) * BATCH,
            precision,
            compiled,
            steps * (1 if precision == "fp32" else 5),
        )
        for precision in precisions()
        for compiled in ((False, True) if precision == choose_precision(DEVICE) else (False,))
    }
    return {
        **{f"matmul: {precision}": (matmul, 0, precision) for precision in precisions()},
        **per_image,
        "data: eva_utils, batch engine": (data, 50_000, "eva_utils", 0),
        "step: usual, fp32": (step, 0, "usual", False, steps),
        **ours,
        "epoch: usual": (epoch, images, "usual"),
        "epoch: eva_utils": (epoch, images, "fit"),
    }


def measure(name: str, images: int, steps: int) -> dict:
    function, n, *arguments = parts(images, steps)[name]
    return function(*([pictures(n)] if function is not matmul and n else [None] * (function is not matmul)), *arguments)


def child(name: str, images: int, steps: int) -> dict:
    command = [sys.executable, __file__, "--part", name, "--images", str(images), "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def summarise(samples: dict[str, list[dict]]) -> dict:
    """Medians, with smallest and largest, and ratios, which are taken round by round."""
    table = {}
    for name, rows in samples.items():
        table[name] = {}
        for key in rows[0]:
            values = sorted(row[key] for row in rows)
            table[name][key] = {"median": median(values), "min": values[0], "max": values[-1], "n": len(values)}

    def ratio(a: str, b: str, key: str = "images_per_second", factor: float = 1) -> float:
        return median(factor * x[key] / y[key] for x, y in zip(samples[a], samples[b], strict=True))

    best = choose_precision(DEVICE)
    ours, batches = f"step: eva_utils, {best}", "data: eva_utils, batch engine"
    share = {
        p: median(
            FLOP * x["images_per_second"] / (y["tflops"] * 1e12)
            for x, y in zip(samples[f"step: eva_utils, {p}"], samples[f"matmul: {p}"], strict=True)
        )
        for p in precisions()
    }
    ratios = {
        "whole epoch, eva_utils over usual": ratio("epoch: eva_utils", "epoch: usual"),
        "training step, eva_utils over usual": ratio(ours, "step: usual, fp32"),
        "batch engine over albumentations, per core": ratio(batches, "data: albumentations, 0 workers"),
        "data's share of the step": ratio(ours, batches),
        "compiled over not": ratio(ours + ", compiled", ours),
        "share of the matrix product's rate": share,
    }
    return {"ratios": ratios, "measurements": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = DEVICE.type == "cuda"
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=50_000 if gpu else 5_120, help="of the whole epoch")
    parser.add_argument("--steps", type=int, default=50 if gpu else 2, help="of the training step")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(measure(args.part, args.images, args.steps)))
        return
    samples: dict[str, list[dict]] = {}
    for turn in range(args.rounds):
        for name in parts(args.images, args.steps):
            samples.setdefault(name, []).append(child(name, args.images, args.steps))
            print(f"round {turn + 1}  {name:<45} {samples[name][-1]}", flush=True)
    settings = {"batch_size": BATCH, "epoch_images": args.images, "steps": args.steps, "rounds": args.rounds}
    write(args.out / f"throughput-{slug()}.json", machine() | settings | summarise(samples))


if __name__ == "__main__":
    main()
