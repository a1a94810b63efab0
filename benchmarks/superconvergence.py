"""Super-convergence itself: test accuracy against epochs, one-cycle beside constant rates and step decay.

    python benchmarks/superconvergence.py --data data/cifar10-pixels                                   # on a GPU
    python benchmarks/superconvergence.py --data data/cifar10-pixels --width 16 --epochs 12 --seeds 3  # on a CPU's core

One-cycle with the found rates, a constant rate and step decay, --seeds times, and once in three times as many epochs.
The constant rate and the rate that a decay starts from are those of POLICIES that did best on held-out
training images (EMA, seed 0). Writes assets/benchmarks/superconvergence.json (what is there is not run again) and .png.
"""

from __future__ import annotations

import eva_utils as eva
from accuracy import Job, split
from common import ASSETS, NAMES, Rows, folder_name, machine, markdown, options, some, spread, where
from eva_utils import plots

# Name: the rates tried (of a decay none that it comes down to), and the shares of the epochs after which the rate falls
# to a tenth.
POLICIES = {"one-cycle": ([], ()), "constant": ([0.02, 0.1, 0.5], ()), "steps from": ([0.1, 0.5], (0.5, 0.75))}


def run(rows: Rows, name: str, schedule, job: Job, test: eva.Images, held_out: bool = False) -> dict:
    key = {"policy": name, "epochs": schedule.epochs, "data": job.train.name, "images": len(job.train),
           "width": job.width, "seed": job.seed, "tested_on": "held out" if held_out else None}  # fmt: skip
    if row := rows.find(**key):
        return row
    print(f"\n{key}", flush=True)
    folder = job.folder / folder_name(key)
    result = eva.fit(job.network(), job.train, test, schedule, eva.Recipe(seed=job.seed), folder=folder)
    curves = {key: [row[key] for row in result.history] for key in ("test_accuracy", "test_accuracy_ema")}
    return rows.add({**key, **curves, "lr": max(step["applied"] for step in result.steps), **machine()})


def draw(rows: list[dict]):
    """The figure of these rows; the longer run of a policy follows its shorter ones."""
    runs: dict[str, list] = {}
    for row in rows:
        curves = zip(row["test_accuracy"], row["test_accuracy_ema"], strict=True)
        history = [{"test_accuracy": last, "test_accuracy_ema": ema} for last, ema in curves]
        runs.setdefault(row["policy"], []).append(history)
    seeds: dict[int, set] = {}
    for row in rows:
        seeds.setdefault(row["epochs"], set()).add(row["seed"])
    n = ", ".join(f"n = {len(some)} in {epochs} epochs" for epochs, some in seeds.items())
    about = f"{NAMES.get(row['data'], row['data'])}, width {row['width']}, {where(row)}; {n}"
    return plots.compare(runs, about=about)


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over the seeds of what was tested on the test images; a table for each size."""
    sizes: dict[str, dict[tuple, list[dict]]] = {}
    rows = [row for row in rows if not row.get("tested_on")]
    for row in sorted(rows, key=lambda row: (row["epochs"], row["policy"] != "one-cycle", row["policy"])):
        size = f"Width {row['width']}, {row['images']:,} training images of {NAMES.get(row['data'], row['data'])}"
        groups = sizes.setdefault(f"{size}; {where(row)}:", {})
        groups.setdefault((row["policy"], row["epochs"]), []).append(row)
    parts = []
    for title, groups in sizes.items():
        lines = []
        for (policy, epochs), group in groups.items():
            ends = [spread([row[key][-1] for row in group]) for key in ("test_accuracy", "test_accuracy_ema")]
            rates = dict.fromkeys(f"{bound(row['lr'] for row in group):.2g}" for bound in (min, max))
            lines.append([policy, " to ".join(rates), f"{epochs}", *ends, f"{len(group)}"])
        head = ["policy", "highest rate", "epochs", "last weights", "EMA", "n"]
        parts.append(f"{title}\n\n{markdown(head, lines)}")
    return "\n".join(parts)


def main() -> None:
    args = options(__doc__, ASSETS, "superconvergence-study").parse_args()
    rows, shown = Rows(args.out / "superconvergence.json"), []
    train, test = split(args.data, held_out=False)
    for kind, (tried, milestones) in POLICIES.items():
        best = None
        if tried:
            some_of_them, held_out = split(args.data, held_out=True)
            trial = Job(some(some_of_them, args.images), args.epochs, args.width, 0, args.work)
            ends = {}
            for lr in tried:
                policy = eva.StepDecay(args.epochs, lr, milestones=milestones)
                ends[lr] = run(rows, f"{kind} {lr:g}", policy, trial, held_out, True)["test_accuracy_ema"][-1]
            best = max(ends, key=ends.get)
        for seed, times in [(seed, 1) for seed in range(args.seeds)] + [(0, 3)]:
            job = Job(some(train, args.images), times * args.epochs, args.width, seed, args.work)
            if best is None:
                recipe = eva.Recipe(seed=seed)
                found = eva.find_lr(job.network(), job.train, recipe, folder=args.work / f"one-cycle-{seed}")
                name, policy = kind, eva.OneCycle(job.epochs, job.peak, found.lr_min, found.lr_max)
            else:
                name, policy = f"{kind} {best:g}", eva.StepDecay(job.epochs, best, milestones=milestones)
            shown.append(run(rows, name, policy, job, test))
    print(table(rows.rows), plots.save(draw(shown), args.out / "superconvergence.png"), sep="\n")


if __name__ == "__main__":
    main()
