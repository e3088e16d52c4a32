"""Kills a random rank of a small run at random moments, many times, and compares the end with an undisturbed run.

    python tests/long/kills.py --kills 100 --out /tmp/kills

Half of the kills wait for a checkpoint to be under way. Prints the table of docs/fault-tolerance.md; exit code 1 if the
runs differ, or a rank survived its neighbour.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.helpers.jobs import TINY, Job, metrics_without_times, write_tokens  # noqa: E402

LONGEST_S = 600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="empty folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chance = random.Random(options.seed)
    flags = [*TINY, "--data-path", write_tokens(options.out / "tokens"), "--lr-decay-style", "constant"]
    flags += ["--tensor-model-parallel-size", options.ranks, "--save-interval", 4, "--keep-last", 3, "--auto-resume"]
    run = options.out / "killed"
    outcomes, lost, ended_within = Counter(), [], []
    for number in range(options.kills):
        job = Job(*flags, "--save", run, "--train-iters", 10**6, ranks=options.ranks)
        during_save = chance.random() < 0.5
        before = len(_steps(run))
        _wait(lambda before=before: len(_steps(run)) > before, job)
        time.sleep(chance.uniform(0.0, 1.5))
        if during_save:
            _wait(lambda: any((run / "checkpoints").glob(".tmp-step_*")), job)
        victim = chance.randrange(options.ranks)
        job.ranks[victim].kill()
        began = time.monotonic()
        outcome = job.wait(LONGEST_S)
        ended_within.append(time.monotonic() - began)
        others = [code for rank, code in enumerate(outcome.codes) if rank != victim]
        outcomes["during a save" if during_save else "at any moment"] += 1
        outcomes["others ended with 76"] += all(code == 76 for code in others)
        complete = [int(path.parent.name[5:]) for path in (run / "checkpoints").glob("step_*/manifest.json")]
        lost.append(len(_steps(run)) - max(complete, default=0))
        print(f"kill {number + 1}: rank {victim}, codes {outcome.codes}, steps to repeat {lost[-1]}", flush=True)
    steps = len(_steps(run)) + 3
    codes = [
        Job(*flags, "--save", folder, "--train-iters", steps, ranks=options.ranks).wait(LONGEST_S).codes
        for folder in (run, options.out / "undisturbed")
    ]
    equal = metrics_without_times(run) == metrics_without_times(options.out / "undisturbed")
    print("\n| | |\n|---|---:|")
    print(f"| kills (of them while a checkpoint was being written) | {options.kills} ({outcomes['during a save']}) |")
    print(f"| the other ranks ended by themselves with code 76 | {outcomes['others ended with 76']} |")
    print(f"| seconds until all had ended, median / most | {_median(ended_within):.1f} / {max(ended_within):.1f} |")
    print(f"| steps to repeat, median / most (checkpoint every 4) | {_median(lost):g} / {max(lost)} |")
    print(
        f"| steps of the run; all equal to the undisturbed run's, bit for bit | {steps}; {'yes' if equal else 'NO'} |"
    )
    return 0 if equal and codes == [[0] * options.ranks] * 2 else 1


def _steps(run: Path) -> list[dict]:
    """Complete lines of metrics.jsonl, which a job may be writing."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _wait(condition, job: Job) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        if time.monotonic() > deadline or any(rank.poll() is not None for rank in job.ranks):
            raise RuntimeError(job.wait(1.0).output)
        time.sleep(0.005)


def _median(values: list) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    sys.exit(main())
