"""Kills a random rank of a small run at random moments, many times; the run must stay the undisturbed one, bit for bit.

    python tests/long/kills.py --kills 100 --out /tmp/kills [--minutes 8] [-- any megasink flag]

From the top of the repository. Every fifth kill falls into a start, two of five into the writing of a checkpoint, two
anywhere. After each kill all that the run has logged so far is compared with the undisturbed run. The folder holds the
state: the same command goes on where the last one stopped, after --minutes too. Prints the table of
docs/fault-tolerance.md; exit code 1 if the runs differ or a rank outlived its neighbour, 3 if kills are left to do.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.helpers.jobs import TIMES, TINY, Job, write_tokens  # noqa: E402

STARTS, SAVES, ANYWHERE = "while it started", "while a checkpoint was written", "at any moment"
TURNS = (SAVES, ANYWHERE, STARTS, SAVES, ANYWHERE)
SAVE_INTERVAL = 4
LONGEST_S = 300.0
LAUNCHER_S = 15.0
"""A rank that waits for one killed before it had joined is ended after so long, as launchers do."""
FOR_EVER = 10**7


def main() -> int:
    argv = sys.argv[1:]
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no kill after so many")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and of what was found")
    options = parser.parse_args(argv[:at])
    options.out.mkdir(parents=True, exist_ok=True)
    tokens = options.out / "tokens"
    if not tokens.with_suffix(".idx").exists():
        write_tokens(tokens)
    flags = [*TINY, "--data-path", tokens, "--lr-decay-style", "constant", "--save-interval", SAVE_INTERVAL]
    flags += ["--keep-last", 3, "--sink-stats-interval", 10, *argv[at + 1 :]]
    run, reference, records = options.out / "killed", options.out / "undisturbed", options.out / "kills.jsonl"
    began = time.monotonic()
    for number in range(len(_lines(records)), options.kills):
        if time.monotonic() - began > 60.0 * options.minutes:
            print(f"{number} kills so far; the same command goes on")
            return 3
        record = kill_once(number, run, [*flags, "--auto-resume", "--save", run], options)
        extend(reference, record["logged_steps"], [*flags, "--save", reference], options.ranks)
        record["equal"] = _same_so_far(run, reference)
        with open(records, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)
    return _print_table(_lines(records))


def kill_once(number: int, run: Path, flags: list, options: argparse.Namespace) -> dict:
    """Go on with the run, kill a rank, wait for the others to end; what was seen."""
    chance = random.Random(f"{options.seed}/{number}")
    moment, victim = TURNS[number % len(TURNS)], chance.randrange(options.ranks)
    before = len(_lines(run / "metrics.jsonl"))
    job = Job(*flags, "--train-iters", FOR_EVER, ranks=options.ranks)
    if moment == STARTS:
        time.sleep(chance.uniform(0.0, 2.0))
    else:
        resumed_at = _newest_checkpoint(run)
        job.until(lambda: _newest_checkpoint(run) > resumed_at, LONGEST_S)
        time.sleep(chance.uniform(0.0, 1.0))
    if moment == SAVES:
        job.until(lambda: any((run / "checkpoints").glob(".tmp-step_*")), LONGEST_S)
        time.sleep(chance.uniform(0.0, 0.02))
    job.ranks[victim].kill()
    began = time.monotonic()
    if moment == STARTS:
        for rank in job.ranks:
            rank.join(LAUNCHER_S)
            rank.kill()
    outcome = job.wait(LONGEST_S)
    logged = len(_lines(run / "metrics.jsonl"))
    return {
        "kill": number + 1,
        "moment": moment,
        "rank": victim,
        "codes": outcome.codes,
        "others_ended_after_s": round(time.monotonic() - began, 2),
        "half_written_checkpoint": any((run / "checkpoints").glob(".tmp-step_*")),
        "logged_steps": logged,
        "new_steps": logged - before,
        "steps_to_repeat": logged - _newest_checkpoint(run),
    }


def extend(reference: Path, steps: int, flags: list, ranks: int) -> None:
    """Train the undisturbed run for at least so many steps, in one piece: a longer one starts over, twice as long."""
    if len(_lines(reference / "metrics.jsonl")) >= steps:
        return
    shutil.rmtree(reference, ignore_errors=True)
    codes = Job(*flags, "--train-iters", max(500, 2 * steps), "--save-interval", 0, ranks=ranks).wait(LONGEST_S).codes
    assert codes == [0] * ranks, codes


def _same_so_far(run: Path, reference: Path) -> bool:
    """Metrics without times, and the scalars of the sink statistics."""
    for name in ("metrics.jsonl", "sink_stats/scalars.jsonl"):
        lines, expected = _lines(run / name), _lines(reference / name)
        if [_without_times(line) for line in lines] != [_without_times(line) for line in expected[: len(lines)]]:
            return False
    return True


def _without_times(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in TIMES}


def _print_table(records: list[dict]) -> int:
    """1 if anything was not as it should be."""
    running = [record for record in records if record["moment"] != STARTS]
    ended = [record["others_ended_after_s"] for record in running]
    repeat = [record["steps_to_repeat"] for record in records]
    others = [[code for rank, code in enumerate(r["codes"]) if rank != r["rank"]] for r in running]
    left_alone = sum(set(codes) != {76} for codes in others)
    different = sum(not record["equal"] for record in records)
    print(f"\n| {len(records)} kills | |\n|---|---:|")
    for moment in (SAVES, STARTS, ANYWHERE):
        print(f"| of them {moment} | {sum(record['moment'] == moment for record in records)} |")
    print(f"| half-written checkpoints left behind | {sum(record['half_written_checkpoint'] for record in records)} |")
    print(f"| the others ended by themselves with 76, of {len(running)} once running | {len(running) - left_alone} |")
    print(f"| ... after so many seconds, median / most | {_median(ended):.1f} / {max(ended):.1f} |")
    print(f"| steps to repeat, median / most (checkpoint every {SAVE_INTERVAL}) | {_median(repeat)} / {max(repeat)} |")
    print(f"| steps reached | {records[-1]['logged_steps']} |")
    print(f"| times the run so far was the undisturbed run, bit for bit | {len(records) - different} |")
    return 1 if different or left_alone else 0


def _lines(path: Path) -> list[dict]:
    """Complete lines of a file that a job may be writing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _newest_checkpoint(run: Path) -> int:
    """Step of the newest one; 0 without any."""
    found = (run / "checkpoints").glob("step_*/manifest.json")
    return max((int(path.parent.name.removeprefix("step_")) for path in found), default=0)


def _median(values: list) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
