"""Do the fast paths train like the plain ones? The same run compiled and with --no-compile, loss by loss.

    python benchmarks/fast_path_losses.py --out OUT -- --config examples/pretrain_0.1b.yaml --data-path DATA ...

Everything after `--` goes to the training command of both runs, which go side by side. The bound is stated beforehand:
two orders of the same sums in bf16 drift apart, and a fault would be far outside. Prints the differences, writes
OUT/fast_path_losses.json; exit code 1 outside the bound.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megasink.config.cli import parse_cli
from megasink.data.atomic import write_atomic
from megasink.errors import UserError, run_cli

RUNS = {"compiled": (), "plain": ("--no-compile",)}


@dataclass
class LossesConfig:
    """How two runs are compared."""

    out: str = "fast-path-losses"
    """Folder of fast_path_losses.json and the runs' logs."""
    largest: float = 0.05
    """Bound of the difference of any step's loss, nats."""
    mean: float = 0.01
    """Bound of its mean over all steps."""


def main() -> None:
    argv = sys.argv[1:]
    at = argv.index("--") if "--" in argv else len(argv)
    own = parse_cli(LossesConfig, argv[:at], "Compare the losses of compiled and plain training.")
    out = Path(own.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        losses = train_both(argv[at + 1 :], Path(folder), out)
    difference = np.abs(losses["compiled"] - losses["plain"])
    found = {"steps": len(difference), "largest": difference.max(), "at": int(difference.argmax()) + 1}
    found |= {"mean": difference.mean(), "first": difference[0], "last_loss": losses["plain"][-1]}
    for name, value in found.items():
        print(f"{name:>10}  {value:.6g}")
    record = found | {name: list(values) for name, values in losses.items()} | {"command": sys.argv}
    write_atomic(out / "fast_path_losses.json", (json.dumps(record) + "\n").encode())
    if found["largest"] > own.largest or found["mean"] > own.mean:
        raise UserError(f"outside the bounds: largest {own.largest}, mean {own.mean}")


def train_both(flags: list[str], folder: Path, out: Path) -> dict[str, np.ndarray]:
    """Each run's losses, one per step."""
    running = {}
    for port, (name, own) in enumerate(RUNS.items(), start=29_600):
        command = [sys.executable, "-m", "megasink.train", *flags, *own, "--save", str(folder / name)]
        command += ["--log-interval", "1", "--save-interval", "0", "--wandb-mode", "disabled"]
        with open(out / f"{name}.log", "w") as log:
            environment = os.environ | {"MASTER_PORT": str(port)}
            running[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    failed = [name for name, process in running.items() if process.wait()]
    if failed:
        raise UserError(f"the {failed[0]} run stopped; see {out / failed[0]}.log")
    records = {name: (folder / name / "metrics.jsonl").read_text().splitlines() for name in running}
    return {name: np.array([json.loads(line)["loss"] for line in lines]) for name, lines in records.items()}


if __name__ == "__main__":
    run_cli(main)
