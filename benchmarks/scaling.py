"""How much faster several processes train than one: ``python benchmarks/scaling.py --processes 1 2``.

For each number it starts torchrun, trains for a few epochs on random images, and times an all-reduce of the gradients'
size alone. The global batch stays the same (strong scaling). Results go into assets/benchmarks/scaling-<device>.json, a
row for each number of processes, and ``python tools/update_tables.py`` makes docs/torchrun.md's tables of them.

Across machines start it with torchrun yourself, on each of them; it then adds the row for that number of processes:
``torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29400 benchmarks/scaling.py``
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import eva_utils as eva
from eva_utils.distributed import process_group, rank, total, world_size
from eva_utils.precision import choose_device, choose_precision, describe

OUT = Path(__file__).resolve().parent.parent / "assets" / "benchmarks"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes to compare (1 2)")
    add("--batch-size", type=int, default=512, help="of all processes together (%(default)s)")
    add("--width", type=int, default=64, help="of the network (%(default)s)")
    add("--steps", type=int, default=10, help="in each timed epoch (%(default)s)")
    add("--epochs", type=int, default=5, help="timed ones; one more warms up (%(default)s)")
    add("--device", choices=["cpu", "cuda"], help="(cuda if it is there)")
    add("--threads", type=int, help="of each process on a CPU (the cores, divided by the largest number of processes)")
    add("--out", type=Path, default=OUT, help="folder for the result (assets/benchmarks)")
    return parser.parse_args()


def all_reduce_seconds(numbers: int, device: torch.device, repeats: int = 20) -> float:
    """Median time to sum ``numbers`` float32 over all processes, with nothing else going on."""
    tensor, seconds = torch.zeros(numbers, device=device), []
    for _ in range(repeats + 3):  # the first ones connect
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        total(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def measure(args: argparse.Namespace) -> None:
    """In each process of a group: train, time, and add a row to the result's file."""
    with process_group():
        device = choose_device(args.device)
        model = eva.ResNet9(10, args.width)
        n = args.steps * args.batch_size
        pixels = torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images = eva.Images(pixels, torch.arange(n) % 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, "random")
        schedule = eva.OneCycle(args.epochs + 1, 1, 1e-4, 1e-3)
        run = eva.fit(model, images, images[:10], schedule, batch_size=args.batch_size, device=args.device)
        rates = [row["images_per_second"] for row in run.history[1:]]
        numbers = sum(p.numel() for p in model.parameters())
        row = {
            "processes": world_size(),
            "images_per_second": statistics.median(rates),
            "of_each_epoch": rates,
            "all_reduce_seconds": all_reduce_seconds(numbers, device) if world_size() > 1 else 0.0,
        }
        if rank() == 0:
            name = describe(device).removeprefix(f"{world_size()} x ")
            setting = {"device": name, "precision": choose_precision(device), "torch": torch.__version__,
                       "batch_size": args.batch_size, "width": args.width, "params": numbers}  # fmt: skip
            print(add_row(args.out, setting, row))


def add_row(folder: Path, setting: dict, row: dict) -> Path:
    """Into the file of this device: beside the rows that were measured in the same setting, instead of all others."""
    slug = re.sub(r"[^a-z0-9]+", "-", setting["device"].lower()).strip("-")
    file = folder / f"scaling-{slug}.json"
    old = json.loads(file.read_text(encoding="utf8")) if file.exists() else {}
    rows = old.pop("rows", []) if {k: v for k, v in old.items() if k != "rows"} == setting else []
    rows = [other for other in rows if other["processes"] != row["processes"]] + [row]
    rows.sort(key=lambda row: row["processes"])
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(setting | {"rows": rows}, indent=1) + "\n", encoding="utf8")
    for row in rows:
        speedup = row["images_per_second"] / rows[0]["images_per_second"]
        efficiency = speedup * rows[0]["processes"] / row["processes"]
        print(f"{row['processes']} processes: {row['images_per_second']:,.0f} images/s, efficiency {efficiency:.0%}, "
              f"all-reduce alone {1e3 * row['all_reduce_seconds']:.1f} ms")  # fmt: skip
    return file


def main() -> int:
    args = arguments()
    if "RANK" in os.environ:
        measure(args)
        return 0
    threads = args.threads or max(1, (os.cpu_count() or 1) // max(args.processes))
    for n in args.processes:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
        status = subprocess.run([*command, *sys.argv], env=os.environ | {"OMP_NUM_THREADS": str(threads)}).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
