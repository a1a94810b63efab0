"""Everything that needs a GPU, by one command, in three lots of half an hour at most.

    python benchmarks/gpu_day.py --data data/cifar10-pixels --lot 1 --minutes 9    # again, until it prints nothing
    python benchmarks/gpu_day.py --small --device cpu --out /tmp/rehearsal         # each command, as small as can be

A step that has left OUT/<name>.json with status 0 is not run again; one that was cut off after --minutes goes on where
it was. OUT.tar.gz has everything but weights. --peers: a clone of github.com/KellerJordan/cifar10-airbench.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import torch

import eva_utils as eva
from common import machine, some
from eva_utils.run import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
ROWS = "benchmarks/accuracy.py --data {data} --out {out}/rows/accuracy.json --work {out}/work"
TINY = "--images 600 --width 1 --epochs 1"
DIGITS = "--data digits --no-flip --width 8 --batch-size 64 --epochs 1"
STEPS = [  # name, lot, minutes on an H100, command, and what a rehearsal puts behind it
    ("run", 1, 2, "-m eva_utils train --data {data} --out {out}/run", "--width 1 --epochs 1 --batch-size 64"),
    ("notebook", 1, 3, "-m jupyter execute --inplace {out}/SuperConvergence.ipynb", "--help"),
    ("accuracy", 1, 15, f"{ROWS} --recipes ours cifar10-fast --seeds 10", f"{TINY} --seeds 1"),
    ("solution-a", 1, 3, f"{ROWS} --recipes solution-a --seeds 3", "--help"),
    ("tests", 2, 5, "-m pytest -q tests", "--collect-only"),
    ("fp16", 2, 2, f"{ROWS} --recipes as-a-T4 --seeds 5", "--help"),
    ("nccl", 2, 1, f"-m torch.distributed.run --nproc-per-node 1 -m eva_utils train {DIGITS} --out {{out}}/nccl", ""),
    ("throughput", 2, 14, "benchmarks/throughput.py --out {out}/rows", "--part 'data: eva_utils, batch engine'"),
    ("schedules", 2, 7, "benchmarks/superconvergence.py --data {data} --out {out}/rows --work {out}/work", TINY),
    ("airbench94", 3, 4, "{peers}/legacy/airbench94_compiled.py", "--help"),
    ("airbench94_muon", 3, 4, "{peers}/airbench94_muon.py", "--help"),
    ("grid", 3, 20, "benchmarks/lr_finder.py --data {data} --out {out}/rows/lr_study.json", "--help"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cifar10-pixels", help="an image folder (%(default)s)")
    parser.add_argument("--lot", type=int, choices=(1, 2, 3), help="(all)")
    parser.add_argument("--minutes", type=float, default=600, help="of this call (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_day"), help="(%(default)s)")
    parser.add_argument("--peers", type=Path, help="without it they are left out")
    parser.add_argument("--small", action="store_true", help="a rehearsal")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args, start = parser.parse_args(), time.monotonic()
    data, out = "digits" if args.small else str(Path(args.data).resolve()), args.out.resolve()
    peers = args.peers and args.peers.resolve()
    os.environ.update({"PYTHONPATH": str(ROOT), "EVA_DATA": data})
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        parser.error("there is no GPU; a rehearsal is --small --device cpu")
    (out / "rows").mkdir(parents=True, exist_ok=True)
    if not (out / "SuperConvergence.ipynb").exists():
        shutil.copy(ROOT / "notebooks/SuperConvergence.ipynb", out)
    if peers and not (peers / "cifar10").exists():  # where airbench looks before it downloads
        (peers / "cifar10").mkdir()
        for split, images in zip(("train", "test"), eva.load_data(data), strict=True):
            images = some(images, len(images))  # mixed: it whitens by the first 5,000, in a folder all of one class
            content = {"images": images.pixels, "labels": images.labels, "classes": images.classes}
            torch.save(content, peers / f"cifar10/{split}.pt")
    for script in (peers / "legacy/airbench94_compiled.py", peers / "airbench94_muon.py") if peers else ():
        script.write_text(re.sub(r"for run in range\(\d+\)", "for run in range(10)", script.read_text()))  # not 200
    for name, lot, minutes, command, small in STEPS:
        file, log, now = out / f"{name}.json", out / f"{name}.log", time.monotonic()
        left, foreign = start + 60 * args.minutes - now, "{peers}" in command
        done = file.is_file() and read_json(file)["status"] == 0
        if done or args.lot not in (None, lot) or (foreign and not peers) or left < 1:
            continue
        words = shlex.split(f"{command} {small * args.small}")
        words = [sys.executable, *(word.format(data=data, out=out, peers=peers) for word in words)]
        with log.open("ab") as output:  # timeout(1) ends what the step has started, too
            limit, folder = ["timeout", "-s", "KILL", f"{left:.0f}"], peers if foreign else ROOT
            status = subprocess.run([*limit, *words], cwd=folder, stdout=output, stderr=output).returncode
        seconds, end = time.monotonic() - now, log.read_text(errors="replace")[-4000:]
        write_json(file, {"command": words, "status": status, "seconds": seconds, "output": end, **machine()})
        print(f"{name}: status {status} after {seconds / 60:.1f} minutes; expected {minutes}", flush=True)
        with tarfile.open(f"{out}.tar.gz", "w:gz") as archive:
            archive.add(out, out.name, filter=lambda info: None if info.name.endswith(".pt") else info)


if __name__ == "__main__":
    main()
