"""What each signal does under each launcher: the table of docs/fault-tolerance.md.

    python tests/long/signals.py --out /tmp/signals

Two ranks; the signal is sent before step 6 by rank 0, the run is far from its end, and only a stop saves it. The folder
holds what was found: the same command goes on where it was cut off.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.faults.launchers import RUNNER_UP, launch  # noqa: E402
from tests.helpers.jobs import write_tokens  # noqa: E402

FLAGS = ["--train-iters", 10**6, "--save-interval", 0, "--tensor-model-parallel-size", 2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of what was found")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokens = write_tokens(options.out / "tokens")
    print("| launcher | signal | to | saved step | exit code | ranks train on |\n|---|---|---|---|---:|---|")
    for launcher, up in reversed(RUNNER_UP.items()):
        cases = [
            (name, to, {"name": name}) for name in ("SIGTERM", "SIGUSR1", "SIGINT") for to in ("a rank", "launcher")
        ]
        cases.append(("Ctrl-C", "all", {"name": "SIGINT", "group": True}))
        for name, target, fault in cases:
            run = options.out / re.sub(r"\W+", "-", f"{launcher} {name} {target}")
            found = run.with_suffix(".json")
            if not found.exists():
                shutil.rmtree(run, ignore_errors=True)
                where = {"rank": 0, "at": 5, "up": 0 if target == "a rank" else up}
                ended = launch(launcher, run, tokens, {"kind": "signal"} | where | fault, *FLAGS)
                steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")]
                found.write_text(json.dumps([max(steps) or "none", ended.code, "yes" if ended.trained_on else "no"]))
            saved, code, on = json.loads(found.read_text())
            print(f"| {launcher} | {name} | {target} | {saved} | {code} | {on} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
