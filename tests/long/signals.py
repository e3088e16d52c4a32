"""What each signal does under each launcher: the table of docs/fault-tolerance.md.

    python tests/long/signals.py --out /tmp/signals

Two ranks; the signal is sent before step 6 by rank 0, the run is far from its end, and only a stop saves it.
"""

import argparse
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.faults.launchers import RUNNER_UP, launch  # noqa: E402
from tests.helpers.jobs import write_tokens  # noqa: E402

FLAGS = ["--train-iters", 10**6, "--save-interval", 0, "--tensor-model-parallel-size", 2, "--auto-resume"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="empty folder")
    parser.add_argument("--launchers", nargs="+", default=list(RUNNER_UP))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokens = write_tokens(options.out / "tokens")
    print(
        "| launcher | signal | to | saved step | exit code | seconds | ranks train on |\n"
        "|---|---|---|---|---:|---:|---|"
    )
    for launcher in options.launchers:
        targets = {"a rank": {"up": 0}, "the launcher": {"up": RUNNER_UP[launcher]}}
        cases = [(name, target) for name in ("SIGTERM", "SIGUSR1", "SIGINT") for target in targets]
        cases.append(("Ctrl-C", "all"))
        targets["all"] = {"up": RUNNER_UP[launcher], "group": True}
        for name, target in cases:
            run = options.out / re.sub(r"\W+", "-", f"{launcher} {name} {target}")
            sent = name.replace("Ctrl-C", "SIGINT")
            began = time.monotonic()
            ended = launch(
                launcher, run, tokens, {"kind": "signal", "rank": 0, "at": 5, "name": sent, **targets[target]}, *FLAGS
            )
            seconds = time.monotonic() - began
            saved = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")) or "none"
            on = "yes" if ended.trained_on else "no"
            print(f"| {launcher} | {name} | {target} | {saved} | {ended.code} | {seconds:.0f} | {on} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
